"""VideoModel: what a user writes in five lines, and what they get wrong."""

import json
import sys

import numpy as np
import pytest

import vision
from vision.common.core.errors import VisionError
from vision.stream.api import FlowLattice, VideoModel
from vision.stream.io.sinks import VideoSink

GAP = 4


@pytest.fixture
def model(detector):
    return VideoModel(FlowLattice(detector, keyframes=dict(type='UniformKeyframes',
                                                           gap_frames=GAP)))


@pytest.fixture
def frames(frame):
    return [frame(t) for t in range(14)]


def written(path, frames):
    sink = VideoSink(path, fps=25)
    for t, frame in enumerate(frames):
        sink.write(frame, t / 25)
    return sink.close()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_frames_come_in_order_with_their_boxes(model, frames):
    found = list(model.video(frames))
    assert [frame.frame_id for frame in found] == list(range(14))
    assert [frame.is_keyframe for frame in found] == [t % GAP == 0 or t == 13 for t in range(14)]
    for t, frame in enumerate(found):
        assert frame.names == ['blob'] and set(frame.track_ids) == {1} and len(frame) == 1
        assert np.abs(frame.boxes_xyxy[0] - (4 + 2 * t, 20, 16 + 2 * t, 32)).max() < 2
        assert np.array_equal(frame.image_bgr, frames[t])


@pytest.mark.parametrize('kind', ['list', 'generator', 'array', 'folder', 'paths', 'video'])
def test_every_kind_of_source(model, frames, tmp_path, kind):
    import cv2
    paths = [tmp_path / 'frames' / f'{t:02}.png' for t in range(len(frames))]
    paths[0].parent.mkdir()
    for path, frame in zip(paths, frames, strict=True):
        cv2.imwrite(str(path), frame)
    source = dict(list=frames, generator=(frame for frame in frames), array=np.stack(frames),
                  folder=tmp_path / 'frames', paths=paths,
                  video=written(tmp_path / 'a.mp4', frames))[kind]
    played = model.video(source).run()
    assert played.stats.num_finished == 14 and played.paths == []


def test_files_are_the_same_whether_or_not_somebody_looks(model, frames, tmp_path):
    clip = written(tmp_path / 'clip.mp4', frames)
    seen = model.video(clip, save=tmp_path / 'seen')
    for frame in seen:
        frame.image_bgr[:] = 0  # what a user does to their picture is theirs
    paths = model.video(clip, save=tmp_path / 'unseen' / 'named.mp4').run().paths
    assert [path.name for path in seen.paths] == ['clip.mp4', 'clip.jsonl', 'clip.csv']
    assert [path.name for path in paths] == ['named.mp4', 'named.jsonl', 'named.csv']

    def without_times(path):
        return [row | dict(latency_ms=None) for row in rows_of(path)]
    assert without_times(seen.paths[1]) == without_times(paths[1])
    assert len(rows_of(paths[1])) == 14


def test_pictures_of_the_user_are_not_drawn_into(model, frames, tmp_path):
    before = [frame.copy() for frame in frames]
    model.video(frames, save=tmp_path / 'a').run()
    found = list(model.video(frames, save=tmp_path / 'b'))
    assert all(map(np.array_equal, frames, before))
    assert all(np.array_equal(frame.image_bgr, other)
               for frame, other in zip(found, before, strict=True))


@pytest.mark.usefixtures('no_thread_is_left', 'no_file_is_left')
@pytest.mark.parametrize('way', ['break', 'error', 'with'])
def test_leaving_early_finishes_the_files(model, frames, tmp_path, way):
    def forever():
        while True:
            yield from frames
    run = model.video(forever(), save=tmp_path)
    if way == 'break':
        for frame in run:
            if frame.frame_id == 5:
                break
    elif way == 'error':
        with pytest.raises(KeyError):
            for frame in run:
                if frame.frame_id == 5:
                    raise KeyError('mine')
        frame = None
    else:
        with run:
            iterator = iter(run)
            while next(iterator).frame_id < 5:
                pass
    sys.exc_info()
    assert [path.suffix for path in run.paths] == ['.mp4', '.jsonl', '.csv']
    assert [row['frame_id'] for row in rows_of(run.paths[1])] == list(range(6))


def test_memory_is_constant(model, frames):
    """Frames that were given out are not kept."""
    import gc
    import weakref

    run = model.video(frame for _ in range(20) for frame in frames)
    seen = []
    for frame in run:
        seen.append(weakref.ref(frame._picture))
    del frame
    gc.collect()
    assert len(seen) == 280 and sum(ref() is not None for ref in seen) <= 2 * GAP


def test_an_error_of_the_generator_is_raised(model, frames):
    def broken():
        yield from frames[:6]
        raise RuntimeError('mine')
    with pytest.raises(RuntimeError, match='mine'):
        list(model.video(broken()))


def test_a_damaged_source_raises_after_its_last_frame(model, frames, tmp_path, capsys):
    import cv2
    for t, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f'{t:02}.png'), frame)
    (tmp_path / '09.png').write_bytes(b'')
    seen = []
    with pytest.raises(VisionError, match='VIS-DATA-507'):
        for frame in model.video(tmp_path):
            seen.append(frame.frame_id)
    assert seen == list(range(9))
    assert len(list(model.video(tmp_path, keep_going=True))) == 13
    assert 'WARNING VIS-DATA-507' in capsys.readouterr().err


def test_revised_frames_come_twice_and_say_so(model, frames):
    found = [(frame.frame_id, frame.status) for frame in model.video(frames,
                                                                     mode='causal+revise')]
    assert sum(status == 'final' for _, status in found) == 14 < len(found)


def test_offline_averages_scores_along_tracks(model, frames):
    found = list(model.video(frames, mode='offline'))
    assert [frame.frame_id for frame in found] == list(range(14))


def test_another_detector(model, frames):
    def everything(image_bgr):
        height, width = image_bgr.shape[:2]
        return [[0, 0, width, height]], [0.8], [1]
    found = list(model.video(frames, detector=everything, classes=['nothing', 'all']))
    assert {tuple(frame.names) for frame in found} == {('all',)}
    assert model.classes == ('blob',)


def test_a_budget_is_kept_and_told(model, frames):
    run = model.video(frames, target_fps=0.5)
    run.run()
    assert 'of 0.5 fps asked for' in run.policy.account()


@pytest.mark.parametrize(('source', 'options', 'code'), [
    ([], {}, 'VIS-INPUT-1716.*\n.*empty'),
    (iter(()), {}, 'VIS-INPUT-1716.*\n.*ended before'),
    (np.zeros((4, 4, 3), np.uint8), {}, 'VIS-INPUT-1716.*\n.*one picture'),
    ([np.zeros((4, 4), np.uint8)], {}, r'VIS-INPUT-1716.*\n.*item 0 .*\(4, 4\), uint8'),
    ([np.zeros((4, 4, 3))], {}, 'VIS-INPUT-1716.*\n.*float64'),
    ([None], {}, 'VIS-INPUT-1716.*\n.*NoneType'),
    (None, {}, 'VIS-INPUT-1718'), (1.5, {}, 'VIS-INPUT-1718'),
    (99, {}, 'VIS-VIDEO-510'), ('nothing.mp4', {}, 'VIS-VIDEO-502'),
    (__file__, {}, 'VIS-VIDEO-503'),
    (iter(()), dict(mode='offline'), 'VIS-CONFIG-512'),
    ('VIDEO', dict(fps=3), 'VIS-CONFIG-1719'), ('VIDEO', dict(save='a.avi'), 'VIS-CONFIG-1717'),
    ('VIDEO', dict(save='VIDEO'), 'VIS-CONFIG-516'),
    ('VIDEO', dict(mode='fast'), 'VIS-CONFIG-513.*\n.*\n.*buffered'),
    ('VIDEO', dict(gap='8'), 'VIS-CONFIG-513.*\n.*\n.*whole number'),
    ('VIDEO', dict(gap=2.5), 'VIS-CONFIG-513'), ('VIDEO', dict(max_frames=0), 'VIS-CONFIG-513'),
    ('VIDEO', dict(gap=3, method='detect'), 'VIS-CONFIG-519'),
    ('VIDEO', dict(target_fps=3, target_ms=4), 'VIS-CONFIG-519'),
    ('VIDEO', dict(classes=['a']), 'VIS-CONFIG-519'),
    ('VIDEO', dict(detector='nothing.onnx'), 'VIS-INPUT-611'),
    ('VIDEO', dict(method='magic'), 'VIS-CONFIG-111'),
])
def test_what_is_refused_and_how(model, frames, tmp_path, source, options, code):
    video = written(tmp_path / 'clip.mp4', frames)
    options = {name: video if value == 'VIDEO' else value for name, value in options.items()}
    with pytest.raises(VisionError, match=code):
        list(model.video(video if isinstance(source, str) and source == 'VIDEO' else source,
                         **options))
    assert [path.name for path in tmp_path.iterdir()] == ['clip.mp4']


def test_a_run_is_used_once(model, frames):
    run = model.video(frames)
    assert run.run().stats.num_finished == 14
    for again in (run.run, lambda: list(run)):
        with pytest.raises(VisionError, match='VIS-RUN-1720'):
            again()


def test_one_picture(model, frames, tmp_path):
    frame = model.image(frames[3])
    assert frame.names == ['blob'] and frame.latency_ms is None and set(frame.track_ids) == {-1}
    drawn = frame.draw()
    assert drawn.shape == frames[3].shape and not np.array_equal(drawn, frames[3])
    assert model.image(frames[3], score_thr=0.95).names == []
    with pytest.raises(VisionError, match='VIS-DATA-210'):
        model.image(__file__)
    with pytest.raises(VisionError, match='VIS-INPUT-812'):
        model.image(frames[3][..., 0])


def test_results_become_supervision_detections(model, frames):
    pytest.importorskip('supervision')
    frame = next(iter(model.video(frames)))
    found = frame.to_supervision()
    assert found.xyxy.tolist() == frame.boxes_xyxy.tolist() and found.tracker_id.tolist() == [1]
    assert found.data['class_name'].tolist() == ['blob']
    assert model.image(frames[0]).to_supervision().tracker_id is None
    assert len(model.image(np.zeros_like(frames[0])).to_supervision()) == 0


def test_results_become_a_table(model, frames):
    pytest.importorskip('pandas')
    table = model.video(frames).to_pandas()
    assert len(table) == 14 and table.label.unique().tolist() == ['blob']
    assert table.frame_id.tolist() == list(range(14)) and table.x1[3] == pytest.approx(10, abs=2)


def test_a_missing_package_names_its_extra(model, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(VisionError, match=r'VIS-ENV-1713[^$]*frugal-vision\[results\]'):
        model.image(frames[0]).to_pandas()


def test_verbs_of_other_tasks_say_where_they_are(model):
    with pytest.raises(VisionError, match=r"VIS-INPUT-1712[^$]*load\('mobilefacenet'\)\.embed"):
        model.embed('a.jpg')
    with pytest.raises(VisionError, match='VIS-INPUT-1714'):
        model('a.jpg')
    assert not hasattr(model, 'embed')
    with pytest.raises(AttributeError, match='no attribute'):
        model.vidoe  # noqa: B018


def test_a_name_a_config_and_a_file_are_one_model(repository):
    """The same detector and grid, without torch."""
    from vision.zoo import resolve
    weights = resolve('zoo:yolox-nano_coco')
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    scores = [vision.load(source, **options).image(picture, score_thr=0).scores for source, options
              in (('lattice_yolox-nano', {}), ('lattice_yolox-nano_flow_coco', {}), (weights, {}),
                  (repository / 'configs/lattice/lattice_yolox-nano_flow_coco.py',
                   dict(weights=str(weights))), (weights, dict(task='video')))]
    assert len(scores[0]) and all(np.array_equal(scores[0], other) for other in scores)


def test_a_real_clip(shared_data, tmp_path):
    """People of PETS, 30 frames of ILSVRC's clip: boxes on most of them, ids that last."""
    model = vision.load('lattice_yolox-nano')
    found = list(model.video(shared_data / 'mot15-mini/PETS09-S2L1-video/vtest.avi',
                             max_frames=40, save=tmp_path))
    assert all('person' in frame.names for frame in found) and len(found) == 40
    lasting = set(found[0].track_ids).intersection(*(frame.track_ids for frame in found[:8]))
    assert len(lasting) >= 5
