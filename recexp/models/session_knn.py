"""Session-based nearest neighbors: items of the training sequences that resemble the history."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.models.common import behavior_codes, items_read
from recexp.nn.co_occurrence import largest
from recexp.nn.parameters import Count, NonNegative, Positive, one_of, require_positive
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

# Of sessions. Its square is a whole number of single precision.
SessionLength = Annotated[int, Field(ge=1, le=4000)]
Variant = Literal["sknn", "s_sknn", "v_sknn"]
_SCORED = 1 << 22  # numbers gathered at a time
# Rows number their sessions anew where there are more than so many sessions per pair.
COMPACT = 4
_DAY = 86_400_000.0  # milliseconds


@dataclass
class _Matches:
    """Pairs of an item of the history and a training session that has it, M per row.

    number_BM: column of the session in session_BN. weight_BM: of the item, 0 where there is no
    pair. key_BM: position of the item in the history times (max_len + 1), plus its place in the
    session. session_BN: numbers of sessions, S where there is none.
    """

    number_BM: Tensor
    weight_BM: Tensor
    key_BM: Tensor
    session_BN: Tensor


@dataclass
class Neighbors:
    """The most similar sessions of each history, [B, k]. Those of similarity 0 are none.

    position_Bk: in the history, of its most recent item that the session has. place_Bk: of this
    item in the session.
    """

    session_Bk: Tensor
    similarity_Bk: Tensor
    position_Bk: Tensor
    place_Bk: Tensor


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
    place_P: Tensor
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
            "place_P",
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
        history and of the session. days_BN: between their last events.
        """

    @abstractmethod
    def event_weights(self, found: Neighbors, length_B1: Tensor, place_BkL: Tensor) -> Tensor:
        """w of the events of the neighbors, [B, k, L] or [B, k, 1]. length_B1: of the history."""

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
        self._keep_pairs(item_E, session_E, place_E, len(user_S))

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

    def _keep_pairs(
        self, item_E: Tensor, session_E: Tensor, place_E: Tensor, n_sessions: int
    ) -> None:
        """The events by item, and of each item those of the most recent sessions."""
        item_P, order_P = item_E.sort(stable=True)
        n_pairs_V = torch.bincount(item_E, minlength=len(self.prior_V))
        first_V = n_pairs_V.cumsum(0) - n_pairs_V
        rank_P = torch.arange(len(item_P), device=item_P.device) - first_V[item_P]
        order_P = order_P[rank_P < self.sample]
        n_pairs_V = n_pairs_V.clamp(max=self.sample)
        self._keep("pair_ptr_V", F.pad(n_pairs_V.cumsum(0), (1, 0)))
        self._keep("session_P", F.pad(session_E[order_P], (0, 1), value=n_sessions))
        self._keep("place_P", F.pad(place_E[order_P], (0, 1)))

    def _keep(self, name: str, value: Tensor) -> None:
        dtype = torch.int64 if name == "time_S" else torch.int32
        setattr(self, name, value.to(self.prior_V.device, dtype))

    # Scores

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        if torch.compiler.is_exporting():
            return self._score_rows(query, item_BC, self.sample, self.history)
        if len(query) == 0:
            n_columns = len(self.prior_V) - 1 if item_BC is None else item_BC.shape[1]
            return self.prior_V.new_empty(0, n_columns)
        n_pairs = min(self.sample, int(self.pair_ptr_V.diff().max()))
        n_events = int(self.event_ptr_S.diff().max())
        length = min(query.item_BL.shape[1], self.history)
        widest = max(length * n_pairs, length**2, self.k * n_events, len(self.prior_V))
        n_rows = max(1, _SCORED // widest)
        parts = []
        for start in range(0, len(query), n_rows):
            rows = slice(start, start + n_rows)
            candidates = None if item_BC is None else item_BC[rows]
            parts.append(self._score_rows(query[rows], candidates, n_pairs, n_events))
        return torch.cat(parts)

    def _score_rows(
        self, query: Query, item_BC: Tensor | None, n_pairs: int, n_events: int
    ) -> Tensor:
        """n_pairs, n_events: the most of an item, and of a session."""
        item_BL = items_read(query, self.history, self.codes)
        length_B1 = (item_BL != 0).sum(1, keepdim=True)
        found = self._neighbors(item_BL, query.time_BL, length_B1, n_pairs)

        first_Bk1 = self.event_ptr_S[found.session_Bk].unsqueeze(-1)
        end_Bk1 = self.event_ptr_S[found.session_Bk + 1].unsqueeze(-1)
        at_BkL = first_Bk1 + torch.arange(n_events, device=item_BL.device)
        is_event_BkL = at_BkL < end_Bk1
        at_BkL = torch.where(is_event_BkL, at_BkL, len(self.item_E) - 1)
        weight_BkL = self.event_weights(found, length_B1, self.place_E[at_BkL])
        term_BkL = found.similarity_Bk.unsqueeze(-1) * weight_BkL * is_event_BkL
        s_BV = self.prior_V.repeat(item_BL.shape[0], 1)
        s_BV.scatter_add_(1, self.item_E[at_BkL].flatten(1).long(), term_BkL.flatten(1))
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)

    def _neighbors(
        self, item_BL: Tensor, time_BL: Tensor, length_B1: Tensor, n_pairs: int
    ) -> Neighbors:
        """Compare the histories with the sessions that share an item with them."""
        is_event_BL = item_BL != 0
        is_counted_BL = is_event_BL & ~_comes_again(item_BL)
        position_BL = is_event_BL.cumsum(1)
        pairs = self._pairs(item_BL * is_counted_BL, position_BL, length_B1, n_pairs)
        session_BN = pairs.session_BN
        zeros_BN = torch.zeros_like(session_BN, dtype=self.prior_V.dtype)
        sum_BN = zeros_BN.scatter_add(1, pairs.number_BM, pairs.weight_BM)
        key_BN = zeros_BN.scatter_reduce(1, pairs.number_BM, pairs.key_BM, "amax").long()

        size_BN = self.event_ptr_S.diff()[session_BN]
        last_B1 = time_BL.amax(1, keepdim=True) if time_BL.shape[1] else length_B1
        days_BN = (last_B1 - self.time_S[session_BN]).abs().to(sum_BN.dtype) / _DAY
        n_items_B1 = is_counted_BL.sum(1, keepdim=True)
        similarity_BN = self.similarities(
            sum_BN, n_items_B1.clamp_min(1), size_BN.clamp_min(1), days_BN
        )
        is_candidate_BN = sum_BN > 0
        is_candidate_BN &= is_candidate_BN.cumsum(1) <= self.sample
        similarity_BN = torch.where(is_candidate_BN, similarity_BN, 0.0)

        best_Bk = largest(similarity_BN, min(self.k, similarity_BN.shape[1]))
        key_Bk = key_BN.gather(1, best_Bk)
        return Neighbors(
            session_Bk=session_BN.gather(1, best_Bk),
            similarity_Bk=similarity_BN.gather(1, best_Bk),
            position_Bk=key_Bk // (self.history + 1),
            place_Bk=key_Bk % (self.history + 1),
        )

    def _pairs(
        self, item_BL: Tensor, position_BL: Tensor, length_B1: Tensor, n_pairs: int
    ) -> _Matches:
        """item_BL: 0 where an event does not count. n_pairs: the most of an item."""
        dtype = self.prior_V.dtype
        first_BL1 = self.pair_ptr_V[item_BL].unsqueeze(-1)
        end_BL1 = self.pair_ptr_V[item_BL + 1].unsqueeze(-1)
        at_BLn = first_BL1 + torch.arange(n_pairs, device=item_BL.device)
        is_pair_BLn = at_BLn < end_BL1
        at_BM = torch.where(is_pair_BLn, at_BLn, len(self.session_P) - 1).flatten(1)
        session_BM = self.session_P[at_BM].long()

        weight_BL = self.item_weights(position_BL.to(dtype), length_B1.to(dtype))
        weight_BM = (weight_BL.unsqueeze(-1) * is_pair_BLn).flatten(1)
        key_BLn = position_BL.unsqueeze(-1) * (self.history + 1) * is_pair_BLn
        key_BM = (key_BLn.flatten(1) + self.place_P[at_BM]).to(dtype)
        n_sessions = len(self.time_S) - 1
        if n_sessions <= COMPACT * session_BM.shape[1] or torch.compiler.is_exporting():
            session_BN = torch.arange(n_sessions + 1, device=item_BL.device)
            session_BN = session_BN.expand(item_BL.shape[0], -1)
            return _Matches(session_BM, weight_BM, key_BM, session_BN)
        number_BM, session_BN = _numbered(session_BM, self.sample, n_sessions)
        weight_BM = weight_BM * (number_BM < self.sample)
        return _Matches(number_BM, weight_BM, key_BM, session_BN)


def _comes_again(item_BL: Tensor) -> Tensor:
    """Whether the same item stands later in the row, bool [B, L]."""
    is_same_BLL = item_BL.unsqueeze(2) == item_BL.unsqueeze(1)
    return is_same_BLL.triu(1).any(2)


def _numbered(session_BM: Tensor, most: int, n_sessions: int) -> tuple[Tensor, Tensor]:
    """The sessions of each row numbered in their order, and the sessions of these numbers.

    Sessions after the first ``most`` ones of a row have the number ``most``, and so has session
    n_sessions, which stands for none.
    """
    sorted_BM, order_BM = session_BM.sort(dim=1)
    is_new_BM = torch.ones_like(sorted_BM, dtype=torch.bool)
    is_new_BM[:, 1:] = sorted_BM[:, 1:] != sorted_BM[:, :-1]
    number_BM = (is_new_BM.cumsum(1) - 1).clamp_(max=most)
    number_BM.masked_fill_(sorted_BM == n_sessions, most)
    session_BN = sorted_BM.new_full((len(sorted_BM), most + 1), n_sessions)
    session_BN.scatter_(1, number_BM, sorted_BM)
    session_BN[:, most] = n_sessions
    return torch.empty_like(number_BM).scatter_(1, order_BM, number_BM), session_BN


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

    def event_weights(self, found: Neighbors, length_B1: Tensor, place_BkL: Tensor) -> Tensor:
        weight_Bk = torch.ones_like(found.similarity_Bk)
        if self.variant == "s_sknn":
            weight_Bk = found.position_Bk.to(weight_Bk.dtype) / length_B1.clamp_min(1)
        return weight_Bk.unsqueeze(-1)


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

    def event_weights(self, found: Neighbors, length_B1: Tensor, place_BkL: Tensor) -> Tensor:
        if self.distance_scale is None:
            return torch.ones_like(found.similarity_Bk).unsqueeze(-1)
        distance_BkL = (place_BkL - found.place_Bk.unsqueeze(-1)).abs()
        return torch.exp(-distance_BkL.to(self.prior_V.dtype) / self.distance_scale)
