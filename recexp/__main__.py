"""``python -m recexp``: train and evaluate a recommender."""

import sys

from recexp.training.interrupts import enter_stage, handle_signals


def main() -> None:
    """Entry point of ``python -m recexp`` and of the command ``recexp``."""
    # Before the imports, which take seconds.
    handle_signals()
    enter_stage("ended the program before the run began", ends_at_once=True)
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        from recexp.version import version_text

        print(version_text())
        return
    from recexp.cli.main import main as start

    start()


if __name__ == "__main__":
    main()
