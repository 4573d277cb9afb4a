"""The proof that rows of a model may be run together: first the graph is looked at, then rows are compared.

Only the preparer's process imports this; it needs the package ``onnx``, which workers do without.
"""
