"""What models, objectives, losses and samplers promise to the engine.

Every method and attribute that the engine uses is declared here, with a neutral default where
one exists. A class inherits from the contract it fulfills, so ``isinstance`` tells what an object
can do, and a method that is missing is reported by name (``require``).

Models: ``Recommender`` scores items. Its subclasses add what an objective may need:

    MultiBehavior   one logit per behavior and candidate     (pointwise)
    BranchMasked     a MultiBehavior that masks branches     (pointwise, pairwise)
    Encoder          a state per position of a history        (next_item, cloze)
    SetAutoencoder   an Encoder of a set of items         (autoencode)
    SideEncoder      an Encoder that reads side information   (cloze with hide_side=false)
    SessionState     an Encoder that advances event by event  (session_parallel)
    ClosedForm       fits without gradients                   (none)
    Factorized       an inner product of two vectors          (pairwise, with closed gradients)

Losses: an objective takes a loss of a kind that its constructor names.

    CatalogLoss      the target against all items             (next_item, cloze)
    SampledLoss      positives against drawn negatives        (next_item, cloze, pairwise,
                                                               session_parallel)
    LabelLoss        scores against labels 0 and 1            (pointwise)

The shape suffixes are those of ``recexp.types``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from recexp.errors import RecexpError
from recexp.types import CatalogShard, GRULayers, Phase, Query, RowTables, SampledScores

if TYPE_CHECKING:
    from recexp.data.store import Store


class Recommender(nn.Module, ABC):
    """Ranks items for users."""

    history: int = 0
    """How many past events ``score`` reads; queries hold no more."""

    needs_user: bool = True
    """Scores depend on vectors of the user that training learned. Such a model cannot score users
    whom it was not trained on. False: histories decide alone, or scores are the same for all.
    """

    reconstruction: bool = False
    """The architecture fills gaps of its paper by own choices; ``result.json`` says so."""

    def bind(self, store: Store) -> None:
        """Take what the model keeps of the training data. Called once, before training."""
        return None

    @abstractmethod
    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """Scores [B, C] of the candidates; [B, V-1] of all items 1..V-1 where item_BC is None."""

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor | None:
        """Mean square of the embeddings that scoring looks up, a scalar for ``objective.l2``.

        None: the model has no such penalty.
        """
        return None

    def item_embeddings(self) -> Tensor | None:
        """Vectors [V-1, D] of all items, whose cosine says how similar two items are to the model.

        None: the model has no such vectors.
        """
        return None

    def phases(self) -> tuple[Phase, ...]:
        """Phases of training, which follow each other again and again.

        A parameter of a phase learns in no other one unless that names it, too; a parameter of no
        phase always learns. Empty: all parameters learn in every epoch.
        """
        return ()

    def enter_phase(self, name: str) -> None:
        """Make ready for an epoch of this phase.

        Called before each of its epochs, and once more where a run is resumed within one: calls
        after the first must change nothing.
        """
        return None

    def row_tables(self) -> RowTables | None:
        """Tables of which each process may keep a share of the rows (``trainer=sharded``).

        In training such a model reads them only by looking up ids of its batch, and by
        ``ItemEncoder.catalog``. None: the model reads its tables otherwise.
        """
        return None

    def diagnostics(self) -> dict[str, Tensor]:
        """Figures of the latest training step to log, scalars by name."""
        return {}


class MultiBehavior(Recommender):
    """Predicts K behaviors per (user, item)."""

    n_behaviors: int
    """K."""

    @abstractmethod
    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """Logits z_BCK, behaviors weak to strong."""


class Factorized(Recommender):
    """s_ui = p_u . q_i (+ b_i), the rows of two tables: losses may use gradients in closed form."""

    @abstractmethod
    def tables(self) -> tuple[nn.Embedding, nn.Embedding, Tensor | None]:
        """The tables of p, [U, D], and of q, [V, D], and the biases [V] of the items, or None."""

    @property
    def scores_by_tables(self) -> bool:
        """False for a subclass that scores otherwise than the class whose tables it inherits."""
        for part in type(self).__mro__:
            if "score" in vars(part):
                return "tables" in vars(part)
        return False


class BranchMasked(MultiBehavior):
    """Has a branch per behavior of the data, of which a training example may mask some."""

    @abstractmethod
    def logits(
        self, query: Query, item_BC: Tensor, branch_mask_BCT: Tensor | None = None
    ) -> Tensor:
        """Logits z_BCK.

        branch_mask_BCT: bool, True where the user showed behavior t (weak to strong) on the item.
        None uses all branches.
        """


class Encoder(Recommender):
    """A sequence encoder: states of a history, scored by inner products with item vectors."""

    asks_behavior: bool = False
    """Reads at [MASK] which behavior the masked event has; ``score`` asks for one behavior."""

    @abstractmethod
    def encode(self, query: Query) -> Tensor:
        """States h_BLD; [B, 1, D] for a model that makes one state per history."""

    def item_embeddings(self) -> Tensor | None:
        vectors_VD, _ = self.item_vectors()
        return vectors_VD

    def encode_at(self, query: Query, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the N True places of wanted_BL, row by row.

        A model that can save work at the other places overrides this. One state per history
        serves all wanted places of its row.
        """
        h_BLD = self.encode(query)
        if h_BLD.shape[1] == 1 and wanted_BL.shape[1] > 1:
            h_BLD = h_BLD.expand(-1, wanted_BL.shape[1], -1)
        return h_BLD[wanted_BL]

    def head(self, h: Tensor) -> Tensor:
        """Last layer before the inner product, [..., D] -> [..., D]."""
        return h

    def final_activation(self, score: Tensor) -> Tensor:
        """Activation of scores inside sampled losses, elementwise. Monotone: ranks stay."""
        return score

    def extra_loss(self, h_ND: Tensor, target_N: Tensor) -> Tensor | None:
        """What training adds to the loss, a scalar, from states and the items they are to predict.

        h_ND: after ``head``. None: nothing.
        """
        return None

    @abstractmethod
    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Vectors [..., D] and biases [...] (or None) of the items; of all 1..V-1 where None."""

    def catalog(self) -> tuple[Tensor | CatalogShard, Tensor | None]:
        """``item_vectors()`` for a loss over all items.

        Where processes share out the table, the vectors of this process's items, and all biases.
        """
        return self.item_vectors()


class SetAutoencoder(Encoder):
    """Gives the set of a user's items back, from one state per set: ``encode`` is [B, 1, D]."""

    @abstractmethod
    def encode_set(self, query: Query) -> tuple[Tensor, Tensor]:
        """States h_BD, and their divergences [B] from what the model expects of any user.

        The divergence is the part of the loss that does not depend on the targets; 0 for a model
        without one.
        """


class SideEncoder(Encoder):
    """Reads side information of items, which may be that of other items than the ones shown."""

    @abstractmethod
    def encode_at(
        self, query: Query, wanted_BL: Tensor, side_item_BL: Tensor | None = None
    ) -> Tensor:
        """States [N, D].

        side_item_BL: the items whose side information is read; None: those of the query.
        """


class SessionState(Encoder):
    """A recurrent encoder that advances by one event at a time."""

    reads_events: bool = False
    """``step`` reads more of an event than its item."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> Tensor:
        """The state [layers, B, D] of new sessions."""

    @abstractmethod
    def step(
        self, item_B: Tensor, hidden: Tensor, query: Query | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read one event per session.

        query: given where ``reads_events``; the events read and those before them, the last two
        columns of their sessions.
        Returns the state [B, D] that predicts the next item, and the new hidden [layers, B, D].
        """

    def gru_layers(self) -> GRULayers | None:
        """All that ``step`` and the scores consist of, for losses with gradients in closed form.

        None: they are computed otherwise than ``GRULayers`` says.
        """
        return None

    @property
    def scores_by_gru_layers(self) -> bool:
        """False for a subclass that steps or scores otherwise than the class of ``gru_layers``."""
        others = ("step", "head", "item_vectors", "final_activation")
        for part in type(self).__mro__:
            if "gru_layers" in vars(part):
                return True
            if any(name in vars(part) for name in others):
                return False
        return False


class ClosedForm(Recommender):
    """Fits by passes over the whole store instead of gradient steps."""

    n_passes: int | None = None
    """Passes after which another one changes nothing; None: ``trainer.max_epochs`` decides."""

    @abstractmethod
    def fit_pass(self, store: Store) -> dict[str, float]:
        """One pass over the training data; returns figures to log."""


ModelT = TypeVar("ModelT", bound=Recommender)
BatchT = TypeVar("BatchT")


class Objective(ABC, Generic[ModelT, BatchT]):
    """What a training example is, and what its loss is. It never asks which model it trains.

    A run calls ``bind`` once. Then every epoch deals out ``rows`` in shuffled batches, and every
    step calls ``batch`` and ``losses``.
    """

    needs: ClassVar[type] = Recommender
    """The contract that a model must fulfill."""

    independent_rows: ClassVar[bool] = True
    """Rows may be shuffled. False: ``batches`` deals them out in an order of its own."""

    learned_share: ClassVar[float] = 0.15
    """A model that knows more than which items are popular has a training loss this share below
    ``constant_loss``. With a softmax over ML-1M, popularity alone is 0.10 below it.
    """

    def check(self, model: ModelT, store: Store) -> None:
        """Raise RecexpError where the model or the data cannot serve this objective."""
        require(type(model), type(self))

    def bind(self, model: ModelT, store: Store) -> None:
        """Check, then keep what batches and losses need of the model and the data."""
        self.check(model, store)

    @abstractmethod
    def rows(self, store: Store) -> Tensor:
        """Row ids of one epoch, int64 [N]."""

    @abstractmethod
    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> BatchT:
        """All that the losses of these rows need, gathered and drawn on the store's device."""

    @abstractmethod
    def losses(self, model: ModelT, batch: BatchT) -> Mapping[str, Tensor | float]:
        """Scalars by name; "loss" is the one to minimize, and "item_loss" the part of it that
        ``constant_loss`` is about, where that is not all of it.
        """

    def batches(self, store: Store, batch_size: int, seed: int) -> Sampler[Tensor]:
        """A sampler of batches of row ids [B], used where ``independent_rows`` is False.

        It has ``set_epoch(epoch)`` and ``skip``, as ``recexp.data.datamodule.RowBatches``.
        """
        raise NotImplementedError

    def instances(self) -> int | None:
        """Training instances that a row becomes, as the authors' code of pointwise and pairwise
        systems counts a batch. None where a row is no positive with negatives of its own.
        """
        return None

    def constant_loss(self, store: Store, batch_size: int) -> float | None:
        """Mean training loss of the best model that scores all items of a query equal, without
        regularization. A model that has learned something lies well below it. None: unknown.

        batch_size: rows per step.
        """
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint within an epoch must keep. Empty where steps are independent."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        return None


class Loss:
    """What training minimizes, given to an objective as an object (``conf/loss``).

    A class may be of several kinds. The ``constant_of_...`` methods say what a model reaches that
    scores all items of a query equal; ``Objective.constant_loss`` is computed from them.
    """


class CatalogLoss(Loss, ABC):
    """Compares each target with the whole catalog."""

    @abstractmethod
    def of_catalog(
        self,
        h_ND: Tensor,
        vectors_VD: Tensor | CatalogShard,
        bias_V: Tensor | None,
        target_N: Tensor,
    ) -> Tensor:
        """The mean loss of N states, a scalar.

        vectors_VD and bias_V: of the items 1..V-1, as ``Encoder.catalog`` returns them.
        target_N: int64, rows of vectors_VD.
        """

    @abstractmethod
    def constant_of_catalog(self, n_items: int) -> float:
        """The least loss where all scores are equal."""


class SampledLoss(Loss, ABC):
    """Compares positives with sampled negatives."""

    activates: ClassVar[bool] = True
    """Scores pass ``Encoder.final_activation`` first."""

    counts_negatives: ClassVar[bool] = False
    """The formula has the number of negatives in it, so none may be left out by a mask."""

    @property
    def needs_log_q(self) -> bool:
        """Uses the log-probabilities of negatives, ``SampledScores.log_q``."""
        return False

    @abstractmethod
    def of_sampled(self, scores: SampledScores) -> Tensor:
        """The mean loss over the positives, a scalar."""

    @abstractmethod
    def constant_of_sampled(self, n: int, n_items: int) -> float:
        """The least loss of one positive and n >= 0 negatives whose scores are all equal."""


Mean = Literal["weights", "rows"]


class LabelLoss(Loss, ABC):
    """Compares scores of pairs with labels 0 and 1."""

    @abstractmethod
    def of_labels(self, z: Tensor, y: Tensor, w: Tensor, *, mean: Mean) -> Tensor:
        """The mean loss of scores z against labels y with weights w, all [...].

        mean: "weights" divides the weighted sum by the sum of weights, "rows" by the number of
        elements.
        """

    @abstractmethod
    def constant_of_labels(self, ones: float, zeros: float) -> float:
        """Summed loss of the best constant prediction for labels of these total weights."""


class NegativeSampler(Protocol):
    """Draws negative items. See ``recexp.objectives.samplers`` for the laws."""

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        """Negatives [B, n] of the query's users; the query may come without histories.

        pool: the items that the batch is to predict, of any shape, 0 where there is none.
        """
        ...

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        """Negatives [n] that are common to all rows of a batch."""
        ...

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        """Log-probability of each item in one draw of ``draw_shared``, of the shape of item."""
        ...


def require(model: type, objective: type) -> None:
    """Raise RecexpError unless models of this class can be trained by objectives of that class."""
    if not issubclass(objective, Objective):
        raise RecexpError(
            f"objective={objective.__name__} must inherit from recexp.contracts.Objective."
        )
    advice = "Choose the objective the model's YAML names (drop objective= from the command line)."
    needs = objective.needs
    if not issubclass(model, Recommender):
        raise RecexpError(
            f"{model.__name__} must inherit from a contract of recexp.contracts: "
            f"objective={objective.__name__} trains {needs.__name__} models."
        )
    if not issubclass(model, needs):
        methods = ", ".join(_abstract_methods(needs))
        raise RecexpError(
            f"objective={objective.__name__} needs a model that implements {needs.__name__} "
            f"({methods}), which {model.__name__} does not. {advice}"
        )
    if issubclass(model, ClosedForm) and not issubclass(needs, ClosedForm):
        raise RecexpError(
            f"objective={objective.__name__} needs a model that learns by gradients; "
            f"{model.__name__} fits in closed form. {advice}"
        )
    missing = _abstract_methods(model)
    if missing:
        raise RecexpError(f"{model.__name__} does not define {', '.join(missing)}.")


def _abstract_methods(contract: Any) -> list[str]:
    return sorted(contract.__abstractmethods__)
