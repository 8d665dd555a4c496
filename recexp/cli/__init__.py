"""The command line: Hydra composes a run, a launcher starts the jobs of a sweep.

``plugins`` holds the namespace package in which Hydra looks for the launcher and the sweeper.
"""
