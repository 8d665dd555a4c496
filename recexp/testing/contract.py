"""The contract of a model as tests that any model can be held against.

In a test file of your own::

    from recexp.testing import ModelContract

    class TestMine(ModelContract):
        model = staticmethod(lambda schema: Mine(schema))

``check_model(lambda schema: Mine(schema))`` does the same without a test runner.
"""

from __future__ import annotations

import dataclasses
import io
import unittest
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from recexp.contracts import (
    ClosedForm,
    Encoder,
    MultiBehavior,
    Objective,
    Recommender,
    SetAutoencoder,
)
from recexp.data.datamodule import RecDataModule
from recexp.data.store import Store, Targets
from recexp.objectives.autoencode import Autoencode
from recexp.objectives.closed_form import FitPass
from recexp.objectives.next_item import NextItem
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.samplers import Uniform
from recexp.objectives.session_parallel import SessionParallel
from recexp.testing import toy
from recexp.testing.worlds import random_store
from recexp.types import Query, Schema

N_CANDIDATES = 9


class ModelContract:
    """Tests of what the engine relies on. Subclass it in a test file and set ``model``.

    model: makes the model for a schema, small sizes, any initialization; wrap a function in
    ``staticmethod``.
    objective: makes the objective that trains it. Default: the model's own passes where it fits in
    closed form, pointwise for a ``MultiBehavior``, autoencode for a ``SetAutoencoder``, else
    pairwise, which trains any model by its score. Name the objective where the model is trained by
    another one, such as a causal encoder by ``NextItem``: some tests depend on it.
    store: the training data, the default being a toy store with one item feature of each kind,
    users without events and histories of all lengths.
    """

    model: Callable[[Schema], Recommender]
    objective: Callable[[], Objective] | None = None

    @cached_property
    def store(self) -> Store:
        """Training data of every test."""
        return random_store(side=True)

    # The parts

    def fresh_model(self) -> Recommender:
        """A new model with the same initialization at every call, bound to the store."""
        torch.manual_seed(0)
        model = self.model(self.store.schema)
        model.bind(self.store)
        return model

    @cached_property
    def scoring_model(self) -> Recommender:
        """A model whose scores differ between items, in float64 and evaluation mode.

        Closed form: fitted by one pass. Otherwise with large random parameters, so that no two
        scores are equal by accident.
        """
        model = self.fresh_model()
        toy.randomise(model)
        if isinstance(model, ClosedForm):
            model.fit_pass(self.store)
        return model

    def training_objective(self, model: Recommender) -> Objective:
        """The objective, bound to the model and the store."""
        objective = default_objective(model) if self.objective is None else self.objective()
        objective.bind(model, self.store)
        return objective

    def batches(
        self, objective: Objective, n_epochs: int = 3, batch_size: int = 32
    ) -> Iterator[Any]:
        """The batches of some epochs, as training gets them."""
        data = RecDataModule(
            self.store, objective, batch_size=batch_size, eval_batch_size=1, seed=0
        )
        loader = data.train_dataloader()
        sampler: Any = loader.sampler
        for epoch in range(n_epochs):
            sampler.set_epoch(epoch)
            for index, rows in enumerate(loader):
                generator = torch.Generator().manual_seed(1000 * epoch + index)
                yield objective.batch(self.store, rows, generator)

    @cached_property
    def rows(self) -> Tensor:
        """Training rows to score before: users' last events, first events (no history), others."""
        ptr = self.store.train.ptr
        has_events = ptr[1:] > ptr[:-1]
        last = ptr[1:][has_events] - 1
        first = ptr[:-1][has_events][:4]
        others = torch.tensor([5, 9, 30]).clamp(max=len(self.store.train) - 1)
        return torch.cat([last, first, others])

    def histories(self, model: Recommender) -> Query:
        """The histories before ``rows``, as long as the model reads them."""
        return self.store.query(self.rows, max(model.history, 1))

    @cached_property
    def candidates_BC(self) -> Tensor:
        """Distinct random items for every row."""
        generator = torch.Generator().manual_seed(1)
        n_items = self.store.schema.n_items
        return torch.stack(
            [torch.randperm(n_items, generator=generator)[:N_CANDIDATES] + 1 for _ in self.rows]
        )

    # The contract

    def test_loss_is_finite_and_reaches_every_parameter(self) -> None:
        """Every parameter gets a gradient within three epochs; closed form has no parameter."""
        model = self.fresh_model()
        if isinstance(model, ClosedForm):
            assert not list(model.parameters()), "a closed-form model keeps its state in buffers"
            assert all(torch.isfinite(torch.tensor(v)) for v in model.fit_pass(self.store).values())
            return
        model.train()
        objective = self.training_objective(model)
        for batch in self.batches(objective):
            losses = objective.losses(model, batch)
            for value in losses.values():
                assert torch.as_tensor(value).ndim == 0
                assert torch.isfinite(torch.as_tensor(value))
            torch.as_tensor(losses["loss"]).backward()
        assert toy.without_gradient(model) == []

    def test_scores_are_finite_with_and_without_a_history(self) -> None:
        """``rows`` include first events, whose history is empty."""
        model = self.scoring_model
        query = self.histories(model)
        assert (~query.mask_BL.any(dim=1)).any()
        assert torch.isfinite(model.score(query, self.candidates_BC)).all()

    def test_whole_catalog_equals_all_candidates(self) -> None:
        """``score(query)`` is [B, V-1], in the order of item ids, and tells items apart."""
        model = self.scoring_model
        query = self.histories(model)
        every_item_BC = torch.arange(1, self.store.schema.V).expand(len(query), -1)
        score_BV = model.score(query)
        assert score_BV.shape == (len(query), self.store.schema.n_items)
        assert_equal(model.score(query, every_item_BC), score_BV)
        assert len(score_BV[0].unique()) > 4

    def test_candidates_are_scored_one_by_one(self) -> None:
        """A candidate's score depends on no other candidate."""
        model = self.scoring_model
        query = self.histories(model)
        item_BC = self.candidates_BC
        score_BC = model.score(query, item_BC)
        order = torch.randperm(N_CANDIDATES, generator=torch.Generator().manual_seed(2))
        shuffled_BC = model.score(query, item_BC[:, order])
        assert_equal(shuffled_BC, score_BC[:, order])
        alone_B1 = model.score(query, item_BC[:, :1])
        assert_equal(alone_B1, score_BC[:, :1])

    def test_more_padding_changes_nothing(self) -> None:
        """Columns of padding on the left leave the scores as they are."""
        model = self.scoring_model
        query = self.histories(model)
        wider = model.score(toy.padded(query, 7), self.candidates_BC)
        assert_equal(wider, model.score(query, self.candidates_BC))

    def test_rows_do_not_see_each_other(self) -> None:
        """A row's scores do not depend on the other rows of the batch."""
        model = self.scoring_model
        query = self.histories(model)
        score_BC = model.score(query, self.candidates_BC)
        for row in (0, 3, len(query) - 2):
            only = slice(row, row + 1)
            alone_1C = model.score(query[only], self.candidates_BC[only])
            assert_equal(alone_1C, score_BC[only])

    def test_scores_without_user_vectors_depend_on_the_history_alone(self) -> None:
        model = self.scoring_model
        if model.needs_user:
            return  # scores of another user differ, as they should
        query = self.histories(model)
        other_user = dataclasses.replace(query, user_B=query.user_B.flip(0))
        torch.testing.assert_close(model.score(query), model.score(other_user))

    def test_item_embeddings_have_a_row_per_item(self) -> None:
        vectors_VD = self.scoring_model.item_embeddings()
        if vectors_VD is not None:
            assert vectors_VD.shape[0] == self.store.schema.n_items
            assert vectors_VD.ndim == 2

    def test_its_cost_can_be_counted(self) -> None:
        """``result.json`` records the operations of scoring one user."""
        from recexp.runs.costs import scoring_flops

        model = self.fresh_model()
        trainable = [p.requires_grad for p in model.parameters()]
        store = dataclasses.replace(self.store, test=self._one_target())
        assert scoring_flops(model, store, "before_target") >= 0
        assert [p.requires_grad for p in model.parameters()] == trainable

    def _one_target(self) -> Targets:
        """One held-out event of user 3."""
        user, item, time, behavior, seen = (torch.tensor([x]) for x in (3, 1, 0, 1, False))
        ptr = self.store.past.ptr
        return Targets(user, item, time, behavior, seen, ptr[3:4], ptr[4:5], seen, seen)

    def test_loading_a_state_dict_gives_the_same_scores(self) -> None:
        """All that scoring needs is in the state dict or follows from ``bind``."""
        model = self.scoring_model
        query = self.histories(model)
        fresh = self.fresh_model().double().eval()
        fresh.load_state_dict(model.state_dict())
        expected = model.score(query, self.candidates_BC)
        assert torch.equal(fresh.score(query, self.candidates_BC), expected)

    def test_state_dict_loads_with_weights_only(self) -> None:
        """Checkpoints are read with ``torch.load(weights_only=True)``, so tensors only."""
        state = self.scoring_model.state_dict()
        file = io.BytesIO()
        torch.save({"state_dict": state}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)["state_dict"]
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())

    def test_a_phase_of_training_can_be_entered_again(self) -> None:
        """A run that is resumed within an epoch enters its phase once more: that changes nothing.

        All phases together train parameters of the model.
        """
        model = self.fresh_model()
        own = {id(parameter) for parameter in model.parameters()}
        for phase in model.phases():
            assert phase.n_epochs >= 1 and phase.parameters
            assert {id(parameter) for parameter in phase.parameters} <= own
            model.enter_phase(phase.name)
            with torch.no_grad():
                for parameter in phase.parameters:
                    parameter.add_(0.1)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model.enter_phase(phase.name)
            assert all(torch.equal(before[k], x) for k, x in model.state_dict().items())

    def test_later_events_change_no_earlier_state(self) -> None:
        """For models trained to predict the next item at every position."""
        model = self.scoring_model
        if not isinstance(self.training_objective(model), NextItem | SessionParallel):
            raise unittest.SkipTest("not trained to predict the next item at every position")
        assert isinstance(model, Encoder)
        query = self.store.query(self.rows[: self._n_users_with_events], model.history)
        t = query.item_BL.shape[1] // 2
        before_BLD = model.encode(query)
        after_BLD = model.encode(self._changed_from(query, t))
        if before_BLD.shape[1] > 1:
            assert_equal(before_BLD[:, :t], after_BLD[:, :t])
        assert not torch.allclose(before_BLD[:, -1], after_BLD[:, -1])

    @property
    def _n_users_with_events(self) -> int:
        ptr = self.store.train.ptr
        return int((ptr[1:] > ptr[:-1]).sum())

    def _changed_from(self, query: Query, t: int) -> Query:
        """The query with other items and later times from position t on."""
        other_item_BL = torch.where(query.mask_BL, 1 + query.item_BL % self.store.schema.n_items, 0)
        later_BL = query.time_BL + 5 * query.mask_BL
        item_BL = torch.cat([query.item_BL[:, :t], other_item_BL[:, t:]], dim=1)
        time_BL = torch.cat([query.time_BL[:, :t], later_BL[:, t:]], dim=1)
        return dataclasses.replace(query, item_BL=item_BL, time_BL=time_BL)


def check_model(
    model: Callable[[Schema], Recommender],
    objective: Callable[[], Objective] | None = None,
    store: Store | None = None,
) -> None:
    """Hold a model against the whole contract; see ``ModelContract`` for the arguments.

    Raises AssertionError, with the name of the first test that fails, or what the model raises.
    """
    names = [name for name in vars(ModelContract) if name.startswith("test_")]
    contract = ModelContract()
    contract.model = model
    contract.objective = objective
    if store is not None:
        contract.store = store
    for name in names:
        try:
            getattr(contract, name)()
        except unittest.SkipTest:
            continue
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding in float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


def default_objective(model: Recommender) -> Objective:
    """An objective that can train the model: see ``ModelContract``."""
    if isinstance(model, ClosedForm):
        return FitPass()
    if isinstance(model, MultiBehavior):
        return Pointwise(Uniform())
    if isinstance(model, SetAutoencoder):
        return Autoencode()
    return Pairwise(Uniform())
