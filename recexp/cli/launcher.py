"""Hydra launcher: every job of a sweep is a fresh process.

One process per job because Lightning's DDP re-runs the command line for its other ranks: inside a sweep that would be the whole sweep. A job that
fails does not stop the others; the sweep names the failed ones at its end and the exit code says so.

A sweep started once more (same ``hydra.sweep.dir``) finishes only what is missing. ``job.json`` in a job's directory says what it was: its overrides
and its composed config. A job with the same overrides returns to its directory. Where the config, which may come from a YAML that has been edited
meanwhile, is the same too, a job with a result is not run again, and one that was killed or interrupted goes on from its last checkpoint. A job with
other overrides gets a directory of its own, so that a sweep over other values never replaces results.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from recexp.config.presets import apply_preset
from recexp.data.cache import write_json
from recexp.errors import RecexpError


@dataclass
class _Running:
    i: int
    folder: Path
    overrides: list[str]
    process: subprocess.Popen


class ProcessLauncher(Launcher):
    """``hydra/launcher=processes``. jobs: how many run at once."""

    __module__ = "hydra_plugins.recexp"  # Hydra instantiates plugins of this namespace only; ``cli`` registers the class

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``launch``."""
        self.config, self.context = config, hydra_context

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; returns one JobReturn each, its value the result's validation NDCG@10 (what sweepers maximise)."""
        sweep = Path(str(self.config.hydra.sweep.dir))
        waiting = [
            (i, *self._job(sweep, initial_job_idx + i, list(o)))
            for i, o in enumerate(job_overrides)
        ]
        total, returns, why = len(waiting), {}, {}
        with _ending_together(sweep) as running:
            self._run(sweep, waiting, initial_job_idx, running, returns, why)
        for i, reason in sorted(why.items()):
            _say(f"FAILED job {i + initial_job_idx} ({' '.join(returns[i].overrides)}): {reason}")
        if why:
            _say(
                f"{len(why)} of {total} jobs failed; the others' results are under {sweep}. To run only these again: hydra.sweep.dir={sweep}"
            )
            sys.exit(1)
        return [returns[i] for i in sorted(returns)]

    def _run(
        self,
        sweep: Path,
        waiting: list,
        first: int,
        running: list[_Running],
        returns: dict[int, JobReturn],
        why: dict[int, str],
    ) -> None:
        """Run the waiting jobs to their ends. returns: what each returned; why: the reasons of those that failed."""
        known, total, started, ran = _known(sweep), len(waiting), time.time(), 0
        while waiting or running:
            while waiting and len(running) < self.jobs:
                i, wish, overrides, config = waiting.pop(0)
                folder, before = known.get(_identity(overrides), (None, None))
                changed = before is not None and _changes(before, config)
                if before is not None and (skipped := _result(folder)) is not None:
                    if not changed:
                        returns[i] = _job_return(overrides, folder, skipped)
                        _say(f"job {i + first} has its result already: {folder}")
                        continue
                    _say(
                        f"job {i + first} runs again, for its config has changed ({', '.join(changed[:3])}): {folder}"
                    )
                last = folder and folder / "checkpoints" / "last.ckpt"
                resume = (
                    [f"ckpt_path={last}"]
                    if before is not None and not changed and last.is_file()
                    else []
                )
                folder = folder or _claim(sweep, wish)
                (folder / "result.json").unlink(missing_ok=True)
                write_json(folder / "job.json", {"overrides": overrides, "config": config})
                group = [] if config.get("group") else [f"group={sweep.name}"]
                command = [
                    sys.executable,
                    "-m",
                    "recexp",
                    *overrides,
                    *resume,
                    f"hydra.run.dir={folder}",
                    *group,
                    "hydra.mode=RUN",
                ]
                _say(
                    f"job {i + first} {'goes on' if resume else 'started'}: {' '.join(overrides) or '(defaults)'}"
                )
                with (folder / "log.txt").open("w") as log:
                    running.append(
                        _Running(
                            i,
                            folder,
                            overrides,
                            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT),
                        )
                    )
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                ran += 1
                code = job.process.returncode
                returns[job.i] = _job_return(
                    job.overrides, job.folder, _result(job.folder) if code == 0 else None
                )
                if returns[job.i].status is JobStatus.FAILED:
                    why[job.i] = _reason(code, job.folder / "log.txt")
                left = (time.time() - started) / ran * (len(waiting) + len(running))
                _say(
                    f"{len(returns)} of {total} done, {len(running)} running, {len(why)} failed, about {left / 60:.0f} min left"
                )
            time.sleep(0.2)

    def _job(
        self, sweep: Path, number: int, overrides: list[str]
    ) -> tuple[Path, list[str], dict[str, Any]]:
        """The directory the job would like, what to put on its command line, and its config."""
        try:
            config = self.context.config_loader.load_sweep_config(self.config, overrides)
            apply_preset(config)
        except (HydraException, RecexpError):  # its process reports the error; the other jobs run
            return sweep / str(number), overrides, {}
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        settings = {
            key: value for key, value in OmegaConf.to_container(config).items() if key != "hydra"
        }
        task = list(filter_overrides(OmegaConf.to_container(config.hydra.overrides.task)))
        return (
            sweep / str(config.hydra.sweep.subdir),
            task,
            json.loads(json.dumps(settings, default=str)),
        )


# What may change between two starts of a sweep without any number becoming another.
IMMATERIAL = {"threads", "cache_dir", "logger", "tags", "group", "run_dir", "names"}


def _identity(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        o for o in overrides if re.split(r"[.=@]", o.lstrip("+~"), maxsplit=1)[0] not in IMMATERIAL
    )


def _known(sweep: Path) -> dict[tuple[str, ...], tuple[Path, dict[str, Any]]]:
    """Overrides of the jobs that ran in this sweep before -> directory and config."""
    known = {}
    for path in sorted(sweep.glob("**/job.json"), key=lambda p: p.stat().st_mtime):
        try:
            job = json.loads(path.read_text())
            known[_identity(job["overrides"])] = (path.parent, job["config"])
        except (ValueError, KeyError, TypeError):
            continue  # not ours: the job gets a directory of its own
    return known


def _claim(sweep: Path, wish: Path) -> Path:
    """The directory wished for, or where another job has it the first free number. Safe when two sweeps claim at once."""
    for folder in itertools.chain([wish], (sweep / str(n) for n in itertools.count())):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("unreachable: numbers do not end")


def _changes(before: Any, now: Any, path: str = "") -> list[str]:
    """The dotted keys in which two configs differ, without those that change no number."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [k for k in dict.fromkeys([*before, *now]) if path or k not in IMMATERIAL]
        return [
            change
            for k in keys
            for change in _changes(before.get(k), now.get(k), f"{path}.{k}" if path else str(k))
        ]
    return [] if before == now else [path]


def _result(folder: Path) -> dict[str, Any] | None:
    """The result of a run that came to its end."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return None if "interrupted" in result else result


def _job_return(overrides: list[str], folder: Path, result: dict | None) -> JobReturn:
    done = JobReturn(
        overrides=overrides,
        working_dir=str(folder),
        status=JobStatus.COMPLETED if result else JobStatus.FAILED,
    )
    done.return_value = (
        result["metrics"].get("val/ndcg@10")
        if result
        else RuntimeError(f"job failed, see {folder}/log.txt")
    )
    return done


def _reason(code: int, log: Path) -> str:
    """Why a job failed: the signal that killed it, or what it said last."""
    if code < 0:
        memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "Could not"))]
    return (errors or lines or ["no output"])[-1]


@contextmanager
def _ending_together(sweep: Path) -> Iterator[list[_Running]]:
    """The list of jobs that run, which a sweep ended by a signal ends too: each leaves a checkpoint from which it goes on."""

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        raise _Sigterm

    running: list[_Running] = []
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield running
    except (KeyboardInterrupt, _Sigterm) as stop:
        signum = signal.SIGTERM if isinstance(stop, _Sigterm) else signal.SIGINT
        _say(
            f"{signum.name} ends the sweep and its {len(running)} running jobs. To go on: hydra.sweep.dir={sweep}"
        )
        sys.exit(128 + signum)
    finally:
        signal.signal(signal.SIGTERM, before)
        for job in running:
            job.process.terminate()
        for job in running:
            try:
                job.process.wait(60)
            except subprocess.TimeoutExpired:
                job.process.kill()


class _Sigterm(BaseException):
    """SIGTERM came."""


def _say(text: str) -> None:
    print(f"[sweep] {text}", file=sys.stderr, flush=True)
