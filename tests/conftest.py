"""One thread per process, and the resolvers that the YAML files use.

The tests' tensors are too small for several threads, which wait for each other on a busy machine.
"""

import torch

from recexp.config.build import register_resolvers

torch.set_num_threads(1)
register_resolvers()
