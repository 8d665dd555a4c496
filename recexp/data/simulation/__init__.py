"""Simulated data: a shop with planted structure, and small stand-ins for data sets."""
