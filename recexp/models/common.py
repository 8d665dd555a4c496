"""What several models share: history windows, scoring by inner product, choice of events."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.contracts import Encoder
from recexp.errors import RecexpError
from recexp.nn.cpu.lookup import row_dot, table_dot
from recexp.nn.embeddings import ItemEncoder
from recexp.nn.traced import score_catalog
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

WHOLE_HISTORY = 2**31  # events: longer than any history
SHOWN = 200  # characters of a wrong value that an error shows
# Positions that a CPU encodes together: 16 rows at length 200, 320 at length 10. Histories of ten
# train 1.5 times as fast as in groups of a fixed number of rows.
TOKENS = 3200
# Floats of the widest hidden layer while scoring: on a CPU they stay in its cache, which makes
# NeuMF rank 3.4 times as fast.
SCORE_BLOCK = 1 << 20


# Histories


def latest(query: Query, length: int, least: int = 0) -> Query:
    """The newest ``length`` events of every history, left-padded to ``least`` columns or more."""
    missing = max(0, least - query.item_BL.shape[1])
    return query.change_columns(lambda x_BL: F.pad(x_BL, (missing, 0))[:, -length:])


def items_read(query: Query, length: int, codes: list[int] | None) -> Tensor:
    """Items of the newest ``length`` events, int64 [B, L], 0 where the behavior does not count.

    codes: of the behaviors that count; None: all.
    """
    item_BL = query.item_BL[:, -length:]
    if codes is None:
        return item_BL
    return item_BL * has_behavior(query.behavior_BL[:, -length:], codes)


def decayed_hot(item_BL: Tensor, decay: float, like: Tensor) -> Tensor:
    """decay^age of the latest event of each item, 0 for items without one, [B, V].

    The newest event has age 0; events of item 0 are none and add nothing to the age.
    decay: in (0, 1]; 1 makes it 1 for each item of the row. like: has V rows, and the dtype.
    """
    x_BV = like.new_zeros(item_BL.shape[0], like.shape[0])
    x_BV = x_BV.scatter_reduce(1, item_BL, decayed(item_BL, decay, like.dtype), "amax")
    return F.pad(x_BV[:, 1:], (1, 0))


def decayed(item_BL: Tensor, decay: float, dtype: torch.dtype) -> Tensor:
    """decay^age of each event, [B, L]; 0 at item 0, which is no event and adds no age."""
    real_BL = item_BL != 0
    age_BL = real_BL.flip(1).cumsum(1).flip(1) - 1
    weight_BL: Tensor = decay ** age_BL.to(dtype) * real_BL
    return weight_BL


def append_item(query: Query, item: int, behavior: int = 0) -> Query:
    """The histories with one more event, of which only the item id and the behavior are known.

    behavior: its code; 0 where it is unknown, too.
    """
    query = query.change_columns(lambda x_BL: F.pad(x_BL, (0, 1)))
    query.item_BL[:, -1] = item
    if behavior:
        query.behavior_BL[:, -1] = behavior
    return query


def last_item(query: Query) -> Tensor:
    """The newest item [B] of each history, 0 where it is empty."""
    if query.item_BL.shape[1] == 0:
        return torch.zeros_like(query.user_B)
    return query.item_BL[:, -1]


def checked_length(max_len: int, least: int = 1) -> int:
    """max_len, where the model can read histories of that length. Raises RecexpError otherwise."""
    if max_len < least:
        raise RecexpError(
            f"max_len={max_len}: this model reads histories of at least {least} events."
        )
    return max_len


# Encoders


def encode_by_length(
    encode: Callable[[Query, Tensor | slice, Tensor | None], Tensor],
    query: Query,
    last_only: bool,
    at_BM: Tensor | None = None,
) -> Tensor:
    """States of all rows; on CPUs, rows of similar length are encoded together.

    That saves their common padding, 40 % of MovieLens at length 200. For encoders to whose states
    padding makes no difference. States at padding may be 0.

    encode: called with a part of the query, the numbers of its rows, and their at_BM.
    Returns [B, L, D]; [B, 1, D] where ``encode`` returns the last state only (last_only); [B, M, D]
    where at_BM names the positions wanted.
    """
    if query.item_BL.device.type != "cpu" or torch.compiler.is_exporting():
        return encode(query, slice(None), at_BM)
    group = group_size(query)
    if len(query) <= group:
        return encode(query, slice(None), at_BM)
    length_B = query.mask_BL.sum(1)
    order_B = length_B.argsort()
    parts = []
    for rows in order_B.split(group):
        part = latest(query[rows], max(1, int(length_B[rows[-1]])))
        padding = query.item_BL.shape[1] - part.item_BL.shape[1]
        if at_BM is not None:
            parts.append(encode(part, rows, (at_BM[rows] - padding).clamp(min=0)))
        else:
            state = encode(part, rows, None)
            parts.append(F.pad(state, (0, 0, 0 if last_only else padding, 0)))
    return torch.cat(parts)[order_B.argsort()]


def group_size(query: Query) -> int:
    """Number of rows that ``encode_by_length`` encodes together."""
    return max(1, TOKENS // max(1, query.item_BL.shape[1]))


def wanted_columns(wanted_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of each row's True entries in ascending order, and which of them are real.

    int64 and bool [B, M], where M is the largest number of True entries in a row, at least 1.
    """
    count_B1 = wanted_BL.sum(1, keepdim=True)
    most = max(1, int(count_B1.max()))
    at_BM = (~wanted_BL).view(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    real_BM = torch.arange(most, device=at_BM.device) < count_B1
    return at_BM, real_BM


class SequenceModel(Encoder):
    """Base of encoders: states of a history, scored by inner product with the item vectors.

    ``encode`` returns one state per position of the newest max_len events.
    """

    needs_user = False

    @abstractmethod
    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        """States h_BLD; of the last position only, [B, 1, D], where last_only."""

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        h_BD = self.head(self.encode(query, last_only=True)[:, -1])
        vectors, bias = self.item_vectors(item_BC)
        return vector_scores(h_BD, vectors, bias)


class BidirectionalModel(SequenceModel):
    """Base of encoders whose every state reads all events; the last layer may skip states."""

    max_len: int

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len)
        last = slice(-1, None) if last_only else None
        return encode_by_length(lambda part, rows, at: self._encode(part, last), query, last_only)

    def encode_at(self, query: Query, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the wanted places among the newest max_len events, row by row.

        The last layer computes no others.
        """
        at_BM, real_BM = wanted_columns(wanted_BL[:, -self.max_len :])
        h_BMD = encode_by_length(
            lambda part, rows, at: self._encode(part, at), latest(query, self.max_len), False, at_BM
        )
        return h_BMD[real_BM]

    @abstractmethod
    def _encode(self, query: Query, at: slice | Tensor | None) -> Tensor:
        """States of ``query`` at the columns ``at``; None: at all."""


# Scores


def vector_scores(h_BD: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
    """Inner products plus bias, [B, C], in float32 at least.

    vectors: of each row's candidates, [B, C, D], or of a catalogue that all rows share, [C, D].
    """
    with torch.autocast(h_BD.device.type, enabled=False):
        dtype = torch.promote_types(h_BD.dtype, torch.float32)
        h_BD = h_BD.to(dtype)
        vectors = vectors.to(dtype)
        score = h_BD @ vectors.T if vectors.dim() == 2 else row_dot(vectors, h_BD)
        return score if bias is None else score + bias.to(dtype)


def table_scores(
    user_BD: Tensor,
    item_VD: Tensor,
    bias_V: Tensor | None,
    item_BC: Tensor | None,
    sparse: bool = False,
) -> Tensor:
    """Inner products with the items of a table plus their biases, [B, C].

    item_BC None: with all rows of the table but row 0, [B, V-1]. sparse: as by ``table_dot``.
    """
    if item_BC is None:
        s_BV = user_BD @ item_VD[1:].T
        return s_BV if bias_V is None else s_BV + bias_V[1:]
    s_BC = table_dot(user_BD, item_VD, item_BC, sparse)
    return s_BC if bias_V is None else s_BC + bias_V[item_BC]


def encoder_scores(user_BD: Tensor, items: ItemEncoder, item_BC: Tensor | None) -> Tensor:
    """``table_scores`` with the vectors of an item encoder."""
    if item_BC is None or not items.side:
        return table_scores(user_BD, items.table(), None, item_BC)
    return row_dot(items(item_BC), user_BD)


def score_in_chunks(
    score: Callable[[Tensor], Tensor],
    query: Query,
    item_BC: Tensor | None,
    width: int,
    n_items: int,
) -> Tensor:
    """Scores of the candidates, [B, C]; of the whole catalogue, [B, V-1], where item_BC is None.

    Scores so few items at a time that B * items * width floats stay within a block.
    score: takes item ids [B, c], or [c] shared by all rows, and returns [B, c].
    """
    if torch.compiler.is_exporting() and item_BC is None:
        return score_catalog(score, n_items, width)
    device = query.user_B.device
    items = torch.arange(1, n_items + 1, device=device) if item_BC is None else item_BC
    block = SCORE_BLOCK if device.type == "cpu" else SCORE_BLOCK << 6
    step = max(1, block // (width * max(1, len(query))))
    n_columns = items.shape[-1]
    if n_columns <= step:
        return score(items)
    parts = items.split(step, dim=-1)
    if torch.is_grad_enabled():
        return torch.cat([score(part) for part in parts], dim=-1)
    first = score(parts[0])
    scores = first.new_empty(len(query), n_columns)
    scores[:, :step] = first
    # Written in place: a list of small tensors fragments a CPU's memory.
    for number, part in enumerate(parts[1:], start=1):
        scores[:, number * step : (number + 1) * step] = score(part)
    return scores


def mean_square(*vectors: Tensor) -> Tensor:
    """Mean of squares over all elements of all tensors, a scalar."""
    total = vectors[0].square().sum()
    for x in vectors[1:]:
        total = total + x.square().sum()
    return total / sum(x.numel() for x in vectors)


# Choice of events


def behavior_codes(schema: Schema, behaviors: list[str] | str | None) -> list[int] | None:
    """Codes of the behaviors that count; None where all count.

    behaviors: names, "explicit" (those that the data set calls explicit), "strongest", or None.
    Raises RecexpError for names that the data set does not have.
    """
    if behaviors is None:
        return None
    if behaviors == "strongest":
        return [len(schema.behaviors)]
    if behaviors == "explicit":
        flags = zip(schema.behaviors, schema.explicit, strict=True)
        chosen = [name for name, explicit in flags if explicit]
    else:
        chosen = [behaviors] if isinstance(behaviors, str) else list(behaviors)
    wrong = ""
    if unknown := [name for name in chosen if name not in schema.behaviors]:
        wrong = f"{unknown[0]!r} is not a behavior of this data set"
    elif not chosen:
        wrong = "this data set has no such behavior"
    if wrong:
        raise RecexpError(
            f"behaviors={str(behaviors)[:SHOWN]}: {wrong[:SHOWN]}. "
            f"Choose from {list(schema.behaviors)}, 'explicit', 'strongest', null (all)."
        )
    return sorted(schema.behaviors.index(name) + 1 for name in chosen)


def asked_code(schema: Schema, behavior: str | None) -> int:
    """The code of a behavior, by name or "strongest"; 0 for None.

    Raises RecexpError for what is not one behavior of the data.
    """
    codes = behavior_codes(schema, behavior) or [0]
    if len(codes) > 1:
        raise RecexpError(
            f"asked_behavior={behavior} stands for several behaviors: name one of "
            f"{list(schema.behaviors)}, or strongest."
        )
    return codes[0]


def has_behavior(behavior_BL: Tensor, codes: list[int]) -> Tensor:
    """Whether each event is of one of the behaviors, bool [B, L]."""
    # Not torch.isin, which ONNX does not have.
    return (behavior_BL[..., None] == torch.tensor(codes, device=behavior_BL.device)).any(-1)


def select_events(store: Store, codes: list[int] | None) -> tuple[Tensor, Tensor]:
    """Users and items, int64 [E], of the training rows with one of the behaviors.

    In the store's order, by user and time. codes: of the behaviors; None selects all rows.
    """
    user_E = store.train.user
    item_E = store.train.item.long()
    if codes is None:
        return user_E, item_E
    bits = sum(1 << (code - 1) for code in codes)
    keep_E = (store.train.mask & bits) != 0
    return user_E[keep_E], item_E[keep_E]


def select_pairs(store: Store, codes: list[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct (user, item) pairs of ``select_events``, by user and item, and their numbers of
    events; int64 [P] each.
    """
    if codes is None:
        pairs = store.train_pairs
        return pairs.user, pairs.item.long(), pairs.count.long()
    user_E, item_E = select_events(store, codes)
    V = store.schema.V
    pair_P, count_P = torch.unique(user_E * V + item_E, return_counts=True)
    return pair_P // V, pair_P % V, count_P
