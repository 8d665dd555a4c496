"""The LightningModule of all runs: it joins a model, an objective and a protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from recexp.contracts import ClosedForm, Objective, Recommender
from recexp.data.store import Store, Targets
from recexp.distributed import gather, rank_and_world
from recexp.errors import RecexpError, is_out_of_memory
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.kept import KeptLists, Scorer, TopLists
from recexp.evaluation.metrics import RankingMetrics
from recexp.evaluation.protocol import Protocol
from recexp.nn.lookup import Embedding
from recexp.rng import mix
from recexp.training.memory import too_large, users_at_once
from recexp.training.nan_report import bad_rows, first_bad_output, first_bad_parameter
from recexp.training.optimizers import TakesSparseGradients
from recexp.training.phases import enter_epoch, leave_phases
from recexp.training.plain_steps import step_plainly
from recexp.training.sharding import ShardedTables, check_sharding
from recexp.training.shards import Shards
from recexp.types import moved


def _seed_everything(device: torch.device, seed: int) -> None:
    """Seed the CPU and this device.

    torch.manual_seed also seeds devices that do not exist, for each of which it records a stack
    trace: a millisecond per step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _double(value: Tensor | float) -> Tensor | float:
    """The value as a number; a tensor on a device stays there, as reading it would wait for it."""
    if not isinstance(value, Tensor):
        return float(value)
    return value.item() if value.device.type == "cpu" else value.detach().double()


def _balanced(row: Tensor, targets: Targets, n_candidates: int) -> list[Tensor]:
    """The users in parts whose tables of targets and candidates are of bounded size.

    A part has a column per target of its user with the most targets, so users with many targets go
    together. A part of several users is at most twice as large as its users with one target each.
    """
    n_targets, order = targets.n_of_users(row).sort(descending=True, stable=True)
    most = 2 * len(row) * (1 + n_candidates)
    parts = []
    start = 0
    while start < len(row):
        n_users = max(1, most // (int(n_targets[start]) + n_candidates))
        parts.append(row[order[start : start + n_users]])
        start += n_users
    return parts


class RecModule(pl.LightningModule):
    """Trains the model by the objective and ranks held-out users by the protocol.

    optimizer: partial of a torch optimizer, called with parameter groups.
    scheduler: partial of a per-step learning-rate scheduler, called with the optimizer and
        total_steps, or None.
    splits: the held-out splits that the validation loop ranks, as in ``RecDataModule``.
    store_on: "device" gathers batches where the model is; "host" gathers them in the host's memory
        and moves them; "auto" takes the host where the data would fill more than half of what is
        free on the device.
    keep_top: length of the lists of the test that are kept; None keeps none.
    """

    def __init__(
        self,
        model: Recommender,
        objective: Objective[Any, Any],
        protocol: Protocol,
        store: Store,
        *,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        seed: int = 0,
        splits: Sequence[str] = ("val",),
        store_on: str = "auto",
        keep_top: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.protocol = protocol
        self.store = store
        self.seed = seed
        self.splits = tuple(splits)
        self.store_on = store_on
        self.keep_top = keep_top
        # Of a model that scores all items equal. A run sets it before it trains, because to compute
        # it takes a pass over the data.
        self.constant_loss: float | None = None
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.gradient_free = isinstance(model, ClosedForm)
        self.automatic_optimization = not self.gradient_free
        if self.gradient_free:
            # DDP refuses a module without parameters.
            self.anchor = torch.nn.Parameter(torch.zeros(()))
        several = protocol.split.has_several_targets
        metrics = {
            split: RankingMetrics(protocol.ks, protocol.ties, several) for split in self._all_splits
        }
        self.metrics = torch.nn.ModuleDict(metrics)
        self.latest_loss: Tensor | None = None
        # Latest metrics of each split in full precision, where Lightning logs float32.
        self.results: dict[str, dict[str, float]] = {}
        self._candidates: dict[str, Tensor | None] = {}
        # While the model is tested, and then in the first process what was kept.
        self._kept: KeptLists | None = None
        self.lists: TopLists | None = None
        # By name: the sum of a loss over the rows of this epoch, and their number.
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        # The tables that processes share out; None where every process has all of them.
        self._shards: Shards | None = None
        model.bind(store)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            # Lightning notes the hooks that it calls here, forty times per step. torch would look
            # for parameters in these strings, which takes a tenth of Lightning's time per step.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def _all_splits(self) -> set[str]:
        return {*self.splits, "test"}

    def setup(self, stage: str) -> None:
        """Map the stored candidates and move the data to the device, before the first batch."""
        # Candidates are drawn on the host, so this comes before the move.
        for split in self._all_splits - self._candidates.keys():
            has_targets = len(self.store.targets(split)) > 0
            candidates = (
                stored_candidates(self.store, self.protocol, split) if has_targets else None
            )
            self._candidates[split] = candidates
        on_host = self.store_on == "host" or (
            self.store_on == "auto" and too_large(self.store, self.device)
        )
        if on_host and self.gradient_free and self.device.type != "cpu":
            raise RecexpError(
                "This model fits by passes over all data, which does not fit on the device beside "
                "it: set trainer.accelerator=cpu."
            )
        if not on_host:
            self.store = self.store.to(self.device)

    def configure_model(self) -> None:
        """Leave each process its share of the large tables, where the strategy says so."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedTables) and self._shards is None:
            tables = check_sharding(self.model, self.objective, self.trainer.precision)
            self._shards = strategy.share_out(self.model, tables)

    # ------------------------------------------------------------ training

    def configure_optimizers(self) -> Any:
        """The optimizer with matrices and other parameters as two groups, and its scheduler."""
        if self.gradient_free:
            return None
        # Decoupled decay spares biases and norms, as BERT's authors do. Coupled decay is an L2
        # penalty on every parameter, as in the code of Caser and NCF.
        trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        assert self._optimizer is not None
        optimizer = self._optimizer(groups, **self._unfused())
        if not isinstance(optimizer, torch.optim.AdamW):
            for group in optimizer.param_groups:
                group["weight_decay"] = optimizer.defaults.get("weight_decay", 0.0)
        if self._scheduler is None:
            return optimizer
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._scheduler(optimizer, total_steps=total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _unfused(self) -> dict[str, bool]:
        """fused=False where the optimizer cannot update all parameters in one kernel.

        torch's Adagrad has no such kernel for GPUs, and in mixed precision Lightning refuses to
        clip gradients for optimizers that use one.
        """
        configured = self._optimizer
        if not isinstance(configured, partial) or not configured.keywords.get("fused"):
            return {}
        kind = configured.func
        is_adagrad = isinstance(kind, type) and issubclass(kind, torch.optim.Adagrad)
        no_kernel = is_adagrad and self.device.type == "cuda"
        trainer = self._trainer  # None outside of a training
        no_clipping = (
            trainer is not None
            and isinstance(trainer.precision_plugin, MixedPrecision)
            and bool(trainer.gradient_clip_val)
        )
        return {"fused": False} if no_kernel or no_clipping else {}

    def on_train_start(self) -> None:
        """Let steps be plain and the gradients of embedding tables sparse where that changes no
        result.

        Clipping reads whole gradients, and processes exchange them whole, but for tables that they
        share out. Plain steps add sparse gradients up for optimizers that want them dense.
        """
        if self.gradient_free:
            return
        enter_epoch(self.model, self.current_epoch)  # also of a run resumed within the epoch
        plain = step_plainly(self.trainer)
        (optimizer,) = self.trainer.optimizers
        sparse = plain or (
            isinstance(optimizer, TakesSparseGradients)
            and self.device.type == "cpu"
            and (self.trainer.world_size == 1 or self._shards is not None)
            and not self.trainer.gradient_clip_val
        )
        shared = None if self._shards is None else {shard.table for shard in self._shards.all}
        for table in self.model.modules():
            if isinstance(table, Embedding):
                table.sparse = sparse and (shared is None or table in shared)

    def training_step(self, row: Tensor, index: int) -> Tensor | None:
        # A step's randomness (negatives, masks, dropout) depends on nothing before it, so that a
        # resumed run equals an uninterrupted one.
        seed = mix(self.seed, self.current_epoch, rank_and_world()[0], index)
        _seed_everything(self.device, seed)
        batch = self._batch(row, seed)
        if self._shards is not None:
            self._shards.fetch(batch)
        losses = self.objective.losses(self.model, batch)
        if self.gradient_free:
            self._add(losses, len(row))
            self._count_step()
            return None
        loss = losses["loss"]
        assert isinstance(loss, Tensor)
        if not math.isfinite(loss.item()):
            raise RecexpError(self._not_finite(row, index, seed))
        self._add({**losses, **self.model.diagnostics()}, len(row))
        self.latest_loss = loss.detach()
        return loss

    def _batch(self, row: Tensor, seed: int) -> Any:
        """What the objective makes of the rows, on the model's device."""
        generator = torch.Generator(self.store.device).manual_seed(seed)
        batch = self.objective.batch(self.store, row, generator)
        return batch if self.store.device == self.device else moved(batch, self.device)

    def on_after_backward(self) -> None:
        if self._shards is not None:
            self._shards.push()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all processes' shares of the tables."""
        if self._shards is not None and gradient_clip_val and gradient_clip_algorithm != "value":
            self._shards.clip(self.model.parameters(), float(gradient_clip_val))
            return
        self.clip_gradients(
            optimizer,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )

    def _count_step(self) -> None:
        """Count a pass as an optimizer step: loggers and checkpoints go by the number of steps."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def _not_finite(self, row: Tensor, index: int, seed: int) -> str:
        """The error for a loss that is NaN or infinite: where, why, and what to do."""

        @torch.no_grad()
        def loss_of(some: Tensor) -> Tensor:
            _seed_everything(self.device, seed)
            loss = self.objective.losses(self.model, self._batch(some, seed))["loss"]
            assert isinstance(loss, Tensor)
            return loss

        cause = first_bad_parameter(self.model)
        if cause is None and self._shards is not None:
            # A forward pass would wait for rows that the other processes do not send.
            cause = "all parameters of this process are finite"
        elif cause is None:
            name = first_bad_output(self.model, lambda: loss_of(row))
            if name:
                cause = f"the first output that is not finite is that of {name}"
            else:
                cause = "every layer's output is finite, the loss of them is not"
            if self.objective.independent_rows:
                cause += self._bad_users(bad_rows(row, loss_of), seed)
        return (
            f"The loss is not finite in step {index + 1} of epoch {self.current_epoch + 1}: "
            f"{cause}. The last good checkpoint is kept. Lower optimizer.lr or set "
            "trainer.gradient_clip_val, or look at these rows."
        )

    def _bad_users(self, row: Tensor, seed: int) -> str:
        users = self._batch(row, seed).query.user_B.tolist() if len(row) else []
        if users:
            return f"; alone already in rows {row.tolist()} of users {users}"
        return "; no row alone causes it"

    # ------------------------------------------------------------ means over an epoch

    def on_train_epoch_start(self) -> None:
        """Not called where a run resumes within an epoch: its sums are in the checkpoint."""
        self._sums = {}
        enter_epoch(self.model, self.current_epoch)

    def _add(self, losses: Mapping[str, Tensor | float], n_rows: int) -> None:
        # Lightning's own log takes longer than a training step of matrix factorization.
        for name, value in losses.items():
            number = _double(value)
            total, n_total = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + number * n_rows, n_total + n_rows)

    def train_means(self) -> dict[str, float]:
        """Loss and diagnostics of the epoch so far, means over its rows."""
        return {
            f"train/{name}": float(total) / max(1, n_rows)
            for name, (total, n_rows) in self._sums.items()
        }

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_means())

    def on_train_end(self) -> None:
        leave_phases(self.model)

    # ------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = {name: (float(total), n_rows) for name, (total, n_rows) in self._sums.items()}
        checkpoint["train_sums"] = sums
        checkpoint["data_fingerprint"] = self.store.meta["fingerprint"]
        state = self.objective.state()
        if state:
            checkpoint["objective"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sums = dict(checkpoint.get("train_sums", {}))
        if "objective" in checkpoint:
            self.objective.load_state(checkpoint["objective"])

    # ------------------------------------------------------------ evaluation

    def on_validation_start(self) -> None:
        self._gather_tables()

    def on_test_start(self) -> None:
        # The tables stay whole: the first process alone writes what was tested.
        self._gather_tables()

    def _gather_tables(self) -> None:
        """Score with whole tables, so that every protocol and every model ranks as in one process.

        Gradients of the last step are dropped, unless the next steps add to them.
        """
        if self._shards is not None:
            self._shards.gather(drop_gradients=self.trainer.accumulate_grad_batches == 1)

    def validation_step(self, row: Tensor, index: int, dataloader_idx: int = 0) -> None:
        self._rank(self.splits[dataloader_idx], row)

    def on_validation_epoch_end(self) -> None:
        for split in self.splits:
            self._finish(split, logged=True)
        if self._shards is not None:
            self._shards.share_out()

    def on_test_epoch_start(self) -> None:
        if self.keep_top is not None:
            self._kept = KeptLists(self.keep_top)

    def test_step(self, row: Tensor, index: int) -> None:
        self._rank("test", row)

    def on_test_epoch_end(self) -> None:
        if self._kept is not None:
            parts = gather(self._kept.lists())
            self.lists = TopLists.joined(parts) if parts else None
            self._kept = None
        self.ranks = {k: v.numpy() for k, v in self._metrics_of("test").ranks().items()}
        # The run logs them with the epoch that they belong to.
        self._finish("test", logged=False)

    def _metrics_of(self, split: str) -> RankingMetrics:
        metrics = self.metrics[split]
        assert isinstance(metrics, RankingMetrics)
        return metrics

    def _rank(self, split: str, row: Tensor) -> None:
        """Rank the targets of these users, in as many parts as memory allows."""
        candidates = self._candidates[split]
        parts: Sequence[Tensor] = (row,)
        if candidates is None:
            n_at_once = users_at_once(self.device, self.store.schema.n_items)
            parts = row.split(n_at_once)
        elif self.protocol.split.has_several_targets:
            parts = _balanced(row, self.store.targets(split), candidates.shape[1])
        for part in parts:
            self._rank_part(split, part)

    def _rank_part(self, split: str, row: Tensor) -> None:
        """Rank the targets of these users, halving the batch where memory does not suffice."""
        targets = self.store.targets(split)
        candidates = self._candidates[split]
        chosen = None
        if candidates is not None:
            chosen = candidates[row.to(candidates.device)].to(self.device)
        scorer = None if self._kept is None else Scorer(self.model)
        model = self.model if scorer is None else cast(Recommender, scorer)
        try:
            # float32 even where training is in bf16, whose scores tie at the target often.
            with torch.autocast(self.device.type, enabled=False):
                better, tied, n = self.protocol.ranks(
                    self.store, targets, row, chosen, model, self.device
                )
                if self._kept is not None and scorer is not None:
                    self._kept.add(self.protocol, self.store, targets, row, scorer)
        except RecexpError as error:
            place = f"Evaluating the {split} split in epoch {self.current_epoch}"
            raise RecexpError(f"{place}: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(row) == 1:
                raise RecexpError(
                    f"Evaluating the {split} split: one user's candidates do not fit into memory. "
                    "Lower model.n_factors."
                ) from error
            rank_zero_warn(
                f"Out of memory ranking {len(row)} users at once: going on with half as many. "
                "Lower eval_batch_size to avoid this."
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            for half in row.tensor_split(2):
                self._rank_part(split, half)
            return
        at = targets.of_users(row)
        user = moved(targets.user[at], self.device)
        kinds = {
            name: moved(getattr(targets, name)[at], self.device)
            for name in ("seen", "repeat", "cold")
        }
        self._metrics_of(split).update(user, better, tied, n, **kinds)

    def _finish(self, split: str, logged: bool) -> None:
        """Compute the metrics of a split.

        logged: show them in the progress bar and give them to the loggers.
        """
        metrics = self._metrics_of(split)
        values = metrics.compute()
        self.results[split] = values
        for name, value in values.items():
            self.log(
                f"{split}/{name}",
                value,
                logger=None if logged else False,  # None: where there is one
                prog_bar=logged and name in ("hr@10", "ndcg@10"),
                sync_dist=False,
                add_dataloader_idx=False,
            )
        metrics.reset()
