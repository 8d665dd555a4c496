"""What session-based neighbors share: finding sessions that resemble a history."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.models.common import behavior_codes, items_read
from recexp.nn.co_occurrence import largest
from recexp.nn.parameters import require_positive
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

_SCORED = 1 << 19  # numbers gathered at a time
# Sums are kept of all sessions where a row has so many sessions per pair at most.
COMPACT = 4
_DAY = 86_400_000.0  # milliseconds


@dataclass
class Neighbors:
    """The most similar sessions of each history, [B, k], and their events, padded with item 0.

    Sessions of similarity 0 are none. place_BkL: of an event in its session.
    position_BV: of an item in the history, where it stands last; 0 for items that it does not have.
    """

    similarity_Bk: Tensor
    item_BkL: Tensor
    place_BkL: Tensor
    position_BV: Tensor

    def latest_shared(self) -> tuple[Tensor, Tensor]:
        """Position in the history, and place in the session, of the item that both have and that
        is the most recent one of the history; [B, k] each.
        """
        position_BkL = self.position_BV.gather(1, self.item_BkL.flatten(1))
        position_Bk, at_Bk = position_BkL.view_as(self.item_BkL).max(dim=2)
        return position_Bk, self.place_BkL.gather(2, at_Bk.unsqueeze(-1)).squeeze(-1)


class SessionNeighbors(ClosedForm):
    """score(i) = sum over neighbors n of sim(history, n) * w(i, n) * [n has i] + prior(i).

    Sessions are the sequences of the training users, of which the last ``max_len`` events count; so
    do the last ``max_len`` events of the history. Candidates are the ``sample`` most recent of the
    sessions that share an item with the history, and neighbors the k most similar of them, of equal
    ones the more recent. An item that is repeated in a sequence counts where it stands last.
    prior(i) orders items that no neighbor has: ``popularity`` times the events of i over those of
    the most popular item.

    behaviors: which events count, in training and in the history; as in ``Pop``.

    Checkpoints hold no sessions: ``bind`` takes them from the data.

    Extra shape symbols: S sessions, the most recent one first; E their events; P pairs of an item
    and a session, by item, the ``sample`` most recent ones of each. Buffers have an entry more,
    which stands for none.
    """

    needs_user = False
    n_passes = 1
    prior_V: Tensor
    pair_ptr_V: Tensor  # item i has the pairs ptr[i]..ptr[i+1]
    session_P: Tensor
    event_ptr_S: Tensor
    item_E: Tensor
    place_E: Tensor
    time_S: Tensor  # of the last event

    def __init__(
        self,
        schema: Schema,
        *,
        k: int,
        sample: int,
        max_len: int,
        popularity: float,
        behaviors: list[str] | str | None,
    ) -> None:
        super().__init__()
        require_positive(k=k, sample=sample, max_len=max_len)
        self.history = max_len
        self.k = k
        self.sample = sample
        self.popularity = popularity
        self.codes = behavior_codes(schema, behaviors)
        self.register_buffer("prior_V", torch.zeros(schema.V))
        zeros = {"pair_ptr_V": schema.V + 1, "event_ptr_S": 2, "time_S": 1}
        for name in (
            "pair_ptr_V",
            "session_P",
            "event_ptr_S",
            "item_E",
            "place_E",
            "time_S",
        ):
            empty = torch.zeros(zeros.get(name, 1), dtype=torch.int64)
            self.register_buffer(name, empty, persistent=False)

    # What a variant says

    @abstractmethod
    def item_weights(self, position_BL: Tensor, length_B1: Tensor) -> Tensor:
        """Weights above 0 of the items at positions 1..length of histories, [B, L]."""

    @abstractmethod
    def similarities(
        self, sum_BN: Tensor, n_items_B1: Tensor, size_BN: Tensor, days_BN: Tensor
    ) -> Tensor:
        """Similarities of histories and sessions, [B, N].

        sum_BN: of the weights of the shared items. n_items_B1, size_BN: distinct items of the
        history and of the session; of the latter [1, N] where the sessions are those of all rows.
        days_BN: between their last events.
        """

    @abstractmethod
    def event_weights(self, found: Neighbors, length_B1: Tensor) -> Tensor | None:
        """w of the events of the neighbors, [B, k, L] or [B, k, 1]; None: all 1.

        length_B1: of the history.
        """

    # Fit

    def bind(self, store: Store) -> None:
        self.fit_pass(store)

    @torch.no_grad()
    def fit_pass(self, store: Store) -> dict[str, float]:
        """Keep the sessions, and which of them have an item."""
        user_E, item_E, place_E, time_E = self._events(store)
        time_U = time_E.new_zeros(store.schema.n_users)
        time_U.scatter_reduce_(0, user_E, time_E, "amax", include_self=False)
        user_S = user_E.unique()
        user_S = user_S[time_U[user_S].argsort(descending=True, stable=True)]
        session_U = torch.zeros_like(time_U)
        session_U[user_S] = torch.arange(len(user_S), device=user_S.device)

        session_E, order_E = session_U[user_E].sort(stable=True)
        item_E = item_E[order_E]
        place_E = place_E[order_E]
        size_S = torch.bincount(session_E, minlength=len(user_S) + 1)
        self._keep("event_ptr_S", F.pad(size_S.cumsum(0), (1, 0)))
        self._keep("item_E", F.pad(item_E, (0, 1)))
        self._keep("place_E", F.pad(place_E, (0, 1)))
        self._keep("time_S", F.pad(time_U[user_S], (0, 1)))
        self._keep_pairs(item_E, session_E, len(user_S))

        n_events_V = torch.bincount(item_E, minlength=len(self.prior_V)).to(self.prior_V)
        self.prior_V.copy_(self.popularity * n_events_V / n_events_V.max().clamp_min(1))
        return {"sessions": float(len(user_S)), "pairs": float(len(self.session_P) - 1)}

    def _events(self, store: Store) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Users, items, places and times of the events that count, by user and time; int64 [E].

        The last event of a user stands at the place ``max_len``, the one before at max_len - 1.
        """
        train = store.train
        at_E = torch.arange(len(train.item), device=train.item.device)
        if self.codes is not None:
            bits = sum(1 << (code - 1) for code in self.codes)
            at_E = at_E[(train.mask & bits) != 0]
        user_E = train.user[at_E]
        end_U = torch.bincount(user_E, minlength=store.schema.n_users).cumsum(0)
        number_E = torch.arange(len(at_E), device=at_E.device)
        place_E = self.history + 1 + number_E - end_U[user_E]
        kept_E = place_E > 0
        at_E, place_E = at_E[kept_E], place_E[kept_E]

        key_E, order_E = (train.user[at_E] * store.schema.V + train.item[at_E]).sort(stable=True)
        is_last_E = torch.ones_like(key_E, dtype=torch.bool)
        is_last_E[:-1] = key_E[1:] != key_E[:-1]
        last_E = order_E[is_last_E].sort().values
        at_E = at_E[last_E]
        return train.user[at_E], train.item[at_E].long(), place_E[last_E], train.time[at_E]

    def _keep_pairs(self, item_E: Tensor, session_E: Tensor, n_sessions: int) -> None:
        """The events by item, and of each item those of the most recent sessions."""
        item_P, order_P = item_E.sort(stable=True)
        n_pairs_V = torch.bincount(item_E, minlength=len(self.prior_V))
        first_V = n_pairs_V.cumsum(0) - n_pairs_V
        rank_P = torch.arange(len(item_P), device=item_P.device) - first_V[item_P]
        order_P = order_P[rank_P < self.sample]
        n_pairs_V = n_pairs_V.clamp(max=self.sample)
        self._keep("pair_ptr_V", F.pad(n_pairs_V.cumsum(0), (1, 0)))
        self._keep("session_P", F.pad(session_E[order_P], (0, 1), value=n_sessions))

    def _keep(self, name: str, value: Tensor) -> None:
        dtype = torch.int64 if name == "time_S" else torch.int32
        setattr(self, name, value.to(self.prior_V.device, dtype))

    # Scores

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        item_BL = items_read(query, self.history, self.codes)
        time_BL = query.time_BL
        last_B1 = time_BL.amax(1, keepdim=True) if time_BL.shape[1] else time_BL.new_zeros(1)
        if torch.compiler.is_exporting():
            return self._score_rows(item_BL, last_B1, item_BC, self.history)
        if len(query) == 0:
            n_columns = len(self.prior_V) - 1 if item_BC is None else item_BC.shape[1]
            return self.prior_V.new_empty(0, n_columns)
        n_events = max(1, int(self.event_ptr_S.diff().max()))
        n_pairs = int(self.pair_ptr_V.diff()[item_BL].sum(1).max())
        widest = max(n_pairs, item_BL.shape[1] ** 2, self.k * n_events, len(self.prior_V))
        n_rows = max(1, _SCORED // widest)
        parts = []
        for start in range(0, len(query), n_rows):
            rows = slice(start, start + n_rows)
            candidates = None if item_BC is None else item_BC[rows]
            last = last_B1.expand(len(query), 1)[rows]
            parts.append(self._score_rows(item_BL[rows], last, candidates, n_events))
        return torch.cat(parts)

    def _score_rows(
        self, item_BL: Tensor, last_B1: Tensor, item_BC: Tensor | None, n_events: int
    ) -> Tensor:
        """last_B1: times of the last events of the histories. n_events: the most of a session."""
        length_B1 = (item_BL != 0).sum(1, keepdim=True)
        found = self._neighbors(item_BL, last_B1, length_B1, n_events)
        weight_BkL = self.event_weights(found, length_B1)
        term_BkL = found.similarity_Bk.unsqueeze(-1)
        if weight_BkL is not None:
            term_BkL = term_BkL * weight_BkL
        s_BV = self.prior_V.repeat(item_BL.shape[0], 1)
        # What is added for padding goes to item 0, which has no score.
        s_BV.scatter_add_(
            1, found.item_BkL.flatten(1), term_BkL.expand_as(found.item_BkL).flatten(1)
        )
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)

    def _neighbors(
        self, item_BL: Tensor, last_B1: Tensor, length_B1: Tensor, n_events: int
    ) -> Neighbors:
        """Compare the histories with the sessions that share an item with them."""
        is_event_BL = item_BL != 0
        is_counted_BL = is_event_BL & ~_comes_again(item_BL)
        item_BL = item_BL * is_counted_BL
        position_BL = is_event_BL.cumsum(1)
        dtype = self.prior_V.dtype
        weight_BL = self.item_weights(position_BL.to(dtype), length_B1.to(dtype))
        sum_BN, session_BN = self._sums(item_BL, weight_BL * is_counted_BL)

        size_BN = self.event_ptr_S.diff()[session_BN]
        days_BN = (last_B1 - self.time_S[session_BN]).abs().to(dtype) / _DAY
        n_items_B1 = is_counted_BL.sum(1, keepdim=True)
        similarity_BN = self.similarities(
            sum_BN, n_items_B1.clamp_min(1), size_BN.clamp_min(1), days_BN
        )
        is_candidate_BN = sum_BN > 0
        if sum_BN.shape[1] > self.sample:
            is_candidate_BN &= is_candidate_BN.cumsum(1, dtype=torch.int32) <= self.sample
        similarity_BN = torch.where(is_candidate_BN, similarity_BN, 0.0)

        best_Bk = largest(similarity_BN, min(self.k, similarity_BN.shape[1]))
        session_Bk = session_BN.expand_as(sum_BN).gather(1, best_Bk)
        item_BkL, place_BkL = self._events_of(session_Bk, n_events)
        position_BV = position_BL.new_zeros(item_BL.shape[0], len(self.prior_V))
        return Neighbors(
            similarity_Bk=similarity_BN.gather(1, best_Bk),
            item_BkL=item_BkL,
            place_BkL=place_BkL,
            position_BV=position_BV.scatter(1, item_BL, position_BL * is_counted_BL),
        )

    def _events_of(self, session_Bk: Tensor, n_events: int) -> tuple[Tensor, Tensor]:
        """Items and places of the sessions' events, [B, k, n_events]."""
        first_Bk1 = self.event_ptr_S[session_Bk].unsqueeze(-1)
        end_Bk1 = self.event_ptr_S[session_Bk + 1].unsqueeze(-1)
        at_BkL = first_Bk1 + torch.arange(n_events, device=session_Bk.device)
        at_BkL = torch.where(at_BkL < end_Bk1, at_BkL, len(self.item_E) - 1)
        return self.item_E[at_BkL].long(), self.place_E[at_BkL].long()

    def _sums(self, item_BL: Tensor, weight_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the weights of the items that a history and a session share, [B, N], and the
        numbers of the sessions, ascending, [B, N] or, of all rows, [1, N]; S for none.

        item_BL: 0 where an event does not count.
        """
        n_sessions = len(self.time_S) - 1
        if torch.compiler.is_exporting():
            return self._padded_sums(item_BL, weight_BL)
        first_BL = self.pair_ptr_V[item_BL]
        n_BL = self.pair_ptr_V[item_BL + 1] - first_BL
        n_M = n_BL.flatten()
        # P: the pairs of all events of all rows, one event after another.
        n_before_M = n_M.cumsum(0) - n_M
        at_P = (first_BL.flatten() - n_before_M).repeat_interleave(n_M)
        at_P += torch.arange(len(at_P), device=at_P.device)
        weight_P = weight_BL.flatten().repeat_interleave(n_M)
        n_columns = n_sessions + 1
        row_B1 = torch.arange(len(item_BL), device=item_BL.device)[:, None]
        key_P = (row_B1 * n_columns).expand_as(n_BL).flatten().repeat_interleave(n_M)
        key_P += self.session_P[at_P]
        if n_sessions * len(item_BL) <= COMPACT * len(key_P):
            sum_M = weight_P.new_zeros(len(item_BL) * n_columns).index_add_(0, key_P, weight_P)
            session_1N = torch.arange(n_columns, device=item_BL.device)[None]
            return sum_M.view(-1, n_columns), session_1N
        return self._sums_of_first(key_P, weight_P, len(item_BL))

    def _sums_of_first(self, key_P: Tensor, weight_P: Tensor, B: int) -> tuple[Tensor, Tensor]:
        """``_sums`` of the first ``sample`` sessions of each row, without the others.

        key_P: row times (S + 1), plus the session.
        """
        n_columns = len(self.time_S)
        key_Q, number_P = key_P.unique(return_inverse=True)
        sum_Q = weight_P.new_zeros(len(key_Q)).index_add_(0, number_P, weight_P)
        row_Q = key_Q // n_columns
        n_B = torch.bincount(row_Q, minlength=B)
        rank_Q = torch.arange(len(key_Q), device=key_Q.device) - (n_B.cumsum(0) - n_B)[row_Q]
        is_kept_Q = rank_Q < self.sample
        at_Q = (row_Q[is_kept_Q], rank_Q[is_kept_Q])
        width = min(self.sample, int(n_B.max())) + 1  # the last one is none
        session_BN = key_Q.new_full((B, width), n_columns - 1)
        session_BN[at_Q] = (key_Q % n_columns)[is_kept_Q]
        sum_BN = sum_Q.new_zeros(B, width)
        sum_BN[at_Q] = sum_Q[is_kept_Q]
        return sum_BN, session_BN

    def _padded_sums(self, item_BL: Tensor, weight_BL: Tensor) -> tuple[Tensor, Tensor]:
        """``_sums`` in operations that an exported graph can have."""
        first_BL1 = self.pair_ptr_V[item_BL].unsqueeze(-1)
        end_BL1 = self.pair_ptr_V[item_BL + 1].unsqueeze(-1)
        at_BLn = first_BL1 + torch.arange(self.sample, device=item_BL.device)
        is_pair_BLn = at_BLn < end_BL1
        at_BM = torch.where(is_pair_BLn, at_BLn, len(self.session_P) - 1).flatten(1)
        weight_BM = (weight_BL.unsqueeze(-1) * is_pair_BLn).flatten(1)
        zeros_BN = weight_BL.new_zeros(item_BL.shape[0], len(self.time_S))
        sum_BN = zeros_BN.scatter_add(1, self.session_P[at_BM].long(), weight_BM)
        return sum_BN, torch.arange(len(self.time_S), device=item_BL.device)[None]


def _comes_again(item_BL: Tensor) -> Tensor:
    """Whether the same item stands later in the row, bool [B, L]."""
    is_same_BLL = item_BL.unsqueeze(2) == item_BL.unsqueeze(1)
    return is_same_BLL.triu(1).any(2)
