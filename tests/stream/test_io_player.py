"""From a source to finished files: sizes, order, interruption, damage, no display."""

import csv
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from vision.lattice.runtime.methods import build_engine
from vision.stream.core.session import StreamSession
from vision.stream.io import sinks
from vision.stream.io.opening import open_source
from vision.stream.io.player import Player, PlayOptions
from vision.stream.io.sinks import VideoSink, pick_encoder
from vision.stream.io.sources import SourceFrame


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


pytestmark = pytest.mark.usefixtures('no_thread_is_left')


@pytest.fixture
def play(tmp_path, write_video, engine):
    def run(num_frames=20, on_frame=None, method='play', **options):
        source = open_source(str(write_video(tmp_path / 'in.mp4', num_frames, 65, 97)))
        player = Player(source, engine, ('blob',), PlayOptions(tmp_path / 'out' / 'x', **options),
                        on_frame=lambda count: on_frame and on_frame(player, count))
        return getattr(player, method)()
    return run


def test_every_frame_is_in_all_outputs(play):
    played = play()
    assert [path.name for path in played.paths] == ['x.mp4', 'x.jsonl', 'x.csv']
    with av.open(str(played.paths[0])) as container:
        stream = container.streams.video[0]
        # The input was padded to even sizes by the same sink.
        assert (stream.codec_context.name, stream.format.name) == ('h264', 'yuv420p')
        assert (stream.width, stream.height) == (98, 66)
        stamps = [frame.time for frame in container.decode(stream)]
    np.testing.assert_allclose(stamps, np.arange(20) / 25, atol=1e-4)
    rows = rows_of(played.paths[1])
    assert [row['frame_id'] for row in rows] == list(range(20))
    assert [row['frame_id'] for row in rows if row['is_keyframe']] == [0, 4, 8, 12, 16, 19]
    assert {tuple(row['track_ids']) for row in rows} == {(1,)}
    with played.paths[2].open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 20 and table[5]['label'] == 'blob'
    assert [float(table[5][key]) for key in ('x1', 'y1', 'x2', 'y2')] == rows[5]['boxes'][0]


def test_the_index_stands_in_front_of_the_frames(play):
    content = play().paths[0].read_bytes()
    assert content.index(b'moov') < content.index(b'mdat')


def test_stopping_early_finishes_the_files(play):
    played = play(on_frame=lambda player, count: count == 7 and player.stop())
    assert [row['frame_id'] for row in rows_of(played.paths[1])] == list(range(7))
    with av.open(str(played.paths[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 7
    assert not [name for name in os.listdir(played.paths[0].parent) if name.startswith('.')]


def test_an_error_in_the_middle_keeps_what_was_written(play, tmp_path):
    def fail(_, count):
        if count == 10:
            raise RuntimeError('out of memory')
    with pytest.raises(RuntimeError, match='out of memory'):
        play(on_frame=fail)
    assert len(rows_of(tmp_path / 'out' / 'x.jsonl')) == 9
    with av.open(str(tmp_path / 'out' / 'x.mp4')) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_offline_without_rescoring_has_the_boxes_of_buffered(play):
    buffered = rows_of(play().paths[1])
    offline = rows_of(play(method='play_offline').paths[1])
    for row in buffered + offline:
        del row['latency_ms']
        row['track_ids'] = len(row['track_ids'])  # the engine's ids go on in a second video
    assert buffered == offline


def test_the_threshold_and_the_frame_limit(play):
    played = play(score_threshold=0.95, with_video=False, max_frames=6)
    assert [path.suffix for path in played.paths] == ['.jsonl', '.csv']
    assert [row['boxes'] for row in rows_of(played.paths[0])] == [[]] * 6


def test_no_display_is_said_and_the_files_are_written(play, monkeypatch, capsys):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    assert len(play(show=True).paths) == 3
    assert 'there is no display' in capsys.readouterr().out


def test_encoders_fall_back_in_order(monkeypatch):
    monkeypatch.setattr(sinks.av, 'codecs_available', {'mpeg4', 'gif'})
    assert pick_encoder() == 'mpeg4'
    monkeypatch.setattr(sinks.av, 'codecs_available', {'gif'})
    with pytest.raises(sinks.VisionError, match='VIS-ENV-509'):
        pick_encoder()


@pytest.mark.parametrize('height', [64, 66, 65, 67])
def test_the_picture_has_its_height_and_colours(tmp_path, height):
    """PyAV reads planes of some heights wrongly where they are not copied."""
    image = np.full((height, 96, 3), 30, np.uint8)
    image[height // 2:, 32:] = (40, 220, 240)
    sink = VideoSink(tmp_path / 'x.mp4', fps=25)
    sink.write(image, 0.0)
    with av.open(str(sink.close())) as container:
        picture = next(container.decode(video=0)).to_ndarray(format='bgr24').astype(int)
    assert picture.shape == (height + height % 2, 96, 3)
    for rows, columns in ((np.s_[:height // 2 - 4], np.s_[:]),
                          (np.s_[height // 2 + 4:height], np.s_[36:])):
        difference = np.abs(picture[rows, columns] - image[rows, columns])
        assert difference.max() < 20


def test_a_video_without_frames_leaves_no_file(tmp_path):
    assert VideoSink(tmp_path / 'x.mp4', fps=25).close() is None
    assert os.listdir(tmp_path) == []


def test_a_loss_is_on_the_frames_after_it_and_in_the_json_lines(tmp_path, frame, engine):
    class Camera:
        """Five frames, a wait that a reader would report, five more."""

        is_live, num_frames, fps, problem = True, 0, 25.0, None
        num_dropped, num_reconnects = 0, 1

        def stop(self):
            pass

        def __iter__(self):
            for t in range(10):
                status = 'live' if t < 5 else 'reconnected after 1.2 s (cable pulled)'
                yield SourceFrame(frame(t, 240, 320), t / 25 + 1.2 * (t > 4),
                                  time.monotonic(), status)

    played = Player(Camera(), engine, ('blob',), PlayOptions(tmp_path / 'x')).play()
    rows = rows_of(played.paths[1])
    assert [row['stream_status'] for row in rows[4:6]] == \
        ['live', 'reconnected after 1.2 s (cable pulled)']
    with av.open(str(played.paths[0])) as container:
        lines = [picture.to_ndarray(format='bgr24')[22:38, 150:260].astype(int)
                 for picture in container.decode(video=0)]
    is_marked = [(line[..., 2] - line[..., 1] > 80).sum() > 20 for line in lines]  # red letters
    assert is_marked == [False] * 5 + [True] * 5


def test_files_have_no_stream_status(play):
    assert all('stream_status' not in row for row in rows_of(play().paths[1]))


SPLITTING = dict(type='BudgetKeyframes', gap_frames=6, target_keyframe_rate=0.3)


@pytest.fixture
def play_with(tmp_path, write_video, detector):
    """Play a video with an engine of these options; gives the rows of the table."""
    video = write_video(tmp_path / 'in.mp4', 20, 120, 160)

    def run(name='y', with_video=True, wrap=lambda detector: detector, **options):
        engine = build_engine(wrap(detector), **dict(keyframes=4) | options)
        player = Player(open_source(str(video)), engine, ('blob',),
                        PlayOptions(tmp_path / 'out' / name, with_video=with_video))
        rows = rows_of(player.play().paths[-2])
        return [{key: value for key, value in row.items() if key != 'latency_ms'} for row in rows]
    return run


@pytest.mark.parametrize('keyframes', [4, SPLITTING])
@pytest.mark.parametrize('method', ['flow', 'linear', 'detect'])
def test_threads_change_neither_results_nor_their_order(play_with, tmp_path, detector, method,
                                                        keyframes):
    options = dict(method=method, keyframes=keyframes)
    session = StreamSession(build_engine(detector, **options))
    serial = [result for frame in open_source(str(tmp_path / 'in.mp4'))
              for result in session.push(frame.image_bgr, frame.timestamp_s)] + session.flush()
    with ThreadPoolExecutor(1) as executor:
        threaded = play_with(executor=executor, **options)
    assert threaded == play_with(**options)
    assert [row['frame_id'] for row in threaded] == list(range(20))
    for row, result in zip(threaded, serial, strict=True):
        np.testing.assert_allclose(row['boxes'], result.boxes.boxes_xyxy, atol=0.006)
        assert row['is_keyframe'] == result.is_keyframe


@pytest.mark.parametrize('mode', ['buffered', 'causal', 'causal+revise'])
def test_what_is_drawn_is_never_computed_on(play_with, mode):
    """Boxes are drawn into frames that nobody needs any more, else flow would follow them."""
    assert play_with(mode=mode) == play_with(mode=mode, with_video=False)


class Watched:
    """A detector that notices two threads at once, and fails at one of its calls."""

    def __init__(self, detector, fail_at=None):
        self.classes, self._detector, self._fail_at = detector.classes, detector, fail_at
        self._lock, self.num_calls = threading.Lock(), 0

    def detect(self, image_bgr):
        assert self._lock.acquire(blocking=False), 'two threads in one detector'
        try:
            self.num_calls += 1
            time.sleep(0.005)
            if self.num_calls == self._fail_at:
                raise RuntimeError('the detector broke')
            return self._detector.detect(image_bgr)
        finally:
            self._lock.release()


def test_one_thread_at_a_time_is_in_the_detector(play_with):
    with ThreadPoolExecutor(1) as executor:
        rows = play_with(wrap=Watched, keyframes=SPLITTING, executor=executor)
    assert sum(row['is_keyframe'] for row in rows) > 20 / 6 + 2  # it was split


@pytest.mark.parametrize('has_executor', [False, True])
def test_an_error_of_the_detector_ends_all_and_keeps_what_was_done(play_with, tmp_path,
                                                                   has_executor):
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match='detector broke'):
        play_with(wrap=lambda detector: Watched(detector, fail_at=4),
                  executor=executor if has_executor else None)
    rows = rows_of(tmp_path / 'out' / 'y.jsonl')
    assert [row['frame_id'] for row in rows] == list(range(9))  # up to the third keyframe
    with av.open(str(tmp_path / 'out' / 'y.mp4')) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_an_error_while_writing_ends_all_and_is_the_one_that_is_raised(play, tmp_path,
                                                                       monkeypatch):
    write, error = sinks.VideoSink.write, sinks.VisionError('VIS-ENV-508', 'no room')
    counts = []

    def failing(self, image_bgr, timestamp_s):
        if str(self.path).endswith('x.mp4'):
            counts.append(1)
            if len(counts) == 6:
                raise error
        write(self, image_bgr, timestamp_s)

    monkeypatch.setattr(sinks.VideoSink, 'write', failing)
    with pytest.raises(sinks.VisionError) as raised:
        play(num_frames=200)
    assert raised.value is error and len(counts) == 6
    ids = [row['frame_id'] for row in rows_of(tmp_path / 'out' / 'x.jsonl')]
    assert 6 <= len(ids) < 40 and ids == list(range(len(ids)))  # the tables run ahead a little
    with av.open(str(tmp_path / 'out' / 'x.mp4')) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert not [name for name in os.listdir(tmp_path / 'out') if name.startswith('.')]


def test_an_error_while_reading_ends_all_after_the_frames_before_it(tmp_path, frame, engine):
    class Folder:
        is_live, num_frames, fps, problem, path = False, 20, 25.0, None, 'x'
        num_dropped = num_reconnects = 0

        def __iter__(self):
            for t in range(9):
                yield SourceFrame(frame(t), t / 25, time.monotonic())
            raise OSError('the share is gone')

    with pytest.raises(OSError, match='the share is gone'):
        Player(Folder(), engine, ('blob',), PlayOptions(tmp_path / 'x')).play()
    assert len(rows_of(tmp_path / 'x.jsonl')) == 9


def test_revision_writes_both_results_and_shows_each_frame_once(play_with, tmp_path):
    rows = play_with(mode='causal+revise')
    assert [row['frame_id'] for row in rows if row['status'] == 'final'] == list(range(20))
    assert [row['frame_id'] for row in rows if row['status'] == 'provisional'] \
        == [t for t in range(20) if t % 4]
    final = [{key: value for key, value in row.items() if key != 'status'}
             for row in rows if row['status'] == 'final']
    assert final == play_with()
    with (tmp_path / 'out' / 'y.csv').open() as file:
        assert 'status' not in next(csv.reader(file))
    play_with(mode='causal+revise', name='z')
    with (tmp_path / 'out' / 'z.csv').open() as file:
        assert {row['status'] for row in csv.DictReader(file)} == {'provisional', 'final'}
    with av.open(str(tmp_path / 'out' / 'z.mp4')) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20


def test_a_stop_while_the_writer_is_behind_writes_what_was_computed(play, tmp_path, monkeypatch):
    write = sinks.VideoSink.write

    def slow(self, image_bgr, timestamp_s):
        time.sleep(0.02)
        write(self, image_bgr, timestamp_s)

    monkeypatch.setattr(sinks.VideoSink, 'write', slow)
    played = play(num_frames=60, on_frame=lambda player, count: count == 31 and player.stop())
    assert [row['frame_id'] for row in rows_of(played.paths[1])] == list(range(31))


def test_what_was_read_ahead_of_a_file_has_not_waited(tmp_path, write_video, detector):
    class Slow:
        classes = detector.classes

        def detect(self, image_bgr):
            time.sleep(0.05)
            return detector.detect(image_bgr)

    video = write_video(tmp_path / 'in.mp4', 20)
    player = Player(open_source(str(video)), build_engine(Slow(), method='detect'), ('blob',),
                    PlayOptions(tmp_path / 'x'))
    stats = player.play().stats
    assert 50 <= stats.p50_ms < 150  # four frames wait: 250 ms if that counted
