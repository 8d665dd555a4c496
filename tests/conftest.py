"""One thread per process: the tests' tensors are too small for more, and on a crowded machine threads wait for each other."""

import torch

torch.set_num_threads(1)
