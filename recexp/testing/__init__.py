"""Checks and small data for code outside the package: a model's contract, toy schemas and stores.

Works with and without pytest; nothing here imports it.
"""

from recexp.testing.contract import ModelContract, check_model
from recexp.testing.worlds import planted, random_store, store

__all__ = ["ModelContract", "check_model", "planted", "random_store", "store"]
