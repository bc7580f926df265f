"""What a visitor may send, judged before it is decoded."""

import struct
import zipfile
import zlib

import av
import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.web import limits as limits_module
from vision.web.limits import Limits, check_clip, first_frame, read_picture

pytestmark = pytest.mark.fault('S38')


def png_header(width: int, height: int) -> bytes:
    """A whole PNG of a few bytes that promises so many pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack(
            '>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'')) + \
        chunk(b'IEND', b'')


def test_a_clip_within_the_limits_is_counted(clip, limits):
    found = check_clip(clip, limits)
    assert (found.num_frames, found.width, found.height) == (24, 128, 96)
    assert found.duration_s == pytest.approx(2.0, abs=0.01) and found.fps == pytest.approx(12)
    assert first_frame(clip).shape == (96, 128, 3)


def test_a_long_clip_is_refused(tmp_path, limits, write_clip):
    path = write_clip(tmp_path / 'long.mp4', num_frames=60)
    with pytest.raises(VisionError, match=f'longer than {limits.max_seconds:g} s') as caught:
        check_clip(path, limits)
    assert caught.value.code == 'VIS-INPUT-1773'
    with pytest.raises(VisionError, match='more than 20 frames'):
        check_clip(path, Limits(max_frames=20))


def test_a_header_that_lies_about_its_length_does_not_help(tmp_path, limits):
    """Matroska tells a duration; the packets count."""
    path = tmp_path / 'lies.webm'
    with av.open(str(path), 'w') as out:
        stream = out.add_stream('libvpx', rate=12)
        stream.width, stream.height = 64, 48
        for t in range(72):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), t, np.uint8), format='rgb24')
            frame.pts = t
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    place = data.find(b'\x44\x89\x88')  # Duration, 8 bytes
    assert place > 0
    data[place + 3:place + 11] = struct.pack('>d', 100.0)  # ms
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.duration < 1_000_000  # it lies
    with pytest.raises(VisionError, match='longer than'):
        check_clip(path, limits)


def test_a_large_picture_in_a_clip_is_refused(clip):
    with pytest.raises(VisionError, match='128 x 96 px') as caught:
        check_clip(clip, Limits(max_pixels=1000))
    assert caught.value.code == 'VIS-INPUT-1772'


@pytest.mark.parametrize('name', ['text', 'zip', 'byte', 'empty', 'playlist', 'sound'])
def test_what_is_no_video_is_told_in_one_sentence(name, tmp_path, limits):
    path = tmp_path / f'{name}.mp4'
    if name == 'zip':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('a.txt', 'a' * 1000)
    elif name == 'sound':
        with av.open(str(path), 'w', format='mp4') as out:
            stream = out.add_stream('aac', rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), 'fltp', 'stereo')
            frame.sample_rate = 44100
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    else:
        path.write_bytes(dict(text=b'this is a text\n' * 30, byte=b'\0', empty=b'',
                              playlist=b'ffconcat version 1.0\nfile /etc/passwd\n')[name])
    with pytest.raises(VisionError) as caught:
        check_clip(path, limits)
    assert caught.value.code == 'VIS-INPUT-1771' and path.name in caught.value.what
    assert str(tmp_path) not in caught.value.render()  # the server's folders are nobody's business


def test_half_a_clip_counts_what_is_there(tmp_path, clip, limits):
    half = tmp_path / 'half.mp4'
    half.write_bytes(clip.read_bytes()[:-500])
    try:
        assert 0 < check_clip(half, limits).num_frames <= 24
    except VisionError as error:
        assert error.code == 'VIS-INPUT-1771'


def test_a_picture_is_read(picture, limits):
    assert read_picture(picture, limits).shape == (80, 120, 3)


@pytest.mark.parametrize('side', [60_000, 4_000])
def test_a_picture_bomb_is_refused_before_it_is_decoded(side, tmp_path, limits, monkeypatch):
    path = tmp_path / 'bomb.png'
    path.write_bytes(png_header(side, side))
    monkeypatch.setattr(limits_module, 'decode_image', None)  # decoding would be a TypeError
    with pytest.raises(VisionError, match=f'{side} x {side} p'):
        read_picture(path, limits)


@pytest.mark.parametrize('data', [b'', b'\0', b'text ' * 40, b'\xff\xd8\xff\xe0' + b'\0' * 40])
def test_what_is_no_picture_is_told(data, tmp_path, limits):
    path = tmp_path / 'x.jpg'
    path.write_bytes(data)
    with pytest.raises(VisionError, match='x.jpg') as caught:
        read_picture(path, limits)
    assert caught.value.code == 'VIS-DATA-210'
    assert str(tmp_path) not in caught.value.render()


def test_a_cut_picture_is_told(tmp_path, limits):
    path = tmp_path / 'cut.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    ok, data = cv2.imencode('.jpg', noise)
    assert ok
    path.write_bytes(data.tobytes()[:-300])
    with pytest.raises(VisionError, match='cut.jpg'):
        read_picture(path, limits)


@pytest.mark.parametrize('name', ['max_mb', 'max_seconds', 'num_jobs'])
@pytest.mark.parametrize('value', [0, -1, float('nan')])
def test_a_limit_is_above_zero(name, value):
    with pytest.raises(VisionError, match=name):
        Limits(**{name: value})
