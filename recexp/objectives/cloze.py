"""Predict masked items from both sides (BERT4Rec's Cloze task)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp.objectives.sequence import SequenceObjective, read_window, window_ends
from recexp.types import Query, RecexpError, SequenceBatch


@dataclass
class Cloze(SequenceObjective):
    """mask_prob: share rho of a history's items that are masked, drawn anew every time; at least one, at most max_masked (None: no limit).

    count: "bernoulli" masks each item with probability mask_prob; "fixed" exactly max(1, round(mask_prob * length)) items (the authors' code).
    last_prob: probability that only the last item of a row is masked, as at prediction time (1 of 11 in the authors' data).
    one_mask: exactly one random item per row (Table 3). replace: shares of chosen items that become [MASK], a random item, or stay.
    step: windows older than the newest max_len events start every ``step`` events; a fraction is of max_len (authors: 0.5).
    """

    mask_prob: float = 0.2
    max_masked: int | None = None
    count: str = "bernoulli"
    last_prob: float = 1 / 11
    one_mask: bool = False
    replace: tuple[float, float, float] = (1.0, 0.0, 0.0)
    step: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mask_prob < 1 or not 0 <= self.last_prob <= 1:
            raise RecexpError(f"objective.mask_prob={self.mask_prob} must lie in (0, 1) and last_prob={self.last_prob} in [0, 1].")
        if self.count not in ("bernoulli", "fixed"):
            raise RecexpError(f"objective.count={self.count!r}: choose bernoulli or fixed.")
        if self.step <= 0 or (self.max_masked is not None and self.max_masked < 1):
            raise RecexpError(f"objective.step={self.step} must be positive, max_masked={self.max_masked} at least 1 or null.")
        if len(self.replace) != 3 or abs(sum(self.replace) - 1) > 1e-6 or min(self.replace) < 0:
            raise RecexpError(f"objective.replace={list(self.replace)} must be three shares that sum to 1.")

    def check(self, model, store) -> None:
        super().check(model, store)
        self._mask_id = store.schema.V

    def rows(self, store) -> Tensor:
        length = self._history + 1  # at prediction [MASK] takes one place
        return window_ends(store, length, max(1, int(self.step * length) if self.step < 1 else int(self.step)), least=2)

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        query = read_window(store, rows, self._history + 1)
        chosen_BL = self._choose(query.mask_BL, generator)
        target_BL = torch.where(chosen_BL, query.item_BL, 0)
        item_BL = self._replace(query.item_BL, chosen_BL, generator)
        masked_BL = item_BL == self._mask_id
        side = (query.behaviour_BL, query.time_BL, query.value_BL)
        query = Query(query.user_B, item_BL, *(None if c is None else c.masked_fill(masked_BL, 0) for c in side))
        return self._negatives(store, SequenceBatch(query, target_BL), generator)

    def _choose(self, real_BL: Tensor, generator: torch.Generator) -> Tensor:
        B, L = real_BL.shape
        draw_BL = torch.rand(B, L, generator=generator, device=real_BL.device).masked_fill(~real_BL, 2.0)
        length_B1 = real_BL.sum(1, keepdim=True)
        rank_BL = draw_BL.argsort(1).argsort(1)  # random order of the real items
        if self.one_mask:
            most = torch.ones_like(length_B1)
        elif self.count == "fixed":
            most = (length_B1 * self.mask_prob).round().long().clamp(min=1)
        else:
            most = (draw_BL < self.mask_prob).sum(1, keepdim=True).clamp(min=1)
        if self.max_masked is not None:
            most = most.clamp(max=self.max_masked)
        chosen_BL = real_BL & (rank_BL < most)
        only_last = torch.rand(B, 1, generator=generator, device=real_BL.device) < (0 if self.one_mask else self.last_prob)
        last_BL = torch.zeros_like(real_BL)
        last_BL[:, -1] = real_BL[:, -1]
        return torch.where(only_last, last_BL, chosen_BL)

    def _replace(self, item_BL: Tensor, chosen_BL: Tensor, generator: torch.Generator) -> Tensor:
        mask_share, random_share, _ = self.replace
        if mask_share == 1:
            return item_BL.masked_fill(chosen_BL, self._mask_id)
        draw = torch.rand(item_BL.shape, generator=generator, device=item_BL.device)
        other = torch.randint(1, self._mask_id, item_BL.shape, generator=generator, device=item_BL.device)
        changed = torch.where(draw < mask_share, self._mask_id, torch.where(draw < mask_share + random_share, other, item_BL))
        return torch.where(chosen_BL, changed, item_BL)
