"""Where gradients in closed form replace automatic differentiation."""

from __future__ import annotations

import torch
from torch import Tensor


def closed_form_helps(x: Tensor) -> bool:
    """Is x on a CPU, and are gradients recorded?

    False under autocast, whose choice of dtypes automatic differentiation follows.
    """
    on_cpu = x.device.type == "cpu"
    return on_cpu and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
