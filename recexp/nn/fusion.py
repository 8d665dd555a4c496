"""Fusion of F feature vectors into one (Liu et al. 2021 (NOVA-BERT), sec. 3, arXiv:2103.03578)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recexp.nn.init import bert_init
from recexp.nn.parameters import one_of

FusionKind = Literal["add", "concat", "gating"]
Gate = Literal["softmax", "sigmoid"]


class Fusion(nn.Module):
    """f_1 .. f_F, each broadcastable to [..., D], to one vector [..., D].

    kind: "add" sums them; "concat" is a linear map of [f_1; ...; f_F]; "gating" is sum_i G_i f_i
    with G_i = gate(f_i . w).
    gate: "softmax" over the features, or "sigmoid" of each. w starts at 0, which weighs all
    features equally.

    The paper writes the gate as a sigma, which it uses for the softmax elsewhere.
    """

    def __init__(self, kind: FusionKind, n_features: int, width: int, *, gate: Gate = "softmax"):
        super().__init__()
        self.kind = one_of("fusion", kind, FusionKind)
        self.gate = one_of("gate", gate, Gate)
        if kind == "concat":
            self.mix = nn.Linear(n_features * width, width)
        elif kind == "gating":
            self.mix = nn.Linear(width, 1, bias=False)
        bert_init(self)
        if kind == "gating":
            nn.init.zeros_(self.mix.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if self.kind == "add":
            return sum(features[1:], features[0])
        features = list(torch.broadcast_tensors(*features))
        if self.kind == "concat":
            return self.mix(torch.cat(features, -1))
        logits = torch.cat([self.mix(feature) for feature in features], -1)  # [..., F]
        gates = logits.softmax(-1) if self.gate == "softmax" else logits.sigmoid()
        return sum(g * f for g, f in zip(gates.split(1, -1), features, strict=True))
