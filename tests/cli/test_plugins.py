"""Hydra finds the launcher and the sweeper, and no import changes Hydra."""

from __future__ import annotations

import subprocess
import sys

from hydra._internal import utils
from hydra.core.plugins import Plugins

from recexp.cli import main


def test_hydra_finds_our_plugins_after_registration():
    main.register_plugins()
    names = Plugins.instance().class_name_to_class
    assert "hydra_plugins.recexp.ProcessLauncher" in names
    assert "hydra_plugins.recexp.GridSweeper" in names


def test_importing_the_command_line_has_no_side_effect():
    assert utils.run_and_report.__module__ == "hydra._internal.utils"
    code = (
        "import sys; path = list(sys.path); import recexp.cli.main;"
        "assert sys.path == path and 'hydra_plugins' not in sys.modules;"
        "import logging; assert not logging.getLogger('recexp').handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
