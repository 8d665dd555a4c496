"""What ``evaluation.keep_top`` and ``evaluation.groups`` add to the test of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recexp.errors import RecexpError
from recexp.evaluation.groups import Flags, check_groups, group_metrics, groups_of
from recexp.evaluation.list_metrics import (
    Recommended,
    mean_of_known,
    values_of_catalog,
    values_per_user,
)

if TYPE_CHECKING:
    from torch import Tensor

    from recexp.data.store import Store, Targets
    from recexp.evaluation.kept import TopLists
    from recexp.evaluation.protocol import Protocol

MAX_LENGTH = 1000  # of a kept list
MAX_ENTRIES = 50_000_000  # of all kept lists, which are in memory until the end of the test

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Beyond:
    """Settings below ``evaluation``.

    keep_top: keep so many items of each test user's list; None keeps no lists. groups: groupings of
    users and items (``GROUPINGS``), and features of items or users.
    """

    keep_top: Annotated[int, Field(ge=1, le=MAX_LENGTH)] | None = None
    groups: list[str] = field(default_factory=list)

    @property
    def asks(self) -> bool:
        """Is anything asked for?"""
        return self.keep_top is not None or bool(self.groups)

    def check(self, store: Store) -> None:
        """Raise RecexpError where the data do not allow what is asked for."""
        check_groups(self.groups, store.schema)
        n_entries = store.test.n_users * (self.keep_top or 0)
        if n_entries > MAX_ENTRIES:
            longest = MAX_ENTRIES // store.test.n_users
            raise RecexpError(
                f"evaluation.keep_top={self.keep_top} would keep {n_entries:,} items of "
                f"{store.test.n_users:,} users; at most {MAX_ENTRIES:,} are kept. Set it to "
                f"{longest} or less."
            )


@dataclass(frozen=True)
class Measured:
    """metrics: "<metric>@k" and "<metric>/<group>" -> value. flags: which rows of the ranks are of
    a group. user_Q and values: the metrics of lists that have a value per user, NaN where a user
    has none; both None where no lists were kept. list_metrics: names without cut-offs."""

    metrics: dict[str, float]
    flags: Flags
    user_Q: NDArray[np.int64] | None = None
    values: dict[str, Floats] | None = None
    list_metrics: list[str] = field(default_factory=list)


def measure(
    settings: Beyond,
    protocol: Protocol,
    store: Store,
    targets: Targets,
    ranks: Mapping[str, NDArray[np.int64]],
    lists: TopLists | None,
    candidates: Tensor | None,
) -> Measured:
    """All that the settings ask for.

    store, targets: on the CPU. ranks: as of ``RankingMetrics.ranks``. candidates: drawn ones of the
    users with targets; None: all items are ranked.
    """
    is_tested = np.isin(targets.user.numpy(), ranks["user"])
    flags = {
        name: is_in_T[is_tested]
        for name, is_in_T in groups_of(settings.groups, store, targets).items()
    }
    metrics = group_metrics(protocol, ranks, flags)
    if lists is None:
        return Measured(metrics, flags)
    ks = [k for k in protocol.ks if k <= lists.item_QK.shape[1]]
    seen = protocol.candidates.seen
    recommended = Recommended.of(lists, store, targets, candidates, seen, length=max(ks, default=0))
    per_user = values_per_user(recommended, ks)
    of_lists = values_of_catalog(recommended, ks)
    of_lists |= {name: mean_of_known(value_Q) for name, value_Q in per_user.items()}
    metrics |= {name: value for name, value in of_lists.items() if not math.isnan(value)}
    return Measured(
        metrics=metrics,
        flags=flags,
        user_Q=targets.user[recommended.row_Q].numpy(),
        values={name: value_Q.numpy() for name, value_Q in per_user.items()},
        list_metrics=list(dict.fromkeys(name.partition("@")[0] for name in of_lists)),
    )
