"""RecVAE: an autoencoder of users' sets of items whose encoder and decoder are trained in turn."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.contracts import SetAutoencoder
from recexp.models.common import WHOLE_HISTORY, SequenceModel, checked_length
from recexp.nn.dropout import dropout
from recexp.nn.item_sets import ItemSets, dense_sums, item_sets
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Count, Length, Rate, Width, checked_rate, require_positive
from recexp.types import Phase, Query, Schema

N_LAYERS = 5
NORM_EPS = 0.1
# Parts of the prior: standard normal, posterior of the old encoder, wide normal.
PRIOR_WEIGHTS = (3 / 20, 3 / 4, 1 / 10)
WIDE_LOG_VAR = 10.0


class SetEncoder(nn.Module):
    """[mu; log_var] = G h_5, h_n = LN(swish(A_n h_{n-1} + h_1 + ... + h_{n-1})), h_1 of E x.

    Layers have biases.
    """

    def __init__(self, n_rows: int, n_inner: int, n_factors: int):
        super().__init__()
        self.input = Embedding(n_rows, n_inner, padding_idx=0)  # E, a column per row
        self.input_bias = nn.Parameter(torch.empty(n_inner))
        self.inner = nn.ModuleList(nn.Linear(n_inner, n_inner) for _ in range(N_LAYERS - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(n_inner, NORM_EPS) for _ in range(N_LAYERS))
        self.posterior = nn.Linear(n_inner, 2 * n_factors)

    def forward(self, sum_BD: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log_var, [B, n_factors] each.

        sum_BD: E x.
        """
        h = self.norms[0](F.silu(sum_BD + self.input_bias))
        total = h
        for layer, norm in zip(self.inner, self.norms[1:], strict=True):
            h = norm(F.silu(layer(h) + total))
            total = total + h
        mean, log_var = self.posterior(h).chunk(2, dim=-1)
        return mean, log_var


class RecVAE(SequenceModel, SetAutoencoder):
    """score = W mu + b, [mu; log_var] = encoder(x).

    x: the set of the history's items, 1 / sqrt(size) at its items and 0 elsewhere. In training z is
    drawn from N(mu, exp(log_var)) instead of mu, and its divergence is log q(z | x) - log p(z | x).
    Each number of p(z | x) is distributed as a mixture of N(0, 1), of q(z | x) with the weights
    that the encoder had when the decoder was trained last, and of N(0, exp(10)), as in the authors'
    code.

    Training alternates: the encoder for encoder_epochs epochs, with dropout on x; then p takes over
    the encoder's weights, and the decoder W, b is trained for decoder_epochs epochs, without
    dropout.

    n_factors: width of z. n_inner: of the encoder. dropout: of x.
    max_len: newest events that are read; None: all.

    Shenbin et al. 2020, sec. 3, arXiv:1912.11160; authors' code
    https://github.com/ilya-shenbin/RecVAE.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 200,
        n_inner: Width = 600,
        dropout: Rate = 0.5,
        encoder_epochs: Count = 3,
        decoder_epochs: Count = 1,
        max_len: Length | None = None,
    ):
        super().__init__()
        require_positive(encoder_epochs=encoder_epochs, decoder_epochs=decoder_epochs)
        self.max_len = WHOLE_HISTORY if max_len is None else checked_length(max_len)
        self.history = self.max_len
        self.dropout = checked_rate(dropout)
        self.encoder_epochs = encoder_epochs
        self.decoder_epochs = decoder_epochs
        self.thins_input = True
        self.encoder = SetEncoder(schema.V, n_inner, n_factors)
        self.output = Embedding(schema.V, n_factors, padding_idx=0)
        self.output_bias = nn.Parameter(torch.empty(schema.V))
        self._init(schema.n_items)
        self.old_encoder = _with_buffers(self.encoder)  # of the prior

    @torch.no_grad()
    def _init(self, n_items: int) -> None:
        """As torch's linear layers, of which the tables are the first and the last."""
        bound = n_items**-0.5
        nn.init.uniform_(self.encoder.input.weight, -bound, bound)[0] = 0
        nn.init.uniform_(self.encoder.input_bias, -bound, bound)
        bound = self.output.embedding_dim**-0.5
        nn.init.uniform_(self.output.weight, -bound, bound)[0] = 0
        nn.init.uniform_(self.output_bias, -bound, bound)

    # Training

    def phases(self) -> tuple[Phase, ...]:
        decoder = (self.output.weight, self.output_bias)
        return (
            Phase("encoder", self.encoder_epochs, tuple(self.encoder.parameters())),
            Phase("decoder", self.decoder_epochs, decoder),
        )

    @torch.no_grad()
    def enter_phase(self, name: str) -> None:
        self.thins_input = name == "encoder"
        if name == "decoder":
            self.old_encoder.load_state_dict(self.encoder.state_dict())

    def encode_set(self, query: Query) -> tuple[Tensor, Tensor]:
        """z as the states."""
        sets = self._sets(query)
        thinned = sets
        if self.training and self.thins_input:
            thinned = sets._replace(weight_M=dropout(sets.weight_M, self.dropout))
        mean, log_var = self.encoder(thinned.sums(self.encoder.input.weight))
        z = mean
        if self.training:
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        divergence = _log_normal(z, mean, log_var) - self._log_prior(z, sets)
        return z, divergence.sum(-1)

    def _log_prior(self, z: Tensor, sets: ItemSets) -> Tensor:
        """Of each number of z, [B, n_factors]; without log(2 pi) / 2, as ``_log_normal``."""
        with torch.no_grad():
            old_mean, old_log_var = self.old_encoder(sets.sums(self.old_encoder.input.weight))
        zeros = torch.zeros_like(z)
        parts = (
            _log_normal(z, zeros, zeros),
            _log_normal(z, old_mean, old_log_var),
            _log_normal(z, zeros, zeros + WIDE_LOG_VAR),
        )
        weighted = [part + math.log(w) for part, w in zip(parts, PRIOR_WEIGHTS, strict=True)]
        return torch.stack(weighted).logsumexp(0)

    # Scores

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        """mu as the state of the whole history, [B, 1, D]."""
        table = self.encoder.input.weight
        if torch.compiler.is_exporting():
            sum_BD = dense_sums(query.item_BL[:, -self.max_len :], table)
        else:
            sum_BD = self._sets(query).sums(table)
        mean, _ = self.encoder(sum_BD)
        return mean[:, None]

    def _sets(self, query: Query) -> ItemSets:
        return item_sets(query.item_BL[:, -self.max_len :], self.encoder.input.weight.dtype)

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if item is None:
            return self.output.weight[1:], self.output_bias[1:]
        return self.output(item), self.output_bias[item]


def _log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, exp(log_var)) without the constant log(2 pi) / 2."""
    return -0.5 * (log_var + (z - mean).square() * (-log_var).exp())


def _with_buffers(module: SetEncoder) -> SetEncoder:
    """A copy that is not trained: its weights are buffers."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, weight.detach())
    return module
