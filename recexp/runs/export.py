"""``python -m recexp.export RUN_DIR``: a trained model as a graph of its own, or its weights."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import recexp
from recexp.errors import RecexpError
from recexp.io import advice, checksum, new_folder, reason, write_json
from recexp.logs import printable, show_logs
from recexp.runs.command_line import add_run, loaded
from recexp.runs.event_features import EventFeatures
from recexp.runs.exported import (
    FILES,
    PACKAGES,
    SIGNATURE,
    EventFormat,
    FeatureFormat,
    Format,
    Port,
    Signature,
    check_format,
    load_exported,
)
from recexp.runs.graph import FEATURE, Graph, input_type, trace
from recexp.runs.readme import readme
from recexp.runs.trained import Trained
from recexp.types import Schema

COMPARED_USERS = 20
TOLERANCE = 1e-4  # relative to scores above 1
MEANINGS = {
    "user_B": "user numbers: places in users.json, counted from 0",
    "item_BL": "histories, oldest event first: item numbers, which are places in items.json; "
    "0 on the left of shorter histories",
    "behavior_BL": "behaviors of the same events: places in events.behaviors, counted from 1; "
    "0 on the left",
    "time_BL": "times of the same events in milliseconds since 1970; 0 on the left",
    "value_BL": "values of the same events: places in events.levels, counted from 1; 0 where a "
    "value is unknown, and on the left",
    "seen_BL": "items that are not to be recommended: item numbers, and 0 at places left over",
}
OUTPUTS = {
    "item_BK": "item numbers, best first: places in items.json; 0 where no item is left",
    "score_BK": "their scores; -inf where no item is left",
}


def export(
    trained: Trained,
    out: str | Path,
    format: Format,
    *,
    k: int = 10,
    include_seen: bool = False,
) -> float | None:
    """Write the model into a new folder: a file of its format, maps of ids, and a description.

    format: "onnx" and "pt2" are graphs from histories or users to the best k items; "safetensors"
    holds the weights alone. k, include_seen: of the graph.

    Returns the largest difference of scores to the model, over the lists of some users; None for
    weights.
    Raises RecexpError for an unknown format, a missing package, k outside 1..items, a folder that
    exists, a model that torch cannot trace, and lists that differ from the model's.
    """
    out = Path(out)
    check_format(format)
    n_items = len(trained.items)
    if not 1 <= k <= n_items:
        raise RecexpError(f"k={k}: lists have 1 to {n_items:,} items, as many as the data.")
    _check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = new_folder(out.parent, f".{out.name}.")
        try:
            difference = _write(trained, folder, format, k, include_seen)
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it is not there after success
    except OSError as error:
        raise RecexpError(f"{out} cannot be written: {reason(error)}. {advice(error)}.") from error
    return difference


def _check_free(out: Path) -> None:
    if out.exists():
        raise RecexpError(f"{out} exists already: remove it, or choose another --out.")


def _write(
    trained: Trained, folder: Path, format: Format, k: int, include_seen: bool
) -> float | None:
    graph = None
    if format == "safetensors":
        _write_weights(trained, folder / FILES[format])
    else:
        with _silence():
            graph = trace(trained.model, trained.schema, k, include_seen)
            write_graph(graph, folder / FILES[format], format)
    _write_ids(folder / "items.json", [None, *trained.items])
    if graph is None or "user_B" in graph.inputs:
        _write_ids(folder / "users.json", list(trained.users))
    sha256 = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    signature = _signature(trained, format, graph, k, include_seen, sha256)
    write_json(folder / SIGNATURE, signature.model_dump())
    example = [str(item) if isinstance(item, str) else item for item in trained.items[:2]]
    (folder / "README.md").write_text(readme(signature, example, trained.users[0]))
    return None if graph is None else _compare(trained, folder, k, include_seen)


def write_graph(graph: Graph, path: Path, format: Format) -> None:
    """Write the graph in format "onnx" or "pt2".

    Raises RecexpError where ONNX has no operation for it.
    """
    if format == "pt2":
        torch.export.save(graph.program, path)
        return
    try:
        program = torch.onnx.export(
            graph.program,
            dynamo=True,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(OUTPUTS),
            dynamic_shapes={"columns": tuple(map(_sizes, graph.inputs))},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        why = re.search(r"No ONNX function found for (.*?)\.\s", str(error))
        raise RecexpError(
            "ONNX has no operations for this model"
            f"{f' ({why[1]})' if why else ''}: use --format pt2."
        ) from error
    assert program is not None
    program.save(path)


def _sizes(name: str) -> dict[int, str]:
    """Names of an input's sizes, which may vary, by dimension."""
    return {0: "batch"} if name == "user_B" else {0: "batch", 1: "length"}


def _write_weights(trained: Trained, path: Path) -> None:
    from safetensors.torch import save

    tensors = {name: x.cpu().contiguous() for name, x in trained.model.state_dict().items()}
    facts = {"model": trained.result.model, "fingerprint": str(trained.result.data.fingerprint)}
    path.write_bytes(save(tensors, metadata=facts))


def _write_ids(path: Path, ids: list[Any]) -> None:
    path.write_text(json.dumps(ids, ensure_ascii=False, default=str))


def _signature(
    trained: Trained,
    format: Format,
    graph: Graph | None,
    k: int,
    include_seen: bool,
    sha256: dict[str, str],
) -> Signature:
    result = trained.result
    packages = ["torch", *PACKAGES.get(format, ())]
    signature = Signature(
        format=format,
        model=result.model,
        dataset=result.dataset,
        checkpoint=result.checkpoint.sha256 if result.checkpoint else None,
        fingerprint=result.data.fingerprint,
        sha256=sha256,
        events=_event_format(trained),
        versions={"recexp": recexp.__version__} | {name: version(name) for name in packages},
    )
    if graph is None:
        return signature
    inputs = [
        Port(
            name=name,
            dtype=str(input_type(name, trained.schema)).removeprefix("torch."),
            shape=list(_sizes(name).values()),
            meaning=_meaning(name, trained.schema),
        )
        for name in graph.inputs
    ]
    outputs = [
        Port(name=name, dtype=dtype, shape=["batch", k], meaning=OUTPUTS[name])
        for name, dtype in zip(OUTPUTS, ("int64", "float32"), strict=True)
    ]
    return signature.model_copy(
        update={
            "inputs": inputs,
            "outputs": outputs,
            "k": k,
            "include_seen": include_seen,
            "window": graph.window,
        }
    )


def _meaning(name: str, schema: Schema) -> str:
    if not name.startswith(FEATURE):
        return MEANINGS[name]
    feature = name.removeprefix(FEATURE)
    if schema.event_features[feature].kind == "numeric":
        return (
            f"{feature} of the same events: (number - mean) / spread of events.features; 0 where "
            "it is unknown, and on the left"
        )
    return (
        f"{feature} of the same events: places in events.features, counted from 1; 0 where it is "
        "unknown, and on the left"
    )


def _feature_formats(features: EventFeatures) -> list[FeatureFormat]:
    formats = []
    for name, entry in features.entries.items():
        vocabulary = features.vocabularies.get(name)
        values = None if vocabulary is None else vocabulary["value"].to_list()
        formats.append(
            FeatureFormat(
                name=name, values=values, mean=entry.get("mean"), spread=entry.get("spread")
            )
        )
    return formats


def _event_format(trained: Trained) -> EventFormat:
    dataset = trained.dataset
    columns = {}
    for name in ("user", "item", "behavior", "value", "timestamp"):
        column = dataset.source.get(name)
        if isinstance(column, str):
            columns[name] = column
    thresholds = None
    if dataset.value_behaviors is not None:
        thresholds = {name: float(least) for name, least in dataset.value_behaviors.items()}
    time_unit = dataset.source.get("time_unit")
    return EventFormat(
        behaviors=list(dataset.behaviors),
        explicit=list(dataset.explicit),
        value_behaviors=thresholds,
        levels=[float(level) for level in trained.levels],
        merge=dataset.merge,
        columns=columns,
        time_unit=None if time_unit is None else str(time_unit),
        features=_feature_formats(trained.event_features),
    )


def _compare(trained: Trained, folder: Path, k: int, include_seen: bool) -> float:
    """The largest difference between scores of the graph's lists and of the model's.

    Raises RecexpError where they differ by more than ``TOLERANCE``.
    """
    exported = load_exported(folder)
    place = np.unique(np.linspace(0, len(trained.users) - 1, COMPARED_USERS).astype(int))
    users = trained.users.gather(place)
    expected = trained.recommend(users, k, include_seen=include_seen)
    item_BK, score_BK = exported.run(trained.inputs(users))
    rows = np.repeat(np.arange(len(users)), (item_BK > 0).sum(1))
    found = pl.DataFrame({"user": users.gather(rows), "score": score_BK[item_BK > 0]})
    difference = np.inf
    if found["user"].equals(expected["user"]):
        scores = expected["score"].to_numpy()
        gaps = np.abs(found["score"].to_numpy() - scores)
        difference = float(gaps.max(initial=0.0))
        if (gaps <= TOLERANCE * np.maximum(1.0, np.abs(scores))).all():
            return difference
    raise RecexpError(
        f"{type(trained.model).__name__} cannot be exported: the graph's lists differ from the "
        f"model's (scores by up to {difference:.3g}). Its scores depend on values in a way that "
        "tracing does not see, such as an if or int() of a tensor."
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Without the messages of torch's exporters, which do not concern users of recexp."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m recexp.export``."""
    made = argparse.ArgumentParser(
        prog="python -m recexp.export",
        description="The model of a finished run in files that need neither recexp nor the data: "
        "a graph from histories or users to the best items, the maps of ids, and a description.",
    )
    add_run(made)
    add = made.add_argument
    add("--format", required=True, help=f"one of {', '.join(FILES)}")
    add("--out", type=Path, metavar="DIR", help="a new folder (default: RUN_DIR/export_FORMAT)")
    add("-k", type=int, default=10, help="length of the lists (default: 10)")
    add("--include-seen", action="store_true", help="also items of the user's history")
    add("--threads", type=int)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recexp.export``."""
    options = parser().parse_args(arguments)
    show_logs()
    out = options.out or options.run_dir / f"export_{options.format}"
    try:
        check_format(options.format)  # before the data are read
        _check_free(out)
        trained = loaded(options)
        difference = export(
            trained, out, options.format, k=options.k, include_seen=options.include_seen
        )
    except RecexpError as error:
        sys.exit(f"error: {error}")
    print(printable(f"{trained.result.model} written to {out}"))
    if difference is not None:
        print(f"largest difference of scores to the model's own: {difference:.1e}")
