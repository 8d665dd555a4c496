"""GRU4Rec and GRU4Rec+: a recurrent state per session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from recexp.contracts import SessionState
from recexp.errors import RecexpError
from recexp.models.common import WHOLE_HISTORY, SequenceModel, checked_length, latest
from recexp.nn.cpu.closed_form import closed_form_helps
from recexp.nn.cpu.gru import gru_step
from recexp.nn.dropout import Dropout
from recexp.nn.embeddings import ItemEncoder, SideVectors
from recexp.nn.events import EventSides
from recexp.nn.init import like_rows_of
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Depth, Length, Positive, Rate, Width, one_of
from recexp.nn.traced import recurrent_states
from recexp.types import GRULayers, Query, Schema

Cell = Literal["official", "torch"]
InputTable = Literal["one_hot", "separate", "constrained"]
FinalActivation = Literal["linear", "tanh", "elu"]


class GRULayer(nn.Module):
    """The authors' GRU. With inputs x and last state h:

        r, z = sigmoid(x W + h U + b)
        c    = tanh(x W_c + (r * h) U_c + b_c)
        h'   = (1 - z) h + z c

    The reset gate r acts before the matrix product. In torch.nn.GRU it acts after it, which is a
    different model. The columns of W and b stand side by side, [r; z; c].

    n_inputs: width of x; None: the input already is x W, a row of a table 3 D wide.
    """

    def __init__(self, n_inputs: int | None, width: int):
        super().__init__()
        self.input = (
            nn.Identity() if n_inputs is None else nn.Linear(n_inputs, 3 * width, bias=False)
        )
        self.gates = nn.Linear(width, 2 * width, bias=False)
        self.candidate = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * width))

    def project(self, x: Tensor) -> Tensor:
        """x W + b, [..., 3D]."""
        if isinstance(self.input, nn.Linear):
            return F.linear(x, self.input.weight, self.bias)
        return x + self.bias

    def matrices(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """As ``GRULayers.layers``."""
        input_GD = self.input.weight if isinstance(self.input, nn.Linear) else None
        return input_GD, self.bias, self.gates.weight, self.candidate.weight

    def step(self, projected_BG: Tensor, h_BD: Tensor) -> Tensor:
        """The next state [B, D], from x W + b, [B, 3D], and the last state."""
        if closed_form_helps(h_BD):
            return gru_step(projected_BG, h_BD, self.gates.weight, self.candidate.weight)
        width = h_BD.shape[-1]
        gates = (projected_BG[:, : 2 * width] + self.gates(h_BD)).sigmoid()
        r_BD, z_BD = gates.chunk(2, -1)
        c_BD = (projected_BG[:, 2 * width :] + self.candidate(r_BD * h_BD)).tanh()
        return h_BD + z_BD * (c_BD - h_BD)


class GRU4Rec(SequenceModel, SessionState):
    """A recurrent state per history, zero before its first event; score_i = state . E_i + b_i.

    n_factors: width D of the states. n_layers: of GRUs.
    max_len: how many of the newest events are read; None: the whole history, as
        objective=session_parallel trains.
    cell: "official" is the authors' GRU (see ``GRULayer``); "torch" is torch.nn.GRU, for training
        on whole padded sequences.
    input_table: "one_hot" (a row is the input of all gates), "separate" (item vectors of their own)
        or "constrained" (the output table E is also the input table).
    embedding_dropout: of the input. dropout: of the states; the official cell carries the dropped
        states on.
    final_activation: of the scores inside the losses: "tanh" (2016), "linear", or "elu" with
        elu_alpha (2018). All are monotone, so ``score`` leaves them out, which avoids ties where
        they saturate.
    output_bias: whether there is a b_i.

    Not in the papers:
    item_side: features of items ("all", or names), added to the vectors of the items that are read
        and, with side_of_candidates, of candidates.
    side_vectors: features that are vectors are "frozen", or start values of parameters ("trained").
    event_side: features of events, added to the vectors of the items read (``EventSides``).

    GRU4Rec: Hidasi et al. 2016, sec. 3, arXiv:1511.06939. GRU4Rec+: Hidasi and Karatzoglou 2018,
    arXiv:1706.03847. Cell, tables and initial values are those of the authors' code,
    https://github.com/hidasib/GRU4Rec.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 100,
        n_layers: Depth = 1,
        max_len: Length | None = None,
        cell: Cell = "official",
        input_table: InputTable = "one_hot",
        embedding_dropout: Rate = 0.0,
        dropout: Rate = 0.0,
        final_activation: FinalActivation = "linear",
        elu_alpha: Positive = 1.0,
        output_bias: bool = True,
        item_side: str | Sequence[str] = (),
        event_side: str | Sequence[str] = (),
        side_of_candidates: bool = True,
        side_vectors: SideVectors = "frozen",
    ):
        super().__init__()
        self.max_len = WHOLE_HISTORY if max_len is None else checked_length(max_len)
        self.history = self.max_len
        self.width = n_factors
        self.n_layers = n_layers
        self.cell = one_of("cell", cell, Cell)
        self.input_table = one_of("input_table", input_table, InputTable)
        self.activation = one_of("final_activation", final_activation, FinalActivation)
        self.elu_alpha = elu_alpha
        one_hot = input_table == "one_hot"
        if cell == "torch" and one_hot:
            raise RecexpError(
                "cell: torch reads item vectors; choose input_table: separate or constrained."
            )
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(schema.V)) if output_bias else None
        self.input: Embedding | None = None
        if input_table != "constrained":
            self.input = Embedding(schema.V, (3 if one_hot else 1) * n_factors, padding_idx=0)
        self.embedding_dropout = Dropout(embedding_dropout)
        self.dropout = Dropout(dropout)
        if cell == "torch":
            self.gru = nn.GRU(
                n_factors,
                n_factors,
                n_layers,
                batch_first=True,
                dropout=dropout if n_layers > 1 else 0.0,
            )
        else:
            first = None if one_hot else n_factors
            widths = [first, *[n_factors] * (n_layers - 1)]
            self.layers = nn.ModuleList(GRULayer(width, n_factors) for width in widths)
        self._init()
        self._add_sides(schema, item_side, event_side, side_of_candidates, side_vectors)

    def _add_sides(
        self,
        schema: Schema,
        item_side: str | Sequence[str],
        event_side: str | Sequence[str],
        side_of_candidates: bool,
        vectors: SideVectors,
    ) -> None:
        """Tables of features, with initial values of the size that the tables of items have."""
        table = self.item if self.input is None else self.input
        width = table.embedding_dim
        self.input_items = ItemEncoder(schema, width, side=item_side, vectors=vectors, table=table)
        self.output_items: ItemEncoder | None = None
        if self.input is not None or not side_of_candidates:
            side = item_side if side_of_candidates else ()
            self.output_items = ItemEncoder(
                schema, self.width, side=side, vectors=vectors, table=self.item
            )
            like_rows_of(self.item, self.output_items)
        self.event_sides = EventSides(schema, width, event_side, causal=True)
        self.reads_events = len(self.event_sides) > 0
        like_rows_of(table, self.input_items, self.event_sides)

    @torch.no_grad()
    def _init(self) -> None:
        """Matrices ~ U(-s, s), s = sqrt(6 / (fan in + fan out)), per gate; biases 0."""
        for module in self.modules():
            gates_dim = 1 if isinstance(module, nn.Embedding) else 0
            for weight in module.parameters(recurse=False):
                if weight.dim() == 1:
                    weight.zero_()
                    continue
                for gate in weight.split(self.width, gates_dim):
                    nn.init.xavier_uniform_(gate)
            if isinstance(module, nn.Embedding):
                module.weight[0] = 0

    # All states of padded sequences

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=1)
        if last_only and not torch.compiler.is_exporting():
            return self._final_states(query)[:, None]
        x = self._inputs(query)
        mask_BL = query.mask_BL
        if self.cell == "torch":
            x = self.dropout(self._run_torch(x, mask_BL))
        else:
            for layer in self._official_layers:
                x = self._run_official(layer, x, mask_BL)
        return x * mask_BL[..., None]

    def _inputs(self, query: Query) -> Tensor:
        """The layers' inputs [B, L, ...] at all events."""
        x = self.event_sides.add_to(self.input_items(query.item_BL), query)
        return self.embedding_dropout(x)

    def _newest_inputs(self, item_B: Tensor, query: Query | None) -> Tensor:
        """The layers' inputs [B, ...] at the newest events. query: where ``reads_events``."""
        x = self.input_items(item_B)
        if query is not None:
            x = self.event_sides.add_to_last(x, query)
        return self.embedding_dropout(x)

    @property
    def _official_layers(self) -> list[GRULayer]:
        return [cast(GRULayer, layer) for layer in self.layers]

    def _run_official(self, layer: GRULayer, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        projected_BLG = layer.project(x_BLD)
        if torch.compiler.is_exporting():
            return recurrent_states(layer.step, projected_BLG, mask_BL, self.width)
        h_BD = projected_BLG.new_zeros(len(projected_BLG), self.width)
        states = []
        real_BL1 = mask_BL[..., None]
        for projected_BG, real_B1 in zip(projected_BLG.unbind(1), real_BL1.unbind(1), strict=True):
            # The product keeps the state at zero until the first event.
            h_BD = self.dropout(layer.step(projected_BG, h_BD)) * real_B1
            states.append(h_BD)
        return torch.stack(states, 1)

    def _run_torch(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """States of torch.nn.GRU.

        It starts every row from zero at column 0, so padding is rotated to the right and back.
        """
        place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        padding_B1 = (~mask_BL).sum(1, keepdim=True)
        length = len(place_L)
        h_BLD, _ = self.gru(_permute(x_BLD, (place_L + padding_B1) % length))
        return _permute(h_BLD, (place_L - padding_B1) % length)

    # Last states only

    def _final_states(self, query: Query) -> Tensor:
        """The states [B, D] after the last event, without keeping the others.

        Rows are taken longest first, and none is computed before its first event. The work is
        that of the events, however long the longest history is.
        """
        length_B = query.mask_BL.sum(1)
        order_B = length_B.argsort(descending=True, stable=True)
        length_B = length_B[order_B]
        n_real = int((length_B > 0).sum())
        if n_real == 0:
            return self.item.weight.new_zeros(len(query), self.width)
        last = self._last_torch if self.cell == "torch" else self._last_official
        h_BD = last(query[order_B[:n_real]], length_B[:n_real])
        return F.pad(h_BD, (0, 0, 0, len(query) - n_real))[order_B.argsort()]

    def _last_official(self, query: Query, length_B: Tensor) -> Tensor:
        """The last states of rows with at least one event, longest first."""
        item_BL = query.item_BL
        n_left_L = torch.arange(item_BL.shape[1], 0, -1, device=item_BL.device)
        # Per column, how many rows have begun: those at least as long as the columns left.
        n_begun_L = torch.searchsorted(-length_B, -n_left_L, right=True).tolist()
        hidden = [self.item.weight.new_zeros(0, self.width)] * self.n_layers
        columns = zip(item_BL.T.contiguous(), n_begun_L, strict=True)
        for column, (item_B, n_begun) in enumerate(columns):
            n_new = n_begun - len(hidden[0])
            if n_new > 0:
                hidden = [F.pad(h_BD, (0, 0, 0, n_new)) for h_BD in hidden]
            if n_begun:
                newest = None
                if self.reads_events:
                    two = slice(max(0, column - 1), column + 1)
                    newest = _columns(query[:n_begun], two)
                hidden = self._advance(item_B[:n_begun], hidden, newest)
        return hidden[-1]

    def _last_torch(self, query: Query, length_B: Tensor) -> Tensor:
        """As ``_last_official``; torch.nn.GRU skips padding on the right of packed rows."""
        item_BL = query.item_BL
        place_L = torch.arange(item_BL.shape[1], device=item_BL.device)
        padding_B1 = item_BL.shape[1] - length_B[:, None]
        order_BL = (place_L + padding_B1) % len(place_L)
        if self.reads_events:
            x_BLD = _permute(self._inputs(query), order_BL)
            packed = pack_padded_sequence(x_BLD, length_B.cpu(), batch_first=True)
        else:  # only the real events are looked up
            items = item_BL.gather(1, order_BL)
            packed = pack_padded_sequence(items, length_B.cpu(), batch_first=True)
            x = self._newest_inputs(packed.data, None)
            packed = PackedSequence(x, packed.batch_sizes)
        _, hidden = self.gru(packed)
        return self.dropout(hidden[-1])

    # Event by event

    def initial_state(self, batch_size: int) -> Tensor:
        return self.item.weight.new_zeros(self.n_layers, batch_size, self.width)

    def step(
        self, item_B: Tensor, hidden: Tensor, query: Query | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read one event per session.

        query: its newest events are those read; where ``reads_events``.
        Returns the state [B, D] that predicts the next item, and the new hidden [layers, B, D]. The
        caller zeroes the rows of sessions that start, and detaches hidden to cut gradients.
        """
        if self.cell == "torch":
            h_B1D, hidden = self.gru(self._newest_inputs(item_B, query)[:, None], hidden)
            return self.dropout(h_B1D[:, 0]), hidden
        states = self._advance(item_B, hidden.unbind(0), query)
        return states[-1], torch.stack(states)

    def _advance(
        self, item_B: Tensor, hidden: Sequence[Tensor], query: Query | None
    ) -> list[Tensor]:
        """The official layers' next states [B, D], from the next events and the last states."""
        x = self._newest_inputs(item_B, query)
        states = []
        for layer, h_BD in zip(self._official_layers, hidden, strict=True):
            x = self.dropout(layer.step(layer.project(x), h_BD))
            states.append(x)
        return states

    def gru_layers(self) -> GRULayers | None:
        has_sides = self.reads_events or len(self.input_items.side) > 0
        if self.cell == "torch" or has_sides:
            return None
        return GRULayers(
            item=self.item,
            bias_V=self.item_bias,
            input=self.item if self.input is None else self.input,
            layers=[layer.matrices() for layer in self._official_layers],
            embedding_dropout=self.embedding_dropout.p if self.training else 0.0,
            dropout=self.dropout.p if self.training else 0.0,
            activation=self.activation,
            elu_alpha=self.elu_alpha,
        )

    # Scores

    def final_activation(self, score: Tensor) -> Tensor:
        """The activation that the losses of 2016 and 2018 apply to scores."""
        if self.activation == "tanh":
            return score.tanh()
        # In place, elu keeps its result, whose gradient needs no exponential.
        return F.elu_(score.clone(), self.elu_alpha) if self.activation == "elu" else score

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        encoder = self.input_items if self.output_items is None else self.output_items
        bias = self.item_bias
        if item is None:
            return encoder.catalog(), None if bias is None else bias[1:]
        return encoder(item), None if bias is None else bias[item]


def _columns(query: Query, part: slice) -> Query:
    """The histories with a part of their columns."""
    return query.change_columns(lambda x_BL: x_BL[:, part])


def _permute(x_BLD: Tensor, order_BL: Tensor) -> Tensor:
    """Every row's columns in the given order."""
    return x_BLD.gather(1, order_BL[..., None].expand_as(x_BLD))
