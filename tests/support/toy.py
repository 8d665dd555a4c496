"""A small random world for model tests: every kind of side feature, users without items, histories of all lengths."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from recexp.data.features import write_bags
from recexp.types import Bag, Feature, Query, Schema

N_USERS, N_ITEMS = 7, 12


def features(n_items: int, generator: torch.Generator) -> dict[str, Feature]:
    """A categorical, a multi_label (weights of an item sum to 1, some items have no label) and a numeric feature."""
    V = n_items + 1
    category = torch.randint(1, 5, (V, 1), generator=generator)
    genres = torch.rand(V, 5, generator=generator).argsort(1)[:, :3] + 1
    present = torch.arange(3) < torch.randint(0, 4, (V, 1), generator=generator)
    present[0] = False
    share = present / present.sum(1, keepdim=True).clamp(min=1)
    price = torch.randn(V, 1, generator=generator)
    category[0], price[0] = 0, 0
    return {
        "category": Feature("categorical", 5, category, (category > 0).float()),
        "genres": Feature("multi_label", 6, genres * present, share.float()),
        "price": Feature("numeric", 2, (price != 0).long(), price),
    }


def bag(feature: Feature, items: list[list[int]]) -> Bag:
    """The bags that preparation makes of the feature's values, given each user's training items."""
    item, column = feature.id_VM.nonzero(as_tuple=True)
    value = feature.id_VM[item, column]
    pairs = {
        "user": np.repeat(np.arange(len(items)), [len(row) for row in items]),
        "item": np.concatenate([np.asarray(row, dtype=np.int64) for row in items]),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bag"
        write_bags(path, item.numpy(), value.numpy(), pairs, len(items), feature.cardinality)
        ptr, ids, count = (np.load(f"{path}_{name}.npy") for name in ("ptr", "id", "count"))
    return Bag(feature.cardinality, *(torch.from_numpy(x) for x in (ptr, ids, count)))


def training_items(
    n_users: int = N_USERS, n_items: int = N_ITEMS, seed: int = 0
) -> list[list[int]]:
    """Distinct items per user, the last user has none and the last but one a single item."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [*(2 + u % 5 for u in range(n_users - 2)), 1, 0]
    return [(torch.randperm(n_items, generator=generator)[:size] + 1).tolist() for size in sizes]


def schema(
    n_users: int = N_USERS, n_items: int = N_ITEMS, *, side: bool = True, seed: int = 0
) -> Schema:
    """Two behaviours, view (implicit) and buy (explicit), with or without side features."""
    item = features(n_items, torch.Generator().manual_seed(seed)) if side else {}
    rows = training_items(n_users, n_items, seed)
    user = {name: bag(feature, rows) for name, feature in item.items() if feature.kind != "numeric"}
    return Schema(
        n_users,
        n_items,
        ("view", "buy"),
        (False, True),
        n_values=5,
        item_features=item,
        user_features=user,
    )


def query(user_B: list[int], item_BL: list[list[int]], n_values: int = 5) -> Query:
    """Histories as ragged lists, left-padded here; behaviours, times and values are made up but never 0 at a real event."""
    L = max((len(row) for row in item_BL), default=0)
    padded = torch.tensor([[0] * (L - len(row)) + row for row in item_BL], dtype=torch.int64).view(
        len(user_B), L
    )
    real = (padded != 0).long()
    step = torch.arange(L)
    return Query(
        torch.tensor(user_B),
        padded,
        (1 + padded % 2) * real,
        1000 * step * real,
        (1 + padded % n_values) * real,
    )


def padded(query: Query, extra: int) -> Query:
    """The same histories with ``extra`` more columns of padding on the left."""
    wider = {
        name: torch.cat(
            [torch.zeros(len(query), extra, dtype=torch.int64), getattr(query, name)], 1
        )
        for name in ("item_BL", "behaviour_BL", "time_BL", "value_BL")
    }
    return Query(query.user_B, **wider, without_B=query.without_B)


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.5) -> torch.nn.Module:
    """Every parameter ~ N(0, scale^2), padding rows 0: starts at 0 or 1 hide mistakes. In float64, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
        for table in module.modules():
            if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
                table.weight[table.padding_idx] = 0
    return module


def without_gradient(module: torch.nn.Module) -> list[str]:
    """Names of parameters that the last backward pass left at exactly zero."""
    return [name for name, p in module.named_parameters() if p.grad is None or not _some(p.grad)]


def _some(grad: Tensor) -> bool:
    return bool(grad.abs().max() > 1e-12)
