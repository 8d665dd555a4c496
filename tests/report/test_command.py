"""Tables of runs: protocols are not mixed, and runs that are left out are named."""

from __future__ import annotations

import json

import pytest

from recexp.errors import RecexpError
from recexp.report.collect import collect
from recexp.report.formats import as_markdown, join_tables
from recexp.report.tables import tables


def write(folder, ndcg: float | None, protocol_id: str = "aaa", model: str = "pop"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    if ndcg is None:
        return
    metrics = {
        "test/hr@10": ndcg * 2,
        "test/ndcg@10": ndcg,
        "test/mrr": ndcg,
        "test/users": 10.0,
        "val/ndcg@10": ndcg,
    }
    result = {
        "model": model,
        "dataset": "shop",
        "protocol": "full",
        "protocol_id": protocol_id,
        "seed": 0,
        "selection": "val",
        "metrics": metrics,
        "best_epoch": 2,
        "epochs": 4,
        "stop_reason": "max_epochs reached",
        "wall_time_s": 1.0,
        "examples_per_s": 5.0,
        "overrides": ["model=pop", "model.x=3", "cache_dir=c"],
        "git": {"commit": "0123456789", "dirty": False},
        "data": {"users": 10, "items": 20, "interactions": 30},
    }
    (folder / "result.json").write_text(json.dumps(result))


def test_protocol_ids_never_share_a_table_and_unfinished_runs_are_named(tmp_path):
    write(tmp_path / "a", 0.1)
    write(tmp_path / "b", 0.3, model="ite")
    write(tmp_path / "c", 0.9, protocol_id="bbb")
    write(tmp_path / "d", None)
    results, left_out = collect([tmp_path])
    assert len(results) == 3 and len(left_out) == 1 and "d" in left_out[0]
    text = join_tables(tables(results), as_markdown)
    first, second = text.split("(id bbb)")
    assert "0.9000" in second and "0.9000" not in first
    assert first.index("| ite |") < first.index("| pop |")  # best first
    assert "`model.x=3`" in first and "cache_dir" not in text
    assert "**0.3000**" in first and "**0.1000**" not in first


def test_nothing_found_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(RecexpError, match="nowhere"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(RecexpError, match=r"result\.json"):
        collect([tmp_path])
