"""What made a loss NaN or infinite: a parameter, a layer's output or rows of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SHOWN = 5  # places or rows that a message names


def first_bad_parameter(model: nn.Module) -> str | None:
    """Name of the first parameter that holds a NaN or an infinity, with some of the places."""
    for name, parameter in model.named_parameters():
        bad = ~torch.isfinite(parameter.detach())
        if bad.any():
            places = bad.nonzero()[:SHOWN].tolist()
            return (
                f"parameter {name} is not finite at {places} ({int(bad.sum())} of {bad.numel()} "
                "entries)"
            )
    return None


def first_bad_output(model: nn.Module, compute: Callable[[], object]) -> str | None:
    """Name of the first submodule whose output is not finite while ``compute`` runs."""
    found: list[str] = []

    def hook_for(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            parts = output if isinstance(output, tuple | list) else [output]
            if not found and not all(_is_finite(part) for part in parts):
                found.append(name or type(model).__name__)

        return hook

    handles = [
        module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()
    ]
    try:
        compute()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_finite(value: object) -> bool:
    """Is it anything but a floating-point tensor with a NaN or an infinity?"""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(value).all())


def bad_rows(row_B: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """At most ``SHOWN`` of the rows [B] whose loss alone is not finite.

    Found by bisection: about log2(B) evaluations of the loss per such row.
    """
    found: list[Tensor] = []
    waiting = [row_B]
    while waiting and len(found) < SHOWN:
        rows = waiting.pop(0)
        if torch.isfinite(loss_of(rows)):
            continue
        if len(rows) == 1:
            found.append(rows)
        else:
            waiting = [*rows.chunk(2), *waiting]
    return torch.cat(found) if found else row_B[:0]
