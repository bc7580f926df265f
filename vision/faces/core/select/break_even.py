"""From how many classes on choosing the active ones is faster than the rivals (our model).

Legend: B samples, d dimensions, C classes, M active rows, L lists of the index, P of them
searched, U candidates scored exactly, I steps between renewals.

Work is counted, not looked up: multiply-adds of dense products, multiply-adds of scanned lists
(scattered rows in half precision, slower), bytes moved, and calls. On one device

  seconds = 2 products / flops_per_s + 2 scanned / scan_per_s + bytes / bytes_per_s
            + calls call_s

a sum: nothing overlaps. Of one step of a head

  softmax(M)   products 3 B M d           logits, and both gradients
               bytes    4 (8 B M + 14 M d)  passes over the one buffer; rows, momentum, gradient
               calls    40
  full         softmax(C)
  random       softmax(max(B, share C))
  selected     softmax(M), M = B (1 + num_per_sample), but not above C
    + search   scanned  B d P C / L, products B d L, L = 4 sqrt(C)
               calls    10
    + score    products B U d, bytes 4 (4 B U + 4 U d), calls 20, U = 1.25 (M - B)
    + upkeep   per renewal, over I: bytes 10 C d (snapshot), scanned 128 C d (lists near a row's
               old one), which holds for a device that does nothing else meanwhile

What the model leaves out: caches, ranks (each has C / N rows and B samples of all), margins.
``num_per_sample`` is what fidelity asks for, not the model: see vision/faces/README.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vision.common.core.errors import VisionError

LISTS_PER_ROOT = 4
CELLS_LOOKED_AT = 128  # per row at a renewal
OVERFETCH = 1.25
SOFTMAX_CALLS, SEARCH_CALLS, SCORE_CALLS = 40, 10, 20
MOST_CLASSES = 1 << 32


@dataclass(frozen=True)
class Machine:
    """Rates that one step reaches, not those of a data sheet.

    Attributes:
        flops_per_s: of float32 products of some hundred rows.
        scan_per_s: of inner products with the rows of searched lists.
        bytes_per_s: streamed.
        call_s: of one operator with next to no work.

    Raises:
        VisionError: VIS-CONFIG-1095, a rate that is not above 0.
    """

    flops_per_s: float
    scan_per_s: float
    bytes_per_s: float
    call_s: float

    def __post_init__(self) -> None:
        if min(self.flops_per_s, self.scan_per_s, self.bytes_per_s) <= 0 or self.call_s < 0:
            raise VisionError('VIS-CONFIG-1095', f'a machine with {self}', where='break_even',
                              do='give rates above 0')


@dataclass(frozen=True)
class Work:
    """Multiply-adds of products and of scans, bytes, calls."""

    products: float = 0.0
    scanned: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.scanned + other.scanned,
                    self.bytes + other.bytes, self.calls + other.calls)

    def seconds(self, machine: Machine) -> float:
        """Time on this machine, where nothing overlaps."""
        return (2 * self.products / machine.flops_per_s + 2 * self.scanned / machine.scan_per_s
                + self.bytes / machine.bytes_per_s + self.calls * machine.call_s)


@dataclass(frozen=True)
class HeadPlan:
    """One head's step on one device.

    Attributes:
        batch, dim: B and d.
        num_per_sample: active rows beyond the own one, for each sample.
        num_probed: P.
        interval: I.
        random_share: of the rival that draws its classes.
    """

    batch: int
    dim: int
    num_per_sample: float = 8.0
    num_probed: int = 12
    interval: int = 500
    random_share: float = 0.1

    def full(self, num_classes: int) -> Work:
        """Work of one step of the softmax over all classes."""
        return self._softmax(num_classes)

    def random(self, num_classes: int) -> Work:
        """Work of one step over a random share of the classes, the batch's own at least."""
        return self._softmax(min(num_classes, max(self.batch, self.random_share * num_classes)))

    def selected(self, num_classes: int) -> Work:
        """Work of one step over chosen classes: softmax, search, exact scores and the share of the
        upkeep."""
        active = min(num_classes, self.batch * (1 + self.num_per_sample))
        return (self._softmax(active) + self.search(num_classes)
                + self.score(max(0, active - self.batch)) + self.upkeep(num_classes))

    def search(self, num_classes: int) -> Work:
        """Work of finding the lists of each sample and scanning those that are searched."""
        num_lists = LISTS_PER_ROOT * math.sqrt(num_classes)
        scanned = min(1.0, self.num_probed / num_lists) * num_classes
        return Work(products=self.batch * self.dim * num_lists,
                    scanned=self.batch * self.dim * scanned, calls=SEARCH_CALLS)

    def score(self, num_wanted: float) -> Work:
        """Work of scoring candidates exactly for so many active rows beyond the batch's own."""
        candidates = OVERFETCH * num_wanted
        return Work(products=self.batch * candidates * self.dim, calls=SCORE_CALLS,
                    bytes=16 * candidates * (self.batch + self.dim))

    def upkeep(self, num_classes: int) -> Work:
        """Work of following the rows in the index, a step's share of a renewal."""
        values = num_classes * self.dim / self.interval
        return Work(scanned=CELLS_LOOKED_AT * values, bytes=10 * values)

    def _softmax(self, rows: float) -> Work:
        return Work(products=3 * self.batch * rows * self.dim, calls=SOFTMAX_CALLS,
                    bytes=4 * rows * (8 * self.batch + 14 * self.dim))


def break_even(machine: Machine, plan: HeadPlan, *, against: str = 'full') -> int | None:
    """Fewest classes from which on the selected step is never slower than the rival's.

    Args:
        against: 'full' or 'random'.

    Returns:
        a number found by halving, exact to one class where the lead grows with the classes, which
        holds above it for these equations; None: not up to ``MOST_CLASSES``.

    Raises:
        VisionError: VIS-CONFIG-1094, another rival.
    """
    if against not in ('full', 'random'):
        raise VisionError('VIS-CONFIG-1094', f'against={against!r}', where='break_even',
                          do="compare with 'full' or 'random'")

    def is_faster(num_classes: int) -> bool:
        rival = getattr(plan, against)(num_classes)
        return plan.selected(num_classes).seconds(machine) <= rival.seconds(machine)

    high = MOST_CLASSES
    if not is_faster(high):
        return None
    while high > 2 and is_faster(high // 2):
        high //= 2
    low = high // 2  # slower here
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_faster(middle) else (middle, high)
    return high
