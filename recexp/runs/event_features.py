"""Raw values of event features in the numbers of prepared data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from recexp.data.features import event_ids, standardized
from recexp.data.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventFeatures:
    """How values become value ids or standardized numbers, for every event feature of the data.

    entries: of ``meta.json``, by name. vocabularies: of the categorical ones, with the columns
    value and id (int32).
    """

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    vocabularies: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> EventFeatures:
        """Those of prepared data."""
        entries = {entry["name"]: entry for entry in store.meta.get("event_features", [])}
        vocabularies = {
            name: pl.read_parquet(store.folder / f"event_feature_{name}.parquet")
            for name, entry in entries.items()
            if entry["kind"] == "categorical"
        }
        return cls(entries, vocabularies)

    def columns(self, frame: pl.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
        """The numbers of all features; those that the frame lacks are unknown, as the log says."""
        if missing := [name for name in self.entries if name not in frame.columns]:
            log.warning(
                "The histories have no column %s; the model takes it as unknown.",
                " and none ".join(missing),
            )
        unknown = pl.Series([None] * frame.height, dtype=pl.Float64)
        return {
            name: self.numbers(name, unknown if name in missing else frame[name])
            for name in self.entries
        }

    def numbers(self, name: str, values: pl.Series) -> np.ndarray[Any, Any]:
        """int32 value ids or float32 numbers; 0 for null, and for values that the data lack."""
        if name in self.vocabularies:
            return event_ids(values, self.vocabularies[name]).to_numpy()
        number = values.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        return standardized(number, self.entries[name])
