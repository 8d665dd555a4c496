"""Neural collaborative filtering: GMF, MLP and NeuMF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.models.common import mean_square, score_in_chunks
from recexp.nn.init import normal_embeddings, xavier_linears
from recexp.nn.lookup import Embedding, Rows
from recexp.nn.mlp import PairMLP
from recexp.nn.parameters import Depth, NonNegative, Rate, Share, Width, one_of, require_positive
from recexp.types import Query, Schema

InteractionKind = Literal["gmf", "mlp", "neumf"]


class NeuMF(MultiBehavior):
    """One logit per user and item, read from one or two vectors:

        gmf: p^G_u * q^G_i            mlp: tower([p^M_u; q^M_i])            logit = h . vector + b

    interaction: "gmf", "mlp", or "neumf" for the concatenation of both vectors. Each has embeddings
        of its own.
    n_factors: width f of either vector.
    n_layers: of the tower, each half as wide as the one before: for 3 layers [8f, 4f, 2f, f],
        8f being two embeddings of 4f.
    dropout: on the input of every layer of the tower.
    init_std: embeddings start at N(0, init_std^2).
    pretrained: checkpoints {"gmf": path, "mlp": path} of the two trained alone, to start a neumf
        from. Their output weights enter times alpha and 1 - alpha (0.5 in the paper).

    He et al. 2017, sec. 3.2-3.4, arXiv:1708.05031. Initial values as in the authors' code,
    https://github.com/hexiangnan/neural_collaborative_filtering; dropout is ours.
    """

    n_behaviors = 1

    def __init__(
        self,
        schema: Schema,
        *,
        interaction: InteractionKind = "neumf",
        n_factors: Width = 8,
        n_layers: Depth = 3,
        dropout: Rate = 0.0,
        init_std: NonNegative = 0.01,
        pretrained: Mapping[str, str] | None = None,
        alpha: Share = 0.5,
    ) -> None:
        super().__init__()
        widths = interaction_widths(interaction, n_factors, n_layers)
        self.n_items = schema.n_items
        self.user, self.item = pair_tables(schema, widths)
        self.interact = Interaction(widths, n_factors, n_layers, dropout=dropout)
        normal_embeddings(self, init_std)
        if pretrained:
            self._start_from(pretrained, {"gmf": alpha, "mlp": 1 - alpha})

    def _logit(self, query: Query, item: Tensor) -> Tensor:
        return self.interact(look_up(self.user, query.user_B), look_up(self.item, item))

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        width = self.interact.floats_per_pair(shared=item_BC is None)
        return score_in_chunks(
            lambda item: self._logit(query, item), query, item_BC, width, self.n_items
        )

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The logit of the only behavior, z_BC1."""
        return self._logit(query, item_BC).unsqueeze(-1)

    def item_embeddings(self) -> Tensor:
        return joined_table(self.item)[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square_of_rows(look_up(self.user, query.user_B), look_up(self.item, item_BC))

    @torch.no_grad()
    def _start_from(self, pretrained: Mapping[str, str], share: Mapping[str, float]) -> None:
        """Copy the weights of the parts; the output weights are averaged by share."""
        if set(pretrained) != set(self.user) or len(self.user) < 2:
            raise RecexpError(
                f"pretrained={dict(pretrained)}: give one checkpoint for each of gmf and mlp, "
                "and interaction=neumf to join them."
            )
        weights = []
        biases = []
        for part in self.user:
            state = _load_state(pretrained[part])
            self._copy_all_but_head(state, part, pretrained[part])
            weights.append(share[part] * state["interact.head.weight"])
            biases.append(share[part] * state["interact.head.bias"])
        self.interact.head.weight.copy_(torch.cat(weights, dim=1))
        self.interact.head.bias.copy_(biases[0] + biases[1])

    def _copy_all_but_head(self, state: Mapping[str, Tensor], part: str, path: str) -> None:
        own = self.state_dict()
        for name, value in state.items():
            if name.startswith("interact.head."):
                continue
            if name not in own or own[name].shape != value.shape:
                raise RecexpError(
                    f"{path}: weight {name} {tuple(value.shape)} does not fit this neumf. "
                    f"Train the {part} with the same data, n_factors and n_layers."
                )
            own[name].copy_(value)


class Interaction(nn.Module):
    """h . [p^G * q^G; tower([p^M; q^M])] (+ b), from the embeddings of each part.

    widths: embedding width per part, see ``interaction_widths``. bias: whether there is a b.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        n_factors: int,
        n_layers: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.n_factors = n_factors
        self.widest = n_factors  # of the vectors computed per pair
        self.tower: PairMLP | None = None
        if "mlp" in widths:
            tower = [n_factors << k for k in range(n_layers, -1, -1)]
            self.tower = PairMLP(tower, dropout=dropout)
            self.widest = tower[1]
        self.head = nn.Linear(n_factors * len(widths), 1, bias=bias)
        xavier_linears(self)
        limit = (3.0 / self.head.in_features) ** 0.5  # LeCun uniform
        nn.init.uniform_(self.head.weight, -limit, limit)

    def forward(self, user: Mapping[str, Rows], item: Mapping[str, Rows]) -> Tensor:
        """Logits [B, C] of users [B] and items [B, C], or items [C] shared by all rows, by part."""
        weights = self.head.weight.squeeze(0).split(self.n_factors)
        z: Tensor | float = 0.0 if self.head.bias is None else self.head.bias
        if "gmf" in user:
            z = z + item["gmf"].dot(user["gmf"].vectors * weights[0])
        if self.tower is not None:
            z = z + self._tower_dot(self.tower, user["mlp"], item["mlp"], weights[-1])
        return cast(Tensor, z)

    def floats_per_pair(self, shared: bool) -> int:
        """How many floats a pair takes while it is scored. shared: whether all rows' items are."""
        return 1 if shared and self._scores_in_blocks() else self.widest

    def _tower_dot(self, tower: PairMLP, user: Rows, item: Rows, weight: Tensor) -> Tensor:
        """Inner products of the tower's outputs with the head's weights, [B, C]."""
        if self.training and tower.dropout.p > 0:
            # Every pair drops inputs of its own.
            return tower(user.vectors.unsqueeze(1), item.vectors) @ weight
        left = user.through(tower.left)
        right = item.through(tower.right)
        if item.id.dim() == 1 and self._scores_in_blocks():
            return tower.dot_all(left, right, weight)
        return tower.join(left.unsqueeze(1), right) @ weight

    def _scores_in_blocks(self) -> bool:
        if torch.compiler.is_exporting():
            return False
        on_cpu = self.head.weight.device.type == "cpu"
        keeps_type = not torch.is_autocast_enabled("cpu")
        return on_cpu and keeps_type and not torch.is_grad_enabled() and not self.training


def interaction_widths(interaction: str, n_factors: int, n_layers: int) -> dict[str, int]:
    """Embedding width per part. Raises RecexpError for an unknown interaction or sizes below 1."""
    require_positive(n_factors=n_factors, n_layers=n_layers)
    one_of("interaction", interaction, InteractionKind)
    width = {"gmf": n_factors, "mlp": n_factors << (n_layers - 1)}
    return width if interaction == "neumf" else {interaction: width[interaction]}


def pair_tables(schema: Schema, widths: Mapping[str, int]) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """User and item embeddings per part."""
    user = {part: Embedding(schema.n_users, width) for part, width in widths.items()}
    item = {part: Embedding(schema.V, width, padding_idx=0) for part, width in widths.items()}
    return nn.ModuleDict(user), nn.ModuleDict(item)


def look_up(tables: nn.ModuleDict, id: Tensor) -> dict[str, Rows]:
    """The rows of the ids in every table."""
    return {part: Rows(cast(Embedding, table), id) for part, table in tables.items()}


def joined_table(tables: nn.ModuleDict) -> Tensor:
    """The vectors of all ids side by side, [V, sum of the parts' widths]."""
    return torch.cat([cast(Embedding, table).weight for table in tables.values()], dim=1)


def mean_square_of_rows(*rows: Mapping[str, Rows]) -> Tensor:
    """Mean square of all the vectors looked up."""
    return mean_square(*(part.vectors for parts in rows for part in parts.values()))


def _load_state(path: str) -> dict[str, Tensor]:
    """A model's weights, from a training checkpoint or a bare state dict."""
    if not Path(path).is_file():
        raise RecexpError(f"pretrained: no such checkpoint: {path}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" not in state:
        return state
    return {
        name.removeprefix("model."): value
        for name, value in state["state_dict"].items()
        if name.startswith("model.")
    }
