"""Optimizers as the authors of GRU4Rec and BERT run them; torch's own differ in details."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from recexp.errors import RecexpError


class TakesSparseGradients:
    """Marks an optimizer to which the gradient of a table may be the rows of a batch alone.

    ``RecModule`` then makes the gradients of embedding tables sparse where it can. The optimizer
    must make the steps that it makes with dense gradients, and accept both kinds in a step.
    """


class GRU4RecAdagrad(TakesSparseGradients, torch.optim.Adagrad):
    """Adagrad of GRU4Rec's official code (Hidasi and Karatzoglou 2018, arXiv:1706.03847).

    acc += g^2; v = momentum * v - lr * g / sqrt(acc + eps); p += v. torch's Adagrad adds its
    epsilon to the root and has no momentum.

    With momentum, a row of a parameter whose whole gradient is 0 keeps its velocity and stays
    where it is: the official code updates only the items of the batch. An item that occurs several
    times in a batch counts with the sum of its gradients. Gradients may be sparse.

    Raises RecexpError unless lr >= 0, 0 <= momentum < 1 and eps > 0.
    """

    def __init__(
        self,
        params: Any,
        lr: Annotated[float, Field(ge=0)] = 0.05,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        eps: Annotated[float, Field(gt=0)] = 1e-6,
        *,
        fused: bool | None = None,
    ):
        if not (lr >= 0 and 0 <= momentum < 1 and eps > 0):
            raise RecexpError(
                f"lr={lr}, momentum={momentum}, eps={eps}: lr must be at least 0, momentum in "
                "[0, 1) and eps above 0."
            )
        # A sum that starts at epsilon is the sum with epsilon inside the root.
        super().__init__(params, lr=lr, eps=0.0, initial_accumulator_value=eps, fused=fused)
        self.defaults["momentum"] = momentum
        for group in self.param_groups:
            group.setdefault("momentum", momentum)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        learned = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        by_rows = any(group["momentum"] for group in self.param_groups)
        if not by_rows and not any(p.grad.is_sparse for p in learned):
            super().step()
            return loss
        with torch.no_grad():
            torch._foreach_add_([self.state[p]["step"] for p in learned], 1)
            for group in self.param_groups:
                self._update_group(group)
        return loss

    def _update_group(self, group: dict[str, Any]) -> None:
        whole = []
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse or group["momentum"]:
                self._update_rows(p, p.grad, group["lr"], group["momentum"])
            else:
                whole.append(p)
        if whole:
            grads = [p.grad for p in whole]
            sums = [self.state[p]["sum"] for p in whole]
            torch._foreach_addcmul_(sums, grads, grads)
            torch._foreach_addcdiv_(whole, grads, torch._foreach_sqrt(sums), -group["lr"])

    def _update_rows(self, p: Tensor, grad: Tensor, lr: float, momentum: float) -> None:
        state = self.state[p]
        row_R, grad_R = rows_with_gradient(grad) if momentum else _rows(grad)
        acc_R = state["sum"].index_select(0, row_R).addcmul_(grad_R, grad_R)
        state["sum"].index_copy_(0, row_R, acc_R)
        change_R = (grad_R / acc_R.sqrt_()).mul_(-lr)
        if momentum:
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(p)
            change_R.add_(state["velocity"].index_select(0, row_R), alpha=momentum)
            state["velocity"].index_copy_(0, row_R, change_R)
        p.index_add_(0, row_R, change_R)


def rows_with_gradient(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that are not all 0, ascending, and their gradients [R, ...]."""
    if grad.is_sparse:
        row_R, grad = _rows(grad)
    else:
        row_R = torch.arange(len(grad), device=grad.device)
    # The largest absolute value of a row; (grad != 0).any(1) takes ten times as long.
    largest = grad if grad.dim() <= 1 else grad.flatten(1).abs().amax(1)
    place_R = (largest != 0).nonzero().flatten()
    return row_R[place_R], grad[place_R]


def _rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows [R] of a sparse gradient, ascending, and their sums [R, ...]."""
    row_R = grad._indices()[0]
    # torch forgets which gradients are coalesced.
    if not (row_R[1:] > row_R[:-1]).all():
        grad = grad.coalesce()
        row_R = grad._indices()[0]
    return row_R, grad._values()


class BertAdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay as BERT's authors run it: moments without bias correction.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr (m / (sqrt(v) + eps) + weight_decay p).
    Devlin et al. 2018, arXiv:1810.04805; used by Sun et al. 2019 (BERT4Rec), arXiv:1904.06690.
    The first steps are up to (1 - b1) / sqrt(1 - b2) times as long as torch's AdamW's, 3.2 for the
    usual betas: meant for a warm-up.
    """

    def __init__(
        self,
        params: Any,
        lr: Annotated[float, Field(ge=0)] = 1e-4,
        betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
            0.9,
            0.999,
        ),
        eps: Annotated[float, Field(ge=0)] = 1e-6,
        weight_decay: Annotated[float, Field(ge=0)] = 0.01,
        *,
        fused: bool | None = None,
    ):
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad and not self.state[p]:
                    # After infinitely many steps the corrections 1 - beta^step are exactly 1.
                    step = torch.tensor(torch.inf, device=p.device if group["fused"] else "cpu")
                    zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[p] = {"step": step, **zeros}
        return super().step(closure)
