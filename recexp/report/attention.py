"""Attention weights of a finished run, averaged over test users.

Sun et al. 2019 (BERT4Rec), arXiv:1904.06690, show them in Figure 2. Liu et al. 2021 (NOVA-BERT),
arXiv:2103.03578, compare in Figure 5 those of NOVA-BERT, in which side information takes part,
with a baseline's.

Models return no weights; they are computed again from what enters ``recexp.nn.attention.MultiHeadAttention``.

Shapes: B users of a batch, H heads, Q queries and K keys, both the positions of a history with its padding on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recexp.config.check import build, check_config
from recexp.contracts import Encoder
from recexp.data.cache import prepare
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.models.common import group_size
from recexp.nn.attention import MultiHeadAttention
from recexp.runs.assembly import assemble
from recexp.runs.loading import check_fit, read_config
from recexp.types import Query


def weights(layer: MultiHeadAttention, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of one layer without dropout, [B, H, Q, K]. query [B, Q, D], key [B, K, D]; mask as the layer's."""
    q, k = (
        x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        for x in (layer.query(query), layer.key(key))
    )
    logits = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return logits.masked_fill(~mask, float("-inf")).softmax(-1)


@torch.no_grad()
def mean_weights(model: nn.Module, batches: list[Query], last: int) -> np.ndarray:
    """Average weights [layers, heads, last, last] over users, positions counted from the newest, which is the last row and column.

    Only users whose history fills all these positions count: weights of a row sum to 1 over its history, so shorter ones would stand out by
    their length. The model's ``score`` decides what is read, so what ends the history there ([MASK]) is the newest position.

    Raises RecexpError where the model has no ``MultiHeadAttention``, or nobody's history is so long.
    """
    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    if not layers or not isinstance(model, Encoder):
        raise RecexpError(
            f"{type(model).__name__} has no self-attention over a history, so there are no weights to show."
        )
    encode = model.encode
    total = np.zeros((len(layers), layers[0].num_heads, last, last))
    count = 0
    seen: list[list[Tensor]] = [[] for _ in layers]
    masks: list[Tensor] = []

    def remember(at: int) -> Callable:
        def hook(layer: MultiHeadAttention, inputs: tuple, options: dict) -> None:
            query, key, mask = (
                options[n] if n in options else inputs[i]
                for i, n in ((0, "query"), (1, "key"), (3, "mask"))
            )
            seen[at].append(weights(layer, query, key, mask))

        return hook

    def encode_all(
        query: Query, last_only: bool = False, **options
    ) -> Tensor:  # score wants the last row; here all are of interest
        masks.append(query.mask_BL)
        return encode(query, **options)

    hooks = [
        layer.register_forward_pre_hook(remember(i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    was_training = model.training
    model.eval()
    model.encode = encode_all
    try:
        # Sequence models on a CPU encode more rows than a group by length, which would come back in another order.
        for query in (part for batch in batches for part in _parts(batch)):
            for x in (masks, *seen):
                x.clear()
            model.score(
                query, torch.ones(len(query), 1, dtype=torch.long, device=query.item_BL.device)
            )
            full_B = masks[0].sum(1) >= last
            count += int(full_B.sum())
            for i, parts in enumerate(seen):
                total[i] += (
                    parts[0][full_B, :, -last:, -last:].double().sum(0).cpu().numpy()
                    if full_B.any()
                    else 0
                )
    finally:
        del model.encode
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not count:
        raise RecexpError(f"No user's history fills {last} positions: show fewer.")
    return total / count


def _parts(batch: Query) -> list[Query]:
    """Few enough rows that they stay together, with the [MASK] that scoring may add."""
    n = max(1, group_size(batch) // 2)
    return [batch[at : at + n] for at in range(0, len(batch), n)]


def attention(run_dir: str | Path, *, users: int = 512, last: int = 10) -> np.ndarray:
    """``mean_weights`` of a finished run's best checkpoint over its first test users; of fewer positions where half of them have no more.

    Raises RecexpError where the checkpoint or the data are gone, or the model has no self-attention.
    """
    run_dir = Path(run_dir)
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise RecexpError(f"{checkpoint} is missing: attention needs the trained model.")
    cfg = read_config(run_dir / "config.yaml")
    check_config(cfg)
    protocol = build(cfg.protocol)
    store = Store.open(
        prepare(build(cfg.dataset, _recursive_=False), protocol.split, cfg.cache_dir)
    )
    module, _ = assemble(cfg, protocol, store, ())
    module.load_state_dict(check_fit(checkpoint, module)["state_dict"])
    targets = store.targets("test")
    rows = torch.arange(min(users, len(targets))).split(256)
    queries = [
        store.query_held_out(targets, row, module.model.history, protocol.history) for row in rows
    ]
    typical = int(torch.cat([q.mask_BL.sum(1) for q in queries]).median())
    return mean_weights(module.model, queries, max(1, min(last, typical)))
