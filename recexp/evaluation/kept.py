"""The lists that the test of a model ranks, kept for what is measured of lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from recexp.evaluation.lists import best_candidates, top_k, without_seen
from recexp.types import moved

if TYPE_CHECKING:
    from recexp.contracts import Recommender
    from recexp.data.store import Store, Targets
    from recexp.evaluation.protocol import Protocol
    from recexp.types import Query


@dataclass(frozen=True)
class TopLists:
    """The best items of Q users, best first; equal scores are ordered by item number.

    number_Q: the n-th users who have targets in the split, int64, ascending. item_QK: int32, 0
    behind the end of a list that has fewer than K items. score_QK: float32, -inf there.
    """

    number_Q: NDArray[np.int64]
    item_QK: NDArray[np.int32]
    score_QK: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.number_Q)

    @classmethod
    def joined(cls, parts: list[TopLists]) -> TopLists:
        """The lists of several processes as one, sorted by row. They have the same K."""
        number_Q = np.concatenate([part.number_Q for part in parts])
        order = number_Q.argsort()
        item_QK = np.concatenate([part.item_QK for part in parts])
        score_QK = np.concatenate([part.score_QK for part in parts])
        return cls(number_Q[order], item_QK[order], score_QK[order])


class KeptLists:
    """Collects the k best candidates of users while they are ranked."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._parts: list[TopLists] = []

    def add(
        self, protocol: Protocol, store: Store, targets: Targets, number_B: Tensor, scorer: Scorer
    ) -> None:
        """Keep the lists of the n-th users who have targets. scorer: has scored their candidates.

        number_B: on the device of the store.
        """
        assert scorer.score_BC is not None
        score_BC = scorer.score_BC.detach().float()
        if scorer.item_BC is None:
            device = score_BC.device
            n_targets_B = moved(targets.n_of_users(number_B), device)
            owner_T = torch.repeat_interleave(
                torch.arange(len(number_B), device=device), n_targets_B
            )
            item_T = moved(targets.item[targets.of_users(number_B)], device)
            seen = protocol.seen(store, targets, number_B, device)
            score_BC = without_seen(score_BC, (owner_T, item_T), seen)
            best_BK, column_BK = top_k(score_BC, self.k)
            item_BK = column_BK + 1
        else:
            best_BK, item_BK = best_candidates(score_BC, scorer.item_BC, self.k)
        item_BK = torch.where(best_BK == -torch.inf, 0, item_BK)
        n_missing = self.k - item_BK.shape[1]
        item_BK = F.pad(item_BK, (0, n_missing)).int()
        best_BK = F.pad(best_BK, (0, n_missing), value=-torch.inf)
        lists = TopLists(number_B.cpu().numpy(), item_BK.cpu().numpy(), best_BK.cpu().numpy())
        self._parts.append(lists)

    def lists(self) -> TopLists:
        """All lists that were added."""
        nothing = TopLists(
            np.zeros(0, dtype=np.int64),
            np.zeros((0, self.k), dtype=np.int32),
            np.zeros((0, self.k), dtype=np.float32),
        )
        return TopLists.joined([nothing, *self._parts])


class Scorer:
    """A model that keeps the candidates and the scores of its latest call.

    ``Protocol.ranks`` scores by it, so that lists come from the same pass as ranks.
    """

    def __init__(self, model: Recommender) -> None:
        self._model = model
        self.history = model.history
        self.item_BC: Tensor | None = None
        self.score_BC: Tensor | None = None

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """As ``Recommender.score``."""
        self.item_BC = item_BC
        self.score_BC = self._model.score(query, item_BC)
        return self.score_BC
