"""The one LightningModule: it joins a model, an objective and a protocol, and knows none of them by name."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.distributed import rank_and_world
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.metrics import RankingMetrics
from recexp.evaluation.protocol import Protocol
from recexp.training.memory import out_of_memory, too_large, users_at_once
from recexp.training.nan_report import bad_rows, first_bad_output, first_bad_parameter
from recexp.types import moved


def mix(*numbers: int) -> int:
    """One seed from several numbers: any difference in any of them gives an unrelated stream."""
    seed = 0
    for number in numbers:
        seed = (seed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        seed ^= seed >> 31
    return seed % 2**63


def _seed(device: torch.device, seed: int) -> None:
    """torch.manual_seed for the CPU and this device alone: for devices that are not there it keeps a stack trace each time, a millisecond a step."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class RecModule(pl.LightningModule):
    """splits: as in ``RecDataModule``. optimizer: partial of a torch optimiser; scheduler: partial of a per-step learning-rate scheduler or None.

    store_on: "device" gathers batches where the model is; "host" gathers them in the host's memory and moves them; "auto" takes the host where the
    data would fill more than half of what is free on the device.
    """

    def __init__(
        self,
        model,
        objective,
        protocol: Protocol,
        store,
        *,
        optimizer=None,
        scheduler=None,
        seed: int = 0,
        splits=("val",),
        store_on: str = "auto",
    ) -> None:
        super().__init__()
        self.model, self.objective, self.protocol, self.store, self.seed, self.store_on = (
            model,
            objective,
            protocol,
            store,
            seed,
            store_on,
        )
        self._optimizer, self._scheduler, self.splits = optimizer, scheduler, tuple(splits)
        self.gradient_free = isinstance(model, ClosedForm)
        self.automatic_optimization = not self.gradient_free
        if self.gradient_free:
            self.anchor = torch.nn.Parameter(
                torch.zeros(())
            )  # DDP refuses a module without parameters
        self.metrics = torch.nn.ModuleDict(
            {s: RankingMetrics(protocol.ks, protocol.ties) for s in {*self.splits, "test"}}
        )
        self._candidates: dict[str, Tensor | None] = {}
        self._sums: dict[
            str, tuple[Tensor | float, int]
        ] = {}  # of losses over the rows of this epoch
        self.latest_loss: Tensor | None = None
        self.results: dict[
            str, dict[str, float]
        ] = {}  # split -> latest metrics in full precision (Lightning logs float32)
        model.bind(store)

    def setup(self, stage: str) -> None:
        """Map the candidates, which are drawn on the host, and move the data to the device, before the first batch."""
        for split in {*self.splits, "test"}:
            if split not in self._candidates:
                self._candidates[split] = (
                    stored_candidates(self.store, self.protocol, split)
                    if len(self.store.targets(split))
                    else None
                )
        host = self.store_on == "host" or (
            self.store_on == "auto" and too_large(self.store, self.device)
        )
        if host and self.gradient_free and self.device.type != "cpu":
            raise RecexpError(
                "This model fits by passes over all data, which does not fit on the device beside it: set trainer.accelerator=cpu."
            )
        if not host:
            self.store = self.store.to(self.device)

    def _batch(self, row: Tensor, seed: int) -> Any:
        """What the objective makes of the rows, on the model's device."""
        generator = torch.Generator(self.store.device).manual_seed(seed)
        batch = self.objective.batch(self.store, row, generator)
        return batch if self.store.device == self.device else moved(batch, self.device)

    def configure_optimizers(self) -> Any:
        if self.gradient_free:
            return None
        # Decoupled decay spares biases and norms, as BERT's authors do. Coupled decay is an L2 penalty
        # on every parameter, as in the code of Caser and NCF.
        matrices = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": matrices}] + (
            [{"params": others, "weight_decay": 0.0}] if others else []
        )
        optimizer = self._optimizer(groups)
        if not isinstance(optimizer, torch.optim.AdamW):
            for group in optimizer.param_groups:
                group["weight_decay"] = optimizer.defaults.get("weight_decay", 0.0)
        if self._scheduler is None:
            return optimizer
        scheduler = self._scheduler(
            optimizer, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def training_step(self, row: Tensor, index: int) -> Tensor | None:
        # A step's randomness (negatives, masks, dropout) depends on nothing before it: a resumed run equals an uninterrupted one.
        seed = mix(self.seed, self.current_epoch, rank_and_world()[0], index)
        _seed(self.device, seed)
        losses = self.objective.loss(self.model, self._batch(row, seed))
        if self.gradient_free:
            self._add(losses, len(row))
            # Count the pass as a step: loggers and checkpoints go by the number of steps.
            progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            progress.increment_ready()
            progress.increment_completed()
            return None
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise RecexpError(self._not_finite(row, index, seed))
        self._add(losses | self.model.diagnostics(), len(row))
        self.latest_loss = loss.detach()
        return loss

    def on_train_epoch_start(self) -> None:
        """Not called where a run goes on in the middle of an epoch, whose sums were in the checkpoint."""
        self._sums = {}

    def _add(self, losses: dict[str, Tensor | float], n_rows: int) -> None:
        # Not by Lightning's log at every step, which takes longer than a step of matrix factorisation.
        for name, value in losses.items():
            value = (
                value.detach().double() * n_rows
                if isinstance(value, Tensor)
                else float(value) * n_rows
            )
            total, rows = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, rows + n_rows

    def train_means(self) -> dict[str, float]:
        """Loss and diagnostics of the epoch so far, means over its rows."""
        return {
            f"train/{name}": float(total) / max(1, rows)
            for name, (total, rows) in self._sums.items()
        }

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_means())

    def _not_finite(self, row: Tensor, index: int, seed: int) -> str:
        @torch.no_grad()
        def loss_of(some: Tensor) -> Tensor:
            _seed(self.device, seed)
            return self.objective.loss(self.model, self._batch(some, seed))["loss"]

        cause = first_bad_parameter(self.model)
        if cause is None:
            name = first_bad_output(self.model, lambda: loss_of(row))
            cause = (
                f"the first output that is not finite is that of {name}"
                if name
                else "every layer's output is finite, the loss of them is not"
            )
            if self.objective.independent_rows:
                bad = bad_rows(row, loss_of)
                users = self._batch(bad, seed).query.user_B.tolist() if len(bad) else []
                cause += (
                    f"; alone already in rows {bad.tolist()} of users {users}"
                    if users
                    else "; no row alone brings it about"
                )
        return (
            f"The loss is not finite in step {index + 1} of epoch {self.current_epoch + 1}: {cause}. The last good checkpoint is kept. Lower "
            "optimizer.lr or set trainer.gradient_clip_val, or look at these rows."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = {
            name: (float(total), rows) for name, (total, rows) in self._sums.items()
        }
        checkpoint["data_fingerprint"] = self.store.meta["fingerprint"]
        if state := self.objective.state():
            checkpoint["objective"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = dict(checkpoint.get("train_sums", {}))
        if "objective" in checkpoint:
            self.objective.load_state(checkpoint["objective"])

    def validation_step(self, row: Tensor, index: int, dataloader_idx: int = 0) -> None:
        self._rank(self.splits[dataloader_idx], row)

    def on_validation_epoch_end(self) -> None:
        for split in self.splits:
            self._finish(split, prog_bar=True)

    def test_step(self, row: Tensor, index: int) -> None:
        self._rank("test", row)

    def on_test_epoch_end(self) -> None:
        self.ranks = {k: v.numpy() for k, v in self.metrics["test"].ranks().items()}
        self._finish("test", prog_bar=False)

    def _rank(self, split: str, row: Tensor) -> None:
        targets, candidates = self.store.targets(split), self._candidates[split]
        if candidates is None and len(row) > (
            most := users_at_once(self.device, self.store.schema.n_items)
        ):
            for part in row.split(most):
                self._rank(split, part)
            return
        chosen = (
            None if candidates is None else candidates[row.to(candidates.device)].to(self.device)
        )
        try:
            # Scores in float32 even where training is in bf16, whose logits tie at the target for many users.
            with torch.autocast(self.device.type, enabled=False):
                better, tied, n = self.protocol.ranks(
                    self.store, targets, row, chosen, self.model, self.device
                )
        except RecexpError as error:
            raise RecexpError(
                f"Evaluating the {split} split in epoch {self.current_epoch}: {error}"
            ) from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(row) == 1:
                raise RecexpError(
                    f"Evaluating the {split} split: one user's candidates do not fit into memory. Lower model.num_factors."
                ) from error
            rank_zero_warn(
                f"Out of memory ranking {len(row)} users at once: going on with half as many. Lower eval_batch_size to be spared this."
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            for half in row.tensor_split(2):
                self._rank(split, half)
            return
        self.metrics[split].update(
            moved(targets.user[row], self.device),
            better,
            tied,
            n,
            moved(targets.seen[row], self.device),
        )

    def _finish(self, split: str, prog_bar: bool) -> None:
        values = self.results[split] = self.metrics[split].compute()
        shown = ("hr@10", "ndcg@10") if prog_bar else ()
        for name, value in values.items():
            self.log(
                f"{split}/{name}",
                value,
                prog_bar=name in shown,
                sync_dist=False,
                add_dataloader_idx=False,
            )
        self.metrics[split].reset()
