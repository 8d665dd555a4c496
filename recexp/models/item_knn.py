"""ItemKNN: item-to-item nearest neighbors by co-visitation, or by the users that items share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.models.common import (
    behavior_codes,
    decayed,
    items_read,
    select_events,
    select_pairs,
)
from recexp.nn.co_occurrence import item_products, largest
from recexp.nn.parameters import (
    Count,
    Decay,
    Length,
    NonNegative,
    Share,
    checked_decay,
    one_of,
    require_positive,
)
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

Similarity = Literal["co_visits", "cosine", "asymmetric", "jaccard", "tf_idf", "bm25"]
_BLOCK = 1 << 25  # pairs counted at a time: bounds memory at a few hundred MB
_SCORED = 1 << 20  # scores scattered at a time: few enough for the processor's cache


class ItemKNN(ClosedForm):
    """score(u, c) = sum over the last max_len events h of decay^age(h) * sim(h, c) + prior(c).

    The newest event has age 0. prior(c) orders items without a common neighbor: it is
    ``popularity`` times c's count over the largest count.

    similarity "co_visits":
    sim(i, j) = cov(i, j) / (pop_i^history_damping * pop_j^item_damping), where pop counts training
    events and cov sums 1 / distance over the positions at which j stands at most ``window`` events
    from i in a user's training sequence. directed: j counts only where it stands after i.

    The others compare the items' vectors x over users, of which U_i is the set with item i:

        cosine      x_i . x_j / (|x_i| |x_j| + shrink), where x_iu says whether u has i
        asymmetric  as cosine, over |x_i|^(2 alpha) |x_j|^(2 - 2 alpha) + shrink
        jaccard     |U_i and U_j| / (|U_i or U_j| + shrink)
        tf_idf      as cosine, with x_iu = sqrt(n_iu) idf_u
        bm25        x_i . x_j, x_iu = idf_u n_iu (k1 + 1) / (n_iu + k1 (1 - b + b n_i / mean n))

    n_iu: events of u on i, n_i of all users; idf_u = log(items / (1 + items of u));
    k1 = ``bm25_k1`` and b = ``bm25_b``. normalize: False leaves out the denominators of cosine,
    asymmetric and tf_idf.

    neighbors: how many most similar items are kept per item.
    behaviors: which events count, in training and in the history; as in ``Pop``.

    A baseline without learned parameters. Item-based neighbors follow Sarwar et al. 2001,
    https://doi.org/10.1145/371920.372071; distances, damping and decay are our choice. asymmetric:
    Aiolli 2013, https://doi.org/10.1145/2507157.2507189. shrink: Bell and Koren 2007,
    https://doi.org/10.1109/ICDM.2007.90. bm25: Robertson and Zaragoza 2009,
    https://doi.org/10.1561/1500000019, with items as documents and users as their words.
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
        decay: Decay = 0.8,
        similarity: Similarity = "co_visits",
        history_damping: NonNegative = 0.5,
        item_damping: NonNegative = 0.25,
        popularity: NonNegative = 1e-6,
        directed: bool = False,
        alpha: Share = 0.5,
        shrink: NonNegative = 0.0,
        normalize: bool = True,
        bm25_k1: NonNegative = 1.2,
        bm25_b: Share = 0.75,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        require_positive(window=window, neighbors=neighbors, max_len=max_len)
        self.history = max_len
        self.window = window
        self.decay = checked_decay(decay)
        self.similarity = one_of("similarity", similarity, Similarity)
        self.alpha = alpha
        self.shrink = shrink
        self.normalize = normalize
        self.bm25_k1 = bm25_k1
        self.bm25_b = bm25_b
        self.history_damping = history_damping
        self.item_damping = item_damping
        self.popularity = popularity
        self.directed = directed
        self.codes = behavior_codes(schema, behaviors)
        self.register_buffer("neighbor_Vn", torch.zeros(schema.V, neighbors, dtype=torch.int32))
        self.register_buffer("similarity_Vn", torch.zeros(schema.V, neighbors))
        self.register_buffer("prior_V", torch.zeros(schema.V))

    @torch.no_grad()
    def fit_pass(self, store: Store) -> dict[str, float]:
        """Compare all pairs of items and keep every item's nearest neighbors."""
        user_E, item_E = select_events(store, self.codes)
        count_V = torch.bincount(item_E, minlength=len(self.prior_V)).to(self.prior_V.dtype)
        self.prior_V.copy_(self.popularity * count_V / count_V.max().clamp_min(1))
        self.neighbor_Vn.zero_()
        self.similarity_Vn.zero_()
        if self.similarity == "co_visits":
            return self._keep_co_visited(user_E, item_E, count_V)
        return self._keep_similar(store)

    def _keep_co_visited(self, user_E: Tensor, item_E: Tensor, count_V: Tensor) -> dict[str, float]:
        """Count co-visits, damp them and keep the nearest neighbors.

        Extra shape symbol: P distinct pairs (left, right) of items.
        """
        V, n_neighbors = self.neighbor_Vn.shape
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

        device = self.prior_V.device
        place = (left_P[keep_P].to(device), rank_P[keep_P].to(device))
        self.neighbor_Vn[place] = right_P[keep_P].to(self.neighbor_Vn)
        self.similarity_Vn[place] = sim_P[keep_P].to(self.similarity_Vn)
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

    def _keep_similar(self, store: Store) -> dict[str, float]:
        """Compare the items' vectors over users, some items with all others at a time."""
        user_P, item_P, count_P = select_pairs(store, self.codes)
        V, n_neighbors = self.neighbor_Vn.shape
        n_neighbors = min(n_neighbors, V)
        weight_P = self._values(user_P, item_P, count_P).to(self.prior_V.device)
        n_users = store.schema.n_users
        square_V = weight_P.new_zeros(V).index_add_(
            0, item_P.to(weight_P.device), weight_P.square()
        )
        n_similar = 0
        for rows, sim_rV in item_products(user_P, item_P, weight_P, n_users, V):
            shared = sim_rV > 0
            sim_rV.div_(self._denominators(sim_rV, square_V, rows))
            sim_rV.masked_fill_(~shared, 0.0)  # 0 / 0 of items that no user has
            sim_rV[:, rows].fill_diagonal_(0.0)
            neighbor_rn = largest(sim_rV, n_neighbors)
            self.neighbor_Vn[rows, :n_neighbors] = neighbor_rn.int()
            self.similarity_Vn[rows, :n_neighbors] = sim_rV.gather(1, neighbor_rn)
            n_similar += int((sim_rV > 0).sum())
        kept = float((self.similarity_Vn > 0).sum())
        return {"pairs": float(n_similar), "kept": kept}

    def _values(self, user_P: Tensor, item_P: Tensor, count_P: Tensor) -> Tensor:
        """x_iu of each pair, [P]."""
        count_P = count_P.to(self.prior_V.dtype)
        if self.similarity not in ("tf_idf", "bm25"):
            return torch.ones_like(count_P)
        n_items = len(self.prior_V) - 1
        idf_P = torch.log(n_items / (1 + torch.bincount(user_P)[user_P].to(count_P.dtype)))
        if self.similarity == "tf_idf":
            return count_P.sqrt() * idf_P
        events_V = count_P.new_zeros(n_items + 1).index_add_(0, item_P, count_P)
        length_P = events_V[item_P] * n_items / count_P.sum()
        damping_P = self.bm25_k1 * (1 - self.bm25_b + self.bm25_b * length_P)
        return idf_P * count_P * (self.bm25_k1 + 1) / (count_P + damping_P)

    def _denominators(self, product_rV: Tensor, square_V: Tensor, rows: slice) -> Tensor:
        """What the products of a range of items with all are divided by, [r, V] or a scalar.

        square_V: |x_i|^2 of all items.
        """
        square_r1 = square_V[rows, None]
        if self.similarity == "jaccard":
            return square_r1 + square_V - product_rV + self.shrink
        if self.similarity == "bm25" or not self.normalize:
            return torch.ones_like(square_V[:1])
        alpha = self.alpha if self.similarity == "asymmetric" else 0.5
        return square_r1**alpha * square_V ** (1 - alpha) + self.shrink

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        V, n_neighbors = self.neighbor_Vn.shape
        item_BL = items_read(query, self.history, self.codes)
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
        weight_BL = decayed(item_BL, self.decay, self.prior_V.dtype)
        s_BV = self.prior_V.repeat(item_BL.shape[0], 1)
        term_BLn = self.similarity_Vn[item_BL] * weight_BL.unsqueeze(-1)
        s_BV.scatter_add_(1, self.neighbor_Vn[item_BL].flatten(1).long(), term_BLn.flatten(1))
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)


def _coalesce(key: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, sorted, and the sums of their weights."""
    key, order = key.sort(stable=True)
    key, group = torch.unique_consecutive(key, return_inverse=True)
    return key, weight.new_zeros(len(key)).index_add_(0, group, weight[order])
