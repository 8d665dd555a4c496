"""``python -m recexp.report RUN_DIR...``: tables of the runs found at or below the directories."""

from __future__ import annotations

import argparse
import sys

from recexp.report.collect import collect
from recexp.report.tables import markdown
from recexp.types import RecexpError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recexp.report", description="Tables of finished runs, one per protocol id.")
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR")
    arguments = parser.parse_args()
    try:
        results, left_out = collect(arguments.folders)
    except RecexpError as error:
        sys.exit(f"error: {error}")
    print(markdown(results))
    for line in left_out:
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
