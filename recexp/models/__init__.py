"""Models: one file per paper's architecture, and ``common`` for what several share.

A model knows neither its objective nor its protocol: it scores items for a query.
"""
