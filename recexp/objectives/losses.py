"""Losses as pure functions of scores. Shapes: ``...`` any leading shape (rows, positions), ``n`` negatives per positive.

Every function averages over the leading shape. Where a weight ``w`` of that shape is given, the average is weighted and
a weight of 0 leaves its row or position out; where all weights are 0 the loss is 0. ``mask`` [..., n] is True where
a negative counts. The sources are sections of the specification sheet and the papers named there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_BPR_MAX_EPS = 1e-24


def weighted_mean(x: Tensor, w: Tensor | None = None) -> Tensor:
    """Mean of x under the weights w of the same shape; 0 where the weights sum to 0."""
    if w is None:
        return x.mean()
    w = w.to(x.dtype)
    return (x * w).sum() / w.sum().clamp_min(torch.finfo(x.dtype).tiny)


def bce_with_weights(
    z: Tensor, y: Tensor, w: Tensor | None = None, *, mean: str = "weights"
) -> Tensor:
    """Binary cross entropy of logits z and labels y, both [...] (§3.3, S000 eq. 18-19).

    mean: "weights" divides the weighted sum by the sum of weights; "rows" divides it by the number of elements, so that terms
    left out by weight 0 still dilute the loss (what the authors' code of ITE does, §6.2).
    """
    return _mean(F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none"), w, mean)


def mse_with_weights(
    z: Tensor, y: Tensor, w: Tensor | None = None, *, mean: str = "weights"
) -> Tensor:
    """Squared error of scores z and labels y, both [...] (§6.7). mean: as in ``bce_with_weights``."""
    return _mean((z - y.to(z.dtype)).square(), w, mean)


def _mean(loss: Tensor, w: Tensor | None, mean: str) -> Tensor:
    if mean == "weights":
        return weighted_mean(loss, w)
    if mean == "rows":
        return (loss if w is None else loss * w.to(loss.dtype)).mean()
    raise ValueError(f"mean must be 'weights' or 'rows', not {mean!r}")


def bpr(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """-log sigma(s_pos - s_neg), averaged over the negatives of a positive (§3.3). positive [...], negative [..., n]."""
    loss, w = _over_negatives(-F.logsigmoid(positive.unsqueeze(-1) - negative), mask, w)
    return weighted_mean(loss, w)


def cross_entropy(z: Tensor, target: Tensor, w: Tensor | None = None) -> Tensor:
    """-log softmax(z)[target] over positions (§3.3). z [..., N] scores of all classes, target int64 [...] in 0..N-1."""
    loss = F.cross_entropy(_full(z).reshape(-1, z.shape[-1]), target.reshape(-1), reduction="none")
    return weighted_mean(loss, None if w is None else w.reshape(-1))


def sampled_softmax(
    positive: Tensor,
    negative: Tensor,
    w: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    log_q_negative: Tensor | None = None,
) -> Tensor:
    """Cross entropy of the positive [...] against its negatives [..., n].

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
    """-log sigma(s_pos) - sum_j log(1 - sigma(s_j)), averaged over positions (§3.3; SASRec with n = 1)."""
    loss = F.softplus(negative)
    if mask is not None:
        loss = loss * mask
    return weighted_mean(F.softplus(-positive) + loss.sum(-1), w)


def gbce_beta(t: float, n: int, n_items: int) -> float:
    """The calibrated power beta of gBCE for n negatives out of n_items: 1 at t = 0, the sampling rate n/(n_items-1) at t = 1."""
    alpha = n / (n_items - 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def gbce(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, n_items: int, t: float = 0.75
) -> Tensor:
    """Generalised BCE (gSASRec; §3.3): -log sigma(s_pos)^beta - sum_j log(1 - sigma(s_j)), over n+1, averaged over positions.

    The published code replaces the positive score by gamma(s) = log(1 / (sigma(s)^-beta - 1)) in float64. As
    sigma(gamma(s)) = sigma(s)^beta, its loss term is beta * softplus(-s), which is what we compute: exact in any precision.
    """
    beta = gbce_beta(t, negative.shape[-1], n_items)
    loss = beta * F.softplus(-positive) + F.softplus(negative).sum(-1)
    return weighted_mean(loss / (1 + negative.shape[-1]), w)


def top1(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """TOP1 of GRU4Rec (§4.5). positive [...], negative [..., n].

    The mean over the N = n+1 scored items of sigma(s_j - s_pos) + sigma(s_j^2), the target's own sigma(s_pos^2)/N taken out.
    The target's remaining term is the constant sigma(0)/N.
    """
    term = torch.sigmoid(negative - positive.unsqueeze(-1)) + torch.sigmoid(negative.square())
    if mask is None:
        return weighted_mean((0.5 + term.sum(-1)) / (1 + negative.shape[-1]), w)
    return weighted_mean((0.5 + (term * mask).sum(-1)) / (1 + mask.sum(-1)), w)


def top1_max(
    positive: Tensor, negative: Tensor, w: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """TOP1-max of GRU4Rec+ (§4.6): the terms of TOP1 weighted by the softmax over the negatives only."""
    positive, negative = _full(positive), _full(negative)
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
    """BPR-max of GRU4Rec+ (§4.6): -log(sum_j p_j sigma(s_pos - s_j) + 1e-24) + bpreg * sum_j p_j s_j^2.

    p is the softmax over the negatives only.
    """
    positive, negative = _full(positive), _full(negative)
    share, w = _softmax_over_negatives(negative, mask, w)
    win = (share * torch.sigmoid(positive.unsqueeze(-1) - negative)).sum(-1)
    loss = -torch.log(win + _BPR_MAX_EPS) + bpreg * (share * negative.square()).sum(-1)
    return weighted_mean(loss, w)


def constant(name: str, n: int, n_items: int, t: float = 0.75) -> float:
    """The least value of a loss over one positive and ``n`` negatives whose scores are all equal.

    name: as in ``objective.loss_name``. bce and gbce take the best common score; bpr and
    sampled_softmax depend on differences only; top1, top1_max and bpr_max are least at 0.
    """
    match name:
        case "bce" | "gbce":
            beta = 1.0 if name == "bce" else gbce_beta(t, n, n_items)
            share = beta / (beta + n)
            total = -beta * math.log(share) - n * math.log(1 - share)
            return total if name == "bce" else total / (1 + n)
        case "sampled_softmax":
            return math.log(1 + n)
        case "top1":
            return (0.5 + n) / (1 + n)
        case "top1_max":
            return 1.0
        case "bpr" | "bpr_max":
            return math.log(2)
    raise ValueError(f"no loss {name!r}")


def _full(x: Tensor) -> Tensor:
    """At least float32: a softmax over many items overflows or ties in half precision, and 1e-24 is 0 there."""
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
    # the lowest finite number, as -inf throughout a row without a negative would give NaN
    low = torch.finfo(negative.dtype).min
    return negative.masked_fill(~mask, low).softmax(-1) * mask, _without_empty(mask, w)


def _without_empty(mask: Tensor, w: Tensor | None) -> Tensor:
    some = mask.any(-1)
    return some if w is None else w * some
