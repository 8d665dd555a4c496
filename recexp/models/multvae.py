"""Mult-VAE: a variational autoencoder of users' sets of items with a multinomial likelihood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.contracts import SetAutoencoder
from recexp.models.common import WHOLE_HISTORY, SequenceModel, checked_length
from recexp.nn.dropout import dropout
from recexp.nn.init import xavier_linears
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Length, Rate, Width, checked_rate
from recexp.types import Query, Schema

BIAS_STD = 0.001  # biases start at N(0, BIAS_STD^2), truncated at 2 standard deviations


class MultVAE(SequenceModel, SetAutoencoder):
    """score = W d + b, d = tanh(U z), z ~ N(mu, exp(log_var)), [mu; log_var] = G tanh(E x).

    x: the set of the history's items, 1 / sqrt(size) at its items and 0 elsewhere. In training z is
    drawn, and dropout thins x out; otherwise z = mu. Layers have biases.

    n_factors: width of z. n_inner: of the hidden layers. dropout: of x.
    variational: false is Mult-DAE: no draw, no divergence.
    max_len: newest events that are read; None: all.

    A user costs the rows of E that x has, not all of them; W costs the whole catalog.

    Liang et al. 2018, sec. 2, arXiv:1802.05814; authors' code https://github.com/dawenl/vae_cf.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 200,
        n_inner: Width = 600,
        dropout: Rate = 0.5,
        variational: bool = True,
        max_len: Length | None = None,
    ):
        super().__init__()
        self.max_len = WHOLE_HISTORY if max_len is None else checked_length(max_len)
        self.history = self.max_len
        self.dropout = checked_rate(dropout)
        self.variational = variational
        self.input = Embedding(schema.V, n_inner, padding_idx=0)  # E, a column per row
        self.input_bias = nn.Parameter(torch.zeros(n_inner))
        self.posterior = nn.Linear(n_inner, 2 * n_factors if variational else n_factors)
        self.decoder = nn.Linear(n_factors, n_inner)
        self.output = Embedding(schema.V, n_inner, padding_idx=0)
        self.output_bias = nn.Parameter(torch.zeros(schema.V))
        self._init()

    @torch.no_grad()
    def _init(self) -> None:
        xavier_linears(self)
        for table in (self.input, self.output):
            nn.init.xavier_uniform_(table.weight)[0] = 0
        for name, bias in self.named_parameters():
            if name.endswith("bias"):
                nn.init.trunc_normal_(bias, std=BIAS_STD, a=-2 * BIAS_STD, b=2 * BIAS_STD)

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        """d as the state of the whole history, [B, 1, D]."""
        return self.encode_set(query)[0][:, None]

    def encode_set(self, query: Query) -> tuple[Tensor, Tensor]:
        hidden = (self._input_sum(query.item_BL[:, -self.max_len :]) + self.input_bias).tanh()
        mean = self.posterior(hidden)
        divergence_B = mean.new_zeros(mean.shape[0])
        if self.variational:
            mean, log_var = mean.chunk(2, dim=-1)
            divergence_B = 0.5 * (log_var.exp() + mean.square() - log_var - 1).sum(-1)
        z = mean
        if self.variational and self.training:
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.decoder(z).tanh(), divergence_B

    def _input_sum(self, item_BL: Tensor) -> Tensor:
        """E x, [B, D]."""
        if torch.compiler.is_exporting():
            return self._dense_input_sum(item_BL)
        item_BL = item_BL.sort(dim=1).values
        is_first_BL = item_BL != F.pad(item_BL, (1, 0))[:, :-1]  # so 0, padding, is not
        size_B = is_first_BL.sum(1)
        item_M = item_BL[is_first_BL]  # row by row
        row_M = torch.repeat_interleave(torch.arange(len(size_B), device=size_B.device), size_B)
        table = self.input.weight
        weight_M = size_B.clamp(min=1).to(table.dtype).rsqrt()[row_M]
        if self.training:
            weight_M = dropout(weight_M, self.dropout)
        start_B = size_B.cumsum(0) - size_B
        return F.embedding_bag(
            item_M, table, start_B, mode="sum", per_sample_weights=weight_M.to(table.dtype)
        )

    def _dense_input_sum(self, item_BL: Tensor) -> Tensor:
        """As ``_input_sum`` without dropout, in operations that a graph can have."""
        table = self.input.weight
        x_BV = table.new_zeros(item_BL.shape[0], len(table)).scatter(1, item_BL, 1.0)
        x_BV = torch.cat([torch.zeros_like(x_BV[:, :1]), x_BV[:, 1:]], dim=1)
        return (x_BV @ table) * x_BV.sum(1, keepdim=True).clamp(min=1).rsqrt()

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if item is None:
            return self.output.weight[1:], self.output_bias[1:]
        return self.output(item), self.output_bias[item]
