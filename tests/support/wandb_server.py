"""A W&B server on the loopback that fails as it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "0123456789abcdef0123456789abcdef01234567"
Way = Literal["ok", "401", "404", "500", "hang", "close", "text"]


class FakeServer(ThreadingHTTPServer):
    """way: how it answers. then: how once a run has started; None to go on as before."""

    daemon_threads = True

    def __init__(self, way: Way, then: Way | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.way = way
        self.then = then
        self.requests: list[tuple[str, str]] = []  # path, body
        self.history: dict[str, list[str]] = {}  # id of a run -> its rows, as they were sent
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def started_runs(self) -> list[str]:
        """The id of every run that was started or changed."""
        bodies = [json.loads(body) for path, body in self.requests if path == "/graphql"]
        return [body["variables"]["name"] for body in bodies if "UpsertBucket" in body["query"]]


@contextmanager
def server(way: Way, then: Way | None = None) -> Iterator[FakeServer]:
    with FakeServer(way, then) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield http
        finally:
            http.ended.set()
            http.shutdown()
            thread.join()


def closed_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *words: Any) -> None:
        pass

    def do_POST(self) -> None:
        n_bytes = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(n_bytes).decode(errors="replace")
        self.server.requests.append((self.path, body))
        way = self.server.way
        if way == "hang":
            self.server.ended.wait()
            self.close_connection = True
        elif way == "close":
            self.close_connection = True
        elif way.isdigit():
            self._send(int(way), json.dumps({"errors": [{"message": "refused"}]}))
        elif way == "text":
            self._send(200, "<html>a proxy's page</html>")
        else:
            self._send(200, json.dumps(self._answer(body)))
            if "UpsertBucket" in body and self.server.then:
                self.server.way = self.server.then

    do_GET = do_PUT = do_POST

    def _answer(self, body: str) -> dict[str, Any]:
        if self.path.endswith("/file_stream"):
            self._keep_history(json.loads(body))
        if self.path != "/graphql":
            return {}
        request = json.loads(body)
        names, query = request["variables"], request["query"]
        if "UpsertBucket" in query:
            project = {"id": "p", "name": names["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": names["name"], "displayName": names.get("displayName")}
            bucket |= {"config": "{}", "project": project, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "RunResumeStatus" in query and names["name"] in self.server.history:
            return {"data": {"model": self._resumable(names)}}
        if "CreateRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.server.url}/{n}"} for n in names["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"data": {"model": None, "viewer": None, "serverInfo": None}}

    def _keep_history(self, sent: dict[str, Any]) -> None:
        rows = (sent.get("files") or {}).get("wandb-history.jsonl")
        if rows:
            run_id = self.path.split("/")[-2]
            known = self.server.history.setdefault(run_id, [])
            known[rows["offset"] : rows["offset"] + len(rows["content"])] = rows["content"]

    def _resumable(self, names: dict[str, Any]) -> dict[str, Any]:
        """What the server tells of a run that it has, for one that goes on with it."""
        rows = self.server.history[names["name"]]
        bucket = {"id": "b", "name": names["name"], "displayName": names["name"], "tags": []}
        bucket |= {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        bucket |= {"historyTail": json.dumps(rows[-1:]), "eventsTail": "[]", "config": "{}"}
        bucket |= {"summaryMetrics": rows[-1], "wandbConfig": '{"t": 1}'}
        return {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}

    def _send(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def wait_for(condition: Any, seconds: float = 60) -> bool:
    """Does the condition come true within the time?"""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())
