"""Counters, blur and heat map, frame by frame, without a page."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.structures import FrameBoxes
from vision.web.overlays import OverlayOptions, Overlays, blur, parse_points

CLASSES = ('person', 'cat')
pytest.importorskip('supervision', reason='overlays need the extra web')


def boxes_at(*centres, size=20, label=0) -> FrameBoxes:
    """A box of ``size`` px around each centre, ids 1, 2, ..."""
    corners = [(x - size / 2, y - size / 2, x + size / 2, y + size / 2) for x, y in centres]
    return FrameBoxes(np.array(corners).reshape(-1, 4), np.full(len(centres), 0.9),
                      np.full(len(centres), label), np.arange(1, len(centres) + 1))


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)


@pytest.mark.parametrize(('text', 'points'), [
    ('100,200 500,200', [(100, 200), (500, 200)]),
    ('(1, 2), (3.5, 4)', [(1, 2), (3.5, 4)]),
    ('1 2\n3 4', [(1, 2), (3, 4)]),
    ('', []), ('  ', []), (None, [])])
def test_points_are_read(text, points):
    assert parse_points(text, least=2, most=2, what='line') == points


@pytest.mark.parametrize('text', ['1', '1,2', '1,2 3', '1,2 3,4 5,6', 'a,b c,d', '1,2 3,4 x',
                                  'nan,1 2,3', '<script>', f'1,2 3,{"9" * 400}'])
def test_what_is_no_line_is_told(text):
    with pytest.raises(VisionError, match='the field|line') as caught:
        parse_points(text, least=2, most=2, what='line')
    assert caught.value.code == 'VIS-INPUT-1775'


def test_a_line_counts_both_ways_once_each():
    overlays = Overlays(OverlayOptions(line=[(150, 0), (150, 200)]), CLASSES)
    there = [(x, 100) for x in range(100, 201, 10)]
    for centre in [*there, *there[::-1]]:
        overlays.draw(noise(), boxes_at(centre))
    assert overlays.counts() == dict(line_in=1, line_out=1)


def test_the_direction_is_the_one_that_the_page_says():
    """Over a line that is drawn downwards, to the right is in."""
    overlays = Overlays(OverlayOptions(line=[(150, 0), (150, 200)]), CLASSES)
    for x in range(100, 201, 10):
        overlays.draw(noise(), boxes_at((x, 100)))
    assert overlays.counts() == dict(line_in=1, line_out=0)


def test_who_does_not_cross_is_not_counted():
    overlays = Overlays(OverlayOptions(line=[(150, 0), (150, 80)]), CLASSES)
    for x in range(100, 201, 10):  # below the end of the line
        overlays.draw(noise(), boxes_at((x, 150)))
    assert overlays.counts() == dict(line_in=0, line_out=0)


def test_a_zone_counts_feet():
    zone = [(100, 100), (200, 100), (200, 180), (100, 180)]
    overlays = Overlays(OverlayOptions(zone=zone), CLASSES)
    overlays.draw(noise(), boxes_at((150, 120), (160, 150), (20, 20)))
    assert overlays.counts() == dict(zone_now=2, zone_most=2, zone_tracks=2)
    overlays.draw(noise(), boxes_at((150, 95), (20, 20), (40, 40)))  # its feet at 105
    assert overlays.counts() == dict(zone_now=1, zone_most=2, zone_tracks=2)
    overlays.draw(noise(), FrameBoxes.empty())
    assert overlays.counts() == dict(zone_now=0, zone_most=2, zone_tracks=2)


def test_a_zone_beyond_the_picture_is_cut_to_it():
    overlays = Overlays(OverlayOptions(zone=[(-50, -50), (9999, -50), (9999, 9999)]), CLASSES)
    overlays.draw(noise(), boxes_at((250, 50)))
    assert overlays.counts()['zone_now'] == 1


def test_only_the_chosen_class_is_blurred():
    overlays = Overlays(OverlayOptions(blurred=('cat',)), CLASSES)
    image = noise()
    both = FrameBoxes.concatenate([boxes_at((60, 60), size=40, label=1),
                                   boxes_at((200, 100), size=40, label=0)])
    overlays.draw(image, both)
    before = noise()
    assert image[45:75, 45:75].std() < 0.5 * before[45:75, 45:75].std()
    assert (image[80:120, 180:220] == before[80:120, 180:220]).all()


def test_blur_covers_the_edge_of_a_box_and_the_edge_of_the_picture():
    image, before = noise(), noise()
    blur(image, np.array([[100, 50, 140, 90], [-10, 180, 30, 230]]))
    changed = (image != before).any(axis=2)
    assert changed[46:94, 96:144].mean() > 0.95 and changed[178:, :32].mean() > 0.95
    assert not changed[:40].any() and not changed[:, 200:].any()


def test_what_is_blurred_cannot_be_told_apart():
    """Two different pictures of the same brightness differ by little afterwards."""
    first, second = np.zeros((2, 80, 80, 3), np.uint8)
    first[::2], second[:, ::2] = 255, 255  # stripes along, stripes across
    box = np.array([[5, 5, 75, 75]])
    blur(first, box)
    blur(second, box)
    assert np.abs(first[5:75, 5:75].astype(int) - second[5:75, 5:75]).max() <= 8


def test_faces_are_found_before_anything_hides_them():
    seen = []

    def find(image):
        seen.append(image.copy())
        return np.array([[10, 10, 50, 50]], np.float32)

    image = noise()
    options = OverlayOptions(blurred=('person',), with_faces=True)
    Overlays(options, CLASSES, find_faces=find).draw(image, boxes_at((30, 30), size=60))
    assert (seen[0] == noise()).all() and (image[15:45, 15:45] != noise()[15:45, 15:45]).any()


def test_heat_stays_where_somebody_stood():
    overlays = Overlays(OverlayOptions(with_heat=True), CLASSES)
    overlays.draw(noise(), boxes_at((100, 100)))
    grey = np.full((200, 300, 3), 128, np.uint8)
    overlays.draw(grey, FrameBoxes.empty())
    assert (grey[110, 100] != 128).any() and (grey[10, 290] == 128).all()


def test_without_options_nothing_is_touched():
    overlays = Overlays(OverlayOptions(), CLASSES)
    image = noise()
    overlays.draw(image, boxes_at((30, 30)))
    assert (image == noise()).all() and overlays.counts() == {}


def test_an_unknown_class_is_told():
    with pytest.raises(VisionError, match='dog'):
        Overlays(OverlayOptions(blurred=('dog',)), CLASSES)
