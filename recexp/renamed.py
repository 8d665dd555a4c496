"""Keys that were spelled otherwise, or stood elsewhere, in earlier versions.

Command lines and stored runs from before the change still work. Fingerprints of prepared data,
and with them protocol ids, are computed from the first spelling, so that they stay the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Earlier spelling -> spelling now.
RENAMED = {
    "behaviours": "behaviors",
    "value_behaviours": "value_behaviors",
    "n_behaviours": "n_behaviors",
    "neighbours": "neighbors",
    "regularisation": "regularization",
    "num_factors": "n_factors",
    "num_heads": "n_heads",
    "num_horizontal": "n_horizontal",
    "num_inner": "n_inner",
    "num_layers": "n_layers",
    "num_vertical": "n_vertical",
}
# The last part of an override's key, or a key inside a mapping: "model.num_factors=8", "{a: 1}".
_EARLIER = "|".join(sorted(RENAMED, key=len, reverse=True))
_KEY = re.compile(rf"(?<![\w-])({_EARLIER})(?=\s*[:=])")

# Earlier place -> place now: the loss was a word and parameters of the objective.
MOVED = {
    "objective.loss_name": "loss",
    "objective.t": "loss.t",
    "objective.bpreg": "loss.bpreg",
    "objective.log_q": "loss.log_q",
}
# An override of such a key, with its prefix: "objective.t=0.5", "++objective.t=0.5".
_MOVED_KEY = re.compile(r"([+~]*)(objective\.(?:loss_name|t|bpreg|log_q))(?=$|=)")
# The loss that an objective takes where none is chosen, by the name and the class of the objective.
_LOSS_OF = {
    "pointwise": "bce",
    "pairwise": "bpr",
    "next_item": "ce",
    "cloze": "ce",
    "session_parallel": "top1",
}
_LOSS_OF_CLASS = {name.title().replace("_", ""): loss for name, loss in _LOSS_OF.items()}
_WITHOUT_LOSS = ("FitPass", "Sweep")
# Class of a loss, and its parameters with their defaults.
_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("CE", {}),
    "bce": ("BCE", {}),
    "gbce": ("GBCE", {"t": 0.75}),
    "bpr": ("BPR", {}),
    "sampled_softmax": ("SampledSoftmax", {"log_q": False}),
    "top1": ("TOP1", {}),
    "top1_max": ("TOP1Max", {}),
    "bpr_max": ("BPRMax", {"bpreg": 1.0}),
    "mse": ("MSE", {}),
}

# Parameters that a model got later, with the values under which it computes as before.
_FEATURES: dict[str, Any] = {
    "item_side": [],
    "event_side": [],
    "side_of_candidates": True,
    "side_vectors": "frozen",
}
_ADDED: dict[str, dict[str, Any]] = {
    "recexp.models.wmf.WMF": {"solver": "auto", "cg_steps": 3},
    "recexp.models.sasrec.SASRec": _FEATURES,
    "recexp.models.bert4rec.BERT4Rec": _FEATURES,
    "recexp.models.gru4rec.GRU4Rec": _FEATURES,
    "recexp.models.fpmc.FPMC": _FEATURES | {"user_side": []},
    "recexp.models.ite.ITE": {"side_vectors": "frozen"},
    "recexp.models.bert_ite.BertITE": {"event_side": [], "side_vectors": "frozen"},
    "recexp.models.nova.SideBERT": {"side_vectors": "frozen"},
}

log = logging.getLogger(__name__)


def with_new_keys(node: Any) -> Any:
    """A stored config, or a part of one, in today's spelling."""
    return _with_added(_with_loss(_map_keys(node, lambda key: RENAMED.get(key, key))))


def with_first_keys(node: Any) -> Any:
    """The node in the spelling that fingerprints are computed from."""
    first = {now: earlier for earlier, now in RENAMED.items()}
    return _map_keys(node, lambda key: first.get(key, key))


def with_new_words(words: Iterable[str]) -> list[str]:
    """Overrides of a command line in today's spelling."""
    # Options such as --help, and words without a value, are not overrides.
    renamed = [_KEY.sub(lambda m: RENAMED[m[1]], word) if "=" in word else word for word in words]
    moved = [_moved_word(word, renamed) for word in renamed]
    return [word for word in moved if word]


def warn_of_renamed(words: Sequence[str]) -> None:
    """Log one warning that names the keys of the command line that were renamed or moved."""
    found: dict[str, str] = {}
    for word in words:
        if "=" in word:
            found |= {key: RENAMED[key] for key in _KEY.findall(word)}
        if match := _MOVED_KEY.match(word):
            found[match[2]] = MOVED[match[2]]
    if found:
        pairs = ", ".join(f"{key} is now {now}" for key, now in found.items())
        log.warning("renamed settings: %s", pairs)


def _moved_word(word: str, words: Sequence[str]) -> str:
    """The override in today's place; empty where nothing is left to override.

    words: the whole command line, which may choose the objective.
    """
    match = _MOVED_KEY.match(word)
    if match is None:
        return word
    prefix, key = match.groups()
    value = word[match.end() :]
    if prefix == "~":
        # It left the choice to the objective. A parameter goes with the loss that has it.
        objectives = [w.removeprefix("objective=") for w in words if w.startswith("objective=")]
        loss = _LOSS_OF.get(objectives[-1]) if objectives else None
        return f"loss={loss}" if key == "objective.loss_name" and loss else ""
    if key == "objective.loss_name":
        return f"loss{value}"  # a choice of a group, which no prefix may precede
    return f"{prefix}{MOVED[key]}{value}"


def _with_loss(config: Any) -> Any:
    """A stored config with its loss as a node, as ``conf/loss`` writes it."""
    objective = config.get("objective") if isinstance(config, dict) else None
    if not isinstance(objective, dict) or "loss" in config or "loss" in objective:
        return config
    kind = str(objective.get("_target_")).rpartition(".")[2]
    if kind in _WITHOUT_LOSS:
        return config | {"loss": None}
    name = objective.get("loss_name") or _LOSS_OF_CLASS.get(kind)
    if kind not in _LOSS_OF_CLASS or name not in _LOSSES:
        return config
    target, defaults = _LOSSES[name]
    parameters = {key: objective.get(key, default) for key, default in defaults.items()}
    loss = {"_target_": f"recexp.objectives.losses.{target}", **parameters}
    kept = {key: value for key, value in objective.items() if f"objective.{key}" not in MOVED}
    # A config whose interpolations are not resolved names the sampler as ${sampler}.
    is_plain = objective.get("sampler") != "${sampler}"
    kept["loss"] = dict(loss) if is_plain else "${loss}"
    return config | {"loss": loss, "objective": kept}


def _with_added(config: Any) -> Any:
    """A stored config with the settings that came later."""
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        return config
    added = _ADDED.get(str(model.get("_target_")), {})
    later = {"init_from": None} if "trainer" in config else {}  # at the top of a config
    return later | config | {"model": model | added | model}


def _map_keys(node: Any, new_key: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {
            new_key(key) if isinstance(key, str) else key: _map_keys(value, new_key)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_map_keys(value, new_key) for value in node]
    return node
