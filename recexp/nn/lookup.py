"""Embedding tables, and functions of their rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recexp.nn.cpu.lookup import look_up, table_dot


class Embedding(nn.Embedding):
    """torch's embedding; its gradient on CPUs is that of ``recexp.nn.cpu.lookup``.

    ``RecModule`` sets ``sparse``, torch's own attribute, by the optimizer of the run.
    """

    def forward(self, index: Tensor) -> Tensor:
        trains = self.weight.requires_grad and torch.is_grad_enabled()
        if trains and self.weight.device.type == "cpu":
            return look_up(self.weight, index, self.padding_idx, self.sparse)
        return super().forward(index)

    def local(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A table that has the rows of these ids, and their places in it."""
        return self.weight, index


class Rows:
    """The rows of a table that a batch refers to, computed as late and as rarely as possible.

    id: row numbers of any shape [...].
    """

    def __init__(self, table: Embedding, id: Tensor) -> None:
        self.table = table
        self.id = id
        self._vectors: Tensor | None = None

    @property
    def vectors(self) -> Tensor:
        """[..., D]"""
        if self._vectors is None:  # not a cached_property, whose lock torch cannot trace
            self._vectors = self.table(self.id)
        return self._vectors

    def through(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """f of the vectors, [..., f's width].

        f must treat each vector alone and draw no random numbers. It is computed for the whole
        table where the batch refers to more rows than the table has.
        """
        if torch.compiler.is_exporting() or self.id.numel() <= self.table.num_embeddings:
            return f(self.vectors)
        return look_up(f(self.table.weight), self.id, self.table.padding_idx)

    def dot(self, one_BD: Tensor) -> Tensor:
        """Inner products [B, C] with the rows of ids [B, C], or of ids [C] shared by the batch."""
        if self.id.dim() == 1:
            return one_BD @ self.vectors.T
        return table_dot(one_BD, self.table.weight, self.id, self.table.sparse)
