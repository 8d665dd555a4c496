"""BERT4Rec with side information: mixed into the input (invasive) or into queries and keys only (NOVA) - S004."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from recexp.contracts import SideEncoder
from recexp.errors import RecexpError
from recexp.models.bert4rec import EPS, BERT4Rec
from recexp.models.common import by_length, latest, places
from recexp.nn.attention import key_mask
from recexp.nn.embeddings import FeatureBag
from recexp.nn.fusion import Fusion
from recexp.nn.transformer import bert_init
from recexp.types import Feature, Query, Schema


class ItemSide(FeatureBag):
    """Vectors of one item feature for ids 0..V, with value ids of its own for [MASK] (item V) and for items without it."""

    def __init__(self, feature: Feature, width: int):
        absent, masked = feature.cardinality, feature.cardinality + 1
        id_VM = torch.cat([feature.id_VM, torch.zeros_like(feature.id_VM[:1])])
        weight_VM = torch.cat([feature.weight_VM, torch.zeros_like(feature.weight_VM[:1])])
        without_V = (id_VM == 0).all(1)
        id_VM[without_V, 0], id_VM[-1, 0], id_VM[0, 0] = absent, masked, 0
        weight_VM[without_V, 0], weight_VM[0, 0] = 1.0, 0.0
        super().__init__(
            replace(feature, cardinality=feature.cardinality + 2, id_VM=id_VM, weight_VM=weight_VM),
            width,
        )


class EventSide(nn.Module):
    """Vectors of a column of codes 1..n of the events: code 0 is padding or, at a real event, unknown; [MASK] has an id."""

    def __init__(self, column: str, n: int, width: int):
        super().__init__()
        self.column, self.unknown, self.masked = column, n + 1, n + 2
        self.table = nn.Embedding(n + 3, width, padding_idx=0)

    def forward(self, query: Query, mask_id: int) -> Tensor:
        item_BL, code_BL = query.item_BL, self.codes(query, mask_id)
        code_BL = torch.zeros_like(item_BL) if code_BL is None else code_BL
        code_BL = code_BL.masked_fill((item_BL != 0) & (code_BL == 0), self.unknown)
        return self.table(code_BL.masked_fill(item_BL == mask_id, self.masked))

    def codes(self, query: Query, mask_id: int) -> Tensor | None:
        """int64 [B, L]"""
        return getattr(query, self.column)


class TimeSide(EventSide):
    """Vectors of events' ages: seconds before the newest that is not masked, by powers of 2.

    Liu et al. 2021 (NOVA-BERT), arXiv:2103.03578, name the time among an event's side information
    and do not say how it is embedded. An age needs no range from the data, and times to come have
    one too.
    """

    AGES = 32  # 0, 1, 2-3, 4-7, ..., from 2^30 seconds (34 years) on

    def __init__(self, width: int):
        super().__init__("time_BL", self.AGES, width)
        edges = 2 ** torch.arange(self.AGES - 1)
        self.register_buffer("edges", edges, persistent=False)

    def codes(self, query: Query, mask_id: int) -> Tensor:
        known_BL = (query.item_BL != 0) & (query.item_BL != mask_id)
        time_BL = torch.where(known_BL, query.time_BL, torch.iinfo(torch.int64).min)
        age_BL = (time_BL.amax(1, keepdim=True) - time_BL) // 1000
        return torch.where(known_BL, 1 + torch.bucketize(age_BL, self.edges, right=True), 0)


class SideVectors(nn.Module):
    """One vector per event and side feature.

    side: names of item features, "value" (rating levels), "behaviour" (its type), "time" (see
    ``TimeSide``); or "all" that the data has but the time, which some data only number. Raises
    RecexpError for what the data does not have.
    """

    def __init__(self, schema: Schema, width: int, side: str | Sequence[str]):
        super().__init__()
        columns = {}
        if schema.n_values:
            columns["value"] = ("value_BL", schema.n_values)
        if len(schema.behaviours) > 1:
            columns["behaviour"] = ("behaviour_BL", len(schema.behaviours))
        available = [*schema.item_features, *columns]
        names = available if side == "all" else [side] if isinstance(side, str) else list(side)
        if unknown := [name for name in names if name not in (*available, "time")]:
            known = [*available, "time"]
            raise RecexpError(f"side names {unknown}, but the prepared data has {known}.")
        if side == "all" and not available:
            raise RecexpError(
                "side: all, but the prepared data has no side information. Take another dataset, or side: []."
            )
        self.mask_id = schema.V
        features = [schema.item_features[name] for name in names if name in schema.item_features]
        self.items = nn.ModuleList(ItemSide(feature, width) for feature in features)
        self.events = nn.ModuleList(
            EventSide(*columns[name], width) for name in names if name in columns
        )
        if "time" in names and "time" not in schema.item_features:
            self.events.append(TimeSide(width))

    def __len__(self) -> int:
        return len(self.items) + len(self.events)

    def forward(self, query: Query, item_BL: Tensor) -> Iterator[Tensor]:
        """item_BL: the items whose features to show, query.item_BL unless they are to leak."""
        yield from (feature(item_BL) for feature in self.items)
        yield from (feature(query, self.mask_id) for feature in self.events)


class SideBERT(BERT4Rec, SideEncoder):
    """BERT4Rec with side information, fused with the item vector by add, concat or gating (gate softmax or sigmoid).

    invasive: the layers' input is h^0 = F(id, position, side...) (spec 7.3); with fusion add and side [] that is BERT4Rec.
    Otherwise NOVA (spec 7.4): H starts as the item vectors alone, and layer l takes queries and keys from
    F_l(H, position, side...), values and residual from H. shared_fusion: one F for all layers. position_in_sides: false
    adds the position to H instead, where it enters the values as in BERT4Rec. embedding_norm, as in BERT4Rec for the
    input sum, here for H, and a second one for every side vector, dropout after both.

    num_factors: the width h. side: see SideVectors. The other options: see BERT4Rec.
    Everything but the position is hidden at masked events, [MASK] at scoring included. For diagnosis only, ``encode``
    takes side_item_BL, the items whose features to show instead of the masked ones': a leak.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        fusion: str = "add",
        gate: str = "softmax",
        side: str | Sequence[str] = "all",
        invasive: bool = False,
        shared_fusion: bool = False,
        position_in_sides: bool = True,
        num_factors: int = 256,
        num_layers: int = 3,
        num_heads: int = 4,
        num_inner: int | None = None,
        max_len: int = 200,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        positions: str = "left",
        embedding_norm: bool = True,
        head_norm: bool = True,
    ):
        super().__init__(
            schema,
            num_factors=num_factors,
            num_layers=num_layers,
            num_heads=num_heads,
            num_inner=num_inner,
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
                "shared_fusion and position_in_sides: false are about NOVA's layers; drop them or set invasive: false."
            )
        self.invasive = invasive
        self.side = SideVectors(schema, num_factors, side)
        bert_init(self.side)
        self.position_fused = self.position is not None and position_in_sides
        count = 1 + self.position_fused + len(self.side)
        fusions = [
            Fusion(fusion, count, num_factors, gate=gate)
            for _ in range(1 if invasive or shared_fusion else num_layers)
        ]
        self.fusions = nn.ModuleList(fusions)
        self.side_norm = (
            nn.LayerNorm(num_factors, EPS)
            if embedding_norm and not invasive and count > 1
            else nn.Identity()
        )

    def encode(
        self, query: Query, last_only: bool = False, side_item_BL: Tensor | None = None
    ) -> Tensor:
        last = slice(-1, None) if last_only else None
        return self._by_length(query, side_item_BL, last_only, None, last)

    def encode_at(
        self, query: Query, wanted_BL: Tensor, side_item_BL: Tensor | None = None
    ) -> Tensor:
        """See ``BERT4Rec``."""
        at_BM, real_BM = places(wanted_BL[:, -self.max_len :])
        return self._by_length(query, side_item_BL, False, at_BM, None)[real_BM]

    def _by_length(
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
            return self._encode_side(
                part,
                shown_BL[rows, shown_BL.shape[1] - part.item_BL.shape[1] :],
                last if at is None else at,
            )

        return by_length(encode, query, last_only, at_BM)

    def _encode_side(self, query: Query, shown_BL: Tensor, at: slice | Tensor | None) -> Tensor:
        h, mask_BL = self.item(query.item_BL), query.mask_BL
        sides = list(self.side(query, shown_BL))
        if self.position_fused:
            sides.append(self.position(mask_BL).expand_as(h))
        elif self.position is not None:
            h = h + self.position(mask_BL)
        if self.invasive:
            return self._transform(self.fusions[0]([h, *sides]), mask_BL, at)
        h, sides = (
            self.dropout(self.input_norm(h)),
            [self.dropout(self.side_norm(f)) for f in sides],
        )
        mask = key_mask(mask_BL)
        for i, layer in enumerate(self.layers):
            fused = self.fusions[i % len(self.fusions)]([h, *sides])
            h = layer(h, mask, fused, at if i + 1 == len(self.layers) else None)
        return h
