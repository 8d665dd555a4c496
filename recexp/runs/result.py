"""``RunResult``: what a run's ``result.json`` holds.

The run writes it, ``evaluate`` and the report read it. This module imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recexp.errors import RecexpError

LIMIT = 1e15  # no count and no measurement of a run comes near it
MAX_NAME = 1_000  # characters of a name
MAX_OVERRIDE = 10_000
SHOWN = 40  # characters of a bad value that an error message shows

Count = Annotated[int, Field(gt=-LIMIT, lt=LIMIT)]
Number = Annotated[float, Field(gt=-LIMIT, lt=LIMIT, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Override = Annotated[str, Field(max_length=MAX_OVERRIDE)]


class _Record(BaseModel):
    """Values are never converted; keys that other versions wrote are kept."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class DataFacts(_Record):
    """Facts about the prepared data.

    fingerprint: hash of the raw files, the settings of the preparation and the reader's code.
    feature_coverage: item feature -> share of items that have a value of it.
    user_feature_coverage, event_feature_coverage: likewise, of users and of events.
    ids: what ``dataset.missing_ids`` did to the events (``recexp.data.ids.clean_ids``).
    """

    users: Count | None = None
    items: Count | None = None
    interactions: Count | None = None
    fingerprint: str | None = None
    simulated: bool | None = None
    feature_coverage: dict[str, Number] | None = None
    user_feature_coverage: dict[str, Number] | None = None
    event_feature_coverage: dict[str, Number] | None = None
    ids: dict[str, Any] | None = None


class GitState(_Record):
    """The checkout that the code ran from; both None outside a checkout."""

    commit: Name | None = None
    dirty: bool | None = None


class Checkpoint(_Record):
    """The file, relative to the run's directory, whose weights were tested, and its checksum."""

    file: Name
    sha256: Name


class Refit(_Record):
    """The second training under ``selection=refit``.

    stop_reason: only where it was cut short. fingerprint: of its data, which hold the validation
    targets.
    """

    epochs: Count | None = None
    updates: Count | None = None
    stop_reason: Name | None = None
    fingerprint: Name | None = None


class External(_Record):
    """Predictions of another program that were evaluated in place of a trained model.

    file: its name. kind: "scores" (of all candidates), "partial scores" (others score lower) or
    "lists" (ranked). exact_to: the largest cut-off up to which metrics are known, because lists end
    somewhere; None where every rank is known.
    rows: of the file. missing_users: users without an item to rank, whose targets rank last.
    short_lists: lists shorter than the largest cut-off without the target, which ranks last.
    Rows left out, by reason: unknown_users and unknown_items (the data do not have them),
    other_users (without a target in the split), seen_items (that the protocol removes),
    not_candidates (not among the drawn ones).
    """

    file: Name
    sha256: Name
    kind: Name
    exact_to: Count | None = None
    rows: Count
    missing_users: Count = 0
    short_lists: Count = 0
    unknown_users: Count = 0
    other_users: Count = 0
    unknown_items: Count = 0
    seen_items: Count = 0
    not_candidates: Count = 0

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        return self.model_dump(exclude_unset=True)


class RunResult(_Record):
    """The content of ``result.json``.

    Keys with the default None may be missing: runs of earlier versions did not write them, or
    they concern some runs only.

    metrics: "test/<metric>" and "val/<metric>" -> value; "test/mrr" is always there, but for
        ``external`` lists that end before some target.
    selection: "val", "refit" or "test_peek (...)"; for an evaluated run also ", by <protocol>";
        "external" for predictions of another program.
    best_epoch: counted from 0. epochs: trained, over all parts of a resumed run.
    config: the settings without the places of files. overrides: of the command line.
    updates: optimizer steps, over all parts; 0 for a model without gradients.
    parts: one entry per process that trained the run, the last one at the end.
    checkpoint: whose weights were tested.
    refit: epochs and updates of the second training under ``selection=refit``.
    constant_loss: training loss of a model that scores all items equal.
    learned_share: see ``recexp.contracts.Objective.learned_share``.
    convergence: see ``recexp.runs.convergence.judge``.
    gflops, gops: see ``recexp.runs.costs.scoring_costs``.
    init_from: what ``init_from`` named, and how many users, items and feature values were known.
    evaluated: versions, hardware and time of an evaluation under another protocol.
    external: only for predictions of another program. model is then its name, and there are no
        epochs; git and versions are those of the evaluation.
    ranks_sha256: checksum of ``ranks.parquet``.
    list_metrics: names, without cut-offs, of the metrics of recommended lists. list_candidates:
        what the lists are of, "all" items or drawn ones ("uniform", "popularity").
    lists_sha256, list_values_sha256: checksums of ``lists.parquet`` and ``list_values.parquet``, of
    runs with ``evaluation.keep_top``.
    """

    model: Name
    dataset: Name
    protocol: Name
    protocol_id: Name
    seed: Count
    selection: Name
    metrics: dict[Name, Number]
    best_epoch: Count
    epochs: Count
    stop_reason: Name
    data: DataFacts

    objective: Name | None = None
    loss: Name | None = None
    sampler: Name | None = None
    overrides: list[Override] | None = None
    config: dict[str, Any] | None = None
    batch_counts: Name | None = None
    git: GitState | None = None
    audit: dict[str, Any] | None = None
    left_out: dict[str, Any] | None = None
    updates: Count | None = None
    updates_per_epoch: Count | None = None
    parts: list[dict[str, Any]] | None = None
    checkpoint: Checkpoint | None = None
    refit: Refit | None = None
    constant_loss: Number | None = None
    learned_share: Number | None = None
    convergence: dict[str, Any] | None = None
    wall_time_s: Number | None = None
    examples_per_s: Number | None = None
    parameters: Count | None = None
    gflops: Number | None = None
    gops: Number | None = None
    reconstruction: bool | None = None
    versions: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    peak_memory_mb: Number | None = None
    evaluated: dict[str, Any] | None = None
    init_from: dict[str, Any] | None = None
    external: External | None = None
    ranks_sha256: str | None = None
    list_metrics: list[Name] | None = None
    list_candidates: Name | None = None
    lists_sha256: str | None = None
    list_values_sha256: str | None = None

    @classmethod
    def parse(cls, content: object) -> RunResult:
        """The result that ``content``, read from JSON, stands for.

        Raises RecexpError that names the first wrong key.
        """
        try:
            result = cls.model_validate(content)
        except ValidationError as error:
            raise RecexpError(_first_problem(error)) from None
        ends = result.external is not None and result.external.exact_to is not None
        if "test/mrr" not in result.metrics and not ends:
            raise RecexpError("its metrics lack test/mrr")
        return result

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file: keys that were never set are left out."""
        return self.model_dump(exclude_unset=True)


def find_problem(content: object) -> str:
    """Why ``content``, read from JSON, is not the result of a finished run; "" if it is one."""
    try:
        RunResult.parse(content)
    except RecexpError as error:
        return str(error)
    return ""


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    missing = [str(p["loc"][-1]) for p in problems if p["type"] == "missing"]
    if missing:
        return f"it lacks {', '.join(missing)}"
    problem = problems[0]
    if not problem["loc"]:
        return "it is not a JSON object"
    value = repr(str(problem["input"])[:SHOWN])
    key = ".".join(str(part) for part in problem["loc"])[:SHOWN]
    if problem["loc"][0] == "metrics" and len(problem["loc"]) > 1:
        name = str(problem["loc"][1])[:SHOWN]
        return f"its metric {name!r} is {value}"
    return f"its {key} is {value}"
