"""Training with large tables shared out among processes: ``trainer=sharded``.

Every process keeps a share of the rows of each large table, with their gradients and the state of
the optimizer. All other parameters are trained by DDP. Files and results are those of any run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from recexp.contracts import CatalogLoss, Objective, Recommender
from recexp.errors import RecexpError
from recexp.nn.sharded import RowShard
from recexp.objectives.losses import CE
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.sequence import SequenceObjective
from recexp.training.checkpoints import read_checkpoint
from recexp.training.processes import WatchedDDP
from recexp.types import PairwiseBatch, PointwiseBatch, RowTables, SequenceBatch

Batch = PointwiseBatch | PairwiseBatch | SequenceBatch
INSTEAD = "choose trainer=ddp, where every process has the whole tables."


def check_sharding(model: Recommender, objective: Objective[Any, Any], precision: Any) -> RowTables:
    """The tables of the model that may be shared out.

    Raises RecexpError where the model, the objective or the precision does not allow it.
    """
    tables = model.row_tables()
    if tables is None:
        raise RecexpError(
            f"trainer=sharded cannot share out the tables of {type(model).__name__}, which does "
            f"not define row_tables(): {INSTEAD}"
        )
    if not isinstance(objective, Pointwise | Pairwise | SequenceObjective):
        raise RecexpError(
            f"trainer=sharded cannot train with objective={type(objective).__name__}, whose "
            f"batches do not name all items that they read: {INSTEAD}"
        )
    if isinstance(objective, SequenceObjective) and isinstance(objective.loss, CatalogLoss):
        if type(objective.loss) is not CE:
            raise RecexpError(
                f"trainer=sharded cannot compute loss={type(objective.loss).__name__} by shares "
                f"of the items: choose loss=cross_entropy or a loss over sampled negatives, or "
                f"{INSTEAD}"
            )
        if tables.adds_sides:
            raise RecexpError(
                "trainer=sharded cannot compute a loss over all items whose vectors have side "
                "information: set model.side_of_candidates=false, choose a loss over sampled "
                f"negatives, or {INSTEAD}"
            )
    if str(precision) in ("16-mixed", "16"):
        raise RecexpError(
            f"trainer=sharded cannot train with precision={precision}, whose loss scale each "
            "process would choose for itself: set trainer.precision=bf16-mixed or 32-true."
        )
    return tables


class Shards:
    """The tables of a model that are shared out, and the exchanges of a training step.

    names: of their weights in the model. group: of all processes, in the order of their ranks.
    min_rows: tables with fewer rows stay whole in every process.
    """

    def __init__(
        self, model: Recommender, tables: RowTables, group: dist.ProcessGroup, min_rows: int
    ) -> None:
        # So many rows that every process keeps some, also beside padding and a mask.
        least = max(min_rows, 2 * group.size() ** 2)
        self.items = [RowShard(t, group) for t in tables.items if t.num_embeddings >= least]
        self.users = [RowShard(t, group) for t in tables.users if t.num_embeddings >= least]
        self.all = [*self.items, *self.users]
        self.group = group
        shard_of = {shard.table: shard for shard in self.all}
        self.by_name = {
            f"{name}.weight": shard_of[part]
            for name, part in model.named_modules()
            if part in shard_of
        }

    def fetch(self, batch: Batch) -> None:
        """Get the rows that the step on this batch reads."""
        if self.items:
            padding = batch.query.user_B.new_zeros(1)
            ids = torch.cat([padding, *(id.flatten() for id in batch.items())]).unique()
            for shard in self.items:
                shard.fetch(ids)
        for shard in self.users:
            shard.fetch(batch.query.user_B)

    def push(self) -> None:
        """Send the gradients of the fetched rows to the processes that keep them."""
        for shard in self.all:
            shard.push()

    def gather(self, *, drop_gradients: bool) -> None:
        """Give every process the whole tables."""
        for shard in self.all:
            if drop_gradients:
                shard.part.grad = None
            shard.gather()

    def share_out(self) -> None:
        """Drop the whole tables."""
        for shard in self.all:
            shard.share_out()

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> None:
        """Clip the gradients by their norm over the parameters and all shares of the tables."""
        trained = [p for p in parameters if p.grad is not None]
        parts = {id(shard.part) for shard in self.all}
        square_of_parts = sum(
            (shard.part.grad.square().sum() for shard in self.all if shard.part.grad is not None),
            start=trained[0].new_zeros(()),
        )
        dist.all_reduce(square_of_parts, group=self.group)
        others = [p.grad for p in trained if id(p) not in parts and p.grad is not None]
        square = get_total_norm(others).square() if others else 0.0
        clip_grads_with_norm_(trained, max_norm, (square_of_parts + square).sqrt())

    # ------------------------------------------------------------ checkpoints

    def whole_weights(self) -> dict[str, Tensor]:
        """Weights of the tables by name; whole ones in the first process."""
        return {
            name: shard.table.weight.detach()
            if shard.is_whole
            else shard.to_first(shard.part.detach())
            for name, shard in self.by_name.items()
        }

    def whole_state(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state_dict with the states of whole tables, in the first process."""
        entries = dict(state["state"])
        for number, shard in self._numbers(optimizer):
            own = entries.get(number, {})
            # An optimizer makes the state of a table at its first gradient.
            names: list[Any] = [None] * self.group.size()
            dist.all_gather_object(names, [*own], group=self.group)
            whole = {}
            for name in dict.fromkeys(name for known in names for name in known):
                value = own.get(name, torch.zeros_like(shard.part.detach()))
                whole[name] = shard.to_first(value) if value.shape == shard.part.shape else value
            if whole:
                entries[number] = whole
        return {**state, "state": entries}

    def own_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        """The optimizer's state_dict with this process's share of the states of tables."""
        entries = dict(state["state"])
        for number, shard in self._numbers(optimizer):
            whole = entries.get(number, {})
            shape = (shard.table.num_embeddings, *shard.part.shape[1:])
            entries[number] = {
                name: shard.own_rows(value).clone() if _has_shape(value, shape) else value
                for name, value in whole.items()
            }
        return {**state, "state": entries}

    def _numbers(self, optimizer: Optimizer) -> list[tuple[int, RowShard]]:
        """The tables, each with the number of its parameter in the optimizer's state_dict."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        number_of = {id(p): number for number, p in enumerate(parameters)}
        return [(number_of[id(shard.part)], shard) for shard in self.all]


def _has_shape(value: object, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.shape == shape


class ShardedTables(WatchedDDP):
    """``WatchedDDP`` with the large tables shared out; checkpoints are those of any run.

    min_rows: tables with fewer rows stay whole in every process. For the others see ``WatchedDDP``.
    """

    shards: Shards | None = None

    def __init__(self, min_rows: Annotated[int, Field(ge=1)] = 10_000, **settings: Any) -> None:
        super().__init__(**settings)
        self.min_rows = min_rows

    def share_out(self, model: Recommender, tables: RowTables) -> Shards:
        """Leave this process its rows of the model's large tables.

        Every process must have the same weights before.
        """
        # A group of their own, as DDP exchanges gradients at the same time.
        group = dist.new_group(timeout=self._timeout)
        self.shards = Shards(model, tables, group, self.min_rows)
        return self.shards

    def _setup_model(self, model: nn.Module) -> Any:
        """Wrap the model in DDP, which leaves the tables alone."""
        assert self.shards is not None
        names = [f"model.{name}" for name in self.shards.by_name]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        parts = {id(shard.part) for shard in self.shards.all}
        if any(p.requires_grad and id(p) not in parts for p in model.parameters()):
            return super()._setup_model(model)
        return model  # DDP refuses a model without parameters

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = super().lightning_module_state_dict()
        if self.shards is not None:
            weights = self.shards.whole_weights()
            state |= {f"model.{name}": weight for name, weight in weights.items()}
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return state if self.shards is None else self.shards.whole_state(optimizer, state)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Lightning's would hold all tables in every process.
        return read_checkpoint(Path(checkpoint_path))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        if self.shards is not None:
            states = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
            own = [self.shards.own_state(optimizer, state) for optimizer, state in states]
            checkpoint = {**checkpoint, "optimizer_states": own}
        super().load_optimizer_state_dict(checkpoint)
