"""Files from servers that fail: the right file, or a sentence that says what was wrong."""

import gzip
import hashlib
import io
import zipfile

import pytest

from recexp.data.download import transfer
from recexp.data.download.block import SourceFile
from recexp.data.download.transfer import Patience, Unavailable, fetch
from recexp.errors import RecexpError
from tests.data.download.server import (
    chunked,
    cut_off,
    dripping,
    hanging,
    in_turn,
    ranged,
    serving,
    status,
    whole,
)

CONTENT = bytes(range(256)) * 800
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
AT_ONCE = Patience(timeout=2.0, tries=3, wait=0.0)


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


@pytest.fixture
def server(running):
    running.answers.clear()
    running.seen.clear()
    return running


def file(server, *paths, name="data.bin", **facts):
    return SourceFile(name=name, urls=[server.url(path) for path in paths], **facts)


def got(server, folder, answer, patience=AT_ONCE, **facts):
    server.answers["/a"] = answer
    return fetch(file(server, "/a", **facts), folder, patience).read_bytes()


def refused(server, folder, answer, patience=AT_ONCE, **facts):
    """The message for a source that does not give the file; nothing looks like it then."""
    name = facts.get("name", "data.bin")
    with pytest.raises(Unavailable) as caught:
        got(server, folder, answer, patience, **facts)
    assert not (folder / name).exists()
    return str(caught.value)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path):
    assert (
        got(server, tmp_path, whole(CONTENT), md5=MD5, sha256=SHA256, size=len(CONTENT)) == CONTENT
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]
    # A second call asks no server.
    assert got(server, tmp_path, status(500)) == CONTENT
    assert len(server.seen) == 1


def test_the_next_source_follows_one_that_fails_for_good(server, tmp_path):
    server.answers["/b"] = whole(CONTENT)
    path = fetch(file(server, "/gone", "/b", md5=MD5), tmp_path, AT_ONCE)
    assert path.read_bytes() == CONTENT
    assert [path for path, _ in server.seen] == ["/gone", "/b"]  # 404 is not asked for twice


def test_all_faults_are_named_where_no_source_works(server, tmp_path):
    server.answers["/b"] = status(403)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+: 404 Not Found; .*: 403 Forbidden\."):
        fetch(file(server, "/gone", "/b"), tmp_path, AT_ONCE)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_refusal_is_tried_again(server, tmp_path, code):
    assert got(server, tmp_path, in_turn(status(code), whole(CONTENT))) == CONTENT


def test_tries_without_progress_end(server, tmp_path):
    assert "503 Service Unavailable" in refused(server, tmp_path, status(503))
    assert len(server.seen) == AT_ONCE.tries


def test_a_cut_off_file_is_continued(server, tmp_path):
    assert got(server, tmp_path, ranged(CONTENT, cut=50_000)) == CONTENT
    assert server.seen == [("/a", None), ("/a", "bytes=50000-")]


def test_a_later_command_continues_what_an_earlier_one_left(server, tmp_path):
    once = Patience(timeout=2.0, tries=1, wait=0.0)
    text = refused(server, tmp_path, ranged(CONTENT, cut=50_000), once)
    assert f"the connection ended after 50,000 of {len(CONTENT):,} bytes" in text
    assert got(server, tmp_path, ranged(CONTENT)) == CONTENT
    assert server.seen[-1] == ("/a", "bytes=50000-")


def test_a_part_of_another_version_is_not_continued(server, tmp_path):
    once = Patience(timeout=2.0, tries=1, wait=0.0)
    refused(server, tmp_path, ranged(bytes(len(CONTENT)), cut=50_000, etag='"old"'), once)
    assert got(server, tmp_path, ranged(CONTENT, etag='"new"')) == CONTENT


def test_without_checksum_and_validator_the_whole_file_is_asked_for(server, tmp_path):
    once = Patience(timeout=2.0, tries=1, wait=0.0)
    refused(server, tmp_path, ranged(bytes(len(CONTENT)), cut=50_000, etag=None), once)
    assert got(server, tmp_path, ranged(CONTENT, etag=None)) == CONTENT
    assert server.seen[-1] == ("/a", None)


def test_a_checksum_allows_continuing_at_another_source(server, tmp_path):
    server.answers |= {"/a": in_turn(cut_off(CONTENT, 50_000), status(404)), "/b": ranged(CONTENT)}
    path = fetch(file(server, "/a", "/b", sha256=SHA256), tmp_path, AT_ONCE)
    assert path.read_bytes() == CONTENT
    assert server.seen[-1] == ("/b", "bytes=50000-")


def test_two_versions_in_one_part_are_noticed_and_mended(server, tmp_path):
    """The checksum fails after a continuation: the whole file is asked for once more."""
    answer = in_turn(cut_off(bytes(len(CONTENT)), 50_000), ranged(CONTENT, etag=None))
    assert got(server, tmp_path, answer, md5=MD5) == CONTENT
    assert [wanted for _, wanted in server.seen] == [None, "bytes=50000-", None]


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    assert (
        got(server, tmp_path, in_turn(cut_off(CONTENT, 9_000), whole(CONTENT)), md5=MD5) == CONTENT
    )


def test_a_wrong_range_is_not_appended(server, tmp_path):
    def other(handler):
        handler.begin(206, Content_Length=10, Content_Range=f"bytes 0-9/{len(CONTENT)}")
        handler.wfile.write(CONTENT[:10])

    answer = in_turn(cut_off(CONTENT, 9_000), other, whole(CONTENT))
    assert got(server, tmp_path, answer, md5=MD5) == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
    assert got(server, tmp_path, ranged(CONTENT), md5=MD5) == CONTENT  # the server answers 416


def test_a_complete_part_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert got(server, tmp_path, status(500), md5=MD5, size=len(CONTENT)) == CONTENT
    assert server.seen == []


def test_a_connection_that_is_reset_is_continued(server, tmp_path):
    answer = in_turn(cut_off(CONTENT, 50_000, reset=True), ranged(CONTENT))
    assert got(server, tmp_path, answer, md5=MD5) == CONTENT
    text = refused(server, tmp_path, cut_off(b"x" * 9, 0, reset=True), name="other.bin")
    assert "reset" in text or "ended after 0 of 9 bytes" in text


def test_a_server_that_hangs_is_left(server, tmp_path):
    short = Patience(timeout=0.2, tries=1, wait=0.0)
    assert "no answer within 0.2 seconds" in refused(server, tmp_path, hanging(b"x"), short)


def test_a_server_that_drips_is_left(server, tmp_path):
    short = Patience(timeout=0.2, tries=1, wait=0.0)
    text = refused(server, tmp_path, dripping(CONTENT, 0.05), short)
    assert "fewer than 100 bytes a second" in text


def test_redirects_are_followed_but_not_in_circles_nor_to_files(server, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    server.answers["/b"] = whole(CONTENT)
    assert got(server, tmp_path, status(302, Location="/b"), md5=MD5) == CONTENT
    circle = refused(server, tmp_path, status(302, Location="/a"), name="c")
    assert "302" in circle
    assert "302" in refused(server, tmp_path, status(302, Location=secret.as_uri()), name="d")


def test_a_redirect_from_encrypted_to_open_is_refused():
    request = transfer.urllib.request.Request("https://a.example/x")
    with pytest.raises(OSError, match=r"unencrypted http://b\.example/x"):
        transfer._Redirects().redirect_request(
            request, None, 302, "Found", {}, "http://b.example/x"
        )


def test_a_wrong_checksum_is_named_and_the_file_thrown_away(server, tmp_path):
    text = refused(server, tmp_path, whole(CONTENT[:-1] + b"x"), md5=MD5)
    assert "its md5 is" in text and MD5 in text
    assert list(tmp_path.glob("*.part")) == []


def test_a_mirror_with_a_wrong_file_is_passed_over(server, tmp_path):
    server.answers |= {"/a": whole(b"wrong"), "/b": whole(CONTENT)}
    path = fetch(file(server, "/a", "/b", sha256=SHA256), tmp_path, AT_ONCE)
    assert path.read_bytes() == CONTENT


def test_a_wrong_length_is_noticed(server, tmp_path):
    def promising(n):
        def answer(handler):
            handler.begin(200, Content_Length=n)
            handler.wfile.write(CONTENT)

        return answer

    too_many = refused(server, tmp_path, promising(len(CONTENT) + 5))
    assert f"ended after {len(CONTENT):,} of {len(CONTENT) + 5:,} bytes" in too_many
    text = refused(server, tmp_path, promising(9), name="b", size=len(CONTENT))
    assert f"offers 9 bytes where {len(CONTENT):,} are expected" in text
    assert "its md5 is" in refused(server, tmp_path, promising(9), name="c", md5=MD5)


def test_answers_in_chunks_are_read_and_cut_off_ones_noticed(server, tmp_path):
    assert got(server, tmp_path, chunked(CONTENT[:99], CONTENT[99:]), md5=MD5) == CONTENT
    text = refused(server, tmp_path, chunked(CONTENT[:99], ends=False), name="b")
    assert "the connection ended before the file did" in text
    text = refused(server, tmp_path, chunked(CONTENT[:99]), name="c", size=len(CONTENT))
    assert f"sent 99 bytes where {len(CONTENT):,} are expected" in text


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Log in", b"\n <html><head>"])
def test_a_web_page_instead_of_the_file_is_refused(server, tmp_path, page):
    text = refused(server, tmp_path, whole(page, Content_Type="text/html"))
    assert "sends a web page instead of the file" in text


def test_a_file_of_another_kind_than_its_name_is_refused(server, tmp_path):
    for name in ("a.zip", "a.gz", "a.parquet"):
        text = refused(server, tmp_path, whole(b'{"error": "quota"}'), name=name)
        assert f"something that is no {name[2:]}" in text


def test_archives_without_a_checksum_are_checked_by_their_own(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", CONTENT)
    spoiled = bytearray(packed.getvalue())
    spoiled[200] ^= 255
    for name, content in {"a.zip": bytes(spoiled), "a.csv.gz": gzip.compress(CONTENT)[:-9]}.items():
        text = refused(server, tmp_path, whole(content), name=name)
        assert "damaged" in text
    for name, content in {"a.zip": packed.getvalue(), "a.csv.gz": gzip.compress(CONTENT)}.items():
        assert got(server, tmp_path, whole(content), name=name) == content


def test_an_empty_answer_and_an_unwanted_packing_are_refused(server, tmp_path):
    assert "sent nothing" in refused(server, tmp_path, whole(b""))
    text = refused(server, tmp_path, whole(gzip.compress(CONTENT), Content_Encoding="gzip"))
    assert "sends it packed (gzip)" in text
    # Servers that know a .gz file by this header mean the file as it is.
    packed = gzip.compress(CONTENT)
    assert got(server, tmp_path, whole(packed, Content_Encoding="gzip"), name="a.gz") == packed


def test_hosts_that_are_not_there_are_named(tmp_path):
    with pytest.raises(Unavailable, match="Connection refused"):
        fetch(SourceFile(name="a", urls=["http://127.0.0.1:9/a"]), tmp_path, AT_ONCE)
    with pytest.raises(Unavailable, match="the name of the host is not known"):
        fetch(SourceFile(name="a", urls=["http://nowhere.invalid/a"]), tmp_path, AT_ONCE)


def test_a_full_disk_is_one_sentence_and_keeps_the_part(server, tmp_path, monkeypatch):
    server.answers["/a"] = whole(CONTENT)

    class Full:
        free = 1000

    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(RecexpError, match=r"has 1\.0 KB free, and data\.bin takes 205 KB more"):
        fetch(file(server, "/a"), tmp_path, AT_ONCE)
    monkeypatch.undo()

    def full(out, chunk, part):
        raise transfer._unwritable(part, OSError(28, "No space left on device"))

    monkeypatch.setattr(transfer, "_write", full)
    with pytest.raises(RecexpError, match=r"No space left on device\. Make room there"):
        fetch(file(server, "/a"), tmp_path, AT_ONCE)
