"""What a setting may be, told by its name: one table for all models, objectives and the rest, read before any work starts.

Types come from the annotations of what a ``_target_`` names. Choices among words, and what depends on several settings or on the data, stay with the
constructors, which know them; ``compose.rehearse`` calls those before preparation.
"""

from __future__ import annotations

import ast
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recexp.errors import RecexpError


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, each end included unless open. whole: integers only. every: the entries of a list that must not be empty.
    required: not null, even where the constructor takes null for "whatever I like".
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    every: bool = False
    required: bool = False

    def __contains__(self, value: Any) -> bool:
        if not _is_number(value) or (self.whole and not isinstance(value, int)):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = (
            ""
            if self.high == math.inf
            else f" and {'below' if self.open_high else 'at most'} {self.high:,}"
        )
        kind = f"a list, not empty, each entry {kind}" if self.every else kind
        return f"{kind} {low}{high}"


COUNT, SIZE, INDEX = (
    Range(1, 2**31, whole=True),
    Range(1, 65_536, whole=True),
    Range(0, 2**31, whole=True),
)
RATE, SHARE, POSITIVE, WEIGHT = (
    Range(0, 1, open_high=True),
    Range(0, 1),
    Range(0, open_low=True),
    Range(0),
)
INSIDE = Range(0, 1, open_low=True, open_high=True)

# By the last part of a key, or by its last two where a name means several things.
RANGES: dict[str, Range] = {
    "batch_size": COUNT, "eval_batch_size": COUNT, "threads": Range(1, 4096, whole=True), "seed": Range(0, 2**32 - 1, whole=True),
    # models
    "num_factors": SIZE, "num_inner": SIZE, "num_horizontal": SIZE, "num_vertical": SIZE, "num_layers": Range(1, 256, whole=True),
    "num_heads": SIZE, "max_len": Range(0, 1_000_000, whole=True), "chunk": COUNT, "n_behaviours": Range(1, 31, whole=True),
    "dropout": RATE, "attention_dropout": RATE, "embedding_dropout": RATE, "user_dropout": SHARE, "alpha": WEIGHT, "elu_alpha": POSITIVE,
    "init_std": WEIGHT, "regularisation": POSITIVE, "decay": Range(0, 1, open_low=True), "history_damping": WEIGHT, "item_damping": WEIGHT,
    "popularity": WEIGHT, "window": COUNT, "neighbours": COUNT, "implicit_share": WEIGHT,
    # objectives and samplers
    "n_negatives": Range(0, 1_000_000, whole=True), "mask_prob": INSIDE, "last_prob": SHARE, "max_masked": COUNT, "copies": INDEX, "step": POSITIVE,
    "targets": COUNT, "t": SHARE, "bpreg": WEIGHT, "l2": WEIGHT, "balance": WEIGHT, "weights": Range(0, every=True), "share": SHARE, "rounds": INDEX,
    "replace": Range(0, 1, every=True), "objective.levels": Range(1, 31, whole=True, every=True),
    # protocols
    "ks": Range(1, 2**31, whole=True, every=True), "candidates.n": COUNT, "test_share": INSIDE, "val_share": INSIDE,
    "user_min": INDEX, "user_max": COUNT, "item_min": INDEX,
    # training
    "lr": Range(0, required=True), "weight_decay": Range(0, required=True), "betas": Range(0, 1, open_high=True, every=True, required=True),
    "eps": Range(0, open_low=True, required=True),
    "momentum": Range(0, 1, open_high=True, required=True),
    "warmup": WEIGHT, "patience": Range(0, 2**31, whole=True, required=True), "num_nodes": COUNT,
    "min_steps": INDEX,
    "max_epochs": Range(1, 1_000_000, whole=True, required=True), "accumulate_grad_batches": Range(1, 2**31, whole=True, required=True),
    "check_val_every_n_epoch": Range(1, 2**31, whole=True, required=True),
    "gradient_clip_val": WEIGHT, "limit_val_batches": POSITIVE, "limit_train_batches": POSITIVE, "num_sanity_val_steps": Range(-1, whole=True),
    "log_every_n_steps": INDEX,
    # the simulated shop
    "users": COUNT, "items": COUNT, "categories": COUNT, "sessions": Range(1, 200), "session_length": Range(1, 200), "cart_rate": INSIDE,
    "purchase_rate": INSIDE,
}  # fmt: skip

# The same for words, where the constructor would tell too late.
CHOICES = {"wandb.mode": ("auto", "online", "offline")}

ROOT = {
    "seed": "int", "batch_size": "int", "eval_batch_size": "int", "threads": "int | None", "ckpt_path": "str | None", "cache_dir": "str",
    "run_dir": "str | None", "group": "str | None",
}  # fmt: skip

WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "None": "null", "list": "a list", "Sequence": "a list",
    "tuple": "a list", "Mapping": "names with values", "dict": "names with values",
}  # fmt: skip
PARTS = ("NegativeSampler", "Split", "Candidates")  # what has a _target_ of its own


def check_values(path: str, node: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
    """Raise RecexpError for the first value of the node (plain, without interpolations) that is of another type or out of range.

    annotations: of its keys, as source text; what cannot be told from them is let through.
    """
    for key, value in node.items():
        name, two = f"{path}.{key}".lstrip("."), f"{path.rsplit('.')[-1]}.{key}"
        limit, accepted = RANGES.get(two) or RANGES.get(str(key)), _accepts(annotations.get(key))
        good = not accepted or any(_is(value, kind, inner) for kind, inner in accepted)
        if limit is not None and value is None:
            good = good and not limit.required
        elif good and limit is not None and not isinstance(value, Mapping):
            entries = list(value) if _is(value, "list", "") and limit.every else [value]
            # A word passes here where the annotation takes words beside numbers.
            good = bool(entries) and all(
                entry in limit for entry in entries if _is_number(entry) or not accepted
            )
            good = good and (bool(accepted) or not limit.every or _is(value, "list", ""))
        if not good:
            wanted = " or ".join(
                dict.fromkeys(_words(kind, inner) for kind, inner in accepted if kind != "None")
            )
            raise RecexpError(
                f"{name}={_shown(value)}: must be {limit if limit and ('number' in wanted or not wanted) else wanted}."
            )
        if two in CHOICES and value not in CHOICES[two]:
            raise RecexpError(f"{name}={_shown(value)}: choose one of {', '.join(CHOICES[two])}.")
    heads, width = node.get("num_heads"), node.get("num_factors")
    if isinstance(heads, int) and isinstance(width, int) and width % heads:
        fitting = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
        raise RecexpError(
            f"{path}.num_heads={heads}: does not divide {path}.num_factors={width}; choose one of {fitting}."
        )


def annotations_of(callee: Any) -> dict[str, str]:
    """The parameters' annotations as they stand, or would stand, in the source."""
    return {
        name: _source(p.annotation)
        for name, p in inspect.signature(callee).parameters.items()
        if p.annotation is not p.empty
    }


def _source(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_source(part) for part in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    return (
        annotation.__name__ if annotation in (int, float, bool, str, list, dict) else "Unknown[()]"
    )


def _accepts(annotation: str | None) -> list[tuple[str, str]]:
    """(kind, kind of its entries or "") of every alternative; empty where one of them cannot be told."""

    def walk(node: ast.expr) -> list[tuple[str, str]] | None:
        match node:
            case ast.BinOp(left=left, right=right):
                parts = walk(left), walk(right)
                return None if None in parts else parts[0] + parts[1]
            case ast.Constant(value=None):
                return [("None", "")]
            case ast.Name(id=name) if name in WORDS or name in PARTS:
                return [(name, "")]
            case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in WORDS:
                first = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
                of = (
                    first.id
                    if isinstance(first, ast.Name) and name in ("list", "Sequence", "tuple")
                    else ""
                )
                return [(name, of)]
        return None

    try:
        return (walk(ast.parse(annotation, mode="eval").body) or []) if annotation else []
    except SyntaxError:
        return []


def _is(value: Any, kind: str, inner: str) -> bool:
    if kind in ("list", "Sequence", "tuple"):
        good = isinstance(value, Sequence) and not isinstance(value, str)
        return good and (inner not in WORDS or all(_is(v, inner, "") for v in value))
    if kind in PARTS:
        return isinstance(value, Mapping) and "_target_" in value
    return {
        "int": isinstance(value, int) and not isinstance(value, bool), "float": _is_number(value), "bool": isinstance(value, bool),
        "str": isinstance(value, str), "None": value is None,
    }.get(kind, isinstance(value, Mapping))  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _words(kind: str, inner: str) -> str:
    if kind in PARTS:
        return f"a {kind} with a _target_"
    return WORDS[kind] + (f" (each entry {WORDS[inner]})" if inner in WORDS else "")


def _shown(value: Any) -> str:
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    )
    return text if len(text) < 80 else f"{text[:77]}..."
