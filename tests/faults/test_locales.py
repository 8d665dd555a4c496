"""Locales, encodings and time zones change no data and no number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.events import BEHAVIORS, Event, dataset, write
from tests.support.running import arguments, run_here

POP = ["model=pop", "logger=none"]
# Prepares argv[1] in argv[2] and prints the checksums of all arrays and the fingerprint.
PREPARE = """
import json, sys
from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import Dataset
from recexp.data.split import Split

meta = read_meta(prepare(Dataset(**json.loads(sys.argv[1])), Split(), sys.argv[2]))
print(json.dumps([meta["fingerprint"], meta["arrays"]]))
"""
PLAIN = {"PYTHONIOENCODING": "utf-8", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
# PYTHONIOENCODING: this is about files; what cannot be printed is another matter.
SETTINGS = {
    "C, no UTF-8 mode": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"},
    "Turkish": {"LC_ALL": "tr_TR.UTF-8"},
    "zone at half an hour": {"TZ": "Asia/Kathmandu"},
    "zone beyond a day": {"TZ": "XYZ-14:37"},
    "zone with summer time": {"TZ": "America/St_Johns"},
}


@pytest.fixture(scope="module")
def locales(tmp_path_factory) -> Path:
    """A folder with locales that the machine may lack."""
    folder = tmp_path_factory.mktemp("locales")
    for name, source, charset in (
        ("tr_TR.UTF-8", "tr_TR", "UTF-8"),
        ("de_DE.ISO-8859-1", "de_DE", "ISO-8859-1"),
    ):
        if shutil.which("localedef"):
            line = ["localedef", "-i", source, "-f", charset, str(folder / name)]
            subprocess.run(line, capture_output=True, check=False)
    return folder


def environment(locales: Path, settings: dict[str, str]) -> dict[str, str]:
    """Skips the test where the locale does not exist and cannot be made."""
    name = settings.get("LC_ALL", "C")
    found = os.environ | PLAIN | {"LOCPATH": str(locales)} | settings
    check = "import locale; locale.setlocale(locale.LC_ALL, '')"
    if name not in ("C", "C.UTF-8"):
        done = subprocess.run([sys.executable, "-c", check], env=found, check=False)
        if done.returncode:
            pytest.skip(f"there is no locale {name}, and localedef cannot make it")
    return found


def hostile_events() -> list[Event]:
    """Ids whose case and sort order depend on the locale, times around midnight everywhere."""
    users = ["ıstanbul", "Istanbul", "istanbul", "İstanbul", "I", "i", "ß", "ss", "Ä", "z", "å"]
    half_an_hour = 1_800_000
    return [
        Event(user, f"I{(n * k) % 7}ı", BEHAVIORS[n % 3], 86_400_000 * 200 + half_an_hour * n)
        for k, user in enumerate(users, 1)
        for n in range(12)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_preparation_gives_the_same_bytes_everywhere(tmp_path, locales, name):
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw, [])
    lines = [f"{e.user},{e.item},{e.behavior},{e.time}," for e in hostile_events()]
    text = "user,item,behavior,timestamp,value\n" + "\n".join(lines) + "\n"
    (raw / "events.csv").write_text(text, encoding="utf-8")
    window = {"start": "1970-07-20", "end": "1970-07-21"}
    shop = dataset(raw, window=window)
    found = []
    for number, settings in enumerate(({}, SETTINGS[name])):
        line = [sys.executable, "-c", PREPARE, json.dumps(vars(shop)), f"{tmp_path}/cache{number}"]
        done = subprocess.run(
            line,
            env=environment(locales, settings),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "name",
    ["C, no UTF-8 mode", *[*SETTINGS][1:]],
)
@pytest.mark.slow  # a run in a process of its own
def test_a_run_in_a_folder_with_letters_beyond_ascii(tmp_path, locales, name):
    """The whole program: paths, config.yaml, result.json, tables.

    Where file names are ASCII (locale C), such a path is refused, so the folder has a plain name.
    """
    place = tmp_path / ("plain" if SETTINGS[name].get("LC_ALL") == "C" else "Ölçüm ı")
    place.mkdir()
    whole = run_here(tmp_path / "whole", *POP)
    words = [*arguments(tmp_path / "run", *POP), f"hydra.run.dir='{place}/run'"]
    done = subprocess.run(
        [sys.executable, "-m", "recexp", *words],
        env=environment(locales, SETTINGS[name]),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    result = json.loads((place / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"] == whole["metrics"]
