"""A page that is served, and a browser that looks at it without a screen."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.stream.io.sinks import VideoSink
from vision.web.limits import Limits
from vision.web.models import Models

# A visitor's clip may be this long here, s, and an upload this large, MB.
MAX_SECONDS, MAX_MB = 4.0, 2.0


def write_clip(path: Path, num_frames: int = 24, fps: float = 12, size=(96, 128)) -> Path:
    """A yellow square of 24 px that goes to the right, 3 px a frame, on grey noise."""
    random = np.random.default_rng(0)
    video = VideoSink(path, fps=fps)
    for t in range(num_frames):
        image = random.integers(60, 90, (*size, 3), np.uint8)
        left = 10 + 3 * t % (size[1] - 40)
        image[40:64, left:left + 24] = (40, 220, 240)
        video.write(image, t / fps)
    video.close()
    return path


@pytest.fixture(scope='session')
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp('clips') / 'square.mp4')


@pytest.fixture(scope='session')
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('pictures') / 'square.png'
    image = np.full((80, 120, 3), 60, np.uint8)
    image[20:60, 30:70] = (40, 220, 240)
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture(scope='session')
def limits() -> Limits:
    return Limits(max_mb=MAX_MB, max_seconds=MAX_SECONDS, max_pixels=1 << 20, job_seconds=60)


@pytest.fixture(scope='session')
def address(limits):
    """Of a page with the package's own models."""
    pytest.importorskip('gradio', reason='the page needs the extra web')
    from vision.web.server import running
    with running(Models(), limits, port=free_port()) as address:
        yield address.rstrip('/')


def free_port() -> int:
    import socket
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
