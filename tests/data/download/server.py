"""An HTTP server on this machine that fails in the ways that servers fail."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each path as ``server.answers`` says; ``server.seen`` lists (path, Range)."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Range")))
        answer = self.server.answers.get(self.path)
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may have left
            if answer is None:
                self.send_error(404)
            else:
                answer(self)

    def log_message(self, *args: object) -> None:
        pass

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def reset(self) -> None:
        """End the connection as a crashed machine does."""
        self.wfile.flush()
        no_linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def whole(content: bytes, **headers: object) -> Answer:
    """The content, and no other part of it than the whole."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(content), **headers)
        handler.wfile.write(content)

    return answer


def ranged(content: bytes, cut: int | None = None, etag: str | None = '"1"') -> Answer:
    """Serves ranges; without a range, ends after ``cut`` bytes."""

    def answer(handler: Handler) -> None:
        headers = {} if etag is None else {"ETag": etag}
        wanted = handler.headers.get("Range")
        same = handler.headers.get("If-Range") in (None, etag)
        if wanted is None or not same:
            handler.begin(200, Content_Length=len(content), **headers)
            handler.wfile.write(content[:cut])
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            handler.begin(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
            return
        extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.begin(206, Content_Length=len(content) - start, Content_Range=extent, **headers)
        handler.wfile.write(content[start:])

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The first answer to the first request, and so on; the last one again and again."""
    left = list(answers)

    def answer(handler: Handler) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return answer


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.begin(code, Content_Length=0, **headers)


def cut_off(content: bytes, after: int, reset: bool = False) -> Answer:
    """Promises the content and ends, or resets, the connection before it is sent."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(content))
        handler.wfile.write(content[:after])
        if reset:
            handler.reset()

    return answer


def hanging(content: bytes = b"", seconds: float = 3.0) -> Answer:
    """Sends the beginning and then nothing."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(content) + 1)
        handler.wfile.write(content)
        handler.wfile.flush()
        time.sleep(seconds)

    return answer


def dripping(content: bytes, pause: float) -> Answer:
    """A byte at a time."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(content))
        for i in range(len(content)):
            handler.wfile.write(content[i : i + 1])
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def chunked(*chunks: bytes, ends: bool = True) -> Answer:
    """Without a length, in chunks; ends: False leaves out the last, empty one."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Transfer_Encoding="chunked")
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if ends:
            handler.wfile.write(b"0\r\n\r\n")

    return answer
