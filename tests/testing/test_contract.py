"""The public contract: a correct model outside the package passes; for a faulty one, the error
names the fault.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from recexp.contracts import Encoder, Recommender
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import Uniform
from recexp.testing import check_model

MODEL = '''
import torch
from torch import nn

from recexp.contracts import Recommender


class Mine(Recommender):
    """The mean of the item vectors of the history, times the candidates' vectors."""

    history = 5

    def __init__(self, schema):
        super().__init__()
        self.item = nn.Embedding(schema.V, 8, padding_idx=0)

    def score(self, query, item_BC=None):
        n_real_B1 = query.mask_BL.sum(1, keepdim=True).clamp(min=1)
        mean_BD = self.item(query.item_BL).sum(1) / n_real_B1
        if item_BC is None:
            return mean_BD @ self.item.weight[1:].T + torch.arange(1, len(self.item.weight))
        return torch.einsum("bd,bcd->bc", mean_BD, self.item(item_BC)) + item_BC
'''
TEST = """
from my_package.mine import Mine
from recexp.testing import ModelContract

class TestMine(ModelContract):
    model = staticmethod(lambda schema: Mine(schema))
"""


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "mine.py").write_text(MODEL)
    (tmp_path / "test_mine.py").write_text(TEST)
    return tmp_path


def python(folder, *words):
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_of_another_package_is_tested_in_four_lines(package):
    done = python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    assert done.returncode == 0, done.stdout
    assert "12 passed, 1 skipped" in done.stdout


@pytest.mark.slow  # a whole program; tests/test_architecture.py holds what is imported
def test_the_contract_needs_no_test_runner():
    done = python(".", "-c", "import recexp.testing, sys; assert 'pytest' not in sys.modules")
    assert done.returncode == 0, done.stderr


class Mean(Recommender):
    """A correct model; each subclass has one fault."""

    history = 5

    def __init__(self, schema):
        super().__init__()
        self.item = nn.Embedding(schema.V, 8, padding_idx=0)
        self.bias = nn.Parameter(torch.randn(schema.V))

    def state(self, query):
        n_real_B1 = query.mask_BL.sum(1, keepdim=True).clamp(min=1)
        return self.item(query.item_BL).sum(1) / n_real_B1

    def score(self, query, item_BC=None):
        if item_BC is None:
            item_BC = torch.arange(1, len(self.bias)).expand(len(query), -1)
        return (
            torch.einsum("bd,bcd->bc", self.state(query), self.item(item_BC)) + self.bias[item_BC]
        )


class PaddingCounts(Mean):
    def state(self, query):
        return self.item(query.item_BL).mean(1)


class RowsMix(Mean):
    def state(self, query):
        state_BD = super().state(query)
        return state_BD - state_BD.mean(0)


class NoHistoryIsNaN(Mean):
    def state(self, query):
        return self.item(query.item_BL).sum(1) / query.mask_BL.sum(1, keepdim=True)


class CandidatesMix(Mean):
    def score(self, query, item_BC=None):
        return super().score(query, item_BC).softmax(-1)


class CatalogIncludesPadding(Mean):
    def score(self, query, item_BC=None):
        if item_BC is None:
            item_BC = torch.arange(len(self.bias)).expand(len(query), -1)
        return super().score(query, item_BC)


class UnusedParameter(Mean):
    def __init__(self, schema):
        super().__init__(schema)
        self.forgotten = nn.Parameter(torch.ones(3))


class StateOutsideTheStateDict(Mean):
    def __init__(self, schema):
        super().__init__(schema)
        self.shift_V = torch.rand(schema.V, generator=torch.Generator().manual_seed(id(self)))

    def score(self, query, item_BC=None):
        shift_BC = self.shift_V[1:] if item_BC is None else self.shift_V[item_BC]
        return super().score(query, item_BC) + shift_BC


class StateNoTensor(Mean):
    def get_extra_state(self):
        return object()

    def set_extra_state(self, state):
        pass


class LooksAhead(Mean, Encoder):
    """An encoder whose every state is the mean of the whole history."""

    def encode(self, query):
        return self.state(query)[:, None].expand(-1, query.item_BL.shape[1], -1)

    def item_vectors(self, item=None):
        item = torch.arange(1, len(self.bias)) if item is None else item
        return self.item(item), self.bias[item]


def test_a_sound_model_passes():
    check_model(Mean)


@pytest.mark.parametrize(
    ("model", "test"),
    [
        (PaddingCounts, "more_padding_changes_nothing"),
        (RowsMix, "rows_do_not_see_each_other"),
        (NoHistoryIsNaN, "loss_is_finite"),
        (CandidatesMix, "candidates_are_scored_one_by_one"),
        (CatalogIncludesPadding, "whole_catalog_equals_all_candidates"),
        (UnusedParameter, "reaches_every_parameter"),
        (StateOutsideTheStateDict, "loading_a_state_dict"),
    ],
)
def test_a_fault_is_found(model, test):
    with pytest.raises(AssertionError, match=test):
        check_model(model)


def test_states_that_see_later_events_are_found():
    with pytest.raises(AssertionError, match="later_events_change_no_earlier_state"):
        check_model(LooksAhead, lambda: NextItem(Uniform()))


def test_a_checkpoint_that_is_no_tensor_is_found():
    with pytest.raises(Exception, match=r"pickle|weights_only"):
        check_model(StateNoTensor)
