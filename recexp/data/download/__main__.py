"""``python -m recexp.data.download NAME``: see ``command``."""

import sys
from importlib import import_module

from recexp.data.download.command import main

if __name__ == "__main__":
    # By name, because data must not import config.
    sys.exit(main(import_module("recexp.config").CONF / "dataset"))
