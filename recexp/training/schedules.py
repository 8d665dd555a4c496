"""Learning-rate schedules per step, as factors of the optimizer's rate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recexp.errors import RecexpError


def linear_warmup(
    optimizer: Optimizer, *, total_steps: int, warmup: Annotated[float, Field(ge=0)] = 100
) -> LambdaLR:
    """Linear rise over ``warmup`` steps, then linear fall to 0 at the last step.

    Sun et al. 2019 (BERT4Rec), arXiv:1904.06690, as in the authors' code; Liu et al. 2021
    (NOVA-BERT), arXiv:2103.03578.

    warmup: a number of steps, or below 1 a share of all steps. Raises RecexpError unless it is
    shorter than the training.
    """
    n_rising = int(warmup * total_steps) if warmup < 1 else int(warmup)
    if not 0 <= n_rising < total_steps:
        raise RecexpError(
            f"scheduler.warmup={warmup} is {n_rising} steps, but training has only {total_steps}: "
            "lower it or train longer."
        )
    n_falling = total_steps - n_rising

    def factor(step: int) -> float:
        rise = (step + 1) / max(1, n_rising)
        fall = (total_steps - step) / max(1, n_falling)
        return min(rise, fall)

    return LambdaLR(optimizer, factor)
