"""Hydra launcher: every job of a sweep is a fresh process.

One process per job because Lightning's DDP re-runs the command line for its other ranks: inside a sweep that would be the whole sweep. A job that
fails does not stop the others; the sweep names the failed ones at its end and the exit code says so. A job whose directory already holds a result
for the same overrides is not run again, so starting an interrupted sweep once more (same ``hydra.sweep.dir``) finishes only what is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class ProcessLauncher(Launcher):
    """``hydra/launcher=processes``. jobs: how many run at once."""

    __module__ = "hydra_plugins.recexp"  # Hydra instantiates plugins of this namespace only; ``cli`` registers the class

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before ``launch``."""
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns one JobReturn each, its value the result's validation NDCG@10 (what sweepers maximise)."""
        sweep = Path(str(self.config.hydra.sweep.dir))
        waiting = [(i, *self._job(sweep, initial_job_idx + i, list(o))) for i, o in enumerate(job_overrides)]
        total, started, running, returns = len(waiting), time.time(), [], {}
        ran = 0
        while waiting or running:
            while waiting and len(running) < self.jobs:
                i, folder, overrides = waiting.pop(0)
                if (skipped := _finished(folder, overrides)) is not None:
                    returns[i] = _job_return(overrides, folder, skipped)
                    _say(f"job {i + initial_job_idx} has its result already: {folder}")
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "overrides.json").write_text(json.dumps(overrides))
                log = (folder / "log.txt").open("w")
                command = [sys.executable, "-m", "recexp", *overrides, f"hydra.run.dir={folder}", f"group={sweep.name}", "hydra.mode=RUN"]
                _say(f"job {i + initial_job_idx} started: {' '.join(overrides) or '(defaults)'}")
                running.append((i, folder, overrides, log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)))
            for entry in list(running):
                i, folder, overrides, log, process = entry
                if process.poll() is None:
                    continue
                running.remove(entry)
                log.close()
                ran += 1
                result = _finished(folder, overrides) if process.returncode == 0 else None
                returns[i] = _job_return(overrides, folder, result)
                failed = sum(r.status is JobStatus.FAILED for r in returns.values())
                left = (time.time() - started) / ran * (len(waiting) + len(running))
                _say(f"{len(returns)} of {total} done, {len(running)} running, {failed} failed, about {left / 60:.0f} min left")
            time.sleep(0.2)
        failed = [(i, r) for i, r in sorted(returns.items()) if r.status is JobStatus.FAILED]
        for i, r in failed:
            _say(f"FAILED job {i + initial_job_idx} ({' '.join(r.overrides)}): {_last_line(Path(r.working_dir) / 'log.txt')}")
        if failed:
            _say(f"{len(failed)} of {total} jobs failed; the others' results are under {sweep}. To run only these again: hydra.sweep.dir={sweep}")
            sys.exit(1)
        return [returns[i] for i in sorted(returns)]

    def _job(self, sweep: Path, number: int, overrides: list[str]) -> tuple[Path, list[str]]:
        """The job's directory and what to put on its command line."""
        try:
            config = self.context.config_loader.load_sweep_config(self.config, overrides)
        except HydraException:  # its process will say what is wrong; the other jobs run
            return sweep / str(number), overrides
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        return sweep / str(config.hydra.sweep.subdir), list(filter_overrides(OmegaConf.to_container(config.hydra.overrides.task)))


def _finished(folder: Path, overrides: list[str]) -> dict | None:
    """The result of a job that has one for exactly these overrides."""
    try:
        same = json.loads((folder / "overrides.json").read_text()) == overrides
        return json.loads((folder / "result.json").read_text()) if same else None
    except (OSError, ValueError):
        return None


def _job_return(overrides: list[str], folder: Path, result: dict | None) -> JobReturn:
    done = JobReturn(overrides=overrides, working_dir=str(folder), status=JobStatus.COMPLETED if result else JobStatus.FAILED)
    done.return_value = result["metrics"].get("val/ndcg@10") if result else RuntimeError(f"job failed, see {folder}/log.txt")
    return done


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    errors = [line for line in lines if line.startswith(("error:", "Could not"))]
    return (errors or lines or ["no output"])[-1]


def _say(text: str) -> None:
    print(f"[sweep] {text}", file=sys.stderr, flush=True)
