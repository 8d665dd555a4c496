"""A wrong number or word in a YAML file is one error that names the key, before any work starts.

Every value that is accepted gives a run that trains.
"""

from __future__ import annotations

import json

import pytest
from omegaconf import DictConfig, OmegaConf

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.errors import RecexpError
from tests.config.test_check import composed
from tests.support.running import command

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
WRONG = (0, -1, 1.5, "abc", 10**12, float("nan"), True)
OTHERS = (
    "objective",
    "optimizer",
    "trainer",
    "protocol",
    "loss",
    "sampler",
    "scheduler",
    "seed",
    "batch_size",
    "eval_batch_size",
    "threads",
    "callbacks",
)
DATA = ("dataset=table", "dataset.behaviors=[view,buy]", "dataset.explicit=[buy]")


def numbers(node, path: str):
    """Dotted keys of the numbers below a node, and of the null values, which may become numbers."""
    if isinstance(node, DictConfig):
        for key in node:
            if key != "_target_" and not OmegaConf.is_interpolation(node, key):
                yield from numbers(node[key], f"{path}.{key}")
    elif node is None or (isinstance(node, int | float) and not isinstance(node, bool)):
        yield path


def accepted(cfg, key: str) -> list:
    """The values of WRONG that the check accepts; checks that the errors of the others name the
    key.
    """
    passed, before = [], OmegaConf.select(cfg, key)
    for value in WRONG:
        OmegaConf.update(cfg, key, value)
        try:
            check_config(cfg)
            passed.append(value)
        except RecexpError as error:
            assert key.rsplit(".", 1)[-1] in str(error), f"{key}={value}: {error}"
    OmegaConf.update(cfg, key, before)
    return passed


def keys_of(model: str):
    cfg = composed(f"model={model}", *DATA)
    return cfg, list(numbers(cfg.model, "model"))


# Weights and scales.
WITHOUT_UPPER_END = ("alpha", "regularization", "damping", "popularity", "share", "weight", "scale")
WITHOUT_UPPER_END += ("l1", "l2", "shrink", "k1", "tolerance", "std")


# Variants of a model have the numbers of its constructor: one of each six is enough for CI.
@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=[pytest.mark.slow] if n % 6 else []) for n, m in enumerate(MODELS)],
)
def test_numbers_of_a_model_are_refused_by_name_or_make_sense(model):
    cfg, keys = keys_of(model)
    for key in keys:
        passed = accepted(cfg, key)
        assert -1 not in passed and "abc" not in passed, (key, passed)
        if not key.endswith(WITHOUT_UPPER_END):
            assert set(passed) <= {0}, (key, passed)


@pytest.mark.parametrize(
    "model",
    # The others have the same trainer and optimizer; their objectives are walked by
    # test_hostile_settings.py too.
    ["bert_ite"]
    + [
        pytest.param(m, marks=pytest.mark.slow)
        for m in ("gru4rec_plus", "bpr_mf", "sasrec", "bert4rec")
    ],
)
def test_numbers_of_everything_else_are_refused_by_name_or_make_sense(model):
    cfg = composed(f"model={model}", "scheduler=linear_warmup", *DATA)
    for key in (key for name in OTHERS for key in numbers(cfg[name], name)):
        passed = accepted(cfg, key)
        # What devices may be depends on the machine; -1 means "no limit" or "all" for the others.
        free = {
            "trainer.devices": WRONG,
            "trainer.num_sanity_val_steps": (-1,),
            "trainer.max_steps": (-1,),
        }.get(key, ())
        assert -1 not in passed or -1 in free, (key, passed)
        assert "abc" not in passed or "abc" in free, (key, passed)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["model=sasrec", "model.n_heads=3"],
            r"model\.n_heads=3: does not divide model\.n_factors=64; choose one of 1, 2, 4, 8",
        ),
        (["model=bpr_mf", "objective.n_negatives=0"], r"objective\.n_negatives must be at least 1"),
        (["model=sasrec_softmax", "loss=bce"], r"draws negatives, but sampler=none"),
        (
            ["model=sasrec", "loss=mse"],
            r"objective=NextItem cannot train with loss=MSE; choose one of CE, BCE, GBCE",
        ),
        (
            ["model=bpr_mf", "loss=ce"],
            r"objective=Pairwise cannot train with loss=CE; choose one of",
        ),
        (
            ["model=mf", "loss=bpr"],
            r"objective=Pointwise cannot train with loss=BPR; choose one of",
        ),
        (["model=gru4rec", "loss=gbce"], r"loss=GBCE counts its negatives"),
        (
            ["model=bert_ite", "loss=none"],
            r"objective\.loss=null: must be a LabelLoss with a _target",
        ),
        (
            ["model=sasrec", "loss=gbce", "loss.t=2"],
            r"loss\.t=2: must be a number at least 0 and at",
        ),
        (["model=gru4rec_plus", "loss.bpreg=-1"], r"loss\.bpreg=-1: must be a number at least 0"),
        (
            ["model=bpr_mf", "loss=sampled_softmax", "loss.log_q=true"],
            r"loss=SampledSoftmax with loss\.log_q=true corrects for negatives that are common to",
        ),
        (["model=nova_bert", "model.fusion=sum"], r"model\.fusion='sum': must be one of add"),
        (["model=ite", "model.n_factors=7"], r"model: n_factors=7"),
        (["protocol=full", "protocol.ks=[]"], r"protocol\.ks=\[\] must contain 10"),
        (
            ["protocol=full", "protocol.ks=[0,10]"],
            r"protocol\.ks=\[0, 10\]: must be a list, each entry a whole number at least 1",
        ),
        (["protocol=full", "protocol.ks=[5]"], r"protocol\.ks=\[5\] must contain 10"),
        (["dataset.explicit=[]"], r"tests on explicit feedback, but dataset\.explicit=\[\]"),
        (["model=pop", "model.behaviors=[like]"], r"model: behaviors=\['like'\]"),
        (
            ["seed=4294967296"],
            r"seed=4294967296: must be a whole number at least 0 and at most 4,294,967,295",
        ),
        (["optimizer.lr=null"], r"optimizer\.lr=null: must be a number at least 0"),
        (["trainer.max_epochs=0"], r"trainer\.max_epochs=0: must be a whole number at least 1"),
        (["scheduler=3"], r"scheduler"),
        (["+objective.sampler=3"], r"objective\.sampler=3: must be a NegativeSampler"),
        (["~callbacks.checkpoint"], r"callbacks\.checkpoint is missing"),
        (
            ["logger.wandb.mode=on"],
            r"logger\.wandb\.mode='on': must be one of auto, online, offline",
        ),
    ],
    ids=" ".join,
)
def test_what_is_refused_says_what_was_expected(overrides, text):
    changes = [o for o in overrides if o.startswith(("scheduler=3", "+objective.sampler"))]
    model = [] if any(o.startswith("model=") for o in overrides) else ["model=bert_ite"]
    cfg = composed(*model, *DATA, *(o for o in overrides if o not in changes))
    for change in changes:
        key, value = change.lstrip("+").split("=")
        OmegaConf.update(cfg, key, int(value))
    with pytest.raises(RecexpError, match=text):
        check_config(cfg)


REFUSED = [
    ("model=sasrec", "trainer.accelerator=abacus"),
    ("model=sasrec", "trainer.devices=0"),
    ("model=sasrec", "trainer.precision=3"),
    ("model=sasrec", "model=nosuch"),
    ("model=sasrec", "model.num_facters=3"),
    ("model=sasrec", "+trainer.limit_val_batches=1.5"),
    ("model=sasrec", "seed='${nosuch}'"),
    ("-m", "model=sasrec", "model.num_facters=1,2"),
    ("-m", "model=nosuch,sasrec", "model.n_heads=3"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_the_command_line_ends_without_a_traceback_and_before_preparation(tmp_path, words):
    where = (
        f"hydra.sweep.dir={tmp_path}/sweep" if "-m" in words else f"hydra.run.dir={tmp_path}/run"
    )
    done = command(tmp_path / "x", *words, where)
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_what_is_accepted_trains_or_is_refused_in_one_line(tmp_path, model):
    cfg, keys = keys_of(model)
    taken = [(key, value) for key in keys for value in accepted(cfg, key)]
    for i, (key, value) in enumerate(taken):
        run = tmp_path / f"{i}"
        done = command(
            run,
            f"model={model}",
            f"{key}={json.dumps(value)}",
            "trainer.max_epochs=1",
            f"hydra.run.dir={run}",
        )
        assert "Traceback" not in done.stderr and (
            done.returncode == 0 or "error: " in done.stderr
        ), f"{key}={value}: {done.stderr[-2000:]}"
