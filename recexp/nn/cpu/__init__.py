"""Kernels written by hand where torch's own are slow on CPUs, each with the measurement behind it.

``python tests/perf/kernels.py`` times every kernel beside what torch offers for the same result.
"""
