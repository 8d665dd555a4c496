"""Phases of training, in which only some of a model's parameters learn (``Recommender.phases``)."""

from __future__ import annotations

from recexp.contracts import Recommender
from recexp.types import Phase


def enter_epoch(model: Recommender, epoch: int) -> None:
    """Let the parameters of the epoch's phase learn, and those of other phases not.

    epoch: counted from 0.
    """
    phases = model.phases()
    if not phases:
        return
    phase = phase_of(phases, epoch)
    model.enter_phase(phase.name)
    learning = {id(parameter) for parameter in phase.parameters}
    for other in phases:
        for parameter in other.parameters:
            parameter.requires_grad_(id(parameter) in learning)


def leave_phases(model: Recommender) -> None:
    """Let all parameters learn again."""
    for phase in model.phases():
        for parameter in phase.parameters:
            parameter.requires_grad_(True)


def phase_of(phases: tuple[Phase, ...], epoch: int) -> Phase:
    """The phase of an epoch, counted from 0."""
    place = epoch % sum(phase.n_epochs for phase in phases)
    for phase in phases:
        if place < phase.n_epochs:
            return phase
        place -= phase.n_epochs
    raise AssertionError("the place lies within the round")
