"""Vectors of what is known about an event besides its item: behavior, value, time, own columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.types import Query, Schema

NO_MASK = -1  # the id of [MASK] of models that mask nothing


class EventSide(nn.Module):
    """Vectors of a column of the events with codes 1..n.

    Code 0 is padding or, at a real event, unknown. Unknown and [MASK] have ids of their own.
    """

    reads_before = False
    """The vector of an event depends on the event before it."""

    def __init__(self, column: str, n: int, width: int):
        super().__init__()
        self.column = column
        self.unknown = n + 1
        self.masked = n + 2
        self.table = nn.Embedding(n + 3, width, padding_idx=0)

    def forward(self, query: Query, mask_id: int) -> Tensor:
        """[B, L, D]"""
        item_BL = query.item_BL
        code_BL = self.codes(query, mask_id)
        if code_BL is None:
            code_BL = torch.zeros_like(item_BL)
        code_BL = code_BL.masked_fill((item_BL != 0) & (code_BL == 0), self.unknown)
        return self.table(code_BL.masked_fill(item_BL == mask_id, self.masked))

    def codes(self, query: Query, mask_id: int) -> Tensor | None:
        """int64 [B, L], or None where the query does not have the column."""
        if self.column == "value":
            return query.value_BL
        return (
            query.behavior_BL if self.column == "behavior" else query.features_BL.get(self.column)
        )


class NumberSide(nn.Module):
    """Vectors of a column of numbers: x v + o; [MASK] has a vector of its own.

    Numbers are standardized, so that an unknown one counts as the mean. Without o a layer norm
    (NOVA has one on every feature) would leave only the sign of x.
    """

    reads_before = False

    def __init__(self, column: str, width: int):
        super().__init__()
        self.column = column
        self.table = nn.Embedding(4, width, padding_idx=0)

    def forward(self, query: Query, mask_id: int) -> Tensor:
        """[B, L, D]"""
        slope_D, offset_D, masked_D = self.table.weight[1:]
        number_BL = query.features_BL.get(self.column)
        if number_BL is None:
            number_BL = torch.zeros_like(query.item_BL)
        item_BL1 = query.item_BL[..., None]
        vector_BLD = number_BL[..., None].to(slope_D.dtype) * slope_D + offset_D
        vector_BLD = torch.where(item_BL1 == mask_id, masked_D, vector_BLD)
        return torch.where(item_BL1 == 0, 0.0, vector_BLD)


class TimeSide(EventSide):
    """Vectors of events' ages: seconds before the newest event that is not masked, by powers of 2.

    NOVA-BERT names the time among an event's side information and does not say how it is embedded.
    An age needs no range from the data, and times after training have one too.
    """

    AGES = 32  # 0, 1, 2-3, 4-7, ..., from 2^30 seconds (34 years) on
    edges: Tensor

    def __init__(self, width: int):
        super().__init__("time_BL", self.AGES, width)
        edges = 2 ** torch.arange(self.AGES - 1)
        self.register_buffer("edges", edges, persistent=False)

    def codes(self, query: Query, mask_id: int) -> Tensor:
        known_BL = _is_known(query, mask_id)
        time_BL = torch.where(known_BL, query.time_BL, torch.iinfo(torch.int64).min)
        age_BL = (time_BL.amax(1, keepdim=True) - time_BL) // 1000
        return torch.where(known_BL, self._buckets(age_BL), 0)

    def _buckets(self, seconds_BL: Tensor) -> Tensor:
        """1 below one second, 2 below two, 3 below four, and so on."""
        if torch.compiler.is_exporting():
            return 1 + (seconds_BL[..., None] >= self.edges).sum(-1)  # ONNX has no bucketize
        return 1 + torch.bucketize(seconds_BL, self.edges, right=True)


class GapSide(TimeSide):
    """Vectors of the seconds since the event before, by powers of 2.

    Unknown where that event is masked or not among those that are read.
    """

    reads_before = True

    def codes(self, query: Query, mask_id: int) -> Tensor:
        known_BL = _is_known(query, mask_id)
        gap_BL = (query.time_BL - _shifted(query.time_BL)) // 1000
        return torch.where(known_BL & _shifted(known_BL), self._buckets(gap_BL), 0)


def _is_known(query: Query, mask_id: int) -> Tensor:
    return (query.item_BL != 0) & (query.item_BL != mask_id)


def _shifted(x_BL: Tensor) -> Tensor:
    """Every column's value in the column to its right; 0 in the first."""
    return F.pad(x_BL, (1, 0))[:, : x_BL.shape[1]]


def data_columns(schema: Schema) -> list[str]:
    """Names of the event features that the data have."""
    names = ["value"] if schema.n_values else []
    if len(schema.behaviors) > 1:
        names.append("behavior")
    return [*names, *schema.event_features]


def own_columns(model: nn.Module, schema: Schema) -> list[str]:
    """Names of the event features, besides behavior, value and times, that the model reads."""
    sides = [part for part in model.modules() if isinstance(part, EventSide | NumberSide)]
    return sorted({side.column for side in sides} & schema.event_features.keys())


def event_side(name: str, schema: Schema, width: int) -> EventSide | NumberSide:
    """The vectors of one event feature."""
    if name == "time":
        return TimeSide(width)
    if name == "gap":
        return GapSide(width)
    if name == "value":
        return EventSide(name, schema.n_values, width)
    if name == "behavior":
        return EventSide(name, len(schema.behaviors), width)
    feature = schema.event_features[name]
    if feature.kind == "numeric":
        return NumberSide(name, width)
    return EventSide(name, feature.cardinality - 1, width)


class EventSides(nn.Module):
    """The sum of the vectors of an event's features.

    side: names of columns of the data (see ``data_columns``: "value", "behavior" and own columns),
        "gap" (seconds since the event before) and "time" (age, see ``TimeSide``). "all" takes the
        columns that the data have.
    causal: the model predicts after every event of a history. An age, which later events decide,
        would tell it how far the history goes on: "time" is not available.
    mask_id: the item that stands for a masked event.
    shown: names of features that are known of masked events, which have their vectors as others do.

    Raises RecexpError for what the data do not have.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        side: str | Sequence[str] = (),
        *,
        causal: bool,
        mask_id: int = NO_MASK,
        shown: Sequence[str] = (),
    ):
        super().__init__()
        columns = data_columns(schema)
        known = [*columns, "gap"] if causal else [*columns, "gap", "time"]
        if side == "all" and not columns:
            raise RecexpError(
                "event_side: all, but the prepared data has no features of events; "
                f"this model takes {known} by name."
            )
        named = [side] if isinstance(side, str) else list(side)
        names = columns if side == "all" else named
        if unknown := [name for name in names if name not in known]:
            raise RecexpError(
                f"event_side names {unknown}; with the prepared data this model takes {known}."
            )
        if len(set(names)) < len(names):
            raise RecexpError(f"event_side names a feature twice: {names}.")
        if missing := [name for name in shown if name not in names]:
            raise RecexpError(
                f"event_side={names} lacks {missing}, which the model is to read at masked events."
            )
        self.mask_ids = [NO_MASK if name in shown else mask_id for name in names]
        self.sides = nn.ModuleList(event_side(name, schema, width) for name in names)

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def reads_before(self) -> bool:
        """The vector of an event depends on the event before it."""
        return any(side.reads_before for side in self.sides)

    def add_to_last(self, x_BD: Tensor, query: Query) -> Tensor:
        """x plus the vectors of the newest event of each history, of which there is one."""
        for side, mask_id in zip(self.sides, self.mask_ids, strict=True):
            x_BD = x_BD + side(query, mask_id)[:, -1]
        return x_BD

    def add_to(self, x_BLD: Tensor, query: Query) -> Tensor:
        """x plus the vectors of the query's events; x itself where there are no features."""
        for side, mask_id in zip(self.sides, self.mask_ids, strict=True):
            x_BLD = x_BLD + side(query, mask_id)
        return x_BLD
