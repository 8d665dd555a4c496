"""What Lightning needs for a run: the module, callbacks, checkpoints, loggers, processes."""
