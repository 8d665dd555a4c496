"""What the sequence models share: the window of a history they read, and scoring by inner product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.types import Query, RecexpError

COLUMNS = ("item_BL", "behaviour_BL", "time_BL", "value_BL")


def _columns(query: Query, change: Callable[[Tensor], Tensor]) -> Query:
    return replace(query, **{name: change(x) for name in COLUMNS if (x := getattr(query, name)) is not None})


def latest(query: Query, length: int, least: int = 0) -> Query:
    """The newest ``length`` events of every history, padded on the left to ``least`` columns."""
    missing = max(0, least - query.item_BL.shape[1])
    return _columns(query, lambda x: F.pad(x, (missing, 0))[:, -length:])


def append(query: Query, item: int) -> Query:
    """The histories with one more event of which nothing but its item id is known."""
    query = _columns(query, lambda x: F.pad(x, (0, 1)))
    query.item_BL[:, -1] = item
    return query


def checked_length(max_len: int, least: int = 1) -> int:
    """max_len, if a history of that length can be read; RecexpError otherwise."""
    if max_len < least:
        raise RecexpError(f"max_len={max_len}: this model reads histories of at least {least} events.")
    return max_len


def inner_products(h_BD: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
    """Scores of each row's candidates (vectors [B, C, D]) or of a common catalogue ([C, D]); never in less than float32."""
    with torch.autocast(h_BD.device.type, enabled=False):
        dtype = torch.promote_types(h_BD.dtype, torch.float32)
        h_BD, vectors = h_BD.to(dtype), vectors.to(dtype)
        score = h_BD @ vectors.T if vectors.dim() == 2 else (vectors @ h_BD[:, :, None]).squeeze(-1)
        return score if bias is None else score + bias.to(dtype)


class SequenceModel(nn.Module):
    """Base of encoders: states of a history (``encode``), scored against ``item_vectors``.

    ``encode`` returns one state per position of the newest max_len events, so of all positions where the query has no
    more than that. ``head`` maps the states that are of interest to the vectors that meet the item vectors.
    """

    history: int

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        """States h_BLD; of the last position alone, [B, 1, D], where last_only."""
        raise NotImplementedError

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Vectors [..., D] of the items given (of all, 1..V-1, where None), and their biases [...] or None."""
        raise NotImplementedError

    def head(self, h: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return h

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        h_BD = self.head(self.encode(query, last_only=True)[:, -1])
        return inner_products(h_BD, *self.item_vectors(item_BC))
