"""The random states of the process: nothing here moves them, and no result depends on them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def python_seeded(seed: int) -> Iterator[None]:
    """Inside the block Python's global random numbers follow from `seed`; after it they go on as before."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block all global random numbers follow from `seed`, Python's, NumPy's and PyTorch's.

    After it they go on as before.
    """
    import numpy as np
    import torch

    state = np.random.get_state()
    with python_seeded(seed), torch.random.fork_rng():
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
