"""Learning-rate schedules per step, as factors of the optimiser's rate."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recexp.errors import RecexpError


def linear_warmup(optimizer: Optimizer, *, total_steps: int, warmup: float = 100) -> LambdaLR:
    """Linear rise over ``warmup`` steps (a share of all steps where below 1), then linear fall to 0 at the last step (BERT4Rec, NOVA-BERT)."""
    rise = int(warmup * total_steps) if warmup < 1 else int(warmup)
    if not 0 <= rise < total_steps:
        raise RecexpError(
            f"scheduler.warmup={warmup} is {rise} steps, but training has only {total_steps}: lower it or train longer."
        )
    return LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / max(1, rise), (total_steps - step) / max(1, total_steps - rise)
        ),
    )
