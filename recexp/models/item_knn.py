"""ItemKNN: item-to-item nearest neighbors by co-visitation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.models.common import behavior_codes, has_behavior, select_events
from recexp.nn.parameters import Count, Length, NonNegative, require_positive
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

_BLOCK = 1 << 25  # pairs counted at a time: bounds memory at a few hundred MB
_SCORED = 1 << 20  # scores scattered at a time: few enough for the processor's cache


class ItemKNN(ClosedForm):
    """score(u, c) = sum over the last max_len events h of decay^age(h) * sim(h, c) + prior(c).

    The newest event has age 0.
    sim(i, j) = cov(i, j) / (pop_i^history_damping * pop_j^item_damping), where pop counts training
    events and cov sums 1 / distance over the positions at which j stands at most ``window`` events
    from i in a user's training sequence. prior(c) orders items without a common neighbor: it is
    ``popularity`` times c's count over the largest count.

    neighbors: how many most similar items are kept per item.
    directed: j counts only where it stands after i.
    behaviors: which events count, in training and in the history; as in ``Pop``.

    A baseline without learned parameters. Item-based neighbors follow Sarwar et al. 2001,
    https://doi.org/10.1145/371920.372071; distances, damping and decay are our choice.
    """

    needs_user = False
    n_passes = 1
    neighbor_Vn: Tensor
    similarity_Vn: Tensor
    prior_V: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        window: Count = 10,
        neighbors: Count = 200,
        max_len: Length = 50,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.8,
        history_damping: NonNegative = 0.5,
        item_damping: NonNegative = 0.25,
        popularity: NonNegative = 1e-6,
        directed: bool = False,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        require_positive(window=window, neighbors=neighbors, max_len=max_len)
        if not 0 < decay <= 1:
            raise RecexpError(f"decay={decay}: must lie in (0, 1].")
        self.history = max_len
        self.window = window
        self.decay = decay
        self.history_damping = history_damping
        self.item_damping = item_damping
        self.popularity = popularity
        self.directed = directed
        self.codes = behavior_codes(schema, behaviors)
        self.register_buffer("neighbor_Vn", torch.zeros(schema.V, neighbors, dtype=torch.int32))
        self.register_buffer("similarity_Vn", torch.zeros(schema.V, neighbors))
        self.register_buffer("prior_V", torch.zeros(schema.V))

    def fit_pass(self, store: Store) -> dict[str, float]:
        """Count co-visits, damp them and keep every item's nearest neighbors.

        Extra shape symbol: P distinct pairs (left, right) of items.
        """
        user_E, item_E = select_events(store, self.codes)
        V, n_neighbors = self.neighbor_Vn.shape
        count_V = torch.bincount(item_E, minlength=V).to(self.prior_V.dtype)
        left_P, right_P, cov_P = self._co_visits(user_E, item_E, V, count_V.dtype)
        damping_P = count_V[left_P] ** self.history_damping * count_V[right_P] ** self.item_damping
        sim_P = cov_P / damping_P

        # By left item, most similar first. Pairs come sorted, so ties go to the lower right item.
        order_P = torch.argsort(sim_P, descending=True, stable=True)
        order_P = order_P[torch.argsort(left_P[order_P], stable=True)]
        left_P = left_P[order_P]
        right_P = right_P[order_P]
        sim_P = sim_P[order_P]
        n_pairs_V = torch.bincount(left_P, minlength=V)
        first_V = torch.cumsum(n_pairs_V, 0) - n_pairs_V
        rank_P = torch.arange(len(left_P), device=left_P.device) - first_V[left_P]
        keep_P = rank_P < n_neighbors

        self.neighbor_Vn.zero_()
        self.similarity_Vn.zero_()
        device = self.prior_V.device
        place = (left_P[keep_P].to(device), rank_P[keep_P].to(device))
        self.neighbor_Vn[place] = right_P[keep_P].to(self.neighbor_Vn)
        self.similarity_Vn[place] = sim_P[keep_P].to(self.similarity_Vn)
        self.prior_V.copy_(self.popularity * count_V / count_V.max().clamp_min(1))
        return {"pairs": float(len(left_P)), "kept": float(keep_P.sum())}

    def _co_visits(
        self, user_E: Tensor, item_E: Tensor, V: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Left and right items of the distinct pairs, sorted, and their summed weights."""
        block = max(1, _BLOCK // self.window)
        parts = []
        for start in range(0, len(item_E), block):
            part = self._pairs_from(user_E, item_E, slice(start, start + block), V, dtype)
            if part is not None:
                parts.append(part)
        if not parts:
            empty = item_E.new_empty(0)
            return empty, empty, empty.to(dtype)
        key_P, cov_P = parts[0]
        if len(parts) > 1:
            keys, weights = zip(*parts, strict=True)
            key_P, cov_P = _coalesce(torch.cat(keys), torch.cat(weights))
        if not self.directed:
            # Pairs were counted with the smaller item on the left: add their mirror images.
            key_P = torch.cat([key_P, key_P % V * V + key_P // V])
            key_P, order_P = key_P.sort()
            cov_P = torch.cat([cov_P, cov_P])[order_P]
        return key_P // V, key_P % V, cov_P

    def _pairs_from(
        self, user_E: Tensor, item_E: Tensor, block: slice, V: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor] | None:
        """Keys left * V + right and weights of the pairs that begin within a block of events."""
        keys = []
        weights = []
        for distance in range(1, self.window + 1):
            stop = min(block.stop, len(item_E) - distance)
            if stop <= block.start:
                break
            near = slice(block.start, stop)
            far = slice(block.start + distance, stop + distance)
            counts = (user_E[near] == user_E[far]) & (item_E[near] != item_E[far])
            left = item_E[near][counts]
            right = item_E[far][counts]
            if not self.directed:
                left, right = torch.minimum(left, right), torch.maximum(left, right)
            key = left * V + right
            keys.append(key)
            weights.append(torch.full(key.shape, 1.0 / distance, dtype=dtype, device=key.device))
        return _coalesce(torch.cat(keys), torch.cat(weights)) if keys else None

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        V, n_neighbors = self.neighbor_Vn.shape
        item_BL = query.item_BL[:, -self.history :]
        if self.codes is not None:
            behavior_BL = query.behavior_BL[:, -self.history :]
            item_BL = item_BL * has_behavior(behavior_BL, self.codes)
        if torch.compiler.is_exporting():
            return self._score_rows(item_BL, item_BC)
        if len(query) == 0:
            return self.prior_V.new_empty(0, V - 1 if item_BC is None else item_BC.shape[1])
        n_rows = max(1, _SCORED // max(V, item_BL.shape[1] * n_neighbors))
        parts = []
        for start in range(0, len(query), n_rows):
            rows = slice(start, start + n_rows)
            candidates = None if item_BC is None else item_BC[rows]
            parts.append(self._score_rows(item_BL[rows], candidates))
        return torch.cat(parts)

    def _score_rows(self, item_BL: Tensor, item_BC: Tensor | None) -> Tensor:
        real_BL = item_BL != 0
        # Events after this one. Padding and events that do not count add nothing to the age.
        age_BL = real_BL.flip(1).cumsum(1).flip(1) - 1
        weight_BL = self.decay ** age_BL.to(self.prior_V.dtype) * real_BL
        s_BV = self.prior_V.repeat(item_BL.shape[0], 1)
        term_BLn = self.similarity_Vn[item_BL] * weight_BL.unsqueeze(-1)
        s_BV.scatter_add_(1, self.neighbor_Vn[item_BL].flatten(1).long(), term_BLn.flatten(1))
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)


def _coalesce(key: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, sorted, and the sums of their weights."""
    key, order = key.sort(stable=True)
    key, group = torch.unique_consecutive(key, return_inverse=True)
    return key, weight.new_zeros(len(key)).index_add_(0, group, weight[order])
