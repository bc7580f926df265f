"""Fitted constants as a file: what was fitted, on how many rows, how far off they are left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vision.common.core.config_files import find_cluster
from vision.common.core.data_configs import load_yaml
from vision.common.core.errors import VisionError
from vision.common.core.files import atomic_write
from vision.simulator.core.fit import Pair
from vision.simulator.core.pricing import CONSTANTS, mean_error, spread


@dataclass(frozen=True)
class Fitted:
    """Constants of the pricing that were fitted to measurements.

    Args:
        constants: by the names of ``pricing.CONSTANTS``.
        interval: relative half width around a prediction: root mean square of the residuals.
        source: what they were fitted on.
    """

    constants: Mapping[str, float]
    interval: float
    source: str


def write_parameters(path: Path, constants: Mapping[str, float], pairs: Sequence[Pair]) -> Fitted:
    """Write the constants and the residuals of the rows they were fitted on."""
    source = f'{len(pairs)} published rows, mean error {100 * mean_error(pairs):.1f} % on them'
    lines = ['# Constants of the cost model, fitted; the ranges are what is physically possible.',
             '# benchmarks/simulator_rows.py --fit writes this file.',
             f'source: {source}', f'interval: {spread(pairs):.4f}', 'constants:']
    lines += [f'  {name}: {value:.5g}  # {CONSTANTS[name][0]}'
              for name, value in constants.items()]
    with atomic_write(Path(path)) as file:
        file.write(('\n'.join(lines) + '\n').encode())
    return read_parameters(path)  # predictions are made with what stands in the file


def read_parameters(path: str | Path) -> Fitted:
    """Raises VIS-CONFIG-1651 if the file is not one of ``write_parameters``, VIS-CONFIG-1654 if it
    has an unknown constant, VIS-CONFIG-1655 one outside of its range."""
    try:
        raw = load_yaml(find_cluster(path).read_bytes())
        constants = {str(name): float(value) for name, value in raw['constants'].items()}
        fitted = Fitted(constants, float(raw['interval']), str(raw['source']))
        if not 0 <= fitted.interval < math.inf:
            raise ValueError(f'the interval is {fitted.interval}')
    except (OSError, TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise VisionError('VIS-CONFIG-1651', 'the fitted constants cannot be read',
                          where=str(path), why=f'{type(error).__name__}: {error}'.splitlines()[0],
                          do='give fitted, which is configs/clusters/fitted.yaml, or a file '
                          'that --fit wrote'
                          ) from error
    for name, value in constants.items():
        if name not in CONSTANTS:
            raise VisionError('VIS-CONFIG-1654', f'there is no constant {name!r}', where=str(path),
                              why=f'known are {", ".join(CONSTANTS)}', do='remove it')
        _, low, high = CONSTANTS[name]
        if not low <= value <= high + 1e-3:
            raise VisionError('VIS-CONFIG-1655', f'{name} is {value:g}', where=str(path),
                              why=f'it is between {low:g} and {high:g}', do='fit again')
    return fitted
