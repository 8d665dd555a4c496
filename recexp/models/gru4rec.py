"""GRU4Rec and GRU4Rec+ (Hidasi et al., ICLR 2016; Hidasi and Karatzoglou, CIKM 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from recexp.contracts import SessionState
from recexp.errors import RecexpError
from recexp.models.common import SequenceModel, checked_length, latest
from recexp.nn.cpu.dropout import Dropout
from recexp.nn.cpu.lookup import Embedding
from recexp.nn.embeddings import one_of
from recexp.types import Query, Schema

CELLS = ("official", "torch")
INPUTS = ("one_hot", "separate", "constrained")
ACTIVATIONS = ("linear", "tanh", "elu")
WHOLE = 2**31  # events: longer than any history


class GRULayer(nn.Module):
    """The authors' GRU (spec 4.5): r, z = s(x W + h U + b); c = tanh(x W + (r * h) U + b); h' = (1 - z) h + z c.

    The reset gate acts before the matrix product, in torch.nn.GRU after it: two different models. Inputs of the three
    parts stand side by side, [r; z; c]. num_inputs None: the input already is x W, a row of a table 3 D wide.
    """

    def __init__(self, num_inputs: int | None, width: int):
        super().__init__()
        self.input = (
            nn.Identity() if num_inputs is None else nn.Linear(num_inputs, 3 * width, bias=False)
        )
        self.gates = nn.Linear(width, 2 * width, bias=False)
        self.candidate = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * width))

    def step(self, a: Tensor, h_BD: Tensor) -> Tensor:
        """The next state, from a = x W + b [B, 3D] and the last state."""
        width = h_BD.shape[-1]
        r, z = (a[:, : 2 * width] + self.gates(h_BD)).sigmoid().chunk(2, -1)
        c = (a[:, 2 * width :] + self.candidate(r * h_BD)).tanh()
        return h_BD + z * (c - h_BD)


class GRU4Rec(SequenceModel, SessionState):
    """A recurrent state per history, zero before its first event.

    max_len: how many of the newest events are read; None: the whole history, as
    objective=session_parallel trains.
    cell: "official", the authors' GRU, or "torch", torch.nn.GRU, for training on whole padded sequences.
    input_table: "one_hot" (a row is the input of all gates), "separate" (item vectors of their own) or "constrained"
    (the output table serves both ends).
    final_activation: of the scores inside the losses, "tanh" (2016), "linear" or "elu" with elu_alpha (2018). All are
    monotone, so ``score`` leaves them out and no two scores fall together in saturation.
    embedding_dropout: of the input; dropout: of the states, which with the official cell are carried on as dropped.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 100,
        num_layers: int = 1,
        max_len: int | None = None,
        cell: str = "official",
        input_table: str = "one_hot",
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
        final_activation: str = "linear",
        elu_alpha: float = 1.0,
        output_bias: bool = True,
    ):
        super().__init__()
        self.history = self.max_len = WHOLE if max_len is None else checked_length(max_len)
        self.width, self.num_layers = num_factors, num_layers
        self.cell, self.input_table = (
            one_of("cell", cell, CELLS),
            one_of("input_table", input_table, INPUTS),
        )
        self.activation, self.elu_alpha = (
            one_of("final_activation", final_activation, ACTIVATIONS),
            elu_alpha,
        )
        one_hot = input_table == "one_hot"
        if cell == "torch" and one_hot:
            raise RecexpError(
                "cell: torch reads item vectors; choose input_table: separate or constrained."
            )
        self.item = Embedding(schema.V, num_factors, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(schema.V)) if output_bias else None
        self.input = (
            None
            if input_table == "constrained"
            else Embedding(schema.V, (3 if one_hot else 1) * num_factors, padding_idx=0)
        )
        self.embedding_dropout, self.dropout = Dropout(embedding_dropout), Dropout(dropout)
        if cell == "torch":
            self.gru = nn.GRU(
                num_factors,
                num_factors,
                num_layers,
                batch_first=True,
                dropout=dropout if num_layers > 1 else 0.0,
            )
        else:
            widths = [None if one_hot else num_factors, *[num_factors] * (num_layers - 1)]
            self.layers = nn.ModuleList(GRULayer(width, num_factors) for width in widths)
        self._init()

    @torch.no_grad()
    def _init(self) -> None:
        """Every matrix ~ U(-s, s), s = sqrt(6 / (fan in + fan out)), the three gates each by itself; biases 0 (spec 4.5)."""
        for module in self.modules():
            gates_dim = 1 if isinstance(module, nn.Embedding) else 0
            for weight in module.parameters(recurse=False):
                if weight.dim() == 1:
                    weight.zero_()
                else:
                    for gate in weight.split(self.width, gates_dim):
                        nn.init.xavier_uniform_(gate)
            if isinstance(module, nn.Embedding):
                module.weight[0] = 0

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=1)
        if last_only:
            return self._final_states(query)[:, None]
        x, mask_BL = self._inputs(query.item_BL), query.mask_BL
        if self.cell == "torch":
            x = self.dropout(self._run_torch(x, mask_BL))
        else:
            for layer in self.layers:
                x = self._run(layer, x, mask_BL)
        return x * mask_BL[..., None]

    def _final_states(self, query: Query) -> Tensor:
        """The states [B, D] after the last event, without keeping the others.

        Rows are taken longest first, and none is computed before its first event: the work is that
        of the events, however long the longest history is.
        """
        length_B = query.mask_BL.sum(1)
        order_B = length_B.argsort(descending=True, stable=True)
        length_B, item_BL = length_B[order_B], query.item_BL[order_B]
        some = int((length_B > 0).sum())
        if some == 0:
            return self.item.weight.new_zeros(len(query), self.width)
        last = self._last_torch if self.cell == "torch" else self._last_official
        h_BD = last(item_BL[:some], length_B[:some])
        return F.pad(h_BD, (0, 0, 0, len(query) - some))[order_B.argsort()]

    def _last_official(self, item_BL: Tensor, length_B: Tensor) -> Tensor:
        """The last states of rows without gaps, longest first."""
        left_L = torch.arange(item_BL.shape[1], 0, -1, device=item_BL.device)
        rows_L = torch.searchsorted(-length_B, -left_L, right=True).tolist()  # that have begun
        hidden = [self.item.weight.new_zeros(0, self.width)] * self.num_layers
        for item_B, rows in zip(item_BL.T.contiguous(), rows_L, strict=True):
            if (more := rows - len(hidden[0])) > 0:
                hidden = [F.pad(h, (0, 0, 0, more)) for h in hidden]
            if rows:
                hidden = self._advance(item_B[:rows], hidden)
        return hidden[-1]

    def _last_torch(self, item_BL: Tensor, length_B: Tensor) -> Tensor:
        """As ``_last_official``; torch.nn.GRU skips padding on the right of packed rows."""
        place_L = torch.arange(item_BL.shape[1], device=item_BL.device)
        padding_B1 = item_BL.shape[1] - length_B[:, None]
        item_BL = item_BL.gather(1, (place_L + padding_B1) % len(place_L))
        packed = pack_padded_sequence(item_BL, length_B.cpu(), batch_first=True)
        _, hidden = self.gru(PackedSequence(self._inputs(packed.data), packed.batch_sizes))
        return self.dropout(hidden[-1])

    def _inputs(self, item: Tensor) -> Tensor:
        return self.embedding_dropout((self.item if self.input is None else self.input)(item))

    def _run(self, layer: GRULayer, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        a = layer.input(x_BLD) + layer.bias
        h, states = a.new_zeros(len(a), self.width), []
        for a_B, real_B in zip(a.unbind(1), mask_BL[..., None].unbind(1), strict=True):
            h = self.dropout(layer.step(a_B, h)) * real_B  # zero until the first event
            states.append(h)
        return torch.stack(states, 1)

    def _run_torch(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """nn.GRU starts every row from zero at column 0, so the padding is turned to the right and back again."""
        place = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        padding_B1 = (~mask_BL).sum(1, keepdim=True)
        h_BLD, _ = self.gru(_permute(x_BLD, (place + padding_B1) % len(place)))
        return _permute(h_BLD, (place - padding_B1) % len(place))

    def initial_state(self, batch_size: int) -> Tensor:
        """The zero state [layers, B, D] of new sessions."""
        return self.item.weight.new_zeros(self.num_layers, batch_size, self.width)

    def step(self, item_B: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One event further in every session: the state [B, D] that predicts the next item, and the new hidden state.

        hidden [layers, B, D]; whoever trains zeroes the rows of sessions that start and detaches it to cut gradients.
        """
        if self.cell == "torch":
            h, hidden = self.gru(self._inputs(item_B)[:, None], hidden)
            return self.dropout(h[:, 0]), hidden
        states = self._advance(item_B, hidden)
        return states[-1], torch.stack(states)

    def _advance(self, item_B: Tensor, hidden: Sequence[Tensor]) -> list[Tensor]:
        """The official layers' next states [B, D], from the next items and the last states."""
        x, states = self._inputs(item_B), []
        for layer, h_BD in zip(self.layers, hidden, strict=True):
            x = self.dropout(layer.step(layer.input(x) + layer.bias, h_BD))
            states.append(x)
        return states

    def final_activation(self, score: Tensor) -> Tensor:
        """What the losses of 2016 and 2018 apply to scores."""
        if self.activation == "tanh":
            return score.tanh()
        return F.elu(score, self.elu_alpha) if self.activation == "elu" else score

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        bias = self.item_bias
        if item is None:
            return self.item.weight[1:], None if bias is None else bias[1:]
        return self.item(item), None if bias is None else bias[item]


def _permute(x_BLD: Tensor, order_BL: Tensor) -> Tensor:
    return x_BLD.gather(1, order_BL[..., None].expand_as(x_BLD))
