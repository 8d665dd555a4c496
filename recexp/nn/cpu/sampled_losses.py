"""TOP1, TOP1-max and BPR-max with their gradients in closed form.

0.62 / 0.37 ms for BPR-max of 128 positives and 384 negatives, against automatic differentiation of
``recexp.objectives.losses``: fewer passes over the scores, and none that reads or writes booleans,
for which torch's CPU kernels take several times as long.
Measured by ``python tests/perf/kernels.py bpr_max``.

Extra shape symbols: N positives, n negatives of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Loss [N] of every row, and its derivatives by positive [N] and negative [N, n].
RowLosses = tuple[Tensor, Tensor, Tensor]
# Takes positive [N], negative [N, n] and 1 where a negative counts, 0 elsewhere, [N, n] or None.
Form = Callable[[Tensor, Tensor, Tensor | None], RowLosses]


class SampledForm(NamedTuple):
    """A form, and whether a row without a negative is left out."""

    rows: Form
    needs_negative: bool


def mean_loss(
    form: Form,
    positive: Tensor,
    negative: Tensor,
    mask: Tensor | None,
    w: Tensor | None,
    *,
    needs_negative: bool,
) -> Tensor:
    """Mean of the row losses of positive [...] and negative [..., n] under the weights w [...].

    mask: bool [..., n]. needs_negative: a row without a negative gets weight 0.
    """
    n = negative.shape[-1]
    keep_Nn = None
    if mask is not None:
        keep_Nn = mask.reshape(-1, n).contiguous().view(torch.uint8).to(negative.dtype)
    weight_N = None if w is None else w.reshape(-1).to(negative.dtype)
    if keep_Nn is not None and needs_negative:
        some_N = keep_Nn.sum(-1).clamp_(max=1)
        weight_N = some_N if weight_N is None else weight_N * some_N
    return _MeanLoss.apply(form, positive.reshape(-1), negative.reshape(-1, n), keep_Nn, weight_N)


def mean_and_gradients(
    form: SampledForm, positive_N: Tensor, negative_Nn: Tensor, keep_Nn: Tensor
) -> RowLosses:
    """``mean_loss`` without weights, and its gradients by positive [N] and negative [N, n].

    keep_Nn: 1 where a negative counts, 0 elsewhere.
    """
    loss_N, d_positive_N, d_negative_Nn = form.rows(positive_N, negative_Nn, keep_Nn)
    weight_N = keep_Nn.sum(-1).clamp_(max=1) if form.needs_negative else None
    share_N = _shares(loss_N, weight_N)
    return (
        (loss_N * share_N).sum(),
        d_positive_N.mul_(share_N),
        d_negative_Nn.mul_(share_N[:, None]),
    )


def _shares(loss_N: Tensor, weight_N: Tensor | None) -> Tensor:
    """The factor of each row's loss in the mean, [N]."""
    if weight_N is None:
        return torch.full_like(loss_N, 1 / max(1, len(loss_N)))
    return weight_N / weight_N.sum().clamp_min(torch.finfo(loss_N.dtype).tiny)


class _MeanLoss(torch.autograd.Function):
    """Computes the gradients beside the loss, and keeps nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        positive_N: Tensor,
        negative_Nn: Tensor,
        keep_Nn: Tensor | None,
        weight_N: Tensor | None,
    ) -> Tensor:
        loss_N, d_positive_N, d_negative_Nn = form(positive_N, negative_Nn, keep_Nn)
        share_N = _shares(loss_N, weight_N)
        ctx.save_for_backward(d_positive_N, d_negative_Nn, share_N)
        return (loss_N * share_N).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        d_positive_N, d_negative_Nn, share_N = ctx.saved_tensors
        scale_N = grad * share_N
        return None, scale_N * d_positive_N, scale_N[:, None] * d_negative_Nn, None, None


def bpr_max(eps: float, bpreg: float) -> Form:
    """-log(win + eps) + bpreg * reg with win = sum_j p_j sigma(s_pos - s_j), reg = sum_j p_j s_j^2.

    With g_j = sigma(s_pos - s_j) and the softmax p, where dp_j/ds_k = p_j (1[j = k] - p_k):

        dwin/ds_pos = sum_j p_j g_j (1 - g_j)
        dwin/ds_j = p_j (g_j - win) - p_j g_j (1 - g_j) = p_j (g_j^2 - win)
        dreg/ds_j = p_j (s_j^2 - reg) + 2 p_j s_j
    """

    def form(positive_N: Tensor, negative_Nn: Tensor, keep_Nn: Tensor | None) -> RowLosses:
        p_Nn = _softmax(negative_Nn, keep_Nn)
        g_Nn = (positive_N[:, None] - negative_Nn).sigmoid_()
        win_N = torch.linalg.vecdot(p_Nn, g_Nn)
        g_Nn.square_()
        slope_N = win_N - torch.linalg.vecdot(p_Nn, g_Nn)
        square_Nn = negative_Nn.square()
        reg_N = torch.linalg.vecdot(p_Nn, square_Nn)
        win_N_eps = win_N + eps

        d_negative_Nn = square_Nn.add_(negative_Nn, alpha=2).sub_(reg_N[:, None]).mul_(bpreg)
        d_negative_Nn.addcdiv_(win_N[:, None] - g_Nn, win_N_eps[:, None]).mul_(p_Nn)
        loss_N = reg_N.mul_(bpreg) - win_N_eps.log()
        return loss_N, -slope_N / win_N_eps, d_negative_Nn

    return form


def top1(positive_N: Tensor, negative_Nn: Tensor, keep_Nn: Tensor | None) -> RowLosses:
    """(0.5 + sum_j t_j) / (1 + n) with t_j = sigma(s_j - s_pos) + sigma(s_j^2)."""
    term_Nn, by_difference_Nn, by_square_Nn = _top1_terms(positive_N, negative_Nn)
    if keep_Nn is None:
        size_N = torch.full_like(positive_N, 1 + negative_Nn.shape[1])
    else:
        size_N = 1 + keep_Nn.sum(-1)
        for x_Nn in (term_Nn, by_difference_Nn, by_square_Nn):
            x_Nn.mul_(keep_Nn)
    d_positive_N = -by_difference_Nn.sum(-1) / size_N
    d_negative_Nn = by_difference_Nn.add_(by_square_Nn).div_(size_N[:, None])
    return (0.5 + term_Nn.sum(-1)) / size_N, d_positive_N, d_negative_Nn


def top1_max(positive_N: Tensor, negative_Nn: Tensor, keep_Nn: Tensor | None) -> RowLosses:
    """sum_j p_j t_j with the softmax p and the terms t_j of ``top1``."""
    p_Nn = _softmax(negative_Nn, keep_Nn)
    term_Nn, by_difference_Nn, by_square_Nn = _top1_terms(positive_N, negative_Nn)
    loss_N = torch.linalg.vecdot(p_Nn, term_Nn)
    d_positive_N = -torch.linalg.vecdot(p_Nn, by_difference_Nn)
    d_negative_Nn = term_Nn.sub_(loss_N[:, None]).add_(by_difference_Nn).add_(by_square_Nn)
    return loss_N, d_positive_N, d_negative_Nn.mul_(p_Nn)


def _top1_terms(positive_N: Tensor, negative_Nn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t_j [N, n], and the derivatives by s_j of its two summands."""
    g_Nn = (negative_Nn - positive_N[:, None]).sigmoid_()
    q_Nn = negative_Nn.square().sigmoid_()
    by_difference_Nn = torch.addcmul(g_Nn, g_Nn, g_Nn, value=-1)
    by_square_Nn = torch.addcmul(q_Nn, q_Nn, q_Nn, value=-1).mul_(negative_Nn).mul_(2)
    return g_Nn.add_(q_Nn), by_difference_Nn, by_square_Nn


def _softmax(negative_Nn: Tensor, keep_Nn: Tensor | None) -> Tensor:
    """Softmax over the negatives that count; the others have a share of exactly 0.

    Of no use in a row without any, whose weight is 0.
    """
    if keep_Nn is None:
        return negative_Nn.softmax(-1)
    lowest = torch.finfo(negative_Nn.dtype).min
    return torch.add(negative_Nn, 1 - keep_Nn, alpha=lowest).softmax(-1)
