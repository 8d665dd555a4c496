"""A protocol: who is evaluated on what, against which candidates, by which metrics. It never knows the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from recexp.data.split import Split
from recexp.errors import RecexpError
from recexp.types import moved


@dataclass(frozen=True)
class Candidates:
    """kind: "uniform" or "popularity" (n distinct items besides the target, drawn once per user) or "all".

    exclude: what cannot be a negative: "all_interacted" (any behaviour, any split) or "explicit_only" (S000's code). seen: for kind "all", are items
    of the user's history ranked ("ranked") or left out ("removed")? counts: popularity is that of "all" events, held-out ones too (BERT4Rec's
    code), or of those in "train".
    """

    kind: str = "uniform"
    n: int = 999
    exclude: str = "all_interacted"
    seed: int = 0
    seen: str = "ranked"
    counts: str = "all"

    def __post_init__(self):
        for name, value, known in (
            ("kind", self.kind, ("uniform", "popularity", "all")),
            ("exclude", self.exclude, ("all_interacted", "explicit_only")),
            ("seen", self.seen, ("ranked", "removed")),
            ("counts", self.counts, ("all", "train")),
        ):
            if value not in known:
                raise RecexpError(
                    f"protocol.candidates.{name}={value!r} is unknown; choose one of {', '.join(known)}."
                )
        if self.kind != "all" and self.n < 1:
            raise RecexpError(f"protocol.candidates.n={self.n} must be at least 1.")


@dataclass(frozen=True)
class Protocol:
    """history: "before_target" (leak-free) or "all_train" (S000's code: later training events too). ties: see ``metrics``."""

    name: str
    split: Split = field(default_factory=Split)
    candidates: Candidates = field(default_factory=Candidates)
    history: str = "before_target"
    ks: tuple[int, ...] = (5, 10)
    ties: str = "expected"

    def __post_init__(self):
        if self.history not in ("before_target", "all_train"):
            raise RecexpError(
                f"protocol.history={self.history!r}: choose before_target or all_train."
            )
        if self.ties not in ("expected", "pessimistic", "optimistic"):
            raise RecexpError(
                f"protocol.ties={self.ties!r}: choose expected, pessimistic or optimistic."
            )
        if 10 not in self.ks:
            raise RecexpError(
                f"protocol.ks={list(self.ks)} must contain 10: models are selected on NDCG@10."
            )

    def id(self, meta: dict[str, Any]) -> str:
        """Hash of everything that decides what a number means: raw checksums, filters, split, candidates, tie rule, history."""
        said = {k: v for k, v in asdict(self).items() if k not in ("ks", "name")} | {
            "data": meta["fingerprint"]
        }
        said["split"] = self.split.identity()
        if self.candidates.counts == "all":  # a later option: ids from before it stay
            said["candidates"].pop("counts")
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[
            :12
        ]

    def ranks(
        self, store, targets, row_B: Tensor, candidate_BC: Tensor | None, model, device=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(better, tied, candidates) per row, int64 [B]: how many candidates the model puts strictly above the target, and level with it.

        device: the model's, where the data stay on another.
        """
        from recexp.evaluation.ranks import candidate_ranks, full_ranks

        device = store.device if device is None else device
        query = moved(store.query_held_out(targets, row_B, model.history, self.history), device)
        target_B = moved(targets.item[row_B], device)
        if candidate_BC is not None:
            score = model.score(query, torch.cat([target_B[:, None], candidate_BC.long()], 1))
            better, tied = candidate_ranks(score)
            return better, tied, torch.full_like(better, candidate_BC.shape[1] + 1)
        seen = None
        if self.candidates.seen == "removed":
            row_M, item_M = store.items_between(
                store.past, targets.start[row_B], targets.end[row_B]
            )
            seen = moved(row_M, device), moved(item_M, device)
        return full_ranks(model.score(query), target_B, seen)
