"""Candidates are drawn once, kept beside the prepared data and shared by every model, seed and process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recexp.data.cache import checksum, write_json
from recexp.errors import RecexpError
from recexp.evaluation.candidates import draw
from recexp.evaluation.protocol import Protocol
from recexp.io import atomic_write, file_lock, reason


def stored_candidates(store, protocol: Protocol, split: str) -> Tensor | None:
    """int32 [Q, n], row q for target q of the split, mapped from disk; None where the whole catalogue is ranked.

    Validation and test draw from different streams. A damaged table is drawn again. Raises RecexpError where a user has fewer than n eligible items
    or the folder cannot be written.
    """
    wanted = protocol.candidates
    if wanted.kind == "all":
        return None
    digest = hashlib.sha256(json.dumps(asdict(wanted), sort_keys=True).encode()).hexdigest()[:12]
    path = store.folder / f"candidates-{split}-{digest}.npy"
    if not _whole(path):
        try:
            with file_lock(
                store.folder.parent / f".{store.folder.name}.lock",
                f"{path.stem}: another process is drawing them; waiting",
            ):
                if not _whole(path):
                    _write(path, _draw(store, protocol, split))
        except OSError as error:
            raise RecexpError(
                f"Candidates cannot be stored in {store.folder}: {reason(error)}. cache_dir= must be a writable place."
            ) from error
    array = np.load(path, mmap_mode="r")
    return torch.from_numpy(array.copy() if array.nbytes < 2**28 else array)


def _draw(store, protocol: Protocol, split: str) -> np.ndarray:
    wanted, targets, pairs, schema = (
        protocol.candidates,
        store.targets(split),
        store.all_pairs,
        store.schema,
    )
    excluded = torch.ones(len(pairs), dtype=torch.bool)
    if wanted.exclude == "explicit_only":
        bits = sum(1 << i for i, explicit in enumerate(schema.explicit) if explicit)
        excluded = (pairs.mask & bits) != 0
    key = pairs.user * schema.V + pairs.item
    # The target itself is among the user's pairs, whatever the rule.
    exclude = torch.cat([key[excluded], targets.user * schema.V + targets.item]).unique().numpy()
    weights = None
    if wanted.kind == "popularity":
        counts = (
            store.item_count
            if wanted.counts == "all"
            else torch.bincount(store.train.item, minlength=schema.V)
        )
        weights = counts.double().numpy()
    seed = 2 * wanted.seed + (split == "test")
    return draw(targets.user.numpy(), exclude, schema.n_items, wanted.n, seed, weights)


def _write(path: Path, drawn: np.ndarray) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, drawn)
    write_json(path.with_suffix(".json"), {"sha256": checksum(path)})


def _whole(path: Path) -> bool:
    try:
        return json.loads(path.with_suffix(".json").read_text())["sha256"] == checksum(path)
    except (OSError, ValueError, KeyError):
        return False
