"""Tables that come split: files of validation and test beside that of training, or a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.lookups import RawFiles
from recexp.data.readers import Raw, table
from recexp.data.rows import TEST, TRAIN, VAL
from recexp.errors import RecexpError

# Texts in a column that names the part of each event, in lower case.
PARTS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
}
Part = str | Sequence[str] | Mapping[str, Any]


def read(
    raw_dir: str | Path,
    *,
    file: Any,
    on_bad_rows: BadRows = "error",
    part: table.Source | None = None,
    validation: Part | None = None,
    test: Part | None = None,
    **options: Any,
) -> Raw:
    """Read ``file`` as ``recexp.data.readers.table`` does, and say what each event is for.

    part: the column that says it: train, validation (val, valid, dev) or test. None: the events of
        ``file`` are for training, and those of the next two for what they are called.
    validation, test: a file (also a pattern or a list), or a mapping with ``file`` and the options
        of the table reader that differ, such as {file: test.csv, timestamp: null, as_behavior:
        buy}. Where a file has no column of times (timestamp: null), its events get the last time of
        the training events. as_behavior: the text of the behavior of all its events, where it has
        no column of it.
    options: of the table reader.

    Raises RecexpError where there is neither a column nor a file of test events.
    """
    if (part is None) == (test is None):
        raise RecexpError(
            "dataset=given takes the test events from dataset.source.test (a file) or from "
            "dataset.source.part (a column): name one of them."
        )
    if part is not None:
        if validation is not None:
            raise RecexpError(
                f"dataset.source.part={part!r} says which events are for validation: leave out "
                "dataset.source.validation."
            )
        return _with_column(raw_dir, part, {"file": file, "on_bad_rows": on_bad_rows, **options})
    options["on_bad_rows"] = on_bad_rows
    raw = table.read(raw_dir, file=file, **options)
    options |= raw.decided  # all files are read alike
    events = raw.events.collect()
    frames = [events.with_columns(part=_code(TRAIN))]
    for name, code, source in (("validation", VAL, validation), ("test", TEST, test)):
        if source is not None:
            of_part = _part(raw_dir, name, source, options)
            frames.append(_like(of_part, events, code))
            _add_files(raw.files, of_part.files)
            raw.dropped.update({f"{why} ({name})": n for why, n in of_part.dropped.items()})
    return replace(raw, events=pl.concat(frames).lazy())


def _part(raw_dir: str | Path, name: str, source: Part, options: dict[str, Any]) -> Raw:
    """The events of a file of validation or test."""
    own = dict(source) if isinstance(source, Mapping) else {"file": source}
    if "file" not in own:
        raise RecexpError(f"dataset.source.{name} has no file: {{file: {name}.csv, ...}}.")
    as_behavior = own.pop("as_behavior", None)
    settings = {**options, **own, "features": None}
    if as_behavior is not None:
        settings["behavior"] = None
    elif settings.get("behavior") is None and options.get("behavior") is not None:
        raise RecexpError(
            f"dataset.source.{name}: its file has no column of behaviors; name the behavior of all "
            f"its events: {{file: {own['file']}, as_behavior: buy}}."
        )
    raw = table.read(raw_dir, **settings)
    if as_behavior is None:
        return raw
    return replace(raw, events=raw.events.with_columns(behavior=pl.lit(str(as_behavior))))


def _add_files(files: list[Path], others: list[Path]) -> None:
    """Add the files that a part read and looked for."""
    files.extend(file for file in others if file not in files)
    if isinstance(files, RawFiles) and isinstance(others, RawFiles):
        files.exists |= others.exists
        files.matches |= others.matches


def _like(of_part: Raw, events: pl.DataFrame, code: int) -> pl.DataFrame:
    """The events of a part with the columns of the training events."""
    frame = of_part.events.collect()
    if not of_part.has_times:
        frame = frame.with_columns(timestamp=pl.lit(events["timestamp"].max(), dtype=pl.Int64))
    if "value" in events.columns and "value" not in frame.columns:
        frame = frame.with_columns(value=pl.lit(None, dtype=pl.Float32))
    return frame.select(events.columns).with_columns(part=_code(code))


def _with_column(raw_dir: str | Path, part: table.Source, options: dict[str, Any]) -> Raw:
    """The events of one file, with the part that a column says."""
    # The reader takes the column in the place of the behaviors, which are read apart.
    in_place = table.read(raw_dir, **{**options, "behavior": part})
    texts = in_place.events.select("behavior").collect()["behavior"].cast(pl.String)
    words = texts.str.strip_chars().str.to_lowercase()
    unknown = texts.filter(~words.is_in(list(PARTS)).fill_null(value=False))
    if len(unknown):
        raise RecexpError(
            f"{in_place.files[0]}: the column {part!r} holds {unknown[0]!r}; it says what each "
            f"event is for: {', '.join(PARTS)}."
        )
    codes = words.replace_strict(list(PARTS), list(PARTS.values()), return_dtype=pl.Int8)
    raw = table.read(raw_dir, **options) if options.get("behavior") is not None else in_place
    events = raw.events.collect()
    if raw is in_place:
        events = events.with_columns(behavior=pl.lit("interaction"))
    if events.height != len(codes):
        raise RecexpError(
            f"{raw.files[0]}: rows without a {part!r} cannot be left out: correct them."
        )
    return replace(raw, events=events.with_columns(part=codes).lazy())


def _code(code: int) -> pl.Expr:
    return pl.lit(code, dtype=pl.Int8)
