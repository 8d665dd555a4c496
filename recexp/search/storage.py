"""Where a study lies: a file that all its workers can reach."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from recexp.errors import RecexpError

SQLITE = "sqlite:///"
DATABASES = (".db", ".sqlite", ".sqlite3")
JOURNALS = (".journal", ".log")
PATIENCE = 60  # seconds that SQLite waits for another process
# What opening a file raises that is no study, or one of another version.
BAD_FILE = (SQLAlchemyError, RuntimeError, ValueError, KeyError, AssertionError)
# What a file raises that was damaged since then.
DAMAGED = (SQLAlchemyError, json.JSONDecodeError)


def storage_file(text: str) -> Path:
    """The file that ``hydra.sweeper.storage`` names.

    Raises RecexpError for anything but SQLite and journal files.
    """
    path = Path(text.removeprefix(SQLITE))
    is_database = text.startswith(SQLITE) and path.name
    if "://" in text.removeprefix(SQLITE) or not (
        is_database or path.suffix in (*DATABASES, *JOURNALS)
    ):
        raise RecexpError(
            f"hydra.sweeper.storage={text}: must be a file that ends in "
            f"{', '.join(DATABASES)} (SQLite) or {', '.join(JOURNALS)} (journal, for network file "
            "systems)."
        )
    return path.absolute()


def open_storage(text: str) -> BaseStorage:
    """The storage, created where it is missing, by one process at a time.

    Raises RecexpError for a file that holds something else.
    """
    path = storage_file(text)
    if path.is_dir():
        raise RecexpError(f"hydra.sweeper.storage={text}: is a directory and must be a file.")
    with storage_errors(text, BAD_FILE), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if path.suffix in JOURNALS and not text.startswith(SQLITE):
            return JournalStorage(JournalFileBackend(str(path)))
        return RDBStorage(f"{SQLITE}{path}", engine_kwargs={"connect_args": {"timeout": PATIENCE}})


@contextmanager
def storage_errors(text: str, kinds: tuple[type[Exception], ...] = DAMAGED) -> Iterator[None]:
    """Errors of the storage are one sentence that names it."""
    try:
        yield
    except kinds as error:
        cause = error.__cause__ or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise RecexpError(
            f"hydra.sweeper.storage={text} cannot be used: {lines[0].rstrip('.')}. Name another "
            "file, or move this one away to start anew."
        ) from error
