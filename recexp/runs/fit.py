"""``recexp.fit``: one run from Python, on a data set of ``conf`` or on a frame of events."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from recexp.config.build import register_resolvers
from recexp.config.overrides import as_word
from recexp.config.presets import compose_config
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.runs.frame_features import FrameFeatures
from recexp.runs.histories import milliseconds, read_table, to_polars
from recexp.runs.run import run
from recexp.runs.trained import Frame, Trained, load

EVENTS = "events.parquet"
COLUMNS = ("user", "item", "timestamp", "behavior", "value")


def fit(
    model: str,
    data: Frame | str | Path | None = None,
    *,
    dataset: str | None = None,
    protocol: str | None = None,
    columns: Mapping[str, str] | None = None,
    behaviors: Sequence[str] | None = None,
    explicit: Sequence[str] | None = None,
    features: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    cache_dir: str | Path = "cache",
    progress: bool = True,
) -> Trained:
    """Train and test a model; returns it with its metrics.

    model: a name of ``conf/model``, such as "sasrec".
    data: events, a polars or pandas frame, or the path of a csv or parquet file. dataset: a name of
        ``conf/dataset`` instead, such as "ml_1m".
    protocol: a name of ``conf/protocol``. Default: with ``data`` "full_unseen" (the last event of
        each user is ranked against all unseen items), else that of the config.
    columns: "user", "item", "timestamp", "behavior" or "value" -> the name of its column in
        ``data``. Default: the columns of these names. Without a timestamp the rows are in the order
        of time. Integer times are seconds, unless their size says milliseconds.
    behaviors: the texts of the behavior column, weak to strong. explicit: those that count as
        explicit feedback; default: the strongest.
    features: of items, users and events, as ``dataset.source.features`` of ``dataset=table``, where
        a ``file`` may be a frame, an array of vectors or a path: {"items": {"file": frame, "item":
        "item", "columns": {"genre": "categorical"}}, "events": {"device": "categorical"}}. Only
        with ``data``.
    settings: dotted keys of the config -> values, such as {"model.n_factors": 32,
        "trainer.max_epochs": 5}. overrides: the same as words of a command line.
    run_dir: where the run writes its files. Default: a new folder below ``multirun_outputs``.
    cache_dir: for prepared data. progress: show progress bars.

    Raises RecexpError for wrong settings and faulty data.
    """
    if (data is None) == (dataset is None):
        raise RecexpError("fit needs either data (events) or dataset (a name of conf/dataset).")
    if features and data is None:
        raise RecexpError("fit takes features with data; those of dataset= are in its YAML.")
    folder = Path(run_dir) if run_dir is not None else _new_folder()
    words = [f"model={model}", f"run_dir={as_word(folder)}", f"cache_dir={as_word(cache_dir)}"]
    if data is not None:
        frame = read_table(Path(data)) if isinstance(data, str | Path) else to_polars(data)
        tables = FrameFeatures(features)
        words += _of_frame(frame, Path(cache_dir), dict(columns or {}), behaviors, explicit, tables)
        words.append(f"protocol={protocol or 'full_unseen'}")
    else:
        words.append(f"dataset={dataset}")
        words += [f"protocol={protocol}"] if protocol else []
    words += [f"{key}={as_word(value)}" for key, value in (settings or {}).items()]
    words += [f"+trainer.enable_progress_bar={str(progress).lower()}", "logger=none", *overrides]
    cfg = _run(words)
    return load(
        folder,
        raw_dir=cfg.dataset.raw_dir,
        cache_dir=cfg.cache_dir,
        plugins=cfg.plugins,
    )


def _run(words: Sequence[str]) -> DictConfig:
    """Run the config of these words and return it. Hydra's global state is as before afterwards."""
    register_resolvers()
    before = HydraConfig.instance().cfg
    try:
        try:
            cfg = compose_config(words)
        except CompactHydraException as error:  # an unknown choice or key
            raise RecexpError(str(error)) from error
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        run(cfg)
        return cfg
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


def _new_folder() -> Path:
    now = datetime.now()
    return Path("multirun_outputs") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}"


def _of_frame(
    frame: pl.DataFrame,
    cache: Path,
    columns: dict[str, str],
    behaviors: Sequence[str] | None,
    explicit: Sequence[str] | None,
    features: FrameFeatures,
) -> list[str]:
    """Write the frames below the cache, under a name made from their content; the overrides."""
    frame = _canonical(frame, columns, features.events)
    words = ["dataset=table", f"dataset.source.file={EVENTS}", "dataset.source.time_unit=ms"]
    for column in ("behavior", "value"):
        if column in frame.columns:
            words.append(f"dataset.source.{column}={column}")
    if "timestamp" not in frame.columns:
        words.append("dataset.source.timestamp=null")
    if "behavior" in frame.columns:
        words += _behavior_words(frame, behaviors, explicit)
    digest = hashlib.sha256(frame.hash_rows(seed=0).to_numpy().tobytes())
    digest.update(str(frame.schema).encode())  # the same numbers may stand for something else
    features.checksum_into(digest)
    folder = cache / "frames" / digest.hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / EVENTS).exists():
        with atomic_write(folder / EVENTS) as temporary:
            frame.write_parquet(temporary)
    features.write(folder)
    if features.settings:
        words.append(f"dataset.source.features={as_word(features.settings)}")
    return [*words, "dataset.name=frame", f"dataset.raw_dir={as_word(folder)}"]


def _canonical(
    frame: pl.DataFrame, columns: dict[str, str], features: Sequence[str]
) -> pl.DataFrame:
    """The event columns of the frame under their own names; times as int64 milliseconds.

    features: other columns to keep.
    """
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise RecexpError(f"columns names {unknown[0]!r}; events have {', '.join(COLUMNS)}.")
    chosen = {name: columns.get(name, name) for name in COLUMNS}
    for name, column in chosen.items():
        if column not in frame.columns and (name in columns or name in ("user", "item")):
            raise RecexpError(
                f"The events have no column {column!r} for {name}; they have "
                f"{', '.join(frame.columns)}. Name it: columns={{{name!r}: ...}}."
            )
    if missing := [name for name in features if name not in frame.columns]:
        raise RecexpError(
            f"The events have no column {missing[0]!r}, which features.events names; they have "
            f"{', '.join(frame.columns)}."
        )
    present = {name: column for name, column in chosen.items() if column in frame.columns}
    present |= {name: name for name in features}
    frame = frame.select(pl.col(column).alias(name) for name, column in present.items())
    if "timestamp" in frame.columns:
        frame = frame.with_columns(milliseconds(frame["timestamp"], "The events'"))
    return frame


def _behavior_words(
    frame: pl.DataFrame, behaviors: Sequence[str] | None, explicit: Sequence[str] | None
) -> list[str]:
    names = list(behaviors or [])
    if not names:
        names = sorted(frame["behavior"].cast(pl.String).unique().drop_nulls())
        if len(names) > 1:
            raise RecexpError(
                f"The events have the behaviors {', '.join(names)}: order them from weak to "
                "strong, behaviors=[...]."
            )
    strong = list(explicit or names[-1:])
    return [f"dataset.behaviors={as_word(names)}", f"dataset.explicit={as_word(strong)}"]
