"""``roost inspect``: what Roost sees in a model's folder or file, and what it would do with it.

``command`` is the command line. ``targets`` says what a path is, ``looking`` puts a report together: what
configuration and files say (``artifacts`` and one module for each kind of file), what a server has found out about the
model, and with ``--load`` what a load in a process of its own says (``trial``). ``lines`` and ``report`` write it down.

Files are read here and never loaded: nothing in them is run, imported or unpickled.
"""
