"""Prepared copies: models saved once in the form that loads fastest here, in a folder that many processes share.

``identity`` says which copy belongs to a model, ``cache`` keeps copies on the disk, ``making`` makes one and decides
whether it is worth keeping, ``trial`` is the fresh process that a model is saved and measured in.
"""
