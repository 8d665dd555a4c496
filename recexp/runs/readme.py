"""The README of an exported model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from recexp.logs import printable
from recexp.runs.exported import Signature

IMPORTS = {"onnx": "onnxruntime", "pt2": "torch"}
CALLS = {
    "onnx": [
        'session = onnxruntime.InferenceSession("model.onnx")',
        "item_BK, score_BK = session.run(None, inputs)",
    ],
    "pt2": [
        'graph = torch.export.load("model.pt2").module()',
        "item_BK, score_BK = graph(*(torch.from_numpy(x) for x in inputs.values()))",
    ],
}


def readme(signature: Signature, items: Sequence[Any], user: Any) -> str:
    """Markdown that says what the files are, with code that runs beside them.

    items, user: raw ids for the example.
    """
    title = f"# {printable(f'{signature.model}, trained on {signature.dataset}')}\n"
    if signature.format == "safetensors":
        return title + _about_weights()
    parts = [title, _about_graph(signature), _table(signature), _example(signature, items, user)]
    if signature.format == "pt2":
        parts.append(
            "A pt2 file may hold code, as a Python module does: load only those of people whom you "
            "trust.\n"
        )
    return "\n".join(parts)


def _about_weights() -> str:
    return """
`model.safetensors` holds the weights. In the run that they come from, or in one of the same model
and data:

```python
import recexp

trained = recexp.load("RUN_DIR")
trained.load_weights("model.safetensors")
```

`items.json` and `users.json` hold the raw ids: row n of a table of items belongs to place n of
`items.json`, row n of a table of users to place n of `users.json`.
"""


def _about_graph(signature: Signature) -> str:
    reads = "The model reads whole histories."
    if signature.window is not None:
        reads = f"The model reads the newest {signature.window:,} events of a history."
    if signature.window == 0:
        reads = "The model reads no histories."
    seen = "Items of the history may be among them."
    if "seen_BL" in signature.input_names:
        seen = "Items in `seen_BL` are not among them."
    elif not signature.include_seen:
        seen = "Items of the history are not among them."
    return (
        f"`{signature.file}` returns the {signature.k} best items of each row. {seen} {reads}\n"
        "Items of equal score are ordered by number. The sizes `batch` and `length` may be any, "
        "`length` 0 included.\n"
    )


def _table(signature: Signature) -> str:
    lines = ["| name | type | shape | meaning |", "|---|---|---|---|"]
    for port in [*signature.inputs, *signature.outputs]:
        shape = ", ".join(map(str, port.shape))
        lines.append(f"| `{port.name}` | {port.dtype} | [{shape}] | {port.meaning} |")
    return "\n".join(lines) + "\n"


def _example(signature: Signature, items: Sequence[Any], user: Any) -> str:
    names = signature.input_names
    events = signature.events
    rows = {
        "user_B": "[users.index(user)]",
        "item_BL": "[[items.index(item) for item in history]]",
        "behavior_BL": f"[[{_codes(len(events.behaviors), len(items))}]]",
        "time_BL": f"[[{', '.join(str(1000 * (n + 1)) for n in range(len(items)))}]]",
        "value_BL": f"[[{_codes(len(events.levels), len(items))}]]",
        "seen_BL": "[[items.index(item) for item in history]]",
    }
    for port in signature.inputs:
        if port.name not in rows:  # a feature of events: its first value, or the mean
            one = "0.0" if port.dtype == "float32" else "1"
            rows[port.name] = f"[[{', '.join([one] * len(items))}]]"
            if port.dtype == "float32":
                rows[port.name] += ", dtype=np.float32"
    lines = ["import json", "", "import numpy as np", f"import {IMPORTS[signature.format]}", ""]
    lines.append('items = json.load(open("items.json"))')
    if "user_B" in names:
        lines.append('users = json.load(open("users.json"))')
        lines.append(f"user = {_literal(user)}  # raw id")
    if "item_BL" in names or "seen_BL" in names:
        lines.append(f"history = {_literal(list(items))}  # raw ids, oldest event first")
    lines.append("inputs = {")
    lines += [f'    "{name}": np.array({rows[name]}),' for name in names]
    lines += ["}", *CALLS[signature.format], "print([items[n] for n in item_BK[0] if n > 0])"]
    return "\n".join(["```python", *lines, "```", ""])


def _codes(n: int, length: int) -> str:
    return ", ".join([str(n)] * length)


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
