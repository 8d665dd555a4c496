"""Time every kernel of ``recexp.nn.cpu`` beside what torch offers for the same result.

    python tests/perf/kernels.py                      all kernels
    python tests/perf/kernels.py attention lookup     some of them

Prints milliseconds of process time of one forward and backward pass at one thread, the best of
several, torch first. Needs no data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from recexp.models import gru4rec
from recexp.models.gru4rec import GRULayer
from recexp.nn.cpu.attention import block_attention
from recexp.nn.cpu.catalog_dot import catalog_dot
from recexp.nn.cpu.dropout import byte_dropout
from recexp.nn.cpu.factor_bpr import factor_bpr
from recexp.nn.cpu.linear_cross_entropy import linear_cross_entropy
from recexp.nn.cpu.lookup import look_up, table_dot
from recexp.nn.propagation import BipartiteGraph
from recexp.objectives import losses


def attention() -> None:
    for shape in ((32, 4, 100, 100, 64), (32, 2, 200, 200, 32), (128, 2, 50, 50, 32)):
        b, h, q, length, d = shape
        for dtype, p in ((torch.float32, 0.1), (torch.bfloat16, 0.0)):
            inputs = [
                torch.randn(b, h, rows, d, dtype=dtype, requires_grad=True)
                for rows in (q, length, length)
            ]
            mask = torch.ones(b, 1, 1, length, dtype=torch.bool)

            def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = mask, p: float = p) -> Tensor:
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)

            def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = mask, p: float = p) -> Tensor:
                return block_attention(q, k, v, mask, p)

            show(f"attention {shape} {dtype} dropout {p}", plain, ours, inputs)


def dropout() -> None:
    x = torch.randn(128, 200, 64, requires_grad=True)
    show("dropout (128, 200, 64)", lambda x: F.dropout(x, 0.2), lambda x: byte_dropout(x, 0.2), [x])


def lookup() -> None:
    table = torch.randn(60_000, 64, requires_grad=True)
    index = torch.randint(1, 60_000, (16_384, 2))
    one = torch.randn(16_384, 64, requires_grad=True)
    show(
        "gradient of an embedding, 16 384 x 2 rows of 64",
        lambda table: F.embedding(index, table, padding_idx=0),
        lambda table: look_up(table, index, 0),
        [table],
    )
    show(
        "inner products with 16 384 x 2 rows of 64",
        lambda one, table: (F.embedding(index, table, padding_idx=0) @ one[:, :, None]).squeeze(-1),
        lambda one, table: table_dot(one, table, index),
        [one, table],
    )


def many_rows() -> None:
    for width in (64, 128):
        h = torch.randn(2_560, width, requires_grad=True)
        table = torch.randn(3_416, width, requires_grad=True)
        index = torch.randint(1, 3_416, (2_560, 256))

        def plain(h: Tensor, table: Tensor, index: Tensor = index) -> Tensor:
            return (F.embedding(index, table) @ h[:, :, None]).squeeze(-1)

        def ours(h: Tensor, table: Tensor, index: Tensor = index) -> Tensor:
            return catalog_dot(h, table, index)

        show(f"inner products with 2 560 x 256 rows of {width}", plain, ours, [h, table])


def bpr() -> None:
    user = nn.Embedding(6_040, 64)
    item = nn.Embedding(3_417, 64, padding_idx=0)
    user_B = torch.randint(0, 6_040, (65_536,))
    item_BC = torch.randint(1, 3_417, (65_536, 2))

    def plain(user_UD: Tensor, item_VD: Tensor) -> Tensor:
        score_BC = table_dot(look_up(user_UD, user_B, None), item_VD, item_BC)
        return -F.logsigmoid(score_BC[:, :1] - score_BC[:, 1:]).mean()

    show(
        "BPR of 65 536 pairs of width 64",
        plain,
        lambda *tables: factor_bpr(user, item, None, user_B, item_BC),
        [user.weight, item.weight],
    )


def cross_entropy() -> None:
    for n_rows, n_items, width in ((640, 3_416, 64), (2_560, 3_416, 256), (1_280, 40_000, 64)):
        h = torch.randn(n_rows, width, requires_grad=True)
        table = torch.randn(n_items, width, requires_grad=True)
        bias = torch.zeros(n_items, requires_grad=True)
        target = torch.randint(0, n_items, (n_rows,))

        def plain(h: Tensor, table: Tensor, bias: Tensor, target: Tensor = target) -> Tensor:
            return F.cross_entropy(F.linear(h, table, bias), target)

        def ours(h: Tensor, table: Tensor, bias: Tensor, target: Tensor = target) -> Tensor:
            return linear_cross_entropy(h, table, bias, target)

        name = f"softmax loss of {n_rows} rows over {n_items} items, width {width}"
        show(name, plain, ours, [h, table, bias])


def gru() -> None:
    layer = GRULayer(None, 100)
    projected = torch.randn(128, 300, requires_grad=True)
    h = torch.randn(128, 100)
    automatic, closed = with_and_without_closed_form(gru4rec, lambda x: layer.step(x, h))
    show("step of a GRU, 128 rows of 100", automatic, closed, [projected], rounds=100)


def bpr_max() -> None:
    positive = torch.randn(128, requires_grad=True)
    negative = torch.randn(128, 384, requires_grad=True)
    mask = torch.rand(128, 384) < 0.99
    automatic, closed = with_and_without_closed_form(
        losses, lambda positive, negative: losses.bpr_max(positive, negative, mask=mask)
    )
    name = "BPR-max of 128 positives and 384 negatives"
    show(name, automatic, closed, [positive, negative], rounds=100)


def propagation() -> None:
    """Of a graph of ML-1M's size, beside ``torch.sparse``."""
    n_users, n_items = 6040, 3416
    skewed = torch.rand(2, 1_000_000) ** 2
    key_P = torch.unique((skewed[0] * n_users).long() * n_items + (skewed[1] * n_items).long())
    graph = BipartiteGraph(n_users, 1 + n_items)
    graph.set_pairs(key_P // n_items, 1 + key_P % n_items)
    end = graph.start_N.new_tensor([len(graph.column_E)])
    sparse = torch.sparse_csr_tensor(
        torch.cat([graph.start_N, end]),
        graph.column_E,
        graph.weight_E,
        (graph.n_nodes, graph.n_nodes),
    )
    x = torch.randn(graph.n_nodes, 64, requires_grad=True)
    show(f"propagation over {len(key_P)} pairs, width 64", lambda x: sparse @ x, graph, [x])


def with_and_without_closed_form(module: ModuleType, f: Callable) -> tuple[Callable, Callable]:
    """f by automatic differentiation, and as it is."""

    def automatic(*inputs: Tensor) -> Tensor:
        with mock.patch.object(module, "closed_form_helps", lambda x: False):
            return f(*inputs)

    return automatic, f


def show(name: str, plain: Callable, ours: Callable, inputs: list[Tensor], rounds: int = 7) -> None:
    times = [best_ms(f, inputs, rounds) for f in (plain, ours)]
    print(f"{name}: {times[0]:.2f} {times[1]:.2f}", flush=True)


def best_ms(f: Callable[..., Tensor], inputs: list[Tensor], rounds: int) -> float:
    """Milliseconds of the fastest forward and backward pass."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        f(*inputs).sum().backward()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


_ALL = (attention, dropout, lookup, many_rows, bpr, gru, bpr_max, cross_entropy, propagation)
KERNELS = {f.__name__: f for f in _ALL}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(KERNELS))
    chosen = parser.parse_args().kernels or list(KERNELS)
    if unknown := [name for name in chosen if name not in KERNELS]:
        parser.error(f"unknown: {unknown}; choose from {', '.join(KERNELS)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in chosen:
        KERNELS[name]()


if __name__ == "__main__":
    main()
