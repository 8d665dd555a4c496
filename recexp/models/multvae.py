"""Mult-VAE: a variational autoencoder of users' sets of items with a multinomial likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import SetAutoencoder
from recexp.models.common import WHOLE_HISTORY, SequenceModel, checked_length
from recexp.nn.dropout import dropout
from recexp.nn.init import xavier_linears
from recexp.nn.item_sets import dense_sums, item_sets
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
        table = self.input.weight
        if torch.compiler.is_exporting():
            return dense_sums(item_BL, table)
        sets = item_sets(item_BL, table.dtype)
        if self.training:
            sets = sets._replace(weight_M=dropout(sets.weight_M, self.dropout))
        return sets.sums(table)

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if item is None:
            return self.output.weight[1:], self.output_bias[1:]
        return self.output(item), self.output_bias[item]
