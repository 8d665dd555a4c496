"""BERT4Rec with side information: invasive BERT and NOVA-BERT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from recexp.contracts import SideEncoder
from recexp.errors import RecexpError
from recexp.models.bert4rec import EPS, BERT4Rec, MaskedLength
from recexp.models.common import encode_by_length, latest, wanted_columns
from recexp.nn.attention import key_mask
from recexp.nn.embeddings import FeatureBag, SideVectors
from recexp.nn.events import data_columns, event_side
from recexp.nn.fusion import Fusion, FusionKind, Gate
from recexp.nn.init import bert_init
from recexp.nn.parameters import Depth, Rate, Width
from recexp.nn.transformer import Positions
from recexp.types import Feature, Query, Schema

TIMES = ("time", "gap")  # what times of events tell


class ItemSide(FeatureBag):
    """Vectors of one item feature for ids 0..V.

    [MASK] (id V) and items without the feature have value ids of their own.
    """

    def __init__(self, feature: Feature, width: int, vectors: SideVectors = "frozen"):
        absent = feature.cardinality
        masked = feature.cardinality + 1
        id_VM = torch.cat([feature.id_VM, torch.zeros_like(feature.id_VM[:1])])
        weight_VM = torch.cat([feature.weight_VM, torch.zeros_like(feature.weight_VM[:1])])
        without_V = (id_VM == 0).all(1)
        id_VM[without_V, 0] = absent
        id_VM[-1, 0] = masked
        id_VM[0, 0] = 0
        if feature.kind != "vector":  # the weights of vectors belong to other ids
            weight_VM[without_V, 0] = 1.0
            weight_VM[0, 0] = 0.0
        extended = replace(
            feature, cardinality=feature.cardinality + 2, id_VM=id_VM, weight_VM=weight_VM
        )
        super().__init__(extended, width, vectors=vectors)

    def forward(self, item: Tensor) -> Tensor:
        vector = super().forward(item)
        if not self.is_vector or self.folded is not None:
            return vector
        state = self.id_VM[item, 0]  # 0, 1 (known), absent or masked
        return vector + self.table(torch.where(state == 1, 0, state))


class SideInformation(nn.Module):
    """One vector per event and side feature.

    side: names of item features, "value" (rating levels), "behavior" (its type), own columns of the
    events, "time" and "gap" (see ``recexp.nn.events``). "all" takes what the data has except the
    times, since some data sets give only the order of events.
    vectors: what becomes of item features that are vectors, see ``FeatureBag``.
    causal: the model predicts after every event of a history, so that "time", an age that later
        events decide, is not available.

    Raises RecexpError for what the data does not have.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        side: str | Sequence[str],
        vectors: SideVectors = "frozen",
        causal: bool = False,
    ):
        super().__init__()
        columns = data_columns(schema)
        times = TIMES[1:] if causal else TIMES
        names = _chosen_names(side, [*schema.item_features, *columns], times)
        self.mask_id = schema.V
        self.item_names = [name for name in names if name in schema.item_features]
        features = [schema.item_features[name] for name in self.item_names]
        self.items = nn.ModuleList(ItemSide(feature, width, vectors) for feature in features)
        of_events = [name for name in names if name in columns]
        of_times = [n for n in times if n in names and n not in schema.item_features]
        self.events = nn.ModuleList(
            event_side(name, schema, width) for name in [*of_events, *of_times]
        )

    def __len__(self) -> int:
        return len(self.items) + len(self.events)

    def forward(self, query: Query, item_BL: Tensor) -> Iterator[Tensor]:
        """Vectors [B, L, D], one feature after another.

        item_BL: the items whose features are read; query.item_BL unless they are to leak.
        """
        yield from (feature(item_BL) for feature in self.items)
        yield from (feature(query, self.mask_id) for feature in self.events)


def _chosen_names(
    side: str | Sequence[str], available: list[str], times: Sequence[str]
) -> list[str]:
    """The names of ``side``, where "all" means those available. times: named alone."""
    if side == "all" and not available:
        raise RecexpError(
            "side: all, but the prepared data has no side information. "
            "Take another dataset, or side: []."
        )
    if side == "all":
        return available
    names = [side] if isinstance(side, str) else list(side)
    known = [*available, *(name for name in times if name not in available)]
    if unknown := [name for name in names if name not in known]:
        raise RecexpError(f"side names {unknown}, but the prepared data has {known}.")
    return names


class SideBERT(BERT4Rec, SideEncoder):
    """BERT4Rec with side information, fused with the item vectors (``recexp.nn.fusion``).

    invasive true: the layers' input is h^0 = F(item, position, side...). With fusion "add" and
    side [] that is BERT4Rec without token_type.
    invasive false (NOVA): the state H starts as the item vectors alone. Layer l takes queries and
    keys from F_l(H, position, side...), values and residual from H.

    fusion, gate: the form of F.
    side, side_vectors: see ``SideInformation``.
    shared_fusion: one F for all layers. The paper does not say.
    position_in_sides: false adds the position to H instead, where it enters the values as in
        BERT4Rec.
    n_factors: the width h of the paper.
    embedding_norm: layer norm on the input sum as in BERT4Rec, for NOVA on H, and a second one on
        every side vector, with dropout after both. Not in the paper.
    All other parameters: see ``BERT4Rec``.

    Everything but the position is hidden at masked events, including the [MASK] of scoring; the
    paper does not say. For diagnosis, ``encode`` and ``encode_at`` take side_item_BL, the items
    whose features are read instead of those of the masked ones: a leak.

    Liu et al. 2021, sec. 3, arXiv:2103.03578.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        fusion: FusionKind = "add",
        gate: Gate = "softmax",
        side: str | Sequence[str] = "all",
        side_vectors: SideVectors = "frozen",
        invasive: bool = False,
        shared_fusion: bool = False,
        position_in_sides: bool = True,
        n_factors: Width = 256,
        n_layers: Depth = 3,
        n_heads: Width = 4,
        n_inner: Width | None = None,
        max_len: MaskedLength = 200,
        dropout: Rate = 0.1,
        attention_dropout: Rate = 0.1,
        positions: Positions = "left",
        embedding_norm: bool = True,
        head_norm: bool = True,
    ):
        super().__init__(
            schema,
            n_factors=n_factors,
            n_layers=n_layers,
            n_heads=n_heads,
            n_inner=n_inner,
            max_len=max_len,
            dropout=dropout,
            attention_dropout=attention_dropout,
            positions=positions,
            embedding_norm=embedding_norm,
            head_norm=head_norm,
            token_type=False,
        )
        if invasive and (shared_fusion or not position_in_sides):
            raise RecexpError(
                "shared_fusion and position_in_sides: false are about NOVA's layers; "
                "drop them or set invasive: false."
            )
        self.invasive = invasive
        self.side = SideInformation(schema, n_factors, side, side_vectors)
        bert_init(self.side)
        self.position_fused = self.position is not None and position_in_sides
        n_fused = 1 + self.position_fused + len(self.side)
        n_fusions = 1 if invasive or shared_fusion else n_layers
        self.fusions = nn.ModuleList(
            Fusion(fusion, n_fused, n_factors, gate=gate) for _ in range(n_fusions)
        )
        self.side_norm: nn.Module = nn.Identity()
        if embedding_norm and not invasive and n_fused > 1:
            self.side_norm = nn.LayerNorm(n_factors, EPS)

    def encode(
        self, query: Query, last_only: bool = False, side_item_BL: Tensor | None = None
    ) -> Tensor:
        last = slice(-1, None) if last_only else None
        return self._encode_by_length(query, side_item_BL, last_only, None, last)

    def encode_at(
        self, query: Query, wanted_BL: Tensor, side_item_BL: Tensor | None = None
    ) -> Tensor:
        at_BM, real_BM = wanted_columns(wanted_BL[:, -self.max_len :])
        return self._encode_by_length(query, side_item_BL, False, at_BM, None)[real_BM]

    def _encode_by_length(
        self,
        query: Query,
        side_item_BL: Tensor | None,
        last_only: bool,
        at_BM: Tensor | None,
        last: slice | None,
    ) -> Tensor:
        query = latest(query, self.max_len)
        shown_BL = query.item_BL if side_item_BL is None else side_item_BL[:, -self.max_len :]

        def encode(part: Query, rows: Tensor | slice, at: Tensor | None) -> Tensor:
            padding = shown_BL.shape[1] - part.item_BL.shape[1]
            return self._encode_side(part, shown_BL[rows, padding:], last if at is None else at)

        return encode_by_length(encode, query, last_only, at_BM)

    def _encode_side(self, query: Query, shown_BL: Tensor, at: slice | Tensor | None) -> Tensor:
        h = self.item(query.item_BL)
        mask_BL = query.mask_BL
        sides = list(self.side(query, shown_BL))
        if self.position is not None:
            position = self.position(mask_BL)
            if self.position_fused:
                sides.append(position.expand_as(h))
            else:
                h = h + position
        if self.invasive:
            return self._transform(self.fusions[0]([h, *sides]), mask_BL, at)
        h = self.dropout(self.input_norm(h))
        sides = [self.dropout(self.side_norm(side)) for side in sides]
        mask = key_mask(mask_BL)
        for i, layer in enumerate(self.layers):
            fused = self.fusions[i % len(self.fusions)]([h, *sides])
            h = layer(h, mask, fused, at if i + 1 == len(self.layers) else None)
        return h
