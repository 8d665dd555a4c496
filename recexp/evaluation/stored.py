"""Candidates are drawn once, kept beside the prepared data and shared by every model, seed and process."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from recexp.evaluation.candidates import draw
from recexp.evaluation.protocol import Protocol


def stored_candidates(store, protocol: Protocol, split: str) -> Tensor | None:
    """int32 [Q, n], row q for target q of the split, mapped from disk; None where the whole catalogue is ranked.

    Validation and test draw from different streams. Raises RecexpError where a user has fewer than n eligible items.
    """
    wanted = protocol.candidates
    if wanted.kind == "all":
        return None
    digest = hashlib.sha256(json.dumps(asdict(wanted), sort_keys=True).encode()).hexdigest()[:12]
    path = store.folder / f"candidates-{split}-{digest}.npy"
    if not path.exists():
        _write(path, store, protocol, split)
    array = np.load(path, mmap_mode="r")
    return torch.from_numpy(array.copy() if array.nbytes < 2**28 else array)


def _write(path, store, protocol: Protocol, split: str) -> None:
    wanted, targets, pairs, schema = protocol.candidates, store.targets(split), store.all_pairs, store.schema
    excluded = torch.ones(len(pairs), dtype=torch.bool)
    if wanted.exclude == "explicit_only":
        bits = sum(1 << i for i, explicit in enumerate(schema.explicit) if explicit)
        excluded = (pairs.mask & bits) != 0
    key = pairs.user * schema.V + pairs.item
    # The target itself is among the user's pairs, whatever the rule.
    exclude = torch.cat([key[excluded], targets.user * schema.V + targets.item]).unique().numpy()
    weights = store.item_count.double().numpy() if wanted.kind == "popularity" else None
    seed = 2 * wanted.seed + (split == "test")
    drawn = draw(targets.user.numpy(), exclude, schema.n_items, wanted.n, seed, weights)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(temporary, drawn)
    os.replace(temporary, path)
