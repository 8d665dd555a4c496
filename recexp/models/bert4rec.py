"""BERT4Rec: a bidirectional Transformer trained to fill in masked items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recexp.models.common import (
    BidirectionalModel,
    append_item,
    asked_code,
    checked_length,
    latest,
)
from recexp.nn.attention import key_mask
from recexp.nn.dropout import Dropout
from recexp.nn.embeddings import ItemEncoder, SideVectors
from recexp.nn.events import EventSides
from recexp.nn.init import bert_init
from recexp.nn.parameters import Depth, Rate, Width, one_of
from recexp.nn.sharded import ShardedEmbedding
from recexp.nn.transformer import (
    Activation,
    NormPlace,
    PositionEmbedding,
    Positions,
    TransformerLayer,
    make_norm,
)
from recexp.types import CatalogShard, Query, RowTables, Schema

Init = Literal["bert", "torch"]
MaskedLength = Annotated[int, Field(ge=2, le=1_000_000)]
EPS = 1e-12


class BERT4Rec(BidirectionalModel):
    """States of masked items, mapped by ``head``, against the item table.

    score_i = head(state of [MASK]) . E_i + b_i, head(h) = LN(GELU(W h + b)), where [MASK] (item V)
    is appended to the history. Inputs are the sum of item and position vectors.

    n_factors: width D. n_inner: inner width of the feed-forward nets, 4 D where None.
    max_len: events that are read, [MASK] included.

    In the authors' code (https://github.com/FeiSun/BERT4Rec) but not in the paper:
    embedding_norm: layer norm on the input sum.
    token_type: a constant vector in the input sum.
    head_norm: layer norm after the head's GELU.
    positions: "left" counts from the oldest event read, as the authors' code, which pads on the
        right; "right" counts from the newest event.

    Ablations of the paper's Table 5: positions "none", ffn, residual, and layer_norm false (no norm
    anywhere); dropouts 0.

    Not in the paper either:
    item_side: features of items ("all", or names), added to the vectors of the items that are read
        and, with side_of_candidates, of candidates.
    side_vectors: features that are vectors are "frozen", or start values of parameters ("trained").
    event_side: features of events, added to the vectors of the items read (``EventSides``).
    asked_behavior: [MASK] has the vector of the behavior of the event that it stands for. Scores
        are those of items of an event of the asked behavior: its name, or "strongest". It needs
        "behavior" in event_side. None: the behavior of a masked event is hidden.

    Of the port https://github.com/jaywonchung/BERT4Rec-VAE-Pytorch: tied false (an output table of
    its own), projection false (no head), norm "pre", layer_norm "std", activation "gelu_tanh",
    more_dropout (see ``TransformerLayer``), init "torch" (tables N(0, 1), linear maps and the
    output as torch's Linear).

    Sun et al. 2019, sec. 3, arXiv:1904.06690.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        n_layers: Depth = 2,
        n_heads: Width = 2,
        n_inner: Width | None = None,
        max_len: MaskedLength = 200,
        dropout: Rate = 0.2,
        attention_dropout: Rate = 0.2,
        positions: Positions = "left",
        norm: NormPlace = "post",
        embedding_norm: bool = True,
        token_type: bool = True,
        projection: bool = True,
        head_norm: bool = True,
        tied: bool = True,
        output_bias: bool = True,
        layer_norm: bool | Literal["variance", "std"] = True,
        residual: bool = True,
        ffn: bool = True,
        activation: Activation = "gelu",
        more_dropout: bool = False,
        init: Init = "bert",
        item_side: str | Sequence[str] = (),
        event_side: str | Sequence[str] = (),
        side_of_candidates: bool = True,
        side_vectors: SideVectors = "frozen",
        asked_behavior: str | None = None,
    ):
        super().__init__()
        self.asked_code = asked_code(schema, asked_behavior)
        self.asks_behavior = self.asked_code > 0
        self.max_len = checked_length(max_len, least=2)
        self.history = max_len - 1  # the last place is that of [MASK]
        self.V = schema.V
        self.width = n_factors
        self.item = nn.Embedding(schema.V + 1, n_factors, padding_idx=0)
        self.position: PositionEmbedding | None = None
        if positions != "none":
            self.position = PositionEmbedding(max_len, n_factors, positions)
        self.token_type = nn.Parameter(torch.empty(n_factors)) if token_type else None
        norm_kind = layer_norm if isinstance(layer_norm, str) else "variance"
        with_norm = bool(layer_norm)
        self.input_norm = _norm_or_identity(embedding_norm and with_norm, norm_kind, n_factors)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                n_factors,
                n_heads,
                n_inner=n_inner,
                dropout=dropout,
                attention_dropout=attention_dropout,
                norm=norm if with_norm else "none",
                residual=residual,
                ffn=ffn,
                eps=EPS,
                layer_norm=norm_kind,
                activation=activation,
                more_dropout=more_dropout,
            )
            for _ in range(n_layers)
        )
        self.projection = nn.Linear(n_factors, n_factors) if projection else None
        with_head_norm = projection and head_norm and with_norm
        self.head_norm = _norm_or_identity(with_head_norm, norm_kind, n_factors)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.output = None if tied else nn.Embedding(schema.V, n_factors, padding_idx=0)
        self.output_bias = nn.Parameter(torch.zeros(schema.V)) if output_bias else None
        self.items = ItemEncoder(
            schema, n_factors, side=item_side, vectors=side_vectors, table=self.item
        )
        self.event_sides = EventSides(
            schema,
            n_factors,
            event_side,
            causal=False,
            mask_id=schema.V,
            shown=["behavior"] if self.asks_behavior else (),
        )
        self.output_items: ItemEncoder | None = None
        if self.output is not None or not side_of_candidates:
            self.output_items = ItemEncoder(
                schema,
                n_factors,
                side=item_side if side_of_candidates else (),
                vectors=side_vectors,
                table=self.item if self.output is None else self.output,
            )
        self._init(one_of("init", init, Init))

    @torch.no_grad()
    def _init(self, init: str) -> None:
        if init == "bert":
            bert_init(self)
        elif self.output is not None and self.output_items is not None:
            bound = self.width**-0.5
            self.output.weight[1:].uniform_(-bound, bound)
            for table in self.output_items.modules():
                if isinstance(table, nn.Embedding):
                    table.weight[1:].uniform_(-bound, bound)
            if self.output_bias is not None:
                self.output_bias.uniform_(-bound, bound)
        if self.token_type is not None:
            nn.init.trunc_normal_(self.token_type, std=0.02, a=-0.04, b=0.04)

    def _encode(self, query: Query, at: slice | Tensor | None) -> Tensor:
        h = self.event_sides.add_to(self.items(query.item_BL), query)
        if self.position is not None:
            h = h + self.position(query.mask_BL)
        return self._transform(h, query.mask_BL, at)

    def _transform(self, h: Tensor, mask_BL: Tensor, at: slice | Tensor | None) -> Tensor:
        """The input sum [B, L, D] through all layers.

        at: the rows that the last layer computes, see ``TransformerLayer``; None: all.
        """
        if self.token_type is not None:
            h = h + self.token_type
        h = self.dropout(self.input_norm(h))
        mask = key_mask(mask_BL)
        for i, layer in enumerate(self.layers):
            h = layer(h, mask, at=at if i + 1 == len(self.layers) else None)
        return h

    def head(self, h: Tensor) -> Tensor:
        if self.projection is None:
            return h
        return self.head_norm(F.gelu(self.projection(h), approximate=self.approximate))

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        encoder = self.items if self.output_items is None else self.output_items
        bias = self.output_bias
        if item is None:
            return encoder.catalog(), None if bias is None else bias[1:]
        return encoder(item), None if bias is None else bias[item]

    def catalog(self) -> tuple[Tensor | CatalogShard, Tensor | None]:
        table = self.item if self.output is None else self.output
        if not isinstance(table, ShardedEmbedding):
            return self.item_vectors()
        bias = self.output_bias
        return table.catalog(self.V - 1), None if bias is None else bias[1:]

    def row_tables(self) -> RowTables:
        tables = (self.item,) if self.output is None else (self.item, self.output)
        encoder = self.items if self.output_items is None else self.output_items
        return RowTables(items=tables, adds_sides=len(encoder.side) > 0)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        asked = append_item(latest(query, self.history), self.V, self.asked_code)
        return super().score(asked, item_BC)


def _norm_or_identity(wanted: bool, kind: str, width: int) -> nn.Module:
    return make_norm(kind, width, EPS) if wanted else nn.Identity()
