"""PyTorch: TorchScript, programs of ``torch.export``, and, where code is allowed, packages of AOTInductor.

``runtime`` is the adapter. ``archives`` says what a file is, ``gate`` that loading it runs no foreign code;
``scripted``, ``exported`` and ``compiled`` make a ``Program`` of it, ``naming`` gives its tensors their names, and
``values`` turns tensors into PyTorch's and back. ``archives``, ``gate`` and ``naming`` do without PyTorch.
"""
