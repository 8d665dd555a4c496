"""What the papers claim about which system is better (models.md 8 and 12), in a form that runs can be held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from recexp.report.collect import number, setting
from recexp.report.published import DATASETS, VARIANTS


@dataclass(frozen=True)
class Pick:
    """A system by its published model name and settings (dotted keys; a list of weights counts by its first; a tuple: any of these)."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if len(self.settings) > 3:  # a system in full: only what its claims vary
            return f"{self.model} in full, num_layers={self.settings[_LAYERS]}"
        return " ".join([self.model, *(f"{k.split('.')[-1]}={v}" for k, v in self.settings.items())])

    def meets(self, result: dict[str, Any]) -> bool:
        if self.model not in (result["model"], VARIANTS.get(result["model"])) or setting(result, "objective.shuffle_targets"):
            return False
        for name, wanted in self.settings.items():
            found = setting(result, name)
            if (number(found) if number(found) is not None else found) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return False
        return True


@dataclass(frozen=True)
class Claim:
    """left beats right in ``metric``; where ``alike``, neither matters more than 5 % of it. source: (paper, table).

    datasets: whose data the claim is about; empty means any.
    """

    source: tuple[str, str]
    left: Pick
    right: Pick
    metric: str = "hr@10"
    datasets: tuple[str, ...] = ()
    alike: bool = False

    def __str__(self) -> str:
        return f"{self.left} {'≈' if self.alike else '>'} {self.right}"

    def concerns(self, dataset: str) -> bool:
        return not self.datasets or DATASETS.get(dataset, dataset) in self.datasets


def claims(paper: str, table: str) -> list[Claim]:
    """Those that the experiment of this table can test, in the paper's order."""
    return [c for c in _CLAIMS if c.source == (paper, table)]


def _chain(source: tuple[str, str], tiers: list[list[Pick]], **more: Any) -> list[Claim]:
    """a > {b, c} > d: every member of a tier beats every member of the next."""
    return [Claim(source, a, b, **more) for above, below in pairwise(tiers) for a in above for b in below]


def _at(models: str, **settings: Any) -> list[Pick]:
    return [Pick(m, {k.replace("__", "."): v for k, v in settings.items()}) for m in models.split()]


def _set(model: str, name: str, *values: Any) -> list[list[Pick]]:
    return [[Pick(model, {name: v})] for v in values]


_WIDTH, _LAYERS, _LENGTH, _WEIGHT = "model.num_factors", "model.num_layers", "model.max_len", "objective.weights"
_ITE = ("ite", "ite_si", "bert_ite", "bert_ite_si")
_SHOPS, _RR = ("retailrocket", "recobell"), ("retailrocket",)


def _ite() -> list[Claim]:
    order = [_at(m, model__num_factors=64) for m in ("bert_ite_si", "bert_ite", "ite bert4rec", "nmtr mtmf")]
    found = [c for table in ("fig5", "fig10_11", "fig12") for c in _chain(("ite", table), order, datasets=_RR)]
    for model in ("bert_ite_si", "bert_ite", "ite", "bert4rec", "nmtr", "mtmf"):
        found += _chain(("ite", "fig5"), _set(model, _WIDTH, 64, 8))
    found += _chain(("ite", "fig6"), [_at("ite_si"), _at("ite")]) + _chain(("ite", "fig6"), [_at("bert_ite_si"), _at("bert_ite")])
    found.append(Claim(("ite", "fig6"), Pick("ite_ossi"), Pick("ite_si"), alike=True))
    for model in ("bert_ite", "bert_ite_si"):
        found += [Claim(("ite", "fig7"), *(Pick(model, {_LAYERS: n, _WIDTH: k}) for n in (1, 2)), alike=True) for k in (32, 64)]
        found += [Claim(("ite", "fig8"), Pick(model, {_LENGTH: n}), Pick(model, {_LENGTH: 10})) for n in (20, 30, 40)]
    nine = ("ite", "fig9")
    found += [Claim(nine, Pick("ite", {_WEIGHT: 0.5}), Pick("ite", {_WEIGHT: w}), datasets=_RR) for w in (0.1, 1, 2)]
    found += [Claim(nine, Pick(m, {_WEIGHT: 2}), Pick(m, {_WEIGHT: 0.1}), datasets=_RR) for m in _ITE[1:]]
    found.append(Claim(nine, Pick("bert_ite_si", {_WEIGHT: 1}), Pick("bert_ite_si", {_WEIGHT: 2}), datasets=("recobell",)))
    return found


def _multi_feedback() -> list[Claim]:
    found = _chain(("multi_feedback", "table4"), [_at(m) for m in ("mf_mmlp", "ncf", "mfpr", "wmf bpr_mf")])
    found += [Claim(("multi_feedback", "table2"), Pick("mf_mmlp", {_WIDTH: 4}), Pick("mf_mmlp", {_WIDTH: d})) for d in (2, 8, 16, 32)]
    found += [Claim(("multi_feedback", "fig3"), Pick("mf_mmlp", {_LAYERS: 2}), Pick("mf_mmlp", {_LAYERS: n})) for n in (1, 3, 4)]
    return found


def _bert4rec() -> list[Claim]:
    ndcg = {"metric": "ndcg@10"}
    two, five = ("bert4rec", "table2"), ("bert4rec", "table5")
    sequential, others = _at("fpmc gru4rec gru4rec_plus caser sasrec bert4rec"), _at("pop bpr_mf ncf")
    found = _chain(two, [sequential, others], **ndcg) + _chain(two, [_at("caser"), _at("fpmc")], **ndcg)
    found += _chain(two, [_at("bert4rec"), _at("sasrec"), _at("gru4rec gru4rec_plus")], **ndcg)
    found += _chain(("bert4rec", "table3"), [_at("bert4rec"), _at("bert4rec_one_mask"), _at("sasrec")], **ndcg)
    ml, beauty = ("ml_1m",), ("amazon_beauty",)
    found += _chain(("bert4rec", "table4"), _set("bert4rec", _LENGTH, 200, 50, 10), datasets=ml, **ndcg)
    found += _chain(("bert4rec", "table4"), _set("bert4rec", _LENGTH, 20, 10), datasets=beauty, **ndcg)
    whole = {_LAYERS: 2, "model.num_heads": 2, "model.positions": "left", "model.dropout": (0.1, 0.2, 0.5)}
    whole |= {f"model.{part}": True for part in ("ffn", "layer_norm", "residual")}
    without = {"model.positions": "none", "model.dropout": 0} | {f"model.{part}": False for part in ("ffn", "layer_norm", "residual")}
    found += [Claim(five, Pick("bert4rec", whole), Pick("bert4rec", {k: v}), **ndcg) for k, v in without.items()]
    found += _chain(five, [[Pick("bert4rec", whole | {_LAYERS: n})] for n in (4, 3, 2, 1)], datasets=("ml_1m", "ml_20m"), **ndcg)
    for order in ((0.2, 0.1), (0.6, 0.9)):
        found += _chain(("bert4rec", "fig4"), _set("bert4rec", "objective.mask_prob", *order), **ndcg)
    found.append(Claim(("bert4rec", "fig3"), Pick("bert4rec", {_WIDTH: 64}), Pick("bert4rec", {_WIDTH: 256}), alike=True, **ndcg))
    return found


def _nova() -> list[Claim]:
    fused = [{"model.fusion": f} for f in ("add", "concat", "gating")]
    found = [Claim(("nova_bert", "table3"), Pick("nova_bert", f), Pick("invasive_bert", f)) for f in fused]
    found += [Claim(("nova_bert", "table3"), Pick("nova_bert", f), Pick("bert4rec")) for f in fused]
    return found


_CLAIMS = [*_ite(), *_multi_feedback(), *_bert4rec(), *_nova()]
