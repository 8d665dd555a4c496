"""Search for hyper-parameters: spaces, the study that workers share, and the best values."""
