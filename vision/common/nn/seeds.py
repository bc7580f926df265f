"""Random states as functions of what is being computed, not of what was computed before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed python, numpy and torch (all devices in use) from a tuple of whole numbers >= 0.

    Neighbouring keys give unrelated streams (numpy's SeedSequence), so a key may be as plain as
    (seed, epoch, place).
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    value = int(words[2]) << 32 | int(words[3])
    # torch.manual_seed also notes, for each kind of device that is not there, or not yet in use,
    # who called it: a formatted stack of more than a millisecond, once for every step, and for
    # every sample that is loaded.
    if torch.cuda.is_initialized():  # not so in a process that loads data
        torch.default_generator.manual_seed(value)
        torch.cuda.manual_seed_all(value)
    elif torch.version.cuda is None and torch.accelerator.is_available():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


@contextmanager
def kept_random_states() -> Iterator[None]:
    """What is drawn inside leaves python's, numpy's and torch's random states as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
