"""The tables of a model that processes share out, and the exchanges of a training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from recexp.contracts import Recommender
from recexp.nn.sharded import RowShard
from recexp.types import PairwiseBatch, PointwiseBatch, RowTables, SequenceBatch

Batch = PointwiseBatch | PairwiseBatch | SequenceBatch


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
