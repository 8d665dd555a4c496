"""Predict masked items from both sides (BERT4Rec's Cloze task)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recexp.contracts import SideEncoder
from recexp.errors import RecexpError
from recexp.objectives.samplers import hash_uniform
from recexp.objectives.sequence import SequenceObjective, read_window, window_ends
from recexp.types import SequenceBatch

SIDE = ("behaviour_BL", "time_BL", "value_BL")


@dataclass
class Cloze(SequenceObjective):
    """mask_prob: share rho of a history's items that are masked, drawn anew every time; at least one, at most max_masked (None: no limit).

    count: "bernoulli" masks each item with probability mask_prob; "fixed" exactly max(1, round(mask_prob * length)) items (the authors' code).
    last_prob: probability that only the last item of a row is masked, as at prediction time (1 of 11 in the authors' data).
    one_mask: exactly one random item per row (Table 3). replace: shares of chosen items that become [MASK], a random item, or stay.
    copies: 0 draws masks anew every time. Otherwise each window stands in the data copies + 1 times, masks (and replacements) fixed once and for all,
    the last copy with its last item masked alone, whatever last_prob says (the authors' code: 10).
    hide_side: False shows a masked item's side information to models that take any: a leak, for diagnosis only (models.md §7.1).
    step: windows older than the newest max_len events start every ``step`` events; a fraction is of max_len (authors: 0.5).
    """

    mask_prob: float = 0.2
    max_masked: int | None = None
    count: str = "bernoulli"
    last_prob: float = 1 / 11
    one_mask: bool = False
    replace: tuple[float, float, float] = (1.0, 0.0, 0.0)
    copies: int = 0
    hide_side: bool = True
    step: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mask_prob < 1 or not 0 <= self.last_prob <= 1:
            raise RecexpError(
                f"objective.mask_prob={self.mask_prob} must lie in (0, 1) and last_prob={self.last_prob} in [0, 1]."
            )
        if self.count not in ("bernoulli", "fixed"):
            raise RecexpError(f"objective.count={self.count!r}: choose bernoulli or fixed.")
        if self.copies < 0:
            raise RecexpError(
                f"objective.copies={self.copies} must be 0 (masks drawn anew) or the number of fixed maskings per window."
            )
        if self.step <= 0 or (self.max_masked is not None and self.max_masked < 1):
            raise RecexpError(
                f"objective.step={self.step} must be positive, max_masked={self.max_masked} at least 1 or null."
            )
        if len(self.replace) != 3 or abs(sum(self.replace) - 1) > 1e-6 or min(self.replace) < 0:
            raise RecexpError(
                f"objective.replace={list(self.replace)} must be three shares that sum to 1."
            )

    def check(self, model, store) -> None:
        super().check(model, store)
        if not self.hide_side and not isinstance(model, SideEncoder):
            raise RecexpError(
                f"objective.hide_side=false shows side information, and {type(model).__name__} takes none: nova_bert does."
            )

    def bind(self, model, store) -> None:
        super().bind(model, store)
        self._mask_id = store.schema.V

    def rows(self, store) -> Tensor:
        length = self._history + 1  # at prediction [MASK] takes one place
        step = max(1, int(self.step * length) if self.step < 1 else int(self.step))
        window = window_ends(store, length, step, least=2)
        # A row is a window and, in its last digit to base copies + 1, which of its maskings.
        return (
            window[:, None] * (self.copies + 1)
            + torch.arange(self.copies + 1, device=window.device)
        ).flatten()

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        query = read_window(store, rows // (self.copies + 1), self._history + 1)
        draw = Draws(rows, query.item_BL.shape[1], None if self.copies else generator)
        chosen_BL = self._choose(query.mask_BL, draw, rows)
        target_BL = torch.where(chosen_BL, query.item_BL, 0)
        item_BL = self._replace(query.item_BL, chosen_BL, draw)
        if self.hide_side:
            masked_BL = item_BL == self._mask_id
            side = (query.behaviour_BL, query.time_BL, query.value_BL)
            query = replace(
                query,
                **{
                    k: None if c is None else c.masked_fill(masked_BL, 0)
                    for k, c in zip(SIDE, side, strict=True)
                },
            )
        return self._negatives(
            store, SequenceBatch(replace(query, item_BL=item_BL), target_BL), generator
        )

    def states(self, model, batch: SequenceBatch, wanted_BL: Tensor) -> Tensor:
        """[N, D]"""
        if self.hide_side:
            return super().states(model, batch, wanted_BL)
        return model.encode_at(
            batch.query,
            wanted_BL,
            side_item_BL=torch.where(wanted_BL, batch.target_BL, batch.query.item_BL),
        )

    def _choose(self, real_BL: Tensor, draw: Draws, rows: Tensor) -> Tensor:
        draw_BL = draw().masked_fill(~real_BL, 2.0)
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
        share = 0 if self.one_mask else self.last_prob
        only_last = (
            (rows % (self.copies + 1) == self.copies)[:, None]
            if self.copies
            else draw()[:, :1] < share
        )
        last_BL = torch.zeros_like(real_BL)
        last_BL[:, -1] = real_BL[:, -1]
        return torch.where(only_last, last_BL, chosen_BL)

    def _replace(self, item_BL: Tensor, chosen_BL: Tensor, draw: Draws) -> Tensor:
        mask_share, random_share, _ = self.replace
        if mask_share == 1:
            return item_BL.masked_fill(chosen_BL, self._mask_id)
        draw_BL, other_BL = (
            draw(),
            1 + (draw() * (self._mask_id - 1)).long().clamp(max=self._mask_id - 2),
        )
        changed = torch.where(
            draw_BL < mask_share,
            self._mask_id,
            torch.where(draw_BL < mask_share + random_share, other_BL, item_BL),
        )
        return torch.where(chosen_BL, changed, item_BL)


class Draws:
    """Uniform numbers [rows, length]: from the generator or, without one, for ever the same for a row."""

    def __init__(self, rows: Tensor, length: int, generator: torch.Generator | None) -> None:
        self.rows, self.length, self.generator, self.calls = rows, length, generator, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.generator is not None:
            return torch.rand(
                len(self.rows), self.length, generator=self.generator, device=self.rows.device
            )
        # Counted from the right: padding, which depends on the batch, moves no number.
        place = torch.arange(self.length, 0, -1, device=self.rows.device) + (self.calls << 20)
        return hash_uniform((self.rows[:, None] << 24) + place)
