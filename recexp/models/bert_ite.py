"""BERT-ITE: ITE with a Transformer over user, history and target instead of the user vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.models.common import latest
from recexp.models.ite import (
    ImplicitToExplicit,
    Variant,
    checked_chunk,
    chunk_size,
    joint_logit,
)
from recexp.nn.embeddings import ItemEncoder, SideScale, SideVectors, UserEncoder
from recexp.nn.events import EventSides
from recexp.nn.init import normal_embeddings, xavier_linears
from recexp.nn.parameters import Count, Depth, Rate, Share, Width, one_of
from recexp.nn.shared_context import NormPlace, SharedContextTransformer
from recexp.nn.traced import Foldable, score_catalog
from recexp.nn.transformer import PositionEmbedding, Positions
from recexp.types import Query, Schema

Pad = Literal["mask", "random"]


class BertITE(MultiBehavior, Foldable):
    """Ranks by P(implicit) * P(explicit | implicit) from phi = u * e.

    u is the last state of the user's row of a Transformer over [user; history; target], and e is
    the target's embedding.

    n_factors: width K of everything; n_heads must divide it.
    max_len: how many of the newest events are read.
    positions: "none": their order has no effect (paper, authors' code). "left" and "right": learned
        positions are added to the events' vectors (``PositionEmbedding``). Not in the paper.
    norm: "post" (paper) or "pre" (authors' code; no final norm).
    target_in_sequence: whether the candidate is a row of the sequence (paper), or the sequence is
        user and history only (authors' code).
    pad: "mask" hides the missing events of short histories (authors' code). "random" fills them up
        with items (paper): slot j of user u always holds the same item. In training mode it is
        never the row's positive (candidate 0). In evaluation it ignores the candidates, since
        avoiding them would tell the model which one is the answer; it is the test item with
        probability below max_len / items.
    user_dropout: share of training rows that see no user vector, so that the history must be used;
        1: the user vector is never used. Not in the paper.
    attention_dropout: one mask per row for the history's weights, shared by the row's candidates.
    tower: explicit tower "paper" K-K/2-1 with ReLU, or "authors" K-2K-1 with sigmoid and biased
        outputs.
    init: "paper" is embeddings N(0, 0.02^2), Glorot uniform weights, biases 0; "authors" is
        embeddings N(0, 1) and torch's own linear layers.
    item_side, user_side, side_scale, side_vectors: as in ``ITE``.
    event_side: features of the events read, added to their vectors (``EventSides``).
    penalty: what objective.l2 weighs. "paper": the mean square of the user vectors, plus that of
        the events read, plus that of the candidates. "authors": the mean square of the users' id
        vectors, plus that of the id vectors of all max_len places, missing events counted as zeros;
        neither candidates nor side information.
    chunk: most floats in the sequence rows of one chunk, in training too (None: see
        ``chunk_size``). Smaller needs less memory and computes less padding.
    brute_force: run the whole Transformer on every candidate's sequence; the same numbers, for
        tests and measurements.

    ITE paper, arXiv:2107.12325; authors' code https://github.com/tranquyenbk173/BERT_ITE.

    Extra shape symbol: m rows of the context, the user and the events read.
    """

    n_behaviors = 2

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        n_layers: Depth = 2,
        n_heads: Width = 2,
        max_len: Annotated[int, Field(ge=0, le=1_000_000)] = 20,
        positions: Positions = "none",
        norm: NormPlace = "post",
        target_in_sequence: bool = True,
        pad: Pad = "mask",
        user_dropout: Share = 0.0,
        dropout: Rate = 0.1,
        attention_dropout: Rate = 0.1,
        tower: Variant = "paper",
        init: Variant = "paper",
        item_side: str | Sequence[str] = (),
        user_side: str | Sequence[str] = (),
        event_side: str | Sequence[str] = (),
        side_scale: SideScale = "sum",
        side_vectors: SideVectors = "frozen",
        penalty: Variant = "paper",
        chunk: Count | None = None,
        brute_force: bool = False,
    ):
        super().__init__()
        K = n_factors
        self.random_pad = one_of("pad", pad, Pad) == "random"
        one_of("tower", tower, Variant)
        one_of("init", init, Variant)
        self.authors_penalty = one_of("penalty", penalty, Variant) == "authors"
        if max_len < 0:
            raise RecexpError(f"max_len={max_len} must not be negative.")
        if not 0 <= user_dropout <= 1:
            raise RecexpError(f"user_dropout={user_dropout} must lie in [0, 1].")
        self.history = max_len
        self.chunk = checked_chunk(chunk)
        self.user_dropout = user_dropout
        self.target_in_sequence = target_in_sequence
        self.users = UserEncoder(schema, K, side=user_side, scale=side_scale, vectors=side_vectors)
        self.items = ItemEncoder(schema, K, side=item_side, scale=side_scale, vectors=side_vectors)
        self.event_sides = EventSides(schema, K, event_side, causal=False)
        has_positions = one_of("positions", positions, Positions) != "none"
        self.position = PositionEmbedding(max_len, K, positions) if has_positions else None
        self.transformer = SharedContextTransformer(
            K,
            n_layers,
            n_heads,
            norm=norm,
            dropout=dropout,
            attention_dropout=attention_dropout,
            brute_force=brute_force,
        )
        if tower == "authors":
            self.head = ImplicitToExplicit(K, 2 * K, nn.Sigmoid(), bias=True)
        else:
            self.head = ImplicitToExplicit(K, max(1, K // 2), nn.ReLU(), bias=False)
        normal_embeddings(self, 1.0 if init == "authors" else 0.02)
        if init == "paper":
            xavier_linears(self)

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """z_BCK with K = 2: implicit, and explicit given implicit."""
        return self._in_chunks(query, item_BC, lambda z_BC2: z_BC2)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """``joint_logit``."""
        if torch.compiler.is_exporting() and item_BC is None:
            return self._traced_scores(query)
        return self._in_chunks(query, item_BC, joint_logit)

    def _traced_scores(self, query: Query) -> Tensor:
        """Scores [B, V-1] of all items, of all rows together."""
        # Candidates matter to the context in training mode only.
        x_BmD, mask_Bm = self._context(query, query.item_BL, self.history)
        n_rows = x_BmD.shape[1] + 1
        width = self.transformer.widest * (n_rows if self.transformer.keeps_rows else 1)
        return score_catalog(
            lambda item: joint_logit(self._logits(x_BmD, mask_Bm, self.items(item[None]))),
            self.items.n_items,
            width,
        )

    def item_embeddings(self) -> Tensor:
        return self.items.catalog()

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """See the class."""
        item_BL = self._events(query, item_BC, self.history)
        if self.authors_penalty:
            # Padding has a vector of its own in their code, which only this term changes and
            # nothing reads; here it is 0.
            event_BLD = self.items.id(item_BL)
            n_floats = len(query) * self.history * event_BLD.shape[-1]
            user_BD = self.users.id(query.user_B)
            return user_BD.square().mean() + event_BLD.square().sum() / max(1, n_floats)
        user_BD = self._drop_users(self.users(query.user_B, query.without_B))
        event_ED = self.items(item_BL[item_BL != 0])
        event_square = event_ED.square().sum() / max(1, event_ED.numel())
        return user_BD.square().mean() + event_square + self.items(item_BC).square().mean()

    def _in_chunks(
        self, query: Query, item_BC: Tensor | None, finish: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """finish(logits) of all candidates, by chunks of rows and candidates, [B, C, ...].

        Rows of similar length are computed together, which saves their common padding.
        """
        device = query.user_B.device
        shared = item_BC is None
        if item_BC is None:
            item_BC = torch.arange(1, self.items.n_items + 1, device=device)[None]
        length_B = query.mask_BL.sum(1).clamp(max=self.history)
        if self.random_pad:
            length_B = torch.full_like(length_B, self.history)
        step_B, step_C = self._chunk_shape(length_B, item_BC.shape[1])
        order_B = length_B.argsort()
        parts = []
        for rows in order_B.split(step_B):
            item = item_BC if shared else item_BC[rows]
            longest = int(length_B[rows[-1]]) if len(rows) else 0
            x_BmD, mask_Bm = self._context(query[rows], item, longest)
            scores = [
                finish(self._logits(x_BmD, mask_Bm, self.items(part)))
                for part in item.split(step_C, 1)
            ]
            parts.append(torch.cat(scores, 1))
        return torch.cat(parts)[order_B.argsort()]

    def _chunk_shape(self, length_B: Tensor, n_candidates: int) -> tuple[int, int]:
        """Rows and candidates whose Transformer rows fit into one chunk."""
        n_rows = 1 + (int(length_B.max()) if len(length_B) else 0)  # of the longest context
        width = self.items.id.embedding_dim
        keeps_rows = self.transformer.keeps_rows and self.target_in_sequence
        per_candidate = n_rows + 1 if keeps_rows else 1
        chunk = chunk_size(self.chunk, length_B.device)
        step_C = min(n_candidates, max(1, chunk // (per_candidate * width)))
        step_B = max(1, chunk // ((step_C * per_candidate + n_rows) * width))
        return step_B, step_C

    def _logits(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor) -> Tensor:
        """[B, C, 2]"""
        state = self.transformer(x_BmD, mask_Bm, e_BCD if self.target_in_sequence else None)
        return self.head(state * e_BCD)

    def _context(self, query: Query, item_BC: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Input rows [user; last ``length`` events] [B, m, D], and which of them are real."""
        item_BL = self._events(query, item_BC, length)
        user_BD = self._drop_users(self.users(query.user_B, query.without_B))
        event_BLD = self.items(item_BL)
        n_events = item_BL.shape[1]
        if len(self.event_sides) and n_events:
            newest = latest(query, n_events, least=n_events)
            event_BLD = self.event_sides.add_to(event_BLD, newest)
        mask_BL = item_BL != 0
        if self.position is not None:
            event_BLD = event_BLD + self.position(mask_BL)
        x_BmD = torch.cat([user_BD[:, None], event_BLD], 1)
        return x_BmD, F.pad(mask_BL, (1, 0), value=True)

    def _events(self, query: Query, item_BC: Tensor, length: int) -> Tensor:
        """The last ``length`` events; with pad "random", missing ones are filled."""
        item_BL = query.item_BL[:, max(0, query.item_BL.shape[1] - length) :]
        if not self.random_pad:
            return item_BL
        item_BL = F.pad(item_BL, (self.history - item_BL.shape[1], 0))
        folded = self.folded
        filler_BL = self._filler(query.user_B) if folded is None else folded[query.user_B]
        if self.training:
            is_positive_BL = filler_BL == item_BC[:, :1]
            filler_BL = torch.where(is_positive_BL, filler_BL % self.items.n_items + 1, filler_BL)
        return torch.where(item_BL == 0, filler_BL, item_BL)

    def _drop_users(self, user_BD: Tensor) -> Tensor:
        """User vectors; in training, some of them are replaced by 0."""
        if self.user_dropout == 1:
            return torch.zeros_like(user_BD)
        if self.user_dropout == 0 or not self.training:
            return user_BD
        return user_BD * (torch.rand(len(user_BD), 1, device=user_BD.device) >= self.user_dropout)

    def fold(self) -> None:
        """Keep the items that fill up histories; ONNX cannot compute them."""
        if self.random_pad:
            self.folded = self._filler(torch.arange(self.users.id.num_embeddings))

    def _filler(self, user_B: Tensor) -> Tensor:
        """An item per (user, slot), [B, L]: pseudorandom, but always the same.

        A 64-bit mix of the pair's number, with constants of fasthash
        (https://github.com/ztanml/fast-hash) and L'Ecuyer 1999.
        """
        slot_L = torch.arange(self.history, device=user_B.device)
        x_BL = user_B[:, None] * self.history + slot_L + 1
        for multiplier in (0x2127599BF4325C37, 0x369DEA0F31A53F85):
            x_BL = (x_BL ^ (x_BL >> 31)) * multiplier
        x_BL = (x_BL ^ (x_BL >> 31)) & (2**63 - 1)
        return x_BL % self.items.n_items + 1
