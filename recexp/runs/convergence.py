"""Was a run trained for long enough? One verdict, from its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KINDS = ("unlearned", "rising", "converged", "overfitted", "one_pass", "unknown")
WARNED = ("unlearned", "rising")  # said at the end of a run: its figures are not the system's best
FLOOR = 2_000  # optimizer steps; the same as min_steps in conf/callbacks/default.yaml
LEARNED = 0.15  # how far below a constant's loss; popularity alone is .10 below it on ML-1M
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
    threshold: float = 0.01,
) -> Verdict:
    """The verdict on a run with these rows of ``metrics.csv``.

    constant_loss: the training loss of a model that scores all items equal, None where unknown.
    threshold: the share of the best validation value that counts as a gain.

    - "one_pass": a model without gradients that passes once over the data.
    - "unlearned": the training loss of the last epoch is less than ``LEARNED`` below
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
      (it diverged); or one that stood still for fewer steps than ``FLOOR`` while the training
      loss fell: a plateau and a slow start look alike.

    A quarter, because neighboring epochs differ by noise. It is counted in validated epochs, and
    the gain is scaled to a quarter of all epochs where too few are validated to cut there.
    """
    if not rows:
        return Verdict("unknown", "no metrics.csv, so its epochs are unknown")
    if len(rows) == 1 and not _by_gradient(rows):
        return Verdict("one_pass", "needs one pass over the data only")
    ended = _ended(rows, stop_reason)
    loss = rows[-1].get("train/loss")
    if constant_loss and loss is not None and loss > (1 - LEARNED) * constant_loss:
        share = 1 - loss / constant_loss
        text = (
            f"{ended} before it learned: its training loss {loss:.4f} is "
            f"{f'only {share:.1%} below' if share > 0 else 'not below'} the {constant_loss:.4f} of "
            "a model that scores all items alike"
        )
        return Verdict("unlearned", text)
    points = [row for row in rows if monitor in row]
    if len(points) < 2:
        text = f"{monitor} was measured in {len(points)} of {len(rows)} epochs: too few to tell"
        return Verdict("unknown", text)
    values = [row[monitor] for row in points]
    if max(values) <= 0:
        return Verdict("unlearned", f"{ended} before it learned: {monitor} was never above 0")
    quarter = -(-len(points) // 4)
    best = points[values.index(max(values))]
    fell = _fell(values, quarter)
    if fell > NOISE:
        falls = _change(best, rows[-1]) < 0
        text = (
            f"{ended}, {'over-fitted' if falls else 'diverged'}: {monitor} fell by {fell:.1%} from "
            f"its best in epoch {best['epoch'] + 1:.0f} while the training loss "
            f"{'fell' if falls else 'did not fall'}"
        )
        return Verdict("overfitted" if falls else "unknown", text)
    rate, over = _rate(points, values, quarter)
    gain = rate * len(rows) / 4
    since_best = _steps_since(points, values, max(values))
    waited = stop_reason.startswith("early") and since_best is not None and since_best >= FLOOR
    if gain > threshold and not waited:
        text = (
            f"{ended}, still rising: {monitor} gained {rate:.1%} of its {max(values):.4f} an epoch "
            f"over the last {over:.0f}"
        )
        return Verdict("rising", text)
    flat = f"{monitor} gained {max(0.0, gain):.1%} in the last quarter of its epochs"
    still = _steps_since(points, values, (1 - NOISE) * max(values))
    if _loss_falls(rows) and still is not None and still < FLOOR:
        text = (
            f"{ended}: {flat}, but that is {still:,.0f} steps without a gain while the training "
            f"loss fell: too few to tell a plateau from a slow start ({FLOOR:,} would do)"
        )
        return Verdict("unknown", text)
    return Verdict("converged", f"{ended}, converged: {flat}")


def _ended(rows: Sequence[Mapping[str, float]], stop_reason: str) -> str:
    by_patience = stop_reason.startswith("early")
    return f"stopped {'by patience ' if by_patience else ''}after {len(rows)} epochs"


def _by_gradient(rows: Sequence[Mapping[str, float]]) -> bool:
    return any("lr" in row for row in rows)  # only optimizers have a learning rate


def _fell(values: Sequence[float], quarter: int) -> float:
    """The share of its best that the metric lost by the last quarter of its validations."""
    best = values.index(max(values))
    around = values[max(0, best - 1) : best + 2]
    peak = sum(around) / len(around)
    return 1 - sum(values[-quarter:]) / quarter / peak if best < len(values) - quarter else 0.0


def _change(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Of the training loss; 0 where it is not known."""
    before, after = then.get("train/loss"), now.get("train/loss")
    return 0.0 if before is None or after is None else after - before


def _rate(
    points: Sequence[Mapping[str, float]], values: Sequence[float], quarter: int
) -> tuple[float, float]:
    """The gain an epoch in the last quarter, as a share of the best value, and its epochs."""
    epochs = points[-1]["epoch"] - points[-1 - quarter]["epoch"]
    before = values[-2 * quarter : -quarter]
    trend = sum(values[-quarter:]) / quarter - sum(before) / quarter
    best = max(values)
    return min(best - max(values[:-quarter]), trend) / epochs / abs(best), epochs


def _steps_since(
    points: Sequence[Mapping[str, float]], values: Sequence[float], level: float
) -> float | None:
    """Optimizer steps since the metric first reached the level; None where no file tells."""
    if "step" not in points[0]:
        return None
    reached = next(n for n, value in enumerate(values) if value >= level)
    return points[-1]["step"] - points[reached]["step"]


def _loss_falls(rows: Sequence[Mapping[str, float]]) -> bool:
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    quarter = -(-len(losses) // 4)
    if len(losses) < 2:
        return False
    whole = max(losses) - losses[-1]
    return whole > 0 and losses[-1 - quarter] - losses[-1] > FALLING * whole
