"""The web application of ``python -m recexp.serve``.

It keeps nothing between requests. Lists are computed in a bounded pool of threads, so that health
checks are answered meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recexp.errors import RecexpError
from recexp.runs.requests import Answer, Request, first_fault
from recexp.runs.serve import Limits
from recexp.runs.trained import Trained

UNKNOWN_USER = 404
UNPROCESSABLE = 422
TOO_LARGE = 413


class Batch(BaseModel):
    """Independent requests."""

    model_config = ConfigDict(extra="forbid")

    requests: list[Request] = Field(min_length=1)


class Item(BaseModel):
    """An item of a list, by its raw id."""

    item: int | str
    rank: int
    score: float


class ItemList(BaseModel):
    """A list, best item first; the other fields are those of ``requests.Answer``."""

    items: list[Item]
    by: str
    unknown_items: int
    unknown_candidates: int


class Failure(BaseModel):
    """Why there is no list."""

    error: str


class ItemLists(BaseModel):
    """One answer per request, in their order."""

    answers: list[ItemList | Failure]


class Health(BaseModel):
    """What answers."""

    ready: bool
    model: str
    dataset: str
    protocol: str
    run: str
    checkpoint_sha256: str | None


class Refused(Exception):
    """A request that gets no list. status: of HTTP."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class BodyLimit:
    """Refuses bodies of more than ``n_bytes``, whether they state their size or not."""

    def __init__(self, app: ASGIApp, n_bytes: int) -> None:
        self.app = app
        self.n_bytes = n_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client left
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if self._states_more(scope) or len(body) > self.n_bytes:
                text = f"The request has more than {self.n_bytes:,} bytes (--max-body)."
                # The rest is not read, so the connection ends.
                answer = JSONResponse({"error": text}, TOO_LARGE, headers={"connection": "close"})
                await answer(scope, receive, send)
                return
        await self.app(scope, _replayed(bytes(body), receive), send)

    def _states_more(self, scope: Scope) -> bool:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        return bool(length.isdigit() and int(length[:20]) > self.n_bytes)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the whole body first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def create_app(trained: Trained, limits: Limits, *, n_workers: int = 1) -> FastAPI:
    """The application. n_workers: requests that are computed at the same time."""
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="recommend")
    trained.answer([])  # builds the tables of ids before the first request

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(cancel_futures=True)

    app = FastAPI(title="recexp", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, n_bytes=limits.body)
    _handle_errors(app)

    async def answers(requests: Sequence[Request]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, trained.answer, requests)

    @app.get("/health", response_model=Health)
    async def health() -> JSONResponse:
        return JSONResponse(_health(trained))

    @app.post("/recommend", response_model=ItemList)
    async def recommend(request: Request) -> JSONResponse:
        check_request(request, limits)
        (answer,) = await answers([request])
        if answer.error is not None:
            raise Refused(_status(request, answer), answer.error)
        return JSONResponse(written(answer))

    @app.post("/recommend/batch", response_model=ItemLists)
    async def batch(batch: Batch) -> JSONResponse:
        _check_size(len(batch.requests), limits.batch, "requests", "--max-batch")
        for number, request in enumerate(batch.requests):
            check_request(request, limits, f"requests[{number}].")
        return JSONResponse({"answers": [written(a) for a in await answers(batch.requests)]})

    return app


def check_request(request: Request, limits: Limits, place: str = "") -> None:
    """Raise Refused for a request that is incomplete or asks for too much."""
    if request.user is None and request.history is None:
        raise Refused(UNPROCESSABLE, f"{place}user: missing, and there is no history.")
    _check_size(request.k, limits.k, f"{place}k", "--max-k")
    _check_size(len(request.history or ()), limits.events, f"{place}history", "--max-events")
    n_candidates = len(request.candidates or ())
    _check_size(n_candidates, limits.candidates, f"{place}candidates", "--max-candidates")


def _check_size(size: int, most: int, place: str, option: str) -> None:
    if size > most:
        raise Refused(UNPROCESSABLE, f"{place}: {size:,} is above the limit {most:,} ({option}).")


def _status(request: Request, answer: Answer) -> int:
    """Of an answer without a list."""
    candidates = request.candidates
    if candidates is not None and answer.n_unknown_candidates == len(candidates):
        return UNPROCESSABLE
    return UNPROCESSABLE if request.user is None else UNKNOWN_USER


def written(answer: Answer) -> dict[str, Any]:
    """The answer as JSON has it: an ``ItemList`` or a ``Failure``."""
    if answer.error is not None:
        return {"error": answer.error}
    pairs = zip(answer.items, answer.scores, strict=True)
    return {
        "items": [
            {"item": item, "rank": rank, "score": score}
            for rank, (item, score) in enumerate(pairs, 1)
        ],
        "by": answer.by,
        "unknown_items": answer.n_unknown_items,
        "unknown_candidates": answer.n_unknown_candidates,
    }


def _health(trained: Trained) -> dict[str, Any]:
    result = trained.result
    return {
        "ready": True,
        "model": result.model,
        "dataset": result.dataset,
        "protocol": result.protocol,
        "run": trained.run_dir.name,
        "checkpoint_sha256": result.checkpoint.sha256 if result.checkpoint else None,
    }


def _handle_errors(app: FastAPI) -> None:
    """Every error is a sentence at "error"; nothing of the request is repeated at length."""

    def handle(kind: type[Exception], status_and_text: Callable[[Any], tuple[int, str]]) -> None:
        async def answer(_: Any, error: Exception) -> JSONResponse:
            status, text = status_and_text(error)
            return JSONResponse({"error": text}, status)

        app.add_exception_handler(kind, answer)

    handle(RequestValidationError, lambda error: (UNPROCESSABLE, f"{_fault_of_body(error)}."))
    handle(RecexpError, lambda error: (UNPROCESSABLE, str(error)))
    handle(Refused, lambda error: (error.status, str(error)))
    handle(HTTPException, lambda error: (error.status_code, f"{error.detail}."))


def _fault_of_body(error: RequestValidationError) -> str:
    faults = [dict(fault) for fault in error.errors()]
    if faults[0]["type"] == "json_invalid":
        return f"The body is no JSON: {faults[0]['ctx']['error']}"
    place = tuple(part for part in faults[0]["loc"] if part != "body")
    return first_fault([faults[0] | {"loc": place or ("body",)}])
