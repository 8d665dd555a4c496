"""GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415) between two linear maps, in less memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def gelu_linear(x: Tensor, layer: nn.Module, approximate: str = "none") -> Tensor:
    """layer(gelu(x)), which keeps x for the backward pass but not gelu(x).

    The gradient of the layer's weight needs gelu(x), which is then computed again. That takes about
    1 % of a step of BERT4Rec and saves the largest of its activations. On CPUs only.
    """
    activated = F.gelu(x, approximate=approximate)
    if not torch.is_grad_enabled() or x.device.type != "cpu":
        return layer(activated)
    place = activated.data_ptr()
    again = x.detach()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        return saved.shape if saved.data_ptr() == place else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return F.gelu(again, approximate=approximate).view(packed)

    with saved_tensors_hooks(pack, unpack):
        return layer(activated)
