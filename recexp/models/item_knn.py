"""Item-to-item nearest neighbours by co-visitation: a strong, cheap yardstick without learned parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.models.mf import require_positive
from recexp.models.pop import behaviour_codes, select_events
from recexp.types import Query, Schema

_BLOCK = 1 << 25  # pairs counted at a time: bounds memory at a few hundred MB
_SCORED = 1 << 20  # scores scattered at a time: few enough for the processor's cache


class ItemKNN(ClosedForm):
    """score(u, c) = sum over the last max_len events h of decay^age(h) * sim(h, c), the newest event having age 0.

    sim(i, j) = cov(i, j) / (pop_i^history_damping * pop_j^item_damping), where cov sums 1/distance over the places at which j
    stands at most ``window`` events from i in a user's training sequence (``directed``: after i only) and pop counts training
    events. Only the ``neighbours`` most similar items of every item are kept. ``popularity`` times an item's share of the most
    popular item's count is added, so that items without a common neighbour are ordered too.

    behaviours: which events count, in training and in the history; as in ``Pop``.
    """

    n_passes = 1  # a second changes nothing

    def __init__(
        self,
        schema: Schema,
        *,
        window: int = 10,
        neighbours: int = 200,
        max_len: int = 50,
        decay: float = 0.8,
        history_damping: float = 0.5,
        item_damping: float = 0.25,
        popularity: float = 1e-6,
        directed: bool = False,
        behaviours: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        require_positive(window=window, neighbours=neighbours, max_len=max_len)
        if not 0 < decay <= 1:
            raise RecexpError(f"decay={decay}: must lie in (0, 1].")
        self.history = max_len
        self.window, self.decay, self.popularity, self.directed = (
            window,
            decay,
            popularity,
            directed,
        )
        self.history_damping, self.item_damping = history_damping, item_damping
        self.codes = behaviour_codes(schema, behaviours)
        self.register_buffer("neighbour_Vn", torch.zeros(schema.V, neighbours, dtype=torch.int32))
        self.register_buffer("similarity_Vn", torch.zeros(schema.V, neighbours))
        self.register_buffer("prior_V", torch.zeros(schema.V))

    def fit_pass(self, store) -> dict[str, float]:
        """Counts co-visits, damps them and keeps every item's nearest neighbours."""
        user, item = select_events(store, self.codes)
        V, n = self.neighbour_Vn.shape
        count = torch.bincount(item, minlength=V).to(self.prior_V.dtype)
        left, right, cov = self._co_visits(user, item, V, count.dtype)
        sim = cov / (count[left] ** self.history_damping * count[right] ** self.item_damping)

        # rank of each pair within its left item, most similar first; pairs come sorted, so ties go to the lower right id
        order = torch.argsort(sim, descending=True, stable=True)
        order = order[torch.argsort(left[order], stable=True)]
        left, right, sim = left[order], right[order], sim[order]
        first = torch.cumsum(torch.bincount(left, minlength=V), 0) - torch.bincount(
            left, minlength=V
        )
        rank = torch.arange(len(left), device=left.device) - first[left]
        keep = rank < n
        self.neighbour_Vn.zero_()
        self.similarity_Vn.zero_()
        place = (left[keep].to(self.prior_V.device), rank[keep].to(self.prior_V.device))
        self.neighbour_Vn[place] = right[keep].to(self.neighbour_Vn)
        self.similarity_Vn[place] = sim[keep].to(self.similarity_Vn)
        self.prior_V.copy_(self.popularity * count / count.max().clamp_min(1))
        return {"pairs": float(len(left)), "kept": float(keep.sum())}

    def _co_visits(
        self, user: Tensor, item: Tensor, V: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct (left, right) pairs sorted, and their summed weights."""
        parts = []
        block = max(1, _BLOCK // self.window)
        for start in range(0, len(item), block):
            keys, weights = [], []
            for distance in range(1, self.window + 1):
                stop = min(start + block, len(item) - distance)
                if stop <= start:
                    break
                a, b = item[start:stop], item[start + distance : stop + distance]
                same = (user[start:stop] == user[start + distance : stop + distance]) & (a != b)
                a, b = a[same], b[same]
                keys.append(
                    a * V + b if self.directed else torch.minimum(a, b) * V + torch.maximum(a, b)
                )
                weights.append(
                    torch.full(keys[-1].shape, 1.0 / distance, dtype=dtype, device=item.device)
                )
            if keys:
                parts.append(_coalesce(torch.cat(keys), torch.cat(weights)))
        if not parts:
            empty = item.new_empty(0)
            return empty, empty, empty.to(dtype)
        key, cov = (
            parts[0]
            if len(parts) == 1
            else _coalesce(*(torch.cat(x) for x in zip(*parts, strict=True)))
        )
        if not self.directed:
            key = torch.cat([key, key % V * V + key // V])
            key, order = key.sort()
            cov = torch.cat([cov, cov])[order]
        return key // V, key % V, cov

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        V, n = self.neighbour_Vn.shape
        item_BL = query.item_BL[:, -self.history :]
        if self.codes is not None:
            counts = torch.isin(
                query.behaviour_BL[:, -self.history :],
                torch.tensor(self.codes, device=item_BL.device),
            )
            item_BL = item_BL * counts
        rows = max(1, _SCORED // max(V, item_BL.shape[1] * n))
        out = [
            self._score_rows(
                item_BL[i : i + rows], None if item_BC is None else item_BC[i : i + rows]
            )
            for i in range(0, len(query), rows)
        ]
        return (
            torch.cat(out)
            if out
            else self.prior_V.new_empty(0, V - 1 if item_BC is None else item_BC.shape[1])
        )

    def _score_rows(self, item_BL: Tensor, item_BC: Tensor | None) -> Tensor:
        real_BL = item_BL != 0
        age_BL = (
            real_BL.flip(1).cumsum(1).flip(1) - 1
        )  # real events after this one: padding and left-out events do not age
        weight_BL = self.decay ** age_BL.to(self.prior_V.dtype) * real_BL
        s_BV = self.prior_V.repeat(len(item_BL), 1)
        term_BLn = self.similarity_Vn[item_BL] * weight_BL.unsqueeze(-1)
        s_BV.scatter_add_(1, self.neighbour_Vn[item_BL].flatten(1).long(), term_BLn.flatten(1))
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)


def _coalesce(key: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, sorted, and the sums of their weights."""
    key, order = key.sort(stable=True)
    key, group = torch.unique_consecutive(key, return_inverse=True)
    return key, weight.new_zeros(len(key)).index_add_(0, group, weight[order])
