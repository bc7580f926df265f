"""A page that is served, and a browser that looks at it without a screen."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

import vision
from vision.classify.api import Classifier
from vision.lattice.core.structures import FrameBoxes
from vision.stream.api import FlowLattice, VideoModel
from vision.stream.io.sinks import VideoSink
from vision.web.limits import Limits
from vision.web.models import Models

YELLOW = (40, 220, 240)  # BGR


class YellowDetector:
    """Finds yellow squares: exact, and without a network."""

    classes = ('square', 'other')

    def detect(self, image_bgr):
        mask = np.abs(image_bgr.astype(int) - YELLOW).max(axis=2) < 60
        blobs, _ = ndimage.label(mask)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(blobs)
                 if (y.stop - y.start) * (x.stop - x.start) > 100]
        return FrameBoxes(np.array(boxes).reshape(-1, 4), np.full(len(boxes), 0.9),
                          np.zeros(len(boxes)))


@pytest.fixture(scope='session')
def yellow_model() -> Callable[..., VideoModel]:
    """What stands in for ``vision.load``: a video model that finds yellow squares."""
    return lambda name='yellow': VideoModel(FlowLattice(YellowDetector()))


class ColourNetwork:
    """What a picture has most of: probabilities from the mean of its channels."""

    classes = ('blue', 'green', 'red')

    def __call__(self, images):
        means = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images])
        return means / means.sum(axis=1, keepdims=True)


@pytest.fixture(scope='session')
def write_clip() -> Callable[..., Path]:
    """write_clip(path, num_frames=24): a yellow square of 24 px that goes to the right, 3 px a
    frame, on grey noise of 128 x 96 px, 12 frames a second."""
    def write(path: Path, num_frames: int = 24) -> Path:
        random, video = np.random.default_rng(0), VideoSink(path, fps=12)
        for t in range(num_frames):
            image = random.integers(60, 90, (96, 128, 3), np.uint8)
            left = 10 + 3 * t % 88
            image[40:64, left:left + 24] = YELLOW
            video.write(image, t / 12)
        video.close()
        return path
    return write


@pytest.fixture(scope='session')
def clip(tmp_path_factory, write_clip) -> Path:
    return write_clip(tmp_path_factory.mktemp('clips') / 'square.mp4')


@pytest.fixture(scope='session')
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('pictures') / 'square.png'
    image = np.full((80, 120, 3), 60, np.uint8)
    image[20:60, 30:70] = YELLOW
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture(scope='session')
def limits() -> Limits:
    return Limits(max_mb=2, max_seconds=4, max_pixels=1 << 20, job_seconds=60)


@pytest.fixture(scope='session')
def face_weights() -> Iterator[None]:
    """The zoo's face models from the folder of real weights, where there is one."""
    folder = Path(os.environ.get('VISION_SHARED_DATA', 'no folder')) / 'weights'
    with pytest.MonkeyPatch.context() as patch:
        if folder.is_dir():
            patch.setenv('VISION_ZOO_MIRROR', str(folder))
        yield


@pytest.fixture(scope='session')
def address(limits, yellow_model, face_weights) -> Iterator[str]:
    """Of a page whose video model finds yellow squares; the others are those of the zoo."""
    pytest.importorskip('gradio', reason='the page needs the extra web')
    pytest.importorskip('supervision', reason='the page needs the extra web')
    from vision.web.server import running
    own = dict(yellow=yellow_model, colours=lambda: Classifier(ColourNetwork()))
    models = Models([*own], load=lambda name: own[name]() if name in own else vision.load(name))
    with running(models, limits, port=free_port()) as address:
        yield address.rstrip('/')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='session')
def chromium(tmp_path_factory):
    """Headless, with a camera that shows a test picture."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='browser tests need selenium')
    program, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (program and driver):
        pytest.skip('browser tests need chromium and chromedriver (Debian: chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = program
    downloads = tmp_path_factory.mktemp('downloads')
    for word in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
                 '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream',
                 '--disable-background-networking', '--disable-component-update',
                 '--window-size=1280,1400'):
        options.add_argument(word)
    options.add_experimental_option('prefs', {'download.default_directory': str(downloads)})
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.downloads = downloads
    yield browser
    browser.quit()
