"""Predict masked items from both sides of the history (the Cloze task).

Sun et al. 2019 (BERT4Rec), Section 3.6, arXiv:1904.06690.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recexp.contracts import Encoder, SideEncoder
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.objectives.base import check_choice
from recexp.objectives.sequence import SequenceObjective
from recexp.objectives.windows import read_window, window_ends, window_rows
from recexp.rng import hash_uniform
from recexp.types import Query, SequenceBatch

Count = Literal["bernoulli", "fixed"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass
class Cloze(SequenceObjective):
    """A row is a window of a user's history, some items of which are masked and predicted.

    mask_prob: share rho of a history's items that are masked; at least one item is.
    max_masked: limit on the masked items of a row; None: no limit.
    positives: only such events are masked; shares and lengths count these.
    count: "bernoulli" masks each item with probability mask_prob; "fixed" masks exactly
        max(1, round(mask_prob * length)) items, as the authors' code.
    last_prob: probability that only the last item of a row is masked, as at prediction time (1 of
        11 in the authors' data).
    one_mask: exactly one random item per row (BERT4Rec, Table 3).
    replace: shares of chosen items that become [MASK], a random item, or stay.
    copies: 0 draws masks anew in every epoch. Otherwise each window is in the data copies + 1
        times, its masks and replacements fixed. Only the last copy has its last item masked
        alone, whatever last_prob says (the authors' code: 10).
    hide_side: False shows a masked item's side information to models that take any. This leaks
        the target and is for diagnosis only (NOVA-BERT, arXiv:2103.03578).
    step: windows older than the newest max_len events start every ``step`` events; a fraction is
        of max_len (authors: 0.5).
    """

    mask_prob: Annotated[float, Field(gt=0, lt=1)] = 0.2
    max_masked: Annotated[int, Field(ge=1)] | None = None
    count: Count = "bernoulli"
    last_prob: Share = 1 / 11
    one_mask: bool = False
    replace: tuple[Share, Share, Share] = (1.0, 0.0, 0.0)
    copies: Annotated[int, Field(ge=0)] = 0
    hide_side: bool = True
    step: Annotated[float, Field(gt=0)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_prob < 1 or not 0 <= self.last_prob <= 1:
            raise RecexpError(
                f"objective.mask_prob={self.mask_prob} must lie in (0, 1) and "
                f"last_prob={self.last_prob} in [0, 1]."
            )
        check_choice("count", self.count, Count)
        if self.copies < 0:
            raise RecexpError(
                f"objective.copies={self.copies} must be 0 (masks drawn anew) or the number of "
                "fixed maskings per window."
            )
        if self.step <= 0 or (self.max_masked is not None and self.max_masked < 1):
            raise RecexpError(
                f"objective.step={self.step} must be positive, max_masked={self.max_masked} at "
                "least 1 or null."
            )
        if len(self.replace) != 3 or abs(sum(self.replace) - 1) > 1e-6 or min(self.replace) < 0:
            raise RecexpError(
                f"objective.replace={list(self.replace)} must be three shares that sum to 1."
            )

    def check(self, model: Encoder, store: Store) -> None:
        super().check(model, store)
        if not self.hide_side and not isinstance(model, SideEncoder):
            raise RecexpError(
                f"objective.hide_side=false shows side information, and {type(model).__name__} "
                "takes none: nova_bert does."
            )

    def bind(self, model: Encoder, store: Store) -> None:
        super().bind(model, store)
        self._mask_id = store.schema.V
        self._shows_behavior = model.asks_behavior
        self._length = self._history + 1  # at prediction [MASK] takes one place

    def rows(self, store: Store) -> Tensor:
        """window * (copies + 1) + copy, for the window's end and the number of its masking."""
        step = int(self.step * self._length) if self.step < 1 else int(self.step)
        window_N = window_ends(store, self._length, max(1, step), least=2)
        ptr_N = store.train.ptr[store.train.user[window_N - 1]]
        first_N = torch.maximum(ptr_N, window_N - self._length)
        window_N = self._with_positives(store, first_N, window_N)
        copy_C = torch.arange(self.copies + 1, device=window_N.device)
        return (window_N[:, None] * (self.copies + 1) + copy_C).flatten()

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        end_B = rows // (self.copies + 1)
        query = read_window(store, end_B, self._length)
        length = query.item_BL.shape[1]
        draw = Draws(rows, length, None if self.copies else generator)
        can_mask_BL = query.mask_BL
        if self.positives != "any":
            can_mask_BL = can_mask_BL & self._is_positive(store, window_rows(end_B, length))
        chosen_BL = self._choose(can_mask_BL, draw, rows)
        target_BL = torch.where(chosen_BL, query.item_BL, 0)
        item_BL = self._replace(query.item_BL, chosen_BL, draw)
        if self.hide_side:
            query = _hide_side(query, item_BL == self._mask_id, self._shows_behavior)
        batch = SequenceBatch(replace(query, item_BL=item_BL), target_BL)
        return self._with_negatives(store, batch, generator)

    def states(self, model: Encoder, batch: SequenceBatch, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the masked positions."""
        if self.hide_side:
            return super().states(model, batch, wanted_BL)
        assert isinstance(model, SideEncoder)
        shown_BL = torch.where(wanted_BL, batch.target_BL, batch.query.item_BL)
        return model.encode_at(batch.query, wanted_BL, side_item_BL=shown_BL)

    def _choose(self, can_mask_BL: Tensor, draw: Draws, rows: Tensor) -> Tensor:
        """bool [B, L]: the items to predict, among those that can be masked."""
        draw_BL = draw().masked_fill(~can_mask_BL, 2.0)
        n_real_B1 = can_mask_BL.sum(1, keepdim=True)
        rank_BL = draw_BL.argsort(1).argsort(1)  # random order of these items
        if self.one_mask:
            n_chosen_B1 = torch.ones_like(n_real_B1)
        elif self.count == "fixed":
            n_chosen_B1 = (n_real_B1 * self.mask_prob).round().long().clamp(min=1)
        else:
            n_chosen_B1 = (draw_BL < self.mask_prob).sum(1, keepdim=True).clamp(min=1)
        if self.max_masked is not None:
            n_chosen_B1 = n_chosen_B1.clamp(max=self.max_masked)
        chosen_BL = can_mask_BL & (rank_BL < n_chosen_B1)

        if self.copies:
            only_last_B1 = (rows % (self.copies + 1) == self.copies)[:, None]
        else:
            only_last_B1 = draw()[:, :1] < (0 if self.one_mask else self.last_prob)
        n_later_BL = can_mask_BL.flip(1).cumsum(1).flip(1)  # this one included
        last_BL = can_mask_BL & (n_later_BL == 1)
        return torch.where(only_last_B1, last_BL, chosen_BL)

    def _replace(self, item_BL: Tensor, chosen_BL: Tensor, draw: Draws) -> Tensor:
        """The inputs [B, L], with [MASK] or a random item at some of the chosen positions."""
        mask_share, random_share, _ = self.replace
        if mask_share == 1:
            return item_BL.masked_fill(chosen_BL, self._mask_id)
        n_items = self._mask_id - 1
        draw_BL = draw()
        random_BL = 1 + (draw() * n_items).long().clamp(max=n_items - 1)
        changed_BL = torch.where(draw_BL < mask_share + random_share, random_BL, item_BL)
        changed_BL = torch.where(draw_BL < mask_share, self._mask_id, changed_BL)
        return torch.where(chosen_BL, changed_BL, item_BL)


def _hide_side(query: Query, hidden_BL: Tensor, shows_behavior: bool) -> Query:
    """The query with all columns but the items set to 0 at the hidden positions.

    shows_behavior: the behavior stays, too.
    """
    hidden = query.change_columns(lambda x_BL: x_BL.masked_fill(hidden_BL, 0))
    if shows_behavior:
        hidden = replace(hidden, behavior_BL=query.behavior_BL)
    return replace(hidden, item_BL=query.item_BL)


class Draws:
    """Uniform numbers in [0, 1), float32 [B, length] per call.

    From the generator or, without one, hashed from row, position and number of the call, so that
    a row gets the same numbers in every epoch.
    """

    def __init__(self, rows: Tensor, length: int, generator: torch.Generator | None) -> None:
        self.rows = rows
        self.length = length
        self.generator = generator
        self.n_calls = 0

    def __call__(self) -> Tensor:
        self.n_calls += 1
        if self.generator is not None:
            shape = (len(self.rows), self.length)
            return torch.rand(shape, generator=self.generator, device=self.rows.device)
        # Counted from the right: the amount of padding, which depends on the batch, has no effect.
        from_right_L = torch.arange(self.length, 0, -1, device=self.rows.device)
        return hash_uniform((self.rows[:, None] << 24) + from_right_L + (self.n_calls << 20))
