"""W&B that fails in the middle of a run."""

from __future__ import annotations

import csv
import warnings

import pytest
from pytorch_lightning.loggers import WandbLogger

from tests.support.running import run_here


class FailingRun:
    """The part of a W&B run that Lightning uses; the network fails after ``good`` calls."""

    def __init__(self, good: int) -> None:
        self.good, self.calls = good, []
        self.config = self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) > self.good:
            raise ConnectionError("network unreachable")

    def define_metric(self, *names, **settings) -> None:
        self._call("define_metric")

    def update(self, *settings, **more) -> None:
        self._call("config")

    def log(self, *metrics, **more) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("good", [0, 5, 10**6])
def test_training_goes_on_with_everything_on_disk_and_one_warning(tmp_path, monkeypatch, good):
    run = FailingRun(good)
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: run))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run_here(tmp_path / "run", "model=pop", "logger=wandb_offline", "protocol=full")
    said = [str(w.message) for w in caught if "W&B" in str(w.message)]
    assert result["metrics"]["test/hr@10"] > 0 and (tmp_path / "run" / "result.json").exists()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == result["epochs"]
    if good < 10**6:
        assert len(said) == 1 and "network unreachable" in said[0] and len(run.calls) == good + 1
    else:
        assert not said and run.calls[-1] == "finish"
