"""Bandwidth of links, shared by the flows that cross them at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence


class SharedLinks:
    """Flows under way, and the rate of each: max-min fair, none can have more without taking from
    one that has no more than it.

    Proteus (arXiv:2306.02267) fixes the factor of each transfer when transfers begin together;
    here rates are shared anew at each begin and end (our choice).

    Args:
        capacities: bytes per second by link.
    """

    def __init__(self, capacities: Mapping[str, float]) -> None:
        self._capacities = capacities
        # Ordered sets: rates must not depend on the addresses of objects.
        self._on_link: dict[str, dict[Hashable, int]] = {}
        self._links_of: dict[Hashable, dict[str, int]] = {}
        self._changed: dict[str, None] = {}

    def __contains__(self, flow: Hashable) -> bool:
        return flow in self._links_of

    def add(self, flow: Hashable, links: Sequence[str]) -> None:
        """A flow begins; a link that is named k times is crossed by k such flows."""
        self._links_of[flow] = times = dict(Counter(links))
        for link, k in times.items():
            self._on_link.setdefault(link, {})[flow] = k
            self._changed[link] = None

    def remove(self, flow: Hashable) -> None:
        """A flow has ended; its links are shared anew by the others."""
        for link in self._links_of.pop(flow):
            del self._on_link[link][flow]
            self._changed[link] = None

    def new_rates(self) -> dict[Hashable, float]:
        """Rates of all flows that may have another one since the last call: those that share
        links, over any number of others, with one that began or ended."""
        if not self._changed:
            return {}
        links, flows = self._reached(self._changed)
        self._changed = {}
        if not flows:
            return {}
        return self._fill(links, flows)

    def _reached(self, start: Iterable[str]) -> tuple[dict[str, None], dict[Hashable, None]]:
        links, flows = dict.fromkeys(start), {}
        waiting = list(links)
        while waiting:
            for flow in self._on_link[waiting.pop()]:
                if flow not in flows:
                    flows[flow] = None
                    for link in self._links_of[flow]:
                        if link not in links:
                            links[link] = None
                            waiting.append(link)
        return links, flows

    def _fill(self, links: Iterable[str], flows: Mapping[Hashable, None]
              ) -> dict[Hashable, float]:
        """All rates rise together until a link is full; its flows stay at that, the others go on
        (water-filling)."""
        left, crossing = {}, {}
        for link in links:
            num = sum(self._on_link[link].values())
            if num:
                left[link], crossing[link] = self._capacities[link], num
        rates: dict[Hashable, float] = {}
        while len(rates) < len(flows):
            levels = {link: left[link] / num for link, num in crossing.items()}
            level = min(levels.values())
            filled: dict[str, int] = {}
            for full in (link for link, own in levels.items() if own <= level):
                for flow in self._on_link[full]:
                    if flow not in rates:
                        rates[flow] = level
                        for link, k in self._links_of[flow].items():
                            filled[link] = filled.get(link, 0) + k
            # Once for all flows of a link, so that k flows and one that counts k times give the
            # same bits.
            for link, num in filled.items():
                left[link] = max(0.0, left[link] - num * level)
                crossing[link] -= num
                if not crossing[link]:
                    del crossing[link]
        return rates
