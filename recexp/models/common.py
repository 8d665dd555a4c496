"""What the sequence models share: the window of a history they read, and scoring by inner product."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.contracts import Encoder
from recexp.errors import RecexpError
from recexp.nn.cpu.lookup import row_dot
from recexp.types import Query

COLUMNS = ("item_BL", "behaviour_BL", "time_BL", "value_BL")
TOKENS = 3200  # places that a CPU encodes together: 16 rows at length 200, 320 at length 10


def _columns(query: Query, change: Callable[[Tensor], Tensor]) -> Query:
    return replace(
        query, **{name: change(x) for name in COLUMNS if (x := getattr(query, name)) is not None}
    )


def latest(query: Query, length: int, least: int = 0) -> Query:
    """The newest ``length`` events of every history, padded on the left to ``least`` columns."""
    missing = max(0, least - query.item_BL.shape[1])
    return _columns(query, lambda x: F.pad(x, (missing, 0))[:, -length:])


def append(query: Query, item: int) -> Query:
    """The histories with one more event of which nothing but its item id is known."""
    query = _columns(query, lambda x: F.pad(x, (0, 1)))
    query.item_BL[:, -1] = item
    return query


def by_length(
    encode: Callable[[Query, Tensor | slice, Tensor | None], Tensor],
    query: Query,
    last_only: bool,
    at_BM: Tensor | None = None,
) -> Tensor:
    """encode(part of the query, its rows, their at) of all rows: [B, L, D], [B, 1, D] where it returns last_only, [B, M, D] of the places at_BM.

    On CPUs rows of similar length are encoded together without their common padding, which is 40 % of MovieLens at
    length 200. For encoders to whose states padding makes no difference; states at padding may then be 0.
    """
    group = group_size(query)
    if query.item_BL.device.type != "cpu" or len(query) <= group:
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
            parts.append(F.pad(encode(part, rows, None), (0, 0, 0 if last_only else padding, 0)))
    return torch.cat(parts)[order_B.argsort()]


def group_size(query: Query) -> int:
    """How many of its rows ``by_length`` takes together."""
    return max(1, TOKENS // max(1, query.item_BL.shape[1]))


def places(wanted_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of each row's wanted places in ascending order, and which of them are real: int64 and bool [B, M], M the most of a row."""
    count_B1 = wanted_BL.sum(1, keepdim=True)
    most = max(1, int(count_B1.max()))
    at_BM = (~wanted_BL).view(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return at_BM, torch.arange(most, device=at_BM.device) < count_B1


def checked_length(max_len: int, least: int = 1) -> int:
    """max_len, if a history of that length can be read; RecexpError otherwise."""
    if max_len < least:
        raise RecexpError(
            f"max_len={max_len}: this model reads histories of at least {least} events."
        )
    return max_len


def inner_products(h_BD: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
    """Scores of each row's candidates (vectors [B, C, D]) or of a common catalogue ([C, D]); never in less than float32."""
    with torch.autocast(h_BD.device.type, enabled=False):
        dtype = torch.promote_types(h_BD.dtype, torch.float32)
        h_BD, vectors = h_BD.to(dtype), vectors.to(dtype)
        score = h_BD @ vectors.T if vectors.dim() == 2 else row_dot(vectors, h_BD)
        return score if bias is None else score + bias.to(dtype)


class SequenceModel(Encoder):
    """Base of encoders: states of a history (``encode``), scored against ``item_vectors``.

    Encoders that can save work where only some states are wanted offer ``encode_at(query, wanted_BL) -> h_ND`` too: the states at the wanted places,
    row by row.

    ``encode`` returns one state per position of the newest max_len events, so of all positions where the query has no
    more than that. ``head`` maps the states that are of interest to the vectors that meet the item vectors.
    """

    @abstractmethod
    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        """States h_BLD; of the last position alone, [B, 1, D], where last_only."""

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        h_BD = self.head(self.encode(query, last_only=True)[:, -1])
        return inner_products(h_BD, *self.item_vectors(item_BC))
