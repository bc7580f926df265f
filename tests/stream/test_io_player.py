"""From a source to finished files: sizes, order, interruption, damage, no display."""

import csv
import json
import os
import time

import av
import numpy as np
import pytest

from vision.stream.io import sinks
from vision.stream.io.opening import open_source
from vision.stream.io.player import Player, PlayOptions
from vision.stream.io.sinks import VideoSink, pick_encoder
from vision.stream.io.sources import SourceFrame


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


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
