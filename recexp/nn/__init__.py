"""Layers that several models share, each written so that it can be read as its formula.

Kernels written by hand for speed on CPUs are in ``recexp.nn.cpu``.
"""
