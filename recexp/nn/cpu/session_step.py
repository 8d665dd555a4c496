"""The loss of one event of every session, with all its gradients in closed form.

A step of sessions in parallel is a chain of small operations, for which automatic differentiation
takes as long as they do: lookups, dropout, GRU layers, scores, and a loss over negatives that all
sessions share. Here the gradients are computed with the loss. Rows of a table that holds both what
is read and what is scored are looked up together, so that its gradient is one tensor. Figures:
``docs/results/speed``.

Extra shape symbols: S sessions, n negatives, M rows looked up, R distinct rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recexp.nn.cpu import gru
from recexp.nn.cpu.dropout import byte_mask
from recexp.nn.cpu.sampled_losses import SampledForm, mean_and_gradients
from recexp.types import GRULayers

# Biases per looked-up row up to which their gradient is dense, which takes fewer operations.
SMALL = 64
Gradients = list[tuple[Tensor, Tensor]]  # of each parameter


def session_step(
    model: GRULayers,
    form: SampledForm,
    item_S: Tensor,
    negative_n: Tensor,
    counts_Sn: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor]:
    """The mean loss of the sessions, a scalar, and their next states, which carry no gradient.

    item_S: the events to read. negative_n: the first S of them are the sessions' targets. No id
    may be 0, which is padding. counts_Sn: 1 where a negative counts and 0 elsewhere, in the dtype
    of the parameters. h and the next states: [layers, S, D]. Gradients of a table, and of the
    biases of its rows where they are many, are sparse where its ``sparse`` is set.
    """
    loss, after, gradients = _step(model, form, item_S, negative_n, counts_Sn, h)
    parameters, values = zip(*gradients, strict=True)
    return _WithGradients.apply(loss, values, *parameters), after


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = None  # a gradient that something else holds would be copied
        if grad.item() != 1:
            gradients = tuple(gradient * grad for gradient in gradients)
        return None, None, *gradients


@torch.no_grad()
def _step(
    model: GRULayers,
    form: SampledForm,
    item_S: Tensor,
    negative_n: Tensor,
    counts_Sn: Tensor,
    h: Tensor,
) -> tuple[Tensor, Tensor, Gradients]:
    shared = model.input is model.item
    id_M = torch.cat([item_S, negative_n]) if shared else negative_n
    row_MD = F.embedding(id_M, model.item.weight)
    vectors_nD = row_MD[-len(negative_n) :]
    x = row_MD[: len(item_S)] if shared else F.embedding(item_S, model.input.weight)
    x, kept_share = _dropped(x, model.embedding_dropout)
    states, layers = _read(model, x, h)

    bias_n = None if model.bias_V is None else model.bias_V.index_select(0, negative_n)
    score_Sn = _activated(model, F.linear(states[-1], vectors_nD, bias_n))
    loss, d_target_S, d_score_Sn = mean_and_gradients(
        form, score_Sn.diagonal(), score_Sn, counts_Sn
    )
    d_score_Sn.diagonal().add_(d_target_S)
    d_score_Sn = _before_activation(model, score_Sn, d_score_Sn)

    d_x, gradients = _back(model, layers, d_score_Sn @ vectors_nD)
    d_x = d_x if kept_share is None else d_x * kept_share
    d_row_MD = torch.empty_like(row_MD)
    torch.mm(d_score_Sn.T, states[-1], out=d_row_MD[-len(negative_n) :])
    if shared:
        d_row_MD[: len(item_S)] = d_x
    else:
        gradients += _of_tables(item_S, model.input.sparse, [(model.input.weight, d_x)])
    tables = [(model.item.weight, d_row_MD)]
    if model.bias_V is not None:
        d_bias_n = d_score_Sn.sum(0)
        tables.append((model.bias_V, F.pad(d_bias_n, (len(id_M) - len(d_bias_n), 0))))
    gradients += _of_tables(id_M, model.item.sparse, tables)
    return loss, torch.stack(states), gradients


def _dropped(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    """As ``byte_dropout``: x times the factors of its elements, and the factors; None: all 1."""
    if p == 0:
        return x, None
    keep, scale = byte_mask(x.shape, p)
    factor = keep.to(x.dtype).mul_(scale)
    return factor * x, factor


Layer = tuple[Tensor, gru.Kept, Tensor | None]  # its input, what its step kept, factors of dropout


def _read(model: GRULayers, x: Tensor, h: Tensor) -> tuple[list[Tensor], list[Layer]]:
    """The states of all layers after the inputs x, and what their gradients need."""
    states, layers = [], []
    for (input_GD, bias_G, gates_UD, candidate_DD), h_SD in zip(model.layers, h, strict=True):
        projected_SG = x + bias_G if input_GD is None else F.linear(x, input_GD, bias_G)
        state_SD, kept = gru.forward(projected_SG, h_SD, gates_UD, candidate_DD)
        state_SD, factor_SD = _dropped(state_SD, model.dropout)
        layers.append((x, kept, factor_SD))
        states.append(state_SD)
        x = state_SD
    return states, layers


def _back(model: GRULayers, layers: list[Layer], d_x: Tensor) -> tuple[Tensor, Gradients]:
    """The gradients of the first layer's input and of all layers' parameters, from that of the last
    layer's state.
    """
    gradients: Gradients = []
    for parameters, (x, kept, factor_SD) in zip(
        reversed(model.layers), reversed(layers), strict=True
    ):
        input_GD, bias_G, gates_UD, candidate_DD = parameters
        d_state_SD = d_x if factor_SD is None else d_x * factor_SD
        d_x, _, d_gates_UD, d_candidate_DD = gru.backward(d_state_SD, kept, wants_h=False)
        gradients += [(gates_UD, d_gates_UD), (candidate_DD, d_candidate_DD), (bias_G, d_x.sum(0))]
        if input_GD is not None:
            gradients.append((input_GD, d_x.T @ x))
            d_x = d_x @ input_GD
    return d_x, gradients


def _activated(model: GRULayers, score_Sn: Tensor) -> Tensor:
    if model.activation == "elu":
        return F.elu_(score_Sn, model.elu_alpha)
    return score_Sn.tanh_() if model.activation == "tanh" else score_Sn


def _before_activation(model: GRULayers, score_Sn: Tensor, d_score_Sn: Tensor) -> Tensor:
    """The gradient of the scores before their activation, from that of the activated ones."""
    if model.activation == "elu":
        # exp(z) = elu(z) / alpha + 1 for z below 0
        return torch.ops.aten.elu_backward(d_score_Sn, model.elu_alpha, 1, 1, True, score_Sn)
    if model.activation == "tanh":
        return d_score_Sn.addcmul_(d_score_Sn * score_Sn, score_Sn, value=-1)
    return d_score_Sn


def _of_tables(id_M: Tensor, sparse: bool, tables: list[tuple[Tensor, Tensor]]) -> Gradients:
    """The gradients of tables from those of the rows id_M that were looked up in all of them."""
    rows = None
    gradients = []
    for table, d_M in tables:
        if not sparse or (table.dim() == 1 and len(table) <= SMALL * len(id_M)):
            gradient = torch.zeros_like(table).index_add_(0, id_M, d_M)
        else:
            rows = rows or _DistinctRows(id_M)
            gradient = rows.gradient(table, d_M)
        gradients.append((table, gradient))
    return gradients


class _DistinctRows:
    """Sums over equal ids, ascending."""

    def __init__(self, id_M: Tensor) -> None:
        sorted_M, self.order_M = id_M.sort(stable=True)
        self.row_R, count_R = sorted_M.unique_consecutive(return_counts=True)
        self.first_R = count_R.cumsum(0) - count_R

    def gradient(self, table: Tensor, d_M: Tensor) -> Tensor:
        d_R = F.embedding_bag(self.order_M, d_M.view(len(d_M), -1), self.first_R, mode="sum")
        return torch.sparse_coo_tensor(
            self.row_R[None],
            d_R.view(-1, *table.shape[1:]),
            table.shape,
            is_coalesced=True,
            check_invariants=False,
        )
