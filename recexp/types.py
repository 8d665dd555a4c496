"""The data types that every part shares, and the legend of shapes.

Shape suffixes are part of the names: ``h_BLD`` is a batch of histories of hidden vectors.

    B  batch (users or training rows)      L  length of the history, left-padded
    C  candidates scored per row           K  behaviors a model predicts, weak to strong
    D  width of a hidden vector            V  rows of an item table: items + 1, row 0 is padding
    U  users                               M  attributes of one item, padded
    n  negatives per positive              F  features fused into one vector
    T  behaviors of the data               N  positions or states of a batch in one row

Item ids are 1..V-1, 0 is padding. User ids are 0..U-1. Behavior codes are 1..len(behaviors), 0 is
padding. Histories are ordered oldest to newest, padding on the left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Kinds of item features that have bags: their values can be counted.
BAGGED = ("categorical", "multi_label")
EVENT_COLUMNS = ("item_BL", "behavior_BL", "time_BL", "value_BL")


@dataclass(frozen=True)
class Feature:
    """One attribute of items as a weighted bag of value ids, the same form for every kind.

    kind: "categorical" (one id, weight 1), "multi_label" (up to M ids whose weights sum to 1),
    "numeric" (id 1, the standardized number as weight) or "vector" (weights [V, W] are vectors of
    width W whose numbers belong to the ids 1..W; the only column of ids is 1 where the vector is
    known). Value ids are 1..cardinality-1; id 0 is "absent" and has weight 0.

    An attribute of users has the same form, with a row per user and without a padding row.
    """

    kind: str
    cardinality: int  # rows of an embedding table for it, the padding row included
    id_VM: Tensor  # int64
    weight_VM: Tensor  # float32


@dataclass(frozen=True)
class EventFeature:
    """A column of the events, besides behavior, time and value.

    kind: "categorical" (the columns hold value ids 1..cardinality-1, 0 is unknown) or "numeric"
    (standardized numbers, 0 where unknown).
    """

    kind: str
    cardinality: int


@dataclass(frozen=True)
class Bag:
    """Counts of feature values per user in CSR form: user u owns entries ptr[u]..ptr[u+1]."""

    cardinality: int
    ptr: Tensor  # int64 [U+1]
    id: Tensor  # int64 [nnz]
    count: Tensor  # float32 [nnz]: how many of the user's training items carry the value


@dataclass(frozen=True)
class Schema:
    """What a model may know about the data. Preparation computes it; no YAML holds these sizes."""

    n_users: int
    n_items: int  # real items, without the padding row
    behaviors: tuple[str, ...]  # weak to strong
    explicit: tuple[bool, ...]  # per behavior: does it count as explicit feedback?
    n_values: int = 0  # distinct levels of the event's value (ratings), 0 where events carry none
    item_features: dict[str, Feature] = field(default_factory=dict)
    # The keys of item_features whose kind is in BAGGED.
    user_features: dict[str, Bag] = field(default_factory=dict)
    # Of tables of users. No name is one of user_features, too.
    user_attributes: dict[str, Feature] = field(default_factory=dict)
    event_features: dict[str, EventFeature] = field(default_factory=dict)

    @property
    def V(self) -> int:
        return self.n_items + 1


@dataclass
class Query:
    """A batch of users with what they did before the moment of prediction."""

    user_B: Tensor  # int64
    item_BL: Tensor  # int64, left-padded with 0; L may be 0
    behavior_BL: Tensor  # int64
    time_BL: Tensor  # int64 milliseconds
    value_BL: Tensor | None = None  # int64 level ids 1..n_values, 0: padding or unknown
    # int64: one training item per row that must not count in the user's side features
    without_B: Tensor | None = None
    # By name: int64 value ids, or float32 numbers; 0 at padding (``EventFeature``)
    features_BL: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.user_B.shape[0]

    @property
    def mask_BL(self) -> Tensor:
        """True where there is a real event."""
        return self.item_BL != 0

    def __getitem__(self, rows: Tensor | slice) -> Query:
        columns: dict[str, Any] = {}
        for column in dataclasses.fields(self):
            x = getattr(self, column.name)
            if isinstance(x, dict):
                columns[column.name] = {name: y[rows] for name, y in x.items()}
            else:
                columns[column.name] = None if x is None else x[rows]
        return Query(**columns)

    def change_columns(self, change: Callable[[Tensor], Tensor]) -> Query:
        """The query with every column of its histories changed."""
        columns = {name: getattr(self, name) for name in EVENT_COLUMNS}
        changed = {name: change(x_BL) for name, x_BL in columns.items() if x_BL is not None}
        features_BL = {name: change(x_BL) for name, x_BL in self.features_BL.items()}
        return dataclasses.replace(self, **changed, features_BL=features_BL)


def moved(value: Any, device: torch.device | str) -> Any:
    """A query, batch or tensor on the device; itself where it is there already.

    From a CPU to a GPU through pinned memory, without waiting: the next batch is gathered while
    the GPU still works on this one. In the other direction the copy is waited for, because the CPU
    would read memory that is not written yet. Values that hold no tensors are returned as they are.
    """
    device = torch.device(device)
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        if value.device.type == "cpu" and device.type == "cuda":
            return value.pin_memory().to(device, non_blocking=True)
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(x, device) for name, x in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        columns = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **{k: moved(x, device) for k, x in columns.items()})
    return value


@dataclass(frozen=True)
class GRULayers:
    """A session model of GRU layers between item tables, for gradients in closed form.

    What it computes: rows of ``input``, ``embedding_dropout``, per layer a GRU step and
    ``dropout``, inner products with rows of ``item`` and their biases, the activation.
    ``recexp.models.gru4rec.GRULayer`` has the formulas of a step.

    layers: of each the matrix of its input [3D, D] (None: the input has 3D columns already), the
        biases [3D], the matrix of the gates [2D, D] and that of the candidate [D, D].
    embedding_dropout, dropout: rates; 0 outside of training.
    """

    item: nn.Embedding
    bias_V: Tensor | None
    input: nn.Embedding  # may be the same as item
    layers: list[tuple[Tensor | None, Tensor, Tensor, Tensor]]
    embedding_dropout: float
    dropout: float
    activation: str  # "linear", "tanh" or "elu"
    elu_alpha: float


@dataclass
class PointwiseBatch:
    """Candidates with labels and weights per behavior; candidate 0 is the row's positive."""

    query: Query
    item_BC: Tensor
    y_BCK: Tensor  # float32 in {0, 1}
    w_BCK: Tensor  # float32 >= 0; 0 leaves a term out
    # bool: the user showed behavior t (weak to strong) on the item in training
    did_BCT: Tensor | None = None

    def items(self) -> list[Tensor]:
        """All item ids of the batch."""
        return [self.query.item_BL, self.item_BC]


@dataclass
class PairwiseBatch:
    """A preferred item and n items that it should rank above."""

    query: Query
    positive_B: Tensor
    negative_Bn: Tensor
    did_BCT: Tensor | None = None  # as in PointwiseBatch, of the positive and then the negatives

    def items(self) -> list[Tensor]:
        """All item ids of the batch."""
        return [self.query.item_BL, self.positive_B, self.negative_Bn]


@dataclass
class SequenceBatch:
    """Inputs and, per position, the item to predict there (0: nothing).

    next_item: query holds the inputs, target_BL the following item. cloze: masked inputs carry the
    id MASK = V (one past the item table) with every side channel (behavior, value) set to 0 there.
    """

    query: Query
    target_BL: Tensor
    negative_Nn: Tensor | None = None  # per position with a target, row by row, or
    negative_Bn: Tensor | None = None  # shared by all positions of a row, or
    negative_n: Tensor | None = None  # shared by the batch
    log_prob_n: Tensor | None = None  # of negative_n in one draw, for corrections

    def items(self) -> list[Tensor]:
        """All item ids of the batch."""
        negatives = (self.negative_Nn, self.negative_Bn, self.negative_n)
        return [self.query.item_BL, self.target_BL, *(x for x in negatives if x is not None)]


@dataclass(frozen=True)
class Phase:
    """A part of training: ``n_epochs`` epochs in which only some of the parameters learn."""

    name: str
    n_epochs: int
    parameters: tuple[Tensor, ...]


@dataclass(frozen=True)
class RowTables:
    """Tables of a model with a row per item (by item id) or per user.

    adds_sides: the vectors of ``Encoder.catalog`` are more than rows of one of the tables.
    """

    items: tuple[nn.Embedding, ...] = ()
    users: tuple[nn.Embedding, ...] = ()
    adds_sides: bool = False


@dataclass(frozen=True)
class CatalogShard:
    """The vectors of the items that this process keeps, of a catalog shared out among processes.

    first: the number of the first one, counted from 0, which is item 1. group: the processes.
    """

    rows_vD: Tensor
    first: int
    group: ProcessGroup


@dataclass(frozen=True)
class SampledScores:
    """Scores of N positives and of the n negatives of each, for a ``SampledLoss``."""

    positive: Tensor  # [N]
    negative: Tensor  # [N, n]
    n_items: int  # size of the catalog
    mask: Tensor | None = None  # bool [N, n]: the negative counts; None: all do
    log_q: Tensor | None = None  # [n]: log-probability of each negative in one draw
