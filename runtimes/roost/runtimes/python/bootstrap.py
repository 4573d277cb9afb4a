"""Where the process of a model begins: a file that is run by its path, in whatever environment the model wants.

What it imports of Roost needs nothing but the standard library and numpy. Of the worker's environment only that package
becomes importable, not what else is installed there.
"""

from __future__ import annotations

import json
import sys
import types
from typing import NoReturn


def main() -> NoReturn:
    """Serves the link whose descriptor stands in the argument, an object in JSON."""
    arguments = json.loads(sys.argv[1])
    package = types.ModuleType("roost")
    package.__path__ = arguments["roots"]
    sys.modules["roost"] = package
    from roost.runtimes.python.host import main as serve

    sys.argv[1:] = []  # the model's code should not find it there
    serve(arguments["link_fd"], arguments["parent"])


if __name__ == "__main__":
    main()
