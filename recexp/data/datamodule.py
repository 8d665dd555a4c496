"""The LightningDataModule of all runs: a batch is an int64 tensor of row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recexp.contracts import Objective
from recexp.data.store import Store
from recexp.distributed import rank_and_world
from recexp.errors import RecexpError

BatchCounts = Literal["positives", "instances"]


def rows_per_step(objective: Objective[Any, Any], batch_size: int, batch_counts: str) -> int:
    """Rows (positives) that one process takes in a step.

    batch_counts: what ``batch_size`` counts. "positives": rows, whose negatives come on top.
    "instances": the training instances that rows become, negatives included, as in the authors'
    code of NCF, ITE and BERT-ITE; see ``Objective.instances``. A batch smaller than one row's
    instances is one row, with a warning. Raises RecexpError where rows make no instances.
    """
    if batch_counts not in get_args(BatchCounts):
        choices = " or ".join(get_args(BatchCounts))
        raise RecexpError(f"batch_counts={batch_counts!r} is unknown; choose {choices}.")
    if batch_counts == "positives":
        return batch_size
    n_instances = objective.instances()
    if n_instances is None:
        raise RecexpError(
            f"batch_counts=instances: a row of objective={type(objective).__name__} is no positive "
            "with negatives of its own, but a window, a session's step or a whole pass, so there "
            "are no instances to count. Use batch_counts=positives."
        )
    if batch_size < n_instances:
        rank_zero_warn(
            f"batch_size={batch_size} instances is less than the {n_instances} that one positive "
            "makes: a step takes one positive."
        )
    return max(1, batch_size // n_instances)


class RowBatches(Sampler[Tensor]):
    """Shuffled batches of row numbers; (seed, epoch) alone decide the order of an epoch.

    Over all processes every row comes exactly once per epoch, and every process gets the same
    number of batches: rows are dealt into ceil(rows / (batch_size * world)) global batches of
    nearly equal size, each split over the processes.

    skip: batches at the start of the next epoch that a run resumed within it has trained already.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        self.n_rows = n_rows
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        _, world = rank_and_world()
        return max(1, -(-self.n_rows // (self.batch_size * world)))

    def __iter__(self) -> Iterator[Tensor]:
        rank, world = rank_and_world()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.n_rows, generator=generator)
        skip = self.skip
        self.skip = 0
        for batch in torch.tensor_split(order, len(self))[skip:]:
            yield torch.tensor_split(batch, world)[rank]


class _Rows(Dataset[Tensor]):
    """Gathers row ids [B] by the places that a sampler deals out."""

    def __init__(self, row: Tensor) -> None:
        self.row = row

    def __getitem__(self, place: Tensor) -> Tensor:
        return self.row.index_select(0, place)

    def __len__(self) -> int:
        return len(self.row)


class RecDataModule(pl.LightningDataModule):
    """Rows to train on and held-out users to evaluate, as int64 tensors.

    Held-out users are dealt out to processes as rank, rank + world, ...: none counts twice.

    splits: which held-out targets the validation loop ranks: "val", with "test" beside it where
        the epoch is chosen on the test set.
    """

    def __init__(
        self,
        store: Store,
        objective: Objective[Any, Any],
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        splits: Sequence[str] = ("val",),
    ) -> None:
        super().__init__()
        self.store = store
        self.objective = objective
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.splits = splits
        self._skip = 0  # batches of the next epoch that are trained already
        self._n_batches = 0  # of an epoch; 0 while unknown

    def state_dict(self) -> dict[str, int]:
        """How many batches of the current epoch are done, and how many there are."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        within_epoch = done < self.trainer.num_training_batches
        return {"batches_done": done if within_epoch else 0, "batches": self._n_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["batches_done"]
        self._n_batches = state.get("batches", 0)

    def train_dataloader(self) -> DataLoader[Tensor]:
        batches: Any
        if self.objective.independent_rows:
            rows = self.objective.rows(self.store).cpu()
            if len(rows) == 0:
                raise RecexpError(
                    f"objective={type(self.objective).__name__} finds nothing to train on: the "
                    "users have too few training events. Loosen dataset.filters, or choose a model "
                    "that learns from single events, such as model=bpr_mf."
                )
            batches = RowBatches(len(rows), self.batch_size, self.seed)
        else:
            rows = torch.arange(len(self.store.train))
            batches = self.objective.batches(self.store, self.batch_size, self.seed)
        if self._skip and self._n_batches not in (0, len(batches)):
            raise RecexpError(
                f"The checkpoint lies within an epoch of {self._n_batches} batches, which now has "
                f"{len(batches)}, so the batches done cannot be skipped. Resume with the same "
                "batch_size, batch_counts, objective and number of processes."
            )
        batches.skip = self._skip
        self._skip = 0
        self._n_batches = len(batches)
        return DataLoader(_Rows(rows), sampler=batches, batch_size=None)

    def transfer_batch_to_device(
        self, batch: Tensor, device: torch.device, dataloader_idx: int
    ) -> Tensor:
        """Move row numbers to where the data are, which may not be where the model is."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        return batch.to(module.store.device)

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        return [self._held_out(split) for split in self.splits]

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self._held_out("test")

    def _held_out(self, split: str) -> DataLoader[Tensor]:
        rank, world = rank_and_world()
        users = torch.arange(self.store.targets(split).n_users)
        # As many batches in every process, so that all of them can stop after the same one.
        parts: Any = [
            part[rank::world] for part in torch.split(users, self.eval_batch_size * world)
        ]
        return DataLoader(parts, batch_size=None)
