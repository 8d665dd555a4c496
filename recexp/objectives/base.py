"""Helpers that several objectives share. The contract is ``recexp.contracts.Objective``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recexp.contracts import NegativeSampler, Recommender
from recexp.errors import RecexpError
from recexp.objectives.samplers import Mixed, NoSampler, SupportiveOnly
from recexp.types import Query


def penalty(model: Recommender, query: Query, item: Tensor, weight: float) -> Tensor | None:
    """weight * mean square of the embeddings this batch looked up, None where it does not apply."""
    if weight <= 0:
        return None
    mean_square = model.penalty(query, item)
    if mean_square is None:
        raise RecexpError(
            f"objective.l2={weight} needs a model with penalty(...); {type(model).__name__} has "
            "none. Set objective.l2=0."
        )
    return weight * mean_square


def behaviours_on(store: Any, user: Tensor, item: Tensor) -> Tensor:
    """bool [..., T]: did the user show behaviour t, weak to strong, on the item in training? user and item of any common shape."""
    pairs = store.train_pairs
    at = pairs.find(user, item)
    mask = torch.where(at >= 0, pairs.mask[at], 0)
    return (
        mask[..., None] >> torch.arange(len(store.schema.behaviours), device=mask.device)
    ) % 2 == 1


def somebody(store: Any, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random training rows, for the control that shuffles targets. Negatives must then be drawn for these rows' users: by avoiding the
    user's own items they would give away what he has.
    """
    return torch.randint(len(store.train), shape, generator=generator, device=store.device)


def check_positives(positives: str) -> None:
    """Raise RecexpError for a word that ``positive_rows`` does not know."""
    if positives not in ("any", "explicit", "strongest"):
        raise RecexpError(f"objective.positives={positives!r}: choose any, explicit or strongest.")


def check_sampler(sampler: NegativeSampler, *, shared: bool = False) -> None:
    """Raise RecexpError where an objective is to draw from a sampler that cannot.

    shared: the negatives are to be common to all rows of a batch.
    """
    if isinstance(sampler, Mixed):
        check_sampler(sampler.first, shared=shared)
        check_sampler(sampler.second, shared=shared)
    if isinstance(sampler, NoSampler):
        raise RecexpError(
            "This objective draws negatives, but sampler=none: choose sampler=uniform or another."
        )
    if shared and isinstance(sampler, SupportiveOnly):
        raise RecexpError(
            "sampler=supportive_only draws from a user's own items, so its negatives cannot be "
            "shared by a batch: choose sampler=uniform or popularity, or (next_item, cloze) "
            "objective.shared=position or row."
        )


def positive_rows(store: Any, positives: str) -> Tensor:
    """Rows of ``store.train`` with "any" behaviour, an "explicit" one or the "strongest". Raises RecexpError where there is none."""
    T = len(store.schema.behaviours)
    bits = {
        "any": (1 << T) - 1,
        "explicit": sum(1 << i for i, explicit in enumerate(store.schema.explicit) if explicit),
        "strongest": 1 << (T - 1),
    }
    check_positives(positives)
    if positives == "any":
        return torch.arange(len(store.train))
    rows = torch.nonzero(store.train.mask & bits[positives]).flatten()
    if len(rows) == 0:
        raise RecexpError(
            f"objective.positives={positives}: no training event has such a behaviour (dataset.explicit lists none?)."
        )
    return rows


def check_negatives(store: Any, n: int, model: Any) -> None:
    """A user who has met every item has no negative to draw."""
    if n > 0:
        most = int((store.train_pairs.ptr[1:] - store.train_pairs.ptr[:-1]).max())
        if most >= store.schema.n_items:
            raise RecexpError(
                f"A user has all {store.schema.n_items} items in training, so no negative item exists for him: drop such users "
                "(dataset.filters=[..., {user_max: N, count: items}]) or use a loss without negatives."
            )
