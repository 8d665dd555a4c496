"""One run from its config to its result, and what reads a finished run again."""
