"""BERT4Rec: a bidirectional Transformer trained to fill masked items in (S002)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.models.common import SequenceModel, append, by_length, checked_length, latest, places
from recexp.nn.attention import key_mask
from recexp.nn.dropout import Dropout
from recexp.nn.embeddings import one_of
from recexp.nn.transformer import PositionEmbedding, TransformerLayer, make_norm
from recexp.types import Query, Schema

EPS = 1e-12


class BERT4Rec(SequenceModel):
    """States of masked items, mapped by ``head``, against the item table. To score, [MASK] (id V) ends the history.

    num_inner: inner width of the feed-forward nets, 4 num_factors where None.
    In the authors' code but not in the paper (spec 4.9): embedding_norm (layer norm on the input sum), token_type (a
    constant vector in it), head_norm (layer norm after the head's GELU).
    Of a port by others, https://github.com/jaywonchung/BERT4Rec-VAE-Pytorch: tied false (an output
    table of its own), projection false (no head), norm "pre", layer_norm "std", activation
    "gelu_tanh", more_dropout (see ``TransformerLayer``), init "torch" (tables N(0, 1), linear maps
    and the output as torch's Linear).
    positions: "left" counts from the oldest event read, as the authors' right-padded code; "right" from the newest;
    "none". Ablations of S002 Table 5: positions none, ffn, layer_norm false (no norm at all),
    residual; dropouts 0.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        num_inner: int | None = None,
        max_len: int = 200,
        dropout: float = 0.2,
        attention_dropout: float = 0.2,
        positions: str = "left",
        norm: str = "post",
        embedding_norm: bool = True,
        token_type: bool = True,
        projection: bool = True,
        head_norm: bool = True,
        tied: bool = True,
        output_bias: bool = True,
        layer_norm: bool | str = True,
        residual: bool = True,
        ffn: bool = True,
        activation: str = "gelu",
        more_dropout: bool = False,
        init: str = "bert",
    ):
        super().__init__()
        self.max_len = checked_length(max_len, least=2)
        self.history = max_len - 1  # the last place is [MASK]'s
        self.V, self.width = schema.V, num_factors
        self.item = nn.Embedding(schema.V + 1, num_factors, padding_idx=0)
        self.position = (
            None if positions == "none" else PositionEmbedding(max_len, num_factors, positions)
        )
        self.token_type = nn.Parameter(torch.empty(num_factors)) if token_type else None
        kind = layer_norm if isinstance(layer_norm, str) else "variance"
        with_input_norm = embedding_norm and layer_norm
        self.input_norm = make_norm(kind, num_factors, EPS) if with_input_norm else nn.Identity()
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                num_factors,
                num_heads,
                num_inner=num_inner,
                dropout=dropout,
                attention_dropout=attention_dropout,
                norm=norm if layer_norm else "none",
                residual=residual,
                ffn=ffn,
                eps=EPS,
                layer_norm=kind,
                activation=activation,
                more_dropout=more_dropout,
            )
            for _ in range(num_layers)
        )
        self.projection = nn.Linear(num_factors, num_factors) if projection else None
        with_head_norm = projection and head_norm and layer_norm
        self.head_norm = make_norm(kind, num_factors, EPS) if with_head_norm else nn.Identity()
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.output = None if tied else nn.Embedding(schema.V, num_factors, padding_idx=0)
        self.output_bias = nn.Parameter(torch.zeros(schema.V)) if output_bias else None
        self._init(one_of("init", init, ("bert", "torch")))

    @torch.no_grad()
    def _init(self, init: str) -> None:
        if init == "bert":
            bert_init(self)
        elif self.output is not None:
            bound = self.width**-0.5
            self.output.weight[1:].uniform_(-bound, bound)
            if self.output_bias is not None:
                self.output_bias.uniform_(-bound, bound)
        if self.token_type is not None:
            nn.init.trunc_normal_(self.token_type, std=0.02, a=-0.04, b=0.04)

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len)
        last = slice(-1, None) if last_only else None
        return by_length(lambda part, rows, at: self._encode(part, last), query, last_only)

    def encode_at(self, query: Query, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the wanted places among the newest max_len, row by row. The last layer computes no others."""
        at_BM, real_BM = places(wanted_BL[:, -self.max_len :])
        return by_length(
            lambda part, rows, at: self._encode(part, at), latest(query, self.max_len), False, at_BM
        )[real_BM]

    def _encode(self, query: Query, at: slice | Tensor | None) -> Tensor:
        h = self.item(query.item_BL)
        if self.position is not None:
            h = h + self.position(query.mask_BL)
        return self._transform(h, query.mask_BL, at)

    def _transform(self, h: Tensor, mask_BL: Tensor, at: slice | Tensor | None) -> Tensor:
        """The input sum [B, L, D] through all layers; of the last one only the rows ``at`` (see ``TransformerLayer``)."""
        if self.token_type is not None:
            h = h + self.token_type
        h, mask = self.dropout(self.input_norm(h)), key_mask(mask_BL)
        for i, layer in enumerate(self.layers):
            h = layer(h, mask, at=at if i + 1 == len(self.layers) else None)
        return h

    def head(self, h: Tensor) -> Tensor:
        if self.projection is None:
            return h
        return self.head_norm(F.gelu(self.projection(h), approximate=self.approximate))

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        table = (self.item if self.output is None else self.output).weight
        if item is None:
            return table[1 : self.V], None if self.output_bias is None else self.output_bias[1:]
        return F.embedding(item, table), None if self.output_bias is None else self.output_bias[
            item
        ]

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        return super().score(append(latest(query, self.history), self.V), item_BC)
