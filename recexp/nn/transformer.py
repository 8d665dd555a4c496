"""The Transformer layer of BERT4Rec (S002 eq. 1-6), positions, and BERT's starting values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.attention import MultiHeadAttention
from recexp.nn.cpu.dropout import Dropout
from recexp.nn.embeddings import one_of

NORMS = ("post", "pre", "none")
LAYER_NORMS = ("variance", "std")
ACTIVATIONS = ("gelu", "gelu_tanh")
SIDES = ("left", "right")
STD_EPS = 1e-6


class StdNorm(nn.Module):
    """(x - mean) / (std + 1e-6) * weight + bias over the last dimension, the std with n - 1.

    The layer norm of BERT4Rec-VAE-Pytorch, https://github.com/jaywonchung/BERT4Rec-VAE-Pytorch.
    torch's divides by sqrt(variance + eps), the variance with n. Raises RecexpError for width 1.
    """

    def __init__(self, width: int):
        super().__init__()
        if width < 2:
            raise RecexpError("layer_norm=std needs num_factors of at least 2.")
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, -1, keepdim=True)
        return (x - mean) / (std + STD_EPS) * self.weight + self.bias


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """torch's layer norm ("variance") with this epsilon, or ``StdNorm`` ("std")."""
    one_of("layer_norm", kind, LAYER_NORMS)
    return StdNorm(width) if kind == "std" else nn.LayerNorm(width, eps)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward net (GELU, inner width 4 D unless given) in residual steps.

    norm: "post" LN(x + Drop(f(x))), "pre" x + Drop(f(LN(x))) or "none" x + Drop(f(x)). residual: without it, the x of
    the sum is gone. ffn: without it, attention only (S002 Table 5). layer_norm: see ``make_norm``.
    activation: "gelu" exactly, by erf, or "gelu_tanh", its approximation by tanh.
    more_dropout: dropout after the feed-forward net's activation and of what the layer returns.

    The input x_BLD feeds values and residual. Queries and keys come from query_key_BLD where given (NOVA, S004), else
    from x too. at computes some rows alone, equal to those among all rows: a slice of them, or int64 [B, M], M of each.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_inner: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm: str = "post",
        residual: bool = True,
        ffn: bool = True,
        eps: float = 1e-12,
        layer_norm: str = "variance",
        activation: str = "gelu",
        more_dropout: bool = False,
    ):
        super().__init__()
        self.norm, self.residual = one_of("norm", norm, NORMS), residual
        one_of("activation", activation, ACTIVATIONS)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.attention = MultiHeadAttention(width, num_heads, dropout=attention_dropout)
        self.norm1 = nn.Identity() if norm == "none" else make_norm(layer_norm, width, eps)
        if ffn:
            self.inner = nn.Linear(width, num_inner or 4 * width)
            self.outer = nn.Linear(num_inner or 4 * width, width)
            self.norm2 = nn.Identity() if norm == "none" else make_norm(layer_norm, width, eps)
        self.ffn = ffn
        self.dropout = Dropout(dropout)
        self.second_dropout = self.dropout if more_dropout else nn.Identity()

    def forward(
        self,
        x_BLD: Tensor,
        mask: Tensor,
        query_key_BLD: Tensor | None = None,
        at: slice | Tensor | None = None,
    ) -> Tensor:
        value = self.norm1(x_BLD) if self.norm == "pre" else x_BLD
        query = key = value if query_key_BLD is None else query_key_BLD
        if at is not None:
            x_BLD, query = pick(x_BLD, at), pick(query, at)
            if mask.shape[-2] > 1:
                mask = pick(mask[:, 0], at)[:, None]
        h = self._add(x_BLD, self.attention(query, key, value, mask), self.norm1)
        if not self.ffn:
            return self.second_dropout(h)
        z = self.norm2(h) if self.norm == "pre" else h
        z = self.second_dropout(F.gelu(self.inner(z), approximate=self.approximate))
        return self.second_dropout(self._add(h, self.outer(z), self.norm2))

    def _add(self, x: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        h = self.dropout(change)
        h = x + h if self.residual else h
        return h if self.norm == "pre" else norm(h)


def pick(x_BLD: Tensor, at: slice | Tensor) -> Tensor:
    """Rows of every sequence: a slice of them or int64 [B, M]."""
    return (
        x_BLD[:, at]
        if isinstance(at, slice)
        else x_BLD.gather(1, at[..., None].expand(-1, -1, x_BLD.shape[-1]))
    )


class PositionEmbedding(nn.Module):
    """Learned positions of left-padded histories, such that more padding changes nothing.

    side "right": counted from the newest event, which has row max_len - 1; returns [L, D].
    side "left": counted from the oldest event given, which has row 0, as where padding stands on the right; [B, L, D].
    """

    def __init__(self, max_len: int, width: int, side: str):
        super().__init__()
        self.side = one_of("positions", side, SIDES)
        self.table = nn.Embedding(max_len, width)

    def forward(self, mask_BL: Tensor) -> Tensor:
        if self.side == "right":
            return self.table.weight[self.table.num_embeddings - mask_BL.shape[1] :]
        return self.table((mask_BL.cumsum(1) - 1).clamp(min=0))


@torch.no_grad()
def bert_init(module: nn.Module, std: float = 0.02) -> None:
    """Weights of tables and linear maps ~ N(0, std^2) cut at two deviations, padding rows and biases 0 (spec 4.9)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.zero_()
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx] = 0
