"""MovingSprites: equal seeds give equal bytes, boxes fit the pixels, speeds are balanced."""

import numpy as np
import pytest

from vision.lattice.core.sprite_shapes import SHAPES, background_texture, sprite_texture
from vision.lattice.core.sprites import (
    BACKGROUNDS,
    BANK,
    CLASSES,
    MIN_VISIBLE,
    SpriteConfig,
    make_video,
)


def motion_iou(video) -> np.ndarray:
    """FGFA's motion IoU of every box: mean IoU with its own track at offsets -10..10, not 0."""
    tracks: dict[int, dict[int, np.ndarray]] = {}
    for frame, (boxes, numbers) in enumerate(zip(video.boxes, video.instance_ids, strict=True)):
        for box, number in zip(boxes, numbers.tolist(), strict=True):
            tracks.setdefault(number, {})[frame] = box
    values = []
    for track in tracks.values():
        for frame, box in track.items():
            others = [track[frame + step] for step in range(-10, 11)
                      if step and frame + step in track]
            if others:
                values.append(np.mean([iou(box, other) for other in others]))
    return np.array(values)


def iou(a, b) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


@pytest.fixture(scope='module', params=['train', 'val'])
def videos(request):
    config = SpriteConfig(seed=0, num_videos=20, split=request.param)
    return [make_video(config, index) for index in range(20)]


def test_speed_classes_are_balanced(videos):
    speed = np.concatenate([motion_iou(video) for video in videos])
    slow, fast = (speed > 0.9).mean(), (speed < 0.7).mean()
    assert fast >= 0.25 and slow >= 0.2 and 1 - slow - fast >= 0.2, (slow, fast)


def test_boxes_lie_in_the_image_and_ids_are_unique_in_a_frame(videos):
    for video in videos:
        for boxes, labels, numbers in zip(video.boxes, video.labels, video.instance_ids,
                                          strict=True):
            assert boxes.dtype == np.float32 and len(boxes) == len(labels) == len(numbers)
            assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [320, 240]).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert len(set(numbers.tolist())) == len(numbers) and (numbers >= 1).all()
            assert (labels >= 0).all() and (labels < len(CLASSES)).all()


def test_every_class_event_and_camera_kind_comes_up(videos):
    assert set(np.concatenate([np.concatenate(v.labels) for v in videos])) == set(range(8))
    assert {video.camera_motion for video in videos} == {'none', 'pan', 'jitter'}
    occluded = np.concatenate([np.concatenate(video.occluded) for video in videos])
    assert 0.05 < occluded.mean() < 0.5
    enters = sum(number not in video.instance_ids[0]
                 for video in videos for number in set(np.concatenate(video.instance_ids)))
    leaves = sum(number not in video.instance_ids[-1]
                 for video in videos for number in set(np.concatenate(video.instance_ids)))
    assert enters >= 5 and leaves >= 5


def test_a_track_keeps_its_class(videos):
    for video in videos:
        pairs = set(zip(np.concatenate(video.instance_ids).tolist(),
                        np.concatenate(video.labels).tolist(), strict=True))
        assert len(pairs) == len({number for number, _ in pairs})


def test_equal_seed_equal_bytes_and_videos_do_not_depend_on_the_number_of_videos():
    small = make_video(SpriteConfig(seed=5, num_videos=2, num_frames=6), 1)
    again = make_video(SpriteConfig(seed=5, num_videos=9, num_frames=6), 1)
    assert all((a == b).all() for a, b in zip(small.frames, again.frames, strict=True))
    assert all((a == b).all() for a, b in zip(small.boxes, again.boxes, strict=True))
    other = make_video(SpriteConfig(seed=6, num_videos=2, num_frames=6), 1)
    assert any((a != b).any() for a, b in zip(small.frames, other.frames, strict=True))


def test_box_is_the_tight_extent_of_the_pixels():
    """Without bars, effects and camera: pixels that differ from the background fill the box."""
    from vision.lattice.core import sprites
    texture = np.full((64, 64, 3), 200, np.float32)
    track = sprites._Track(CLASSES.index('square'), texture, 0.0, 0, np.array([[60.0, 50.0]]),
                           np.array([20.0]), np.array([0.0]))
    canvas, cover = np.zeros((120, 160, 3), np.float32), np.zeros((120, 160), np.float32)
    box, label, number, hidden = sprites._paint(canvas, cover, track, 7, 0, np.zeros(2))
    rows, columns = np.nonzero(canvas[..., 0] > 100)
    assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert box == (44, 34, 76, 66) and (label, number, hidden) == (1, 7, False)


def test_an_object_that_is_mostly_hidden_has_no_box():
    from vision.lattice.core import sprites
    texture = np.full((64, 64, 3), 200, np.float32)

    def paint(hidden_columns: int):
        track = sprites._Track(CLASSES.index('square'), texture, 0.0, 0,
                               np.array([[60.0, 50.0]]), np.array([20.0]), np.array([0.0]))
        cover = np.zeros((120, 160), np.float32)
        cover[:, :44 + hidden_columns] = 1
        return sprites._paint(np.zeros((120, 160, 3), np.float32), cover, track, 1, 0,
                              np.zeros(2))

    assert MIN_VISIBLE == 0.25
    assert paint(hidden_columns=25) is None  # 7 of 32 columns are left
    box, *_, occluded = paint(hidden_columns=16)
    assert box == (60, 34, 76, 66) and occluded


def test_train_and_val_share_no_texture():
    assert not set(BANK['train']) & set(BANK['val'])
    assert not set(BACKGROUNDS['train']) & set(BACKGROUNDS['val'])
    first, second = (sprite_texture(np.random.default_rng(seed)) for seed in (0, 64))
    assert abs(first - second).mean() > 5
    assert background_texture(np.random.default_rng(1), 60, 80).shape == (60, 80, 3)


@pytest.mark.parametrize('name', SHAPES)
def test_shapes_are_inside_the_unit_square_and_differ(name):
    v, u = np.mgrid[-1.5:1.5:121j, -1.5:1.5:121j]
    inside = SHAPES[name](u, v) < 0
    assert 0.04 < inside.mean() < 0.4
    assert np.hypot(u, v)[inside].max() < 1.2
    same = [other for other, shape in SHAPES.items() if ((shape(u, v) < 0) == inside).all()]
    assert same == [name]


@pytest.mark.parametrize('bad', [dict(split='test'), dict(num_frames=0), dict(height=20),
                                 dict(num_videos=0)])
def test_impossible_configs_are_refused(bad):
    with pytest.raises(ValueError, match='must be one of|needs >= 1 video'):
        SpriteConfig(**bad)


def test_a_video_beyond_the_set_is_refused():
    with pytest.raises(IndexError, match='video 3 of 3'):
        make_video(SpriteConfig(num_videos=3), 3)
