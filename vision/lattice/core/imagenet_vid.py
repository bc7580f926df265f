"""ImageNet VID: its 30 classes with WordNet ids, and which frames train a still-image detector."""

from __future__ import annotations

# WordNet id by name, in alphabetical order of the names: the order of the labels.
WORDNET_IDS = dict(
    airplane='n02691156', antelope='n02419796', bear='n02131653', bicycle='n02834778',
    bird='n01503061', bus='n02924116', car='n02958343', cattle='n02402425', dog='n02084071',
    domestic_cat='n02121808', elephant='n02503517', fox='n02118333', giant_panda='n02510455',
    hamster='n02342885', horse='n02374451', lion='n02129165', lizard='n01674464',
    monkey='n02484322', motorcycle='n03790512', rabbit='n02324045', red_panda='n02509815',
    sheep='n02411705', snake='n01726692', squirrel='n02355227', tiger='n02129604',
    train='n04468005', turtle='n01662784', watercraft='n04530566', whale='n02062744',
    zebra='n02391049')
CLASSES = tuple(WORDNET_IDS)
TRAIN_FRAMES_PER_VIDEO = 15


def train_frames(num_frames: int, *, count: int = TRAIN_FRAMES_PER_VIDEO) -> list[int]:
    """Frames (from 0) of a video that train a still-image detector: ``count`` spread evenly.

    The rule floor((i + 0.5) N / count) gives 3,457 of the 3,862 entries of the list that FGFA
    published (arXiv:1703.10025); use that list where it is at hand. Short videos give each frame
    once.
    """
    if num_frames <= count:
        return list(range(num_frames))
    return [int((i + 0.5) * num_frames / count) for i in range(count)]
