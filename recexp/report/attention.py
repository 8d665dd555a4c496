"""Attention weights of a finished run, averaged over test users.

Sun et al. 2019 (BERT4Rec), arXiv:1904.06690, show them in Figure 2. Liu et al. 2021 (NOVA-BERT),
arXiv:2103.03578, compare in Figure 5 those of NOVA-BERT, in which side information takes part,
with a baseline's.

Models return no weights; they are computed again from the inputs of
``recexp.nn.attention.MultiHeadAttention``.

Shapes: B users of a batch, H heads, L layers, Q queries and K keys, both the positions of a
left-padded history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recexp.config.build import build
from recexp.contracts import Encoder
from recexp.errors import RecexpError
from recexp.models.common import group_size
from recexp.nn.attention import MultiHeadAttention
from recexp.runs.assembly import assemble
from recexp.runs.finished import check_size, open_data, open_run
from recexp.training.checkpoints import read_matching_checkpoint
from recexp.types import Query

ROWS_PER_BATCH = 256
# Positions of the arguments of MultiHeadAttention.forward that determine its weights.
WEIGHT_INPUTS = {"query": 0, "key": 1, "mask": 3}


def attention(
    run_dir: str | Path, *, users: int = 512, last: int = 10, cache_dir: str | None = None
) -> NDArray[np.float64]:
    """``mean_weights`` of a finished run's tested checkpoint over its first test users.

    Of fewer positions where half of these users have shorter histories. cache_dir: where prepared
    data lie, if not in the default place.

    Raises RecexpError where the checkpoint or the data are missing, or the model has no
    self-attention.
    """
    run = open_run(run_dir, cache_dir=cache_dir)
    protocol = build(run.cfg.protocol)
    store = open_data(run, protocol.split)
    check_size(run, store)
    module, _ = assemble(run.cfg, protocol, store, ())
    module.load_state_dict(read_matching_checkpoint(run.checkpoint, module)["state_dict"])
    model = module.model

    targets = store.targets("test")
    n_users = min(users, targets.n_users)
    queries = []
    for row_B in torch.arange(n_users).split(ROWS_PER_BATCH):
        first_B = targets.first(row_B)
        queries.append(store.query_held_out(targets, first_B, model.history, protocol.history))
    lengths = torch.cat([query.mask_BL.sum(1) for query in queries])
    return mean_weights(model, queries, max(1, min(last, int(lengths.median()))))


@torch.no_grad()
def mean_weights(model: nn.Module, batches: Sequence[Query], last: int) -> NDArray[np.float64]:
    """Average weights [layers, heads, last, last] over users; the newest position is the last.

    Only users whose history fills all these positions count: the weights of a row sum to 1 over its
    history, so those of shorter histories are larger. The model's ``score`` decides what is read,
    so what it appends to the history ([MASK]) is the newest position.

    Raises RecexpError where the model has no ``MultiHeadAttention``, or no history is so long.
    """
    layers = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    if not layers or not isinstance(model, Encoder):
        raise RecexpError(
            f"{type(model).__name__} has no self-attention over a history, so there are no weights "
            "to show."
        )
    total = np.zeros((len(layers), layers[0].n_heads, last, last))
    n_users = 0
    was_training = model.training
    model.eval()
    try:
        with _recorded(model, layers) as recorder:
            for batch in batches:
                for query in _parts(batch):
                    recorder.score(model, query)
                    full_B = recorder.mask_BL.sum(1) >= last
                    if not full_B.any():  # its positions may be fewer than ``last``
                        continue
                    n_users += int(full_B.sum())
                    for i, weights_BHQK in enumerate(recorder.weights):
                        newest = weights_BHQK[full_B, :, -last:, -last:]
                        total[i] += newest.double().sum(0).cpu().numpy()
    finally:
        model.train(was_training)
    if not n_users:
        raise RecexpError(f"No user's history fills {last} positions: show fewer.")
    return total / n_users


def weights(layer: MultiHeadAttention, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of one layer without dropout, [B, H, Q, K].

    query [B, Q, D], key [B, K, D]; mask as the layer's.
    """
    q_BHQd = layer.query(query).unflatten(-1, (layer.n_heads, -1)).transpose(1, 2)
    k_BHKd = layer.key(key).unflatten(-1, (layer.n_heads, -1)).transpose(1, 2)
    scale = q_BHQd.shape[-1] ** -0.5
    logits_BHQK = (q_BHQd @ k_BHKd.transpose(-1, -2)).float() * scale
    return logits_BHQK.masked_fill(~mask, float("-inf")).softmax(-1)


class _Recorder:
    """Keeps the weights of every layer, and the mask of the history, of one call of ``score``."""

    def __init__(self, n_layers: int) -> None:
        self.weights: list[Tensor] = [torch.empty(0)] * n_layers  # [B, H, Q, K] each
        self.mask_BL = torch.empty(0)

    def score(self, model: Encoder, query: Query) -> None:
        item_B1 = torch.ones(len(query), 1, dtype=torch.long, device=query.item_BL.device)
        model.score(query, item_B1)

    def hook(self, n: int) -> Any:
        """A forward pre-hook of layer n."""

        def keep(
            layer: MultiHeadAttention, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
        ) -> None:
            found = {}
            for name, position in WEIGHT_INPUTS.items():
                found[name] = named[name] if name in named else inputs[position]
            self.weights[n] = weights(layer, **found)

        return keep


@contextmanager
def _recorded(model: Encoder, layers: Sequence[MultiHeadAttention]) -> Iterator[_Recorder]:
    """Records every call of the model's ``score``, which then encodes all positions."""
    recorder = _Recorder(len(layers))
    encode = model.encode

    def encode_all(query: Query, last_only: bool = False, **options: Any) -> Tensor:
        # score asks for the last position alone; all are of interest here.
        recorder.mask_BL = query.mask_BL
        return encode(query, **options)

    hooks = []
    for n, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(recorder.hook(n), with_kwargs=True))
    vars(model)["encode"] = encode_all  # takes precedence over the method of the class
    try:
        yield recorder
    finally:
        del vars(model)["encode"]
        for handle in hooks:
            handle.remove()


def _parts(batch: Query) -> list[Query]:
    """Parts so small that a sequence model on a CPU keeps the order of rows.

    It encodes larger batches in groups by length. Half a group leaves room for the [MASK] that
    scoring may append.
    """
    n_rows = max(1, group_size(batch) // 2)
    return [batch[start : start + n_rows] for start in range(0, len(batch), n_rows)]
