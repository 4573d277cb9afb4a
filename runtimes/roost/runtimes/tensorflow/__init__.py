"""TensorFlow: SavedModels, through the framework's C interface; its Python part is never imported by a worker.

``wire`` and ``saved_model`` read what a SavedModel says of itself, ``operations`` looks for what could read or write
files or run code, ``library`` and ``values`` are the C interface, ``adapter`` puts them together. ``keras_export`` is a
process of its own, which makes a SavedModel of a ``.keras`` file.
"""
