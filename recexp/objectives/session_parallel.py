"""Sessions in parallel, one event per step, the other sessions' targets as negatives.

Hidasi et al. 2016 (GRU4Rec), arXiv:1511.06939; Hidasi and Karatzoglou 2018 (GRU4Rec+),
arXiv:1706.03847.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.data import Sampler

from recexp.contracts import NegativeSampler, Objective, SampledLoss, SessionState
from recexp.data.store import Events, Store, elements
from recexp.distributed import rank_and_world
from recexp.errors import RecexpError
from recexp.nn.cpu.closed_form import closed_form_helps
from recexp.nn.cpu.session_step import session_step
from recexp.objectives.base import check_loss, check_sampler, random_rows
from recexp.objectives.losses import TOP1, closed_form_of
from recexp.types import Query, SampledScores


@dataclass
class SessionBatch:
    """One step of the S sessions that are not over."""

    item_S: Tensor  # the event to read
    target_S: Tensor  # the next one
    start_S: Tensor  # bool: the session's first step
    slot_S: Tensor  # index of the session's hidden state
    negative_n: Tensor  # common to all: the targets, then ``n_negatives`` drawn items
    query: Query | None = None  # the last two events up to the one to read, if the model wants them


@dataclass
class SessionParallel(Objective[SessionState, SessionBatch]):
    """Every user's training history is a session; ``batch_size`` sessions advance in lock-step.

    Where a session ends, the next one takes its slot with a state of zeros. Gradients are cut
    after each step. A session's negatives are the targets of the others, and ``n_negatives`` more
    from the sampler, common to all sessions and drawn from all items.

    loss: over negatives, but none that counts them: there are as many as sessions.
    target_copies: whether copies of a session's own target, drawn or the target of another session
        too, count as negatives. GRU4Rec's official code counts them. False leaves them out.
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    loss: SampledLoss = field(default_factory=TOP1)
    n_negatives: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    shared: Literal["batch"] = "batch"
    shuffle_targets: bool = False
    target_copies: bool = False

    needs = SessionState
    independent_rows = False
    # Targets of other sessions are as popular as a session's own, so popularity alone hardly lowers
    # the loss. GRU4Rec of width 16 is .09 to .12 below on ML-1M.
    learned_share = 0.05

    def __post_init__(self) -> None:
        check_loss(self, self.loss, SampledLoss)
        name = type(self.loss).__name__
        if self.loss.counts_negatives:
            raise RecexpError(
                f"loss={name} counts its negatives, which session_parallel has as many of as "
                "sessions: choose another loss over sampled negatives."
            )
        if self.n_negatives < 0 or self.shared != "batch":
            raise RecexpError(
                "session_parallel shares its negatives in the batch: n_negatives >= 0, "
                "shared=batch."
            )
        if self.loss.needs_log_q:
            raise RecexpError(
                f"loss={name} with loss.log_q=true: session_parallel's negatives, the other "
                "sessions' targets and the sampler's items, follow two distributions, so it has no "
                "such correction. Set loss.log_q=false."
            )
        if self.n_negatives > 0:
            check_sampler(self.sampler, shared=True)
        self._hidden: Tensor | None = None  # [layers, slots, D]
        self._starts_of: Events | None = None
        self._reads_events = False

    def bind(self, model: SessionState, store: Store) -> None:
        super().bind(model, store)
        self._n_items = store.schema.n_items
        self._reads_events = model.reads_events
        self._hidden = None

    def state(self) -> dict[str, Any]:
        """The sessions' hidden states, for a run that goes on in the middle of an epoch."""
        return {"state": self._hidden}

    def load_state(self, state: dict[str, Any]) -> None:
        self._hidden = state["state"]

    def rows(self, store: Store) -> Tensor:
        """Every training event but the first of each user."""
        user = store.train.user
        return 1 + torch.nonzero(user[1:] == user[:-1]).flatten()

    def constant_loss(self, store: Store, batch_size: int) -> float:
        """Approximate: sessions' own targets among the others' are left out of the loss."""
        steps = self.batches(store, batch_size, seed=0)
        n_sessions, n_steps = steps.n_sessions_of_step().unique(return_counts=True)
        n_negatives = n_sessions - 1 + self.n_negatives
        losses = [
            self.loss.constant_of_sampled(n, store.schema.n_items) for n in n_negatives.tolist()
        ]
        mean = torch.tensor(losses, dtype=torch.float64) @ n_steps.double() / n_steps.sum()
        return float(mean)

    def batches(self, store: Store, batch_size: int, seed: int) -> SessionSteps:
        return SessionSteps(store.train.ptr.cpu(), batch_size, seed)

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> SessionBatch:
        slot_S = torch.nonzero(rows).flatten()
        row_S = rows.index_select(0, slot_S)
        target_row_S = row_S
        if self.shuffle_targets:
            target_row_S = random_rows(store, row_S.shape, generator)
        target_S = elements(store.train.item, target_row_S).long()
        negative_n = target_S
        if self.n_negatives:
            drawn_n = self.sampler.draw_shared(store, self.n_negatives, generator, target_S)
            negative_n = torch.cat([target_S, drawn_n])
        start_S = elements(self._starts(store), row_S)
        item_S = elements(store.train.item, row_S - 1).long()
        query = store.query(row_S, length=2) if self._reads_events else None
        return SessionBatch(item_S, target_S, start_S, slot_S, negative_n, query)

    def _starts(self, store: Store) -> Tensor:
        """bool [events]: is this the second event of a session? Cached per store."""
        if self._starts_of is not store.train:
            ptr = store.train.ptr
            second_U = ptr[:-1][ptr[1:] - ptr[:-1] >= 2] + 1
            self._starts_E = torch.zeros_like(store.train.item, dtype=torch.bool)
            self._starts_E[second_U] = True
            self._starts_of = store.train
        return self._starts_E

    def losses(self, model: SessionState, batch: SessionBatch) -> dict[str, Tensor]:
        before = self._states_before(model, batch)
        form = closed_form_of(self.loss)
        layers = model.gru_layers() if model.scores_by_gru_layers else None
        if form is not None and layers is not None and closed_form_helps(before):
            counts_Sn = self._counts(batch).to(before.dtype)
            loss, after = session_step(
                layers, form, batch.item_S, batch.negative_n, counts_Sn, before
            )
        else:
            if batch.query is None:
                h_SD, after = model.step(batch.item_S, before)
            else:
                h_SD, after = model.step(batch.item_S, before, batch.query)
            loss = self._loss(model, batch, model.head(h_SD))
        self._keep(batch, after)
        return {"loss": loss}

    def _loss(self, model: SessionState, batch: SessionBatch, h_SD: Tensor) -> Tensor:
        """The mean loss of the states."""
        vectors_nD, bias_n = model.item_vectors(batch.negative_n)
        score_Sn = F.linear(h_SD, vectors_nD, bias_n)
        if self.loss.activates:
            score_Sn = model.final_activation(score_Sn)
        # The first S negatives are the targets, each of them its own session's positive.
        positive_S = score_Sn.diagonal()
        # Through integers: on CPUs torch compares into booleans ten times as slowly.
        mask_Sn = self._counts(batch).to(torch.uint8).view(torch.bool)
        return self.loss.of_sampled(SampledScores(positive_S, score_Sn, self._n_items, mask_Sn))

    def _states_before(self, model: SessionState, batch: SessionBatch) -> Tensor:
        """The states [layers, S, D] of the batch's sessions, zero where a session starts."""
        hidden = self._hidden_of(model, batch)  # [layers, slots, D]
        new_slots = batch.slot_S[batch.start_S]
        if len(new_slots):
            hidden[:, new_slots] = 0
        self._hidden = hidden
        return hidden if len(batch.slot_S) == hidden.shape[1] else hidden[:, batch.slot_S]

    def _keep(self, batch: SessionBatch, after: Tensor) -> None:
        """Keep the states [layers, S, D] for the next step."""
        assert self._hidden is not None
        after = after.detach().to(self._hidden.dtype)
        if len(batch.slot_S) == self._hidden.shape[1]:
            # Not in place: the backward pass needs the states of before.
            self._hidden = after
        else:
            self._hidden[:, batch.slot_S] = after

    def _hidden_of(self, model: SessionState, batch: SessionBatch) -> Tensor:
        """Hidden states with at least as many slots as the batch uses, on its device."""
        n_slots = int(batch.slot_S[-1]) + 1
        hidden = self._hidden
        if hidden is None or hidden.shape[1] < n_slots:
            # Happens before any session's first step only, so no state is lost.
            hidden = model.initial_state(n_slots)
        # The state of a checkpoint was loaded on the host.
        return hidden.to(batch.item_S.device)

    def _counts(self, batch: SessionBatch) -> Tensor:
        """int32 [S, n]: 1 where an item is a negative of a session, 0 elsewhere."""
        target_S1 = batch.target_S.int()[:, None]
        counts_Sn = target_S1.new_empty(len(target_S1), len(batch.negative_n))
        if self.target_copies:
            return counts_Sn.fill_(1).fill_diagonal_(0)
        return torch.ne(batch.negative_n.int(), target_S1, out=counts_Sn)


class SessionSteps(Sampler[Tensor]):
    """Per step, the row of ``store.train`` that each slot is to predict next.

    0, which is never a target, stands for a slot without a session left. Sessions are dealt
    longest first, each to the slot with the fewest steps, so that all slots last about equally
    long; their order within a slot is shuffled in every epoch. With several processes the slots are
    shared out, and the last steps that not all processes have are left out.
    """

    def __init__(self, ptr: Tensor, batch_size: int, seed: int) -> None:
        rank, world = rank_and_world()
        n_steps_U = (ptr[1:] - ptr[:-1] - 1).clamp(min=0)
        n_sessions = int((n_steps_U > 0).sum())
        if n_sessions == 0:
            raise RecexpError(
                "objective=SessionParallel finds nothing to train on: no user has two training "
                "events. Loosen dataset.filters, or choose a model that learns from single events, "
                "such as model=bpr_mf."
            )
        session_N = n_steps_U.argsort(descending=True, stable=True)[:n_sessions]
        self.n_slots = min(batch_size * world, n_sessions)
        self.first_row_N = ptr[session_N] + 1
        self.n_steps_N = n_steps_U[session_N]
        self.slot_N, self.n_steps_of_slot = _dealt(self.n_steps_N, self.n_slots)
        self.n_batches = min(int(self.n_steps_of_slot[r::world].max()) for r in range(world))
        self.longest = int(self.n_steps_of_slot.max())
        self.own_slots = slice(rank, None, world)
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_batches

    def n_sessions_of_step(self) -> Tensor:
        """int64 [steps]: sessions that are not over, of this process."""
        n_steps_S = self.n_steps_of_slot[self.own_slots]
        n_ended_T = torch.bincount(n_steps_S, minlength=self.longest + 1).cumsum(0)
        return (len(n_steps_S) - n_ended_T)[: self.n_batches]

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order_N = torch.randperm(len(self.slot_N), generator=generator)
        order_N = order_N[self.slot_N[order_N].argsort(stable=True)]

        # E: all targets, sessions of a slot one after the other.
        n_steps_N = self.n_steps_N[order_N]
        slot_E = self.slot_N[order_N].repeat_interleave(n_steps_N)
        first_E = (n_steps_N.cumsum(0) - n_steps_N).repeat_interleave(n_steps_N)
        within_session_E = torch.arange(len(slot_E)) - first_E
        row_E = self.first_row_N[order_N].repeat_interleave(n_steps_N) + within_session_E
        length_S = torch.bincount(slot_E, minlength=self.n_slots)
        step_E = torch.arange(len(slot_E)) - (length_S.cumsum(0) - length_S)[slot_E]

        grid = torch.zeros(self.longest, self.n_slots, dtype=torch.int64)
        grid[step_E, slot_E] = row_E
        skip = self.skip
        self.skip = 0
        yield from grid[skip : self.n_batches, self.own_slots]


def _dealt(n_steps_N: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
    """The slot of each session, [N], and the steps of each slot, int64 [n_slots].

    n_steps_N: descending. Each session goes to the slot with the fewest steps so far. Graham 1969,
    Bounds on multiprocessing timing anomalies, https://doi.org/10.1137/0117039.
    """
    loads = [(0, slot) for slot in range(n_slots)]  # a heap: the first slot has the fewest steps
    slots = []
    for n_steps in n_steps_N.tolist():
        load, slot = loads[0]
        heapq.heapreplace(loads, (load + n_steps, slot))
        slots.append(slot)
    n_steps_of_slot = torch.zeros(n_slots, dtype=torch.int64)
    for load, slot in loads:
        n_steps_of_slot[slot] = load
    return torch.tensor(slots, dtype=torch.int64), n_steps_of_slot
