"""Underscore names of torch that this room uses; here alone."""

from __future__ import annotations


def set_compiler_budget(ratio: float) -> float:
    """Let torch.compile keep this share (0 to 1) of what it would save for backward; the share
    that held before comes back. Nothing but the next compilations is changed."""
    from torch._functorch import config
    before, config.activation_memory_budget = config.activation_memory_budget, ratio
    return before
