"""DIF-SR: a left-to-right Transformer whose attention reads side information apart from items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.models.common import SequenceModel, checked_length, encode_by_length, latest
from recexp.models.nova import SideInformation
from recexp.nn.decoupled_attention import EPS, DecoupledLayer, ScoreFusionKind
from recexp.nn.dropout import Dropout
from recexp.nn.embeddings import SideVectors
from recexp.nn.init import bert_init
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Depth, Length, NonNegative, Rate, Width
from recexp.nn.transformer import select_rows
from recexp.types import BAGGED, Feature, Query, Schema


class AttributePredictor(nn.Module):
    """Which values of a feature the next item has, from the state before it.

    The loss is the mean over states and values of the binary cross-entropy of A h + c.
    """

    id_VM: Tensor

    def __init__(self, feature: Feature, width: int):
        super().__init__()
        self.map = nn.Linear(width, feature.cardinality - 1)
        # The values come with the data, not with the checkpoint.
        self.register_buffer("id_VM", feature.id_VM, persistent=False)

    def forward(self, h_ND: Tensor, target_N: Tensor) -> Tensor:
        """A scalar. target_N: the items that follow the states."""
        logits_NC = self.map(h_ND)
        id_NM = self.id_VM[target_N]
        of_values_NM = F.pad(logits_NC, (1, 0)).gather(1, id_NM)
        of_values = torch.where(id_NM != 0, of_values_NM, 0.0).sum()
        return (F.softplus(logits_NC).sum() - of_values) / max(1, logits_NC.numel())


class DIFSR(SequenceModel):
    """score_i = state . E[i]; states from layers of decoupled attention over E[items].

    Queries, keys and scores are computed for the items, the positions and each side feature apart,
    and the scores are fused (``recexp.nn.decoupled_attention``). Values are those of the items
    alone. Positions count from the oldest event read, so that the state of an event is the one that
    it would have at the end of a history.

    side: names of features of items and events, as NOVA-BERT takes them (``SideInformation``).
    fusion: of the scores. n_side_factors: width of a side feature's vectors; n_factors where None.
    n_inner: inner width of the feed-forward nets, 4 * n_factors where None.
    attribute_weight: weight of the loss of predicting the values of the next item's categorical and
        multi-label features, the sum over those in ``side``; 0 leaves it out.

    Unlike the authors' code, scores of later events are 0 before they are fused, values of a
    feature with several values are averaged instead of summed, and keys have no bias.

    Xie et al. 2022, sec. 3, arXiv:2204.11046; authors' code https://github.com/AIM-SE/DIF-SR.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        side: str | Sequence[str] = "all",
        side_vectors: SideVectors = "frozen",
        fusion: ScoreFusionKind = "gating",
        n_factors: Width = 64,
        n_side_factors: Width | None = None,
        n_layers: Depth = 2,
        n_heads: Width = 2,
        n_inner: Width | None = None,
        max_len: Length = 50,
        dropout: Rate = 0.5,
        attention_dropout: Rate = 0.3,
        attribute_weight: NonNegative = 10.0,
    ):
        super().__init__()
        self.max_len = checked_length(max_len)
        self.history = max_len
        side_width = n_side_factors or n_factors
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.position = nn.Embedding(max_len, n_factors)
        self.side = SideInformation(schema, side_width, side, side_vectors, causal=True)
        self.norm = nn.LayerNorm(n_factors, EPS)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoupledLayer(
                n_factors,
                n_heads,
                [n_factors, *[side_width] * len(self.side)],
                fusion=fusion,
                max_len=max_len,
                n_inner=n_inner,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(n_layers)
        )
        self.attribute_weight = attribute_weight
        features = [schema.item_features[name] for name in self.side.item_names]
        predicted = [feature for feature in features if feature.kind in BAGGED]
        self.predictors = nn.ModuleList(
            AttributePredictor(feature, n_factors)
            for feature in (predicted if attribute_weight > 0 else ())
        )
        bert_init(self)

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=1)
        return encode_by_length(
            lambda part, rows, at: self._encode(part, last_only), query, last_only
        )

    def _encode(self, query: Query, last_only: bool) -> Tensor:
        mask_BL = query.mask_BL
        length = mask_BL.shape[1]
        n_events_B1 = mask_BL.sum(1, keepdim=True)
        column_L = torch.arange(length, device=mask_BL.device)
        # Padding on the right: columns are positions, and causal attention never meets padding.
        from_BL = (column_L + length - n_events_B1) % length
        query = query.change_columns(lambda x_BL: x_BL.gather(1, from_BL))
        h = self.dropout(self.norm(self.item(query.item_BL)))
        others = [self.position.weight[None, :length], *self.side(query, query.item_BL)]
        last_B1 = (n_events_B1 - 1).clamp(min=0)
        for i, layer in enumerate(self.layers):
            is_last = last_only and i + 1 == len(self.layers)
            h = layer(h, others, last_B1 if is_last else None)
        if last_only:
            return h
        h = select_rows(h, (column_L - length + n_events_B1) % length)
        return h * mask_BL[..., None]

    def extra_loss(self, h_ND: Tensor, target_N: Tensor) -> Tensor | None:
        if not self.predictors:
            return None
        losses = [predictor(h_ND, target_N) for predictor in self.predictors]
        return self.attribute_weight * sum(losses[1:], losses[0])

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, None]:
        return (self.item.weight[1:] if item is None else self.item(item)), None
