"""The figures the papers print (``published.csv``), and which of them a run may stand beside.

Protocol ids P1..P4 are the papers' (ITE, multi-feedback, BERT4Rec, NOVA). The ITE paper prints curves only: its figures were read off the vector
graphics and are good to about 1e-4. Its fig5 holds each system's best test value over 200 epochs, fig10_11 the way there, fig12 other runs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError
from recexp.report.collect import setting, simulated, smoke, trained_under
from recexp.report.recipe import Difference, differences, paper_of, recipe, table_of

PROTOCOLS = {"P1": "p1_uniform999", "P2": "p2_uniform99", "P3": "p3_popular100", "P4": "full"}
# Protocols of ours that read a paper's protocol otherwise than its experiments here do.
READINGS = {"p2_uniform99_later": "p2_uniform99"}
COLUMNS = ["paper", "table", "dataset", "protocol", "model", "setting", "metric", "value"]
# Another extract of the same source, and our configs of the same published system.
DATASETS = {"taobao_31882": "taobao", "retailrocket_2174": "retailrocket"}
VARIANTS = {
    "ite_authors": "ite",
    "bert_ite_authors": "bert_ite",
    "bert_ite_si_authors": "bert_ite_si",
    "bert4rec_vae": "bert4rec",
}


Places = list[tuple[str, str, str]]  # table, published name of the model, setting


@dataclass(frozen=True)
class Figure:
    """One published number. setting: e.g. ``K=64``, ``w/o PE``. metric: ours, e.g. ``hr@10``."""

    paper: str
    table: str
    dataset: str
    protocol: str
    model: str
    setting: str
    metric: str
    value: float

    @property
    def source(self) -> str:
        return f"{self.paper} {self.table}" + (f" ({self.setting})" if self.setting else "")


@cache
def figures(path: Path = Path(__file__).parent / "papers" / "published.csv") -> tuple[Figure, ...]:
    """All published figures. Raises RecexpError for a row that is not whole, or two values of one figure."""
    found: dict[tuple[str, ...], Figure] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if (head := next(rows, [])) != COLUMNS:
            raise RecexpError(
                f"{path.name}, line 1: expected the columns {','.join(COLUMNS)}, found {','.join(head)}."
            )
        for row in rows:
            try:
                *key, value = row
                figure = Figure(*key[:6], metric=key[6].lower(), value=float(value))
            except (IndexError, TypeError, ValueError):
                raise RecexpError(
                    f"{path.name}, line {rows.line_num}: {row} is not a figure ({', '.join(COLUMNS)})."
                ) from None
            if tuple(key) in found:
                raise RecexpError(
                    f"{path.name}, line {rows.line_num}: {', '.join(key)} stands there twice."
                )
            found[tuple(key)] = figure
    return tuple(found.values())


def published(
    paper: str, table: str, dataset: str, model: str, setting: str, metric: str
) -> float | None:
    """The figure a paper prints, or None."""
    return next((f.value for f in figures() if (f.paper, f.table, f.dataset, f.model, f.setting, f.metric) == (
        paper, table, dataset, model, setting, metric.lower())), None)  # fmt: skip


def select(**fields: str) -> list[Figure]:
    """All figures with these fields."""
    return [f for f in figures() if all(getattr(f, k) == v for k, v in fields.items())]


def experiment(result: dict[str, Any]) -> tuple[str, str]:
    """(paper, table) of the experiment a run was started from; empty strings where from none of a paper's."""
    chosen = next(
        (
            o.split("=", 1)[1]
            for o in result.get("overrides", [])
            if o.startswith(("experiment=", "+experiment="))
        ),
        "",
    )
    return paper_table(chosen)


def paper_table(name: str) -> tuple[str, str]:
    """``bert4rec/table5_ablation`` -> (bert4rec, table5), ``ite/fig10_epochs`` -> (ite, fig10_11)."""
    paper = paper_of(name)
    return (paper, table_of(name.partition("/")[2])) if paper in _RULES else ("", "")


def match(result: dict[str, Any]) -> dict[str, Figure]:
    """Per metric (``hr@10``) the published figure of the run's system: same model, source of data, protocol and setting.

    Where several tables print it, the one of the run's experiment counts, else the first of the
    paper's. Settings that no paper printed, twins trained on shuffled targets and runs on simulated
    data match nothing, and nothing matches a figure without data set. A smaller extract of the data
    does not hinder a match: ``deviations`` says so.
    """
    paper, table = experiment(result)
    for tried in sorted(_RULES, key=lambda name: name != paper):
        places = _places(result, tried, table if tried == paper else "")
        answer: dict[str, Figure] = {}
        for place in sorted(places, key=lambda place: (tried, place[0]) != (paper, table)):
            answer |= {
                metric: f for metric, f in _at(result, tried, place).items() if metric not in answer
            }
        if answer:
            return answer
    return {}


def in_table(result: dict[str, Any], paper: str, table: str) -> dict[str, Figure]:
    """Per metric the figure of the run's system in this one table; empty where it has none.

    Figures whose data set the paper does not name are among them; ``named_data`` tells them apart.
    """
    found = [
        _at(result, paper, place, ("",))
        for place in _places(result, paper, table)
        if place[0] == table
    ]
    return found[0] if found else {}


def named_data(figure: Figure) -> bool:
    """Whether the paper names the figure's data set: else no run can be held against it."""
    return bool(figure.dataset)


def _places(result: dict[str, Any], paper: str, table: str) -> Places:
    if simulated(result) or setting(result, "objective.shuffle_targets"):
        return []
    return _RULES[paper](result, DATASETS.get(result["dataset"], result["dataset"]), table)


def _at(
    result: dict[str, Any], paper: str, place: tuple[str, str, str], others: tuple[str, ...] = ()
) -> dict[str, Figure]:
    """others: names of data sets accepted besides the run's own."""
    table, model, at = place
    datasets = (DATASETS.get(result["dataset"], result["dataset"]), *others)
    found = [
        f
        for f in select(paper=paper, table=table, model=model, setting=at)
        if f.dataset in datasets
    ]
    return {f.metric: f for f in found if PROTOCOLS[f.protocol] == standard(result["protocol"])}


def standard(protocol: str) -> str:
    """The paper's protocol that this one is a reading of; other names as they are."""
    return READINGS.get(protocol, protocol)


def curve(result: dict[str, Any], metric: str) -> list[tuple[int, float]]:
    """The published values of the run's system per epoch (ITE fig. 10 and 11): [(epoch counted from 1, value)]."""
    if (
        simulated(result)
        or setting(result, "objective.shuffle_targets")
        or result["protocol"] != PROTOCOLS["P1"]
    ):
        return []
    model, start = (
        VARIANTS.get(result["model"], result["model"]),
        f"K={setting(result, 'model.num_factors')},epoch=",
    )
    found = select(
        paper="ite",
        table="fig10_11",
        dataset=DATASETS.get(result["dataset"], result["dataset"]),
        model=model,
        metric=metric,
    )
    return sorted(
        (int(f.setting.removeprefix(start)), f.value) for f in found if f.setting.startswith(start)
    )


def _ite(result: dict[str, Any], dataset: str, table: str) -> Places:
    model, width = (
        VARIANTS.get(result["model"], result["model"]),
        setting(result, "model.num_factors"),
    )
    usual_weight = 1.0 if model == "nmtr" else 0.5
    weights, layers = setting(result, "objective.weights"), setting(result, "model.num_layers")
    negatives = setting(result, "objective.n_negatives")
    unusual = (
        setting(result, "objective.balance")
        or setting(result, "model.user_dropout")
        or (model != "bert4rec" and negatives not in (None, 9, 4))
    )
    if unusual or result.get("sampler", "uniform") not in ("uniform", "none"):
        return []
    # The experiments on depth, length and the implicit loss share only their usual point with fig. 5.
    if table not in ("fig5", "fig12", "fig10_11"):
        if isinstance(weights, list) and float(weights[0]) != usual_weight:
            return []
        theirs = (1, 40) if result["model"].endswith("_authors") else (2, 20)
        if model.startswith("bert_ite") and (layers, setting(result, "model.max_len")) != theirs:
            return []
    return [("fig5", model, f"K={width}"), *([("fig12", model, "")] if width == 64 else [])]


def _multi_feedback(result: dict[str, Any], dataset: str, table: str) -> Places:
    if result["model"] != "mf_mmlp":
        return [("table4", result["model"], "mean of 10")]
    factors, negatives = (
        setting(result, "model.num_factors"),
        setting(result, "objective.n_negatives"),
    )
    places = [("table3", "mf_mmlp", f"factors={factors},negatives={negatives}")]
    if table == "table2":  # does not say how many negatives
        places = [("table2", "mf_mmlp", f"factors={factors}")]
    if (factors, negatives) == (4, 3):  # the best by the prose, hence table 4's
        places.append(("table4", "mf_mmlp", "mean of 10"))
    return places


def _bert4rec(result: dict[str, Any], dataset: str, table: str) -> Places:
    model, width = result["model"], setting(result, "model.num_factors")
    if model == "bert4rec_one_mask":
        return [("table3", model, "d=256")] if width == 256 else []
    if model != "bert4rec":
        if table not in (
            "",
            "table2",
            "table3",
        ):  # where a width is swept, the one figure of table 2 belongs to none of its points
            return []
        return [("table2", model, "best"), *([("table3", model, "d=256")] if width == 256 else [])]
    changed = {k for k in ("norm", "embedding_norm", "token_type", "projection", "head_norm", "tied", "output_bias")
               if setting(result, f"model.{k}") not in (None, True, "post")}  # fmt: skip
    masked = setting(result, "objective.mask_prob")
    if changed or (masked is not None and masked != MASKED.get(dataset, 0.2)):
        return []
    variant, length = _ablations(result), setting(result, "model.max_len")
    usual = 50 if dataset in ("amazon_beauty", "steam") else 200
    if width == 256 and length == usual and not variant - {"h=8"}:
        return [("table2", model, "best"), ("table3", model, "d=256")]
    if table == "table2" and not any(name.startswith("w/o") for name in variant):
        return [("table2", model, "best")]  # of another size, which ``deviations`` tells
    if width != 64 or len(variant) > 1 or (variant and length != usual):
        return []
    ablation = [("table5", model, next(iter(variant), "L=2,h=2"))] if length == usual else []
    return ablation + ([] if variant else [("table4", model, f"max_len={length}")])


MASKED = {"amazon_beauty": 0.6, "steam": 0.4}  # share of masked items; elsewhere 0.2


def _ablations(result: dict[str, Any]) -> set[str]:
    """Names, as in BERT4Rec's table 5, of what the run leaves out or changes."""
    off = {"w/o PFFN": "ffn", "w/o LN": "layer_norm", "w/o residual": "residual"}
    found = {name for name, key in off.items() if setting(result, f"model.{key}") is False}
    if setting(result, "model.positions") == "none":
        found.add("w/o PE")
    if setting(result, "model.dropout") == 0 and setting(result, "model.attention_dropout") == 0:
        found.add("w/o dropout")
    for letter, key in (("L", "num_layers"), ("h", "num_heads")):
        if setting(result, f"model.{key}") not in (None, 2):
            found.add(f"{letter}={setting(result, f'model.{key}')}")
    return found


def _nova(result: dict[str, Any], dataset: str, table: str) -> Places:
    model, fusion, side = (
        result["model"],
        setting(result, "model.fusion"),
        setting(result, "model.side"),
    )
    if table == "table5":  # an epoch of training, for its size alone
        return [("table5", model if model == "bert4rec" else f"{model}_{fusion}", "")]
    if model == "bert4rec":
        return [("table3", model, "best")]
    if model not in ("nova_bert", "invasive_bert"):
        return []
    name, kinds = f"{model}_{fusion}", _kinds(side)
    whole = [("table3", name, "best")] if kinds == "all" else []
    return [*whole, ("table4", name, f"side_info={kinds}")]


def _kinds(side: Any) -> str:
    names = {side} if isinstance(side, str) else set(side or [])
    behaviour = names & {"value", "behaviour", "time"}  # what the paper calls behaviour-related
    if names == {"all"} or (behaviour and names - behaviour):
        return "all"
    return "behavior" if behaviour else "item" if names else "none"


_RULES: dict[str, Callable[[dict[str, Any], str, str], Places]] = {
    "ite": _ite, "multi_feedback": _multi_feedback, "bert4rec": _bert4rec, "nova_bert": _nova,
}  # fmt: skip

# users of each paper's version of the data (models.md 2.1), and items where papers differ in them
USERS = {
    ("ite", "retailrocket"): 36_751, ("ite", "recobell"): 206_203, ("multi_feedback", "taobao"): 19_576,
    ("bert4rec", "ml_1m"): 6_040, ("bert4rec", "ml_20m"): 138_493, ("bert4rec", "amazon_beauty"): 40_226, ("bert4rec", "steam"): 281_428,
    ("nova_bert", "ml_1m"): 6_040, ("nova_bert", "ml_20m"): 138_493,
}  # fmt: skip
ITEMS = {
    ("bert4rec", "ml_1m"): 3_416,
    ("nova_bert", "ml_1m"): 3_706,
    ("ite", "retailrocket"): 83_274,
}
# how the papers chose the reported epoch
SELECTED = {"ite": "test_peek", "bert4rec": "refit", "nova_bert": "val", "multi_feedback": "val"}
SELECTION = {
    "test_peek": "the best test value of all epochs", "val": "validation",
    "refit": "validation, then trained on its items too",
}  # fmt: skip
RUNS = {("multi_feedback", "table4"): 10}
RECONSTRUCTED = {
    "nmtr": "from another paper's summary",
    "mtmf": "from its abstract",
    "mfpr": "from its abstract",
}


def same_data(result: dict[str, Any], figure: Figure) -> bool:
    """Whether the run's data have the users (within 1 %) and the items of the paper's."""
    users, items = (
        USERS.get((figure.paper, figure.dataset)),
        ITEMS.get((figure.paper, figure.dataset)),
    )
    data, close = result["data"], lambda a, b: a is not None and abs(a - b) <= 0.01 * b
    return (users is None or close(data.get("users"), users)) and (
        items is None or close(data.get("items"), items)
    )


def settings_apart(result: dict[str, Any], figure: Figure) -> list[Difference]:
    """The settings of the paper's file in which the run departs from the figure's system."""
    model = result["model"]
    if model.endswith("_authors"):  # the code's variant, held against the paper's settings
        model = VARIANTS.get(model, model)
    return differences(result, recipe(figure.paper, figure.table, model, figure.dataset))


def deviations(result: dict[str, Any], figure: Figure | None, seeds: int = 1) -> list[str]:
    """In words, where a run departs from what the paper did, as far as is recorded.

    Reconstructions are always named. seeds: runs averaged.
    """
    notes = [f"{result['model']} is a reconstruction ({RECONSTRUCTED.get(_root(result), 'its paper does not say enough')})"] * (
        bool(result.get("reconstruction")) or _root(result) in RECONSTRUCTED)  # fmt: skip
    if smoke(result):
        notes.append("smoke scale: a test of the machinery, not of the systems")
    if figure is None:
        return notes
    key, data = (figure.paper, figure.dataset), result["data"]
    if not same_data(result, figure):
        published_size = f"{USERS[key]:,} users" + (
            f" and {ITEMS[key]:,} items" if key in ITEMS else ""
        )
        notes.append(
            f"data: {data['users']:,} users and {data['items']:,} items; the paper has {published_size}"
        )
    if result["dataset"] != figure.dataset:
        theirs = (
            f"the paper's {figure.dataset}"
            if figure.dataset
            else "data that the paper does not name"
        )
        notes.append(f"data: {result['dataset']} stands in for {theirs}")
    later = figure.protocol == "P2" and setting(result, "protocol.split.purge") == "later"
    if later or result["protocol"] in READINGS:
        notes.append(
            f"protocol {result['protocol']}: a variant, "
            "weaker events of a held-out pair stay in training"
        )
    if under := trained_under(result):
        notes.append(f"trained and selected under {under}")
    selection, theirs = re.match(r"\w*", result["selection"])[0], SELECTED[figure.paper]
    if selection != theirs:
        notes.append(f"epoch by {SELECTION.get(selection, selection)} (paper: {SELECTION[theirs]})")
    if (runs := RUNS.get((figure.paper, figure.table))) and seeds < runs:
        notes.append(f"{seeds} run{'s' if seeds > 1 else ''}; the paper averages {runs}")
    if figure.paper == "ite" and setting(result, "protocol.history") == "before_target":
        notes.append("histories end before the target; the authors' code shows later events too")
    if isinstance(limit := setting(result, "trainer.limit_val_batches"), int) and not isinstance(
        limit, bool
    ):
        notes.append(f"validated on {limit} batches of users only")
    if apart := settings_apart(result, figure):
        notes.append("; ".join(d.text for d in apart))
    return notes


def _root(result: dict[str, Any]) -> str:
    return str(result["model"]).split("_")[0]
