"""datasets/photo_clip: boxes are where the pixels are, whatever hides what."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
from scripts import load_script

from vision.common.core.boxes import iou_matrix
from vision.common.core.errors import VisionError

needs_photos = pytest.mark.skipif(importlib.util.find_spec('skimage') is None,
                                  reason='no photographs: pip install scikit-image')


@pytest.fixture(scope='module')
def clip():
    return load_script('datasets/photo_clip/prepare.py')


@pytest.fixture(scope='module')
def made(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp('clip') / 'out'
    counts = clip.prepare(out, num_frames=8)
    return out, counts


def square(label, path, side=100.0):
    return dict(photo='x.png', label=label, is_smooth=False, path=path,
                outline=((0, 0), (side, 0), (side, side), (0, side)))


def test_boxes_of_a_case_worked_by_hand(clip, monkeypatch):
    """A square of 100 at half size; in front of it one that hides its left two fifths."""
    back = clip.Actor(**square(0, ((0, 200.25, 100, .5, 0), (10, 220.25, 100, .5, 0))))
    front = clip.Actor(**square(1, ((0, 170.25, 100, .5, 0), (10, 170.25, 300, .5, 0))))
    monkeypatch.setattr(clip, 'ACTORS', (back, front))
    (one, box, share), (two, front_box, whole) = clip.visible_boxes(0)
    assert (one, two) == (1, 2) and share == pytest.approx(0.4 + 0.2, abs=0.02)
    np.testing.assert_allclose(front_box, [145.25, 75, 195.25, 125])
    np.testing.assert_allclose(box[[1, 2, 3]], [75, 225.25, 125])  # these sides are exact
    assert box[0] == pytest.approx(195.25, abs=1) and whole == pytest.approx(1, abs=0.05)
    (_, box, _), _ = clip.visible_boxes(10)  # nothing hides it any more
    np.testing.assert_allclose(box, [195.25, 75, 245.25, 125])


def test_what_is_hidden_or_outside_has_no_box(clip, monkeypatch):
    back = clip.Actor(**square(0, ((0, 170, 100, .5, 0), (10, 170, 100, .5, 0))))
    front = clip.Actor(**square(1, ((0, 170, 100, .6, 0), (10, 660, 100, .6, 0))))
    monkeypatch.setattr(clip, 'ACTORS', (back, front))
    assert [number for number, *_ in clip.visible_boxes(0)] == [2]
    assert [number for number, *_ in clip.visible_boxes(10)] == [1]  # a sixth of 2 is inside


@needs_photos
@pytest.mark.parametrize('frame', [3, 55, 97, 161])
def test_pixels_lie_where_the_boxes_say(clip, frame, monkeypatch):
    """White cut-outs on black, one at a time: their extent is the outline's."""
    num_inside = 0
    for actor in [actor for actor in clip.ACTORS if not actor.cut]:
        monkeypatch.setattr(clip, 'ACTORS', (actor,))
        found = clip.visible_boxes(frame)
        if not found:
            continue
        cutout = clip.Cutout(actor, clip.photo_folder())
        cutout.image[:] = 255
        canvas = np.zeros((clip.HEIGHT, clip.WIDTH, 3), np.float32)
        cutout.paint(canvas, actor.matrix(frame))
        rows, columns = np.nonzero(canvas[..., 0] > 127)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(extent, found[0][1], atol=1.5)  # soft by a pixel
        num_inside += 1
    assert num_inside >= 1


@needs_photos
def test_the_clip_is_whole_and_a_detector_sees_what_it_says(made, clip, repository):
    from vision.lattice.runtime.detectors import as_detector
    from vision.stream.io.sources import VideoFile
    out, counts = made
    content = json.loads((out / 'annotations' / 'val.json').read_text())
    assert counts['frames'] == 8 and counts['boxes'] == len(content['annotations']) == 16
    frames = list(VideoFile(out / 'photo_clip.mp4'))
    assert len(frames) == 8
    detector, overlaps = as_detector('zoo:yolox-nano_coco'), []
    for image in content['images']:
        found = detector.detect(cv2.imread(str(out / 'val' / image['file_name'])))
        for row in content['annotations']:
            if row['image_id'] == image['id']:
                name = clip.CLASSES[row['category_id'] - 1]
                x, y, w, h = row['bbox']
                same = (found.labels == detector.classes.index(name)) & (found.scores > 0.3)
                overlaps.append(iou_matrix([[x, y, x + w, y + h]],
                                           found.boxes_xyxy[same]).max(initial=0))
    assert np.min(overlaps) > 0.5 and np.median(overlaps) > 0.75


@needs_photos
def test_the_same_seed_gives_the_same_files(made, clip, tmp_path):
    clip.prepare(tmp_path / 'again', num_frames=3)
    clip.prepare(tmp_path / 'other', num_frames=3, seed=1)
    name = 'val/photo_clip/000002.jpg'
    first = (made[0] / name).read_bytes()
    assert (tmp_path / 'again' / name).read_bytes() == first
    assert (tmp_path / 'other' / name).read_bytes() != first


@needs_photos
def test_the_annotations_pass_the_checker(made, repository):
    from vision.cli.data_check import main
    assert main([str(made[0] / 'annotations' / 'val.json'), '--images', str(made[0] / 'val'),
                 '--decode']) == 0


def test_refusals(clip, tmp_path, monkeypatch):
    def refused(code):
        with pytest.raises(VisionError) as caught:
            clip.prepare(tmp_path / 'out', num_frames=1)
        assert caught.value.code == code and not (tmp_path / 'out').exists()

    monkeypatch.setattr(clip, 'photo_folder', lambda: tmp_path)
    refused('VIS-DATA-222')
    (tmp_path / 'grass.png').write_bytes(b'another')
    refused('VIS-DATA-222')
    monkeypatch.undo()
    monkeypatch.setattr(clip.importlib.util, 'find_spec', lambda name: None)
    refused('VIS-ENV-906')
