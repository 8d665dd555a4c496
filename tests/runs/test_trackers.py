"""What W&B, TensorBoard and MLflow record of a run, read back from what they wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.errors import RecexpError
from recexp.training.loggers import tracker
from tests.support.running import composed, run_here
from tests.support.wandb_records import read_runs

MF = ["model=bpr_mf", "model.n_factors=4", "protocol=full", "trainer.max_epochs=3"]
AXES = {"epoch", "trainer/global_step"}
CURVES = {"train/loss", "train/examples_per_s", "lr"}
FACTS = ("protocol_id", "data", "git", "parameters", "versions")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shop")


@pytest.fixture
def no_key(monkeypatch):
    for name in ("WANDB_API_KEY", "NETRC", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def renamed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("@", "_at_"): value for name, value in metrics.items()}


def expected_curves(folder: Path, result: dict) -> dict[str, dict[int, float]]:
    """Metric -> epoch -> value, from the files of the run."""
    curves: dict[str, dict[int, float]] = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in renamed(row).items():
                if name in CURVES or name.startswith("val/"):
                    curves.setdefault(name, {})[int(row["epoch"])] = float(value)
    for name, value in renamed(result["metrics"]).items():
        if name.startswith("test/"):
            curves[name] = {result["best_epoch"]: value}
    return curves


def dotted(node: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def expected_settings(folder: Path, *words: str) -> dict[str, Any]:
    settings = OmegaConf.to_container(composed(folder, *words), resolve=True)
    assert isinstance(settings, dict)
    del settings["logger"]
    return settings


def as_text(value: Any) -> str:
    return str(value)[:250]  # what MLflow keeps


def approximately(curves: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Lightning logs validation metrics in float32."""
    return {name: pytest.approx(curve, rel=1e-5, abs=1e-7) for name, curve in curves.items()}


def test_wandb_records_every_key(shop, no_key, caplog, capfd):
    words = [*MF, "logger=wandb_offline", "group=my_sweep", "logger.wandb.artifacts=true"]
    folder = shop / "wandb"
    result = run_here(folder, *words)
    (logged,) = read_runs(folder)
    run = logged["run"]
    assert run.display_name.startswith("bpr_mf simulated_shop full seed=0 ")
    assert run.display_name.endswith(" n_factors=4")  # shortened
    assert (run.project, run.run_group, run.job_type) == ("recexp", "my_sweep", "train")
    assert list(run.tags) == ["bpr_mf", "simulated_shop", "full"]

    curves: dict[str, dict[int, float]] = {}
    for row in logged["history"]:
        for name, value in row.items():
            if not name.startswith("_") and name not in AXES:
                assert row["epoch"] not in curves.setdefault(name, {}), name
                curves[name][row["epoch"]] = value
    wanted = expected_curves(folder, result)
    assert curves.keys() == wanted.keys()
    assert curves == approximately(wanted)

    end = {"best_epoch": result["best_epoch"], "stop_reason": result["stop_reason"]}
    summary = {name: v for name, v in logged["summary"].items() if not name.startswith("_")}
    del summary["trainer/global_step"]
    assert summary == renamed(result["metrics"]) | end

    facts = {key: result[key] for key in FACTS}
    config = {name: v for name, v in logged["config"].items() if not name.startswith("_")}
    assert config == expected_settings(folder, *words) | facts
    assert config["names"]["preset"] == "none" and config["data"]["fingerprint"]
    assert config["git"]["commit"] and config["parameters"] > 0

    assert logged["n_system_metrics"]
    assert logged["artifacts"] == {
        "model": str(folder / "checkpoints" / "best.ckpt"),
        "ranks": str(folder / "ranks.parquet"),
    }
    assert logged["exit_code"] == 0
    assert "wandb" not in capfd.readouterr().err


def test_a_run_alone_has_a_group_and_keeps_its_files(shop, no_key):
    run_here(shop / "alone", *MF, "logger=wandb_offline", "trainer.max_epochs=1")
    (logged,) = read_runs(shop / "alone")
    assert (logged["run"].run_group, logged["run"].job_type) == ("simulated_shop full", "train")
    assert not logged["artifacts"]


@pytest.mark.parametrize("name", ["auto", "mlflow", "comet"])
def test_jobs_of_any_launcher_of_hydra_have_the_sweep_as_group(tmp_path, name):
    sweep = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=multirun_outputs/2026-01-31/fig5"]
    cfg = composed(tmp_path / "run", *MF, f"logger={name}", *sweep)
    (node,) = cfg.logger.values()
    assert node.group == "fig5"
    cfg.group = "mine"
    assert node.group == "mine"


def test_several_trackers_may_be_chosen(tmp_path):
    words = [*MF, "logger=[wandb_offline,tensorboard,mlflow]", "logger.mlflow.project=mine"]
    cfg = composed(tmp_path / "run", *words)
    assert list(cfg.logger) == ["wandb", "tensorboard", "mlflow"]
    assert cfg.logger.mlflow.project == "mine"
    check_config(cfg)


def test_several_trackers_go_with_a_preset(tmp_path):
    cfg = composed(tmp_path / "run", "model=ite", "preset=tuned", "logger=[csv,tensorboard]")
    assert list(cfg.logger) == ["tensorboard"] and cfg.optimizer.lr == 0.003


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "comet"])
def test_a_missing_package_is_one_sentence_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tracker, "find_spec", lambda package: None)
    with pytest.raises(RecexpError, match=rf"logger={name} needs .*pip install {name}"):
        run_here(tmp_path / "run", *MF, f"logger={name}")
    assert not (tmp_path / "cache").exists()


def test_every_logger_that_needs_a_package_is_known():
    chosen = {path.stem for path in (CONF / "logger").glob("*.yaml")}
    own = chosen - {"auto", "csv", "none", "wandb", "wandb_offline"}
    assert {f"{name}_logger" for name in own} == set(tracker.PACKAGES)


class Failing:
    """A logger of Lightning that fails in every call."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


def test_a_failing_logger_of_any_kind_is_one_warning(tmp_path, monkeypatch, caplog):
    from pytorch_lightning.loggers import CSVLogger

    for name in ("log_metrics", "log_hyperparams", "finalize", "save"):
        monkeypatch.setattr(CSVLogger, name, Failing.__getattr__)
    target = "pytorch_lightning.loggers.CSVLogger"
    words = [f"+logger.own._target_={target}", f"+logger.own.save_dir={tmp_path}/own"]
    result = run_here(tmp_path / "run", *MF, *words)
    assert result["metrics"]["test/hr@10"] > 0
    said = [r.getMessage() for r in caplog.records if r.name.startswith("recexp.training.loggers")]
    assert len(said) == 1 and "logger.own failed" in said[0] and "the run goes on" in said[0]


def test_tensorboard_has_the_curves_settings_and_summary(shop, no_key):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra dev)")
    folder = shop / "tensorboard"
    result = run_here(folder, *MF, "logger=tensorboard")
    (events,) = (folder / "tensorboard").glob("bpr_mf_simulated_shop_full_seed=0*/events*")
    curves, settings = read_tensorboard(events)
    summary = {name: curve for name, curve in curves.items() if name.startswith("summary/")}
    wanted = expected_curves(folder, result)
    assert {n: c for n, c in curves.items() if n not in summary} == approximately(wanted)
    end = renamed(result["metrics"]) | {"best_epoch": result["best_epoch"]}
    best = result["best_epoch"]
    ends = {f"summary/{name}": {best: value} for name, value in end.items()}
    assert summary == approximately(ends)
    assert settings["model.n_factors"] == 4 and settings["stop_reason"] == result["stop_reason"]
    facts = {key: result[key] for key in FACTS}
    everything = expected_settings(folder, *MF, "logger=tensorboard") | facts
    assert settings.keys() == {"stop_reason", *dict(dotted(everything))}


def read_tensorboard(path: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Curves of an event file, and the settings of its HPARAMS."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    curves: dict[str, dict[int, float]] = {}
    settings: dict[str, Any] = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for name, setting in content.session_start_info.hparams.items():
                    settings[name] = getattr(setting, str(setting.WhichOneof("kind")))
            else:
                curve = curves.setdefault(value.tag, {})
                assert event.step not in curve, value.tag
                curve[event.step] = value.tensor.float_val[0]
    return curves, settings


@pytest.mark.slow
def test_mlflow_has_the_curves_settings_summary_and_files(shop, no_key, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra tracking)")
    monkeypatch.chdir(shop)
    folder = shop / "mlflow"
    words = [*MF, "logger=mlflow", "group=g", "logger.mlflow.artifacts=true"]
    result = run_here(folder, *words)
    last = folder / "checkpoints" / "last.ckpt"
    client = mlflow.MlflowClient(f"sqlite:///{shop}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("recexp").experiment_id])

    best = result["best_epoch"]
    end = renamed(result["metrics"]) | {"best_epoch": best}
    curves = {
        name: {
            point.step: point.value for point in client.get_metric_history(run.info.run_id, name)
        }
        for name in run.data.metrics
    }
    summary = {name for name in curves if name.startswith("summary/")}
    wanted = expected_curves(folder, result)
    assert {n: c for n, c in curves.items() if n not in summary} == approximately(wanted)
    last_values = {name: run.data.metrics[name] for name in summary}
    assert last_values == pytest.approx({f"summary/{name}": value for name, value in end.items()})
    facts = {key: result[key] for key in FACTS}
    settings = dict(dotted(expected_settings(folder, *words) | facts))
    assert run.data.params == {name: as_text(value) for name, value in settings.items()}
    assert run.data.tags["stop_reason"] == result["stop_reason"]
    assert run.data.tags["group"] == "g" and run.data.tags["tags"] == "bpr_mf, simulated_shop, full"
    assert run.info.run_name.startswith("bpr_mf simulated_shop full seed=0")
    assert run.info.status == "FINISHED"
    kinds = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kinds == {"model", "ranks"}

    more = [*words, "trainer.max_epochs=4", f"ckpt_path={last}"]
    run_here(shop / "more", *more)
    (resumed,) = client.search_runs([run.info.experiment_id])
    assert resumed.info.run_id == run.info.run_id
    history = client.get_metric_history(run.info.run_id, "val/ndcg_at_10")
    assert [point.step for point in history] == [0, 1, 2, 3]
    assert not [r for r in caplog.records if r.name.startswith("recexp") and r.levelno >= 30]


@pytest.mark.slow
def test_a_mlflow_server_that_cannot_be_reached_is_one_warning(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow", reason="mlflow is not installed (extra tracking)")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words = ["logger=mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9"]
    result = run_here(tmp_path / "run", *MF, *words)
    assert result["metrics"]["test/hr@10"] > 0
    said = [r.getMessage() for r in caplog.records if r.name.startswith("recexp.training.loggers")]
    assert len(said) == 1 and "MLflow records nothing of this run" in said[0]


@pytest.mark.slow
def test_comet_writes_an_archive_where_no_key_is_configured(tmp_path, monkeypatch, caplog):
    pytest.importorskip("comet_ml", reason="comet-ml is not installed (extra tracking)")
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run_here(tmp_path / "run", *MF, "logger=comet", "logger.comet.artifacts=true")
    (archive,) = (tmp_path / "run" / "comet").glob("*.zip")
    curves, others, settings = read_comet(archive)
    wanted = expected_curves(tmp_path / "run", result)
    ours = {n: c for n, c in curves.items() if n.split("/")[0] in ("train", "val", "test", "lr")}
    assert ours == approximately(wanted)
    end = renamed(result["metrics"]) | {"best_epoch": result["best_epoch"]}
    summary = {name: list(c.values())[-1] for name, c in curves.items() if "summary/" in name}
    assert summary == pytest.approx({f"summary/{name}": value for name, value in end.items()})
    assert others["stop_reason"] == result["stop_reason"]
    assert others["group"] == "simulated_shop full"
    assert settings["model.n_factors"] == 4 and settings["protocol_id"] == result["protocol_id"]
    assert not [r for r in caplog.records if r.name.startswith("recexp") and r.levelno >= 30]


def read_comet(path: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any], dict[str, Any]]:
    """Curves against epochs, other values and settings of an offline archive."""
    import json
    import zipfile

    curves: dict[str, dict[int, float]] = {}
    others: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        messages = map(json.loads, archive.read("messages.json").decode().splitlines())
    for message in messages:
        payload = message["payload"]
        if message["type"] == "metric_msg":
            metric = payload["metric"]
            curves.setdefault(metric["metricName"], {})[metric["epoch"]] = metric["metricValue"]
        elif message["type"] == "log_other":
            others[payload["key"]] = payload["value"]
        elif message["type"] in ("parameter_msg", "parameters_msg"):
            several = payload.get("params") or [payload["param"]]
            settings |= {one["paramName"]: one["paramValue"] for one in several}
    return curves, others, settings
