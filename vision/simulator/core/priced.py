"""A cluster's prices for the ranks that a program names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vision.simulator.core.graph import Op
from vision.simulator.core.pricing import Group, Prices


class ClusterPricing:
    """Ranks are counted node after node, as torchrun does. ``costs``: seconds by (module, name of
    operator) that were asked for, to tell what is dear."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.costs: Counter[tuple[str, str]] = Counter()

    def compute(self, ops: Sequence[Op]) -> float:
        """Seconds of operators, issued one after the other by a host that runs ahead; each is
        noted in ``costs`` with its seconds on the device."""
        for op in ops:
            self.costs[op.module, op.name] += self.prices.device_seconds(op)
        return self.prices.seconds(ops)

    def communicate(self, kind: str, num_bytes: float, ranks: Sequence[int]) -> float:
        """Seconds of a collective or 'p2p' over these ranks, noted in ``costs``; bytes of the
        whole tensor."""
        seconds = self.quote(kind, num_bytes, ranks)
        self.costs['', kind] += seconds
        return seconds

    def quote(self, kind: str, num_bytes: float, ranks: Sequence[int]) -> float:
        """As ``communicate``, without noting it. Which ranks share a node is told from their
        numbers."""
        per_node = Counter(rank // self.prices.cluster.gpus_per_node for rank in ranks)
        if kind == 'p2p':
            return self.prices.p2p(num_bytes, is_crossing=len(per_node) > 1)
        return getattr(self.prices, kind)(num_bytes, Group(len(ranks), max(per_node.values())))

    def copy(self, num_bytes: float) -> float:
        """Seconds from a device to its host's memory or back, noted in ``costs``."""
        seconds = self.prices.host_copy(num_bytes)
        self.costs['', 'host copy'] += seconds
        return seconds
