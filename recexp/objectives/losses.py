"""Losses: pure functions of scores, and the objects that objectives take (``conf/loss``).

Shapes: ``...`` is any leading shape (rows, positions), ``n`` the negatives per positive.

Every function averages over the leading shape. Where a weight ``w`` of that shape is given, the
average is weighted, and a weight of 0 leaves its row or position out; where all weights are 0 the
loss is 0. ``mask`` [..., n] is True where a negative counts.

To add a loss, subclass one of the kinds of ``recexp.contracts`` and name it in a YAML of
``conf/loss``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recexp.contracts import CatalogLoss, LabelLoss, Mean, SampledLoss
from recexp.nn.cpu import sampled_losses
from recexp.nn.cpu.closed_form import closed_form_helps
from recexp.nn.cpu.linear_cross_entropy import linear_cross_entropy
from recexp.nn.cpu.sampled_losses import SampledForm, mean_loss
from recexp.types import CatalogShard, SampledScores

_BPR_MAX_EPS = 1e-24

# ---------------------------------------------------------------- labels and weights per pair


def weighted_mean(x: Tensor, w: Tensor | None = None) -> Tensor:
    """Mean of x under the weights w of the same shape; 0 where the weights sum to 0."""
    if w is None:
        return x.mean()
    w = w.to(x.dtype)
    return (x * w).sum() / w.sum().clamp_min(torch.finfo(x.dtype).tiny)


def bce_with_weights(
    z: Tensor, y: Tensor, w: Tensor | None = None, *, mean: Mean = "weights"
) -> Tensor:
    """Binary cross-entropy of logits z and labels y, both [...] (ITE paper, eq. 18-19).

    mean: "weights" divides the weighted sum by the sum of weights. "rows" divides it by the number
    of elements, so that terms of weight 0 still dilute the loss, as in the authors' code of ITE.
    """
    loss = F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")
    return _mean(loss, w, mean)


def mse_with_weights(
    z: Tensor, y: Tensor, w: Tensor | None = None, *, mean: Mean = "weights"
) -> Tensor:
    """Squared error of scores z and labels y, both [...]. mean: as in ``bce_with_weights``."""
    return _mean((z - y.to(z.dtype)).square(), w, mean)


def _mean(loss: Tensor, w: Tensor | None, mean: Mean) -> Tensor:
    if mean == "weights":
        return weighted_mean(loss, w)
    if mean == "rows":
        return (loss if w is None else loss * w.to(loss.dtype)).mean()
    raise ValueError(f"mean must be 'weights' or 'rows', not {mean!r}")


# ---------------------------------------------------------------- one target among all items


def cross_entropy(z: Tensor, target: Tensor, w: Tensor | None = None) -> Tensor:
    """-log softmax(z)[target]. z [..., N] scores of all classes, target int64 [...] in 0..N-1."""
    loss = F.cross_entropy(_full(z).reshape(-1, z.shape[-1]), target.reshape(-1), reduction="none")
    return weighted_mean(loss, None if w is None else w.reshape(-1))


# ---------------------------------------------------------------- a positive and its negatives


def bpr(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """-log sigma(s_pos - s_neg), averaged over the negatives. positive [...], negative [..., n].

    Rendle et al. 2009 (BPR), arXiv:1205.2618.
    """
    loss, w = _over_negatives(-F.logsigmoid(positive.unsqueeze(-1) - negative), mask, w)
    return weighted_mean(loss, w)


def sampled_softmax(
    positive: Tensor,
    negative: Tensor,
    w: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    log_q_negative: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the positive [...] against its negatives [..., n].

    log_q_negative [..., n] (or broadcastable): where given, the negatives are n draws with
    replacement, and these are the log-probabilities q of one draw. log(n q) is subtracted from
    their scores, so that the sum of exp(score) over the negatives has the sum over all items but
    the positive as its expected value: the mask must leave out copies of the positive. The
    positive stands for itself and is not corrected. See Bengio and Senecal 2008, Adaptive
    importance sampling to accelerate training of a neural probabilistic language model,
    https://doi.org/10.1109/TNN.2007.912312.
    """
    if log_q_negative is not None:
        negative = negative - (log_q_negative + math.log(negative.shape[-1]))
    if mask is not None:
        negative = negative.masked_fill(~mask, -torch.inf)
    z = _full(torch.cat([positive.unsqueeze(-1), negative], dim=-1))
    return weighted_mean(torch.logsumexp(z, dim=-1) - z[..., 0], w)


def bce_negatives(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """-log sigma(s_pos) - sum_j log(1 - sigma(s_j)), averaged over positions.

    With n = 1 the loss of Kang and McAuley 2018 (SASRec), arXiv:1808.09781.
    """
    loss = F.softplus(negative)
    if mask is not None:
        loss = loss * mask
    return weighted_mean(F.softplus(-positive) + loss.sum(-1), w)


def gbce_beta(t: float, n: int, n_items: int) -> float:
    """The calibrated power beta of gBCE for n negatives out of n_items.

    It is 1 at t = 0 and the sampling rate n / (n_items - 1) at t = 1.
    """
    alpha = n / (n_items - 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def gbce(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, n_items: int, t: float = 0.75
) -> Tensor:
    """Generalized BCE: (-log sigma(s_pos)^beta - sum_j log(1 - sigma(s_j))) / (n + 1).

    Petrov and Macdonald 2023 (gSASRec), arXiv:2308.07192. Their code replaces the positive score
    by gamma(s) = log(1 / (sigma(s)^-beta - 1)) in float64. As sigma(gamma(s)) = sigma(s)^beta, its
    loss term is beta * softplus(-s), which is computed here: exact in any precision.
    """
    beta = gbce_beta(t, negative.shape[-1], n_items)
    loss = beta * F.softplus(-positive) + F.softplus(negative).sum(-1)
    return weighted_mean(loss / (1 + negative.shape[-1]), w)


def top1(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """TOP1 of Hidasi et al. 2016 (GRU4Rec), arXiv:1511.06939. positive [...], negative [..., n].

    The mean over the N = n + 1 scored items of sigma(s_j - s_pos) + sigma(s_j^2), without the
    target's own sigma(s_pos^2) / N. The target's remaining term is the constant sigma(0) / N.
    """
    if closed_form_helps(negative):
        return mean_loss(sampled_losses.top1, positive, negative, mask, w, needs_negative=False)
    term = torch.sigmoid(negative - positive.unsqueeze(-1)) + torch.sigmoid(negative.square())
    if mask is None:
        return weighted_mean((0.5 + term.sum(-1)) / (1 + negative.shape[-1]), w)
    return weighted_mean((0.5 + (term * mask).sum(-1)) / (1 + mask.sum(-1)), w)


def top1_max(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """TOP1-max: the terms of TOP1 weighted by the softmax over the negatives only.

    Hidasi and Karatzoglou 2018 (GRU4Rec+), arXiv:1706.03847.
    """
    positive = _full(positive)
    negative = _full(negative)
    if closed_form_helps(negative):
        return mean_loss(sampled_losses.top1_max, positive, negative, mask, w, needs_negative=True)
    share, w = _softmax_over_negatives(negative, mask, w)
    term = torch.sigmoid(negative - positive.unsqueeze(-1)) + torch.sigmoid(negative.square())
    return weighted_mean((share * term).sum(-1), w)


def bpr_max(
    positive: Tensor,
    negative: Tensor,
    w: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    bpreg: float = 1.0,
) -> Tensor:
    """BPR-max: -log(sum_j p_j sigma(s_pos - s_j) + 1e-24) + bpreg * sum_j p_j s_j^2.

    p is the softmax over the negatives only. Hidasi and Karatzoglou 2018 (GRU4Rec+),
    arXiv:1706.03847.
    """
    positive = _full(positive)
    negative = _full(negative)
    if closed_form_helps(negative):
        form = sampled_losses.bpr_max(_BPR_MAX_EPS, bpreg)
        return mean_loss(form, positive, negative, mask, w, needs_negative=True)
    share, w = _softmax_over_negatives(negative, mask, w)
    win = (share * torch.sigmoid(positive.unsqueeze(-1) - negative)).sum(-1)
    loss = -torch.log(win + _BPR_MAX_EPS) + bpreg * (share * negative.square()).sum(-1)
    return weighted_mean(loss, w)


def _full(x: Tensor) -> Tensor:
    """At least float32: in half precision a softmax over many items overflows, and 1e-24 is 0."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _over_negatives(
    term: Tensor, mask: Tensor | None, w: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Mean [...] over the last axis where mask; rows without a negative get weight 0."""
    if mask is None:
        return term.mean(-1), w
    return (term * mask).sum(-1) / mask.sum(-1).clamp_min(1), _without_empty(mask, w)


def _softmax_over_negatives(
    negative: Tensor, mask: Tensor | None, w: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if mask is None:
        return negative.softmax(-1), w
    # -inf throughout a row without a negative would give NaN.
    lowest = torch.finfo(negative.dtype).min
    return negative.masked_fill(~mask, lowest).softmax(-1) * mask, _without_empty(mask, w)


def _without_empty(mask: Tensor, w: Tensor | None) -> Tensor:
    some = mask.any(-1)
    return some if w is None else w * some


# ---------------------------------------------------------------- losses as objects


@dataclass(frozen=True)
class CE(CatalogLoss):
    """``cross_entropy``: softmax over all items."""

    def of_catalog(
        self,
        h_ND: Tensor,
        vectors_VD: Tensor | CatalogShard,
        bias_V: Tensor | None,
        target_N: Tensor,
    ) -> Tensor:
        return linear_cross_entropy(h_ND, vectors_VD, bias_V, target_N)

    def constant_of_catalog(self, n_items: int) -> float:
        return math.log(n_items)


@dataclass(frozen=True)
class BCE(SampledLoss, LabelLoss):
    """Binary cross-entropy: ``bce_negatives``, and ``bce_with_weights`` of labeled logits."""

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return bce_negatives(scores.positive, scores.negative, mask=scores.mask)

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        return _least_bce(1.0, n)

    def of_labels(self, z: Tensor, y: Tensor, w: Tensor, *, mean: Mean) -> Tensor:
        return bce_with_weights(z, y, w, mean=mean)

    def constant_of_labels(self, ones: float, zeros: float) -> float:
        return _least_bce(ones, zeros)


@dataclass(frozen=True)
class GBCE(SampledLoss):
    """``gbce``; t is its calibration."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.75

    counts_negatives = True

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return gbce(scores.positive, scores.negative, n_items=scores.n_items, t=self.t)

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        return _least_bce(gbce_beta(self.t, n, n_items), n) / (1 + n)


@dataclass(frozen=True)
class BPR(SampledLoss):
    """``bpr``, which depends on differences of scores only."""

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return bpr(scores.positive, scores.negative, mask=scores.mask)

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        return math.log(2) if n else 0.0


@dataclass(frozen=True)
class SampledSoftmax(SampledLoss):
    """``sampled_softmax``.

    log_q: subtract log(n q) from the negatives' scores, so that the loss estimates the softmax
        over the items that the sampler can draw. Needs negatives common to a batch.
    """

    log_q: bool = False

    activates = False

    @property
    def needs_log_q(self) -> bool:
        return self.log_q

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return sampled_softmax(
            scores.positive, scores.negative, mask=scores.mask, log_q_negative=scores.log_q
        )

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        # Corrected, a sample stands for the catalog.
        return math.log(n_items) if self.log_q else math.log(1 + n)


@dataclass(frozen=True)
class TOP1(SampledLoss):
    """``top1``, least where all scores are 0."""

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return top1(scores.positive, scores.negative, mask=scores.mask)

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        return (0.5 + n) / (1 + n)


@dataclass(frozen=True)
class TOP1Max(SampledLoss):
    """``top1_max``, least where all scores are 0."""

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return top1_max(scores.positive, scores.negative, mask=scores.mask)

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        return 1.0 if n else 0.0


@dataclass(frozen=True)
class BPRMax(SampledLoss):
    """``bpr_max``, least where all scores are 0; bpreg weighs its regularization."""

    bpreg: Annotated[float, Field(ge=0)] = 1.0

    def of_sampled(self, scores: SampledScores) -> Tensor:
        return bpr_max(scores.positive, scores.negative, mask=scores.mask, bpreg=self.bpreg)

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        return math.log(2) if n else 0.0


def closed_form_of(loss: SampledLoss) -> SampledForm | None:
    """How a loss and its gradients are computed together. None: by automatic differentiation, as
    in subclasses, which may compute something else.
    """
    if type(loss) is BPRMax:
        return SampledForm(sampled_losses.bpr_max(_BPR_MAX_EPS, loss.bpreg), True)
    if type(loss) is TOP1Max:
        return SampledForm(sampled_losses.top1_max, True)
    if type(loss) is TOP1:
        return SampledForm(sampled_losses.top1, False)
    return None


@dataclass(frozen=True)
class MSE(LabelLoss):
    """``mse_with_weights``: squared error of the scores themselves."""

    def of_labels(self, z: Tensor, y: Tensor, w: Tensor, *, mean: Mean) -> Tensor:
        return mse_with_weights(z, y, w, mean=mean)

    def constant_of_labels(self, ones: float, zeros: float) -> float:
        if not ones or not zeros:
            return 0.0
        return ones * (1 - ones / (ones + zeros))


def _least_bce(ones: float, zeros: float) -> float:
    """Summed binary cross-entropy of the best constant prediction for labels of these weights."""
    if not ones or not zeros:
        return 0.0
    share = ones / (ones + zeros)
    return -ones * math.log(share) - zeros * math.log(1 - share)
