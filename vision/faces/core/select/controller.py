"""How many rows are active, how often the index is renewed, how many lists are searched.

arXiv:1801.01687 adapts the first two while training, led by the probability mass that the active
classes hold; its figures are not public. The rules and numbers here are OUR design, not the
paper's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from vision.common.core.errors import VisionError


@dataclass(frozen=True)
class Readings:
    """Measured on one batch.

    Attributes:
        outside_mass: mean probability of the negatives that were not selected, 0..1.
        random_outside_mass: the same for as many random rows.
        recall: share of each sample's ten best rows that the index finds when it is asked for
            that many, 0..1.
        drift: mean of 1 - cosine between rows now and when the index was built.
    """

    outside_mass: float
    random_outside_mass: float
    recall: float
    drift: float


@dataclass(frozen=True)
class Rules:
    """Thresholds of the controller; all are our choice.

    Attributes:
        warm_share: random rows over all rows while the rows have no structure yet.
        warm_steps: the warm-up lasts for so many steps at least.
        least_recall, least_gain: both must be reached to select by the index: below, it finds
            hardly more than chance.
        fall_back: share of those two below which the warm-up returns; lower than 1, so that a
            reading on the border does not flip the phase each time.
        mass_range: the outside mass that is aimed at, in 0..1.
        drift_range: drift at which the interval grows (below) or halves (above).
        recall_range: recall at which the lists searched double (below) or become fewer (above).
        active_range: least and largest number of active rows; None: a quarter of all rows. Where
            more would be needed, the mass is spread too evenly for any selection: a step would
            cost what random rows with ``correction='sampled'`` cost, and tell no more.
        interval_range: least and largest number of steps between two builds.
        nprobe_range: least and largest number of lists searched; an index has its own limit.

    Raises:
        VisionError: VIS-CONFIG-1048, a range that is none, or a share outside (0, 1].
    """

    warm_share: float = 0.1
    warm_steps: int = 0
    least_recall: float = 0.5
    least_gain: float = 0.05
    fall_back: float = 0.6
    mass_range: tuple[float, float] = (0.01, 0.05)
    drift_range: tuple[float, float] = (0.005, 0.02)
    recall_range: tuple[float, float] = (0.9, 0.98)
    active_range: tuple[int, int | None] = (256, None)
    interval_range: tuple[int, int] = (50, 5000)
    nprobe_range: tuple[int, int] = (4, 1024)

    def __post_init__(self) -> None:
        ranges = ('mass_range', 'drift_range', 'recall_range', 'active_range', 'interval_range',
                  'nprobe_range')
        bad = [name for name in ranges if not _is_range(getattr(self, name))
               or getattr(self, name)[1] is None and name != 'active_range']
        bad += [name for name in ('warm_share', 'least_recall', 'fall_back')
                if not 0 < getattr(self, name) <= 1]
        if bad:
            raise VisionError('VIS-CONFIG-1048', f'adaptive rules out of range: {", ".join(bad)}',
                              where='selector.adaptive',
                              do='ranges are (low, high) with 0 < low < high, shares in 0..1')


def _is_range(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and \
        0 < value[0] < (math.inf if value[1] is None else value[1])


@dataclass(frozen=True)
class Allocation:
    """What holds from a step on: phase 'warm-up' (random rows) or 'index'.

    ``nprobe`` is None for an index without lists.
    """

    phase: str
    num_active: int
    interval: int
    nprobe: int | None = None


class AllocationController:
    """Turns readings into allocations; pure, so that a run can be replayed from its log.

    Args:
        num_rows: rows to choose among.
        batch_size: samples per step of all ranks; the first number of active rows is
            max(4 * batch_size, num_rows / 100).
        nprobe: lists searched at first; None: the index has none.
    """

    def __init__(self, num_rows: int, batch_size: int, rules: Rules | None = None, *,
                 nprobe: int | None = None) -> None:
        self.rules, self.num_rows = rules or Rules(), num_rows
        low, high = self.rules.active_range
        self.most_active = min(num_rows, max(low, num_rows // 4) if high is None else high)
        start = min(max(4 * batch_size, num_rows // 100, low), self.most_active)
        self.allocation = Allocation('warm-up', start, max(100, self.rules.interval_range[0]),
                                     nprobe)
        self.log: list[dict] = []

    @property
    def num_random(self) -> int:
        """Rows per step in the warm-up."""
        return max(self.allocation.num_active, round(self.rules.warm_share * self.num_rows))

    def update(self, step: int, readings: Readings) -> Allocation:
        """Decide, log the decision with its readings, and return what holds from now on."""
        before, phase = self.allocation, self._phase(step, readings)
        nprobe = self._nprobe(before.nprobe, readings.recall)
        self.allocation = replace(before, phase=phase, nprobe=nprobe)
        if phase == 'index':
            self.allocation = Allocation(
                phase, self._num_active(before.num_active, readings.outside_mass),
                self._interval(before.interval, readings.drift), nprobe)
        self.log.append(dict(step=step, **asdict(readings), **asdict(self.allocation)))
        return self.allocation

    def _phase(self, step: int, readings: Readings) -> str:
        if step < self.rules.warm_steps:
            return 'warm-up'
        factor = self.rules.fall_back if self.allocation.phase == 'index' else 1.0
        gain = readings.random_outside_mass - readings.outside_mass
        has_structure = readings.recall >= factor * self.rules.least_recall \
            and gain >= factor * self.rules.least_gain
        return 'index' if has_structure else 'warm-up'

    def _num_active(self, num: int, outside_mass: float) -> int:
        low, high = self.rules.mass_range
        factor = 1.25 if outside_mass > high else 0.9 if outside_mass < low else 1.0
        return int(min(max(num * factor, self.rules.active_range[0]), self.most_active))

    def _interval(self, interval: int, drift: float) -> int:
        low, high = self.rules.drift_range
        factor = 0.5 if drift > high else 1.5 if drift < low else 1.0
        least, most = self.rules.interval_range
        return int(min(max(interval * factor, least), most))

    def _nprobe(self, nprobe: int | None, recall: float) -> int | None:
        """Also in the warm-up, which may last only because too few lists are searched."""
        if nprobe is None:
            return None
        low, high = self.rules.recall_range
        factor = 2.0 if recall < low else 0.8 if recall > high else 1.0
        least, most = self.rules.nprobe_range
        return int(min(max(nprobe * factor, least), most))

    def state_dict(self) -> dict:
        """The allocation in force and the log, as plain values."""
        return dict(allocation=asdict(self.allocation), log=list(self.log))

    def load_state_dict(self, state: dict) -> None:
        """Go on from what ``state_dict`` gave."""
        self.allocation, self.log = Allocation(**state['allocation']), list(state['log'])
