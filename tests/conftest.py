"""One thread per process, and the resolvers that the YAML files use.

The tests' tensors are too small for several threads: these would wait for each other, and for the
other processes of a parallel test run. Programs that a test starts inherit the variable.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from recexp.config.build import register_resolvers

torch.set_num_threads(1)
register_resolvers()
