"""What every kind of index refuses, whichever library holds it."""

from __future__ import annotations

from vision.common.core.errors import VisionError


def rows_not_finite() -> VisionError:
    """VIS-RUN-1047: class rows that no index can be built from."""
    return VisionError('VIS-RUN-1047', 'class rows hold NaN or infinity: no index is built',
                       where='selector',
                       do='lower the learning rate, or resume from an earlier checkpoint')


def too_few_rows(num_rows: int, num_lists: int) -> VisionError:
    """VIS-CONFIG-1044: fewer class rows than lists."""
    return VisionError('VIS-CONFIG-1044', f'{num_rows} class rows cannot fill {num_lists} lists',
                       where='selector', do='lower num_lists, or leave it at 0')


def damaged_index(why: str) -> VisionError:
    """VIS-CKPT-1054: the part of a checkpoint that holds the index is not what was saved."""
    return VisionError('VIS-CKPT-1054', 'the index of the checkpoint is damaged',
                       where='selector', why=why, do='use an earlier checkpoint; or remove the '
                       'index from it, then it is built anew')
