"""``python -m recexp.data.download``: raw files of a data set from their publisher."""
