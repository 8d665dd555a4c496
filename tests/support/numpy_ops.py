"""Slow, plain references in numpy float64, written from the papers' formulas, one history at a
time.
"""

import math

import numpy as np


def weights(module):
    """Parameters and buffers by name."""
    return {
        name: p.detach().numpy()
        for name, p in [*module.named_parameters(), *module.named_buffers()]
    }


def linear(x, w, name):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(x, w, name, eps):
    centered = x - x.mean(-1, keepdims=True)
    return (
        centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attention(query, key, value, w, name, heads, causal=False):
    """Multi-head attention of one history without padding, an output map where there is one."""
    q, k, v = (
        linear(query, w, f"{name}.query"),
        linear(key, w, f"{name}.key"),
        linear(value, w, f"{name}.value"),
    )
    size, parts = q.shape[-1] // heads, []
    for i in range(heads):
        part = slice(i * size, (i + 1) * size)
        logits = q[:, part] @ k[:, part].T / math.sqrt(size)
        if causal:
            logits = np.where(np.tri(len(q), dtype=bool), logits, -np.inf)
        parts.append(softmax(logits) @ v[:, part])
    out = np.concatenate(parts, -1)
    return linear(out, w, f"{name}.output") if f"{name}.output.weight" in w else out


def bert_layer(h, w, name, heads, query_key=None, eps=1e-12):
    """Post-norm layer of Sun et al. 2019 (BERT4Rec), eq. 1-6, arXiv:1904.06690.

    query_key: another stream for queries and keys, as in NOVA.
    """
    r = h if query_key is None else query_key
    a = layer_norm(h + attention(r, r, h, w, f"{name}.attention", heads), w, f"{name}.norm1", eps)
    inner = gelu(linear(a, w, f"{name}.inner"))
    return layer_norm(a + linear(inner, w, f"{name}.outer"), w, f"{name}.norm2", eps)
