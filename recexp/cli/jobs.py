"""The jobs of a sweep: what each one is, and what an earlier start of the sweep left of it.

``job.json`` in a job's directory holds its overrides and its composed config. A job with the same
overrides, or with an equal config, returns to its directory, whatever its number is now. Any other
job gets a directory of its own, so that a sweep over other values never replaces results.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from recexp.config.overrides import override
from recexp.config.presets import apply_preset
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.logs import printable
from recexp.renamed import with_new_keys, with_new_words
from recexp.runs.identity import differences, material, material_overrides

SHOWN = 3  # changed settings that a message names


@dataclass
class Job:
    """number: in the sweep. wish: the directory it should get if it is free.

    config: {} where the overrides cannot be composed.
    """

    number: int
    wish: Path
    overrides: list[str]
    config: dict[str, Any]


@dataclass
class Earlier:
    """What an earlier start of the sweep left of a job."""

    folder: Path
    config: dict[str, Any]


@dataclass
class KnownJobs:
    """The jobs that earlier starts of a sweep ran, by their overrides and by their configs."""

    by_overrides: dict[tuple[str, ...], Earlier] = field(default_factory=dict)
    by_config: dict[str, Earlier] = field(default_factory=dict)

    @classmethod
    def read(cls, sweep: Path) -> KnownJobs:
        """Those that left a ``job.json`` below the sweep's directory."""
        known = cls()
        for path in sorted(sweep.glob("**/job.json"), key=lambda path: path.stat().st_mtime):
            try:
                job = json.loads(path.read_text())
                words = with_new_words(job["overrides"])
                earlier = Earlier(path.parent, with_new_keys(job["config"]))
                known.by_overrides[material_overrides(words)] = earlier
                known.by_config[_identity(earlier.config)] = earlier
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # written by another program: the job gets a directory of its own
        return known

    def find(self, job: Job) -> Earlier | None:
        """The earlier job with the same overrides, else the one with an equal config."""
        earlier = self.by_overrides.get(material_overrides(job.overrides))
        if earlier is None and job.config:
            earlier = self.by_config.get(_identity(job.config))
        return earlier


@dataclass
class Place:
    """Where a job runs and whether it has to. result: of the same job; None where it has to run.

    news: what to tell about an earlier start.
    """

    folder: Path
    result: dict[str, Any] | None = None
    goes_on: bool = False
    news: str = ""


def compose(
    context: HydraContext, config: DictConfig, number: int, overrides: Sequence[str]
) -> Job:
    """The job with the overrides for its command line and its config. config: of the sweep."""
    sweep = Path(str(config.hydra.sweep.dir))
    try:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        apply_preset(composed)
    except (HydraException, RecexpError):
        # The job's process will print the error; the other jobs run.
        return Job(number, sweep / str(number), list(overrides), {})
    with open_dict(composed):
        composed.hydra.job.num = number
        composed.hydra.job.id = str(number)
    settings = OmegaConf.to_container(composed)
    task_overrides = OmegaConf.to_container(composed.hydra.overrides.task)
    assert isinstance(settings, dict) and isinstance(task_overrides, list)
    settings.pop("hydra", None)
    # As job.json will give it back, for comparing.
    plain = json.loads(json.dumps(settings, default=str))
    wish = sweep / str(composed.hydra.sweep.subdir)
    return Job(number, wish, list(filter_overrides(task_overrides)), plain)


def place(sweep: Path, job: Job, earlier: Earlier | None) -> Place:
    """The job's directory, created where it is new, and what an earlier start left there."""
    if earlier is None:
        return Place(_claim_folder(sweep, job.wish))
    changed = differences(earlier.config, job.config)
    folder = earlier.folder
    result = read_result(folder)
    if result is not None and not changed:
        news = f"job {job.number} has its result already: {folder}"
        return Place(folder, result=result, news=news)
    news = ""
    if result is not None:
        news = (
            f"job {job.number} runs again, for its config has changed "
            f"({', '.join(changed[:SHOWN])}): {folder}"
        )
    has_checkpoint = (folder / "checkpoints" / "last.ckpt").is_file()
    # The job itself decides in the same way (recexp.runs.resume).
    goes_on = has_checkpoint and not changed and job.config.get("resume") != "never"
    return Place(folder, goes_on=goes_on, news=news)


def write_job(folder: Path, job: Job) -> None:
    """Prepare the directory for the job: ``job.json``, and no result of another start."""
    (folder / "result.json").unlink(missing_ok=True)
    with atomic_write(folder / "job.json") as temporary:
        content = {"overrides": job.overrides, "config": job.config}
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def with_group(words: Sequence[str], sweep: Path, job: Job) -> list[str]:
    """The words with the sweep's name as the group of its runs, where the config names none."""
    if job.config.get("group"):
        return list(words)
    return [*words, override("group", sweep.name)]


def read_result(folder: Path) -> dict[str, Any] | None:
    """``result.json`` of a run that was not interrupted; None where there is none."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or "interrupted" in result:
        return None
    return result


def job_return(overrides: list[str], folder: Path, result: dict[str, Any] | None) -> JobReturn:
    """A job's end for a sweeper; its value is validation NDCG@10. result: None where it failed."""
    job = JobReturn(overrides=overrides, working_dir=str(folder))
    if result is None:
        job.status = JobStatus.FAILED
        job.return_value = RuntimeError(f"job failed, see {folder}/log.txt")
    else:
        job.status = JobStatus.COMPLETED
        job.return_value = result["metrics"].get("val/ndcg@10")
    return job


def line(text: str) -> str:
    """A message about the sweep."""
    return printable(f"[sweep] {text}")


def _identity(config: Mapping[str, Any]) -> str:
    """Equal for the configs of equal runs."""
    return json.dumps(material(config), sort_keys=True)


def _claim_folder(sweep: Path, wish: Path) -> Path:
    """Create the directory wished for, or if it exists, the first free number.

    Two sweeps that claim at once get different directories.
    """
    numbered = (sweep / str(n) for n in itertools.count())
    for folder in itertools.chain([wish], numbered):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("unreachable: numbers do not end")
