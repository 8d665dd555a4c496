"""ITE: implicit to explicit. NeuMF predicts the implicit action, a tower on it the explicit one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.nn.embeddings import ItemEncoder, SideScale, SideVectors, UserEncoder
from recexp.nn.init import normal_embeddings, xavier_linears
from recexp.nn.mlp import MLP, PairMLP
from recexp.nn.parameters import Count, Width, one_of
from recexp.nn.traced import score_catalog
from recexp.types import Query, RowTables, Schema

Variant = Literal["paper", "authors"]


def joint_logit(z_BC2: Tensor) -> Tensor:
    """Logit of P(implicit) * P(explicit | implicit) from the two logits a and b, [B, C].

    -log(e^-a + e^-b + e^(-a-b)), in float32 at least. The product of the probabilities saturates at
    1 and 0, which ties items; its logit does not.
    """
    a, b = z_BC2.to(torch.promote_types(z_BC2.dtype, torch.float32)).unbind(-1)
    return -torch.stack([-a, -b, -a - b]).logsumexp(0)


def checked_chunk(chunk: int | None) -> int | None:
    """chunk, where it is None or positive. Raises RecexpError otherwise."""
    if chunk is not None and chunk < 1:
        raise RecexpError(f"chunk={chunk} must be positive.")
    return chunk


def chunk_size(chunk: int | None, device: torch.device) -> int:
    """Floats per chunk. None: 2^20 on a CPU (near its caches), 2^25 elsewhere (larger kernels)."""
    return chunk or (2**20 if device.type == "cpu" else 2**25)


class ImplicitToExplicit(nn.Module):
    """Two logits from phi [..., width]: h_I . phi, and h_E . f(V phi + b).

    The first is the implicit action's, the second the explicit one's given the implicit (ITE paper,
    sec. 3, arXiv:2107.12325). hidden: width of f's output. bias: of h_I and h_E.
    """

    def __init__(self, width: int, hidden: int, activation: nn.Module, *, bias: bool):
        super().__init__()
        self.implicit = nn.Linear(width, 1, bias=bias)
        self.tower = MLP((width, hidden), activation)
        self.explicit = nn.Linear(hidden, 1, bias=bias)

    def forward(self, phi: Tensor) -> Tensor:
        """[..., 2]"""
        return torch.cat([self.implicit(phi), self.explicit(self.tower(phi))], -1)


class ITE(MultiBehavior):
    """Ranks by P(implicit) * P(explicit | implicit) from phi = [p^G * q^G; tower([p^M; q^M])].

    n_factors: K. The paper gives the width of phi, the authors' code of the GMF vectors.
    width: "paper" is phi K wide: GMF vectors K/2, MLP vectors K, tower 2K-K-K/2, explicit tower
        K-K/2-1, ReLU. "authors" is phi 2K wide: GMF vectors K, MLP vectors 2K, tower 4K-2K-K,
        explicit tower 2K-K-1, LeakyReLU(0.2).
    init: "paper" is embeddings N(0, 0.01^2), Glorot uniform weights, biases 0; "authors" is that of
        their code, with much larger values.
    item_side, user_side: names of side features or "all". ITE-Si takes both, ITE-OSSi only those of
        items.
    side_scale: "sum" of id and side vectors, or "half" of it as in the authors' code.
    side_vectors: features that are vectors are "frozen", or start values of parameters ("trained").
    chunk: most floats in one hidden layer while scoring (None: see ``chunk_size``).

    The item that a query names in ``without_B`` does not count in the user's bag.

    ITE paper, sec. 3, arXiv:2107.12325; authors' code https://github.com/tranquyenbk173/BERT_ITE.
    GMF and MLP vectors are two column blocks of one table, side features included, which equals a
    table for each.
    """

    n_behaviors = 2

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        width: Variant = "paper",
        init: Variant = "paper",
        item_side: str | Sequence[str] = (),
        user_side: str | Sequence[str] = (),
        side_scale: SideScale = "sum",
        side_vectors: SideVectors = "frozen",
        chunk: Count | None = None,
    ):
        super().__init__()
        one_of("width", width, Variant)
        one_of("init", init, Variant)
        if n_factors < 2 or n_factors % 2:
            raise RecexpError(
                f"n_factors={n_factors}: ITE halves it, so it must be even and at least 2."
            )
        K = n_factors if width == "authors" else n_factors // 2
        self.gmf_width = K
        self.chunk = checked_chunk(chunk)
        activation = nn.LeakyReLU(0.2) if width == "authors" else nn.ReLU()
        self.users = UserEncoder(
            schema, 3 * K, side=user_side, scale=side_scale, vectors=side_vectors
        )
        self.items = ItemEncoder(
            schema, 3 * K, side=item_side, scale=side_scale, vectors=side_vectors
        )
        self.tower = PairMLP((4 * K, 2 * K, K), activation)
        self.head = ImplicitToExplicit(2 * K, K, activation, bias=False)
        if init == "authors":
            self._authors_init()
        else:
            normal_embeddings(self, 0.01)
            xavier_linears(self)

    @torch.no_grad()
    def _authors_init(self) -> None:
        """Initial values of the authors' code.

        Embeddings N(0, 2 / width) per table, weights N(0, 2 / K) (the first layer's 1 / K), biases
        N(0, 1), output vectors U(-1, 1).
        """
        K = self.gmf_width
        variances = torch.cat([torch.full((K,), 2 / K), torch.full((2 * K,), 1 / K)])
        normal_embeddings(self, variances.sqrt())
        for i, layer in enumerate([*self.tower.layers, *self.head.tower.layers]):
            assert isinstance(layer, nn.Linear)
            variance = (1 if i == 0 else 2) / K
            layer.weight.normal_(std=variance**0.5)
            layer.bias.normal_()
        for output in (self.head.implicit, self.head.explicit):
            output.weight.uniform_(-1, 1)

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """z_BCK with K = 2: implicit, and explicit given implicit."""
        return self._pair_logits(self.users(query.user_B, query.without_B), self.items(item_BC))

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """``joint_logit``."""
        user_BD = self.users(query.user_B, query.without_B)
        if torch.compiler.is_exporting() and item_BC is None:
            return score_catalog(
                lambda item: joint_logit(self._pair_logits(user_BD, self.items(item[None]))),
                self.items.n_items,
                4 * self.gmf_width,
            )
        if item_BC is None:
            item_BC = torch.arange(1, self.items.n_items + 1, device=user_BD.device)[None]
        floats_per_item = 4 * self.gmf_width * max(1, len(user_BD))
        step = max(1, chunk_size(self.chunk, user_BD.device) // floats_per_item)
        parts = [
            joint_logit(self._pair_logits(user_BD, self.items(part_BC)))
            for part_BC in item_BC.split(step, 1)
        ]
        return torch.cat(parts, 1)

    def row_tables(self) -> RowTables:
        return RowTables(items=(self.items.id,), users=(self.users.id,))

    def item_embeddings(self) -> Tensor:
        return self.items.catalog()

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Sum over the looked-up vectors (GMF and MLP, user and item) of their mean square."""
        K = self.gmf_width
        user_BD = self.users(query.user_B, query.without_B)
        item_BCD = self.items(item_BC)
        user_part = user_BD[:, :K].square().mean() + user_BD[:, K:].square().mean()
        return user_part + item_BCD[..., :K].square().mean() + item_BCD[..., K:].square().mean()

    def _pair_logits(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        """[B, C, 2]"""
        K = self.gmf_width
        user_B1D = user_BD[:, None]
        gmf_BCK = user_B1D[..., :K] * item_BCD[..., :K]
        mlp_BCK = self.tower(user_B1D[..., K:], item_BCD[..., K:])
        return self.head(torch.cat([gmf_BCK, mlp_BCK], -1))
