"""One thread per process, and the resolvers that the YAML files use.

The tests' tensors are too small for several threads: these would wait for each other, and for the
other processes of a parallel test run. Programs that a test starts inherit the variable.
"""

import logging
import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from recexp.config.build import register_resolvers

torch.set_num_threads(1)
register_resolvers()


@pytest.fixture(scope="module", autouse=True)
def fresh_hydra():
    """Hydra's global state is that of a new process, so that modules may run in any order."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(autouse=True)
def fresh_logs():
    """Messages reach the terminal only where a test itself starts a program that shows them."""
    logger = logging.getLogger("recexp")
    handlers = list(logger.handlers)
    level = logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
