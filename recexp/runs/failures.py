"""What can end training early, as errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import SIGTERMException

from recexp.distributed import is_first_process
from recexp.errors import RecexpError, is_out_of_memory
from recexp.training.interrupts import enter_stage
from recexp.training.processes import is_peer_lost, peer_lost_message
from recexp.training.signals import Interrupted, Interruption


@contextmanager
def failures_explained(
    cfg: DictConfig, stop: Interruption, save_progress: Callable[[int], None]
) -> Iterator[None]:
    """Handle signals inside, and turn what ends training into errors for the user.

    save_progress: called in the first process, with the signal, before Interrupted is raised.

    Raises Interrupted where a signal came to any process of the run, and RecexpError where
    another process is lost, memory ran out or the trainer refuses a setting. Other errors pass.
    """
    run_dir = Path(cfg.run_dir)
    enter_stage(f"ended the run in {run_dir}", ends_at_once=False)
    with stop:
        try:
            stop.catch_up()
            yield
        except SIGTERMException:
            raise _interrupted(stop, run_dir, save_progress) from None
        except MisconfigurationException as error:  # such as a share of batches below one
            raise RecexpError(f"trainer: {' '.join(str(error).split())}") from error
        except (RuntimeError, MemoryError) as error:
            # A process that a signal ended is lost for the others: for them it is the signal too.
            if is_peer_lost(error) and stop.signum:
                raise _interrupted(stop, run_dir, save_progress) from None
            if is_peer_lost(error):
                raise RecexpError(peer_lost_message(run_dir)) from error
            if is_out_of_memory(error):
                raise RecexpError(
                    f"Out of memory: lower batch_size (now {cfg.batch_size}), eval_batch_size "
                    f"(now {cfg.eval_batch_size}), model.max_len or objective.n_negatives, or "
                    "raise the limit of memory."
                ) from error
            raise


def _interrupted(
    stop: Interruption, run_dir: Path, save_progress: Callable[[int], None]
) -> Interrupted:
    assert stop.signum is not None
    if is_first_process():
        save_progress(stop.signum)
    enter_stage(f"ended the run in {run_dir}", ends_at_once=True)
    return Interrupted(stop.signum, run_dir)
