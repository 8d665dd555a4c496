"""One generated input: written, mutated, read and prepared, and compared with what plain Python
makes of the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from recexp.data.build import build
from recexp.data.dataset import Dataset
from recexp.data.raw import scanning
from recexp.data.readers import Raw
from recexp.data.split import Split
from recexp.errors import RecexpError
from tests.fuzz import values as meanings
from tests.fuzz.files import Refused
from tests.fuzz.layouts import LAYOUTS
from tests.fuzz.mutations import mutate
from tests.fuzz.world import Expected, Layout, World

MAX_DEPTH = 64  # of a category tree, as features.py has it
SPLITS = (
    Split(),
    Split(),
    Split(target="explicit", purge="pair", fallback="any", test_without_history=True),
    Split(target="strongest", purge="pair", fallback="any", test_without_history=True),
    Split(target="strongest", purge="later", fallback="any"),
    Split(kind="global_time", test_share=0.2, val_share=0.2),
)
FILTERS = ([], [], [{"user_min": 2}], [{"item_min": 2, "user_min": 2, "count": "items"}])


class Wrong(AssertionError):
    """The outcome is neither the right result nor one clear error."""


def trial(seed: int, folder: Path) -> str:
    """Run input number ``seed`` in a folder of its own.

    Returns "read" or "refused"; raises Wrong, which says how to run it alone.
    """
    rng = random.Random(seed)
    name = rng.choice(list(LAYOUTS))
    layout = LAYOUTS[name]
    files = layout.write(rng, World.random(rng))
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3])):
        spoilt = rng.choice(list(files))
        files[spoilt] = mutate(rng, files[spoilt])
    policy = rng.choice(["error", "drop"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    large, scanning.LARGE = scanning.LARGE, rng.choice([0, scanning.LARGE])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return check(rng, layout, files, policy, folder)
    except Wrong as error:
        raise Wrong(
            f"{error}\nlayout {name}, on_bad_rows={policy}. "
            f"Alone: python -m tests.fuzz --seed {seed}"
        ) from error.__cause__
    finally:
        scanning.LARGE = large


def check(
    rng: random.Random, layout: Layout, files: dict[str, bytes], policy: str, folder: Path
) -> str:
    """Read and prepare, and compare."""
    try:
        expected = layout.expect(files)
        if policy == "error" and any(expected.bad.values()):
            raise Refused("bad rows")
    except Refused as refused:
        expected = refused
    module, function = f"recexp.data.readers.{layout.reader}".rsplit(".", 1)
    dataset = Dataset(
        name="fuzz",
        raw_dir=str(folder),
        source={"_target_": f"{module}.{function}", "_partial_": True, **layout.options},
        behaviors=layout.behaviors,
        explicit=layout.behaviors[-1:],
        merge=rng.choice(["none", "none", "pairs"]),
        on_bad_rows=policy,
        filters=rng.choice(FILTERS),
        iterate_filters=rng.random() < 0.3,
    )
    split = rng.choice(SPLITS)
    read = getattr(importlib.import_module(module), function)
    raw = attempt(lambda: read(folder, on_bad_rows=policy, **layout.options))
    if isinstance(expected, Refused) or isinstance(raw, RecexpError):
        if not isinstance(raw, RecexpError):
            raise Wrong(f"must be refused ({expected}), but was read")
        if not isinstance(expected, Refused):
            raise Wrong(f"refused without need: {raw}")
        if str(folder) not in str(raw) or len(str(raw)) > 900:
            raise Wrong(f"unclear: {raw}")
        return "refused"
    compare(raw, expected)
    out = folder / "out"
    out.mkdir()
    check_arrays(attempt(lambda: build(dataset, split, out)), expected, dataset, split, layout, out)
    return "read"


def attempt(call: Callable[[], object]) -> object:
    """The result or the RecexpError. Raises Wrong for any other error, panics of Rust included."""
    try:
        return call()
    except RecexpError as error:
        str(error).encode()
        return error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Wrong(
            f"{type(error).__module__}.{type(error).__name__}: {str(error)[:500]}"
        ) from error


def compare(raw: Raw, expected: Expected) -> None:
    """What the reader returned with what it must return."""
    events = raw.events.collect()
    columns = [
        "user",
        "item",
        "behavior",
        "timestamp",
        *(["value"] if "value" in events.columns else []),
    ]
    same("events", events.select(columns).rows(), expected.events)
    same("features", sorted(raw.item_features), sorted(expected.features))
    for name, feature in raw.item_features.items():
        same(
            f"feature {name}",
            sorted(feature.frame.collect().rows(), key=repr),
            sorted(expected.features[name], key=repr),
        )
        if feature.tree is not None:
            same("tree", feature.tree.collect().rows(), expected.tree)
    for file, bad in expected.bad.items():
        same(
            f"bad rows of {file}",
            sum(rows for key, (rows, _) in raw.dropped.items() if key.startswith(f"{file}: ")),
            bad,
        )


def same(what: str, found: object, wanted: object) -> None:
    """Wrong where they differ, showing the first difference of lists."""
    if found != wanted:
        if isinstance(found, list) and isinstance(wanted, list):
            at = next(
                (n for n, (f, w) in enumerate(zip(found, wanted, strict=False)) if f != w),
                min(len(found), len(wanted)),
            )
            differ = f"found {found[at : at + 2]}, expected {wanted[at : at + 2]}"
            raise Wrong(
                f"{what}: {len(found)} found, {len(wanted)} expected; at {at}: {differ}"[:700]
            )
        raise Wrong(f"{what}: found {found}, expected {wanted}")


def filtered(events: list[tuple], steps: list[dict], iterate: bool) -> list[tuple]:
    """The filters of the data set, in plain Python."""
    while True:
        before = len(events)
        for step in steps:
            counts = []
            for key, other in ((0, 1), (1, 0)):
                of = defaultdict(list)
                for event in events:
                    of[event[key]].append(event[other])
                counts.append(
                    {
                        k: len(set(v)) if step.get("count") == "items" else len(v)
                        for k, v in of.items()
                    }
                )
            least = (step.get("user_min", 0), step.get("item_min", 0))
            events = [
                e for e in events if counts[0][e[0]] >= least[0] and counts[1][e[1]] >= least[1]
            ]
        if not iterate or len(events) == before:
            return events


def with_ids(events: list[tuple]) -> list[tuple]:
    """Events with a user and an item, their texts without blanks around them."""
    stripped = [(_stripped(user), _stripped(item), *rest) for user, item, *rest in events]
    return [e for e in stripped if not any(str(x).lower() in meanings.NO_ID for x in e[:2])]


def _stripped(id_: object) -> object:
    return id_.strip(meanings.SPACE) if isinstance(id_, str) else id_


def check_arrays(
    found: object, expected: Expected, dataset: Dataset, split: Split, layout: Layout, out: Path
) -> None:
    """The prepared arrays with the events. found: what ``build`` returned, or its RecexpError."""
    known = set(layout.behaviors)
    if any(
        e[2] not in known for e in expected.events
    ):  # a table's behaviors are known to preparation only
        if dataset.on_bad_rows == "error":
            same("unknown behavior refused", isinstance(found, RecexpError), True)
            return
        expected.events = [e for e in expected.events if e[2] in known]
    expected.events = with_ids(expected.events)
    for name, rows in expected.features.items():
        expected.features[name] = [(_stripped(row[0]), *row[1:]) for row in rows]
    events = filtered(expected.events, dataset.filters, dataset.iterate_filters)
    own = defaultdict(list)
    for event in events:
        own[event[0]].append(event)
    own = {user: sorted(mine, key=lambda e: e[3]) for user, mine in sorted(own.items())}
    plain = split == Split() and dataset.merge == "none"
    if isinstance(found, RecexpError):
        tree_fault = expected.tree and "cycle" in str(found)
        if "none of its" in str(found):
            known = {e[1] for e in expected.events}
            if all(known & {row[0] for row in rows} for rows in expected.features.values()):
                raise Wrong(f"every feature has an item: {found}")
            return
        if plain and any(len(mine) > 1 for mine in own.values()) and not tree_fault:
            raise Wrong(f"not prepared, without a reason: {found}")
        if tree_fault and not endless(expected):
            raise Wrong(f"no cycle: {found}")
        return
    if not any(len(mine) > 1 for mine in own.values()):
        raise Wrong("prepared, though no user can be tested")
    users, items = (pl.read_parquet(out / f"{name}s.parquet") for name in ("user", "item"))
    same("users", users.rows(), list(enumerate(own)))
    same("items", items.rows(), list(enumerate(sorted({e[1] for e in events}), 1)))
    index = {item: i for i, item in items.rows()}

    def load(name: str) -> list:
        return np.load(out / f"{name}.npy").tolist()

    if plain:
        codes = {name: code for code, name in enumerate(layout.behaviors, 1)}
        history = [event for mine in own.values() for event in mine]
        columns = [load(f"past_{name}") for name in ("item", "behavior", "time")]
        same(
            "past",
            list(zip(*columns, strict=True)),
            [(index[e[1]], codes[e[2]], e[3]) for e in history],
        )
        same(
            "test",
            load("test_item"),
            [index[mine[-1][1]] for mine in own.values() if len(mine) > 1],
        )
        same(
            "val", load("val_item"), [index[mine[-2][1]] for mine in own.values() if len(mine) > 2]
        )
        if levels := found[1]["levels"]:
            same(
                "values",
                [None if v == 0 else levels[v - 1] for v in load("past_value")],
                [e[4] for e in history],
            )
    check_features(expected, layout, index, out, max(load("train_time")))


def check_features(expected: Expected, layout: Layout, index: dict, out: Path, end: int) -> None:
    """The tables of the features with their rows. index: raw item -> its number; end: of the
    training time.
    """
    for name, rows in expected.features.items():
        ids, weights = (
            np.load(out / f"feature_{name}_id.npy"),
            np.load(out / f"feature_{name}_weight.npy"),
        )
        wanted = as_of(rows, index, end)
        if not np.isfinite(weights).all() or ids[0].any():
            raise Wrong(f"weights of {name} are no numbers, or padding has a value")
        if layout.kinds[name] == "numeric":
            check_numbers(
                name, ids[:, 0], weights[:, 0], {i: np.mean(values) for i, values in wanted.items()}
            )
            continue
        if layout.kinds[name] == "categorical":
            wanted = {i: values[-1:] for i, values in wanted.items()}
        if expected.tree:
            if endless(expected, {v for values in wanted.values() for v in values}):
                raise Wrong("prepared, though the tree has a cycle")
            wanted = {i: ancestors(values, expected.tree) for i, values in wanted.items()}
        vocabulary = dict(pl.read_parquet(out / f"feature_{name}.parquet").rows())
        found = {
            i: sorted(vocabulary[v] for v in row if v)
            for i, row in enumerate(ids.tolist())
            if any(row)
        }
        same(
            name,
            sorted(found.items()),
            sorted((i, sorted(set(values))) for i, values in wanted.items()),
        )
        sums = weights.sum(1)
        if not np.allclose(sums[(ids > 0).any(1)], 1) or sums[~(ids > 0).any(1)].any():
            raise Wrong(f"{name}: weights do not sum to 1")


def check_numbers(name: str, ids: np.ndarray, weights: np.ndarray, known: dict[int, float]) -> None:
    """Standardized over the items that have a value."""
    same(name, np.flatnonzero(ids).tolist(), sorted(known))
    values = np.array([known[i] for i in sorted(known)])
    if len(values):
        # equal numbers differ by rounding only: their standardized values may be any small numbers
        spread = values.std()
        near = np.abs(values).max() * 1e-12
        wanted = (values - values.mean()) / spread if spread > near else np.zeros(len(values))
        if not np.allclose(weights[sorted(known)], wanted, rtol=1e-4, atol=1e-4):
            raise Wrong(f"{name}: {weights[sorted(known)]}, expected {wanted}")


def as_of(rows: list[tuple], index: dict, end: int) -> dict[int, list]:
    """Item index -> its values; of those with times the last by ``end``, else the first."""
    own = defaultdict(list)
    for item, *value in rows:
        if item in index:
            own[index[item]].append(value)
    if rows and len(rows[0]) == 3:
        for item, values in own.items():
            past = [t for _, t in values if t <= end]
            at = max(past) if past else min(t for _, t in values)
            own[item] = [v for v in values if v[1] == at]
    return {item: [v[0] for v in values] for item, values in own.items()}


def ancestors(values: list, tree: list[tuple]) -> list:
    """The values and everything above them."""
    found = list(values)
    for value in found:
        found += [p for v, p in tree if v == value and p is not None and p not in found]
    return found


def endless(expected: Expected, values: set | None = None) -> bool:
    """Whether a cycle lies above any of the values, or of the values of all items."""
    start = values if values is not None else {row[1] for row in expected.features["category"]}
    level = set(start)
    for _ in range(MAX_DEPTH):
        level = {p for v, p in expected.tree if v in level and p is not None}
    return bool(level)
