"""Raw files to prepared tensors: read, filter, index, split, cache and serve."""
