"""Archives: the wanted members arrive, and nothing outside of the folder is touched."""

import gzip
import io
import lzma
import stat
import tarfile
import zipfile

import pytest

from recexp.data.download import unpacking
from recexp.data.download.unpacking import unpack
from recexp.errors import RecexpError

RATINGS = b"1::2::3::4\n" * 1000


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    """members: name -> content, or the mode and the content."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            if isinstance(content, tuple):
                info.external_attr = content[0] << 16
                content = content[1]
            archive.writestr(info, content)
    return path


def tarred(path, members, mode="w:gz"):
    """members: name -> content, or the type and target of a link."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def refused(path, wanted, out, most_bytes=None):
    """The message; nothing is written but, at most, an unfinished file in the folder itself."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(RecexpError) as caught:
        unpack(path, wanted, out, most_bytes)
    new = set(out.parent.rglob("*")) - set(before)
    assert all(each.parent == out for each in new)
    return str(caught.value)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_wanted_members_arrive_under_their_own_names(tmp_path, out, form):
    members = {"ml-1m/README": b"read", "ml-1m/ratings.dat": RATINGS, "ml-1m/users.dat": b"u"}
    path = tmp_path / f"a.{form}"
    if form == "zip":
        zipped(path, {"__MACOSX/ml-1m/._ratings.dat": b"x", **members})
    else:
        tarred(path, members, f"w:{form.removeprefix('tar').removeprefix('.')}")
    written = unpack(path, ["users.dat", "ratings.dat"], out, None)
    assert written == [out / "users.dat", out / "ratings.dat"]
    assert [each.read_bytes() for each in written] == [b"u", RATINGS]
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_a_single_packed_file_gets_the_wanted_name(tmp_path, out, opener):
    with opener(tmp_path / "ratings.gz", "wb") as packed:
        packed.write(RATINGS)
    assert unpack(tmp_path / "ratings.gz", ["ratings.csv"], out, None) == [out / "ratings.csv"]
    assert (out / "ratings.csv").read_bytes() == RATINGS


def test_paths_that_lead_out_do_not_count(tmp_path, out):
    for name in ("../ratings.dat", "/tmp/ratings.dat", "a/../../ratings.dat", "..\\ratings.dat"):
        zipped(tmp_path / "a.zip", {name: b"evil"})
        assert "holds no file ratings.dat" in refused(tmp_path / "a.zip", ["ratings.dat"], out)
        tarred(tmp_path / "a.tar.gz", {name: b"evil"})
        assert "holds no file ratings.dat" in refused(tmp_path / "a.tar.gz", ["ratings.dat"], out)
    # The member at a plain path is taken, whatever lies beside it.
    zipped(tmp_path / "a.zip", {"../ratings.dat": b"evil", "ratings.dat": RATINGS})
    assert unpack(tmp_path / "a.zip", ["ratings.dat"], out, None)[0].read_bytes() == RATINGS


def test_links_are_not_followed(tmp_path, out):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    zipped(tmp_path / "a.zip", {"ratings.dat": (stat.S_IFLNK | 0o777, str(secret))})
    assert "links do not count" in refused(tmp_path / "a.zip", ["ratings.dat"], out)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        tarred(tmp_path / "a.tar.gz", {"ratings.dat": (kind, str(secret))})
        assert "links do not count" in refused(tmp_path / "a.tar.gz", ["ratings.dat"], out)
    # Nor is a directory that a link of the archive puts elsewhere.
    members = {"d": (tarfile.SYMTYPE, str(tmp_path)), "d/ratings.dat": RATINGS}
    tarred(tmp_path / "a.tar.gz", members)
    assert unpack(tmp_path / "a.tar.gz", ["ratings.dat"], out, None) == [out / "ratings.dat"]
    assert not (tmp_path / "ratings.dat").exists() and not (out / "d").exists()


def test_what_is_there_already_is_not_written_through(tmp_path, out):
    (out / "ratings.dat").symlink_to(tmp_path / "elsewhere")
    zipped(tmp_path / "a.zip", {"ratings.dat": RATINGS})
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "a.zip", ["ratings.dat"], out, None)
    assert not (tmp_path / "elsewhere").exists()


def test_a_member_that_is_missing_or_there_twice_is_named(tmp_path, out):
    members = {"a/ratings.dat": RATINGS, "b/ratings.dat": RATINGS}
    for path in (zipped(tmp_path / "a.zip", members), tarred(tmp_path / "a.tar", members, "w")):
        text = refused(path, ["ratings.dat"], out)
        assert "more than once: a/ratings.dat, b/ratings.dat" in text
        for left in out.iterdir():
            left.unlink()
        # More of the path tells them apart.
        assert unpack(path, ["b/ratings.dat"], out, None) == [out / "ratings.dat"]
        (out / "ratings.dat").unlink()
        assert "holds no file movies.dat" in refused(path, ["movies.dat"], out)


def test_bombs_are_stopped_at_the_limit(tmp_path, out, monkeypatch):
    zeros = bytes(3 << 20)
    honest = zipped(tmp_path / "a.zip", {"ratings.dat": zeros})
    assert "unpacks to more than 2.1 MB" in refused(honest, ["ratings.dat"], out, 2 << 20)
    assert not (out / "ratings.dat").exists()  # its declared size is enough to know
    # A gz file declares no size that counts: writing ends at the limit.
    (tmp_path / "a.gz").write_bytes(gzip.compress(zeros))
    assert "unpacks to more than" in refused(tmp_path / "a.gz", ["ratings.dat"], out, 2 << 20)
    assert (out / "ratings.dat").stat().st_size <= 2 << 20
    (out / "ratings.dat").unlink()
    tarred(tmp_path / "a.tar.gz", {"x/ratings.dat": zeros, "x/movies.dat": zeros})
    both = ["ratings.dat", "movies.dat"]
    assert "unpacks to more than" in refused(tmp_path / "a.tar.gz", both, out, 5 << 20)
    for left in out.iterdir():
        left.unlink()
    # Without a limit of its own: 200 times the archive's size, and at least 1 GiB.
    monkeypatch.setattr(unpacking, "FREE", 1 << 20)
    assert "unpacks to more than" in refused(honest, ["ratings.dat"], out)


def test_damaged_archives_are_named(tmp_path, out):
    good = zipped(tmp_path / "a.zip", {"ratings.dat": RATINGS}).read_bytes()
    tarball = tarred(tmp_path / "a.tar.gz", {"ratings.dat": RATINGS}).read_bytes()
    spoiled = bytearray(good)
    spoiled[60] ^= 255
    cases = {"a.zip": good[:-30], "b.zip": bytes(spoiled), "c.tar.gz": tarball[:-20]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert "damaged or cut off" in refused(tmp_path / name, ["ratings.dat"], out)
        for left in out.iterdir():
            left.unlink()


def test_other_kinds_are_refused_with_what_to_do(tmp_path, out):
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(50))
    text = refused(tmp_path / "a.7z", ["yoochoose-clicks.dat"], out)
    assert "unpack it with a program such as 7z, and put yoochoose-clicks.dat" in text
    (tmp_path / "a.csv").write_bytes(b"a,b\n")
    assert "is no archive with ratings.dat" in refused(tmp_path / "a.csv", ["ratings.dat"], out)
