"""Write a seeded online shop in RetailRocket's raw layout. ``recexp.data.simulation.shop`` says what is planted in it.

    python -m recexp.data.simulation --users 500 --items 1000 --categories 40 --out DIR

writes ``events.csv``, ``item_properties_part1.csv``, ``item_properties_part2.csv``, ``category_tree.csv`` and
``simulation.json`` (the setting). The numbers of a model on such data say nothing about real shops.

Preparation recognises such data whichever reader reads them (``is_simulated``): by
``simulation.json`` beside the files, and where files were copied without it, by the time stamps,
which all leave the same remainder (``GRID``). It does not recognise events copied without
``simulation.json`` that were mixed with others or whose times were converted to another unit.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from recexp.data.simulation.shop import GRID, catalogue, events, properties, tree
from recexp.errors import RecexpError

VERSION = 2  # raise it whenever the same setting writes other files
SETTING_FILE = "simulation.json"
DISTINCT_TIMES = 20  # fewer could leave the same remainder by chance


def is_simulated(files: Iterable[Path], raw_dir: Path, time: np.ndarray) -> bool:
    """Were these events written by a simulator? ``simulation.json`` lies in the folder of a file or
    above it up to ``raw_dir``, or every time stamp lies on the simulator's grid.

    files: the raw files read. time: int64 [E], milliseconds.
    """
    raw_dir = Path(raw_dir).resolve()
    for file in files:
        folder = Path(file).resolve().parent
        above = [p for p in folder.parents if p.is_relative_to(raw_dir)]
        if any((p / SETTING_FILE).is_file() for p in (folder, *above)):
            return True
    modulus, remainder = GRID
    for part in (time[:1000], time):  # the first events tell most real data at once
        if not (part % modulus == remainder).all():
            return False
    return len(np.unique(time)) >= DISTINCT_TIMES


def simulate(
    out_dir: Path,
    *,
    users: int,
    items: int,
    categories: int,
    sessions: float = 24.0,
    session_length: float = 6.0,
    cart_rate: float = 0.25,
    purchase_rate: float = 0.4,
    seed: int = 0,
) -> None:
    """Write a shop to ``out_dir``; do nothing where it holds this very setting already.

    categories: leaf categories. sessions: mean number per user. session_length: mean number of views in one.
    cart_rate: carts per view. purchase_rate: purchases per cart. RetailRocket's own scale is users=1407580 items=235061
    categories=1300 sessions=1.25 session_length=1.51 cart_rate=0.026 purchase_rate=0.324.

    The folder appears by one rename when it is complete, so an interrupted write is never taken for whole, and of several
    processes that write the same shop at once one wins and the others use its files.

    Raises RecexpError for a setting out of range or a folder that holds something else.
    """
    setting = {k: v for k, v in locals().items() if k != "out_dir"} | {"version": VERSION}
    _check(setting)
    out_dir = Path(out_dir)
    if _holds(out_dir, setting):
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.partial-", dir=out_dir.parent))
    try:
        _write(partial, setting)
        partial.chmod(0o755)  # mkdtemp's folders are private
        try:
            os.rename(partial, out_dir)
        except OSError:
            if not _holds(out_dir, setting):  # else another process was faster and wrote the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(setting: dict) -> None:
    for key, low in {"users": 1, "items": 1, "categories": 1, "seed": 0}.items():
        if (
            not isinstance(setting[key], int)
            or isinstance(setting[key], bool)
            or setting[key] < low
        ):
            raise RecexpError(
                f"simulated shop: {key} must be a whole number of at least {low}, got {setting[key]!r}"
            )
    if setting["items"] < 2 * setting["categories"]:
        raise RecexpError(
            f"simulated shop: items={setting['items']} are too few for categories={setting['categories']}: give each two or more"
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
                f"simulated shop: {key} is a share and must lie strictly between 0 and 1, got {setting[key]!r}"
            )


def _holds(out_dir: Path, setting: dict) -> bool:
    """Whether out_dir is this shop. False where there is nothing; an error where there is something else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        found = json.loads((out_dir / SETTING_FILE).read_text())
    except (OSError, ValueError):
        reason = f"{out_dir} is not a simulated shop (no readable {SETTING_FILE}): name another folder or remove it"
        raise RecexpError(reason) from None
    if found != setting:
        raise RecexpError(
            f"{out_dir} holds a simulated shop of another setting ({found}): name another folder or remove it"
        )
    return True


def _write(folder: Path, setting: dict) -> None:
    # a stream for each part: changing one leaves the others as they were
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
    """Command line: one option per keyword of ``simulate``."""
    description = "Write a simulated shop in RetailRocket's raw layout."
    parser = argparse.ArgumentParser(
        prog="python -m recexp.data.simulation", description=description
    )
    for name, parameter in inspect.signature(simulate, eval_str=True).parameters.items():
        if name != "out_dir":
            required = parameter.default is inspect.Parameter.empty
            default = None if required else parameter.default
            parser.add_argument(
                "--" + name.replace("_", "-"),
                type=parameter.annotation,
                required=required,
                default=default,
            )
    parser.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args(arguments))
    try:
        simulate(options.pop("out"), **options)
    except RecexpError as error:
        sys.exit(str(error))
