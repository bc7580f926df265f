"""What is drawn, where, and that it is drawn in place."""

import numpy as np

from vision.common.runtime.drawing import class_colour
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.stream.io.overlay import KEY_COLOUR, OTHER_COLOUR, Overlay


def draw(is_key=False, tracks=(1, 2), overlay=None, width=480):
    image = np.full((240, width, 3), 30, np.uint8)
    boxes = FrameBoxes([[40, 60, 140, 160], [220, 60, 320, 160]][:len(tracks)],
                       [0.9] * len(tracks), [0] * len(tracks), tracks)
    (overlay or Overlay(('blob',))).draw(image, FrameResult(7, boxes, 'propagated', is_key), 50.0)
    return image


def test_colours_follow_the_tracks_and_keyframes_are_thick():
    image = draw()
    for left, track in ((40, 1), (220, 2)):
        assert image[120, left].tolist() == list(class_colour(track))
    assert (image[120, 42:138] == 30).all() and (image[120, 36:40] == 30).all()
    thick = draw(is_key=True)
    assert (thick[120, 39:42] == class_colour(1)).all() and (thick[120, 44:136] == 30).all()
    assert len({class_colour(track) for track in range(200)}) == 200


def test_a_label_stands_over_its_box_and_inside_the_picture():
    image = draw()
    plate = (image[46:58, 41:100] == class_colour(1)).all(axis=2)
    assert plate.mean() > 0.5 and not plate.all()  # a plate with letters on it
    edge = np.full((100, 480, 3), 30, np.uint8)
    boxes = FrameBoxes([[450, 0, 479, 60]], [0.9], [0], [3])
    Overlay(('blob',)).draw(edge, FrameResult(0, boxes, 'detected'), 1.0)
    assert (edge[3:12, 400:450] == class_colour(3)).all(axis=2).mean() > 0.4


def test_the_bar_shows_which_of_the_last_frames_were_keyframes():
    overlay = Overlay(('blob',))
    for t in range(130):
        image = draw(is_key=t % 4 == 0, overlay=overlay)
    cells = image[-3].reshape(120, 4, 3)  # 480 px: 4 a frame, the last one a gap
    is_key = [(cell[0] == KEY_COLOUR).all() for cell in cells]
    assert is_key == [t % 4 == 0 for t in range(10, 130)]
    assert all((cell[0] == (KEY_COLOUR if key else OTHER_COLOUR)).all()
               for cell, key in zip(cells, is_key, strict=True))
    assert (cells[:, 3] == 30).all()


def test_a_narrow_picture_and_one_without_boxes_are_drawn():
    assert draw(width=64, tracks=()).shape == (240, 64, 3)
