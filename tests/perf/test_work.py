"""The work of a step, counted and not timed: operations and allocated bytes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from recexp.evaluation.lists import top_k
from recexp.evaluation.ranks import full_ranks
from recexp.models.bert_ite import BertITE
from recexp.models.wmf import WMF
from recexp.nn import least_squares
from recexp.nn.cpu import tower
from recexp.nn.cpu.linear_cross_entropy import CHUNK_BYTES, linear_cross_entropy
from recexp.nn.lookup import Embedding
from recexp.training import memory
from recexp.training.module import RecModule
from recexp.types import Query, Schema
from tests.support.running import composed, run_here


class Allocations(TorchDispatchMode):
    """Number of operations, bytes of all tensors that they made, and of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.largest, self.operations = 0, 0, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.operations += 1
        out = op(*args, **(kwargs or {}))
        known = {x.data_ptr() for x in storages((args, kwargs))}
        for x in storages(out):
            if x.data_ptr() not in known:
                self.total += x.nbytes()
                self.largest = max(self.largest, x.nbytes())
        return out


def storages(tree) -> list[torch.UntypedStorage]:
    """Of the tensors in it. Those that a COO tensor consists of are outputs of their own."""
    found = []
    for x in tree_leaves(tree):
        if not isinstance(x, torch.Tensor):
            continue
        if x.layout == torch.sparse_csr:
            found += [x.crow_indices(), x.col_indices(), x.values()]
        elif x.layout == torch.strided:
            found.append(x)
    return [x.untyped_storage() for x in found]


def module_of(folder, *words: str) -> tuple[RecModule, object]:
    from recexp.config.build import build
    from recexp.data.cache import prepare
    from recexp.data.store import Store
    from recexp.runs.assembly import assemble

    cfg = composed(folder, *words)
    protocol = build(cfg.protocol)
    store = Store.open(
        prepare(build(cfg.dataset, _recursive_=False), protocol.split, cfg.cache_dir)
    )
    module, data = assemble(cfg, protocol, store, ("val",))
    module.setup("fit")
    return module, data


def step(module, row, seed: int = 0) -> None:
    torch.manual_seed(seed)
    batch = module.objective.batch(module.store, row, torch.Generator().manual_seed(seed))
    module.objective.losses(module.model, batch)["loss"].backward()


def flops(action) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


SEQUENCE = [
    "model.n_factors=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.max_len=20",
    "protocol=full_unseen",
    "batch_size=64",
]


def test_bert4rec_computes_its_last_layer_at_masked_places_only(tmp_path):
    """By hand: three times the products of the forward pass. The second layer needs keys and values
    of all L places, and everything else of the M masked places only.
    """
    module, data = module_of(
        tmp_path / "run",
        "model=bert4rec",
        *SEQUENCE,
        "objective.one_mask=true",
        "objective.last_prob=0",
    )
    row = next(iter(data.train_dataloader()))
    counted = flops(lambda: step(module, row))
    batch = module.objective.batch(module.store, row, torch.Generator().manual_seed(0))
    B, L = batch.query.item_BL.shape
    D, V, M = 32, module.store.schema.n_items, 1
    per_token, per_pair = (
        4 * D * D + 8 * D * D,
        2 * D,
    )  # projections and feed-forward; logits and weighted sum of one key
    forward = B * (
        L * (per_token + L * per_pair) + L * 2 * D * D + M * (per_token - 2 * D * D + L * per_pair)
    ) + B * M * (D * D + V * D)
    assert counted <= 1.02 * 3 * 2 * forward
    assert counted >= 0.8 * 3 * 2 * forward


def test_bert_ite_computes_what_differs_between_candidates_and_no_more():
    """By hand, of the form of the paper: two layers, the candidate in the sequence.

    All N = m + 1 rows attend to the candidate, so after the first layer they differ between
    candidates: output map and feed-forward net are needed N times per candidate. What is projected
    in the first layer is computed once per context and candidate, and the last layer computes one
    row. A backward pass has two products for each of the forward pass.
    """
    B, C, m, D = 16, 5, 13, 32
    schema = Schema(B, 50, ("view", "buy"), (False, True))
    model = BertITE(schema, n_factors=D, n_layers=2, max_len=m - 1).train()
    item_BL = torch.randint(1, 51, (B, m - 1))
    query = Query(torch.arange(B), item_BL, torch.ones_like(item_BL), torch.zeros_like(item_BL))
    item_BC = torch.randint(1, 51, (B, C))
    counted = flops(lambda: model.logits(query, item_BC).sum().backward())
    N = m + 1
    first_of_context = m * 3 * D * D + 2 * m * m * D
    first_of_candidate = 3 * D * D + 3 * m * D + N * (D * D + 8 * D * D)
    # Queries folded into keys, logits and averages of two heads; value, output map, feed-forward.
    last_of_candidate = 2 * D * D + 2 * N * 2 * D + D * D + D * D + 8 * D * D
    head = D + D * D // 2 + D // 2
    by_hand = 3 * 2 * B * (first_of_context + C * (first_of_candidate + last_of_candidate + head))
    assert 0.9 * by_hand <= counted <= 1.1 * by_hand


def test_ranking_encodes_every_user_once(tmp_path):
    """Not once per candidate: a thousand candidates only add the products with their vectors."""
    module, data = module_of(tmp_path / "run", "model=sasrec", *SEQUENCE)
    row = next(iter(data.val_dataloader()[0]))
    module.eval()
    query = module.store.query_held_out(module.store.val, row, 20)
    encode = flops(lambda: module.model.encode(query, last_only=True))
    assert encode > 0
    for candidates in (10, 150):
        item = torch.randint(1, module.store.schema.V, (len(row), candidates))
        assert (
            flops(lambda item=item: module.model.score(query, item))
            <= encode + 2 * 32 * item.numel()
        )


@pytest.mark.parametrize(("name", "n_factors", "levels"), [("neumf", 16, 1), ("nmtr", 32, 2)])
def test_ranking_by_a_tower_holds_one_block_of_its_layers(
    tmp_path, monkeypatch, name, n_factors, levels
):
    """And computes both parts of the first layer once per user and item, not once per block."""
    monkeypatch.setattr(tower, "BLOCK", 500)
    words = [f"model={name}", f"model.n_factors={n_factors}", "model.n_layers=2"]
    module, data = module_of(tmp_path / "run", *words, "protocol=full_unseen")
    first, second = 32, 16  # widths of the tower's layers
    module.eval()
    query = module.store.query_held_out(module.store.val, next(iter(data.val_dataloader()[0])), 1)
    module.requires_grad_(False)  # the counter hangs its hooks on whatever asks for a gradient
    with torch.no_grad(), Allocations() as seen:
        n_users, n_items = module.model.score(query).shape
    n_pairs = n_users * n_items
    assert seen.largest <= 4 * max(500 * first, n_pairs * levels, (n_items + 1) * 2 * first)
    with torch.no_grad():
        counted = flops(lambda: module.model.score(query))
    rows = n_users + n_items + 1
    least = levels * 2 * n_pairs * first * second
    most = levels * (2 * n_pairs * (first * second + 3 * second) + 2 * rows * 2 * first * first)
    assert least <= counted <= most


def test_softmax_never_holds_all_logits():
    h, items, target = (
        torch.randn(4_000, 8, requires_grad=True),
        torch.randn(3_000, 8, requires_grad=True),
        torch.randint(0, 3_000, (4_000,)),
    )
    with Allocations() as seen:
        linear_cross_entropy(h, items, None, target).backward()
    assert seen.largest <= CHUNK_BYTES < 4 * 4_000 * 3_000


def test_ranking_a_large_catalogue_holds_few_users_scores_at_once(tmp_path, monkeypatch):
    alone = run_here(
        tmp_path / "whole",
        "model=bpr_mf",
        "model.n_factors=8",
        "protocol=full_unseen",
        "trainer.max_epochs=1",
    )
    monkeypatch.setattr(memory, "MAX_SCORES_ON_CPU", 2_000)
    largest = []
    monkeypatch.setattr(
        "recexp.evaluation.protocol.full_ranks",
        lambda scores, *rest: (largest.append(scores.numel()), full_ranks(scores, *rest))[1],
    )
    parts = run_here(
        tmp_path / "parts",
        "model=bpr_mf",
        "model.n_factors=8",
        "protocol=full_unseen",
        "trainer.max_epochs=1",
    )
    assert parts["metrics"] == alone["metrics"]
    assert 0 < max(largest) <= 2_000


@pytest.mark.parametrize("name", ["bpr_mf", "fpmc", "sasrec", "gru4rec", "caser"])
def test_a_step_allocates_in_proportion_to_its_rows(tmp_path, name):
    """Twice the rows, at most about twice the bytes, apart from the gradients of the tables."""
    words = [
        "protocol=full_unseen",
        "model.n_factors=16",
        *(["objective=next_item", "sampler=none"] if name == "gru4rec" else []),
    ]
    module, data = module_of(tmp_path / "run", f"model={name}", *words, "batch_size=128")
    row = next(iter(data.train_dataloader()))
    step(module, row)  # allocates what is allocated once
    made = []
    for part in (row[:32], row[:64], row):
        for p in module.parameters():
            p.grad = None
        with Allocations() as seen:
            step(module, part)
        made.append(seen.total)
    assert made[2] - made[1] <= 3 * (made[1] - made[0]) + 2**20


def fitted_wmf(n_events: int, solver: str) -> tuple[WMF, object]:
    """A model after one pass over simulated events, and the store."""
    g = torch.Generator().manual_seed(0)
    user = torch.randint(600, (n_events,), generator=g).sort().values
    item = torch.randint(1, 401, (n_events,), generator=g, dtype=torch.int32)
    store = SimpleNamespace(train=SimpleNamespace(user=user, item=item))
    torch.manual_seed(0)
    model = WMF(Schema(600, 400, ("view",), (False,)), n_factors=16, solver=solver)
    model.fit_pass(store)  # makes what is made once per store
    return model, store


@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_a_pass_of_wmf_allocates_in_proportion_to_its_pairs(solver, monkeypatch):
    """And never a vector for every pair at once."""
    monkeypatch.setattr(least_squares, "BLOCK", 1 << 15)
    monkeypatch.setattr(least_squares, "CG_BLOCK", 1 << 13)
    made = []
    for n_events in (20_000, 40_000, 60_000):
        model, store = fitted_wmf(n_events, solver)
        with Allocations() as seen:
            model.fit_pass(store)
        assert seen.largest <= 4 * n_events * 16 / 8
        made.append(seen.total)
    assert made[2] - made[1] <= 1.3 * (made[1] - made[0])
    if solver == "exact":
        assert made[2] - made[1] <= 20_000 * 2 * (4 * 16 + 40)  # a vector and some numbers
    else:
        assert made[2] - made[1] <= 20_000 * 2 * 5 * 20  # five products with the matrix


def test_a_pass_of_wmf_multiplies_each_pair_s_vector_once(monkeypatch):
    """By hand: an outer product per pair and half, and its part of the right side; changes of
    coordinates per row; no more than a tenth of padding.
    """
    monkeypatch.setattr(least_squares, "BLOCK", 1 << 15)
    model, store = fitted_wmf(60_000, "exact")
    counted = flops(lambda: model.fit_pass(store))
    n_pairs, D, rows = len(model._layout.by_user.column_P), 16, 600 + 401
    by_hand = 2 * n_pairs * 2 * D * (D + 1) + 3 * rows * 2 * D * D
    assert by_hand <= counted <= 1.1 * by_hand


@pytest.mark.parametrize("n_columns", [3_416, 100_000])
def test_lists_do_not_copy_the_scores(n_columns):
    score_BC = torch.randn(20, n_columns)
    score_BC[:, ::7] = -torch.inf
    with Allocations() as seen:
        top_k(score_BC, 10)
    assert 0 < seen.total <= 4 * score_BC.numel() / 2


@pytest.mark.parametrize(
    ("words", "operations"),
    [
        (("model=gru4rec_plus", "objective.n_negatives=32"), 210),
        (("model=gru4rec",), 200),
    ],
)
def test_a_session_step_never_touches_whole_tables(tmp_path, words, operations):
    """From the batch to the update of the parameters, with a table larger than all else."""
    module, data = module_of(
        tmp_path / "run", *words, "model.n_factors=16", "batch_size=16", "protocol=full_unseen"
    )
    optimizer = module.configure_optimizers()
    tables = [m for m in module.model.modules() if isinstance(m, Embedding)]
    for table in tables:
        table.sparse = True  # as RecModule sets it for this optimizer
    for row in list(data.train_dataloader())[:3]:
        optimizer.zero_grad()
        with Allocations() as seen:
            step(module, row)
            optimizer.step()
    assert all(table.weight.grad.is_sparse for table in tables)
    assert 0 < seen.largest < min(table.weight.nbytes for table in tables)
    assert 0.8 * operations < seen.operations <= operations


def test_the_counter_of_allocations_counts():
    with Allocations() as seen:
        x = nn.Linear(4, 1000, bias=False)(torch.ones(100, 4))
        x.view(1000, 100)
    assert seen.largest == 4 * 100 * 1000 and seen.operations >= 2
