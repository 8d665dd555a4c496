"""Was a run trained for long enough? One verdict, from its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recexp.training.learned import LEARNED, score_loss, share_learned

KINDS = ("unlearned", "rising", "converged", "overfitted", "one_pass", "unknown")
WARNED = ("unlearned", "rising")  # a run warns at its end: its figures are not the system's best
FLOOR = 2_000  # optimizer steps; the same as min_steps in conf/callbacks/default.yaml
WELL_LEARNED = 2.0  # our choice; from this multiple of learned_share on, a fall is over-fitting
FALLING = 0.02  # of the training loss's whole fall, in the last quarter of the epochs
NOISE = 0.05  # of the best validation value


@dataclass(frozen=True)
class Verdict:
    """kind: one of ``KINDS``; text says it in a sentence, with the figures."""

    kind: str
    text: str


def judge(
    rows: Sequence[Mapping[str, float]],
    monitor: str,
    *,
    stop_reason: str,
    constant_loss: float | None = None,
    learned_share: float = LEARNED,
    threshold: float = 0.01,
) -> Verdict:
    """The verdict on a run with these rows of ``metrics.csv``.

    constant_loss: the training loss of a model that scores all items equal, None where unknown.
    learned_share: see ``Objective.learned_share``.
    threshold: the share of the best validation value that counts as a gain.

    - "one_pass": a model without gradients that passes once over the data.
    - "unlearned": the training loss of the last epoch is less than ``learned_share`` below
      ``constant_loss``, or no validation was above 0.
    - "overfitted": over the last quarter of the validations the metric was ``NOISE`` below its
      best (mean of three neighbors), and the training loss fell since then.
    - "rising": in the last quarter the metric gained more than ``threshold``, and patience did
      not end the run ``FLOOR`` optimizer steps after its best. Two gains are taken and the
      smaller counts: that of the best value so far, because its checkpoint is what a run hands
      on, and that of the quarter's mean over the mean of the quarter before, because a single
      lucky epoch is no trend.
    - "converged": none of these, and either the training loss no longer falls (``FALLING``) or
      the metric stood still, within ``NOISE`` of its best, for ``FLOOR`` steps.
    - "unknown": fewer than two validations; a metric that fell while the training loss did not
      (it diverged); one that fell from a best before the model had learned more than popularity,
      where the training loss has not come far since (``WELL_LEARNED``) and the metric may rise
      again; or one that stood still for fewer steps than ``FLOOR`` while the training loss fell:
      a plateau and a slow start look alike.

    A quarter, because neighboring epochs differ by noise. It is counted in validated epochs, and
    the gain is scaled to a quarter of all epochs where too few are validated to cut there.
    """
    if not rows:
        return Verdict("unknown", "no metrics.csv, so its epochs are unknown")
    if len(rows) == 1 and not _by_gradient(rows):
        return Verdict("one_pass", "needs one pass over the data only")
    ended = _ended(rows, stop_reason)
    points = [row for row in rows if monitor in row]
    values = [row[monitor] for row in points]
    early = _is_loss_constant(rows, ended, constant_loss, learned_share)
    early = early or _has_no_curve(rows, values, monitor, ended)
    early = early or _has_fallen(rows, points, values, monitor, ended, constant_loss, learned_share)
    if early:
        return early

    quarter = _quarter(values)
    rate, n_epochs = _rate(points, values, quarter)
    gain = rate * len(rows) / 4
    since_best = _steps_since(points, values, max(values))
    by_patience = stop_reason.startswith("early")
    waited = by_patience and since_best is not None and since_best >= FLOOR
    if gain > threshold and not waited:
        text = (
            f"{ended}, still rising: {monitor} gained {100 * rate:.2g}% of its {max(values):.4f} "
            f"an epoch over the last {n_epochs:.0f}"
        )
        return Verdict("rising", text)
    flat = f"{monitor} gained {max(0.0, gain):.1%} in the last quarter of its epochs"
    n_still = _steps_since(points, values, (1 - NOISE) * max(values))
    if _loss_falls(rows) and n_still is not None and n_still < FLOOR:
        text = (
            f"{ended}: {flat}, but that is {n_still:,.0f} steps without a gain while the training "
            f"loss fell: too few to tell a plateau from a slow start ({FLOOR:,} would do)"
        )
        return Verdict("unknown", text)
    return Verdict("converged", f"{ended}, converged: {flat}")


def _is_loss_constant(
    rows: Sequence[Mapping[str, float]],
    ended: str,
    constant_loss: float | None,
    learned_share: float,
) -> Verdict | None:
    """Unlearned, where the last training loss is near that of equal scores."""
    share = share_learned(rows[-1], constant_loss)
    if share is None or share >= learned_share:
        return None
    below = f"only {share:.1%} below" if share > 0 else "not below"
    text = (
        f"{ended} before it learned: its training loss {score_loss(rows[-1]):.4f} is {below} the "
        f"{constant_loss:.4f} of a model that scores all items alike"
    )
    return Verdict("unlearned", text)


def _has_no_curve(
    rows: Sequence[Mapping[str, float]], values: Sequence[float], monitor: str, ended: str
) -> Verdict | None:
    """Unknown or unlearned, where there are no two validations or none above 0."""
    if len(values) < 2:
        text = f"{monitor} was measured in {len(values)} of {len(rows)} epochs: too few to tell"
        return Verdict("unknown", text)
    if max(values) <= 0:
        return Verdict("unlearned", f"{ended} before it learned: {monitor} was never above 0")
    return None


def _has_fallen(
    rows: Sequence[Mapping[str, float]],
    points: Sequence[Mapping[str, float]],
    values: Sequence[float],
    monitor: str,
    ended: str,
    constant_loss: float | None,
    learned_share: float,
) -> Verdict | None:
    """Overfitted, diverged or not yet known, where the metric lies well below its best."""
    fell = _fell(values, _quarter(values))
    if fell <= NOISE:
        return None
    best = points[values.index(max(values))]
    fall = f"{monitor} fell by {fell:.1%} from its best in epoch {best['epoch'] + 1:.0f}"
    if _change(best, rows[-1]) >= 0:
        text = f"{ended}, diverged: {fall} while the training loss did not fall"
        return Verdict("unknown", text)
    then, now = (share_learned(row, constant_loss) for row in (best, rows[-1]))
    well_learned = WELL_LEARNED * learned_share
    if then is not None and now is not None and then < learned_share <= now < well_learned:
        text = (
            f"{ended}: {fall}, where the training loss was {then:.1%} below that of equal scores; "
            f"it is {now:.1%} below at the end, and the metric may rise again: wait longer "
            "(callbacks.early_stopping.patience)"
        )
        return Verdict("unknown", text)
    return Verdict("overfitted", f"{ended}, over-fitted: {fall} while the training loss fell")


def _quarter(values: Sequence[float]) -> int:
    """A quarter of the values, rounded up."""
    return -(-len(values) // 4)


def _ended(rows: Sequence[Mapping[str, float]], stop_reason: str) -> str:
    by_patience = stop_reason.startswith("early")
    return f"stopped {'by patience ' if by_patience else ''}after {len(rows)} epochs"


def _by_gradient(rows: Sequence[Mapping[str, float]]) -> bool:
    return any("lr" in row for row in rows)  # only optimizers have a learning rate


def _fell(values: Sequence[float], quarter: int) -> float:
    """The share of its best that the metric lost by the last quarter of its validations."""
    best = values.index(max(values))
    if best >= len(values) - quarter:
        return 0.0
    around = values[max(0, best - 1) : best + 2]
    peak = sum(around) / len(around)
    return 1 - sum(values[-quarter:]) / quarter / peak


def _change(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Change of the training loss; 0 where it is not known."""
    before = then.get("train/loss")
    after = now.get("train/loss")
    if before is None or after is None:
        return 0.0
    return after - before


def _rate(
    points: Sequence[Mapping[str, float]], values: Sequence[float], quarter: int
) -> tuple[float, float]:
    """The gain an epoch in the last quarter, as a share of the best value, and its epochs."""
    epochs = points[-1]["epoch"] - points[-1 - quarter]["epoch"]
    before = values[-2 * quarter : -quarter]
    trend = sum(values[-quarter:]) / quarter - sum(before) / quarter
    best = max(values)
    best_gain = best - max(values[:-quarter])
    return min(best_gain, trend) / epochs / abs(best), epochs


def _steps_since(
    points: Sequence[Mapping[str, float]], values: Sequence[float], level: float
) -> float | None:
    """Optimizer steps since the metric first reached the level; None where no file tells."""
    if "step" not in points[0]:
        return None
    reached = next(n for n, value in enumerate(values) if value >= level)
    return points[-1]["step"] - points[reached]["step"]


def _loss_falls(rows: Sequence[Mapping[str, float]]) -> bool:
    """Does the training loss still fall, in the last quarter of the epochs?"""
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    if len(losses) < 2:
        return False
    whole_fall = max(losses) - losses[-1]
    last_fall = losses[-1 - _quarter(losses)] - losses[-1]
    return whole_fall > 0 and last_fall > FALLING * whole_fall
