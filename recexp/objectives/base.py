"""What every objective shares. An objective says what a training example is and what its loss is; it never asks which model it feeds.

``rows(store)``: int64 row ids, the whole of one epoch; Lightning shuffles them into batches.
``batch(store, rows, generator)``: everything the loss needs, gathered and drawn on the device.
``instances()`` and ``constant_loss(store, batch_size)``: what is known of rows and losses before training; None unless an objective says it.
``batches(store, batch_size, seed)``, optional: a sampler that deals out batches of row ids instead, where they follow from one another.
``loss(model, batch)``: a dict of scalars with the one to minimise under "loss".
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from recexp.errors import RecexpError
from recexp.objectives.samplers import Mixed, NegativeSampler, NoSampler, SupportiveOnly
from recexp.types import Query


class Objective(Protocol):
    """See the module's docstring."""

    needs: tuple[str, ...]  # methods of the models it can train

    def check(self, model: Any, store: Any) -> None:
        """Raise RecexpError where the model or the data cannot serve this objective, before any work starts."""
        ...

    def rows(self, store: Any) -> Tensor: ...

    def batch(self, store: Any, rows: Tensor, generator: torch.Generator) -> Any: ...

    def loss(self, model: Any, batch: Any) -> dict[str, Tensor]: ...

    def instances(self) -> int | None:
        """Training instances that a row becomes, as the authors' code of pointwise and pairwise
        systems counts a batch. None where a row is no positive with negatives of its own.
        """
        return None

    def constant_loss(self, store: Any, batch_size: int) -> float | None:
        """Mean training loss of the best model that scores all items of a query equal, without
        regularization: the mark that a model which has learned something lies well below.
        None where there is none. batch_size: rows a step.
        """
        return None


def require(model: Any, objective: Any) -> None:
    """Raise RecexpError where the model (or its class) lacks a method that the objective ``needs``, or fits by sweeps and the objective does not."""
    model, objective = (x if isinstance(x, type) else type(x) for x in (model, objective))
    advice = "Choose the objective the model's YAML names (drop objective= from the command line)."
    for name in objective.needs:
        if not callable(getattr(model, name, None)):
            raise RecexpError(
                f"objective={objective.__name__} needs a model with {name}(...), which {model.__name__} has not. {advice}"
            )
    if callable(getattr(model, "sweep", None)) and "sweep" not in objective.needs:
        raise RecexpError(
            f"objective={objective.__name__} needs a model that learns by gradients; {model.__name__} fits by sweeps. {advice}"
        )


def penalty(model: Any, query: Query, item: Tensor, weight: float) -> Tensor | None:
    """weight * mean square of the embeddings this batch looked up, None where it does not apply."""
    if weight <= 0:
        return None
    if not callable(getattr(model, "penalty", None)):
        raise RecexpError(
            f"objective.l2={weight} needs a model with penalty(...); {type(model).__name__} has none. Set objective.l2=0."
        )
    return weight * model.penalty(query, item)


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
