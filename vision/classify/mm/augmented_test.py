"""Test-time augmentation of classifiers: scores averaged over views of one image."""

from __future__ import annotations

from mmengine.config import Config

from vision.common.core.errors import VisionError


def with_tta(config: Config, views: str) -> None:
    """Let the test of a classifier's config average over views of each image.

    Args:
        views: 'flip': the image and its mirror image; '10crop': centre and corners, and their
            mirror images, in place of the one crop at the centre.

    Raises:
        VisionError: VIS-CONFIG-1785, its pipeline has no place for them.
    """
    steps = [dict(step) for step in config.test_dataloader['dataset'].get('pipeline') or []]
    names = [step['type'].rpartition('.')[2] for step in steps]
    wanted = 'PackInputs' if views == 'flip' else 'CenterCrop'
    place = names.index(wanted) if wanted in names else None
    size = steps[place].get('crop_size', 0) if place is not None else 0
    sides = {size} if isinstance(size, int) else set(size)
    if place is None or len(sides) > 1 or {'MultiCrop', 'MirrorToo'} & set(names):
        raise VisionError('VIS-CONFIG-1785', f'--tta {views} has no place in the test pipeline',
                          where='test_dataloader.dataset.pipeline',
                          why=f'its steps are {", ".join(names) or "none"}',
                          do='MultiCrop in it is such a test already; 10crop takes the place of '
                          'a square CenterCrop, flip that before PackInputs')
    if views == 'flip':
        steps.insert(place, dict(type='vision.MirrorToo'))
    else:
        steps[place] = dict(type='vision.MultiCrop', crop_size=sides.pop(), num_crops=10)
    config.test_dataloader['dataset'].pipeline = steps
