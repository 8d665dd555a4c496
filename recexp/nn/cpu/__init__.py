"""Kernels written by hand where torch's own are slow on CPUs, each with the measurement behind it.

``python tests/perf/kernels.py`` times every kernel beside what torch offers for the same result.
Figures in the docstrings are its milliseconds of process time at one thread, forward and backward,
with torch 2.13: torch first, the kernel second.
"""
