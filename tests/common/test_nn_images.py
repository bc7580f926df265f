"""Images: read whole, or refused by their header before room is made for them."""

import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import peak_memory

from vision.common.core.errors import VisionError
from vision.common.core.image_bytes import MAX_PIXELS, image_size, what_is_wrong
from vision.common.nn.images import decode_image, read_image

PICTURE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8),
                           (0, 0), 3)
KINDS = {'jpg': [], 'progressive.jpg': [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], 'png': [], 'bmp': [],
         'webp': [cv2.IMWRITE_WEBP_QUALITY, 60], 'lossless.webp': [cv2.IMWRITE_WEBP_QUALITY, 101],
         'tiff': [], 'ppm': []}


def encoded(kind: str, picture=PICTURE) -> bytes:
    return cv2.imencode('.' + kind.split('.')[-1], picture, KINDS[kind])[1].tobytes()


@pytest.mark.parametrize('kind', KINDS)
def test_the_size_in_the_header_is_that_of_the_picture(kind):
    data = encoded(kind)
    assert image_size(data) == (53, 37) and what_is_wrong(data) == ''
    assert decode_image(data, 'x').shape == (37, 53, 3)


def test_grey_pictures_and_a_thumbnail_do_not_mislead():
    assert image_size(cv2.imencode('.pgm', PICTURE[..., 0])[1].tobytes()) == (53, 37)
    small, data = encoded('jpg', PICTURE[:8, :8]), encoded('jpg')
    with_thumbnail = data[:2] + b'\xff\xe1' + struct.pack('>H', len(small) + 2) + small + data[2:]
    assert image_size(with_thumbnail) == (53, 37)


def png(width: int, height: int) -> bytes:
    """A PNG of one colour, whose rows are nearly nothing when packed."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack(
            '>I', zlib.crc32(name + data))

    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0,
                                                             0)) \
        + chunk(b'IDAT', zlib.compress(bytes(min(width, 16384) // 8 * 8200), 9)) \
        + chunk(b'IEND', b'')


def patched(kind: str, old: bytes, new: bytes) -> bytes:
    data = encoded(kind)
    assert data.count(old) >= 1
    return data.replace(old, new, 1)


BOMBS = {
    'png 2^30': png(2**15, 2**15), 'png 2^62': png(2**31 - 1, 2**31 - 1), 'png empty': png(0, 5),
    'jpg 65500': patched('jpg', struct.pack('>HH', 37, 53), b'\xff\xdc\xff\xdc'),
    'jpg second frame': patched('jpg', b'\xff\xda', b'\xff\xc1\x00\x0b\x08\xff\xdc\xff\xdc\x01\x01'
                                b'\x11\x00\xff\xda'),
    'bmp': patched('bmp', struct.pack('<ii', 53, 37), struct.pack('<ii', 2**20, -2**20)),
    'tiff': patched('tiff', struct.pack('<HHII', 256, 3, 1, 53), struct.pack('<HHII', 256, 4, 1,
                                                                           2**31 - 1)),
    'webp': patched('lossless.webp', b'\x34\x00\x09', b'\xff\xff\xff')
    if b'\x34\x00\x09' in encoded('lossless.webp') else png(2**16, 2**16),
    'ppm': b'P6 999999999 999999999 255\n' + bytes(100),
    'pam': b'P7\nWIDTH 99999999\nHEIGHT 99999999\nDEPTH 3\nMAXVAL 255\nENDHDR\n' + bytes(100),
    'ppm digits': b'P6 ' + b'9' * 5000 + b' 1 255\n',
    'other format': b'#?RADIANCE\n\n-Y 100000 +X 100000\n', 'text': b'hello', 'empty': b''}


@pytest.mark.fault('R17')
@pytest.mark.parametrize('name', BOMBS)
def test_headers_are_asked_before_room_is_made(name):
    before = peak_memory.reset()
    with pytest.raises(VisionError, match='VIS-DATA-210'):
        decode_image(BOMBS[name], 'x')
    assert peak_memory.peak() - before < 50_000  # kB


@pytest.mark.fault('R17')
def test_the_stock_decoder_makes_room_for_what_a_header_promises():
    """OpenCV's own limit is 2^30 pixels, 3 GB; here 16 kB take 400 MB."""
    small = png(16384, 8193)
    assert len(small) < 20_000 and 16384 * 8193 > MAX_PIXELS
    # Not by the peak of this process, which may have kept that much free from earlier tests.
    assert cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR).nbytes > 400e6
    with pytest.raises(VisionError, match='16384 x 8193 pixels'):
        decode_image(small, 'x')


@pytest.mark.fault('R17')
@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp', 'bmp'])
def test_cut_files_are_no_images(kind):
    data = encoded(kind)
    for part in range(1, 20):
        with pytest.raises(VisionError, match='VIS-DATA-210'):
            decode_image(data[:len(data) * part // 20], 'x')


@pytest.mark.fault('R18')
def test_a_file_that_is_not_there_or_has_no_name_is_named(tmp_path):
    for path in (tmp_path / 'x.jpg', tmp_path, 'a\0b'):
        with pytest.raises(VisionError, match='VIS-DATA-210'):
            read_image(path)
