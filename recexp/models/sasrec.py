"""SASRec: self-attentive sequential recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.models.common import SequenceModel, checked_length, encode_by_length, latest
from recexp.nn.attention import MultiHeadAttention, causal_mask
from recexp.nn.dropout import Dropout
from recexp.nn.embeddings import ItemEncoder, SideVectors
from recexp.nn.events import EventSides
from recexp.nn.gated import GatedLayer
from recexp.nn.init import like_rows_of, xavier_linears
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Depth, Length, Rate, Width, one_of
from recexp.nn.sharded import ShardedEmbedding
from recexp.nn.transformer import PositionEmbedding
from recexp.types import CatalogShard, Query, RowTables, Schema

Residual = Literal["normed", "plain", "gated"]
EPS = 1e-8


class SASRecLayer(nn.Module):
    """Causal attention without an output map, then a feed-forward net of inner width D.

    residual "normed", the authors' code: q = LN(x), y = Attn(q, x, x) + q, w = LN(y), w + FFN(w).
    residual "plain", the paper's text: y = x + Drop(Attn(q, q, q)), y + FFN(LN(y)).
    """

    def __init__(
        self, width: int, n_heads: int, *, dropout: float, attention_dropout: float, residual: str
    ):
        super().__init__()
        self.plain = residual == "plain"
        self.attention = MultiHeadAttention(width, n_heads, dropout=attention_dropout, output=False)
        self.norm1 = nn.LayerNorm(width, EPS)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:
        """[B, L, D]; [B, 1, D] of the last position where last_only."""
        if self.plain:
            q = self.norm1(x_BLD)
            key = q
        else:
            q = self.norm1(x_BLD[:, -1:] if last_only else x_BLD)
            key = x_BLD
        if last_only:
            x_BLD = x_BLD[:, -1:]
            q = q[:, -1:]
            mask = mask[..., -1:, :]
        attended = self.attention(q, key, key, mask)
        y = x_BLD + self.dropout(attended) if self.plain else q + attended
        w = self.norm2(y)
        change = self.dropout(self.outer(self.dropout(self.inner(w).relu())))
        return (y if self.plain else w) + change


def make_layer(
    width: int,
    n_heads: int,
    *,
    dropout: float,
    attention_dropout: float,
    residual: str,
    n_inner: int | None,
) -> SASRecLayer | GatedLayer:
    """``GatedLayer`` for the residual "gated", ``SASRecLayer`` for the others.

    Raises RecexpError where n_inner is given for a layer whose inner width is D.
    """
    if residual == "gated":
        return GatedLayer(
            width, n_heads, n_inner=n_inner, dropout=dropout, attention_dropout=attention_dropout
        )
    if n_inner is not None:
        raise RecexpError(
            f"n_inner={n_inner} is for residual=gated; with residual={residual} the inner width "
            "is n_factors. Leave n_inner null."
        )
    return SASRecLayer(
        width, n_heads, dropout=dropout, attention_dropout=attention_dropout, residual=residual
    )


class SASRec(SequenceModel):
    """States of a left-to-right Transformer against the item table.

    Inputs are sqrt(D) E[item] + P[position], zero at padding; P counts from the newest event.
    score_i = state . E[i], with the same table E for input and output.

    n_factors: width D. max_len: newest events that are read.
    attention_dropout: of the attention weights; as ``dropout`` where None.
    residual: "normed" is the authors' code, "plain" the paper's text; see ``SASRecLayer``.

    Not in the paper:
    residual: "gated" takes ``GatedLayer`` and no norm after the last layer: eSASRec (Tikhonovich et
        al. 2025, arXiv:2508.06450).
    n_inner: inner width of the feed-forward net of "gated" layers, 4 D where None.
    scale_inputs: False leaves out sqrt(D): eSASRec, as RecTools has it
        (https://github.com/MobileTeleSystems/RecTools).
    item_dropout: of the entries of the item table, once per step, for the histories and the
        candidates alike: eSASRec, as RecTools has it.
    tied: False gives candidates a table of their own: gSASRec (Petrov and Macdonald 2023,
        arXiv:2308.07192, authors' code).
    item_side: features of items ("all", or names), added to the vectors of the items that are read
        and, with side_of_candidates, of candidates.
    side_vectors: features that are vectors are "frozen", or start values of parameters ("trained").
    event_side: features of events, added to the vectors of the items read (``EventSides``).

    Kang and McAuley 2018, sec. III, arXiv:1808.09781; authors' code
    https://github.com/kang205/SASRec.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 50,
        n_layers: Depth = 2,
        n_heads: Width = 1,
        max_len: Length = 200,
        dropout: Rate = 0.2,
        attention_dropout: Rate | None = None,
        residual: Residual = "normed",
        n_inner: Width | None = None,
        scale_inputs: bool = True,
        item_dropout: Rate = 0.0,
        tied: bool = True,
        item_side: str | Sequence[str] = (),
        event_side: str | Sequence[str] = (),
        side_of_candidates: bool = True,
        side_vectors: SideVectors = "frozen",
    ):
        super().__init__()
        self.max_len = checked_length(max_len)
        self.history = max_len
        one_of("residual", residual, Residual)
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.position = PositionEmbedding(max_len, n_factors, "right")
        self.input_scale = n_factors**0.5 if scale_inputs else 1.0
        self.dropout = Dropout(dropout)
        self.item_dropout = Dropout(item_dropout)
        if item_dropout and not tied:
            raise RecexpError(
                "item_dropout is for one item table: set tied=true or item_dropout=0."
            )
        self.kept_VD: Tensor | None = None  # what item_dropout kept in this step
        if attention_dropout is None:
            attention_dropout = dropout
        self.layers = nn.ModuleList(
            make_layer(
                n_factors,
                n_heads,
                dropout=dropout,
                attention_dropout=attention_dropout,
                residual=residual,
                n_inner=n_inner,
            )
            for _ in range(n_layers)
        )
        self.norm = nn.Identity() if residual == "gated" else nn.LayerNorm(n_factors, EPS)
        self.items = ItemEncoder(
            schema, n_factors, side=item_side, vectors=side_vectors, table=self.item
        )
        self.output: ItemEncoder | None = None
        if not tied:
            output_side = item_side if side_of_candidates else ()
            self.output = ItemEncoder(schema, n_factors, side=output_side, vectors=side_vectors)
        self.side_of_candidates = side_of_candidates
        self.event_sides = EventSides(schema, n_factors, event_side, causal=True)
        # Glorot uniform is TensorFlow's default, which the authors' code keeps everywhere.
        xavier_linears(self)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.position.table.weight)
            nn.init.xavier_uniform_(self.item.weight)[0] = 0
        like_rows_of(self.item, self.items, self.event_sides)
        if self.output is not None:
            like_rows_of(self.item, self.output)

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=1)
        self.kept_VD = self._draw_kept() if self.training and self.item_dropout.p else None
        return encode_by_length(
            lambda part, rows, at: self._encode(part, last_only), query, last_only
        )

    def _encode(self, query: Query, last_only: bool) -> Tensor:
        mask_BL = query.mask_BL
        item_BLD = self._kept(self.items(query.item_BL), query.item_BL)
        event_BLD = self.event_sides.add_to(item_BLD, query)
        h = event_BLD * self.input_scale + self.position(mask_BL)
        h = self.dropout(h) * mask_BL[..., None]
        mask = causal_mask(mask_BL)
        for i, layer in enumerate(self.layers):
            # The last layer computes the last position only, where only that is wanted.
            h = layer(h, mask, last_only=last_only and i + 1 == len(self.layers))
        return self.norm(h[:, -1:] if last_only else h)

    def _draw_kept(self) -> Tensor:
        """Factors of the entries of the item table in this step, [V, D]: 0 or 1 / (1 - rate)."""
        if isinstance(self.item, ShardedEmbedding):
            raise RecexpError("item_dropout needs whole tables: trainer=sharded takes 0 only.")
        return self.item_dropout(torch.ones_like(self.item.weight))

    def _kept(self, vectors: Tensor, item: Tensor | None = None) -> Tensor:
        """Vectors of the items, or of the catalog, without the entries that this step drops."""
        if self.kept_VD is None or not self.training:
            return vectors
        kept = self.kept_VD[1:] if item is None else F.embedding(item, self.kept_VD)
        return vectors * kept

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, None]:
        if self.output is not None:
            return (self.output.catalog() if item is None else self.output(item)), None
        if not self.side_of_candidates:
            vectors = self.item.weight[1:] if item is None else self.item(item)
        else:
            vectors = self.items.catalog() if item is None else self.items(item)
        return self._kept(vectors, item), None

    def catalog(self) -> tuple[Tensor | CatalogShard, None]:
        encoder = self.items if self.output is None else self.output
        if isinstance(encoder.ids, ShardedEmbedding):
            return encoder.ids.catalog(encoder.n_items), None
        return self.item_vectors()

    def row_tables(self) -> RowTables:
        if self.output is not None:
            return RowTables(items=(self.item, self.output.ids), adds_sides=bool(self.output.side))
        adds_sides = self.side_of_candidates and len(self.items.side) > 0
        return RowTables(items=(self.item,), adds_sides=adds_sides)
