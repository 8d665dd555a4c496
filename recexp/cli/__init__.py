"""The command line: Hydra composes a run, a launcher starts the jobs of a sweep."""
