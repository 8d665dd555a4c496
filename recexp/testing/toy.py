"""Small random schemas, queries and parameters for tests of models.

A toy schema has every kind of side feature, users without items and histories of all lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.types import Bag, Feature, Query, Schema

N_USERS = 7
N_ITEMS = 12


def features(n_items: int, generator: torch.Generator) -> dict[str, Feature]:
    """One feature of each kind: categorical, multi_label and numeric.

    The weights of an item's labels sum to 1; some items have no label.
    """
    V = n_items + 1
    category_V1 = torch.randint(1, 5, (V, 1), generator=generator)
    genre_VM = torch.rand(V, 5, generator=generator).argsort(1)[:, :3] + 1
    n_genres_V1 = torch.randint(0, 4, (V, 1), generator=generator)
    present_VM = torch.arange(3) < n_genres_V1
    present_VM[0] = False
    share_VM = present_VM / present_VM.sum(1, keepdim=True).clamp(min=1)
    price_V1 = torch.randn(V, 1, generator=generator)
    category_V1[0] = 0
    price_V1[0] = 0
    return {
        "category": Feature("categorical", 5, category_V1, (category_V1 > 0).float()),
        "genres": Feature("multi_label", 6, genre_VM * present_VM, share_VM.float()),
        "price": Feature("numeric", 2, (price_V1 != 0).long(), price_V1),
    }


def bag(feature: Feature, items_of_users: Sequence[Sequence[int]]) -> Bag:
    """Counts of the feature's values over each user's training items, ids ascending."""
    ptr = [0]
    ids: list[Tensor] = []
    counts: list[Tensor] = []
    for items in items_of_users:
        values = feature.id_VM[torch.tensor(items, dtype=torch.int64)]
        value, count = values[values != 0].unique(return_counts=True)
        ptr.append(ptr[-1] + len(value))
        ids.append(value)
        counts.append(count.float())
    return Bag(feature.cardinality, torch.tensor(ptr), torch.cat(ids), torch.cat(counts))


def bags(item_features: dict[str, Feature], items_of_users: Sequence[Sequence[int]]) -> dict:
    """``bag`` of every feature that has one: all kinds but numeric."""
    return {
        name: bag(feature, items_of_users)
        for name, feature in item_features.items()
        if feature.kind != "numeric"
    }


def training_items(
    n_users: int = N_USERS, n_items: int = N_ITEMS, seed: int = 0
) -> list[list[int]]:
    """Distinct items per user; the last user has none, the last but one a single item."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [*(2 + user % 5 for user in range(n_users - 2)), 1, 0]
    return [(torch.randperm(n_items, generator=generator)[:size] + 1).tolist() for size in sizes]


def schema(
    n_users: int = N_USERS, n_items: int = N_ITEMS, *, side: bool = True, seed: int = 0
) -> Schema:
    """Two behaviors, view (implicit) and buy (explicit). side: with side features."""
    item_features = features(n_items, torch.Generator().manual_seed(seed)) if side else {}
    items_of_users = training_items(n_users, n_items, seed)
    return Schema(
        n_users,
        n_items,
        ("view", "buy"),
        (False, True),
        n_values=5,
        item_features=item_features,
        user_features=bags(item_features, items_of_users),
    )


def query(users: list[int], histories: list[list[int]], n_values: int = 5) -> Query:
    """Histories as ragged lists of items, left-padded here.

    Behaviors, times and values are made up, and never 0 at a real event.
    """
    B = len(users)
    L = max((len(history) for history in histories), default=0)
    rows = [[0] * (L - len(history)) + history for history in histories]
    item_BL = torch.tensor(rows, dtype=torch.int64).view(B, L)
    real_BL = (item_BL != 0).long()
    return Query(
        user_B=torch.tensor(users),
        item_BL=item_BL,
        behavior_BL=(1 + item_BL % 2) * real_BL,
        time_BL=1000 * torch.arange(L) * real_BL,
        value_BL=(1 + item_BL % n_values) * real_BL,
    )


def padded(query: Query, extra: int) -> Query:
    """The same histories with ``extra`` more columns of padding on the left."""
    return query.change_columns(lambda x_BL: F.pad(x_BL, (extra, 0)))


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
    """Draw every parameter from N(0, scale^2), in float64 and evaluation mode.

    Initial values of 0 or 1 would hide mistakes. Padding rows of embeddings stay 0.
    """
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * noise)
        for table in module.modules():
            if isinstance(table, nn.Embedding) and table.padding_idx is not None:
                table.weight[table.padding_idx] = 0
    return module


def without_gradient(module: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is missing or zero everywhere."""
    return [name for name, parameter in module.named_parameters() if not _has_gradient(parameter)]


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().max() > 1e-12)
