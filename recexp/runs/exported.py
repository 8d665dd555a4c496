"""An exported model in use: raw ids in, raw ids out, without the data it was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from recexp.data.dataset import Dataset
from recexp.data.features import event_vocabulary
from recexp.data.store import window
from recexp.errors import RecexpError
from recexp.io import checksum, read_limited
from recexp.runs.event_features import EventFeatures
from recexp.runs.histories import (
    UNKNOWN,
    WHOLE_HISTORY,
    Histories,
    RawIds,
    as_series,
    extended,
    graph_inputs,
    no_histories,
    raw_events,
    to_polars,
)

Format = Literal["onnx", "pt2", "safetensors"]
FILES: dict[str, str] = {
    "onnx": "model.onnx",
    "pt2": "model.pt2",
    "safetensors": "model.safetensors",
}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
SIGNATURE = "signature.json"
MAX_SIGNATURE_BYTES = 4 << 20
ROWS_AT_ONCE = 256

Array = np.ndarray[Any, Any]
Runner = Callable[[list[Array]], Sequence[Array]]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Port(_Record):
    """An input or an output of a graph. shape: numbers, and names of sizes that may vary."""

    name: str
    dtype: str
    shape: list[str | int]
    meaning: str


class FeatureFormat(_Record):
    """How an event feature becomes numbers.

    values: in the order of their ids 1, 2, ...; None for numbers, which are standardized by mean
    and spread.
    """

    name: str
    values: list[Any] | None
    mean: float | None
    spread: float | None


class EventFormat(_Record):
    """How raw events become numbers.

    behaviors: in the order of their codes 1, 2, .... explicit, merge, value_behaviors: as in the
    data set's YAML. levels: the values in the order of their ids 1, 2, .... columns: canonical
    names -> those of the data set's file. time_unit: of numbers. features: of events.
    """

    behaviors: list[str]
    explicit: list[str]
    value_behaviors: dict[str, float] | None
    levels: list[float]
    merge: Literal["none", "pairs"]
    columns: dict[str, str]
    time_unit: str | None
    features: list[FeatureFormat] = []


class Signature(_Record):
    """What ``signature.json`` says about the exported model beside it.

    model, dataset: their names. checkpoint: SHA-256 of the weights' checkpoint. fingerprint: of the
    data. sha256: checksums of the other files. inputs, outputs: in their order; none for weights.
    window: how many of a history's newest events the model reads; None: all.
    """

    version: Literal[1] = 1
    format: Format
    model: str
    dataset: str
    checkpoint: str | None
    fingerprint: str | None
    sha256: dict[str, str]
    inputs: list[Port] = []
    outputs: list[Port] = []
    k: int | None = None
    include_seen: bool = False
    window: int | None = None
    events: EventFormat
    versions: dict[str, str]

    @property
    def file(self) -> str:
        return FILES[self.format]

    @property
    def input_names(self) -> list[str]:
        return [port.name for port in self.inputs]


class Exported:
    """A model that ``python -m recexp.export`` wrote as a graph.

    signature: what the graph takes and returns. items: raw ids, item number n at place n - 1.
    users: raw ids, user number n at place n; empty for models without vectors of users.
    """

    def __init__(
        self, signature: Signature, items: pl.Series, users: pl.Series, runner: Runner
    ) -> None:
        self.signature = signature
        self.items = items
        self.users = users
        self._run = runner
        self._ids = RawIds(users, items)
        events = signature.events
        self._features = _event_features(events.features)
        self._dataset = Dataset(
            name="exported",
            raw_dir="",
            source=events.columns | {"time_unit": events.time_unit},
            behaviors=events.behaviors,
            explicit=events.explicit,
            value_behaviors=events.value_behaviors,
            merge=events.merge,
        )

    def __repr__(self) -> str:
        return f"<{self.signature.model} exported as {self.signature.format}>"

    def recommend(
        self,
        users: Sequence[Any] | pl.Series | None = None,
        *,
        histories: Any = None,
        k: int | None = None,
    ) -> pl.DataFrame:
        """The best items of each user.

        users: raw ids; None: those of ``histories``, or all users that the model has vectors of.
        histories: all that the users did, a frame as ``Trained.recommend`` takes it. The exported
        model holds no histories of its own.
        k: at most that of the graph, which is the default.

        Returns the columns user, item, rank and score, as ``Trained.recommend``.
        Raises RecexpError for users whom the model cannot score, a k that the graph does not have,
        and faulty histories.
        """
        k = self._checked_k(k)
        audience = self._audience(as_series(users), histories)
        frames = []
        for start in range(0, max(1, len(audience)), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            item_BK, score_BK = self.run(self._inputs(audience, rows))
            frames.append(self._frame(audience.raw[rows], item_BK[:, :k], score_BK[:, :k]))
        return pl.concat(frames)

    def run(self, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Item numbers and scores, [B, k], from inputs as the signature describes them."""
        item_BK, score_BK = self._run([inputs[name] for name in self.signature.input_names])
        return item_BK, score_BK

    def _checked_k(self, k: int | None) -> int:
        most = self.signature.k
        assert most is not None
        if k is not None and not 1 <= k <= most:
            raise RecexpError(f"k={k}: this graph was exported for lists of 1 to {most} items.")
        return k or most

    def _audience(self, users: pl.Series | None, histories: Any) -> Histories:
        needs_user = "user_B" in self.signature.input_names
        frame = None
        if histories is not None:
            names = list(self._features.entries)
            frame = raw_events(to_polars(histories), self._dataset, features=names)
        if users is None:
            if frame is None and not needs_user:
                raise RecexpError(
                    f"{self.signature.model} recommends from histories, which the export does not "
                    "hold: give histories=, or users= where there are none."
                )
            users = self.users if frame is None else frame["user"].unique(maintain_order=True)
        has_values = bool(self.signature.events.levels)
        audience = no_histories(users, self._ids, has_values=has_values, features=self._features)
        if frame is not None:
            levels = self.signature.events.levels
            audience = extended(audience, frame, self._ids, self._dataset, levels, self._features)
        self._check_can_score(audience, needs_user)
        return audience

    def _check_can_score(self, audience: Histories, needs_user: bool) -> None:
        why = ""
        cannot = torch.zeros(len(audience), dtype=torch.bool)
        if needs_user:
            cannot = audience.user_A == UNKNOWN
            why = "it has vectors of the users it was trained on only."
        elif "item_BL" in self.signature.input_names:
            cannot = audience.end_A == audience.start_A
            why = "the histories have no event of them."
        if bool(cannot.any()):
            unknown = audience.raw.filter(pl.Series(cannot.numpy()))
            raise RecexpError(
                f"{self.signature.model} cannot score {len(unknown):,} user(s), such as "
                f"{', '.join(map(str, unknown[:3]))}: {why}"
            )

    def _inputs(self, audience: Histories, rows: slice) -> dict[str, Array]:
        query = window(
            audience.events,
            audience.user_A[rows],
            audience.start_A[rows],
            audience.end_A[rows],
            WHOLE_HISTORY,
        )
        return graph_inputs(query)

    def _frame(self, users: pl.Series, item_BK: Array, score_BK: Array) -> pl.DataFrame:
        n_users, k = item_BK.shape
        kept = item_BK.flatten() > 0
        columns: dict[str, Any] = {
            "user": users.gather(np.repeat(np.arange(n_users), k)[kept]),
            "item": self.items.gather(item_BK.flatten()[kept] - 1),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n_users)[kept],
            "score": score_BK.flatten()[kept],
        }
        return pl.DataFrame(columns)


def _event_features(formats: Sequence[FeatureFormat]) -> EventFeatures:
    entries = {one.name: {"mean": one.mean, "spread": one.spread} for one in formats}
    vocabularies = {
        one.name: event_vocabulary(pl.Series(one.values)) for one in formats if one.values
    }
    return EventFeatures(entries, vocabularies)


def load_exported(folder: str | Path) -> Exported:
    """The graph in a folder that ``python -m recexp.export`` wrote; needs no training data.

    A file of format pt2 may hold code, as a Python module does: load only those of people whom you
    trust. ONNX files hold none.

    Raises RecexpError where files are missing or damaged, the format is no graph, or onnxruntime is
    missing.
    """
    folder = Path(folder)
    signature = read_signature(folder)
    if signature.format == "safetensors":
        raise RecexpError(
            f"{folder} holds weights and no graph: put them into a trained model by "
            "recexp.load(RUN_DIR).load_weights(...), or export with --format onnx."
        )
    _check_files(folder, signature)
    items = _read_ids(folder / "items.json")[1:]
    users = _read_ids(folder / "users.json") if "users.json" in signature.sha256 else pl.Series([])
    runner = open_graph(folder / signature.file, signature.format)
    return Exported(signature, items, users, runner)


def open_graph(path: Path, format: Format) -> Runner:
    """A function from the graph's inputs, in their order, to its outputs."""
    return _onnx_runner(path) if format == "onnx" else _pt2_runner(path)


def read_signature(folder: Path) -> Signature:
    """``signature.json`` of an exported model.

    Raises RecexpError where it is missing or damaged.
    """
    path = folder / SIGNATURE
    try:
        return Signature.model_validate_json(read_limited(path, MAX_SIGNATURE_BYTES))
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: {folder} holds no exported model.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecexpError(f"{path} is damaged: {place}: {first['msg']}.") from None


def check_format(name: str) -> None:
    """Raise RecexpError for an unknown format, and where a package for it is missing."""
    known = get_args(Format)
    if name not in known:
        raise RecexpError(f"format={name!r} is unknown; choose one of {', '.join(known)}.")
    missing = [package for package in PACKAGES.get(name, ()) if find_spec(package) is None]
    if missing:
        raise RecexpError(
            f"format={name} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def _check_files(folder: Path, signature: Signature) -> None:
    for name in (signature.file, "items.json"):
        if name not in signature.sha256:
            raise RecexpError(f"{folder / SIGNATURE} is damaged: it has no checksum of {name}.")
    for name, expected in signature.sha256.items():
        if Path(name).name != name:
            raise RecexpError(f"{folder / SIGNATURE} is damaged: {name[:80]!r} is no file's name.")
        try:
            is_whole = checksum(folder / name) == expected
        except OSError as error:
            raise RecexpError(f"{folder / name} cannot be read: {error.strerror}.") from None
        if not is_whole:
            raise RecexpError(f"{folder / name} is damaged: its checksum is not the export's.")


def _read_ids(path: Path) -> pl.Series:
    try:
        ids = json.loads(path.read_bytes())
        return pl.Series(ids)
    except (OSError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise RecexpError(f"{path} cannot be read: {error}") from error


def _onnx_runner(path: Path) -> Runner:
    check_format("onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(arrays: list[Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs

    return run


def _pt2_runner(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(arrays: list[Array]) -> Sequence[Array]:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(array) for array in arrays))
        return [x.numpy() for x in outputs]

    return run
