"""The one LightningDataModule: batches are row indices, nothing else."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recexp.distributed import rank_and_world
from recexp.errors import RecexpError

BATCH_COUNTS = ("positives", "instances")


def rows_per_step(objective, batch_size: int, batch_counts: str) -> int:
    """Rows (positives) that one process takes in a step.

    batch_counts: what ``batch_size`` counts. "positives": rows, whose negatives come on top.
    "instances": the training instances that rows become, negatives included, as in the authors'
    code of NCF, ITE and BERT-ITE; see ``Objective.instances``. A batch smaller than one row's
    instances is one row, with a warning. Raises RecexpError where rows make no instances.
    """
    if batch_counts not in BATCH_COUNTS:
        choices = " or ".join(BATCH_COUNTS)
        raise RecexpError(f"batch_counts={batch_counts!r} is unknown; choose {choices}.")
    if batch_counts == "positives":
        return batch_size
    instances = objective.instances()
    if instances is None:
        raise RecexpError(
            f"batch_counts=instances: a row of objective={type(objective).__name__} is no positive "
            "with negatives of its own, but a window, a session's step or a whole pass, so there "
            "are no instances to count. Use batch_counts=positives."
        )
    if batch_size < instances:
        rank_zero_warn(
            f"batch_size={batch_size} instances is less than the {instances} that one positive "
            "makes: a step takes one positive."
        )
    return max(1, batch_size // instances)


class RowBatches(Sampler[Tensor]):
    """Shuffled batches of the objective's rows, an epoch's order decided by (seed, epoch) alone, shared out over the processes.

    skip: batches at the start of the next epoch that a run resumed in its middle has seen already.

    Every row comes exactly once per epoch over all processes, and every process gets the same number of batches: rows are dealt into
    ceil(rows / (batch_size * world)) near-equal global batches, each split over the processes.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        self.n_rows, self.batch_size, self.seed, self.epoch, self.skip = (
            n_rows,
            batch_size,
            seed,
            0,
            0,
        )

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, -(-self.n_rows // (self.batch_size * rank_and_world()[1])))

    def __iter__(self):
        rank, world = rank_and_world()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.n_rows, generator=generator)
        skip, self.skip = self.skip, 0
        for batch in torch.tensor_split(order, len(self))[skip:]:
            yield torch.tensor_split(batch, world)[rank]


class _Rows(Dataset):
    def __init__(self, row: Tensor) -> None:
        self.row = row

    def __getitem__(self, at: Tensor) -> Tensor:
        return self.row.take(at)

    def __len__(self) -> int:
        return len(self.row)


class RecDataModule(pl.LightningDataModule):
    """Rows to train on and held-out users to evaluate, as int64 tensors. Held-out users are dealt out as rank, rank + world, ...: nobody counts
    twice.

    splits: which held-out targets the validation loop ranks ("val", with "test" beside it when peeking at the test set).
    """

    def __init__(
        self,
        store,
        objective,
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        splits: tuple[str, ...] = ("val",),
    ) -> None:
        super().__init__()
        self.store, self.objective, self.splits = store, objective, splits
        self.batch_size, self.eval_batch_size, self.seed, self._skip = (
            batch_size,
            eval_batch_size,
            seed,
            0,
        )
        self._batches = 0  # of an epoch; 0 while unknown

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch under way are done, and how many there are."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        within = done < self.trainer.num_training_batches
        return {"batches_done": done if within else 0, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["batches_done"]
        self._batches = state.get("batches", 0)

    def train_dataloader(self) -> DataLoader:
        if self.objective.independent_rows:
            rows = self.objective.rows(self.store).cpu()
            batches = RowBatches(len(rows), self.batch_size, self.seed)
        else:
            rows = torch.arange(len(self.store.train))
            batches = self.objective.batches(self.store, self.batch_size, self.seed)
        if self._skip and self._batches not in (0, len(batches)):
            raise RecexpError(
                f"The checkpoint lies within an epoch of {self._batches} batches, which now has "
                f"{len(batches)}, so what it has seen cannot be skipped. Resume with the same "
                "batch_size, batch_counts, objective and number of processes."
            )
        batches.skip, self._skip = self._skip, 0
        self._batches = len(batches)
        return DataLoader(_Rows(rows), sampler=batches, batch_size=None)

    def transfer_batch_to_device(
        self, batch: Tensor, device: torch.device, dataloader_idx: int
    ) -> Tensor:
        """Row numbers go where the data are, which may not be where the model is."""
        return batch.to(self.trainer.lightning_module.store.device)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._held_out(split) for split in self.splits]

    def test_dataloader(self) -> DataLoader:
        return self._held_out("test")

    def _held_out(self, split: str) -> DataLoader:
        rank, world = rank_and_world()
        users = torch.arange(len(self.store.targets(split)))
        # As many batches in every process, so that all of them can stop after the same one.
        return DataLoader(
            [part[rank::world] for part in torch.split(users, self.eval_batch_size * world)],
            batch_size=None,
        )
