"""What made a loss NaN or infinite: said in terms of parameters, modules and rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SHOWN = 5


def first_bad_parameter(model: nn.Module) -> str | None:
    """Name of the first parameter that holds a NaN or an infinity, with some of the places."""
    for name, parameter in model.named_parameters():
        bad = ~torch.isfinite(parameter.detach())
        if bad.any():
            return f"parameter {name} is not finite at {bad.nonzero()[:SHOWN].tolist()} ({int(bad.sum())} of {bad.numel()} entries)"
    return None


def first_bad_output(model: nn.Module, compute: Callable[[], object]) -> str | None:
    """Name of the first submodule whose output is not finite while ``compute`` runs."""
    found: list[str] = []

    def hook(name: str) -> Callable:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            parts = output if isinstance(output, tuple | list) else [output]
            if not found and any(
                isinstance(x, Tensor) and x.is_floating_point() and not torch.isfinite(x).all()
                for x in parts
            ):
                found.append(name or type(model).__name__)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        compute()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def bad_rows(row_B: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows whose loss alone is not finite, found by halving: log2(B) evaluations per such row, at most SHOWN of them."""
    found, waiting = [], [row_B]
    while waiting and len(found) < SHOWN:
        rows = waiting.pop(0)
        if torch.isfinite(loss_of(rows)):
            continue
        if len(rows) == 1:
            found.append(rows)
        else:
            waiting = [*rows.chunk(2), *waiting]
    return torch.cat(found) if found else row_B[:0]
