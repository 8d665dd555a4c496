"""Neural collaborative filtering: GMF, MLP and NeuMF (NCF of S001 and S002; specification §3.2, §4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.models.mf import mean_square, require_positive
from recexp.nn.cpu.lookup import Embedding, Rows
from recexp.nn.init import normal_embeddings, xavier_linears
from recexp.nn.mlp import PairMLP
from recexp.types import Query, Schema

INTERACTIONS = {"gmf": ("gmf",), "mlp": ("mlp",), "neumf": ("gmf", "mlp")}
_BLOCK = (
    1 << 20
)  # floats of the widest hidden layer computed at a time when scoring: on a CPU they stay in its cache


class NeuMF(MultiBehaviour):
    """One logit from the products of embeddings (gmf), from a tower on their concatenation (mlp), or from both (neumf).

    num_factors f is the width of the last layer of either part. The tower has num_layers layers, each half as wide as the one
    before: for 3 layers [8f, 4f, 2f, f], 8f being two embeddings of 4f. Parts have embeddings of their own.

    pretrained: checkpoints {"gmf": path, "mlp": path} of the two parts trained alone, to start a neumf from. Their output
    weights enter times alpha and 1 - alpha (alpha = 0.5 in the paper), all else as it is.
    """

    n_behaviours = 1

    def __init__(
        self,
        schema: Schema,
        *,
        interaction: str = "neumf",
        num_factors: int = 8,
        num_layers: int = 3,
        dropout: float = 0.0,
        init_std: float = 0.01,
        pretrained: Mapping[str, str] | None = None,
        alpha: float = 0.5,
    ) -> None:
        super().__init__()
        widths = interaction_widths(interaction, num_factors, num_layers)
        self.user, self.item = pair_tables(schema, widths)
        self.interact = Interaction(widths, num_factors, num_layers, dropout=dropout)
        normal_embeddings(self, init_std)
        if pretrained:
            self._start_from(pretrained, {"gmf": alpha, "mlp": 1 - alpha})

    def _logit(self, query: Query, item: Tensor) -> Tensor:
        return self.interact(look_up(self.user, query.user_B), look_up(self.item, item))

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        return in_chunks(
            lambda item: self._logit(query, item),
            query,
            item_BC,
            self.interact.widest,
            self.n_items,
        )

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The only behaviour's logit: z_BC1."""
        return self._logit(query, item_BC).unsqueeze(-1)

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up."""
        return mean_square_of(look_up(self.user, query.user_B), look_up(self.item, item_BC))

    @property
    def n_items(self) -> int:
        return next(iter(self.item.values())).num_embeddings - 1

    @torch.no_grad()
    def _start_from(self, pretrained: Mapping[str, str], share: Mapping[str, float]) -> None:
        if set(pretrained) != set(self.user) or len(self.user) < 2:
            raise RecexpError(
                f"pretrained={dict(pretrained)}: give one checkpoint for each of gmf and mlp, and interaction=neumf to join them."
            )
        heads, bias = [], 0.0
        own = self.state_dict()
        for part in self.user:
            state = _load_state(pretrained[part])
            for name, value in state.items():
                if name.startswith("interact.head."):
                    continue
                if name not in own or own[name].shape != value.shape:
                    raise RecexpError(
                        f"{pretrained[part]}: weight {name} {tuple(value.shape)} does not fit this neumf. "
                        f"Train the {part} with the same data, num_factors and num_layers."
                    )
                own[name].copy_(value)
            heads.append(share[part] * state["interact.head.weight"])
            bias = bias + share[part] * state["interact.head.bias"]
        self.interact.head.weight.copy_(torch.cat(heads, dim=1))
        self.interact.head.bias.copy_(bias)


class Interaction(nn.Module):
    """NeuMF's function of a user and an item given their embeddings, per part: h . [p^G * q^G; tower([p^M; q^M])] (+ b)."""

    def __init__(
        self,
        widths: Mapping[str, int],
        num_factors: int,
        num_layers: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_factors = num_factors
        self.widest = num_factors
        self.tower = None
        if "mlp" in widths:
            tower = [num_factors << k for k in range(num_layers, -1, -1)]
            self.tower = PairMLP(tower, dropout=dropout)
            self.widest = tower[1]
        self.head = nn.Linear(num_factors * len(widths), 1, bias=bias)
        xavier_linears(self)
        limit = (3.0 / self.head.in_features) ** 0.5  # LeCun uniform
        nn.init.uniform_(self.head.weight, -limit, limit)

    def forward(self, user: Mapping[str, Rows], item: Mapping[str, Rows]) -> Tensor:
        """Logits [B, C] of users [B] and items [B, C], or [C] shared by all rows, by part."""
        weight = self.head.weight.squeeze(0).split(self.num_factors)
        z = 0.0 if self.head.bias is None else self.head.bias
        if "gmf" in user:
            z = z + item["gmf"].dot(user["gmf"].vectors * weight[0])
        if self.tower is not None:
            z = z + self._tower(user["mlp"], item["mlp"]) @ weight[-1]
        return z

    def _tower(self, user: Rows, item: Rows) -> Tensor:
        tower = self.tower
        if self.training and tower.dropout.p > 0:  # every pair drops inputs of its own
            return tower(user.vectors.unsqueeze(1), item.vectors)
        return tower.join(user.through(tower.left).unsqueeze(1), item.through(tower.right))


def interaction_widths(interaction: str, num_factors: int, num_layers: int) -> dict[str, int]:
    """Embedding width per part of the interaction named. Raises RecexpError for an unknown name or senseless sizes."""
    require_positive(num_factors=num_factors, num_layers=num_layers)
    if interaction not in INTERACTIONS:
        raise RecexpError(f"interaction={interaction!r} is not one of {', '.join(INTERACTIONS)}.")
    width = {"gmf": num_factors, "mlp": num_factors << (num_layers - 1)}
    return {part: width[part] for part in INTERACTIONS[interaction]}


def pair_tables(schema: Schema, widths: Mapping[str, int]) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """User and item embeddings per part."""
    user = nn.ModuleDict({part: Embedding(schema.n_users, width) for part, width in widths.items()})
    item = nn.ModuleDict(
        {part: Embedding(schema.V, width, padding_idx=0) for part, width in widths.items()}
    )
    return user, item


def look_up(tables: nn.ModuleDict, id: Tensor) -> dict[str, Rows]:
    """The ids' rows of every table."""
    return {part: Rows(table, id) for part, table in tables.items()}


def mean_square_of(*rows: Mapping[str, Rows]) -> Tensor:
    """Mean square of all the vectors looked up."""
    return mean_square(*(part.vectors for parts in rows for part in parts.values()))


def in_chunks(
    score: Callable[[Tensor], Tensor],
    query: Query,
    item_BC: Tensor | None,
    width: int,
    n_items: int,
) -> Tensor:
    """Scores of the candidates, or of the whole catalogue where item_BC is None, so many items at a time that B * items * width
    floats stay small. ``score`` takes item ids [B, c], or [c] shared by all rows, and returns [B, c]."""
    items = torch.arange(1, n_items + 1, device=query.user_B.device) if item_BC is None else item_BC
    block = _BLOCK if items.device.type == "cpu" else _BLOCK << 6
    step = max(1, block // (width * max(1, len(query))))
    if items.shape[-1] <= step:
        return score(items)
    parts = items.split(step, dim=-1)
    if torch.is_grad_enabled():
        return torch.cat([score(part) for part in parts], dim=-1)
    scores = None
    for part, at in zip(
        parts, range(0, items.shape[-1], step), strict=True
    ):  # into place: a list of small pieces splinters a CPU's memory
        z = score(part)
        scores = z.new_empty(len(query), items.shape[-1]) if scores is None else scores
        scores[:, at : at + step] = z
    return scores


def _load_state(path: str) -> dict[str, Tensor]:
    """A model's weights from a training checkpoint or a bare state dict."""
    if not Path(path).is_file():
        raise RecexpError(f"pretrained: no such checkpoint: {path}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" in state:
        state = {
            name.removeprefix("model."): x
            for name, x in state["state_dict"].items()
            if name.startswith("model.")
        }
    return state
