"""Embedding tables of which every process of a run keeps a share of the rows.

Processes exchange the rows of their batches: before a step, each gets the rows that its batch reads
from the processes that keep them, and after the backward pass it sends their gradients back. A row
crosses the network once per step and process, whatever the number of processes. That is less than
``fully_shard`` moves, which gathers the whole table for every step, and less than a look-up in a
DTensor of row shards, which sends every process the rows of all. See
``docs/guides/large_catalogues.md``.

Extra shape symbols: R distinct rows that a batch reads, v rows that this process keeps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.cpu.lookup import look_up
from recexp.nn.lookup import Embedding
from recexp.types import CatalogShard


class ShardedEmbedding(Embedding):
    """What an embedding is while its rows are shared out (``RowShard``).

    Looks up rows that ``RowShard.fetch`` has fetched.
    """

    shard: RowShard

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Raises RecexpError: the whole table is in no process."""
        # Not an AttributeError, after which torch would return the rows of this process.
        raise RecexpError(
            "This model reads a whole table in training, of which each process keeps a share of "
            "the rows only: choose trainer=ddp."
        )

    def forward(self, index: Tensor) -> Tensor:
        rows_RD, place = self.local(index)
        return look_up(rows_RD, place, self.padding_idx)

    def local(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [R, D] that were fetched, and the place of each id among them."""
        id_R, rows_RD = self.shard.fetched()
        place = torch.searchsorted(id_R, index)
        # Not on a GPU, which the answer would have to wait for.
        if index.device.type == "cpu" and not torch.equal(
            id_R[place.clamp(max=len(id_R) - 1)], index
        ):
            raise RecexpError(
                "This model looks up rows that its batch does not name, which no process sent: "
                "choose trainer=ddp."
            )
        return rows_RD, place

    def catalog(self, n_items: int) -> CatalogShard:
        """The rows of items 1..n_items that this process keeps."""
        shard = self.shard
        first = max(shard.first, 1)
        end = min(shard.first + len(shard.part), n_items + 1)
        rows_vD = shard.part[first - shard.first : end - shard.first]
        return CatalogShard(rows_vD, first - 1, shard.group)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Take this process's rows of a whole table."""
        name = f"{prefix}weight"
        whole = state_dict.get(name)
        if whole is not None and len(whole) == self.num_embeddings:
            state_dict[name] = self.shard.own_rows(whole)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class RowShard:
    """Makes an embedding one whose rows are shared out among the processes of a group.

    Process r keeps rows r * size to (r + 1) * size - 1, the last one fewer. All processes must call
    ``fetch``, ``push``, ``gather`` and ``to_first`` in the same order.

    part: the rows of this process, the parameter that is trained. Its gradient is divided by the
    number of processes, as those of DDP are.
    """

    def __init__(self, table: nn.Embedding, group: dist.ProcessGroup) -> None:
        self.table = table
        self.group = group
        self.world = group.size()
        self.rank = group.rank()
        self.size = -(-table.num_embeddings // self.world)
        self.first = self.rank * self.size
        self.part = nn.Parameter(self.own_rows(table.weight.detach()).clone())
        self.part.register_hook(lambda grad: grad / self.world)
        self._class = type(table)
        self._fetched: tuple[Tensor, Tensor] | None = None
        self._asked_A = torch.empty(0, dtype=torch.int64)  # rows of the part that others asked for
        self._n_out: list[int] = []
        self._n_in: list[int] = []
        table.shard = self  # type: ignore[assignment]
        self.is_whole = True
        self.share_out()

    def own_rows(self, whole_VD: Tensor) -> Tensor:
        return whole_VD[self.first : self.first + self.size]

    # ------------------------------------------------------------ training

    @torch.no_grad()
    def fetch(self, id: Tensor) -> None:
        """Get the rows of these ids, which the coming step reads.

        id: of any shape; ids beyond the table, such as a mask's, are left out.
        """
        id_R = id[id < self.table.num_embeddings].unique()
        owner_R = id_R // self.size
        self._n_out = torch.bincount(owner_R, minlength=self.world).tolist()
        n_in = torch.empty(self.world, dtype=torch.int64, device=id.device)
        dist.all_to_all_single(n_in, n_in.new_tensor(self._n_out), group=self.group)
        self._n_in = n_in.tolist()
        self._asked_A = self._exchanged(id_R, self._n_out, self._n_in) - self.first
        answer_AD = self.part.index_select(0, self._asked_A)
        rows_RD = self._exchanged(answer_AD, self._n_in, self._n_out)
        self._fetched = id_R, rows_RD.requires_grad_()

    def fetched(self) -> tuple[Tensor, Tensor]:
        """The ids [R], ascending, and their rows [R, D]."""
        assert self._fetched is not None, "fetch comes first"
        return self._fetched

    @torch.no_grad()
    def push(self) -> None:
        """Add the gradients of the fetched rows to those of the parts that keep them."""
        _, rows_RD = self.fetched()
        self._fetched = None
        grad_RD = torch.zeros_like(rows_RD) if rows_RD.grad is None else rows_RD.grad
        grad_AD = self._exchanged(grad_RD, self._n_out, self._n_in) / self.world
        part = self.part
        if self.table.sparse:
            grad = torch.sparse_coo_tensor(
                self._asked_A[None], grad_AD, part.shape, check_invariants=False
            )
            part.grad = grad if part.grad is None else part.grad + grad
            return
        if part.grad is None:
            part.grad = torch.zeros_like(part)
        part.grad.index_add_(0, self._asked_A, grad_AD)

    def _exchanged(self, values: Tensor, n_out: list[int], n_in: list[int]) -> Tensor:
        """What the other processes send: the first dimension is that of the processes."""
        received = values.new_empty(sum(n_in), *values.shape[1:])
        dist.all_to_all_single(received, values.contiguous(), n_in, n_out, group=self.group)
        return received

    # ------------------------------------------------------------ the whole table

    def gather(self) -> None:
        """Give every process the whole table, for evaluation."""
        if self.is_whole:
            return
        whole_VD = self.part.new_empty(self.table.num_embeddings, *self.part.shape[1:])
        for rank in range(self.world):
            rows = whole_VD[rank * self.size : (rank + 1) * self.size]
            if rank == self.rank:
                rows.copy_(self.part.detach())
            dist.broadcast(rows, rank, group=self.group)
        self.is_whole = True
        self.table.__class__ = self._class
        self.table.weight = nn.Parameter(whole_VD, requires_grad=False)

    def share_out(self) -> None:
        """Drop the whole table."""
        if self.is_whole:
            self.is_whole = False
            self.table._parameters["weight"] = self.part
            self.table.__class__ = ShardedEmbedding

    @torch.no_grad()
    def to_first(self, own: Tensor) -> Tensor:
        """Rows of all processes in the first one, on the host; ``own`` in the others.

        own: of this process, of the shape of its part.
        """
        if self.rank != 0:
            dist.send(own.contiguous(), 0, group=self.group)
            return own
        whole = torch.empty(self.table.num_embeddings, *own.shape[1:], dtype=own.dtype)
        whole[: len(own)] = own
        for rank in range(1, self.world):
            rows = whole[rank * self.size : (rank + 1) * self.size]
            received = torch.empty_like(rows, device=own.device)
            dist.recv(received, rank, group=self.group)
            rows.copy_(received)
        return whole
