"""Preparation killed at every operation on a file: no partial result is used, and the next run
prepares the same data.
"""

import json
import signal
import subprocess
import sys

import pytest

from recexp.data.cache import prepare, verify
from tests.support.events import P3, dataset, random_events, write

# For every N of argv[3:]: prepares argv[1] in the folder argv[2]/N, in a process that is killed at
# its Nth operation on a file there, and prints the wait status.
KILLED = """
import json, os, signal, sys
from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.split import Split

given, root = json.loads(sys.argv[1]), sys.argv[2]
watched = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir")
for step in map(int, sys.argv[3:]):
    if (child := os.fork()) == 0:
        done = 0

        def watch(event, said):
            global done
            if event in watched and root in f"{said[0]} {said[-1]}":
                done += 1
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            prepare(Dataset(**given), Split(), f"{root}/{step}")
        finally:
            os._exit(done % 256)
    print(step, os.waitpid(child, 0)[1], flush=True)
"""


def outcomes(shop, root, steps):
    """Wait status by step."""
    line = [sys.executable, "-c", KILLED, json.dumps(vars(shop)), str(root), *map(str, steps)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=True)
    return dict(tuple(map(int, line.split())) for line in done.stdout.splitlines())


def arrays(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_file_it_touches(tmp_path, every):
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    whole, root = arrays(prepare(shop, P3, tmp_path / "undisturbed")), tmp_path / "killed"
    root.mkdir()
    never = 10**6
    steps = outcomes(shop, root, [never])[never] >> 8
    assert steps > len(whole), "each array is at least one step"
    some = range(1, steps + 1, every)
    assert outcomes(shop, root, some) == dict.fromkeys(some, signal.SIGKILL)
    published = 0
    for step in some:
        cache = root / str(step)
        for folder in cache.glob("shop-*/"):  # a folder with the final name is complete
            verify(folder)
            assert arrays(folder) == whole
            published += 1
        folder = prepare(shop, P3, cache)
        assert arrays(folder) == whole
        assert [path for path in cache.iterdir() if path.is_dir()] == [folder], (
            "the remains of the killed process are removed"
        )
    assert published < len(some), "some were killed before"
