"""One clip through a model into files, without a page."""

import csv
import json
import threading
from contextlib import contextmanager

import av
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.web.limits import Limits
from vision.web.live import LiveView
from vision.web.overlays import OverlayOptions
from vision.web.video import ClipOptions, VideoOutcome, VideoProgress, run_clip


def outcome_of(*args, **kwargs) -> VideoOutcome:
    *steps, outcome = run_clip(*args, **kwargs)
    assert all(isinstance(step, VideoProgress) for step in steps)
    return outcome


def test_a_clip_gives_a_video_and_two_tables(clip, tmp_path, limits, yellow_model):
    outcome = outcome_of(yellow_model(), clip, tmp_path, ClipOptions(), limits)
    assert [path.name for path in outcome.paths] == ['result.mp4', 'result.jsonl', 'result.csv']
    assert outcome.num_frames == 24 and outcome.num_tracks == 1 and not outcome.cut_short
    assert 1 < outcome.num_keyframes < 24
    with av.open(str(outcome.video)) as container:
        assert container.streams.video[0].codec_context.name == 'h264'
        assert sum(1 for _ in container.decode(video=0)) == 24
    rows = [json.loads(line) for line in outcome.paths[1].read_text().splitlines()]
    assert [row['frame_id'] for row in rows] == list(range(24))
    for t, row in enumerate(rows):
        assert row['labels'] == ['square'] and row['track_ids'] == [1]
        assert np.abs(np.array(row['boxes'][0]) - [10 + 3 * t, 40, 34 + 3 * t, 64]).max() < 3
    table = list(csv.DictReader(outcome.paths[2].open()))
    assert len(table) == 24 and {row['label'] for row in table} == {'square'}


def test_counters_and_blur_reach_the_video(clip, tmp_path, limits, yellow_model):
    pytest.importorskip('supervision', reason='overlays need the extra web')
    options = ClipOptions(overlays=OverlayOptions(
        line=[(60, 0), (60, 96)], zone=[(0, 0), (50, 0), (50, 90), (0, 90)], blurred=('square',),
        with_boxes=False))
    outcome = outcome_of(yellow_model(), clip, tmp_path, options, limits)
    assert outcome.counts == dict(line_in=1, line_out=0, zone_now=0, zone_most=1, zone_tracks=1)


@pytest.mark.parametrize('mode', ['buffered', 'causal'])
def test_a_budget_is_kept_and_told(clip, tmp_path, limits, yellow_model, mode):
    options = ClipOptions(target_fps=1, mode=mode)  # so slow that each frame may be a keyframe
    outcome = outcome_of(yellow_model(), clip, tmp_path, options, limits)
    assert outcome.budget.startswith(f'{float(outcome.budget.split()[0])} fps of 1 fps')
    plain = outcome_of(yellow_model(), clip, tmp_path / 'b', ClipOptions(mode=mode), limits)
    assert plain.budget == ''


@pytest.mark.fault('S38')
def test_a_job_ends_when_its_time_is_up(write_clip, tmp_path, yellow_model):
    long = write_clip(tmp_path / 'long.mp4', num_frames=48)
    limits = Limits(job_seconds=1e-3)
    outcome = outcome_of(yellow_model(), long, tmp_path / 'out', ClipOptions(), limits)
    assert 0 < outcome.num_frames < 48 and 'limit of a job' in outcome.cut_short
    with av.open(str(outcome.video)) as container:  # what was done is whole
        assert sum(1 for _ in container.decode(video=0)) == outcome.num_frames


def test_stopping_finishes_the_files(write_clip, tmp_path, limits, yellow_model, monkeypatch):
    monkeypatch.setattr('vision.web.video.REPORT_EVERY_S', 0)
    long = write_clip(tmp_path / 'long.mp4', num_frames=40)
    job = run_clip(yellow_model(), long, tmp_path / 'out', ClipOptions(), limits)
    assert next(job).num_done >= 1
    job.close()
    with av.open(str(tmp_path / 'out' / 'result.mp4')) as container:
        assert 0 < sum(1 for _ in container.decode(video=0)) < 40
    assert len(list((tmp_path / 'out').iterdir())) == 3


def test_a_damaged_clip_says_so_and_gives_what_decodes(clip, tmp_path, limits, yellow_model):
    data = bytearray(clip.read_bytes())
    place = data.rfind(b'mdat') + 4
    data[place + len(data[place:]) // 2:] = b'\0' * (len(data) - place - len(data[place:]) // 2)
    damaged = tmp_path / 'damaged.mp4'
    damaged.write_bytes(data)
    outcome = outcome_of(yellow_model(), damaged, tmp_path / 'out', ClipOptions(), limits)
    assert 'frames decoded' in outcome.cut_short


@pytest.mark.fault('S38')
@pytest.mark.parametrize('options', [dict(mode='offline'), dict(target_fps=-1),
                                     dict(target_fps=float('nan')), dict(score_thr=2)])
def test_wrong_fields_are_told(options, clip, tmp_path, limits, yellow_model):
    with pytest.raises(VisionError):
        outcome_of(yellow_model(), clip, tmp_path, ClipOptions(**options), limits)


def test_real_clip(shared_data, tmp_path):
    """A street of MOT15 through the package's own model; its twin above is generated."""
    import vision
    clip = next((shared_data / 'mot15-mini').rglob('*.mp4'), None) or next(
        (shared_data / 'mot15-mini').rglob('*.avi'), None)
    if clip is None:
        pytest.skip('no video file in mot15-mini')
    *_, outcome = run_clip(vision.load('lattice_yolox-nano'), clip, tmp_path, ClipOptions(
        target_fps=20), Limits(job_seconds=4))
    assert outcome.num_tracks > 3 and 'fps' in outcome.budget


@contextmanager
def lent(model):
    yield model


def test_a_camera_is_answered_picture_by_picture(yellow_model):
    view = LiveView(lent(yellow_model()), ClipOptions())
    for t in range(12):
        image = np.full((96, 128, 3), 70, np.uint8)
        image[40:64, 10 + t:34 + t] = (40, 220, 240)
        canvas = view.show(image)
        edge = np.s_[41:63, 10 + t]
        assert canvas.shape == image.shape and (canvas[edge] != image[edge]).any()
    assert view.num_frames == 12 and 1 <= view.num_keyframes < 12
    view.close()


def test_a_look_that_never_began_closes_too(yellow_model):
    LiveView(lent(yellow_model()), ClipOptions()).close()


def test_a_page_that_closes_in_the_middle_of_a_picture(yellow_model):
    view = LiveView(lent(yellow_model()), ClipOptions())
    image = np.full((96, 128, 3), 70, np.uint8)
    view.show(image)
    workers = [threading.Thread(target=lambda: [view.show(image) for _ in range(20)]),
               threading.Thread(target=view.close)]
    problems = []
    monkey = threading.excepthook
    threading.excepthook = lambda args: problems.append(args.exc_value)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
    finally:
        threading.excepthook = monkey
    assert not any(worker.is_alive() for worker in workers)
    assert all(isinstance(problem, StopIteration) for problem in problems)
