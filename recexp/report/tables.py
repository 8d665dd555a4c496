"""Tables of results. Figures of different protocols never share one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Overrides that a table says elsewhere, or that say only where things lie.
SAID = ("model=", "dataset=", "experiment=", "protocol=", "seed=", "selection=")
PLACES = ("dataset.raw_dir", "hydra.", "cache_dir", "logger", "threads", "group", "ckpt_path")
COLUMNS = ("test/hr@10", "test/ndcg@10", "test/mrr", "val/ndcg@10")


def markdown(results: Sequence[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """One Markdown table per protocol id, rows ordered by test NDCG@10."""
    parts = []
    for key in dict.fromkeys((r["dataset"], r["protocol"], r["protocol_id"]) for r in results):
        rows = [r for r in results if (r["dataset"], r["protocol"], r["protocol_id"]) == key]
        rows.sort(key=lambda r: -r["metrics"]["test/ndcg@10"])
        data = rows[0]["data"]
        parts.append(
            f"### {key[0]}, {key[1]} (id {key[2]})\n\n{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions, "
            f"{int(rows[0]['metrics']['test/users']):,} of them tested\n\n" + _table(rows, columns)
        )
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    head = ["model", *columns, "best epoch", "stopped by", "seed", "rows/s", "s", "commit", "settings"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    best = {c: max(r["metrics"].get(c, float("-inf")) for r in rows) for c in columns}
    for r in rows:
        figures = [f"{v:.4f}" if (v := r["metrics"].get(c)) is not None else "–" for c in columns]
        figures = [f"**{f}**" if r["metrics"].get(c) == best[c] and len(rows) > 1 else f for f, c in zip(figures, columns, strict=True)]
        mark = " (reconstructed)" if r.get("reconstruction") else ""
        mark += " (epoch chosen on the test set)" if r["selection"].startswith("test_peek") else ""
        commit = (r["git"]["commit"] or "?")[:7] + ("+" if r["git"]["dirty"] else "")
        settings = " ".join(o for o in r["overrides"] if not o.startswith(SAID + PLACES))
        stop = "patience" if r["stop_reason"].startswith("early") else "epochs"
        cells = [r["model"] + mark, *figures, f"{r['best_epoch'] + 1}/{r['epochs']}", stop, str(r["seed"])]
        cells += [f"{r['examples_per_s']:,.0f}", f"{r['wall_time_s']:.0f}", commit, f"`{settings}`" if settings else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
