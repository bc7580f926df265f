"""Gradients that are reduced together."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from vision.simulator.core.graph import ModuleGraph, Parameter

# torch's own: small, so that the first reduction begins early (dist._DEFAULT_FIRST_BUCKET_BYTES).
FIRST_BUCKET_BYTES = 2**20


class Bucket(NamedTuple):
    """``at``: index of the operator behind which the last of its gradients is complete."""

    parameters: tuple[Parameter, ...]
    at: int


def buckets_of(graph: ModuleGraph, names: Collection[str], first_bytes: int,
               bucket_bytes: int) -> list[Bucket]:
    """Of the parameters with these names, in the order in which gradients become complete, as
    DistributedDataParallel rebuilds them after its first step: a bucket is closed by the gradient
    that brings it to its size."""
    known = {each.name: each for each in graph.parameters
             if each.is_trained and each.name in names}
    buckets: list[Bucket] = []
    held: list[Parameter] = []
    limit = first_bytes
    at = 0
    for index, op in enumerate(graph.ops):
        for name in filter(known.__contains__, op.completes):
            held.append(known[name])
            at = index
            if sum(each.num_bytes for each in held) >= limit:
                buckets.append(Bucket(tuple(held), at))
                held, limit = [], bucket_bytes
    if held:
        buckets.append(Bucket(tuple(held), at))
    return buckets
