"""ITE: implicit to explicit (S000; spec 6.1-6.3). A NeuMF predicts the implicit action, a tower on it the explicit one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.nn.embeddings import ItemEncoder, UserEncoder, one_of
from recexp.nn.init import normal_embeddings, xavier_linears
from recexp.nn.mlp import MLP, PairMLP
from recexp.types import Query, Schema


def both(z_BC2: Tensor) -> Tensor:
    """Logit of P(implicit) * P(explicit | implicit) from the two logits, at least fp32: -log(e^-a + e^-b + e^(-a-b)).

    The product of probabilities saturates at 1 and 0 and ties items; its logit does not.
    """
    a, b = z_BC2.to(torch.promote_types(z_BC2.dtype, torch.float32)).unbind(-1)
    return -torch.stack([-a, -b, -a - b]).logsumexp(0)


def checked_chunk(chunk: int | None) -> int | None:
    """The chunk, None or positive; RecexpError otherwise."""
    if chunk is not None and chunk < 1:
        raise RecexpError(f"chunk={chunk} must be positive.")
    return chunk


def chunk_size(chunk: int | None, device: torch.device) -> int:
    """Floats per chunk; None: 2^20 on a CPU (stays near its caches), 2^25 elsewhere (fewer, larger kernels)."""
    return chunk or (2**20 if device.type == "cpu" else 2**25)


class ImplicitToExplicit(nn.Module):
    """Two logits from phi [..., width]: h_I . phi (implicit) and h_E . f(V phi + b) (explicit given implicit) (S000 sec. 3)."""

    def __init__(self, width: int, hidden: int, activation: nn.Module, *, bias: bool):
        super().__init__()
        self.implicit = nn.Linear(width, 1, bias=bias)
        self.tower = MLP((width, hidden), activation)
        self.explicit = nn.Linear(hidden, 1, bias=bias)

    def forward(self, phi: Tensor) -> Tensor:
        return torch.cat([self.implicit(phi), self.explicit(self.tower(phi))], -1)


class ITE(MultiBehaviour):
    """Ranks by P(implicit) * P(explicit | implicit).

    phi_I = [p^G * q^G ; tower([p^M; q^M])]. Sizes for num_factors K:
      width="paper"    phi_I is K wide: GMF K/2, MLP embeddings K, tower 2K-K-K/2, explicit tower K-K/2-1, ReLU.
      width="authors"  phi_I is 2K wide: GMF K, MLP embeddings 2K, tower 4K-2K-K, explicit tower 2K-K-1, LeakyReLU(0.2).
    init="paper" (embeddings N(0, 0.01^2), Glorot, zero biases) or "authors" (much larger, spec 6.1).
    item_side, user_side: names of side features or "all" (-Si: both, -OSSi: items only); side_scale: "sum" or "half".
    chunk: most floats in one hidden layer while scoring (None: see ``chunk_size``).

    GMF and MLP vectors are two column blocks of one table, side features included; that equals a table for each.
    Where a query names an item in ``without_B``, it does not count in the user's bag (training without the target).
    """

    n_behaviours = 2

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 64,
        width: str = "paper",
        init: str = "paper",
        item_side: str | Sequence[str] = (),
        user_side: str | Sequence[str] = (),
        side_scale: str = "sum",
        chunk: int | None = None,
    ):
        super().__init__()
        one_of("width", width, ("paper", "authors"))
        one_of("init", init, ("paper", "authors"))
        if num_factors < 2 or num_factors % 2:
            raise RecexpError(
                f"num_factors={num_factors}: ITE halves it, so it must be even and at least 2."
            )
        K = num_factors if width == "authors" else num_factors // 2
        self.gmf, self.chunk = K, checked_chunk(chunk)
        activation = nn.LeakyReLU(0.2) if width == "authors" else nn.ReLU()
        self.users = UserEncoder(schema, 3 * K, side=user_side, scale=side_scale)
        self.items = ItemEncoder(schema, 3 * K, side=item_side, scale=side_scale)
        self.tower = PairMLP((4 * K, 2 * K, K), activation)
        self.head = ImplicitToExplicit(2 * K, K, activation, bias=False)
        if init == "authors":
            self._authors_init()
        else:
            normal_embeddings(self, 0.01)
            xavier_linears(self)

    @torch.no_grad()
    def _authors_init(self) -> None:
        """Embeddings N(0, 2/width) per table, weights N(0, 2/K) (the first 1/K), biases N(0, 1), output vectors U(-1, 1)."""
        K = self.gmf
        normal_embeddings(
            self, torch.cat([torch.full((K,), 2 / K), torch.full((2 * K,), 1 / K)]).sqrt()
        )
        hidden = [*self.tower.layers, *self.head.tower.layers]
        for i, layer in enumerate(hidden):
            layer.weight.normal_(std=((1 if i == 0 else 2) / K) ** 0.5)
            layer.bias.normal_()
        for output in (self.head.implicit, self.head.explicit):
            output.weight.uniform_(-1, 1)

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """z_BCK with K = 2: implicit, and explicit given implicit."""
        return self._pairs(self.users(query.user_B, query.without_B), self.items(item_BC))

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """Logit of the product of both probabilities, [B, C], or [B, V-1] where item_BC is None."""
        user_BD = self.users(query.user_B, query.without_B)
        every = (
            torch.arange(1, self.items.n_items + 1, device=user_BD.device)[None]
            if item_BC is None
            else item_BC
        )
        step = max(
            1, chunk_size(self.chunk, user_BD.device) // (4 * self.gmf * max(1, len(user_BD)))
        )
        return torch.cat(
            [both(self._pairs(user_BD, self.items(part))) for part in every.split(step, 1)], 1
        )

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Sum over the looked-up vectors (GMF and MLP, user and item) of their mean square; to be multiplied by lambda."""
        vectors = (self.users(query.user_B, query.without_B), self.items(item_BC))
        return sum(
            part.square().mean()
            for v in vectors
            for part in (v[..., : self.gmf], v[..., self.gmf :])
        )

    def _pairs(self, user_BD: Tensor, item_BCD: Tensor) -> Tensor:
        user, f = user_BD[:, None], self.gmf
        phi_G = user[..., :f] * item_BCD[..., :f]
        phi_M = self.tower(user[..., f:], item_BCD[..., f:])
        return self.head(torch.cat([phi_G, phi_M], -1))
