"""A model as a graph of its own: histories or users in, the best items out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from recexp.contracts import Recommender
from recexp.errors import RecexpError
from recexp.nn.events import own_columns
from recexp.nn.traced import fold_all
from recexp.types import EVENT_COLUMNS, Query, Schema

FEATURE = "feature_BL."  # begins the names of inputs that are event features
# Models that read longer histories read all of them.
LONGEST_WINDOW = 1_000_000


@dataclass(frozen=True)
class Graph:
    """program: takes the ``inputs`` by position, returns items and scores, [B, k].

    window: how many of the newest events the model reads; None: all.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    window: int | None


class Recommendation(nn.Module):
    """The k best items of each row, and their scores.

    inputs: names of what ``forward`` takes by position, int64 but for numbers:
        user_B      numbers of users
        item_BL     histories, oldest event first, 0 on the left of shorter ones
        behavior_BL, time_BL, value_BL      of the same events
        feature_BL.NAME     event features of the same events; numbers are float32
        seen_BL     items that are not to be recommended, filled up with 0; for models that read no
                    history
    Histories may have any length L, 0 included; the model reads the newest events of each.
    Items of the history are left out unless include_seen.
    """

    def __init__(
        self, model: Recommender, schema: Schema, inputs: Sequence[str], k: int, include_seen: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)
        self.k = k
        self.include_seen = include_seen
        self.has_values = schema.n_values > 0

    def forward(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Items [B, k], int64, best first, 0 where none is left; scores [B, k], -inf there."""
        given = dict(zip(self.inputs, columns, strict=True))
        score_BC = self.model.score(self._query(given)).float()
        score_BV = F.pad(score_BC, (1, 0), value=-torch.inf)  # columns are item numbers
        hidden_BL = given.get("item_BL", given.get("seen_BL"))
        if hidden_BL is not None and not self.include_seen:
            score_BV = score_BV.scatter(1, hidden_BL, -torch.inf)
        return best_items(score_BV, self.k)

    def _query(self, given: dict[str, Tensor]) -> Query:
        first = next(iter(given.values()))
        user_B = given.get("user_B")
        if user_B is None:
            user_B = first.new_zeros(first.shape[0])
        item_BL = given.get("item_BL")
        if item_BL is None:
            item_BL = first.new_zeros(first.shape[0], 0)
        columns = {name: given.get(name, torch.zeros_like(item_BL)) for name in EVENT_COLUMNS}
        windows: dict[str, Any] = {name: self._window(x_BL) for name, x_BL in columns.items()}
        if not self.has_values:
            del windows["value_BL"]
        features_BL = {
            name.removeprefix(FEATURE): self._window(x_BL)
            for name, x_BL in given.items()
            if name.startswith(FEATURE)
        }
        return Query(user_B, **windows, features_BL=features_BL)

    def _window(self, x_BL: Tensor) -> Tensor:
        """The newest events that the model reads, padded to their number, which is then fixed."""
        length = self.model.history
        if length == 0:
            return x_BL[:, :0]
        if length > LONGEST_WINDOW:
            return F.pad(x_BL, (1, 0))  # one column at least
        return F.pad(x_BL, (length, 0)).narrow(1, x_BL.shape[1], length)


def input_type(name: str, schema: Schema) -> torch.dtype:
    """The type of an input's numbers."""
    feature = schema.event_features.get(name.removeprefix(FEATURE))
    is_number = name.startswith(FEATURE) and feature is not None and feature.kind == "numeric"
    return torch.float32 if is_number else torch.int64


def best_items(score_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns and scores of the k best entries per row, best first, [B, k].

    As ``recexp.evaluation.lists.top_k``, in operations that a graph can have: equal scores are
    ordered by column, the smaller one first, and NaN counts as the lowest score. Entries of -inf
    have column 0.
    """
    score_BV = torch.where(score_BV.isnan(), -torch.inf, score_BV)
    last_B1 = score_BV.topk(k, dim=1).values[:, -1:]
    is_above_BV = score_BV > last_B1
    is_equal_BV = score_BV == last_B1
    n_free_B1 = k - is_above_BV.sum(1, keepdim=True)
    is_chosen_BV = is_above_BV | (is_equal_BV & (is_equal_BV.cumsum(1) <= n_free_B1))
    # The chosen columns in ascending order: the first column has the largest number.
    V = score_BV.shape[1]
    from_end_V = torch.arange(V, 0, -1)
    column_BK = V - (is_chosen_BV * from_end_V).topk(k, dim=1).values
    # ONNX has no stable sort. So sort by the score, number the groups of equal scores, and sort by
    # group and column.
    best_BK, order_BK = score_BV.gather(1, column_BK).topk(k, dim=1)
    is_lower_BK = F.pad(best_BK[:, 1:] < best_BK[:, :-1], (1, 0))
    key_BK = is_lower_BK.cumsum(1) * V + column_BK.gather(1, order_BK)
    column_BK = -(-key_BK).topk(k, dim=1).values % V
    return torch.where(best_BK > -torch.inf, column_BK, 0), best_BK


def trace(model: Recommender, schema: Schema, k: int, include_seen: bool) -> Graph:
    """The graph of the model, with inputs for what it reads and no others.

    Raises RecexpError where torch cannot trace the model.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    with torch.no_grad():
        fold_all(model)
        possible = _possible_inputs(model, schema, include_seen)
        program = _traced(model, schema, possible, k, include_seen)
        # Without an input a graph would not know how many rows it is to return.
        inputs = _read_inputs(program, possible) or ("user_B",)
        if inputs != possible:
            program = _traced(model, schema, inputs, k, include_seen)
    window = None if model.history > LONGEST_WINDOW else model.history
    return Graph(program, inputs, window)


def _possible_inputs(model: Recommender, schema: Schema, include_seen: bool) -> tuple[str, ...]:
    names = ["user_B"]
    if model.history:
        names += EVENT_COLUMNS if schema.n_values else EVENT_COLUMNS[:-1]
        names += [FEATURE + name for name in own_columns(model, schema)]
    elif not include_seen:
        names.append("seen_BL")
    return tuple(names)


def _traced(
    model: Recommender, schema: Schema, inputs: tuple[str, ...], k: int, include_seen: bool
) -> ExportedProgram:
    batch = Dim("batch")
    length = Dim("length", max=2**31 - 2)
    examples = []
    shapes = []
    for name in inputs:
        if name == "user_B":
            examples.append(torch.zeros(3, dtype=torch.int64))
            shapes.append({0: batch})
        else:
            examples.append(torch.ones(3, 7, dtype=input_type(name, schema)))
            shapes.append({0: batch, 1: length})
    graph = Recommendation(model, schema, inputs, k, include_seen)
    try:
        return torch.export.export(
            graph, tuple(examples), dynamic_shapes={"columns": tuple(shapes)}, strict=False
        )
    except Exception as error:  # torch has no common class for what it cannot trace
        first_line = str(error).strip().partition("\n")[0]
        raise RecexpError(
            f"{type(model).__name__} cannot be exported, since torch cannot trace its scores for "
            f"any number of users: {first_line[:300]}"
        ) from error


def _read_inputs(program: ExportedProgram, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the inputs whose values the outputs depend on."""
    graph = copy.deepcopy(program.graph)
    graph.eliminate_dead_code()
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    read = []
    for name, placeholder in zip(names, program.graph_signature.user_inputs, strict=True):
        users = nodes[str(placeholder)].users
        if any(user.target is not torch.ops.aten.sym_size.int for user in users):
            read.append(name)
    return tuple(read)
