"""Write a seeded online shop in RetailRocket's raw layout; ``shop`` says what is planted in it.

    python -m recexp.data.simulation --users 500 --items 1000 --categories 40 --out DIR

writes ``events.csv``, ``item_properties_part1.csv``, ``item_properties_part2.csv``,
``category_tree.csv`` and ``simulation.json`` (the setting). The numbers of a model on such data say
nothing about real shops.

Preparation recognizes such data with any reader (``is_simulated``): by ``simulation.json`` beside
the files, and where files were copied without it, by the time stamps, which all leave the same
remainder (``GRID``). It does not recognize events copied without ``simulation.json`` that were
mixed with others or whose times were converted to another unit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from recexp.data.simulation.shop import GRID, catalogue, events, properties, tree
from recexp.errors import RecexpError
from recexp.io import from_system, new_folder, read_object, reason

VERSION = 2  # raise it whenever the same setting writes other files
SETTING_FILE = "simulation.json"
DISTINCT_TIMES = 20  # fewer could leave the same remainder by chance

Count = Annotated[int, Field(ge=1, le=2**31)]
Mean = Annotated[float, Field(ge=1, le=200)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def is_simulated(files: Iterable[Path], raw_dir: Path, time: np.ndarray) -> bool:
    """Were these events written by a simulator?

    True where ``simulation.json`` lies in the folder of a file or above it up to ``raw_dir``, or
    where every time stamp lies on the simulator's grid.

    files: the raw files read. time: int64 [E], milliseconds.
    """
    if any(file.is_file() for file in setting_files(files, raw_dir)):
        return True
    modulus, remainder = GRID
    for part in (time[:1000], time):  # the first events decide for most real data
        if not (part % modulus == remainder).all():
            return False
    return len(np.unique(time)) >= DISTINCT_TIMES


def setting_files(files: Iterable[Path], raw_dir: Path) -> list[Path]:
    """Where ``simulation.json`` may lie: in the folder of a file or above it up to ``raw_dir``."""
    raw_dir = Path(raw_dir).resolve()
    folders: dict[Path, None] = {}
    for file in files:
        folder = Path(file).resolve().parent
        above = [parent for parent in folder.parents if parent.is_relative_to(raw_dir)]
        folders |= dict.fromkeys([folder, *above])
    return [folder / SETTING_FILE for folder in folders]


def simulate(
    out_dir: Path,
    *,
    users: Count,
    items: Count,
    categories: Count,
    sessions: Mean = 24.0,
    session_length: Mean = 6.0,
    cart_rate: Rate = 0.25,
    purchase_rate: Rate = 0.4,
    seed: Seed = 0,
) -> None:
    """Write a shop to ``out_dir``; do nothing where it holds this very setting already.

    categories: leaf categories. sessions: mean number per user. session_length: mean number of
    views in one. cart_rate: carts per view. purchase_rate: purchases per cart. The scale of
    RetailRocket itself is users=1407580 items=235061 categories=1300 sessions=1.25
    session_length=1.51 cart_rate=0.026 purchase_rate=0.324.

    The folder appears by one rename when it is complete. Of several processes that write the same
    shop at once one succeeds, and the others use its files.

    Raises:
        RecexpError: a setting is out of range, the folder holds something else or cannot be
            written.
    """
    setting = {
        "users": users,
        "items": items,
        "categories": categories,
        "sessions": sessions,
        "session_length": session_length,
        "cart_rate": cart_rate,
        "purchase_rate": purchase_rate,
        "seed": seed,
        "version": VERSION,
    }
    _check(setting)
    out_dir = Path(out_dir)
    if _holds(out_dir, setting):
        return
    try:
        _publish(out_dir, setting)
    except Exception as error:
        if not from_system(error):
            raise
        raise RecexpError(
            f"The simulated shop cannot be written to {out_dir}: {reason(error)}. "
            "dataset.raw_dir= must be a writable place with room."
        ) from error


def _publish(out_dir: Path, setting: Mapping[str, Any]) -> None:
    """Write the shop under a temporary name and rename it."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = new_folder(out_dir.parent, f".{out_dir.name}.partial-")
    try:
        _write(partial, setting)
        try:
            os.rename(partial, out_dir)
        except OSError:
            # Another process may have written the same shop in the meantime.
            if not _holds(out_dir, setting):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(setting: Mapping[str, Any]) -> None:
    for key, least in {"users": 1, "items": 1, "categories": 1, "seed": 0}.items():
        value = setting[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecexpError(
                f"simulated shop: {key} must be a whole number of at least {least}, got {value!r}"
            )
    if setting["items"] < 2 * setting["categories"]:
        raise RecexpError(
            f"simulated shop: items={setting['items']} are too few for "
            f"categories={setting['categories']}: give each two or more"
        )
    for key in ("sessions", "session_length", "cart_rate", "purchase_rate"):
        if not isinstance(setting[key], int | float):
            raise RecexpError(f"simulated shop: {key} must be a number, got {setting[key]!r}")
    for key in ("sessions", "session_length"):
        if not 1 <= setting[key] <= 200:
            raise RecexpError(
                f"simulated shop: {key} is a mean and must lie in 1..200, got {setting[key]!r}"
            )
    for key in ("cart_rate", "purchase_rate"):
        if not 0 < setting[key] < 1:
            raise RecexpError(
                f"simulated shop: {key} is a share and must lie strictly between 0 and 1, "
                f"got {setting[key]!r}"
            )


def _holds(out_dir: Path, setting: Mapping[str, Any]) -> bool:
    """Does out_dir hold this shop? False where it is absent or empty.

    Raises:
        RecexpError: it holds something else.
    """
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        found = read_object(out_dir / SETTING_FILE)
    except (OSError, RecexpError):
        raise RecexpError(
            f"{out_dir} is not a simulated shop (no readable {SETTING_FILE}): "
            "name another folder or remove it"
        ) from None
    if found != setting:
        raise RecexpError(
            f"{out_dir} holds a simulated shop of another setting ({found}): "
            "name another folder or remove it"
        )
    return True


def _write(folder: Path, setting: Mapping[str, Any]) -> None:
    # A random stream per part: a change of one part leaves the others as they were.
    streams = np.random.SeedSequence(setting["seed"]).spawn(3)
    shop_rng, event_rng, property_rng = (np.random.Generator(np.random.PCG64(s)) for s in streams)
    shop = catalogue(shop_rng, setting["items"], setting["categories"])
    events(event_rng, shop, setting).write_csv(folder / "events.csv")
    table = properties(property_rng, shop)
    half = len(table) // 2
    table[:half].write_csv(folder / "item_properties_part1.csv")
    table[half:].write_csv(folder / "item_properties_part2.csv")
    tree(shop).write_csv(folder / "category_tree.csv")
    (folder / SETTING_FILE).write_text(json.dumps(setting, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Command line: one option per keyword of ``simulate``, with its defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m recexp.data.simulation",
        description="Write a simulated shop in RetailRocket's raw layout.",
        argument_default=argparse.SUPPRESS,
    )
    for name in ("--users", "--items", "--categories"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--sessions", "--session-length", "--cart-rate", "--purchase-rate"):
        parser.add_argument(name, type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args(arguments))
    try:
        simulate(options.pop("out"), **options)
    except RecexpError as error:
        sys.exit(str(error))
