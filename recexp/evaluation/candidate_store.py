"""Drawn candidates, kept beside the prepared data and shared by all models, seeds and processes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recexp.errors import RecexpError
from recexp.evaluation.candidates import draw
from recexp.evaluation.protocol import Protocol
from recexp.io import (
    atomic_write,
    checksum,
    file_lock,
    read_object,
    reason,
    remove,
    save_array,
    write_json,
)

if TYPE_CHECKING:
    from recexp.data.store import Store

MAX_BYTES_IN_MEMORY = 2**28  # a larger table stays mapped from disk


def stored_candidates(store: Store, protocol: Protocol, split: str) -> Tensor | None:
    """int32 [N, n], a row per user with targets in the split; None where all items are ranked.

    Drawn on first use, then read from the folder of the prepared data. Validation and test have
    different random streams. A damaged table is drawn again. Raises RecexpError where a user has
    fewer than n eligible items, or the folder cannot be written.
    """
    candidates = protocol.candidates
    if candidates.kind == "all":
        return None
    settings = json.dumps(asdict(candidates), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    path = store.folder / f"candidates-{split}-{digest}.npy"
    if _damage(path) is not None:
        _draw_once(path, store, protocol, split)
    array = np.load(path, mmap_mode="r")
    return torch.from_numpy(array.copy() if array.nbytes < MAX_BYTES_IN_MEMORY else array)


def _draw_once(path: Path, store: Store, protocol: Protocol, split: str) -> None:
    """Draw and write the table, unless another process does so meanwhile."""
    lock = store.folder.parent / f".{store.folder.name}.lock"
    try:
        with file_lock(lock, f"{path.stem}: another process is drawing them; waiting"):
            damage = _damage(path)
            if damage:
                print(f"[data] {damage}; drawing the candidates again", file=sys.stderr)
            if damage is not None:
                _write(path, _draw(store, protocol, split))
    except OSError as error:
        raise RecexpError(
            f"Candidates cannot be stored in {store.folder}: {reason(error)}. cache_dir= must be a "
            "writable place."
        ) from error


def _draw(store: Store, protocol: Protocol, split: str) -> NDArray[np.int32]:
    candidates = protocol.candidates
    targets = store.targets(split)
    pairs = store.all_pairs
    schema = store.schema
    excluded = torch.ones(len(pairs), dtype=torch.bool)
    if candidates.exclude == "explicit_only":
        bits = sum(1 << i for i, explicit in enumerate(schema.explicit) if explicit)
        excluded = (pairs.mask & bits) != 0
    key = pairs.user * schema.V + pairs.item
    # The targets themselves are among the user's pairs, whatever the rule.
    exclude = torch.cat([key[excluded], targets.user * schema.V + targets.item])
    weights = None
    if candidates.kind == "popularity":
        counts = store.item_count
        if candidates.counts == "train":
            counts = torch.bincount(store.train.item, minlength=schema.V)
        weights = counts.double().numpy()
    return draw(
        targets.user[targets.ptr[:-1]].numpy(),
        torch.unique(exclude).numpy(),
        schema.n_items,
        candidates.n,
        seed=2 * candidates.seed + (split == "test"),
        weights=weights,
    )


def _write(path: Path, drawn: NDArray[np.int32]) -> None:
    beside = path.with_suffix(".json")
    for place in (path, beside):
        if not place.is_file():
            remove(place)  # a folder in its place
    with atomic_write(path) as temporary:
        save_array(temporary, drawn)
    write_json(beside, {"sha256": checksum(path)})


def _damage(path: Path) -> str | None:
    """What is wrong with the table: None for nothing, "" where there is none yet."""
    beside = path.with_suffix(".json")
    if not os.path.lexists(path) and not os.path.lexists(beside):
        return ""
    try:
        recorded = read_object(beside).get("sha256")
    except (RecexpError, OSError) as error:
        return reason(error)
    if path.is_file() and recorded == checksum(path):
        return None
    return f"{path} is missing or damaged (its checksum does not match {beside.name})"
