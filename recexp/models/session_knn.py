"""Session-based nearest neighbors: items of the training sequences that resemble the history."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recexp.models.session_neighbors import Neighbors, SessionNeighbors
from recexp.nn.parameters import Count, NonNegative, Positive, one_of
from recexp.types import Schema

SessionLength = Annotated[int, Field(ge=1, le=4000)]
Variant = Literal["sknn", "s_sknn", "v_sknn"]


class SessionKNN(SessionNeighbors):
    """Neighbors by shared items; see ``SessionNeighbors`` for the score.

    With a history of l events, of which d items are distinct, and a session n of |n| items:

    variant     weight of the item at position p   sim                               w(i, n)
    "sknn"      1                                  shared items / sqrt(d |n|)        1
    "s_sknn"    1                                  shared items / sqrt(d |n|)        x / l
    "v_sknn"    p / l                              sum of weights of shared items    1

    x: position of the most recent item of the history that n has.

    Ludewig and Jannach 2018, arXiv:1803.09587.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        variant: Variant = "v_sknn",
        k: Count = 100,
        sample: Count = 1000,
        max_len: SessionLength = 50,
        popularity: NonNegative = 1e-6,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__(
            schema,
            k=k,
            sample=sample,
            max_len=max_len,
            popularity=popularity,
            behaviors=behaviors,
        )
        self.variant = one_of("variant", variant, Variant)

    def item_weights(self, position_BL: Tensor, length_B1: Tensor) -> Tensor:
        if self.variant == "v_sknn":
            return position_BL / length_B1.clamp_min(1)
        return torch.ones_like(position_BL)

    def similarities(
        self, sum_BN: Tensor, n_items_B1: Tensor, size_BN: Tensor, days_BN: Tensor
    ) -> Tensor:
        if self.variant == "v_sknn":
            return sum_BN
        return sum_BN / (n_items_B1 * size_BN).to(sum_BN.dtype).sqrt()

    def event_weights(self, found: Neighbors, length_B1: Tensor) -> Tensor | None:
        if self.variant != "s_sknn":
            return None
        position_Bk, _ = found.latest_shared()
        return (position_Bk.to(self.prior_V.dtype) / length_B1.clamp_min(1)).unsqueeze(-1)


class STAN(SessionNeighbors):
    """Neighbors by shared items, positions and times; see ``SessionNeighbors`` for the score.

    With a history of l events, of which d items are distinct, and a session n of |n| items:

        weight of the item at position p: exp((p - l) / recency_scale)
        sim = sum of weights of shared items / sqrt(d |n|) * exp(-days / age_scale)
        w(i, n) = exp(-|place of i in n - place of x in n| / distance_scale)

    days: between the last events of both, also where the session is the later one. x: the most
    recent item of the history that n has. A scale that is None leaves its factor out.

    Garg et al. 2019 (STAN), https://doi.org/10.1145/3331184.3331322.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        recency_scale: Positive | None = 1.02,
        age_scale: Positive | None = 5.0,
        distance_scale: Positive | None = 2.05,
        k: Count = 500,
        sample: Count = 5000,
        max_len: SessionLength = 50,
        popularity: NonNegative = 1e-6,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__(
            schema,
            k=k,
            sample=sample,
            max_len=max_len,
            popularity=popularity,
            behaviors=behaviors,
        )
        self.recency_scale = recency_scale
        self.age_scale = age_scale
        self.distance_scale = distance_scale

    def item_weights(self, position_BL: Tensor, length_B1: Tensor) -> Tensor:
        if self.recency_scale is None:
            return torch.ones_like(position_BL)
        return torch.exp((position_BL - length_B1) / self.recency_scale)

    def similarities(
        self, sum_BN: Tensor, n_items_B1: Tensor, size_BN: Tensor, days_BN: Tensor
    ) -> Tensor:
        similarity_BN = sum_BN / (n_items_B1 * size_BN).to(sum_BN.dtype).sqrt()
        if self.age_scale is not None:
            similarity_BN = similarity_BN * torch.exp(-days_BN / self.age_scale)
        return similarity_BN

    def event_weights(self, found: Neighbors, length_B1: Tensor) -> Tensor | None:
        if self.distance_scale is None:
            return None
        _, place_Bk = found.latest_shared()
        distance_BkL = (found.place_BkL - place_Bk.unsqueeze(-1)).abs()
        return torch.exp(-distance_BkL.to(self.prior_V.dtype) / self.distance_scale)
