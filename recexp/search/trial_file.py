"""``trial.json`` in the directory of a trial's run: what the search made of it.

The sweeper writes it, the report reads it. This module imports no Optuna.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recexp.errors import RecexpError
from recexp.io import write_json
from recexp.runs.loading import read_json
from recexp.runs.result import Count, Name, Number

FILE = "trial.json"

State = Literal["running", "finished", "pruned", "failed"]


class TrialFile(BaseModel):
    """What a search tells of a trial.

    value: of the search's metric in the best epoch; None where there is none. values: of the
    searched keys. epochs, updates: trained, also by a trial that was ended early.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    search: Name
    number: Annotated[Count, Field(ge=0)]
    state: State
    model: Name
    dataset: Name
    protocol: Name
    metric: Name
    value: Number | None = None
    values: dict[Name, Any]
    epochs: Count = 0
    updates: Count = 0
    reason: str = ""

    def write(self, folder: Path) -> None:
        """Write ``trial.json`` in the folder."""
        write_json(folder / FILE, self.model_dump())


def read_trial(path: Path) -> TrialFile:
    """The trial of a ``trial.json``.

    Raises RecexpError for a damaged file, and FileNotFoundError.
    """
    try:
        return TrialFile.model_validate(read_json(path))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))[:80]
        raise RecexpError(f"{path} is no trial of a search: {place}: {problem['msg']}") from None
