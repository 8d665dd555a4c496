"""Vectors of items and users: an id embedding plus any side features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import one_of
from recexp.nn.traced import Foldable
from recexp.types import Bag, Feature, Schema

ItemFusion = Literal["add", "concat", "gate"]
SideScale = Literal["sum", "half"]
SideVectors = Literal["frozen", "trained"]


def chosen_side(side: str | Sequence[str], available: Iterable[str], owner: str) -> tuple[str, ...]:
    """Names of the side features to use. "all" takes every available one.

    owner: "item" or "user", for the message. Raises RecexpError for a name that the data does not
    have, for a name given twice, and for "all" where the data has no side features.
    """
    available = tuple(available)
    if side == "all":
        if not available:
            raise RecexpError(
                f"{owner}_side: all, but the prepared data has no side features of {owner}s. "
                "Take a dataset with item features, or the model without side information "
                f"({owner}_side: [])."
            )
        return available
    names = (side,) if isinstance(side, str) else tuple(side)
    if unknown := [name for name in names if name not in available]:
        known = list(available) or "no side features"
        raise RecexpError(f"{owner}_side names {unknown}, but the prepared data has {known}.")
    if len(set(names)) < len(names):
        raise RecexpError(f"{owner}_side names a feature twice: {list(names)}.")
    return names


class FeatureBag(Foldable):
    """Vectors of one feature of items (users): sum_m weight[item, m] * E[id[item, m]].

    That equals a linear map without bias of the feature's indicator (or number, or vector). Adding
    it to an id embedding therefore equals concatenating one-hot and feature vector before one
    linear layer. Input: item ids [...]; output [..., D].

    vectors: those of a feature of kind "vector" stay as they are ("frozen"), or are parameters that
        start there ("trained"). E maps them to width D in both cases.
    padding: the row of padding, whose vector is not trained; None for users.
    """

    id_VM: Tensor
    weight_VM: Tensor

    def __init__(
        self,
        feature: Feature,
        width: int,
        *,
        vectors: SideVectors = "frozen",
        padding: int | None = 0,
    ):
        super().__init__()
        self.is_vector = feature.kind == "vector"
        self.padding = padding
        self.table = Embedding(feature.cardinality, width, padding_idx=0)
        # The values come with the data, not with the checkpoint.
        self.register_buffer("id_VM", feature.id_VM, persistent=False)
        if self.is_vector and vectors == "trained":
            self.weight_VM = nn.Parameter(feature.weight_VM.clone())
        else:
            self.register_buffer("weight_VM", feature.weight_VM, persistent=False)

    def forward(self, item: Tensor) -> Tensor:
        if self.folded is not None:
            return F.embedding(item, self.folded)
        item_N = item.reshape(-1)
        table = self.table.weight
        if self.is_vector:
            vector = F.embedding(item, self.weight_VM, self.padding).to(table.dtype)
            return vector @ table[1 : 1 + vector.shape[-1]]
        out_ND = F.embedding_bag(
            self.id_VM[item_N],
            table,
            per_sample_weights=self.weight_VM[item_N].to(table.dtype),
            mode="sum",
        )
        return out_ND.view(*item.shape, table.shape[1])

    def fold(self) -> None:
        self.folded = self(torch.arange(len(self.id_VM), device=self.id_VM.device))
        del self.table, self.id_VM, self.weight_VM


class _WithTable(Foldable):
    """Has a table of ids, its own or that of the model it is a part of.

    A model's table stays the model's, under its name in checkpoints.
    """

    def __init__(self, n_rows: int, width: int, padding: int | None, table: nn.Embedding | None):
        super().__init__()
        self._of_model = () if table is None else (table,)  # a tuple registers no module
        if table is None:
            self.id = Embedding(n_rows, width, padding_idx=padding)

    @property
    def ids(self) -> nn.Embedding:
        """The table of ids."""
        return self._of_model[0] if self._of_model else self.id


class ItemEncoder(_WithTable):
    """Item vectors: the id embedding fused with the vectors of side features.

    side: names from schema.item_features, or "all".
    fusion: of the F = 1 + len(side) vectors f_i. "add" sums them; "concat" is a linear map of
        [f_1; ...; f_F]; "gate" is sum_i G_i f_i with G = softmax over i of f_i . w, where w starts
        at 0, i.e. with equal gates (NOVA-BERT, sec. 3, arXiv:2103.03578).
    scale: "sum", or "half" for 0.5 * id + 0.5 * (sum of the side vectors), as in the ITE authors'
        code, https://github.com/tranquyenbk173/BERT_ITE.
    vectors: what becomes of features that are vectors, see ``FeatureBag``.
    table: the id embedding of a model that has one; None makes one. Its rows beyond the items, such
        as that of [MASK], have no features.

    Item 0 (padding) has the zero vector. Raises RecexpError for features that the data does not
    have and for choices that do not go together.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        *,
        side: str | Sequence[str] = (),
        fusion: str = "add",
        scale: str = "sum",
        vectors: SideVectors = "frozen",
        table: nn.Embedding | None = None,
    ):
        super().__init__(schema.V, width, 0, table)
        names = chosen_side(side, schema.item_features, "item")
        one_of("side_vectors", vectors, SideVectors)
        self.fusion = one_of("fusion", fusion, ItemFusion)
        self.scale = one_of("side_scale", scale, SideScale)
        if scale == "half" and fusion != "add":
            raise RecexpError(
                "scale=half averages the vectors before adding them; "
                f"it does not go with fusion={fusion}."
            )
        self.n_items = schema.n_items
        self.side = nn.ModuleList(
            FeatureBag(schema.item_features[name], width, vectors=vectors) for name in names
        )
        if fusion == "concat":
            self.mix = nn.Linear((1 + len(names)) * width, width, bias=False)
        elif fusion == "gate":
            self.mix = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.mix.weight)

    def forward(self, item: Tensor) -> Tensor:
        """Item ids [...] -> vectors [..., D]."""
        if self.folded is not None:
            return F.embedding(item, self.folded)
        if self._is_plain:
            return self.ids(item)
        known = item
        if self.ids.num_embeddings > self.n_items + 1:
            known = item.masked_fill(item > self.n_items, 0)
        vectors = [self.ids(item), *(bag(known) for bag in self.side)]
        if self.fusion == "concat":
            return self.mix(torch.cat(vectors, -1))
        if self.fusion == "gate":
            stacked = torch.stack(vectors, -2)  # [..., F, D]
            return (self.mix(stacked).softmax(-2) * stacked).sum(-2)
        return _add(vectors[0], vectors[1:], self.scale)

    def table(self) -> Tensor:
        """Vectors of all items [V, D], row 0 padding."""
        if self.folded is not None:
            return self.folded[: self.n_items + 1]
        weight = self.ids.weight
        if self._is_plain and len(weight) == self.n_items + 1:
            return weight
        return self(torch.arange(self.n_items + 1, device=weight.device))

    def catalog(self) -> Tensor:
        """Vectors of all items without the padding, [V-1, D]."""
        if self._is_plain:
            return self.ids.weight[1 : self.n_items + 1]
        return self.table()[1:]

    @property
    def _is_plain(self) -> bool:
        """The id embedding is all there is."""
        return self.folded is None and not self.side and self.fusion == "add"

    def fold(self) -> None:
        if self._of_model and not self.side:
            return  # the model's table is all there is
        self.folded = self(torch.arange(self.ids.num_embeddings, device=self.ids.weight.device))
        self.side = nn.ModuleList()
        if not self._of_model:
            del self.id
        if self.fusion != "add":
            del self.mix


class UserBag(nn.Module):
    """Vectors of one user feature: the mean of E over the values of the user's training items.

    A value counts once per item that carries it, whatever its weight in the item's own vector.

    bag: the counts of values per user.
    items: the item feature that the counts were made from. It names the values of an item to leave
        out. Leaving one out equals a bag made from the user's other training items.
    """

    ptr: Tensor
    value: Tensor
    count: Tensor
    id_VM: Tensor

    def __init__(self, bag: Bag, items: Feature, width: int):
        super().__init__()
        self.table = Embedding(bag.cardinality, width, padding_idx=0)
        self.register_buffer("ptr", bag.ptr, persistent=False)
        self.register_buffer("value", bag.id, persistent=False)
        self.register_buffer("count", bag.count, persistent=False)
        self.register_buffer("id_VM", items.id_VM, persistent=False)

    def forward(self, user_B: Tensor, without_B: Tensor | None = None) -> Tensor:
        """[B, D]. without_B: one of the user's training items per row, or 0 for none.

        Extra shape symbol: E entries of all the batch's bags, one bag after another.
        """
        table = self.table.weight
        start_B = self.ptr[user_B]
        length_B = self.ptr[user_B + 1] - start_B
        offset_B = length_B.cumsum(0) - length_B
        # Ragged gather: entry e of the flat list belongs to row r and is that row's e - offset[r].
        row_E = torch.repeat_interleave(torch.arange(len(user_B), device=user_B.device), length_B)
        entry_E = torch.arange(len(row_E), device=user_B.device) + (start_B - offset_B)[row_E]
        value_E = self.value[entry_E]
        count_E = self.count[entry_E].to(table.dtype)
        if without_B is not None:
            # Counts change, not vectors: a value that no other item carries has weight 0 and no
            # gradient.
            carried_E = (self.id_VM[without_B][row_E] == value_E[:, None]).any(1)
            count_E = count_E - carried_E.to(count_E.dtype)
        total_B = count_E.new_zeros(len(user_B)).index_add_(0, row_E, count_E)
        share_E = count_E / total_B.clamp(min=1)[row_E]
        return F.embedding_bag(value_E, table, offset_B, per_sample_weights=share_E, mode="sum")


class UserAttribute(FeatureBag):
    """Vectors of a column of a table of users."""

    def forward(self, user_B: Tensor, without_B: Tensor | None = None) -> Tensor:
        """[B, D]. without_B has no effect: no item decides about the attribute."""
        return super().forward(user_B)


class UserEncoder(_WithTable):
    """User vectors: the id embedding plus the vectors of side features.

    side: names from schema.user_features (the user's normalized bag of the values of their items,
        ITE paper, ITE-Si) and from schema.user_attributes (columns of a table of users), or "all".
    scale, vectors, table: as in ``ItemEncoder``.

    Raises RecexpError for features that the data does not have.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        *,
        side: str | Sequence[str] = (),
        scale: str = "sum",
        vectors: SideVectors = "frozen",
        table: nn.Embedding | None = None,
    ):
        super().__init__(schema.n_users, width, None, table)
        bags = schema.user_features
        names = chosen_side(side, [*bags, *schema.user_attributes], "user")
        one_of("side_vectors", vectors, SideVectors)
        self.scale = one_of("side_scale", scale, SideScale)
        self.side = nn.ModuleList(
            UserBag(bags[name], schema.item_features[name], width)
            if name in bags
            else UserAttribute(schema.user_attributes[name], width, vectors=vectors, padding=None)
            for name in names
        )

    def forward(self, user_B: Tensor, without_B: Tensor | None = None) -> Tensor:
        """Vectors [B, D].

        without_B: per row one training item whose values do not count in the bag, or 0 for none.
        """
        if self.folded is not None:
            return F.embedding(user_B, self.folded)
        return _add(self.ids(user_B), [bag(user_B, without_B) for bag in self.side], self.scale)

    def fold(self) -> None:
        """``without_B``, a matter of training, has no effect any more."""
        if self._of_model and not self.side:
            return  # the model's table is all there is
        weight = self.ids.weight
        self.folded = self(torch.arange(len(weight), device=weight.device))
        self.side = nn.ModuleList()
        if not self._of_model:
            del self.id


def _add(base: Tensor, side: list[Tensor], scale: str) -> Tensor:
    if not side:
        return base
    total = base + sum(side)
    return 0.5 * total if scale == "half" else total
