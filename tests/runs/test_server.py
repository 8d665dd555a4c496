"""``python -m recexp.serve``: equal to ``recommend``, limited, and without a state."""

from __future__ import annotations

import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

from recexp.runs import serve
from recexp.runs.serve import Limits, main
from recexp.runs.server import create_app
from recexp.runs.trained import load
from tests.support.running import run_here

LIMITS = Limits(k=50, events=20, candidates=30, batch=4, body=4000)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "run"
    run_here(folder, "model=sasrec", "protocol=full_unseen", "trainer.max_epochs=1")
    return folder


def places(run_dir):
    return {"raw_dir": str(run_dir.parent / "raw"), "cache_dir": str(run_dir.parent / "cache")}


@pytest.fixture(scope="module")
def trained(run_dir):
    return load(run_dir, **places(run_dir))


@pytest.fixture(scope="module")
def client(trained):
    with TestClient(create_app(trained, LIMITS, n_workers=4)) as client:
        yield client


def assert_equal(answer, lists):
    """answer: the JSON of one list."""
    assert [one["item"] for one in answer["items"]] == lists["item"].to_list()
    assert [one["rank"] for one in answer["items"]] == lists["rank"].to_list()
    np.testing.assert_allclose([one["score"] for one in answer["items"]], lists["score"], rtol=1e-5)


def test_health_names_the_run_and_its_checkpoint(client, trained):
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "ready": True,
        "model": "sasrec",
        "dataset": trained.result.dataset,
        "protocol": "full_unseen",
        "run": "run",
        "checkpoint_sha256": trained.result.checkpoint.sha256,
    }


def test_a_user_of_the_data_gets_the_list_of_recommend(client, trained):
    user = trained.users[5]
    answer = client.post("/recommend", json={"user": user, "k": 7}).json()
    assert_equal(answer, trained.recommend([user], k=7))
    assert answer["by"] == "model"
    assert all(type(one["item"]) is int for one in answer["items"])


def test_a_history_gets_the_list_of_recommend_and_unknown_items_are_counted(client, trained):
    items = trained.items[:3].to_list()
    history = [{"item": item, "behavior": "view"} for item in [*items, "no item"]]
    answer = client.post("/recommend", json={"history": history}).json()
    frame = pl.DataFrame({"user": "new", "item": items, "behavior": "view"})
    assert_equal(answer, trained.recommend(histories=frame))
    assert answer["unknown_items"] == 1


def test_a_batch_has_an_answer_for_each_request(client, trained):
    user = trained.users[0]
    chosen = trained.items[:9].to_list()
    requests = [
        {"user": user},
        {"user": "nobody"},
        {"user": "nobody", "fallback": "popularity", "k": 2},
        {"user": user, "candidates": [*chosen, "no item"], "include_seen": True},
    ]
    answer = client.post("/recommend/batch", json={"requests": requests})
    assert answer.status_code == 200
    first, unknown, popular, limited = answer.json()["answers"]
    assert_equal(first, trained.recommend([user]))
    assert "such as nobody" in unknown["error"]
    assert_equal(popular, trained.recommend(["nobody"], k=2, fallback="popularity"))
    assert popular["by"] == "popularity"
    assert_equal(limited, trained.recommend([user], candidates=chosen, include_seen=True))
    assert limited["unknown_candidates"] == 1


def test_concurrent_requests_get_their_own_lists(client, trained):
    users = trained.users[:64].to_list()
    lists = {user: trained.recommend([user], k=5) for user in users}

    def ask(user):
        return user, client.post("/recommend", json={"user": user, "k": 5}).json()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, users * 4))
    assert len(answers) == 256
    for user, answer in answers:
        assert_equal(answer, lists[user])


def test_health_is_answered_while_lists_are_computed(trained, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    compute = type(trained).answer

    def slow(self, requests):
        if requests:
            started.set()
            assert go_on.wait(60)
        return compute(self, requests)

    monkeypatch.setattr(type(trained), "answer", slow)
    with TestClient(create_app(trained, LIMITS)) as client, ThreadPoolExecutor(2) as pool:
        body = {"user": trained.users[0]}
        lists = [pool.submit(client.post, "/recommend", json=body) for _ in range(2)]
        assert started.wait(60)
        assert client.get("/health").status_code == 200
        assert not any(answer.done() for answer in lists)
        go_on.set()
        assert [answer.result().status_code for answer in lists] == [200, 200]


def test_nothing_is_kept_of_a_request(client, trained):
    def ask(numbers):
        for number in numbers:
            history = [{"item": f"unknown {number}"}, {"item": trained.items[number % 50]}]
            for event in history:
                event["behavior"] = "view"
            body = {"user": f"new {number}", "history": history, "k": 1 + number % 50}
            assert client.post("/recommend", json=body).status_code == 200
        gc.collect()
        return len(gc.get_objects())

    first = ask(range(50))
    assert ask(range(50, 350)) - first < 150


REFUSED = [
    ({"user": 1, "k": 51}, 422, "k: 51 is above the limit 50 (--max-k)"),
    ({"user": 1, "k": 0}, 422, "k: input should be greater than or equal to 1"),
    ({"history": [{"item": 1}] * 21}, 422, "history: 21 is above the limit 20 (--max-events)"),
    ({"user": 1, "candidates": [1] * 31}, 422, "candidates: 31 is above the limit 30"),
    ({"user": 1, "candidates": ["no item"]}, 422, "None of the candidates is an item"),
    ({"user": "nobody"}, 404, "SASRec cannot score 1 user(s), such as nobody"),
    ({"user": 10**30}, 404, "SASRec cannot score"),
    ({"history": []}, 422, "SASRec cannot score"),
    ({}, 422, "user: missing, and there is no history"),
    ({"history": [{"behavior": "view"}]}, 422, "history[0].item: field required"),
    ({"history": [{"item": 1, "behavior": "stare"}]}, 422, "history[0].behavior: 'stare'"),
    ({"users": 1}, 422, "users: extra inputs are not permitted"),
    ([], 422, "body: input should be a valid dictionary"),
    ({"user": "x" * 5000}, 413, "more than 4,000 bytes (--max-body)"),
]


@pytest.mark.parametrize(("body", "status", "text"), REFUSED)
def test_what_is_wrong_or_too_much_is_refused_in_a_sentence(client, body, status, text):
    answer = client.post("/recommend", json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert text in answer.json()["error"]


RAW = [
    ('{"history": [{"item": 1, "timestamp": NaN}]}', 422, "history[0].timestamp: a time is"),
    ('{"history": [{"item": 1, "timestamp": -1e999}]}', 422, "history[0].timestamp: a time is"),
    ('{"user": "\\ud800"}', 422, "user: the text has a character"),
    ('{"user": 1', 422, "The body is no JSON"),
    ("", 422, "field required"),
    ("[" * 3000, 400, "parsing the body"),
    ("user=1", 422, ""),
]


@pytest.mark.parametrize(("body", "status", "text"), RAW)
def test_bodies_that_no_client_should_send(client, body, status, text):
    headers = {"content-type": "application/json"}
    answer = client.post("/recommend", content=body, headers=headers)
    assert answer.status_code == status
    assert text in answer.json()["error"]


def test_batches_name_the_faulty_request_and_have_a_limit(client):
    def error_of(requests):
        answer = client.post("/recommend/batch", json={"requests": requests})
        assert answer.status_code == 422
        return answer.json()["error"]

    assert "requests: 5 is above the limit 4 (--max-batch)" in error_of([{"user": 1}] * 5)
    assert "requests[1].k: 51 is above" in error_of([{"user": 1}, {"user": 1, "k": 51}])
    faulty = {"history": [{"item": 1, "behavior": "stare"}]}
    assert "requests[1].history[0].behavior" in error_of([{"user": 1}, faulty])
    assert "requests[0].history[0].item" in error_of([{"history": [{}]}])
    assert "requests: " in error_of([])


def test_a_body_without_a_stated_size_is_limited_too(client):
    def parts():
        for _ in range(100):
            yield b" " * 1000

    answer = client.post("/recommend", content=parts())
    assert answer.status_code == 413


def test_the_interface_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/recommend", "/recommend/batch"}
    assert client.get("/nothing").json() == {"error": "Not Found."}


# The command


def words_of(run_dir, *words):
    where = places(run_dir)
    folders = ["--raw-dir", where["raw_dir"], "--cache-dir", where["cache_dir"]]
    return [str(word) for word in (run_dir, *folders, *words)]


class Server:
    """``python -m recexp.serve`` in a process of its own, on a free port."""

    def __init__(self, run_dir):
        line = [sys.executable, "-m", "recexp.serve", *words_of(run_dir, "--port", 0)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        self.place = self.process.stdout.readline().split()[-1]

    def ask(self, body):
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.place}/recommend", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def stop(self, how):
        self.process.send_signal(how)
        status = self.process.wait(60)
        self.process.stdout.close()
        return status


@pytest.mark.slow  # starts two servers
def test_a_server_that_was_killed_gives_the_same_answers_again(run_dir, trained):
    bodies = [{"user": user} for user in trained.users[:5].to_list()]
    bodies.append({"history": [{"item": trained.items[3], "behavior": "view"}]})
    server = Server(run_dir)
    before = [server.ask(body) for body in bodies]
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    server = Server(run_dir)
    assert [server.ask(body) for body in bodies] == before
    assert_equal(before[0], trained.recommend(trained.users[:1]))
    assert server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


@pytest.fixture
def call(run_dir, monkeypatch):
    """The command with its words, in this process, up to the first request."""
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["serve", *words_of(run_dir, *words)])
        main()

    return call


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--max-k", 0], "--max-k 0: must be at least 1"),
        (["--threads", 0], "--threads 0: must be at least 1"),
        (["--port", 99999], "--port 99999: must lie between"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_wrong_command_lines_are_one_sentence(call, words, text):
    with pytest.raises(SystemExit, match=rf"^error: .*{text}"):
        call(*words)


def test_a_port_that_is_in_use_is_one_sentence(call):
    other = socket.create_server(("127.0.0.1", 0))
    with other, pytest.raises(SystemExit, match=r"cannot be used: .*in use"):
        call("--port", other.getsockname()[1])


@pytest.mark.parametrize("package", serve.NEEDED)
def test_a_missing_package_is_one_sentence_with_the_command(call, monkeypatch, package):
    monkeypatch.setitem(sys.modules, "recexp.runs.server", None)
    monkeypatch.delitem(sys.modules, "recexp.runs.server")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"needs {package}.*pip install 'recexp\[serve\]'"):
        call()
