"""Training with large tables shared out among processes: ``trainer=sharded``.

Every process keeps a share of the rows of each large table, with their gradients and the state of
the optimizer. All other parameters are trained by DDP. Files and results are those of any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch.distributed as dist
from pydantic import Field
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from recexp.contracts import CatalogLoss, Objective, Recommender
from recexp.errors import RecexpError
from recexp.objectives.losses import CE
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.sequence import SequenceObjective
from recexp.training.checkpoints import read_checkpoint
from recexp.training.processes import WatchedDDP
from recexp.training.shards import Shards
from recexp.types import RowTables

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
        assert self.shards is not None
        parts = {id(shard.part) for shard in self.shards.all}
        if any(p.requires_grad and id(p) not in parts for p in model.parameters()):
            return super()._setup_model(model)
        # DDP refuses a model without parameters. Lightning reads the names before a test.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            model, self._not_exchanged(model)
        )
        return model

    def _not_exchanged(self, model: nn.Module) -> list[str]:
        assert self.shards is not None
        return [
            *super()._not_exchanged(model),
            *(f"model.{name}" for name in self.shards.by_name),
        ]

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
