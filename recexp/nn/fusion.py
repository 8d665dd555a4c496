"""Fusion of F feature vectors into one (S004 sec. 3, spec 7.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recexp.nn.embeddings import one_of
from recexp.nn.transformer import bert_init

FUSIONS = ("add", "concat", "gating")
GATES = ("softmax", "sigmoid")


class Fusion(nn.Module):
    """f_1 .. f_F, each broadcastable to [..., D], to one vector [..., D].

    kind: "add" sum_i f_i; "concat" a linear map of [f_1; ...; f_F]; "gating" sum_i G_i f_i with G = gate(f_i . w) and
    gate "softmax" over the features or "sigmoid". w starts at 0: all features count alike.
    """

    def __init__(self, kind: str, num_features: int, width: int, *, gate: str = "softmax"):
        super().__init__()
        self.kind, self.gate = one_of("fusion", kind, FUSIONS), one_of("gate", gate, GATES)
        if kind == "concat":
            self.mix = nn.Linear(num_features * width, width)
        elif kind == "gating":
            self.mix = nn.Linear(width, 1, bias=False)
        bert_init(self)
        if kind == "gating":
            nn.init.zeros_(self.mix.weight)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if self.kind == "add":
            return sum(features[1:], features[0])
        features = torch.broadcast_tensors(*features)
        if self.kind == "concat":
            return self.mix(torch.cat(features, -1))
        logits = torch.cat([self.mix(f) for f in features], -1)
        gates = logits.softmax(-1) if self.gate == "softmax" else logits.sigmoid()
        return sum(g * f for g, f in zip(gates.split(1, -1), features, strict=True))
