"""Cut files, flipped bytes, a full disk, a camera that serves pictures: nothing hides."""

import io
import json
import os
import resource
import struct
import subprocess
import sys
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import av
import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.stream.io.live_reader import CaptureError, NetworkCapture
from vision.stream.io.opening import open_source
from vision.stream.io.player import Player, PlayOptions
from vision.stream.io.sinks import VideoSink

# Of each video it prints the frames, or the code of the error; a crash would be seen outside.
READ = """
import sys
from vision.common.core.errors import VisionError
from vision.stream.io.opening import open_source
for path in sys.argv[1:]:
    try:
        source = open_source(path)
        count = sum(1 for _ in source)
        print(count, source.problem.code if source.problem else 'whole')
    except VisionError as error:
        print(0, error.code)
"""


def read_in_child(paths, repository) -> list[tuple[int, str]]:
    result = subprocess.run([sys.executable, '-c', READ, *map(str, paths)], cwd=repository,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.split() for line in result.stdout.splitlines()]
    return [(int(count), code) for count, code in lines]


@pytest.fixture
def noisy_video(tmp_path, frame):
    """100 frames whose noise spreads the bytes evenly over the file."""
    rng = np.random.default_rng(0)
    sink = VideoSink(tmp_path / 'noisy.mp4', fps=25)
    for t in range(100):
        sink.write(frame(t) // 2 + rng.integers(0, 100, (64, 96, 3), np.uint8), t / 25)
    return sink.close()


@pytest.mark.fault('R22')
def test_a_cut_mp4_at_many_points(noisy_video, tmp_path, repository):
    content, paths = noisy_video.read_bytes(), []
    for part in range(1, 20):
        paths.append(tmp_path / f'cut{part}.mp4')
        paths[-1].write_bytes(content[:len(content) * part // 20])
    found = read_in_child([*paths, noisy_video], repository)
    assert found[-1] == (100, 'whole')
    assert {code for _, code in found[:-1]} <= {'VIS-VIDEO-503', 'VIS-VIDEO-504'}
    counts = [count for count, _ in found]
    assert counts == sorted(counts) and 35 < counts[9] < 65  # half the bytes, about half of it


@pytest.mark.fault('R22')
def test_flipped_bytes_never_crash_and_rarely_hide(noisy_video, tmp_path, repository):
    content, rng, paths = noisy_video.read_bytes(), np.random.default_rng(1), []
    for number in range(40):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 30):
            damaged[place] ^= int(rng.integers(1, 256))
        paths.append(tmp_path / f'flipped{number}.mp4')
        paths[-1].write_bytes(damaged)
    codes = [code for _, code in read_in_child(paths, repository)]
    assert len(codes) == 40 and set(codes) <= {'whole', 'VIS-VIDEO-503', 'VIS-VIDEO-504'}
    assert codes.count('whole') < 10  # a flip inside a picture may still decode


@pytest.mark.fault('R22')
def test_a_cut_mkv_is_noticed_by_its_duration(tmp_path, frame):
    path = tmp_path / 'a.mkv'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264' if 'libx264' in av.codecs_available else 'mpeg4',
                                      rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        for t in range(100):
            image = av.VideoFrame.from_ndarray(frame(t), format='bgr24')
            container.mux(stream.encode(image.reformat(format='yuv420p')))
        container.mux(stream.encode(None))
    whole = open_source(str(path))
    assert sum(1 for _ in whole) == 100 and whole.problem is None
    os.truncate(path, path.stat().st_size // 3)
    cut = open_source(str(path))
    count = sum(1 for _ in cut)
    assert count < 60 and f'{count} of 100 frames' in cut.problem.what


def test_packets_that_are_not_to_be_shown_are_no_damage(noisy_video, tmp_path):
    """A clip trimmed without encoding again begins inside a group of pictures."""
    path = tmp_path / 'trimmed.mp4'
    with av.open(str(noisy_video)) as source, av.open(str(path), 'w') as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (stamp - round(Fraction(1, 5) / packet.time_base)
                                          for stamp in (packet.pts, packet.dts))
                packet.stream = stream
                target.mux(packet)
    trimmed = open_source(str(path))
    count = sum(1 for _ in trimmed)
    assert trimmed.num_frames == 100 and count < 100 and trimmed.problem is None


# Place of the nine numbers of the matrix behind the name of an mp4's track header, version 0.
MATRIX_OFFSET = 44


@pytest.mark.parametrize(('turn', 'matrix', 'corner'), [
    ('none', (1, 0, 0, 1), (0, 0)), ('clockwise', (0, 1, -1, 0), (0, -1)),
    ('counter-clockwise', (0, -1, 1, 0), (-1, 0)), ('upside down', (-1, 0, 0, -1), (-1, -1))])
def test_a_phone_video_stands_upright(tmp_path, turn, matrix, corner):
    """The stored frame has its mark in the upper left corner."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:16, :16] = 255
    sink = VideoSink(tmp_path / 'phone.mp4', fps=25)
    for t in range(3):
        sink.write(image, t / 25)
    content = bytearray(sink.close().read_bytes())
    place = content.index(b'tkhd') + MATRIX_OFFSET
    a, b, c, d = (number << 16 for number in matrix)
    content[place:place + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / 'phone.mp4').write_bytes(content)
    shown = next(iter(open_source(str(tmp_path / 'phone.mp4')))).image_bgr
    assert shown.shape == ((96, 64, 3) if 'clockwise' in turn else (64, 96, 3))
    corners = {(y, x): shown[y, x].mean() > 128 for y in (0, -1) for x in (0, -1)}
    assert [place for place, is_white in corners.items() if is_white] == [corner]


def test_a_full_disk_is_one_error_and_keeps_the_lines_that_fitted(tmp_path, engine, frame):
    frames = tmp_path / 'frames'
    frames.mkdir()
    for t in range(100):
        cv2.imwrite(str(frames / f'{t}.png'), frame(t))
    options = PlayOptions(tmp_path / 'out' / 'x', with_video=False)
    player = Player(open_source(str(frames)), engine, ('blob',), options)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # SIGXFSZ is ignored by Python
    try:
        with pytest.raises(VisionError, match='VIS-ENV-508') as error:
            player.play()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.why == 'the disk is full' and error.value.exit_code == 3
    lines = (tmp_path / 'out' / 'x.jsonl').read_text().splitlines()
    assert [json.loads(line)['frame_id'] for line in lines[:-1]] == list(range(len(lines) - 1))
    assert len(lines) > 20
    assert not [name for name in os.listdir(tmp_path / 'out') if name.startswith('.')]


def test_an_mp4_on_a_full_disk_is_the_same_error(tmp_path, engine, noisy_video):
    player = Player(open_source(str(noisy_video)), engine, ('blob',),
                    PlayOptions(tmp_path / 'out' / 'x'))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(VisionError, match='VIS-ENV-508.*x.mp4'):
            player.play()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    rows = (tmp_path / 'out' / 'x.jsonl').read_text().splitlines()
    assert rows and all(json.loads(row) for row in rows)
    assert sorted(os.listdir(tmp_path / 'out')) == ['x.csv', 'x.jsonl']


@pytest.mark.fault('R27')
@pytest.mark.parametrize('display', [':987', None])
def test_a_display_that_does_not_answer_is_said(tmp_path, engine, noisy_video, monkeypatch,
                                                display):
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    if display:
        monkeypatch.setenv('DISPLAY', display)
    else:
        monkeypatch.delenv('DISPLAY', raising=False)
    said = []
    player = Player(open_source(str(noisy_video)), engine, ('blob',),
                    PlayOptions(tmp_path / 'x', show=True, max_frames=5, with_video=False),
                    warn=said.append)
    assert player.play().stats.num_finished == 5
    assert len(said) == 1 and (display or 'not set') in said[0]


def test_a_server_of_pictures_is_a_stream(frame):
    """Motion JPEG over HTTP, what cheap cameras speak."""

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
            self.end_headers()
            for t in range(30):
                picture = cv2.imencode('.jpg', frame(t))[1].tobytes()
                self.wfile.write(b'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: '
                                 + str(len(picture)).encode() + b'\r\n\r\n' + picture + b'\r\n')

        def log_message(self, *_):
            """Quiet."""

    server = HTTPServer(('127.0.0.1', 0), Camera)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        capture = NetworkCapture(f'http://127.0.0.1:{server.server_port}/cam')
        images = [capture.read() for _ in range(25)]
        with pytest.raises(CaptureError):
            for _ in range(30):
                capture.read()
        capture.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert {image.shape for image in images} == {(64, 96, 3)}
    assert np.abs(images[9].astype(int) - frame(9)).mean() < 8


@pytest.mark.usefixtures('no_file_is_left')
def test_sound_without_pictures_is_no_stream(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mpegts') as container:
        stream = container.add_stream('mp2', rate=44_100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), layout='stereo')
        sound.sample_rate = 44_100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    path = tmp_path / 'sound.ts'
    path.write_bytes(buffer.getvalue())
    server = HTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(CaptureError, match='holds no video'):
            NetworkCapture(f'http://127.0.0.1:{server.server_port}/sound.ts')
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(VisionError, match='VIS-VIDEO-503'):
        open_source(str(path))
