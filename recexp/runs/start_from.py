"""Start a run from the weights of a finished one, on the same or newer data.

Rows of tables belong to users, items, or values of a feature. Those that both runs know, by
their raw ids, are taken over; new ones stay as the model initialized them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from recexp.config.build import build
from recexp.contracts import ClosedForm, Recommender
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.runs.finished import FinishedRun, open_data, open_run, training_data
from recexp.training.checkpoints import read_checkpoint
from recexp.types import Feature, Schema

# Groups of features: the field of ``Schema``, and what begins the file of a feature's values. The
# key begins the name of a feature in messages.
FEATURES = {
    "": ("item_features", "feature_"),
    "users' ": ("user_attributes", "user_feature_"),
    "events' ": ("event_features", "event_feature_"),
}
PREFIX = "model."  # of the model's weights in a checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kind:
    """What rows of tables stand for: users, items, or the values of a feature.

    n_rows: of a table of one row each in the new run, padding included. old_row_N: the old run's
    row for each of the new run's, -1 where it has none. n_old: its rows.
    """

    name: str
    old_row_N: Tensor
    n_old: int
    n_padding: int

    def counts(self) -> dict[str, int]:
        """How many of the new run's ids the old one knew, and how many of each the other lacks."""
        known = int((self.old_row_N >= 0).sum()) - self.n_padding
        n_new = len(self.old_row_N) - self.n_padding - known
        return {"known": known, "new": n_new, "lost": self.n_old - self.n_padding - known}


@dataclass(frozen=True)
class Start:
    """The run that training starts from, and the weights of its model.

    store: the data that it was trained on.
    """

    run: FinishedRun
    store: Store
    weights: dict[str, Tensor]


def read_start(cfg: DictConfig) -> Start | None:
    """The run that ``init_from`` names; None where it names none.

    Raises RecexpError where it is this run, where its result, its checkpoint or its data cannot be
    read, or where its model is another one.
    """
    if not cfg.get("init_from"):
        return None
    if Path(cfg.init_from).resolve() == Path(cfg.run_dir).resolve():
        raise RecexpError(
            f"init_from={cfg.init_from} is this run's own directory, whose files the run replaces: "
            "choose another hydra.run.dir. To go on with an interrupted run, set ckpt_path."
        )
    try:
        run = open_run(cfg.init_from, cache_dir=cfg.cache_dir, plugins=cfg.get("plugins") or [])
        split = build(run.cfg.protocol).split
        store = training_data(run, open_data(run, split), split)
    except RecexpError as error:
        raise RecexpError(f"init_from: {error}") from error
    before, now = run.cfg.model._target_, cfg.model._target_
    if before != now:
        raise RecexpError(f"init_from: {run.folder} trained {before}, and this run has {now}.")
    state = read_checkpoint(run.checkpoint)["state_dict"]
    weights = {n.removeprefix(PREFIX): x for n, x in state.items() if n.startswith(PREFIX)}
    return Start(run, store, weights)


@torch.no_grad()
def start_from(start: Start, cfg: DictConfig, model: Recommender, store: Store) -> dict[str, Any]:
    """Copy the weights that the start and the model share; returns the record for ``result.json``.

    Raises RecexpError where weights differ in more than their users, items and feature values, or
    where the model has nothing to continue.
    """
    if isinstance(model, ClosedForm) and model.n_passes is not None:
        raise RecexpError(
            f"init_from: {type(model).__name__} is computed from the data alone, so there is "
            "nothing to start from."
        )
    kinds = _kinds(start.store, store)
    rows_of = _rows_by_kind(cfg, store.schema, kinds)
    own = _trained_tensors(model)
    if set(own) - set(start.weights):
        missing = sorted(set(own) - set(start.weights))
        raise RecexpError(f"init_from: {start.run.folder} has no weights {', '.join(missing)}.")
    for name, value in own.items():
        _copy(name, start.weights[name], value, rows_of.get(name), kinds, start.run.folder)
    counts = {kind.name: kind.counts() for kind in kinds.values()}
    leaked = {split: _n_leaked(split, start.store, store, kinds) for split in ("val", "test")}
    log.info("init_from: %s", "; ".join(_said(name, count) for name, count in counts.items()))
    checkpoint = start.run.result.checkpoint
    return {
        "model": start.run.result.model,
        "sha256": None if checkpoint is None else checkpoint.sha256,
        "fingerprint": start.store.meta["fingerprint"],
        "ids": counts,
        "trained_targets": leaked,
    }


def _n_leaked(split: str, old: Store, new: Store, kinds: Mapping[str, _Kind]) -> int:
    """Held-out targets that the earlier run was trained on, where this run's training lacks them.

    Warns where there is one: such targets make this run's metrics too good.
    """
    targets = new.targets(split)
    user_Q = kinds["users"].old_row_N[targets.user]
    item_Q = kinds["items"].old_row_N[targets.item]
    is_known_Q = (user_Q >= 0) & (item_Q >= 0)
    was_trained_Q = old.train_pairs.contain(user_Q.clamp(min=0), item_Q.clamp(min=0)) & is_known_Q
    is_trained_Q = new.train_pairs.contain(targets.user, targets.item)
    n_leaked = int((was_trained_Q & ~is_trained_Q).sum())
    if n_leaked:
        log.warning(
            "init_from: %s of %s %s targets were training events of the earlier run, so this run's "
            "metrics are too good: evaluate on events after those that it was trained on.",
            f"{n_leaked:,}",
            f"{len(targets):,}",
            split,
        )
    return n_leaked


def _said(name: str, count: Mapping[str, int]) -> str:
    return f"{name}: {count['known']:,} known, {count['new']:,} new, {count['lost']:,} lost"


def _trained_tensors(model: Recommender) -> dict[str, Tensor]:
    """Parameters; of a model that learns without gradients, its buffers of numbers."""
    if isinstance(model, ClosedForm):
        return {name: x for name, x in model.named_buffers() if x.is_floating_point()}
    return dict(model.named_parameters())


# Which rows belong together


def _kinds(old: Store, new: Store) -> dict[str, _Kind]:
    """Users, items and the values of the features that both data have."""
    kinds = {
        "users": _kind("users", _ids(old, "users", "user"), _ids(new, "users", "user"), 0),
        "items": _kind("items", _ids(old, "items", "item"), _ids(new, "items", "item"), 1),
    }
    for group, (field, file_of) in FEATURES.items():
        known = getattr(old.schema, field).keys()
        for name in getattr(new.schema, field).keys() & known:
            file = file_of + name
            if not all((store.folder / f"{file}.parquet").is_file() for store in (old, new)):
                continue  # numbers: it has no values of its own
            key = f"values of {group}{name}"
            kinds[key] = _kind(key, _ids(old, file, "value"), _ids(new, file, "value"), 1)
    return kinds


def _ids(store: Store, file: str, column: str) -> pl.Series:
    """Raw ids in the order of their rows."""
    return pl.read_parquet(store.folder / f"{file}.parquet")[column]


def _kind(name: str, old: pl.Series, new: pl.Series, n_padding: int) -> _Kind:
    # As text: the type of an id may differ between two versions of a data set.
    rows = pl.int_range(n_padding, len(old) + n_padding, eager=True)
    known = pl.DataFrame({"id": old.cast(pl.String), "row": rows})
    joined = pl.DataFrame({"id": new.cast(pl.String)}).join(
        known, on="id", how="left", maintain_order="left"
    )
    old_row_N = torch.tensor(joined["row"].fill_null(-1).to_list(), dtype=torch.int64)
    padding = torch.arange(n_padding)
    return _Kind(name, torch.cat([padding, old_row_N]), len(old) + n_padding, n_padding)


def _rows_by_kind(
    cfg: DictConfig, schema: Schema, kinds: Mapping[str, _Kind]
) -> dict[str, tuple[str, int, int]]:
    """Of every weight with rows of a kind: the kind, the dimension, and its rows per id.

    Found by building the model, without memory, for data with one more user, item or value.
    """

    def shapes(some: Schema) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = build(cfg.model, schema=some)
        return {name: x.shape for name, x in _trained_tensors(model).items()}

    found: dict[str, tuple[str, int, int]] = {}
    base = shapes(schema)
    for kind in kinds:
        for name, shape in shapes(_grown(schema, kind)).items():
            for dim, (before, after) in enumerate(zip(base[name], shape, strict=True)):
                if after > before:
                    found[name] = (kind, dim, after - before)
    return found


def _grown(schema: Schema, kind: str) -> Schema:
    """The schema of data with one more user, one more item, or one more value of a feature."""
    if kind == "users":
        bags = {
            name: replace(bag, ptr=F.pad(bag.ptr, (0, 1), value=int(bag.ptr[-1])))
            for name, bag in schema.user_features.items()
        }
        attributes = {name: _with_a_row(f) for name, f in schema.user_attributes.items()}
        return replace(
            schema, n_users=schema.n_users + 1, user_features=bags, user_attributes=attributes
        )
    if kind == "items":
        features = {name: _with_a_row(f) for name, f in schema.item_features.items()}
        return replace(schema, n_items=schema.n_items + 1, item_features=features)
    key = kind.removeprefix("values of ")
    group = next(group for group in sorted(FEATURES, reverse=True) if key.startswith(group))
    name = key.removeprefix(group)
    changes = [FEATURES[group][0]]
    if not group and name in schema.user_features:
        changes.append("user_features")
    grown: dict[str, Any] = {
        field: _with_a_value(getattr(schema, field), name) for field in changes
    }
    return replace(schema, **grown)


def _with_a_row(feature: Feature) -> Feature:
    """The feature of one more item or user, which has no value."""
    id_VM = F.pad(feature.id_VM, (0, 0, 0, 1))
    weight_VM = F.pad(feature.weight_VM, (0, 0, 0, 1))
    return replace(feature, id_VM=id_VM, weight_VM=weight_VM)


def _with_a_value(features: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The features, one of which has one more value."""
    grown = replace(features[name], cardinality=features[name].cardinality + 1)
    return {**features, name: grown}


# Copies


def _copy(
    name: str,
    old: Tensor,
    new: Tensor,
    place: tuple[str, int, int] | None,
    kinds: Mapping[str, _Kind],
    folder: Path,
) -> None:
    """Copy a weight, or the rows of it that both runs have.

    place: of ``_rows_by_kind``. A dimension with k rows per id has them in k blocks, one row of
    every id each; rows beyond the ids, such as that of a mask, stand at its end.
    """
    differ = RecexpError(
        f"init_from: the weight {name} of {folder} has the shape {tuple(old.shape)}, and "
        f"{tuple(new.shape)} here: give this run the model settings of that one."
    )
    if place is None:
        if old.shape != new.shape:
            raise differ
        new.copy_(old)
        return
    kind, dim, n_blocks = kinds[place[0]], place[1], place[2]
    old, target = old.movedim(dim, 0), new.movedim(dim, 0)
    extra = len(target) - n_blocks * len(kind.old_row_N)
    if old.shape[1:] != target.shape[1:] or len(old) != n_blocks * kind.n_old + extra or extra < 0:
        raise differ
    at_N = (kind.old_row_N >= 0).nonzero().flatten()
    for block in range(n_blocks):
        old_N = kind.old_row_N[at_N] + block * kind.n_old
        target[at_N + block * len(kind.old_row_N)] = old[old_N].to(target)
    if extra:
        target[-extra:] = old[-extra:].to(target)
