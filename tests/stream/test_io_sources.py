"""Files never drop, gaps are named, damage is reported."""

import os
import shutil

import av
import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.stream.io.opening import open_source, output_stem
from vision.stream.io.sources import FrameFolder, missing_numbers


@pytest.fixture
def folder(tmp_path, frame):
    for t in range(12):
        cv2.imwrite(str(tmp_path / f'frame{t}.png'), frame(t))
    return tmp_path


def cut_avi(path, frame, num_frames=40, keep=0.5):
    """An MJPEG AVI of which the first part is kept: its header still promises all frames."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mjpeg', rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuvj420p'
        for t in range(num_frames):
            image = av.VideoFrame.from_ndarray(frame(t), format='bgr24')
            container.mux(stream.encode(image.reformat(format='yuvj420p')))
        container.mux(stream.encode(None))
    os.truncate(path, int(path.stat().st_size * keep))
    return path


def test_a_file_gives_every_frame_twice(tmp_path, write_video):
    source = open_source(str(write_video(tmp_path / 'a.mp4', 20)))
    for _ in range(2):
        stamps = [frame.timestamp_s for frame in source]
        np.testing.assert_allclose(stamps, np.arange(20) / 25, atol=1e-4)
    assert source.problem is None and source.num_frames == 20 and not source.is_live


@pytest.mark.fault('R22')
def test_a_cut_file_yields_what_decodes_and_says_how_much(tmp_path, frame):
    source = open_source(str(cut_avi(tmp_path / 'cut.avi', frame)))
    count = sum(1 for _ in source)
    assert 10 < count < 30
    assert source.problem.exit_code == 4
    assert f'{count} of 40 frames' in source.problem.what


@pytest.mark.parametrize('content', [b'', b'not a video' * 100])
def test_what_is_no_video_is_one_clear_error(tmp_path, content):
    path = tmp_path / 'x.mp4'
    path.write_bytes(content)
    with pytest.raises(VisionError, match='VIS-VIDEO-503'):
        open_source(str(path))


def test_a_missing_video_is_refused(tmp_path):
    with pytest.raises(VisionError, match='VIS-VIDEO-502'):
        open_source(str(tmp_path / 'none.mp4'))


def test_a_folder_is_read_in_natural_order(folder, frame):
    images = [item.image_bgr for item in open_source(str(folder))]
    assert len(images) == 12
    for t, image in enumerate(images):
        np.testing.assert_array_equal(image, frame(t))


@pytest.mark.fault('R18')
def test_a_gap_names_the_missing_numbers(folder):
    (folder / 'frame3.png').unlink()
    (folder / 'frame7.png').unlink()
    with pytest.raises(VisionError, match=r'VIS-DATA-506: 2 frames are missing: 3, 7'):
        open_source(str(folder))
    source = open_source(str(folder), keep_going=True)
    assert len(list(source)) == 10 and source.problem.code == 'VIS-DATA-506'


@pytest.mark.fault('R17')
def test_a_frame_that_is_no_image_ends_the_folder(folder):
    (folder / 'frame5.png').write_bytes(b'')
    source = open_source(str(folder))
    assert len(list(source)) == 5 and source.problem.code == 'VIS-DATA-507'
    assert len(list(open_source(str(folder), keep_going=True))) == 11


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(VisionError, match='VIS-DATA-505'):
        open_source(str(tmp_path))


@pytest.mark.fault('R23')
def test_frames_of_another_size_are_rescaled_to_the_first(folder, frame):
    cv2.imwrite(str(folder / 'frame4.png'), frame(4, 128, 192))
    assert {item.image_bgr.shape for item in open_source(str(folder))} == {(64, 96, 3)}


def test_no_camera_lists_what_was_tried():
    with pytest.raises(VisionError, match='VIS-VIDEO-510') as error:
        open_source('99')
    assert '/dev/video99' in error.value.where and 'devices found' in error.value.where


def test_missing_numbers_and_stems(tmp_path):
    assert missing_numbers(['a001', 'a002', 'a005']) == (2, [3, 4])
    assert missing_numbers(['left', 'right']) == (0, [])
    (tmp_path / 'clip.v2').mkdir()
    assert output_stem(str(tmp_path / 'clip.v2')) == 'clip.v2'
    assert output_stem('0') == 'camera0'
    assert output_stem('rtsp://host/live.sdp') == 'live'
    assert output_stem('http://host') == 'stream'


def test_a_real_clip_is_whole(shared_data, tmp_path):
    source = open_source(str(shared_data / 'mot15-mini/PETS09-S2L1-video/vtest.avi'))
    assert sum(1 for _ in source) == source.num_frames == 795 and source.problem is None


def test_a_real_clip_cut_short(shared_data, tmp_path):
    path = tmp_path / 'cut.avi'
    shutil.copyfile(shared_data / 'mot15-mini/PETS09-S2L1-video/vtest.avi', path)
    os.truncate(path, path.stat().st_size // 10)
    source = open_source(str(path))
    count = sum(1 for _ in source)
    assert 0 < count < 200 and f'{count} of 795' in source.problem.what


@pytest.mark.fault('R18')
def test_frames_that_are_numbered_by_nanoseconds_have_no_list_of_every_gap(tmp_path):
    """A gap of 10^18 numbers is counted, and its first ones are named."""
    for number in (1, 3, 10**18):
        (tmp_path / f'{number}.png').write_bytes(b'x')
    with pytest.raises(VisionError) as caught:
        FrameFolder(tmp_path)
    assert caught.value.what == f'{10**18 - 3} frames are missing: 2, 4, 5, 6, 7, 8, 9, 10, ' \
        '11, 12, ...'


@pytest.mark.fault('R17')
def test_a_frame_that_promises_a_giant_picture_is_not_decoded(tmp_path):
    picture = bytearray(cv2.imencode('.png', np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    picture[16:24] = (60_000).to_bytes(4, 'big') * 2
    (tmp_path / '1.png').write_bytes(picture)
    source = FrameFolder(tmp_path)
    assert not list(source) and source.problem.code == 'VIS-DATA-507'
    assert '60000 x 60000 pixels' in source.problem.why
