"""A protocol: who is evaluated on what, against which candidates, by which metrics."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from recexp.data.split import Split
from recexp.errors import RecexpError
from recexp.evaluation.ranks import (
    candidate_ranks,
    candidate_ranks_of_several,
    full_ranks,
    full_ranks_of_several,
)
from recexp.types import moved

if TYPE_CHECKING:
    from recexp.contracts import Recommender
    from recexp.data.store import Store, Targets
    from recexp.types import Query

Kind = Literal["uniform", "popularity", "all"]
Exclude = Literal["all_interacted", "explicit_only"]
Seen = Literal["ranked", "removed"]
Counts = Literal["all", "train"]
History = Literal["before_target", "all_train"]
Ties = Literal["expected", "pessimistic", "optimistic"]

SELECTION_CUTOFF = 10  # epochs are chosen on NDCG@10


@dataclass(frozen=True)
class Candidates:
    """The items that a target is ranked against.

    kind: "uniform" or "popularity" (n distinct items besides the target, drawn once per user), or
    "all" items.
    exclude: which items are no candidates of a user: "all_interacted" (any behavior, any split) or
    "explicit_only" (the code of the ITE paper).
    seen: for kind "all", whether the items of the user's history are "ranked" or "removed".
    counts: popularity is that of "all" events, held-out ones too (the code of BERT4Rec,
    arXiv:1904.06690), or of those in "train".
    """

    kind: Kind = "uniform"
    n: Annotated[int, Field(ge=0)] = 999
    exclude: Exclude = "all_interacted"
    seed: Annotated[int, Field(ge=0)] = 0
    seen: Seen = "ranked"
    counts: Counts = "all"

    def __post_init__(self) -> None:
        _check_word("candidates.kind", self.kind, get_args(Kind))
        _check_word("candidates.exclude", self.exclude, get_args(Exclude))
        _check_word("candidates.seen", self.seen, get_args(Seen))
        _check_word("candidates.counts", self.counts, get_args(Counts))
        if self.kind != "all" and self.n < 1:
            raise RecexpError(f"protocol.candidates.n={self.n} must be at least 1.")


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    split: which events are held out as targets. candidates: what a target is ranked against.
    history: the events that the model sees of a user: those "before_target" (no leak), or
    "all_train", later ones too (the code of the ITE paper).
    ks: cut-offs of HR and NDCG. ties: see ``recexp.evaluation.metrics``.
    """

    name: str
    split: Split = field(default_factory=Split)
    candidates: Candidates = field(default_factory=Candidates)
    history: History = "before_target"
    ks: tuple[Annotated[int, Field(ge=1)], ...] = (5, 10)
    ties: Ties = "expected"

    def __post_init__(self) -> None:
        _check_word("history", self.history, get_args(History))
        _check_word("ties", self.ties, get_args(Ties))
        if self.split.kind == "user_folds" and self.history == "all_train":
            raise RecexpError(
                "protocol.history=all_train with protocol.split.kind=user_folds leaves no history: "
                "no event of the tested users is trained on. Use before_target."
            )
        if SELECTION_CUTOFF not in self.ks:
            raise RecexpError(
                f"protocol.ks={list(self.ks)} must contain {SELECTION_CUTOFF}: models are selected "
                f"on NDCG@{SELECTION_CUTOFF}."
            )

    def id(self, meta: dict[str, Any]) -> str:
        """Hash of everything that decides what a number means.

        Raw checksums, filters, split, candidates, tie rule and history; 12 hexadecimal digits.
        meta: of the prepared data.
        """
        settings = asdict(self)
        del settings["ks"], settings["name"]
        settings["data"] = meta["fingerprint"]
        settings["split"] = self.split.identity()
        if self.candidates.counts == "all":  # ids from before this option stay the same
            del settings["candidates"]["counts"]
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def ranks(
        self,
        store: Store,
        targets: Targets,
        row_B: Tensor,
        candidate_BC: Tensor | None,
        model: Recommender,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(better, tied, candidates) of the targets of these users, each int64.

        better: how many ranked items the model scores strictly higher than the target. tied: how
        many others it scores equal. candidates: how many are ranked, the target included. A user's
        history is scored once, and their other targets are among the ranked items.

        row_B: numbers of users as ``Targets.of_users`` takes them, in whose order the targets are.
        candidate_BC: drawn candidates; None ranks all items. device: the model's, where the data
        stay on another one.
        """
        device = store.device if device is None else device
        first_B = targets.first(row_B)
        query = moved(store.query_held_out(targets, first_B, model.history, self.history), device)
        if self.split.has_several_targets:
            return self._ranks_of_several(store, targets, row_B, candidate_BC, model, query)
        target_B = moved(targets.item[row_B], device)
        if candidate_BC is not None:
            item_BC = torch.cat([target_B[:, None], candidate_BC.long()], 1)  # [B, 1 + C]
            better_B, tied_B = candidate_ranks(model.score(query, item_BC))
            return better_B, tied_B, torch.full_like(better_B, item_BC.shape[1])
        seen = self.seen(store, targets, row_B, device)
        return full_ranks(model.score(query), target_B, seen)

    def _ranks_of_several(
        self,
        store: Store,
        targets: Targets,
        row_B: Tensor,
        candidate_BC: Tensor | None,
        model: Recommender,
        query: Query,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``ranks``, where users may have several targets. query: the users' histories."""
        device = query.user_B.device
        n_targets_B = moved(targets.n_of_users(row_B), device)
        row_M = torch.repeat_interleave(torch.arange(len(row_B), device=device), n_targets_B)
        if candidate_BC is None:
            item_M = moved(targets.item[targets.of_users(row_B)], device)
            seen = self.seen(store, targets, row_B, device)
            return full_ranks_of_several(model.score(query), row_M, item_M, seen)
        target_BT = moved(targets.items_of_users(row_B), device)
        item_BC = torch.cat([target_BT, candidate_BC.long()], 1)  # [B, T + C]
        scores_BC = model.score(query, item_BC)
        better_M, tied_M = candidate_ranks_of_several(scores_BC, n_targets_B, target_BT.shape[1])
        return better_M, tied_M, n_targets_B[row_M] + candidate_BC.shape[1]

    def seen(
        self, store: Store, targets: Targets, row_B: Tensor, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Rows and items of the histories, where the protocol removes them from the ranking.

        row_B: as of ``ranks``.
        """
        if self.candidates.seen != "removed":
            return None
        first_B = targets.first(row_B)
        row_M, item_M = store.items_between(
            store.past, targets.start[first_B], targets.end[first_B]
        )
        return moved(row_M, device), moved(item_M, device)


def _check_word(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecexpError(
            f"protocol.{name}={value!r} is unknown; choose one of {', '.join(known)}."
        )
