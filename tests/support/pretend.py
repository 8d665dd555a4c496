"""A simulated device: its tensors are in main memory and cannot be combined with those of the CPU.

Within ``with pretend():`` any tensor can be moved to, or made on, DEVICE. Code that asks for
``device.type`` takes its path for accelerators, on real values. Tensors without dimensions can be
combined with any tensor, as on a GPU; unlike there, a generator of the CPU may draw for the device.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend", 0)
torch.pretend.get_amp_supported_dtype = lambda: [torch.bfloat16]
torch.pretend.manual_seed = torch.manual_seed
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _There(torch.Tensor):
    """A tensor of the simulated device; ``here`` holds its values."""

    @staticmethod
    def __new__(cls, here: torch.Tensor):
        # The wrapper has no mark of a conjugate that is still to be taken.
        here = here.resolve_conj().resolve_neg()
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            here.stride(),
            here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.here = here
        return made

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return _run(op, args, kwargs or {})


def _run(op, args, kwargs):
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, _There) for x in given)
    if there and op not in _MOVES and any(not isinstance(x, _There) and x.dim() for x in given):
        raise RuntimeError(f"{op}: tensors of two devices meet")
    goal = kwargs.get("device")
    if goal is not None:
        there = torch.device(goal).type == DEVICE.type
        kwargs = kwargs | {"device": torch.device("cpu") if there else goal}
    elif op is torch.ops.aten.copy_.default:
        there = isinstance(args[0], _There)
    kwargs.pop("pin_memory", None)
    plain_args, plain_kwargs = tree_map(
        lambda x: x.here if isinstance(x, _There) else x, (args, kwargs)
    )
    out = op(*plain_args, **plain_kwargs)
    if op._schema.is_mutable and not isinstance(
        out, list | tuple
    ):  # in place, or into out=: the same object comes back
        changed = [x for x in (*args, *kwargs.values()) if isinstance(x, _There) and x.here is out]
        if changed:
            return changed[0]
    return tree_map(
        lambda x: (
            _There(x) if there and isinstance(x, torch.Tensor) and not isinstance(x, _There) else x
        ),
        out,
    )


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return _run(op, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """torch.tensor and new_tensor do not use the dispatcher."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (
            function is torch.tensor
            and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type
        ):
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if function is torch.Tensor.new_tensor and isinstance(args[0], _There):
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        return function(*args, **kwargs)


@contextmanager
def pretend():
    with _Constants(), _Mode():
        yield DEVICE


def values(x: torch.Tensor) -> torch.Tensor:
    """The tensor's values as a CPU tensor."""
    return x.here if isinstance(x, _There) else x
