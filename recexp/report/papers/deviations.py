"""In what a run departs from the paper whose figure it stands beside, in words."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import Any

from recexp.report.collect import Result, is_smoke, setting, trained_under
from recexp.report.papers.published import (
    FOLDER,
    READINGS,
    Figure,
    published_model,
)
from recexp.report.papers.recipe import Difference, differences, recipe

# (paper, data set) whose version of the data shows in the number of items, not of users alone.
ITEMS_COMPARED = {("bert4rec", "ml_1m"), ("nova_bert", "ml_1m"), ("ite", "retailrocket")}
SIZE_TOLERANCE = 0.01  # relative
# How the papers chose the reported epoch, as ``selection`` says it.
SELECTED = {
    "ite": "test_peek",
    "bert4rec": "refit",
    "nova_bert": "val",
    "multi_feedback": "val",
    "later": "val",
}
SELECTION_TEXTS = {
    "test_peek": "the best test value of all epochs",
    "val": "validation",
    "refit": "validation, then trained on its items too",
}
RUNS_AVERAGED = {("multi_feedback", "table4"): 10}
RECONSTRUCTED = {
    "nmtr": "from another paper's summary",
    "mtmf": "from its abstract",
    "mfpr": "from its abstract",
}


@cache
def printed_sizes(path: Path = FOLDER / "datasets.csv") -> dict[tuple[str, str, str], int]:
    """Users and items that a paper prints of a data set, by (paper, data set, quantity)."""
    sizes = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["quantity"] in ("users", "items"):
                sizes[row["paper"], row["dataset"], row["quantity"]] = int(row["printed"])
    return sizes


def same_data(result: Result, figure: Figure) -> bool:
    """Whether the run's data have the users and the items of the paper's, within 1 %."""
    return has_sizes_of(result, figure.paper, figure.dataset)


def has_sizes_of(result: Result, paper: str, dataset: str) -> bool:
    """As ``same_data``, of a data set as the paper has it."""
    for quantity, size in _sizes_of(paper, dataset).items():
        ours = result["data"].get(quantity)
        if ours is None or abs(ours - size) > SIZE_TOLERANCE * size:
            return False
    return True


def settings_apart(result: Result, figure: Figure) -> list[Difference]:
    """The settings of ``settings.csv`` in which the run departs from the figure's system."""
    model = result["model"]
    if model.endswith("_authors"):  # the code's variant, held against the paper's settings
        model = published_model(result)
    return differences(result, recipe(figure.paper, figure.table, model, figure.dataset))


def deviations(result: Result, figure: Figure | None, seeds: int = 1) -> list[str]:
    """In words, where a run departs from what the paper did, as far as is recorded.

    Reconstructions are always named. seeds: runs averaged.
    """
    notes = _of_the_system(result)
    if figure is None:
        return notes
    notes += _of_the_data(result, figure)
    notes += _of_the_protocol(result, figure)
    notes += _of_the_selection(result, figure, seeds)
    limit = setting(result, "trainer.limit_val_batches")
    if isinstance(limit, int) and not isinstance(limit, bool):
        notes.append(f"validated on {limit} batches of users only")
    if apart := settings_apart(result, figure):
        notes.append("; ".join(difference.text for difference in apart))
    return notes


def _sizes_of(paper: str, dataset: str) -> dict[str, int]:
    """The numbers of users and items that tell the paper's version of the data from others."""
    printed = printed_sizes()
    sizes = {}
    for quantity in ("users", "items"):
        size = printed.get((paper, dataset, quantity))
        compared = quantity == "users" or (paper, dataset) in ITEMS_COMPARED
        if size is not None and compared:
            sizes[quantity] = size
    return sizes


def _of_the_system(result: Result) -> list[str]:
    notes = []
    family = str(result["model"]).split("_")[0]
    if result.get("reconstruction") or family in RECONSTRUCTED:
        why = RECONSTRUCTED.get(family, "its paper does not say enough")
        notes.append(f"{result['model']} is a reconstruction ({why})")
    if is_smoke(result):
        notes.append("smoke scale: a test of the machinery, not of the systems")
    return notes


def _of_the_data(result: Result, figure: Figure) -> list[str]:
    notes = []
    data: dict[str, Any] = result["data"]
    if not same_data(result, figure):
        sizes = [
            f"{size:,} {quantity}"
            for quantity, size in _sizes_of(figure.paper, figure.dataset).items()
        ]
        notes.append(
            f"data: {data['users']:,} users and {data['items']:,} items; "
            f"the paper has {' and '.join(sizes)}"
        )
    if result["dataset"] != figure.dataset:
        theirs = "data that the paper does not name"
        if figure.names_data:
            theirs = f"the paper's {figure.dataset}"
        notes.append(f"data: {result['dataset']} stands in for {theirs}")
    return notes


def _of_the_protocol(result: Result, figure: Figure) -> list[str]:
    notes = []
    purges_later = setting(result, "protocol.split.purge") == "later"
    if (figure.protocol == "P2" and purges_later) or result["protocol"] in READINGS:
        notes.append(
            f"protocol {result['protocol']}: a variant, "
            "weaker events of a held-out pair stay in training"
        )
    if under := trained_under(result):
        notes.append(f"trained and selected under {under}")
    return notes


def _of_the_selection(result: Result, figure: Figure, seeds: int) -> list[str]:
    notes = []
    word = re.match(r"\w*", result["selection"])
    ours = word[0] if word else ""
    theirs = SELECTED[figure.paper]
    if ours != theirs:
        text = SELECTION_TEXTS.get(ours, ours)
        notes.append(f"epoch by {text} (paper: {SELECTION_TEXTS[theirs]})")
    n_runs = RUNS_AVERAGED.get((figure.paper, figure.table), 1)
    if seeds < n_runs:
        plural = "s" if seeds > 1 else ""
        notes.append(f"{seeds} run{plural}; the paper averages {n_runs}")
    if figure.paper == "ite" and setting(result, "protocol.history") == "before_target":
        notes.append("histories end before the target; the authors' code shows later events too")
    return notes
