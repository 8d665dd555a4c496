"""BERT-ITE (S000; spec 6.4-6.5): a Transformer over user, history and target instead of ITE's user vector. No positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.models.ite import ImplicitToExplicit, both, checked_chunk, chunk_size
from recexp.nn.embeddings import ItemEncoder, UserEncoder, one_of
from recexp.nn.init import normal_embeddings, xavier_linears
from recexp.nn.shared_context import SharedContextTransformer
from recexp.types import Query, Schema


class BertITE(MultiBehaviour):
    """Ranks by P(implicit) * P(explicit | implicit) with phi_I = (last state of the user's row) * (target embedding).

    num_factors K is the width of everything; num_heads must divide it.
    max_len n: the most recent n events are read. Order among them has no effect.
    norm: "post" (paper) or "pre" (authors' code; no final norm).
    target_in_sequence: the candidate is a row of the sequence (paper), or only user and history are (authors' code).
    pad: "mask" hides the missing events of short histories; "random" fills them up to n with items (see below).
    user_dropout: share of training rows that see no user vector, so that the history must speak (not in the paper; 1: the
        user vector is never used). Where few events per user meet many items, user vectors memorise instead of generalising.
    tower: explicit tower "paper" K-K/2-1 with ReLU, or "authors" K-2K-1 with sigmoid and biased outputs.
    init: "paper" (embeddings N(0, 0.02^2), Glorot, zero biases) or "authors" (embeddings N(0, 1), torch's own linears).
    item_side, user_side, side_scale: as in ITE.
    penalty: what objective.l2 weighs. "paper": the mean square of the user vectors, plus that of
        the events read, plus that of the candidates. "authors" (their code,
        https://github.com/tranquyenbk173/BERT_ITE): the mean square of the users' id vectors, plus
        that of the id vectors of all max_len places, missing events counted as zeros; neither
        candidates nor side information.
    chunk: most floats in the sequence rows of one chunk, in training too (None: see ``chunk_size``). Smaller needs less
        memory and computes less padding.
    brute_force: run the whole Transformer on every candidate's sequence; same numbers, for tests and measurements.

    pad="random": slot j of user u always holds the same item, whatever the batch. In training mode it is never the
    row's positive (candidate 0). In evaluation the fill ignores the candidates: it may be the test item with probability
    below n / items, since avoiding it would tell the model which candidate is the answer.

    Attention dropout draws one mask per row for the history's weights, shared by the row's candidates.
    """

    n_behaviours = 2

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        max_len: int = 20,
        norm: str = "post",
        target_in_sequence: bool = True,
        pad: str = "mask",
        user_dropout: float = 0.0,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        tower: str = "paper",
        init: str = "paper",
        item_side: str | Sequence[str] = (),
        user_side: str | Sequence[str] = (),
        side_scale: str = "sum",
        penalty: str = "paper",
        chunk: int | None = None,
        brute_force: bool = False,
    ):
        super().__init__()
        K = num_factors
        one_of("pad", pad, ("mask", "random"))
        one_of("tower", tower, ("paper", "authors"))
        one_of("init", init, ("paper", "authors"))
        self.authors_penalty = one_of("penalty", penalty, ("paper", "authors")) == "authors"
        if max_len < 0:
            raise RecexpError(f"max_len={max_len} must not be negative.")
        self.history, self.chunk = max_len, checked_chunk(chunk)
        if not 0 <= user_dropout <= 1:
            raise RecexpError(f"user_dropout={user_dropout} must lie in [0, 1].")
        self.user_dropout = user_dropout
        self.target_in_sequence, self.random_pad = target_in_sequence, pad == "random"
        self.users = UserEncoder(schema, K, side=user_side, scale=side_scale)
        self.items = ItemEncoder(schema, K, side=item_side, scale=side_scale)
        self.transformer = SharedContextTransformer(
            K,
            num_layers,
            num_heads,
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
        return self._chunked(query, item_BC, lambda z_BC2: z_BC2)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """Logit of the product of both probabilities, [B, C], or [B, V-1] where item_BC is None."""
        return self._chunked(query, item_BC, both)

    def _chunked(
        self, query: Query, item_BC: Tensor | None, finish: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """finish(logits) by chunks of rows and candidates. Rows of similar length go together: padding is not computed."""
        every = (
            torch.arange(1, self.items.n_items + 1, device=query.user_B.device)[None]
            if item_BC is None
            else item_BC
        )
        length_B = query.mask_BL.sum(1).clamp(max=self.history)
        if self.random_pad:
            length_B = torch.full_like(length_B, self.history)
        longest = int(length_B.max()) if len(query) else 0
        width, m = self.items.id.embedding_dim, 1 + longest
        chunk = chunk_size(self.chunk, length_B.device)
        per_pair = m + 1 if self.transformer.keeps_rows and self.target_in_sequence else 1
        step_C = min(every.shape[1], max(1, chunk // (per_pair * width)))
        step_B = max(1, chunk // ((step_C * per_pair + m) * width))
        order_B, parts = length_B.argsort(), []
        for row in order_B.split(step_B):
            item = every if item_BC is None else every[row]
            context = self._context(query[row], item, int(length_B[row[-1]]) if len(row) else 0)
            parts.append(
                torch.cat(
                    [
                        finish(self._logits(*context, self.items(part)))
                        for part in item.split(step_C, 1)
                    ],
                    1,
                )
            )
        return torch.cat(parts)[order_B.argsort()]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean squares of the vectors looked up, see the class; to be multiplied by lambda."""
        item_BL = self._events(query, item_BC, self.history)
        if self.authors_penalty:
            # Their padding has a vector of its own, which only this term moves and nothing reads.
            history, places = self.items.id(item_BL), len(query) * self.history
            user_BD = self.users.id(query.user_B)
            mean_history = history.square().sum() / max(1, places * history.shape[-1])
            return user_BD.square().mean() + mean_history
        user_BD = self._without_some(self.users(query.user_B, query.without_B))
        history = self.items(item_BL[item_BL != 0])
        mean_history = history.square().sum() / max(1, history.numel())
        return user_BD.square().mean() + mean_history + self.items(item_BC).square().mean()

    def _logits(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor) -> Tensor:
        state = self.transformer(x_BmD, mask_Bm, e_BCD if self.target_in_sequence else None)
        return self.head(state * e_BCD)

    def _context(self, query: Query, item_BC: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Input rows [user; last ``length`` events] [B, m, D] and which of them are real."""
        item_BL = self._events(query, item_BC, length)
        user_BD = self._without_some(self.users(query.user_B, query.without_B))
        x_BmD = torch.cat([user_BD[:, None], self.items(item_BL)], 1)
        return x_BmD, F.pad(item_BL != 0, (1, 0), value=True)

    def _events(self, query: Query, item_BC: Tensor, length: int) -> Tensor:
        """The last ``length`` events, missing ones filled where they are to be."""
        item_BL = query.item_BL[:, max(0, query.item_BL.shape[1] - length) :]
        if self.random_pad:
            item_BL = F.pad(item_BL, (self.history - item_BL.shape[1], 0))
            filler = self._filler(query.user_B)
            if self.training:
                filler = torch.where(
                    filler == item_BC[:, :1], filler % self.items.n_items + 1, filler
                )
            item_BL = torch.where(item_BL == 0, filler, item_BL)
        return item_BL

    def _without_some(self, user_BD: Tensor) -> Tensor:
        """User vectors, in training some of them replaced by 0."""
        if self.user_dropout == 1:
            return torch.zeros_like(user_BD)
        if self.user_dropout == 0 or not self.training:
            return user_BD
        return user_BD * (torch.rand(len(user_BD), 1, device=user_BD.device) >= self.user_dropout)

    def _filler(self, user_B: Tensor) -> Tensor:
        """An item per (user, slot), pseudo-random but always the same: a 64-bit mix of the pair's number."""
        x = user_B[:, None] * self.history + torch.arange(self.history, device=user_B.device) + 1
        for multiplier in (0x2127599BF4325C37, 0x369DEA0F31A53F85):
            x = (x ^ (x >> 31)) * multiplier
        return ((x ^ (x >> 31)) & (2**63 - 1)) % self.items.n_items + 1
