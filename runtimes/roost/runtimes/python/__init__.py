"""Models that are programs: a process for each instance, which dies alone.

In the worker, ``adapter`` has a model's instances, and ``process`` the process behind each: frames go to and fro over
a socket, as they do between worker and router, and what the model prints goes through ``output`` to the log.

In the model's process, ``bootstrap`` makes this package importable, whatever environment the process has, and ``host``
does what the worker asks for; ``opening`` finds the class of the model, ``plain`` and ``triton`` call it.
``model`` is what people derive theirs from, ``triton_utils`` what those written for Triton import.
"""
