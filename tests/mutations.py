"""``make mutations``: remove one guard at a time, in a copy of the repository, and check that its
tests fail.

Prints the table of docs/faults.md. ``python -m tests.mutations WORD`` tries only the guards whose
file or name contains the word. A guard that can be removed without a failure lacks a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("recexp", "conf", "tests", "pyproject.toml", "README.md", "Makefile")


@dataclass
class Mutation:
    """guard: what is removed, in words. tests: pytest's arguments; they must fail without it."""

    guard: str
    file: str
    old: str
    new: str
    tests: str


P = "tests/faults/test_processes.py"
MUTATIONS = [
    # Faults
    Mutation(
        "all processes agree on a signal",
        "recexp/training/signals.py",
        "if trainer.world_size > 1:",
        "if False:",
        f"{P} -k 15-child",
    ),
    Mutation(
        "Lightning's process observer, which kills without a message, is off",
        "recexp/training/processes.py",
        "        processes.clear()",
        "        pass",
        f"{P} -m slow -k 'before_training and 9'",
    ),
    Mutation(
        "a lost connection has an error message",
        "recexp/training/processes.py",
        '("gloo", "pair closure")',
        '("-",)',
        f"{P} -k killed_the_other_ends",
    ),
    Mutation(
        "a stopped run saves a checkpoint",
        "recexp/training/signals.py",
        "trainer.save_checkpoint(path)",
        "pass",
        "tests/faults/test_faults.py -k 'goes_on_to_the_same and bpr'",
    ),
    Mutation(
        "a resumed epoch skips the batches that were trained on",
        "recexp/data/datamodule.py",
        "        batches.skip = self._skip\n",
        "",
        "tests/faults/test_faults.py -k 'goes_on_to_the_same and bpr'",
    ),
    Mutation(
        "evaluation deals out equally many batches in every process",
        "recexp/data/datamodule.py",
        "torch.split(users, self.eval_batch_size * world)",
        "torch.split(users, self.eval_batch_size)",
        "tests/data/test_datamodule.py",
    ),
    Mutation(
        "writes are atomic",
        "recexp/io.py",
        '    temporary = path.with_name(f".{path.name}.{os.getpid()}")',
        "    temporary = path",
        "tests/faults/test_disk.py tests/faults/test_faults.py -k 'whole or leaves_the_one'",
    ),
    Mutation(
        "a failed write is a RecexpError",
        "recexp/io.py",
        "    except OSError as error:\n        kept",
        "    except ZeroDivisionError as error:\n        kept",
        "tests/faults/test_disk.py -k whole",
    ),
    Mutation(
        "errors of polars for a full disk are recognized",
        "recexp/io.py",
        ' or "(os error" in str(error)',
        "",
        "tests/faults/test_disk.py -k leaves",
    ),
    Mutation(
        "one process prepares at a time",
        "recexp/io.py",
        "        _acquire(lock, waiting)\n",
        "        pass\n",
        "tests/data/test_cache.py -k eight",
    ),
    Mutation(
        "leftovers of a killed preparation are removed",
        "recexp/data/cache.py",
        "        remove(left_by_a_killed_process)",
        "        pass",
        "tests/data/test_cache.py -k killed_preparation",
    ),
    Mutation(
        "checksums of the cache are verified",
        "recexp/data/cache.py",
        "        verify(folder)\n        return folder",
        "        return folder",
        "tests/faults/test_flips.py tests/data/test_cache.py -k 'cache or damage'",
    ),
    Mutation(
        "checksums of candidates are verified",
        "recexp/evaluation/candidate_store.py",
        "recorded == checksum(path)",
        'recorded != ""',
        "tests/faults/test_flips.py -k candidates",
    ),
    Mutation(
        "checksums of checkpoints are verified",
        "recexp/training/checkpoints.py",
        "        verify_checkpoint(Path(path))\n",
        "",
        "tests/faults/test_flips.py -k checkpoint_is_refused_or",
    ),
    Mutation(
        "the checksum of ranks is verified",
        "recexp/report/ranks.py",
        'if "ranks_sha256" in result and',
        "if False and",
        "tests/faults/test_flips.py -k ranks",
    ),
    Mutation(
        "an error of a tracker ends its logging only",
        "recexp/training/loggers/tracker.py",
        "except Exception as error:  # trackers raise many kinds",
        "except ZeroDivisionError as error:  # trackers raise many kinds",
        "tests/faults/test_loggers.py",
    ),
    Mutation(
        "a tracker warns once",
        "recexp/training/loggers/tracker.py",
        "        if self.is_closed:\n",
        "        if False:\n",
        "tests/faults/test_loggers.py",
    ),
    Mutation(
        "a signal to a sweep ends its jobs",
        "recexp/cli/launcher.py",
        "            one.process.terminate()\n",
        "            pass\n",
        "tests/cli/test_launcher.py -k signal",
    ),
    Mutation(
        "the signal that killed a job is named",
        "recexp/cli/launcher.py",
        "    if code < 0:",
        "    if False:",
        "tests/cli/test_launcher.py -k killed",
    ),
    Mutation(
        "a trial of a running worker is not taken over",
        "recexp/search/study.py",
        "        if lock is None:\n",
        "        if False:\n",
        "tests/search/test_study.py -k dead",
    ),
    Mutation(
        "a trial that the pruner ended is not continued",
        "recexp/search/study.py",
        "            self._storage.set_trial_user_attr(identity, PRUNED, epoch)\n",
        "            pass\n",
        "tests/search/test_study.py -k to_end",
    ),
    Mutation(
        "a loss that is NaN stops the run",
        "recexp/training/module.py",
        "if not math.isfinite(loss.item()):",
        "if False:",
        "tests/faults/test_faults.py -k no_number",
    ),
    # Correctness
    Mutation(
        "a run resumed within an epoch trains that epoch's phase",
        "recexp/training/module.py",
        "enter_epoch(self.model, self.current_epoch)  # also of a run resumed within the epoch",
        "pass",
        "tests/runs/test_resume.py -m slow -k autoencode",
    ),
    Mutation(
        "claims are open while the losing system was not trained to its end",
        "recexp/report/claim_tests.py",
        "        if unfinished:",
        "        if False:",
        "tests/report/test_evidence.py -k more_training",
    ),
    Mutation(
        "settings with more seeds come before a single run that is ahead by chance",
        "recexp/report/validation.py",
        "return max(alike, key=lambda system: len(system.runs))",
        "return first",
        "tests/report/test_evidence.py -k single_run",
    ),
    Mutation(
        "a run with another loss or sampler than the paper's stands for no claim",
        "recexp/report/claim_tests.py",
        "if not _is_variant(s.first, claim)",
        "if True",
        "tests/report/test_evidence.py -k another_sampler",
    ),
    Mutation(
        "sums of gradients begin with zeros in every step",
        "recexp/training/plain_steps.py",
        "self._sums[parameter].zero_()",
        "self._sums[parameter]",
        "tests/training/test_plain_steps.py -k looked_up",
    ),
    Mutation(
        "a history ends strictly before its target",
        "recexp/data/store.py",
        "self.train.ptr[user_B], row_B, length)",
        "self.train.ptr[user_B], row_B + 1, length)",
        "tests/data/test_store.py",
    ),
    Mutation(
        "a held-out target is not in its own history",
        "recexp/data/store.py",
        "targets.start[row_Q], targets.end[row_Q], length)",
        "targets.start[row_Q], targets.end[row_Q] + 1, length)",
        "tests/data/test_store.py",
    ),
    Mutation(
        "validation and test targets differ",
        "recexp/data/store.py",
        '{"val": self.val, "test": self.test}',
        '{"val": self.val, "test": self.val}',
        "tests/data tests/evaluation",
    ),
    Mutation(
        "a history holds events of one user only",
        "recexp/data/store.py",
        "real_BL = at_BL >= start_B[:, None]",
        "real_BL = at_BL >= 0",
        "tests/data/test_store.py",
    ),
    Mutation(
        "collisions are redrawn",
        "recexp/objectives/samplers.py",
        "        negative_Bn[row_M, column_M] = redraw_M\n",
        "",
        "tests/objectives/test_samplers.py",
    ),
    Mutation(
        "redrawn negatives are checked again",
        "recexp/objectives/samplers.py",
        "        redraw_M[collides_M] = "
        "draw_unseen(pairs, n_items, user_M[collides_M], generator)\n",
        "",
        "tests/objectives/test_samplers.py",
    ),
    Mutation(
        "a batch gathered on the host moves to the device",
        "recexp/training/module.py",
        "return batch if self.store.device == self.device else moved(batch, self.device)",
        "return batch",
        "tests/contracts/test_devices.py -k module",
    ),
    Mutation(
        "a lookup beyond the last item finds no pair",
        "recexp/data/store.py",
        "        item = item.clamp(max=8 * self._width - 1)\n",
        "",
        "tests/data/test_store.py",
    ),
    Mutation(
        "negatives are unseen items",
        "recexp/objectives/samplers.py",
        "return rank + 1 + before",
        "return rank + 1",
        "tests/objectives/test_samplers.py",
    ),
    Mutation(
        "the exact draw after rejection follows the sampler's law",
        "recexp/objectives/samplers.py",
        "        item_M[left_R] = torch.where(exact_R > 0, exact_R, unseen_R)\n",
        "        item_M[left_R] = unseen_R\n",
        "tests/objectives/test_samplers.py",
    ),
    Mutation(
        "shared negatives follow the sampler's law",
        "recexp/objectives/sequence.py",
        "self.sampler.draw_shared(store, n, generator, pool_BL)",
        "self.sampler(store, query[:1], n, generator, pool_BL)[0]",
        "tests/objectives/test_negative_laws.py",
    ),
    Mutation(
        "negatives of a position exclude the items of its own user",
        "recexp/objectives/sequence.py",
        "row_N = pool_BL.nonzero()[:, 0]",
        "row_N = pool_BL.nonzero()[:, 0].flip(0)",
        "tests/objectives/test_negative_laws.py",
    ),
    Mutation(
        "only events of the chosen behavior are predicted",
        "recexp/objectives/next_item.py",
        "            is_target_BL &= self._is_positive",
        "            0 and self._is_positive",
        "tests/objectives/test_next_item.py",
    ),
    Mutation(
        "scores are those of the behavior that is asked for",
        "recexp/models/bert4rec.py",
        "self.V, self.asked_code)",
        "self.V)",
        "tests/parity/test_parity_bert4rec.py",
    ),
    Mutation(
        "log_q counts the draws",
        "recexp/objectives/losses.py",
        "(log_q_negative + math.log(negative.shape[-1]))",
        "log_q_negative",
        "tests/objectives/test_losses.py tests/objectives",
    ),
    Mutation(
        "a session's own target is not its negative",
        "recexp/objectives/session_parallel.py",
        "counts_Sn.fill_(1).fill_diagonal_(0)",
        "counts_Sn.fill_(1)",
        "tests/objectives/test_session_parallel.py",
    ),
    Mutation(
        "ties are counted",
        "recexp/evaluation/ranks.py",
        "tied_B = _count(torch.eq, scores_BC, target_B1) - 1",
        "tied_B = 0 * _count(torch.eq, scores_BC, target_B1)",
        "tests/evaluation",
    ),
    Mutation(
        "scores that are NaN are refused",
        "recexp/evaluation/ranks.py",
        "    if torch.isfinite(scores.sum()):",
        "    if True:",
        "tests/evaluation",
    ),
    Mutation(
        "the target stays in the ranking of unseen items",
        "recexp/evaluation/ranks.py",
        "        scores_BN.scatter_(1, at_B1, score_B1)\n",
        "",
        "tests/evaluation",
    ),
    Mutation(
        "candidates are not items of the user",
        "recexp/evaluation/candidate_store.py",
        "torch.cat([key[excluded], ",
        "torch.cat([key[:0], ",
        "tests/evaluation/test_stored.py",
    ),
    Mutation(
        "the target is not among its candidates",
        "recexp/evaluation/candidate_store.py",
        "key[excluded], targets.user * schema.V + targets.item]",
        "key[excluded]]",
        "tests/evaluation/test_stored.py",
    ),
    Mutation(
        "validation and test draw different candidates",
        "recexp/evaluation/candidate_store.py",
        '2 * candidates.seed + (split == "test")',
        "2 * candidates.seed",
        "tests/evaluation/test_stored.py",
    ),
    Mutation(
        "every row is dealt out once over all processes",
        "recexp/data/datamodule.py",
        "yield torch.tensor_split(batch, world)[rank]",
        "yield batch",
        "tests/data/test_datamodule.py",
    ),
    Mutation(
        "copies from a GPU to the CPU are waited for",
        "recexp/types.py",
        "        return value.to(device)\n",
        "        return value.to(device, non_blocking=True)\n",
        "tests/contracts/test_devices.py -k waited",
    ),
    Mutation(
        "a claim is open where the verdict on a run's training is unknown",
        "recexp/report/claim_tests.py",
        '(kind == "unknown" and bool(run.get("convergence")))',
        "False",
        "tests/report/test_evidence.py",
    ),
    Mutation(
        "no fused optimizer where mixed precision clips",
        "recexp/training/module.py",
        "if no_kernel or no_clipping else",
        "if no_kernel else",
        "tests/training/test_optimizers.py -k mixed",
    ),
]


def caught(mutation: Mutation) -> bool:
    """Whether the tests, which pass on the unchanged code, fail without the guard."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        path = copy / mutation.file
        text = path.read_text()
        if text.count(mutation.old) != 1:
            raise SystemExit(
                f"{mutation.file} has {text.count(mutation.old)} times {mutation.old!r}: "
                "correct the list of mutations."
            )
        if mutation.tests not in GREEN and _fail(copy, mutation.tests):
            raise SystemExit(
                f"{mutation.tests} fails on the unchanged code: it cannot test the guard."
            )
        GREEN.add(mutation.tests)
        path.write_text(text.replace(mutation.old, mutation.new))
        return _fail(copy, mutation.tests)


GREEN: set[str] = set()


def _fail(copy: Path, tests: str) -> bool:
    line = f"{sys.executable} -m pytest -x -p no:cacheprovider {tests}"
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["sh", "-c", line], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):  # no test ran, or pytest itself failed
        raise SystemExit(f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> None:
    words = sys.argv[1:]
    chosen = [
        m
        for m in MUTATIONS
        if not words or any(word in m.file or word in m.guard for word in words)
    ]
    print("| guard taken out | file | caught by |\n|---|---|---|", flush=True)
    survivors = 0
    for mutation in chosen:
        found = caught(mutation)
        survivors += not found
        tests = mutation.tests.replace("|", "\\|")
        outcome = f"`{tests}`" if found else "**survived**"
        print(f"| {mutation.guard} | `{mutation.file}` | {outcome} |", flush=True)
    sys.exit(f"{survivors} of {len(chosen)} survived: tests are missing" if survivors else 0)


if __name__ == "__main__":
    main()
