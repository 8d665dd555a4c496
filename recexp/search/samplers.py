"""Samplers and pruners of Optuna by name.

The sampler of a trial is made for this trial, seeded with the search's seed and the trial's number:
what a trial draws depends on the trials before it and not on which process draws it, and a
search that goes on repeats no draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)

from recexp.search.space import Choice, Parameter

# The most frequent reduction of ASHA: one of four trials goes on (Li et al. 2020,
# arXiv:1810.05934).
REDUCTION = 4


def sampler_of_trial(
    name: str, seed: int, number: int, values: Mapping[str, Any] | None
) -> BaseSampler:
    """The sampler for one trial.

    name: tpe, cmaes or random. values: what a grid gives the trial; None for other samplers.
    """
    state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if values is not None:
            return PartialFixedSampler(dict(values), RandomSampler(seed=state))
        if name == "cmaes":
            return CmaEsSampler(seed=state, warn_independent_sampling=False)
        if name == "tpe":
            # Running trials count as bad ones, so that workers draw apart from each other.
            return TPESampler(seed=state, constant_liar=True)
    return RandomSampler(seed=state)


def pruner_by_name(name: str, min_epochs: int) -> BasePruner:
    """name: median, asha or none. min_epochs: that no trial is ended before."""
    if name == "median":
        return MedianPruner(n_warmup_steps=min_epochs)
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=REDUCTION)
    return NopPruner()


def distribution(parameter: Parameter) -> BaseDistribution:
    """The parameter as Optuna has it."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.words)
    low, high, step = parameter.low, parameter.high, parameter.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=parameter.log, step=int(step or 1))
    return FloatDistribution(low, high, log=parameter.log, step=step)
