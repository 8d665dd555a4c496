"""The files that the test of a model leaves, and what ``evaluation`` in the config adds to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from recexp.data.store import Store
from recexp.evaluation.beyond import Beyond, Measured, measure
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.kept import TopLists
from recexp.evaluation.protocol import Protocol
from recexp.io import atomic_write, checksum
from recexp.runs.frames import write_frames
from recexp.runs.histories import RawIds
from recexp.runs.outputs import save_ranks

if TYPE_CHECKING:
    from recexp.training.module import RecModule

RANKS = "ranks.parquet"
LISTS = "lists.parquet"
LIST_VALUES = "list_values.parquet"
ROWS_AT_ONCE = 1 << 20

Ranks = Mapping[str, NDArray[Any]]


def settings_of(cfg: DictConfig) -> Beyond:
    """What the config asks for; nothing in configs of earlier versions."""
    node: Any = cfg.get("evaluation")
    return Beyond(**OmegaConf.to_container(node)) if node else Beyond()  # type: ignore[arg-type]


def save_test(folder: Path, module: RecModule, settings: Beyond) -> dict[str, Any]:
    """Write what the test of a module found, as ``save_ranks_and_lists``."""
    if not settings.asks:
        ranks_sha256 = save_ranks(folder / RANKS, {"test": module.ranks})
        return {"metrics": {}, "ranks_sha256": ranks_sha256}
    store = module.store.to("cpu")
    return save_ranks_and_lists(
        folder, settings, module.protocol, store, module.ranks, module.lists
    )


def save_ranks_and_lists(
    folder: Path,
    settings: Beyond,
    protocol: Protocol,
    store: Store,
    ranks: Ranks,
    lists: TopLists | None,
) -> dict[str, Any]:
    """Write ``ranks.parquet`` and, where lists were kept, ``lists.parquet`` and their metrics.

    - ``ranks.parquet``: as ``save_ranks``, with a column per group of ``evaluation.groups``;
    - ``lists.parquet``: user and item (raw ids), rank, score;
    - ``list_values.parquet``: user (number, as in ``ranks.parquet``) and the metrics of lists that
      have a value per user, null where a user has none.

    store: on the CPU. Returns what ``result.json`` says of it: "metrics" and checksums.
    """
    candidates: Tensor | None = None
    if lists is not None:
        candidates = stored_candidates(store, protocol, "test")
    measured = measure(settings, protocol, store, store.test, ranks, lists, candidates)
    content: dict[str, Any] = {
        "metrics": {f"test/{name}": value for name, value in measured.metrics.items()},
        "ranks_sha256": save_ranks(folder / RANKS, {"test": {**ranks, **measured.flags}}),
    }
    if lists is not None:
        content["list_metrics"] = measured.list_metrics
        content["list_candidates"] = protocol.candidates.kind
        content["lists_sha256"] = _save_lists(folder / LISTS, lists, store)
        content["list_values_sha256"] = _save_values(folder / LIST_VALUES, measured)
    return content


def _save_lists(path: Path, lists: TopLists, store: Store) -> str:
    write_frames(_list_frames(lists, store), path)
    return checksum(path)


def _list_frames(lists: TopLists, store: Store) -> Iterator[pl.DataFrame]:
    """The lists as frames of some users each; at least one frame."""
    ids = RawIds.of(store)
    targets = store.test
    user_N = targets.user[targets.ptr[:-1]].numpy()
    length = lists.item_QK.shape[1]
    step = max(1, ROWS_AT_ONCE // length)
    for start in range(0, max(1, len(lists)), step):
        rows = slice(start, start + step)
        item_B = lists.item_QK[rows].ravel()
        is_item_B = item_B > 0
        user_B = np.repeat(user_N[lists.number_Q[rows]], length)
        rank_B = np.tile(np.arange(1, length + 1, dtype=np.int32), len(item_B) // length)
        yield pl.DataFrame(
            {
                "user": ids.users.gather(user_B[is_item_B]),
                "item": ids.items.gather(item_B[is_item_B] - 1),
                "rank": rank_B[is_item_B],
                "score": lists.score_QK[rows].ravel()[is_item_B],
            }
        )


def _save_values(path: Path, measured: Measured) -> str:
    assert measured.values is not None
    columns: dict[str, Any] = {"user": measured.user_Q}
    frame = pl.DataFrame(columns | measured.values)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        frame.fill_nan(None).write_parquet(file)
    return checksum(path)
