"""POP: every user gets the items by their number of training interactions (S002; specification §4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.types import Query, Schema


class Pop(ClosedForm):
    """score(i) = training events of item i, whoever asks.

    behaviours: names of the behaviours that count, "explicit" (those the data set calls explicit), "strongest", or None for all.
    """

    n_passes = 1  # a second changes nothing

    def __init__(self, schema: Schema, *, behaviours: list[str] | str | None = None) -> None:
        super().__init__()
        self.codes = behaviour_codes(schema, behaviours)
        self.register_buffer("count_V", torch.zeros(schema.V))

    def fit_pass(self, store) -> dict[str, float]:
        """Counts once more; the same figure every time."""
        item = select_events(store, self.codes)[1]
        self.count_V.copy_(torch.bincount(item, minlength=len(self.count_V)))
        return {"events": float(len(item))}

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        if item_BC is None:
            return self.count_V[1:].expand(len(query), -1)
        return self.count_V[item_BC]


def behaviour_codes(schema: Schema, behaviours: list[str] | str | None) -> list[int] | None:
    """Codes of the behaviours chosen by name, by "explicit" or by "strongest"; None where all count."""
    if behaviours is None:
        return None
    if behaviours == "strongest":
        return [len(schema.behaviours)]
    if behaviours == "explicit":
        chosen = [
            b for b, explicit in zip(schema.behaviours, schema.explicit, strict=True) if explicit
        ]
    else:
        chosen = [behaviours] if isinstance(behaviours, str) else list(behaviours)
    unknown = [b for b in chosen if b not in schema.behaviours]
    if unknown or not chosen:
        wrong = (
            f"{unknown[0]!r} is not a behaviour of this data set"
            if unknown
            else "this data set has no such behaviour"
        )
        raise RecexpError(
            f"behaviours={behaviours!r}: {wrong}. Choose from {list(schema.behaviours)}, 'explicit', 'strongest', null (all)."
        )
    return sorted(schema.behaviours.index(b) + 1 for b in chosen)


def select_events(store, codes: list[int] | None) -> tuple[Tensor, Tensor]:
    """Users and items, int64 [E'], of the training rows that stand for one of the behaviours, in the store's order."""
    user, item = store.train.user, store.train.item.long()
    if codes is None:
        return user, item
    keep = (store.train.mask & sum(1 << (code - 1) for code in codes)) != 0
    return user[keep], item[keep]
