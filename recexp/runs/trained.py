"""A trained model, ready to use: lists of items, scores, similar items."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from recexp.config.build import build
from recexp.data.dataset import Dataset
from recexp.data.store import Targets
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.lists import best_candidates, top_k, without_seen
from recexp.evaluation.protocol import Protocol
from recexp.runs.accelerators import Accelerator, device_of
from recexp.runs.assembly import assemble
from recexp.runs.event_features import EventFeatures
from recexp.runs.exported import Format
from recexp.runs.finished import check_size, open_data, open_run, training_data
from recexp.runs.histories import (
    UNKNOWN,
    WHOLE_HISTORY,
    Histories,
    RawIds,
    as_series,
    given_histories,
    graph_inputs,
    known_histories,
    raw_events,
    to_polars,
)
from recexp.runs.requests import (
    Answer,
    Fallback,
    Reader,
    Reading,
    Request,
    as_request,
    in_groups,
    write_answer,
)
from recexp.runs.result import RunResult
from recexp.training.checkpoints import read_matching_checkpoint
from recexp.training.memory import users_at_once
from recexp.training.module import RecModule
from recexp.types import Query, Schema, moved

Frame = Any
"""A polars or pandas frame."""
CPU = torch.device("cpu")
USERS_AT_ONCE = 1024  # at most: a chunk also has to fit the scores of all items

log = logging.getLogger(__name__)


class Trained:
    """A trained model with the data it was trained on.

    Raw ids go in and come out. ``recexp.load`` and ``recexp.fit`` return one.

    places: of the data and of own code, as ``load`` takes them.
    run_dir: the run's directory. result: its ``result.json``. model: a ``Recommender`` in
    evaluation mode. users, items: all raw ids, ascending. device: of the model. The data stay in
    main memory, from where queries are moved to it.
    """

    def __init__(
        self,
        run_dir: Path,
        result: RunResult,
        module: RecModule,
        dataset: Dataset,
        places: Mapping[str, Any],
        device: torch.device = CPU,
    ) -> None:
        self.run_dir = run_dir
        self.result = result
        self.device = device
        self.model = module.model.eval().to(device)
        self._store = module.store
        self._protocol = module.protocol
        self._dataset = dataset
        self._places = dict(places)
        self._ids = RawIds.of(module.store)
        self.users = self._ids.users
        self.items = self._ids.items

    def __repr__(self) -> str:
        return f"<{self.result.model} trained on {self.result.dataset}, in {self.run_dir}>"

    @property
    def metrics(self) -> dict[str, float]:
        """The test metrics of the run, and the validation metrics of its best epoch."""
        return dict(self.result.metrics)

    def recommend(
        self,
        users: Sequence[Any] | pl.Series | None = None,
        k: int = 10,
        *,
        histories: Frame | None = None,
        candidates: Sequence[Any] | pl.Series | None = None,
        include_seen: bool = False,
        fallback: Fallback | None = None,
        progress: bool = False,
    ) -> pl.DataFrame:
        """The k best items of each user.

        users: raw ids; None: all users of the data, or those of ``histories``. A user's history is
        all that the data hold of them.
        histories: later events, or events of new users, a frame with the columns of the data set
        (user, item, and behavior, value, timestamp where the data have them). They are merged into
        what the data hold. Models that score by vectors of users (``model.needs_user``) do not read
        them.
        candidates: raw ids of the items to choose from; None: all.
        include_seen: also recommend items of the user's history.
        fallback: "popularity" gives the most popular items to users whom the model cannot score;
        without it they are an error. The column ``by`` then says "model" or "popularity".
        progress: show a progress bar.

        Returns the columns user, item, rank (1 is best) and score, users in their order, items best
        first. Equal scores are ordered as in ``items``. A user gets fewer than k rows where fewer
        items are left.

        Raises RecexpError for users whom the model cannot score, an empty list of candidates, k
        below 1, and faulty histories.
        """
        chunks = self.recommend_in_chunks(
            users,
            k,
            histories=histories,
            candidates=candidates,
            include_seen=include_seen,
            fallback=fallback,
            progress=progress,
        )
        return pl.concat(chunks)

    def recommend_in_chunks(
        self,
        users: Sequence[Any] | pl.Series | None = None,
        k: int = 10,
        *,
        histories: Frame | None = None,
        candidates: Sequence[Any] | pl.Series | None = None,
        include_seen: bool = False,
        fallback: Fallback | None = None,
        progress: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """As ``recommend``, in frames of some users each; at least one, which may be empty."""
        check_length(k)
        audience = self._audience(as_series(users), histories)
        is_scored = self._scored_by_model(audience, fallback)
        allowed = self._allowed(candidates)
        n_columns = self._store.schema.n_items if allowed is None else len(allowed)
        for rows in self._chunks(len(audience), n_columns, progress):
            best_BK, item_BK = self._best(audience, rows, k, allowed, is_scored, include_seen)
            by_model = None if fallback is None else is_scored[rows]
            yield self._frame(audience.raw[rows], best_BK, item_BK, by_model)

    def answer(self, requests: Sequence[Request | Mapping[str, Any]]) -> list[Answer]:
        """The lists of single requests, as ``recommend`` gives them; for services.

        Requests are independent: each has its own length, candidates and history. No data frames
        are made, and threads may call this at the same time.

        Users whom the model cannot score, and candidates of which the data have none, are written
        into ``Answer.error``. Raises RecexpError, which names the field, for a faulty request.
        """
        readings = []
        for number, request in enumerate(requests):
            place = f"requests[{number}]." if len(requests) > 1 else ""
            try:
                readings.append(self._reader.read(as_request(request), Answer()))
            except RecexpError as error:
                raise RecexpError(f"{place}{error}") from None
        for group in in_groups(readings):
            if group[0].candidates != ():
                self._answer_group(group)
        return [reading.answer for reading in readings]

    def _answer_group(self, readings: Sequence[Reading]) -> None:
        """Write the answers of requests with the same candidates."""
        candidates = readings[0].candidates
        include_seen = readings[0].request.include_seen
        audience = self._reader.histories(readings)
        is_scored = self._can_score(audience)
        for place in (~is_scored).nonzero().flatten().tolist():
            readings[place].answer.by = "popularity"
            if readings[place].request.fallback is None:
                readings[place].answer.error = self._cannot_score(audience.raw[place : place + 1])
        allowed = None if candidates is None else torch.tensor(candidates)
        n_columns = self._store.schema.n_items if allowed is None else len(allowed)
        k = max(reading.request.k for reading in readings)
        for rows in self._chunks(len(audience), n_columns, progress=False):
            best_BK, item_BK = self._best(audience, rows, k, allowed, is_scored, include_seen)
            for row, reading in enumerate(readings[rows]):
                if reading.answer.error is None:
                    best_K = best_BK[row, : reading.request.k]
                    item_K = item_BK[row, : reading.request.k]
                    write_answer(reading.answer, self._reader.items.raw, best_K, item_K)

    def tested_lists(self, k: int = 10, *, progress: bool = False) -> pl.DataFrame:
        """The lists that the test of the run ranked, cut at k.

        Users are those with a test target, histories end before it, and the protocol decides about
        candidates and items of the history. So the target's place in a long enough list is its rank
        in ``ranks.parquet``. Columns as of ``recommend``.
        """
        return pl.concat(self.tested_lists_in_chunks(k, progress=progress))

    def tested_lists_in_chunks(
        self, k: int = 10, *, progress: bool = False
    ) -> Iterator[pl.DataFrame]:
        """As ``tested_lists``, in frames of some users each."""
        store = self._store
        targets = store.test
        candidates = stored_candidates(store, self._protocol, "test")
        raw = self.users.gather(targets.user[targets.ptr[:-1]].numpy())
        for rows in self._chunks(targets.n_users, store.schema.n_items, progress):
            number_B = torch.arange(rows.start, rows.stop)
            query = self._moved(
                store.query_held_out(
                    targets, targets.first(number_B), self.model.history, self._protocol.history
                )
            )
            if candidates is None:
                score_BC = self._scores_of_all(query, targets, number_B)
                best_BK, column_BK = top_k(score_BC, k)
                item_BK = column_BK + 1
            else:
                target_BT = targets.items_of_users(number_B)
                item_BC = self._moved(torch.cat([target_BT, candidates[number_B].long()], dim=1))
                score_BC = self.model.score(query, item_BC).float()
                best_BK, item_BK = best_candidates(score_BC, item_BC, k)
            yield self._frame(raw[rows], best_BK.cpu(), item_BK.cpu())

    def _moved(self, value: Any) -> Any:
        """A query or tensor on the model's device."""
        return moved(value, self.device)

    def _scores_of_all(self, query: Query, targets: Targets, number_B: Tensor) -> Tensor:
        """Scores [B, V-1], -inf for the items that the protocol removes; never for a target."""
        score_BV = self.model.score(query).float()
        if self._protocol.candidates.seen != "removed":
            return score_BV
        first_B = targets.first(number_B)
        seen = self._store.items_between(
            self._store.past, targets.start[first_B], targets.end[first_B]
        )
        owner_T = torch.repeat_interleave(torch.arange(len(number_B)), targets.n_of_users(number_B))
        item_T = targets.item[targets.of_users(number_B)]
        parts = [tuple(map(self._moved, pair)) for pair in ((owner_T, item_T), seen)]
        return without_seen(score_BV, *parts)

    def score(self, pairs: Frame, *, histories: Frame | None = None) -> pl.DataFrame:
        """The pairs with a column ``score``; null where the user or the item cannot be scored.

        pairs: a frame with the columns user and item. histories: as in ``recommend``.
        """
        frame = to_polars(pairs)
        for column in ("user", "item"):
            if column not in frame.columns:
                raise RecexpError(f"The pairs have no column {column!r}.")
        users = frame["user"].unique(maintain_order=True)
        audience = self._audience(users, histories)
        is_scored = self._scored_by_model(audience, "popularity")
        place = pl.DataFrame({"user": users}).with_row_index("place")
        at = frame.select("user").join(place, on="user", how="left", maintain_order="left")
        owner = torch.from_numpy(at["place"].cast(pl.Int64).to_numpy())
        item = torch.from_numpy(self._ids.item_numbers(frame["item"]))
        scores = torch.full((len(frame),), torch.nan)
        valid = ((item > 0) & is_scored[owner]).nonzero().flatten()
        with torch.inference_mode():
            for rows in valid.split(USERS_AT_ONCE):
                query = self._query(audience, owner[rows])
                item_B1 = self._moved(item[rows, None])
                scores[rows] = self.model.score(query, item_B1)[:, 0].float().cpu()
        return frame.with_columns(score=pl.Series(scores.numpy()).fill_nan(None))

    def similar_items(self, items: Sequence[Any] | pl.Series, k: int = 10) -> pl.DataFrame:
        """The k items whose vectors have the largest cosine with each item's.

        Returns the columns item, similar, rank and cosine. Raises RecexpError for items that the
        data do not have, and for models without item vectors.
        """
        vector_VD = F.normalize(self._item_tensor().float(), dim=1)
        raw = as_series(items)
        assert raw is not None
        number = self._known_items(raw)
        frames = []
        for rows in number.split(USERS_AT_ONCE):
            cosine_BV = vector_VD[rows - 1] @ vector_VD.T
            cosine_BV.scatter_(1, rows[:, None] - 1, -torch.inf)  # not the item itself
            best_BK, column_BK = top_k(cosine_BV, min(k, len(vector_VD) - 1))
            frames.append((best_BK, column_BK))
        best_BK, column_BK = (torch.cat(parts) for parts in zip(*frames, strict=True))
        n_items, length = column_BK.shape
        columns = {
            "item": raw.gather(np.repeat(np.arange(n_items), length)),
            "similar": self.items.gather(column_BK.flatten().numpy()),
            "rank": np.tile(np.arange(1, length + 1, dtype=np.int32), n_items),
            "cosine": best_BK.flatten().numpy(),
        }
        return pl.DataFrame(columns)

    def item_vectors(self) -> tuple[pl.Series, np.ndarray[Any, Any]]:
        """Raw ids of all items, and their vectors, float32 [items, D].

        Raises RecexpError for models without item vectors.
        """
        return self.items, self._item_tensor().float().numpy()

    def export(
        self, out: str | Path, format: Format, *, k: int = 10, include_seen: bool = False
    ) -> float | None:
        """Write the model as files that need neither recexp nor the data.

        See ``recexp.runs.export.export``.
        """
        from recexp.runs.export import export

        return export(self, out, format, k=k, include_seen=include_seen)

    def load_weights(self, path: str | Path) -> None:
        """Take the weights of a file that ``export`` wrote as safetensors.

        Raises RecexpError where the file cannot be read, or its weights are of another model or of
        other data.
        """
        from recexp.runs.weights import read_weights

        read_weights(Path(path), self.model, self.result)

    def evaluate(self, protocol: str, **options: Any) -> dict[str, Any]:
        """Test the model under another protocol, on the same data; see ``recexp.evaluate``."""
        from recexp.runs.evaluate import evaluate

        return evaluate(self.run_dir, protocol, **self._places | options)

    # What an export needs

    @property
    def schema(self) -> Schema:
        """Sizes and features of the data."""
        return self._store.schema

    @property
    def dataset(self) -> Dataset:
        """The settings of the data set."""
        return self._dataset

    @property
    def levels(self) -> list[float]:
        """The values that events may have, ascending."""
        return list(self._store.meta["levels"])

    @property
    def event_features(self) -> EventFeatures:
        """How values of event features become numbers."""
        return EventFeatures.of(self._store)

    def inputs(self, users: pl.Series) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs of an exported graph for users of the data with all their events."""
        audience = known_histories(self._store, self._ids, users)
        query = self._store.window(
            audience.events, audience.user_A, audience.start_A, audience.end_A, WHOLE_HISTORY
        )
        return graph_inputs(query)

    # The parts

    @cached_property
    def _latest(self) -> int:
        """The time of the last event, in milliseconds."""
        return int(self._store.past.time.max())

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._store, self._ids, self._dataset, after=self._latest)

    def _audience(self, users: pl.Series | None, histories: Frame | None) -> Histories:
        """For whom to recommend, and what they did."""
        if histories is None:
            return known_histories(self._store, self._ids, users)
        frame = raw_events(
            to_polars(histories),
            self._dataset,
            after=self._latest,
            features=self.schema.event_features,
        )
        return given_histories(frame, self._store, self._ids, self._dataset, users)

    def _scored_by_model(self, audience: Histories, fallback: str | None) -> Tensor:
        """Whom the model can score, bool [A].

        Raises RecexpError where some are left and there is no fallback.
        """
        if fallback is not None and fallback not in get_args(Fallback):
            known = ", ".join(get_args(Fallback))
            raise RecexpError(f"fallback={fallback!r} is unknown; choose one of {known}.")
        is_scored = self._can_score(audience)
        if fallback is None and not bool(is_scored.all()):
            raise RecexpError(
                self._cannot_score(audience.raw.filter(pl.Series(~is_scored.numpy())))
            )
        return is_scored

    def _can_score(self, audience: Histories) -> Tensor:
        """Whom the model can score, bool [A]."""
        if self.model.needs_user:
            return audience.user_A != UNKNOWN
        if not self.model.history:  # the same scores for all users
            return torch.ones(len(audience), dtype=torch.bool)
        has_events_A = audience.end_A > audience.start_A
        return has_events_A | (audience.user_A != UNKNOWN)

    def _cannot_score(self, users: pl.Series) -> str:
        examples = ", ".join(map(str, users[:3]))
        return (
            f"{type(self.model).__name__} cannot score {len(users):,} user(s), such as "
            f"{examples}: {self._why_not()} fallback=popularity recommends popular items to them."
        )

    def _why_not(self) -> str:
        if self.model.needs_user:
            return "it has vectors of the users it was trained on only."
        return "the data and the histories have no event of them."

    def _allowed(self, candidates: Sequence[Any] | pl.Series | None) -> Tensor | None:
        """Numbers of the candidates, ascending, int64 [C]; None: all items."""
        raw = as_series(candidates)
        if raw is None:
            return None
        number = torch.from_numpy(self._ids.item_numbers(raw))
        n_unknown = int((number == 0).sum())
        if n_unknown:
            unknown = raw.filter(pl.Series((number == 0).numpy()))
            log.warning(
                "%s candidate(s) that the model does not know were left out, such as %s",
                f"{n_unknown:,}",
                ", ".join(map(str, unknown[:3])),
            )
        allowed: Tensor = number[number > 0].unique()
        if not len(allowed):
            raise RecexpError("None of the candidates is an item of the data.")
        return allowed

    def _best(
        self,
        audience: Histories,
        rows: slice,
        k: int,
        allowed: Tensor | None,
        is_scored: Tensor,
        include_seen: bool,
    ) -> tuple[Tensor, Tensor]:
        """Scores and numbers of the k best items, float and int64 [B, K]; -inf: removed items.

        They are in main memory, whatever the model's device.
        """
        allowed = self._moved(allowed)
        score_BC = self._scores(audience, rows, allowed, is_scored)
        if not include_seen:
            self._remove_seen(score_BC, audience, rows, allowed)
        best_BK, column_BK = top_k(score_BC, k)
        item_BK = column_BK + 1 if allowed is None else allowed[column_BK]
        return best_BK.cpu(), item_BK.cpu()

    def _query(self, audience: Histories, rows: Tensor | slice) -> Query:
        user_B = audience.user_A[rows].clamp(min=0)
        start_B = audience.start_A[rows]
        end_B = audience.end_A[rows]
        query = self._store.window(audience.events, user_B, start_B, end_B, self.model.history)
        there: Query = self._moved(query)
        return there

    def _scores(
        self, audience: Histories, rows: slice, allowed: Tensor | None, is_scored: Tensor
    ) -> Tensor:
        """Scores [B, C] of the allowed items; of users whom the model cannot score, popularity."""
        query = self._query(audience, rows)
        item_BC = None if allowed is None else allowed.expand(len(query), -1)
        # Popularity scores are written into it, and -inf for items of the history.
        score_BC = self.model.score(query, item_BC).float().clone()
        by_popularity = ~is_scored[rows]
        if by_popularity.any():
            columns = slice(1, None) if allowed is None else allowed.cpu()
            count_C = self._store.item_count[columns].float()
            score_BC[self._moved(by_popularity)] = self._moved(count_C)
        return score_BC

    def _remove_seen(
        self, score_BC: Tensor, audience: Histories, rows: slice, allowed: Tensor | None
    ) -> None:
        """Set the scores of the items in the histories to -inf, in place."""
        row_M, item_M = self._store.items_between(
            audience.events, audience.start_A[rows], audience.end_A[rows]
        )
        row_M = self._moved(row_M)
        item_M = self._moved(item_M)
        if allowed is None:
            score_BC[row_M, item_M - 1] = -torch.inf
            return
        column_M = torch.searchsorted(allowed, item_M).clamp(max=len(allowed) - 1)
        is_candidate = allowed[column_M] == item_M
        score_BC[row_M[is_candidate], column_M[is_candidate]] = -torch.inf

    def _frame(
        self,
        users: pl.Series,
        best_BK: Tensor,
        item_BK: Tensor,
        by_model: Tensor | None = None,
    ) -> pl.DataFrame:
        """The lists of the users as a frame, without removed items."""
        n_users, k = best_BK.shape
        kept = (best_BK.flatten() > -torch.inf).numpy()
        columns: dict[str, Any] = {
            "user": users.gather(np.repeat(np.arange(n_users), k)[kept]),
            "item": self.items.gather(item_BK.flatten().numpy()[kept] - 1),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n_users)[kept],
            "score": best_BK.flatten().numpy()[kept],
        }
        if by_model is not None:
            names = np.where(by_model.numpy(), "model", "popularity")
            columns["by"] = np.repeat(names, k)[kept]
        return pl.DataFrame(columns)

    def _chunks(self, n_users: int, n_columns: int, progress: bool) -> Iterator[slice]:
        """Ranges of users whose scores fit into memory; one empty range where there is no user."""
        size = min(USERS_AT_ONCE, users_at_once(self.device, n_columns))
        bar = tqdm(total=n_users, unit="user", disable=None if progress else True)
        with bar, torch.inference_mode():
            for start in range(0, max(1, n_users), size):
                stop = min(start + size, n_users)
                yield slice(start, stop)
                bar.update(stop - start)

    def _item_tensor(self) -> Tensor:
        with torch.inference_mode():
            vector_VD = self.model.item_embeddings()
        if vector_VD is None:
            raise RecexpError(f"{type(self.model).__name__} has no vectors of items.")
        return vector_VD.detach().cpu()

    def _known_items(self, raw: pl.Series) -> Tensor:
        number = torch.from_numpy(self._ids.item_numbers(raw))
        if not bool((number > 0).all()):
            unknown = raw.filter(pl.Series((number == 0).numpy()))
            raise RecexpError(
                f"The data do not have the item(s) {', '.join(map(str, unknown[:3]))}."
            )
        return number


def load(
    run_dir: str | Path,
    *,
    raw_dir: str | None = None,
    cache_dir: str | None = None,
    threads: int | None = None,
    accelerator: Accelerator = "cpu",
    plugins: Sequence[str] = (),
) -> Trained:
    """The trained model of a finished run.

    raw_dir, cache_dir: where the raw and the prepared data lie, if not in the default places. The
    run may come from another person, so its files choose no place. threads: of torch on a CPU.
    accelerator: the device of the model; "auto" is a GPU where there is one. plugins: own packages
    whose code the run may name.

    Raises RecexpError where the run is unfinished, its files are damaged, its data are not there
    or have changed, or there is no such device.
    """
    device = device_of(accelerator)
    places = {"raw_dir": raw_dir, "cache_dir": cache_dir, "plugins": plugins}
    run = open_run(run_dir, raw_dir=raw_dir, cache_dir=cache_dir, plugins=plugins)
    if threads:
        torch.set_num_threads(threads)
    protocol: Protocol = build(run.cfg.protocol)
    store = training_data(run, open_data(run, protocol.split), protocol.split)
    check_size(run, store)
    module, _ = assemble(run.cfg, protocol, store, ())
    content = read_matching_checkpoint(run.checkpoint, module)
    module.load_state_dict(content["state_dict"])
    dataset: Dataset = build(run.cfg.dataset, _recursive_=False)
    return Trained(run.folder, run.result, module, dataset, places, device)


def check_length(k: object) -> None:
    """Raise RecexpError unless k is a whole number above 0."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise RecexpError(f"k={k!r} is no whole number.")
    if k < 1:
        raise RecexpError(f"k={k}: a list has at least 1 item.")
