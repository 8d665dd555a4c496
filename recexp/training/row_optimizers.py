"""Optimizers that update only the rows of tables that a batch has gradients for.

A step costs the rows of a batch instead of the rows of the tables: with a million users, Adam's
dense step takes hundreds of times as long. A row whose whole gradient is 0 stays where it is and
keeps its moments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from recexp.training.optimizers import TakesSparseGradients, rows_with_gradient


class RowOptimizer(TakesSparseGradients, torch.optim.Optimizer):
    """Base: finds the rows with gradients and adds their changes."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                row_R, grad_R = rows_with_gradient(p.grad)
                if len(row_R):
                    p.index_add_(0, row_R, self._change(p, row_R, grad_R, group))
        return loss

    @abstractmethod
    def _change(self, p: Tensor, row_R: Tensor, grad_R: Tensor, group: dict[str, Any]) -> Tensor:
        """What is added to the rows [R, ...], whose gradients are grad_R."""


class RowSGD(RowOptimizer):
    """Stochastic gradient descent: the steps are those of torch's SGD without momentum."""

    def __init__(self, params: Any, lr: Annotated[float, Field(ge=0)] = 0.05):
        super().__init__(params, {"lr": lr})

    def _change(self, p: Tensor, row_R: Tensor, grad_R: Tensor, group: dict[str, Any]) -> Tensor:
        return grad_R * -group["lr"]


class RowAdagrad(RowOptimizer):
    """Adagrad: the steps are those of torch's. Duchi et al. 2011, JMLR 12."""

    def __init__(
        self,
        params: Any,
        lr: Annotated[float, Field(ge=0)] = 0.05,
        eps: Annotated[float, Field(gt=0)] = 1e-10,
    ):
        super().__init__(params, {"lr": lr, "eps": eps})

    def _change(self, p: Tensor, row_R: Tensor, grad_R: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state["sum"] = torch.zeros_like(p)
        sum_R = state["sum"].index_select(0, row_R).addcmul_(grad_R, grad_R)
        state["sum"].index_copy_(0, row_R, sum_R)
        return grad_R / sum_R.sqrt_().add_(group["eps"]) * -group["lr"]


class RowAdam(RowOptimizer):
    """Adam with lazy moments, as torch.optim.SparseAdam, for tables and other parameters alike.

    Moments decay only in steps in which their row has a gradient; the bias corrections count all
    steps. Kingma and Ba 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        params: Any,
        lr: Annotated[float, Field(ge=0)] = 0.001,
        betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
            0.9,
            0.999,
        ),
        eps: Annotated[float, Field(gt=0)] = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    def _change(self, p: Tensor, row_R: Tensor, grad_R: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        step = state["step"].item()
        beta1, beta2 = group["betas"]
        mean_R = state["exp_avg"].index_select(0, row_R).lerp_(grad_R, 1 - beta1)
        square_R = state["exp_avg_sq"].index_select(0, row_R).mul_(beta2)
        square_R.addcmul_(grad_R, grad_R, value=1 - beta2)
        state["exp_avg"].index_copy_(0, row_R, mean_R)
        state["exp_avg_sq"].index_copy_(0, row_R, square_R)
        root_R = square_R.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        return mean_R.div_(root_R).mul_(-group["lr"] / (1 - beta1**step))
