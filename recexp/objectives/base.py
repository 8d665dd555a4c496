"""Helpers that several objectives share. The contract is ``recexp.contracts.Objective``."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from recexp.contracts import Loss, NegativeSampler, Recommender
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.objectives.samplers import NO_SAMPLER, Mixed, NoSampler, SupportiveOnly
from recexp.types import Query

Positives = Literal["any", "explicit", "strongest"]


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise RecexpError where the value is none of the words of a ``Literal``."""
    words = get_args(choices)
    if value not in words:
        allowed = ", ".join(words[:-1]) + " or " + words[-1]
        raise RecexpError(f"objective.{name}={value!r}: choose {allowed}.")


def check_loss(objective: object, loss: Loss, *kinds: type[Loss]) -> None:
    """Raise RecexpError where the loss is of no kind that the objective takes."""
    if isinstance(loss, kinds):
        return
    fitting = dict.fromkeys(found.__name__ for kind in kinds for found in _classes(kind))
    raise RecexpError(
        f"objective={type(objective).__name__} cannot train with loss={type(loss).__name__}; "
        f"choose one of {', '.join(fitting)} (loss=? lists their names)."
    )


def _classes(kind: type[Loss]) -> list[type[Loss]]:
    """The classes of a kind that can be instantiated."""
    found: list[type[Loss]] = []
    for subclass in kind.__subclasses__():
        if not inspect.isabstract(subclass):
            found.append(subclass)
        found += _classes(subclass)
    return found


def check_sampler(sampler: NegativeSampler, *, shared: bool = False) -> None:
    """Raise RecexpError where an objective is to draw from a sampler that cannot.

    shared: the negatives are to be common to all rows of a batch.
    """
    if isinstance(sampler, Mixed):
        check_sampler(sampler.first, shared=shared)
        check_sampler(sampler.second, shared=shared)
    if isinstance(sampler, NoSampler):
        raise RecexpError(NO_SAMPLER)
    if shared and isinstance(sampler, SupportiveOnly):
        raise RecexpError(
            "sampler=supportive_only draws from a user's own items, so its negatives cannot be "
            "shared by a batch: choose sampler=uniform or popularity, or (next_item, cloze) "
            "objective.shared=position or row."
        )


def check_negatives(store: Store) -> None:
    """Raise RecexpError where a user has every item in training: no negative exists for them."""
    n_items = store.schema.n_items
    ptr = store.train_pairs.ptr
    if int((ptr[1:] - ptr[:-1]).max()) >= n_items:
        raise RecexpError(
            f"A user has all {n_items} items in training, so no negative item exists for them: "
            "drop such users (dataset.filters=[..., {user_max: N, count: items}]) or use a loss "
            "without negatives."
        )


def penalty(model: Recommender, query: Query, item_BC: Tensor, weight: float) -> Tensor | None:
    """weight * mean square of the embeddings that the batch looks up; None where weight is 0.

    Raises RecexpError where the model has no penalty.
    """
    if weight <= 0:
        return None
    mean_square = model.penalty(query, item_BC)
    if mean_square is None:
        raise RecexpError(
            f"objective.l2={weight} needs a model with penalty(...); {type(model).__name__} has "
            "none. Set objective.l2=0."
        )
    return weight * mean_square


def behaviors_on(store: Store, user: Tensor, item: Tensor) -> Tensor:
    """bool [..., T]: did the user show behavior t (weak to strong) on the item in training?

    user and item are int64 of any common shape [...].
    """
    pairs = store.train_pairs
    place = pairs.find(user, item)
    mask = torch.where(place >= 0, pairs.mask[place], 0)
    bit_T = torch.arange(len(store.schema.behaviors), device=mask.device)
    return (mask[..., None] >> bit_T) % 2 == 1


def random_rows(store: Store, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random rows of ``store.train``, for the control that shuffles targets.

    Negatives must then be drawn for these rows' users: negatives that avoid the items of the
    user in the query would reveal these items.
    """
    return torch.randint(len(store.train), shape, generator=generator, device=store.device)


def positive_rows(store: Store, positives: Positives) -> Tensor:
    """Rows of ``store.train`` with "any" behavior, an "explicit" one or the "strongest", [N].

    Raises RecexpError where there is none.
    """
    if positives == "any":
        return torch.arange(len(store.train))
    rows = torch.nonzero(store.train.mask & positive_bits(store, positives)).flatten()
    if len(rows) == 0:
        raise RecexpError(
            f"objective.positives={positives}: no training event has such a behavior "
            "(dataset.explicit lists none?)."
        )
    return rows


def positive_bits(store: Store, positives: Positives) -> int:
    """The bit mask of the behaviors of the positives, as in ``Events.mask``."""
    if positives == "explicit":
        return explicit_bits(store)
    n_behaviors = len(store.schema.behaviors)
    strongest = 1 << (n_behaviors - 1)
    return strongest if positives == "strongest" else (1 << n_behaviors) - 1


def explicit_bits(store: Store) -> int:
    """The bit mask of the explicit behaviors, as in ``Events.mask``."""
    return sum(1 << t for t, explicit in enumerate(store.schema.explicit) if explicit)
