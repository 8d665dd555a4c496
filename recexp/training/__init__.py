"""Training: the one LightningModule, and what surrounds it.

Callbacks, checkpoints, loggers, signals, processes of a run, optimizers, schedules and memory.
"""
