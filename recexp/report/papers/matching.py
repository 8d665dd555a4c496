"""Which published figures a run may stand beside: the rules of each paper's tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from recexp.report.collect import Result, is_external, is_simulated, setting
from recexp.report.papers.published import (
    PROTOCOLS,
    Figure,
    experiment,
    published_dataset,
    published_model,
    select,
    side_information,
    standard_protocol,
)

# BERT4Rec's share of masked items where it is not 0.2 (Sun et al. 2019, arXiv:1904.06690).
MASK_PROBABILITY = {"amazon_beauty": 0.6, "steam": 0.4}
# BERT4Rec's maximum length of sequences where it is not 200.
MAX_LENGTH = {"amazon_beauty": 50, "steam": 50}
# Switches of the model that define BERT4Rec; other values than these are another system.
BERT4REC_SWITCHES = (
    "norm",
    "embedding_norm",
    "token_type",
    "projection",
    "head_norm",
    "tied",
    "output_bias",
)
BERT4REC_VALUES = (None, True, "post")
# Repositories whose figures stand under the paper "later".
LATER_SOURCES = (
    "klenitskiy_vasilev_2023",
    "gsasrec",
    "esasrec",
    "hstu",
    "dif_sr",
    "s3_rec",
)
# What BERT4Rec's table 5 calls a run in which one of these keys of the model is off.
BERT4REC_PARTS = {"w/o PFFN": "ffn", "w/o LN": "layer_norm", "w/o residual": "residual"}


class Place(NamedTuple):
    """Where a paper prints a system: table, published name of the model, and setting."""

    table: str
    model: str
    setting: str


def match(result: Result) -> dict[str, Figure]:
    """Per metric (``hr@10``) the published figure of the run's system.

    Same model, source of data, protocol and setting. Where several tables print it, the one of the
    run's experiment counts, else the first of the paper's. Settings that no paper printed, twins
    trained on shuffled targets and runs on simulated data match nothing, and nothing matches a
    figure without a data set. A smaller extract of the data does not hinder a match: ``deviations``
    says so.
    """
    own_paper, own_table = experiment(result)
    for paper in sorted(_RULES, key=lambda name: name != own_paper):
        table = own_table if paper == own_paper else ""
        places = _places(result, paper, table)
        places.sort(key=lambda place: (paper, place.table) != (own_paper, own_table))
        found: dict[str, Figure] = {}
        for place in places:
            for metric, figure in _figures_at(result, paper, place).items():
                found.setdefault(metric, figure)
        if found:
            return found
    return {}


def in_table(result: Result, paper: str, table: str) -> dict[str, Figure]:
    """Per metric the figure of the run's system in this one table; empty where it has none.

    Figures whose data set the paper does not name are among them; ``names_data`` tells them apart.
    """
    for place in _places(result, paper, table):
        if place.table == table:
            return _figures_at(result, paper, place, unnamed_data=True)
    return {}


def curve(result: Result, metric: str) -> list[tuple[int, float]]:
    """The published values of the run's system per epoch: [(epoch from 1, value)].

    Only the ITE paper's figures 10 and 11 print such curves.
    """
    if not _can_match(result) or result["protocol"] != PROTOCOLS["P1"]:
        return []
    start = f"K={setting(result, 'model.n_factors')},epoch="
    points = []
    for figure in select(
        paper="ite",
        table="fig10_11",
        dataset=published_dataset(result),
        model=published_model(result),
        metric=metric,
    ):
        if figure.setting.startswith(start):
            points.append((int(figure.setting.removeprefix(start)), figure.value))
    return sorted(points)


def _can_match(result: Result) -> bool:
    if is_simulated(result) or is_external(result):
        return False
    return not setting(result, "objective.shuffle_targets")


def _places(result: Result, paper: str, table: str) -> list[Place]:
    """All places of the paper. table: the one asked for, which some rules need; else ""."""
    return _RULES[paper](result, table) if _can_match(result) else []


def _figures_at(
    result: Result, paper: str, place: Place, unnamed_data: bool = False
) -> dict[str, Figure]:
    datasets = [published_dataset(result)]
    if unnamed_data:
        datasets.append("")
    protocol = standard_protocol(result["protocol"])
    found = select(paper=paper, table=place.table, model=place.model, setting=place.setting)
    return {
        figure.metric: figure
        for figure in found
        if figure.dataset in datasets and PROTOCOLS[figure.protocol] == protocol
    }


# Rules --------------------------------------------------------------------------------------------


def _ite(result: Result, table: str) -> list[Place]:
    model = published_model(result)
    if _unusual_ite(result, model):
        return []
    # Experiments on depth, length and the implicit loss share only their usual point with figure 5.
    if table not in ("fig5", "fig12", "fig10_11") and not _usual_ite_point(result, model):
        return []
    width = setting(result, "model.n_factors")
    places = [Place("fig5", model, f"K={width}")]
    if width == 64:
        places.append(Place("fig12", model, ""))
    return places


def _unusual_ite(result: Result, model: str) -> bool:
    """Whether the run has settings that no figure of the paper is of."""
    if setting(result, "objective.balance") or setting(result, "model.user_dropout"):
        return True
    n_negatives = setting(result, "objective.n_negatives")
    if model != "bert4rec" and n_negatives not in (None, 9, 4):
        return True
    return result.get("sampler", "uniform") not in ("uniform", "none")


def _usual_ite_point(result: Result, model: str) -> bool:
    weights = setting(result, "objective.weights")
    usual_weight = 1.0 if model == "nmtr" else 0.5
    if isinstance(weights, list) and float(weights[0]) != usual_weight:
        return False
    if not model.startswith("bert_ite"):
        return True
    shape = (setting(result, "model.n_layers"), setting(result, "model.max_len"))
    usual_shape = (1, 40) if result["model"].endswith("_authors") else (2, 20)
    return bool(shape == usual_shape)


def _multi_feedback(result: Result, table: str) -> list[Place]:
    if result["model"] != "mf_mmlp":
        return [Place("table4", result["model"], "mean of 10")]
    factors = setting(result, "model.n_factors")
    negatives = setting(result, "objective.n_negatives")
    if table == "table2":  # does not say how many negatives
        places = [Place("table2", "mf_mmlp", f"factors={factors}")]
    else:
        places = [Place("table3", "mf_mmlp", f"factors={factors},negatives={negatives}")]
    if (factors, negatives) == (4, 3):  # the best in the paper's words, hence that of table 4
        places.append(Place("table4", "mf_mmlp", "mean of 10"))
    return places


def _bert4rec(result: Result, table: str) -> list[Place]:
    model = result["model"]
    width = setting(result, "model.n_factors")
    of_width_256 = [Place("table3", model, "d=256")] if width == 256 else []
    if model == "bert4rec_one_mask":
        return of_width_256
    if model == "bert4rec":
        return _bert4rec_itself(result, table, width)
    # Where a width is swept, the one figure of table 2 belongs to none of its points.
    if table not in ("", "table2", "table3"):
        return []
    return [Place("table2", model, "best"), *of_width_256]


def _bert4rec_itself(result: Result, table: str, width: Any) -> list[Place]:
    dataset = published_dataset(result)
    masked = setting(result, "objective.mask_prob")
    if masked is not None and masked != MASK_PROBABILITY.get(dataset, 0.2):
        return []
    switches = [setting(result, f"model.{key}") for key in BERT4REC_SWITCHES]
    if any(value not in BERT4REC_VALUES for value in switches):
        return []

    changes = _ablations(result)
    length = setting(result, "model.max_len")
    has_usual_length = length == MAX_LENGTH.get(dataset, 200)
    best = Place("table2", "bert4rec", "best")
    if width == 256 and has_usual_length and not changes - {"h=8"}:
        return [best, Place("table3", "bert4rec", "d=256")]
    if table == "table2" and not any(name.startswith("w/o") for name in changes):
        return [best]  # of another size, which ``deviations`` tells
    if width != 64 or len(changes) > 1 or (changes and not has_usual_length):
        return []
    places = []
    if has_usual_length:
        places.append(Place("table5", "bert4rec", next(iter(changes), "L=2,h=2")))
    if not changes:
        places.append(Place("table4", "bert4rec", f"max_len={length}"))
    return places


def _ablations(result: Result) -> set[str]:
    """Names, as in BERT4Rec's table 5, of what the run leaves out or changes."""
    found = set()
    for name, key in BERT4REC_PARTS.items():
        if setting(result, f"model.{key}") is False:
            found.add(name)
    if setting(result, "model.positions") == "none":
        found.add("w/o PE")
    if setting(result, "model.dropout") == 0 and setting(result, "model.attention_dropout") == 0:
        found.add("w/o dropout")
    for letter, key in (("L", "n_layers"), ("h", "n_heads")):
        value = setting(result, f"model.{key}")
        if value not in (None, 2):
            found.add(f"{letter}={value}")
    return found


def _nova(result: Result, table: str) -> list[Place]:
    model = result["model"]
    name = f"{model}_{setting(result, 'model.fusion')}"
    if table == "table5":  # an epoch of training, for its size alone
        return [Place("table5", model if model == "bert4rec" else name, "")]
    if model == "bert4rec":
        return [Place("table3", model, "best")]
    if model not in ("nova_bert", "invasive_bert"):
        return []
    sides = side_information(result)
    places = [Place("table4", name, f"side_info={sides}")]
    if sides == "all":
        places.insert(0, Place("table3", name, "best"))
    return places


def _later(result: Result, table: str) -> list[Place]:
    """Figures of repositories, each of one size on one version of the data."""
    values = {
        "d": setting(result, "model.n_factors"),
        "L": setting(result, "model.n_layers"),
        "h": setting(result, "model.n_heads"),
        "items": result["data"].get("items"),
    }
    sizes = ",".join(f"{name}={value}" for name, value in values.items() if value is not None)
    return [Place(source, result["model"], sizes) for source in LATER_SOURCES]


_RULES: dict[str, Callable[[Result, str], list[Place]]] = {
    "ite": _ite,
    "multi_feedback": _multi_feedback,
    "bert4rec": _bert4rec,
    "nova_bert": _nova,
    "later": _later,
}
