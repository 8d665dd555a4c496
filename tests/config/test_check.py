"""Every choice of every group composes, and a wrong config is one clear error before any work
starts.
"""

import re

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf, open_dict

from recexp.config import CONF
from recexp.config.build import build
from recexp.config.check import check_config
from recexp.config.presets import compose_config
from recexp.errors import RecexpError
from recexp.testing import toy

PAPERS = ("experiment/ite", "experiment/multi_feedback", "experiment/bert4rec", "experiment/nova")


def _choices():
    """(group, choice): a choice may lie in a subfolder of its group."""
    for path in sorted(CONF.rglob("*.yaml")):
        group, *rest = path.relative_to(CONF).with_suffix("").parts
        # A preset or a search is for certain models; tests/config/test_experiments.py composes the
        # papers' experiments.
        is_papers = f"{group}/{rest[0]}" in PAPERS if rest else False
        if rest and group not in ("hydra", "preset", "search") and not is_papers:
            yield group, "/".join(rest)


CHOICES = list(_choices())
OBJECTIVE = re.compile(r"override /objective(?:@\S+)?: (\w+)")


def model_for(objective):
    """A model that names this objective."""
    texts = {path.stem: path.read_text() for path in sorted((CONF / "model").glob("*.yaml"))}
    return next(name for name, text in texts.items() if objective in OBJECTIVE.findall(text))


def composed(*overrides):
    cfg = compose_config(overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


MODEL_FOR_LOSS = {"mse": "mtmf", "none": "pop"}  # the others fit sequences


@pytest.fixture(scope="module")
def default():
    return composed("model=sasrec", "dataset=table")


@pytest.mark.parametrize(
    ("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES]
)
def test_every_choice_composes_and_passes_the_check(group, name):
    model = {"sampler": ["model=sasrec_softmax"]}  # which needs no sampler
    if group == "loss":
        model[group] = [f"model={MODEL_FOR_LOSS.get(name, 'sasrec')}"]
    if group == "objective":
        model[group] = [f"model={model_for(name)}"]
    check_config(composed(*model.get(group, []), f"{group}={name}"))


def test_yamls_are_short():
    paths = list(CONF.rglob("*.yaml"))
    assert CONF / "config.yaml" in paths
    for path in paths:
        if path != CONF / "config.yaml" and path.parent.name != "preset":
            assert path.read_text().count("\n") <= 40, path


def test_models_open_with_their_run_line():
    paths = list((CONF / "model").glob("*.yaml"))
    assert CONF / "model" / "ite.yaml" in paths
    for path in paths:
        assert re.search(rf"^# python -m recexp model={path.stem}( |$)", path.read_text(), re.M), (
            path
        )


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["+model.num_facters=3"], r"Unknown key model\.num_facters: SASRec knows .*n_factors"),
        (["+objective.n_negative=3"], r"Unknown key objective\.n_negative"),
        (["+objective.loss_name=ce"], r"Unknown key objective\.loss_name: .* It is loss now"),
        (["+dataset.behavours=[x]"], r"Unknown key dataset\.behavours"),
        (["+dataset.source.seperator=x"], r"Unknown key dataset\.source\.seperator"),
        (["+protocol.split.purged=pair"], r"Unknown key protocol\.split\.purged"),
        (["+optimizer.learning_rate=1"], r"Unknown key optimizer\.learning_rate"),
        (["+trainer.epochs=1"], r"Unknown key trainer\.epochs"),
        (["+callbacks.checkpoint.patience=1"], r"Unknown key callbacks\.checkpoint\.patience"),
        (["+model._partail_=true"], r"Unknown key model\._partail_"),
        (["+seeed=1"], r"Unknown key \['seeed'\]"),
        (["selection=best"], r"selection='best': must be one of val, test_peek, refit"),
    ],
)
def test_unknown_keys_are_refused_by_name(overrides, text):
    """As a YAML would bring them in, where Hydra merges them silently."""
    with pytest.raises(RecexpError, match=text):
        check_config(composed("model=sasrec", "dataset=table", *overrides))


@pytest.mark.parametrize("override", ["model.num_facters=3", "dataset.raw_dirr=x", "seeed=1"])
def test_unknown_keys_on_the_command_line_are_refused_by_name(override):
    with pytest.raises(ConfigCompositionException, match="Could not override") as caught:
        composed("model=sasrec", "dataset=table", override)
    assert override.split("=")[0].rsplit(".", 1)[-1] in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "recexp.cli.launcher.subprocess.Popen",  # what one of our modules imports is not ours
        "recexp.config.check.inspect.os.system",
        "pytorch_lightning.os.system",
        "torch.optim.torch.load",
    ],
)
@pytest.mark.parametrize("place", ["model", "dataset.source", "callbacks.checkpoint"])
def test_foreign_targets_are_refused(default, target, place):
    cfg = default.copy()
    OmegaConf.update(cfg, f"{place}._target_", target)
    with pytest.raises(
        RecexpError,
        match=rf"{re.escape(place)}\._target_={re.escape(target)} (is not allowed|cannot be found)",
    ):
        check_config(cfg)


def test_targets_in_lists_are_checked_too(default):
    cfg = default.copy()
    OmegaConf.update(cfg, "dataset.filters", [{"user_min": 5}, {"_target_": "os.system"}])
    with pytest.raises(
        RecexpError, match=r"dataset\.filters\[1\]\._target_=os\.system is not allowed"
    ):
        check_config(cfg)


def test_a_target_that_does_not_exist_is_named(default):
    cfg = default.copy()
    cfg.model._target_ = "recexp.models.sasrec.SASRek"
    with pytest.raises(
        RecexpError, match=r"model\._target_=recexp\.models\.sasrec\.SASRek cannot be found"
    ):
        check_config(cfg)


def test_a_missing_group_is_named(default):
    cfg = default.copy()
    cfg.model = None
    with pytest.raises(RecexpError, match="no model: choose one with model="):
        check_config(cfg)


@pytest.mark.parametrize(
    ("model", "objective", "text"),
    [
        (
            "sasrec",
            "pointwise",
            r"objective=Pointwise needs a model that implements MultiBehavior .*, "
            r"which SASRec does not",
        ),
        (
            "bpr_mf",
            "cloze",
            r"objective=Cloze needs a model that implements Encoder .*, which MF does not",
        ),
        (
            "pop",
            "next_item",
            r"objective=NextItem needs a model that implements Encoder .*, which Pop does not",
        ),
        (
            "bert_ite",
            "none",
            r"objective=FitPass needs a model that implements ClosedForm .*, "
            r"which BertITE does not",
        ),
        (
            "caser",
            "session_parallel",
            r"objective=SessionParallel needs a model that implements SessionState .*, "
            r"which Caser does not",
        ),
        ("pop", "pairwise", r"objective=Pairwise needs a model that learns by gradients.*Pop"),
    ],
)
def test_a_model_that_cannot_serve_the_objective_is_one_clear_error(model, objective, text):
    """Before any data are prepared."""
    with pytest.raises(RecexpError, match=text):
        check_config(composed(f"model={model}", f"objective={objective}"))


def test_settings_left_over_from_the_models_own_objective_say_how_to_drop_them():
    with pytest.raises(
        RecexpError,
        match=r"Unknown key objective\.pairs: Pointwise knows .*drop it: ~objective\.pairs",
    ):
        check_config(composed("model=mfpr", "objective=pointwise"))
    check_config(composed("model=mfpr", "objective=pointwise", "~objective.pairs"))


@pytest.mark.parametrize("model", ["bert4rec", "sasrec", "bert_ite", "nova_bert"])
def test_heads_that_do_not_divide_the_width_are_refused(model):
    cfg = composed(f"model={model}", "model.n_factors=64", "model.n_heads=7")
    with pytest.raises(
        RecexpError,
        match=r"model\.n_heads=7: does not divide model\.n_factors=64; "
        r"choose one of 1, 2, 4, 8, 16, 32, 64\.",
    ):
        check_config(cfg)
    with pytest.raises(RecexpError, match=r"n_heads=7.*n_factors=64|n_factors=64.*n_heads=7"):
        build(cfg.model, schema=toy.schema())


def test_validation_that_never_comes_is_refused():
    with pytest.raises(
        RecexpError, match=r"check_val_every_n_epoch=5 never comes within trainer\.max_epochs=4"
    ):
        check_config(composed("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=5"))
    check_config(composed("trainer.max_epochs=5", "trainer.check_val_every_n_epoch=5"))
