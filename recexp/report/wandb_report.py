"""A report in W&B with the papers' figures: curves, comparison of models, swept settings.

It shows the runs that W&B has, one section per protocol id, as the tables. The package
wandb-workspaces writes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recexp.errors import RecexpError
from recexp.report.collect import Result, as_number, chose_on_test, setting
from recexp.report.tables import About, by_protocol, flat_config, settings
from recexp.runs.identity import key_of
from recexp.training.loggers.tracker import first_line, record_in, sortable
from recexp.training.loggers.with_wandb import RECORD, has_key

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

DRAWN = ("hr@10", "ndcg@10")  # besides the metric asked for
MAX_TITLE = 128  # characters, W&B's limit
TITLE = "recexp"


@dataclass(frozen=True)
class Logged:
    """A run and the id of its W&B run."""

    result: Result
    run_id: str
    is_offline: bool


def check_wandb() -> None:
    """Raise RecexpError where no report can be written: without the package, or without a key."""
    if find_spec("wandb_workspaces") is None:
        raise RecexpError(
            "--wandb needs the package wandb-workspaces: pip install wandb-workspaces, or "
            "recexp[tracking]."
        )
    if not has_key():
        raise RecexpError("--wandb needs a key of W&B: set WANDB_API_KEY or run wandb login.")


def save_wandb_report(
    results: Sequence[Result], metric: str, title: str, project: str, entity: str | None
) -> list[str]:
    """Write the report; returns lines that say where it is and what it lacks.

    metric: shown besides those of the papers. entity: the team or user that owns the project; None
    for the key's own. Raises RecexpError where no run was logged to W&B, or W&B refuses the report.
    """
    logged = logged_runs(results)
    if not logged:
        raise RecexpError(
            f"--wandb: none of the runs has a {RECORD}, so W&B has none of them. logger=wandb "
            "records a run there."
        )
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        report = wandb_report(logged, metric, title, project, entity or _own_entity())
        report.save()
        url = report.url
    except Exception as error:  # of W&B, its server or the network
        raise RecexpError(f"--wandb: W&B did not take the report ({first_line(error)}).") from error
    lines = [f"written: {url}"]
    if others := len(results) - len(logged):
        lines.append(f"not in W&B: {others} of {len(results)} results (no {RECORD})")
    if offline := sum(run.is_offline for run in logged):
        lines.append(f"logged offline: {offline} runs, which wandb sync uploads")
    return lines


def logged_runs(results: Sequence[Result]) -> list[Logged]:
    """The results of runs that W&B has, online or in offline files."""
    found = []
    for result in results:
        # An evaluation of a run, or of another program's predictions, is no run of its own there.
        record = record_in(Path(result["folder"]) / RECORD)
        if record:
            found.append(Logged(result, record["id"], record["mode"] == "offline"))
    return found


def wandb_report(
    runs: Sequence[Logged], metric: str, title: str, project: str, entity: str
) -> wr.Report:
    """The report, not saved yet."""
    import wandb_workspaces.reports.v2 as wr

    metrics = tuple(dict.fromkeys((*DRAWN, metric)))
    ids = {id(run.result): run.run_id for run in runs}
    blocks: list[Any] = []
    for about, results in by_protocol([run.result for run in runs]).items():
        blocks.append(wr.H2(text=f"{about}"))
        run_ids = [ids[id(result)] for result in results]
        grid = _grid(about, results, run_ids, metrics, project, entity)
        blocks.append(grid)
    return wr.Report(project=project, entity=entity, title=title[:MAX_TITLE], blocks=blocks)


def _grid(
    about: About,
    results: Sequence[Result],
    run_ids: Sequence[str],
    metrics: Sequence[str],
    project: str,
    entity: str,
) -> wr.PanelGrid:
    """The runs of a protocol id, grouped into systems, and the panels on them."""
    import wandb_workspaces.reports.v2 as wr

    swept = swept_keys(results)
    listed = ", ".join(f"'{run_id}'" for run_id in run_ids)
    runset = wr.Runset(
        entity=entity,
        project=project,
        name=f"{about.dataset} {about.protocol}"[:MAX_TITLE],
        filters=f"Metric('ID') in [{listed}]",
        # Runs that differ in the seed only are one group: a mean with its spread.
        groupby=[f"config.{key}" for key in ("names.model", *swept)],
    )
    return wr.PanelGrid(runsets=[runset], panels=_panels(results, swept, metrics))


def _panels(results: Sequence[Result], swept: Sequence[str], metrics: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    split = "test" if any(map(chose_on_test, results)) else "val"
    curves = [("train/loss", "training loss")]
    curves += [(f"{split}/{sortable(name)}", f"{split} {name}") for name in metrics]
    panels: list[Any] = [
        wr.LinePlot(title=f"{title} per epoch", x="epoch", y=[key]) for key, title in curves
    ]
    for name in metrics:
        panels.append(wr.BarPlot(title=f"test {name}", metrics=[f"test/{sortable(name)}"]))
    numeric = [key for key in swept if any(_is_number(result, key) for result in results)]
    for key in numeric:
        for name in metrics:
            y = wr.SummaryMetric(f"test/{sortable(name)}")
            panels.append(wr.ScatterPlot(title=f"test {name} by {key}", x=wr.Config(key), y=y))
    if swept:
        columns: list[Any] = [wr.Config(key) for key in ("names.model", *swept)]
        columns += [wr.SummaryMetric(f"test/{sortable(name)}") for name in metrics]
        axes = [wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
        panels.append(wr.ParallelCoordinatesPlot(title="Swept settings", columns=axes))
    return panels


def swept_keys(results: Sequence[Result]) -> list[str]:
    """Dotted keys of settings that were varied on purpose: overrides with several values.

    Of a group that an override chooses (``loss=``), the keys below it that differ.
    """
    overridden = {key_of(word) for result in results for word in settings(result)}
    configs = [flat_config(result) for result in results]
    found = []
    for key in dict.fromkeys(key for config in configs for key in config):
        is_chosen = any(key == name or key.startswith(f"{name}.") for name in overridden)
        # Models have settings of their own; only values under one key are compared.
        values = {config[key] for config in configs if key in config}
        if is_chosen and len(values) > 1:
            found.append(key)
    return found


def _is_number(result: Result, key: str) -> bool:
    return as_number(setting(result, key)) is not None


def _own_entity() -> str:
    """The user or team that the key belongs to."""
    import wandb

    return str(wandb.Api().default_entity)
