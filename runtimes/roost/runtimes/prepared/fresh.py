"""Entry of a fresh process that does one thing with one model: ``python -m roost.runtimes.prepared.fresh PARENT``.

What a model takes can only be told in a process that had none before. One job in JSON comes on standard input, its
answer goes to standard output, and the process ends. Before it imports what takes a while it sees to it that it does
not outlive its parent, whose number is its argument.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from roost.runtimes.child import die_with_parent, ignore_terminal


def main() -> NoReturn:
    """Does the job of its standard input."""
    ignore_terminal()
    die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what models and libraries print must not get into the answer

    from roost.runtimes.prepared.trial import try_model

    answers.write(json.dumps(try_model(json.loads(sys.stdin.buffer.read()))).encode())
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
