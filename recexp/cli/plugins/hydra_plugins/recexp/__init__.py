"""Launcher and sweepers under the names that Hydra accepts: it loads ``hydra_plugins`` only.

An installation maps this folder to ``hydra_plugins.recexp`` (pyproject.toml). In a checkout that
is not installed, ``recexp.cli.main`` adds the folder two levels up to the import path.
"""

from recexp.cli import launcher, search_sweeper, sweeper


class ProcessLauncher(launcher.ProcessLauncher):
    """``hydra/launcher=processes``."""


class GridSweeper(sweeper.GridSweeper):
    """``hydra/sweeper=grid``."""


class OptunaSweeper(search_sweeper.OptunaSweeper):
    """``hydra/sweeper=optuna``."""
