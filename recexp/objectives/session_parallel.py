"""Histories side by side, one event per step, the other histories' targets as negatives.

Hidasi et al. 2016 (GRU4Rec), arXiv:1511.06939; Hidasi and Karatzoglou 2018 (GRU4Rec+),
arXiv:1706.03847.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from recexp.contracts import SessionState, require
from recexp.distributed import rank_and_world
from recexp.errors import RecexpError
from recexp.objectives import losses
from recexp.objectives.base import check_sampler, somebody
from recexp.objectives.sequence import SequenceObjective

SAMPLED = ("bce", "bpr", "sampled_softmax", "top1", "top1_max", "bpr_max")


@dataclass
class SessionBatch:
    """One step of the sessions that are not over: S of them."""

    item_S: Tensor  # the event read now
    target_S: Tensor  # the next one
    start_S: Tensor  # bool: the session's first step
    slot_S: Tensor  # which of the states carried along belongs to it
    negative_n: Tensor  # common to all: the targets, then ``n_negatives`` drawn items


@dataclass
class SessionParallel(SequenceObjective):
    """Every user's training history is a session. ``batch_size`` sessions advance in lock-step; where one ends, the next takes its slot with a state
    of zeros. Gradients are cut after each step. A session's negatives are the targets of the others, and ``n_negatives`` more from the sampler,
    common to all sessions and drawn from all items, whatever their users have.

    target_copies: whether copies of a session's own target, drawn or the target of another session
    too, count as negatives. GRU4Rec's official code counts them. False leaves them out.
    """

    loss_name: str = "top1"
    n_negatives: int = 0
    shared: str = "batch"
    target_copies: bool = False

    needs = SessionState
    independent_rows = False

    def __post_init__(self):
        if self.loss_name not in SAMPLED:
            raise RecexpError(
                f"objective.loss_name={self.loss_name!r}: session_parallel knows {', '.join(SAMPLED)}."
            )
        if self.n_negatives < 0 or self.shared != "batch":
            raise RecexpError(
                "session_parallel shares its negatives in the batch: n_negatives >= 0, shared=batch."
            )
        if self.log_q:
            raise RecexpError(
                "objective.log_q=true: session_parallel's negatives, the other sessions' targets "
                "and the sampler's items, follow two laws, so it has no such correction. Set "
                "objective.log_q=false."
            )
        if self.n_negatives > 0:
            check_sampler(self.sampler, shared=True)

    def check(self, model, store) -> None:
        require(type(model), type(self))

    def bind(self, model, store) -> None:
        super().bind(model, store)
        self._state = None

    def state(self) -> dict[str, Tensor | None]:
        """The sessions' states, for a run that goes on in the middle of an epoch."""
        return {"state": self._state}

    def load_state(self, state: dict[str, Tensor | None]) -> None:
        self._state = state["state"]

    def rows(self, store) -> Tensor:
        user = store.train.user
        return 1 + torch.nonzero(user[1:] == user[:-1]).flatten()

    def constant_loss(self, store, batch_size: int) -> float:
        """Close, not exact: sessions' own targets among the others' are left out of the loss."""
        sessions = int((store.train.ptr[1:] - store.train.ptr[:-1] >= 2).sum())
        n = max(1, min(batch_size, sessions) - 1 + self.n_negatives)
        return losses.constant(self.loss_name, n, store.schema.n_items, self.t)

    def batches(self, store, batch_size: int, seed: int) -> Sampler:
        """What deals out the rows instead of a shuffle: see ``SessionSteps``."""
        return SessionSteps(store.train.ptr.cpu(), batch_size, seed)

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> SessionBatch:
        slot_S = torch.nonzero(rows).flatten()
        row_S = rows[slot_S]
        user_S = store.train.user[row_S]
        target_S = store.train.item[
            somebody(store, row_S.shape, generator) if self.shuffle_targets else row_S
        ].long()
        negative_n = target_S
        if self.n_negatives:
            drawn = self.sampler.draw_shared(store, self.n_negatives, generator, target_S)
            negative_n = torch.cat([target_S, drawn])
        return SessionBatch(
            store.train.item[row_S - 1].long(),
            target_S,
            row_S - 1 == store.train.ptr[user_S],
            slot_S,
            negative_n,
        )

    def loss(self, model, batch: SessionBatch) -> dict[str, Tensor]:
        slots = int(batch.slot_S[-1]) + 1
        if self._state is None or self._state.shape[1] < slots:
            self._state = model.initial_state(
                slots
            )  # before any session's first step, so nothing is lost
        self._state = self._state.to(batch.item_S.device)  # a checkpoint's comes from the host
        h_SD, state = model.step(
            batch.item_S, self._state[:, batch.slot_S] * ~batch.start_S[:, None]
        )
        self._state[:, batch.slot_S] = state.detach().to(self._state.dtype)
        mask_Sn = self._counts(batch)
        h_SD = model.head(h_SD)
        return {"loss": self._sampled(model, h_SD, batch.target_S, batch.negative_n, mask_Sn)}

    def _counts(self, batch: SessionBatch) -> Tensor:
        """bool [S, n]: is this item a negative of this session?"""
        if not self.target_copies:
            return batch.negative_n != batch.target_S[:, None]
        shape = (len(batch.target_S), len(batch.negative_n))
        own_Sn = torch.eye(*shape, dtype=torch.bool, device=batch.target_S.device)
        return ~own_Sn


class SessionSteps(Sampler[Tensor]):
    """Per step the row of ``store.train`` each slot is to predict next, 0 (never a target) where the slot has no session left.

    Sessions are dealt to slots longest first, to and fro, so that all slots last about equally long; their order within a slot is shuffled anew for
    every epoch. With several processes the slots are shared out, and the last steps that not all processes have are left out.
    """

    def __init__(self, ptr: Tensor, batch_size: int, seed: int) -> None:
        rank, world = rank_and_world()
        steps = (ptr[1:] - ptr[:-1] - 1).clamp(min=0)
        session = steps.argsort(descending=True, stable=True)[: int((steps > 0).sum())]
        self.slots = min(batch_size * world, len(session))
        lap, place = (
            torch.arange(len(session)) // self.slots,
            torch.arange(len(session)) % self.slots,
        )
        self.slot = torch.where(lap % 2 == 1, self.slots - 1 - place, place)
        self.first_row, self.steps = ptr[session] + 1, steps[session]
        load = torch.bincount(self.slot, self.steps.double(), minlength=self.slots).long()
        self.length = min(int(load[r::world].max()) for r in range(world))
        self.mine, self.depth = slice(rank, None, world), int(load.max())
        self.seed, self.epoch, self.skip = seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.slot), generator=generator)
        order = order[self.slot[order].argsort(stable=True)]
        slot, steps = self.slot[order].repeat_interleave(self.steps[order]), self.steps[order]
        within = torch.arange(len(slot)) - (steps.cumsum(0) - steps).repeat_interleave(steps)
        load = torch.bincount(slot, minlength=self.slots)
        depth = torch.arange(len(slot)) - (load.cumsum(0) - load)[slot]
        grid = torch.zeros(self.depth, self.slots, dtype=torch.int64)
        grid[depth, slot] = self.first_row[order].repeat_interleave(steps) + within
        skip, self.skip = self.skip, 0
        yield from grid[skip : self.length, self.mine]
