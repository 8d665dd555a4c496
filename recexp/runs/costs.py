"""How many floating-point operations it costs to score the items of one user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from recexp.contracts import Recommender
from recexp.models.common import SequenceModel
from recexp.types import moved

if TYPE_CHECKING:
    from recexp.data.store import Store

N_ITEMS = 100  # scored, of catalogs that have as many


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of what runs inside it.

    products: multiply-adds of matrix products, k for each output of a product over k terms.
    others: one for each number that an element-wise operation puts out and for each that a sum
    takes in, 7 per number of a layer normalization, 4 per number of a softmax, 2 per weighted row
    that a bag of embeddings adds. Look-ups, selections and copies count nothing.

    Attention must run in its plain form (``SDPBackend.MATH``): fused kernels show no products.
    """

    MOVES = ("clone", "copy_", "where", "masked_fill", "masked_fill_", "fill_")
    PER_NUMBER = {"native_layer_norm": 7, "_softmax": 4, "_safe_softmax": 4, "_log_softmax": 4}
    BAGS = ("_embedding_bag", "_embedding_bag_forward_only")

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.others = 0

    @property
    def flops(self) -> int:
        """A multiply-add is two operations."""
        return 2 * self.products + self.others

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        first = out[0] if isinstance(out, tuple | list) else out
        if packet in flop_registry:
            self.products += flop_registry[packet](*args, **kwargs, out_val=out) // 2
        elif isinstance(first, Tensor) and first.is_floating_point():
            self.others += self._count_others(func, packet.__name__, args, first)
        return out

    def _count_others(self, func: Any, name: str, args: tuple[Any, ...], out: Tensor) -> int:
        if name in self.MOVES:
            return 0
        if name in self.PER_NUMBER:
            return self.PER_NUMBER[name] * out.numel()
        if name in self.BAGS:
            is_weighted = len(args) > 6 and args[6] is not None
            n_indices: int = args[1].numel()
            return (1 + is_weighted) * n_indices * out.shape[-1]
        if torch.Tag.reduction in func.tags or name == "cumsum":
            n_inputs: int = args[0].numel()
            return n_inputs
        return out.numel() if torch.Tag.pointwise in func.tags else 0


def scoring_operations(model: Recommender, store: Store, history: str) -> Operations:
    """Operations of one forward pass over the longest test history and the scores of 100 items.

    A sequence model computes the states of all positions here, as a paper's count of a forward
    pass does, though ranking needs the last one only.
    """
    longest = (store.test.end - store.test.start).argmax()[None]
    # After training the model is on the host, wherever the data are.
    tensors = (*model.parameters(), *model.buffers())
    device = next((x.device for x in tensors), store.device)
    query = moved(store.query_held_out(store.test, longest, model.history, history), device)
    items = torch.arange(1, 1 + min(N_ITEMS, store.schema.n_items), device=device)[None]
    was_training = model.training
    counted = Operations()
    try:
        with (
            _encoding_all_positions(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            counted,
        ):
            model.eval().score(query, items)
    finally:
        model.train(was_training)
    return counted


def scoring_flops(model: Recommender, store: Store, history: str) -> int:
    """Floating-point operations of ``scoring_operations``, a multiply-add counting as two."""
    return scoring_operations(model, store, history).flops


def scoring_costs(model: Recommender, store: Store, history: str) -> dict[str, float]:
    """gflops: 10^9 floating-point operations of ``scoring_operations``. gops: the same with a
    multiply-add as one.

    The "FLOPs" of Liu et al. 2021 (NOVA-BERT), arXiv:2103.03578, Table 5, appear to be the latter
    over 50 positions: three layers 512 wide make 50 * 3 * 12 * 512^2 + 3 * 2 * 50^2 * 512
    = 0.4795e9 multiply-adds, where the paper prints 0.4796e9. It says neither how it counted nor
    of how many positions, and its 35.5 MB are fewer parameters than such layers have.
    """
    counted = scoring_operations(model, store, history)
    return {"gflops": counted.flops / 1e9, "gops": (counted.products + counted.others) / 1e9}


@contextmanager
def _encoding_all_positions(model: Recommender) -> Iterator[None]:
    """A sequence model ignores ``last_only`` inside; other models are left alone."""
    if not isinstance(model, SequenceModel):
        yield
        return
    encode: Callable[..., Any] = model.encode

    def encode_all(query: Any, last_only: bool = False, **options: Any) -> Any:
        return encode(query, **options)

    vars(model)["encode"] = encode_all
    try:
        yield
    finally:
        del vars(model)["encode"]
