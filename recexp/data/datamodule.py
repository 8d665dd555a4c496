"""The one LightningDataModule: batches are row indices, nothing else."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


class RowBatches(Sampler[Tensor]):
    """Shuffled batches of the objective's rows, an epoch's order decided by (seed, epoch) alone, shared out over the processes.

    skip: batches at the start of the next epoch that a run resumed in its middle has seen already.

    Every row comes exactly once per epoch over all processes, and every process gets the same number of batches: rows are dealt into
    ceil(rows / (batch_size * world)) near-equal global batches, each split over the processes.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        self.n_rows, self.batch_size, self.seed, self.epoch, self.skip = n_rows, batch_size, seed, 0, 0

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

    def __init__(self, store, objective, *, batch_size: int, eval_batch_size: int, seed: int, splits: tuple[str, ...] = ("val",)) -> None:
        super().__init__()
        self.store, self.objective, self.splits = store, objective, splits
        self.batch_size, self.eval_batch_size, self.seed, self._skip = batch_size, eval_batch_size, seed, 0

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch under way are done."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return {"batches_done": 0 if progress.is_last_batch else progress.current.completed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["batches_done"]

    def train_dataloader(self) -> DataLoader:
        if hasattr(self.objective, "batches"):  # an objective whose batches follow from one another deals out its rows itself
            rows, batches = torch.arange(len(self.store.train)), self.objective.batches(self.store, self.batch_size, self.seed)
        else:
            rows = self.objective.rows(self.store).cpu()
            batches = RowBatches(len(rows), self.batch_size, self.seed)
        batches.skip, self._skip = self._skip, 0
        return DataLoader(_Rows(rows), sampler=batches, batch_size=None)

    def transfer_batch_to_device(self, batch: Tensor, device: torch.device, dataloader_idx: int) -> Tensor:
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
        return DataLoader([part[rank::world] for part in torch.split(users, self.eval_batch_size * world)], batch_size=None)
