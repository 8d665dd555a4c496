"""FMLP-Rec: learned filters in the frequency domain instead of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.models.common import SequenceModel, checked_length, latest
from recexp.nn.dropout import Dropout
from recexp.nn.gelu import gelu_linear
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Depth, Length, Rate, Width
from recexp.nn.transformer import PositionEmbedding
from recexp.types import Query, Schema

EPS = 1e-12
STD = 0.02


class FilterLayer(nn.Module):
    """z = LN(x + Drop(F^-1(W * F(x)))), then LN(z + Drop(FFN(z))) with GELU and inner width 4 D.

    F is the real Fourier transform over the N positions, W a complex number per frequency and
    column. The filter is circular: every position reads all others, later ones too.
    """

    def __init__(self, width: int, max_len: int, dropout: float):
        super().__init__()
        # Real and imaginary parts, since optimizers and checkpoints take real numbers.
        self.filter = nn.Parameter(torch.empty(max_len // 2 + 1, width, 2).normal_(std=STD))
        self.norm1 = nn.LayerNorm(width, EPS)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x_BND: Tensor, last_only: bool = False) -> Tensor:
        """[B, N, D]; [B, 1, D] of the last position where last_only."""
        change = self._filtered(x_BND)
        if last_only:
            x_BND = x_BND[:, -1:]
            change = change[:, -1:]
        z = self.norm1(x_BND + self.dropout(change))
        return self.norm2(z + self.dropout(gelu_linear(self.inner(z), self.outer)))

    def _filtered(self, x_BND: Tensor) -> Tensor:
        if x_BND.shape[0] == 0:
            return x_BND  # MKL refuses to transform nothing
        spectrum = torch.fft.rfft(x_BND, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        return torch.fft.irfft(spectrum, n=x_BND.shape[1], dim=1, norm="ortho")


class FMLPRec(SequenceModel):
    """One state per history: that of the last position after layers of filters.

    The state at a position reads later events, so no other position can be trained to predict the
    event after it. Histories are padded to max_len: the filters run over all positions, as in the
    authors' code, where padding has the vectors of its positions.

    n_factors: width D. max_len: newest events that are read.

    Zhou et al. 2022, sec. 3, arXiv:2202.13556; authors' code https://github.com/Woeee/FMLP-Rec.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        n_layers: Depth = 2,
        max_len: Length = 50,
        dropout: Rate = 0.5,
    ):
        super().__init__()
        self.max_len = checked_length(max_len)
        self.history = max_len
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.position = PositionEmbedding(max_len, n_factors, "right")
        self.norm = nn.LayerNorm(n_factors, EPS)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            FilterLayer(n_factors, max_len, dropout) for _ in range(n_layers)
        )
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.Linear | nn.Embedding):
                    part.weight.normal_(std=STD)
                if isinstance(part, nn.Linear):
                    part.bias.zero_()
            self.item.weight[0] = 0

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        """[B, 1, D], whatever last_only says."""
        query = latest(query, self.max_len, least=self.max_len)
        h = self.dropout(self.norm(self.item(query.item_BL) + self.position(query.mask_BL)))
        for i, layer in enumerate(self.layers):
            h = layer(h, last_only=i + 1 == len(self.layers))
        return h

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, None]:
        return (self.item.weight[1:] if item is None else self.item(item)), None
