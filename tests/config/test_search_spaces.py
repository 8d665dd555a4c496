"""Every model that learns has a search space, and every value of it passes the check of a run."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.search.space import read_space
from tests.config.test_check import composed as checked
from tests.config.test_experiments import composed

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
WITHOUT_VALUES = {"pop", "replay"}
QUICK = {"gru4rec_plus"}  # its space has keys in every group


def space_of(search, *words):
    config = composed(*words, f"search={search}", "hydra/sweeper=optuna", return_hydra_config=True)
    params = OmegaConf.to_container(config.hydra.sweeper.params)
    return read_space(params, [], OverridesParser.create())


def test_every_model_that_learns_has_a_space():
    spaces = {path.stem for path in (CONF / "search").glob("*.yaml")}
    assert spaces >= set(MODELS) - WITHOUT_VALUES
    assert not spaces & WITHOUT_VALUES


def test_a_space_takes_over_those_that_it_names():
    assert space_of("mlp").parameters.keys() == {
        "optimizer.lr",
        "optimizer.weight_decay",
        "objective.n_negatives",
        "model.n_factors",
        "model.n_layers",
        "model.dropout",
    }


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model in QUICK else pytest.mark.slow)
        for model in MODELS
        if model not in WITHOUT_VALUES
    ],
)
def test_every_value_of_a_space_passes_the_check(model):
    space = space_of(model, f"model={model}")
    assert space.parameters
    for words in space.corners():
        check_config(checked(f"model={model}", *words))
