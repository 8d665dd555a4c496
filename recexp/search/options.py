"""What ``hydra.sweeper`` says of a search, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from recexp.config.values import check_values


@dataclass(frozen=True)
class Options:
    """Settings of ``conf/hydra/sweeper/optuna.yaml``, which says what they mean."""

    n_trials: Annotated[int, Field(ge=1, le=1_000_000)]
    sampler: Literal["tpe", "cmaes", "random", "grid"]
    pruner: Literal["median", "asha", "none"]
    min_epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    metric: str | None
    storage: str
    study: str | None
    preset: str

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Options:
        """The options; RecexpError names the first wrong one."""
        check_values("hydra.sweeper", values, cls)
        return cls(**values)
