"""What a training example is and what its loss is: one objective per file."""
