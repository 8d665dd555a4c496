"""The nouns every part shares, and the legend of shapes.

Shape suffixes are part of the names: ``h_BLD`` is a batch of histories of hidden vectors.

    B  batch (users or training rows)      L  length of the history, left-padded
    C  candidates scored per row           K  behaviours a model predicts, weak to strong
    D  width of a hidden vector            V  rows of an item table: items + 1, row 0 is padding
    U  users                               M  attributes of one item, padded
    n  negatives per positive              F  features fused into one vector

Item ids are 1..V-1, 0 is padding. User ids are 0..U-1. Behaviour codes are 1..len(behaviours), 0 is padding.
Histories are ordered oldest to newest, padding on the left.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Feature:
    """One attribute of items as a weighted bag of value ids, the same form for every kind.

    kind: "categorical" (one id, weight 1), "multi_label" (up to M ids whose weights sum to 1) or "numeric" (id 1,
    the standardised number as weight). Value ids are 1..cardinality-1; id 0 is "absent" and has weight 0.
    """

    kind: str
    cardinality: int  # rows of an embedding table for it, the padding row included
    id_VM: Tensor  # int64
    weight_VM: Tensor  # float32


@dataclass(frozen=True)
class Bag:
    """Counts of feature values per user in CSR form: user u owns entries ptr[u]..ptr[u+1]."""

    cardinality: int
    ptr: Tensor  # int64 [U+1]
    id: Tensor  # int64 [nnz]
    count: Tensor  # float32 [nnz]: how many of the user's training items carry the value


@dataclass(frozen=True)
class Schema:
    """What a model may know about the data. Written by preparation; no YAML holds any of these sizes."""

    n_users: int
    n_items: int  # real items, without the padding row
    behaviours: tuple[str, ...]  # weak to strong
    explicit: tuple[bool, ...]  # per behaviour: does it count as explicit feedback?
    n_values: int = 0  # distinct levels of the event's value (ratings), 0 where events carry none
    item_features: dict[str, Feature] = field(default_factory=dict)
    user_features: dict[str, Bag] = field(
        default_factory=dict
    )  # same keys as item_features of kind != numeric

    @property
    def V(self) -> int:
        return self.n_items + 1


@dataclass
class Query:
    """A batch of users with what they did before the moment of prediction.

    value_BL holds level ids 1..n_values (0: padding or unknown) or None where events carry no value.
    without_B, where given, names one training item per row that must not count in the user's side features.
    """

    user_B: Tensor  # int64
    item_BL: Tensor  # int64, left-padded with 0; L may be 0
    behaviour_BL: Tensor  # int64
    time_BL: Tensor  # int64 milliseconds
    value_BL: Tensor | None = None  # int64
    without_B: Tensor | None = None  # int64

    def __len__(self) -> int:
        return self.user_B.shape[0]

    @property
    def mask_BL(self) -> Tensor:
        """True where there is a real event."""
        return self.item_BL != 0

    def __getitem__(self, rows: Tensor | slice) -> Query:
        return Query(
            **{
                f.name: None if (x := getattr(self, f.name)) is None else x[rows]
                for f in dataclasses.fields(self)
            }
        )


def moved(value: Any, device: torch.device | str) -> Any:
    """A query, batch or tensor on the device, itself where it is there already; None stays None.

    From a CPU to a GPU through pinned memory, so that nobody waits: the next batch is gathered while the GPU still works on this one.
    """
    device = torch.device(device)
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        pinned = (
            value.pin_memory() if (value.device.type, device.type) == ("cpu", "cuda") else value
        )
        return pinned.to(device, non_blocking=True)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value,
            **{f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value)},
        )
    return value


@dataclass
class PointwiseBatch:
    """Candidates with labels and weights per behaviour; candidate 0 is the row's positive."""

    query: Query
    item_BC: Tensor
    y_BCK: Tensor  # float32 in {0, 1}
    w_BCK: Tensor  # float32 >= 0; 0 leaves a term out
    did_BCT: Tensor | None = (
        None  # bool: the user showed behaviour t (weak to strong) on the item in training
    )


@dataclass
class PairwiseBatch:
    """A preferred item and n items it should beat."""

    query: Query
    positive_B: Tensor
    negative_Bn: Tensor
    did_BCT: Tensor | None = None  # as in PointwiseBatch, of the positive and then the negatives


@dataclass
class SequenceBatch:
    """Inputs and, per position, the item to predict there (0: nothing).

    next_item: query holds the inputs, target_BL the following item. cloze: masked inputs carry the id MASK = V
    (one past the item table) with every side channel (behaviour, value) set to 0 there.
    """

    query: Query
    target_BL: Tensor
    negative_BLn: Tensor | None = None  # per position, or
    negative_Bn: Tensor | None = None  # shared by all positions of a row, or
    negative_n: Tensor | None = None  # shared by the batch
    log_prob_n: Tensor | None = None  # of negative_n under the sampler, for corrections
