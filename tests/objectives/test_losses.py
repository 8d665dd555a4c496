"""Every loss and its gradient against a plain loop over the definition, with weights, masks and
saturated scores.
"""

import math

import pytest
import torch

from recexp.objectives import losses

P, N = 4, 5


def scores(seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    positive = scale * torch.randn(P, generator=g, dtype=torch.float64)
    return positive, scale * torch.randn(P, N, generator=g, dtype=torch.float64)


WEIGHT = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 0, 1, 0, 1]]).bool()
SAMPLED = {
    "bpr": losses.bpr,
    "sampled_softmax": losses.sampled_softmax,
    "bce_negatives": losses.bce_negatives,
    "gbce": lambda p, n, w=None: losses.gbce(p, n, w, n_items=40, t=0.6),
    "top1": losses.top1,
    "top1_max": losses.top1_max,
    "bpr_max": lambda p, n, w=None, **k: losses.bpr_max(p, n, w, bpreg=0.7, **k),
}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def one_row(name, s, negatives):
    """The loss of one positive by the formulas of the papers, in plain Python."""
    n = len(negatives)
    total = sum(math.exp(x) for x in negatives)
    share = [math.exp(x) / total for x in negatives]
    if name == "bpr":
        return sum(-math.log(sigmoid(s - x)) for x in negatives) / n
    if name == "sampled_softmax":
        return -math.log(math.exp(s) / (math.exp(s) + total))
    if name == "bce_negatives":
        return -math.log(sigmoid(s)) - sum(math.log(1 - sigmoid(x)) for x in negatives)
    if name == "gbce":
        alpha = n / (40 - 1)
        beta = alpha * (0.6 * (1 - 1 / alpha) + 1 / alpha)
        gamma = math.log(
            1 / (sigmoid(s) ** -beta - 1)
        )  # the published transform of the positive score
        return (-math.log(sigmoid(gamma)) - sum(math.log(1 - sigmoid(x)) for x in negatives)) / (
            n + 1
        )
    if name == "top1":
        scored = [s, *negatives]
        return sum(sigmoid(x - s) + sigmoid(x * x) for x in scored) / len(scored) - sigmoid(
            s * s
        ) / len(scored)
    if name == "top1_max":
        return sum(
            p * (sigmoid(x - s) + sigmoid(x * x)) for p, x in zip(share, negatives, strict=True)
        )
    win = sum(p * sigmoid(s - x) for p, x in zip(share, negatives, strict=True))
    return -math.log(win + 1e-24) + 0.7 * sum(
        p * x * x for p, x in zip(share, negatives, strict=True)
    )


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_loss_is_the_weighted_mean_of_its_definition(name):
    positive, negative = scores()
    rows = [
        one_row(name, s, xs) for s, xs in zip(positive.tolist(), negative.tolist(), strict=True)
    ]
    assert SAMPLED[name](positive, negative).item() == pytest.approx(sum(rows) / P, rel=1e-10)
    expected = sum(w * r for w, r in zip(WEIGHT.tolist(), rows, strict=True)) / WEIGHT.sum().item()
    assert SAMPLED[name](positive, negative, WEIGHT).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", [n for n in SAMPLED if n != "gbce"])
def test_masked_negatives_do_not_exist(name):
    positive, negative = scores(1)
    kept = [
        [x for x, m in zip(xs, ms, strict=True) if m]
        for xs, ms in zip(negative.tolist(), MASK.tolist(), strict=True)
    ]
    expected = sum(one_row(name, s, xs) for s, xs in zip(positive.tolist(), kept, strict=True)) / P
    assert SAMPLED[name](positive, negative, mask=MASK).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["bpr", "top1_max", "bpr_max"])
def test_a_row_without_negatives_is_left_out(name):
    positive, negative = scores(2)
    mask = MASK.clone()
    mask[1] = False
    rest = torch.tensor([0, 2, 3])
    got = SAMPLED[name](positive, negative, mask=mask)
    assert got.item() == pytest.approx(
        SAMPLED[name](positive[rest], negative[rest], mask=mask[rest]).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", SAMPLED)
def test_gradients(name):
    inputs = [x.requires_grad_() for x in scores(3)]
    assert torch.autograd.gradcheck(lambda p, n: SAMPLED[name](p, n, WEIGHT), inputs)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("scale", [30.0, 1e3])
def test_saturated_scores_stay_finite_and_learn_downhill(name, scale):
    positive, negative = (x.float().requires_grad_() for x in scores(4, scale))
    SAMPLED[name](positive, negative).backward()
    assert positive.grad.isfinite().all() and negative.grad.isfinite().all()
    assert (positive.grad <= 0).all()  # raising a positive never raises the loss


@pytest.mark.parametrize("name", SAMPLED)
def test_nothing_to_learn_from_is_zero_not_nan(name):
    positive, negative = (x.requires_grad_() for x in scores())
    loss = SAMPLED[name](positive, negative, torch.zeros(P))
    loss.backward()
    assert loss.item() == 0 and not positive.grad.any() and not negative.grad.any()


def test_leading_shapes_do_not_matter():
    positive, negative = scores()
    flat = losses.sampled_softmax(positive, negative, WEIGHT)
    assert torch.equal(
        losses.sampled_softmax(positive.view(2, 2), negative.view(2, 2, N), WEIGHT.view(2, 2)), flat
    )


def test_bce_with_weights_against_loop():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.float64)
    w = torch.tensor([[1, 2, 0, 0.5], [0, 0, 0, 0], [1, 1, 1, 3]], dtype=torch.float64)
    rows = [
        (b, -(a * math.log(sigmoid(x)) + (1 - a) * math.log(1 - sigmoid(x))))
        for x, a, b in zip(
            z.flatten().tolist(), y.flatten().tolist(), w.flatten().tolist(), strict=True
        )
    ]
    weighted = sum(b * x for b, x in rows)
    assert losses.bce_with_weights(z, y).item() == pytest.approx(sum(x for _, x in rows) / 12)
    assert losses.bce_with_weights(z, y, w).item() == pytest.approx(weighted / 9.5)
    assert losses.bce_with_weights(z, y, w, mean="rows").item() == pytest.approx(weighted / 12)
    assert torch.autograd.gradcheck(lambda x: losses.bce_with_weights(x, y, w), [z])
    with pytest.raises(ValueError, match="weights"):
        losses.bce_with_weights(z, y, w, mean="sum")


def test_cross_entropy_against_loop():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 6, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0, 5, 2], [1, 1, 3]])
    w = torch.tensor([[1.0, 0, 2], [0.5, 1, 0]], dtype=torch.float64)
    pairs = zip(z.view(-1, 6).tolist(), target.view(-1).tolist(), strict=True)
    rows = [-math.log(math.exp(x[t]) / sum(map(math.exp, x))) for x, t in pairs]
    assert losses.cross_entropy(z, target).item() == pytest.approx(sum(rows) / 6)
    expected = sum(b * x for b, x in zip(w.flatten().tolist(), rows, strict=True)) / 4.5
    assert losses.cross_entropy(z, target, w).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: losses.cross_entropy(x, target, w), [z])


def test_softmax_over_all_other_items_is_cross_entropy():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(5, 7, generator=g, dtype=torch.float64)
    target = torch.arange(5)
    other = z.masked_select(torch.ones(5, 7).bool().scatter(1, target[:, None], False)).view(5, 6)
    got = losses.sampled_softmax(z.gather(1, target[:, None]).squeeze(1), other)
    assert got.item() == pytest.approx(losses.cross_entropy(z, target).item(), rel=1e-12)


def test_log_q_correction_estimates_the_full_softmax():
    """n draws with replacement from q, exp(s) divided by n q: the sum estimates that over all."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, generator=g, dtype=torch.float64)
    q = torch.softmax(0.5 * torch.randn(30, generator=g, dtype=torch.float64), 0)
    drawn = torch.multinomial(q.expand(200, -1), 4000, replacement=True, generator=g)
    positive = torch.full((200,), -3.0, dtype=torch.float64)
    full = torch.logsumexp(torch.cat([z, positive[:1]]), 0).item() + 3
    got = losses.sampled_softmax(positive, z[drawn], log_q_negative=q[drawn].log())
    assert got.item() == pytest.approx(full, abs=3e-3)
    skewed = losses.sampled_softmax(positive, z[drawn] - math.log(drawn.shape[1] / 30))
    assert abs(skewed.item() - full) > 3e-2  # without the correction the estimate is wrong


def test_log_q_correction_of_masked_draws_estimates_the_sum_over_the_others():
    """The positive is one of the 30 items: its copies are masked, the number of draws stays n."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(30, generator=g, dtype=torch.float64)
    z[7] = 2.0
    q = torch.softmax(0.5 * torch.randn(30, generator=g, dtype=torch.float64), 0)
    drawn = torch.multinomial(q.expand(200, -1), 4000, replacement=True, generator=g)
    full = torch.logsumexp(z, 0).item() - 2.0
    got = losses.sampled_softmax(
        z[7].expand(200), z[drawn], mask=drawn != 7, log_q_negative=q[drawn].log()
    )
    assert got.item() == pytest.approx(full, abs=3e-3)


def test_gbce_spans_from_plain_bce_to_the_sampling_rate():
    positive, negative = scores()
    assert losses.gbce_beta(0.0, N, 40) == pytest.approx(1.0)
    assert losses.gbce_beta(1.0, N, 40) == pytest.approx(N / 39)
    plain = losses.bce_negatives(positive, negative) / (N + 1)
    assert losses.gbce(positive, negative, n_items=40, t=0.0).item() == pytest.approx(
        plain.item(), rel=1e-12
    )


@pytest.mark.parametrize("name", ["sampled_softmax", "top1_max", "bpr_max"])
def test_half_precision_scores_are_lifted(name):
    positive, negative = (x.to(torch.float16) for x in scores(0, 40.0))
    got = SAMPLED[name](positive, negative)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(
        SAMPLED[name](positive.double(), negative.double()).item(), rel=1e-4
    )
