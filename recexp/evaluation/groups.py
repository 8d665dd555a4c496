"""Groups of held-out targets, by their item or their user, whose metrics are told apart.

A new grouping is one function here, with ``@grouping``. Features of items and of users are
groupings by their names.
Definitions and sources are in ``docs/guides/beyond_accuracy.md``. T targets of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recexp.errors import RecexpError
from recexp.evaluation.list_metrics import item_popularity
from recexp.evaluation.metrics import RankingMetrics
from recexp.evaluation.registry import registrar

if TYPE_CHECKING:
    from recexp.data.store import Store, Targets
    from recexp.evaluation.protocol import Protocol
    from recexp.types import Feature, Schema

HEAD_SHARE = 0.2  # of the training pairs: the most popular items with so many are "popular"
TAIL_SHARE = 0.2
MAX_VALUES = 20  # of a feature that are groups of their own
MAX_NAME = 100  # characters of a value in the name of its group
N_QUARTERS = 4  # groups of a numeric feature

# (data, targets) -> name of a group -> which targets are of it, bool [T]
Grouping = Callable[["Store", "Targets"], dict[str, Tensor]]
Flags = dict[str, NDArray[np.bool_]]
GROUPINGS: dict[str, Grouping] = {}


# Registers a grouping for ``evaluation.groups``.
grouping = registrar(GROUPINGS)


@grouping("popularity")
def by_popularity(store: Store, targets: Targets) -> dict[str, Tensor]:
    """Targets whose items are "popular", "middle" or "tail" in training.

    popular: the fewest items that together have a fifth of the training pairs; tail: the most items
    that together have at most a fifth. Items without a training event are none of the three.
    Abdollahpouri et al. 2021 (User-centered Evaluation of Popularity Bias), arXiv:2103.06364
    """
    count_V = item_popularity(store)
    order_V = count_V.argsort(descending=True, stable=True)
    sum_V = count_V[order_V].cumsum(0)
    total = int(sum_V[-1])
    is_head_V = torch.zeros(len(count_V), dtype=torch.bool)
    is_tail_V = torch.zeros(len(count_V), dtype=torch.bool)
    is_head_V[order_V] = sum_V - count_V[order_V] < HEAD_SHARE * total
    is_tail_V[order_V] = total - sum_V + count_V[order_V] <= TAIL_SHARE * total
    is_warm_V = count_V > 0
    groups_V = {
        "popular": is_head_V & is_warm_V,
        "middle": ~is_head_V & ~is_tail_V & is_warm_V,
        "tail": is_tail_V & is_warm_V,
    }
    return {name: is_in_V[targets.item] for name, is_in_V in groups_V.items()}


@grouping("activity")
def by_activity(store: Store, targets: Targets) -> dict[str, Tensor]:
    """Targets of "light" and "heavy" users, those with at most and with more events than the median
    history before the targets."""
    length_T = targets.end - targets.start
    length_of_users = length_T[targets.ptr[:-1]]
    is_light_T = length_T <= float(np.median(length_of_users.numpy()))
    return {"light": is_light_T, "heavy": ~is_light_T}


def check_groups(names: Sequence[str], schema: Schema) -> None:
    """Raise RecexpError for a name that is neither a grouping nor a feature that can be one."""
    features = schema.item_features | schema.user_attributes
    for name in names:
        if name in GROUPINGS:
            continue
        if name not in features:
            known = [n for n, feature in features.items() if feature.kind != "vector"]
            raise RecexpError(
                f"evaluation.groups: {name!r} is unknown; choose from "
                f"{', '.join([*GROUPINGS, *known])}. Features are those of dataset.source.features."
            )
        if features[name].kind == "vector":
            raise RecexpError(
                f"evaluation.groups: {name} is a vector, whose values are no groups. Name another "
                "feature."
            )


def groups_of(names: Sequence[str], store: Store, targets: Targets) -> Flags:
    """The groups of these groupings that have targets, by name: which targets are of it, bool [T].

    Raises RecexpError as ``check_groups``.
    """
    schema = store.schema
    check_groups(names, schema)
    flags: dict[str, Tensor] = {}
    for name in names:
        if name in GROUPINGS:
            flags |= GROUPINGS[name](store, targets)
        elif name in schema.item_features:
            texts = _texts(store.folder / f"feature_{name}.parquet")
            flags |= _by_feature(name, schema.item_features[name], targets.item, texts)
        else:
            texts = _texts(store.folder / f"user_feature_{name}.parquet")
            flags |= _by_feature(name, schema.user_attributes[name], targets.user, texts)
    return {name: is_in_T.numpy() for name, is_in_T in flags.items() if is_in_T.any()}


def _texts(path: Path) -> pl.DataFrame | None:
    """Value ids and their texts; None of a number, which has none."""
    return pl.read_parquet(path) if path.is_file() else None


def _by_feature(
    name: str, feature: Feature, row_T: Tensor, texts: pl.DataFrame | None
) -> dict[str, Tensor]:
    """Groups "<name>=<value>" of the most frequent values, and of targets without one.

    row_T: of the targets in the feature's tables. texts: columns id and value.
    """
    id_TM = feature.id_VM[row_T]
    is_known_T = (id_TM != 0).any(1)
    groups: dict[str, Tensor] = {}
    if texts is None:
        groups |= _quarters(name, feature.weight_VM[row_T, 0], is_known_T)
    else:
        count_I = torch.bincount(id_TM.flatten(), minlength=feature.cardinality)[1:]
        for place in count_I.argsort(descending=True, stable=True)[:MAX_VALUES].tolist():
            text = str(texts["value"][place])[:MAX_NAME]
            groups[f"{name}={text}"] = (id_TM == place + 1).any(1)
    groups[f"{name} unknown"] = ~is_known_T
    return groups


def _quarters(name: str, value_T: Tensor, is_known_T: Tensor) -> dict[str, Tensor]:
    """Targets by the quartiles of a number; equal numbers are in one group."""
    known = value_T[is_known_T].double()
    if not len(known):
        return {}
    edges = np.quantile(known.numpy(), np.arange(1, N_QUARTERS) / N_QUARTERS)
    quarter_T = torch.searchsorted(torch.from_numpy(edges), value_T.double())
    groups = {}
    for quarter in range(N_QUARTERS):
        groups[f"{name}=quarter {quarter + 1}"] = (quarter_T == quarter) & is_known_T
    return groups


def group_metrics(
    protocol: Protocol, ranks: Mapping[str, NDArray[np.int64]], flags: Flags
) -> dict[str, float]:
    """Means of the ranking metrics over the targets of each group, "<metric>/<group>" -> value.

    ranks: as ``RankingMetrics.ranks`` gives them; flags: which of its rows are of a group.
    """
    metrics = RankingMetrics(protocol.ks, protocol.ties, protocol.split.has_several_targets)
    as_tensors = {name: torch.from_numpy(column) for name, column in ranks.items()}
    groups = {name: torch.from_numpy(is_in) for name, is_in in flags.items()}
    return metrics.by_group(as_tensors, groups) if groups else {}
