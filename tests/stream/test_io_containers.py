"""Video files name no other files and addresses: playlists stay closed under any name."""

import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import av
import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.stream.io import containers
from vision.stream.io.live_reader import CaptureError, NetworkCapture
from vision.stream.io.opening import open_source
from vision.stream.io.sources import VideoFile


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path, sends /away on to ``target``; ``paths``: what was asked for."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.paths.append(self.path)
            path = tmp_path / self.path.strip('/')
            if self.path == '/away':
                self.send_response(302)
                self.send_header('Location', server.target)
                self.end_headers()
            elif path.is_file():
                self.send_response(200)
                self.send_header('Content-Length', str(path.stat().st_size))
                self.end_headers()
                self.wfile.write(path.read_bytes())
            else:
                self.send_error(404)

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.paths, server.target = [], ''
    server.address = f'http://127.0.0.1:{server.server_port}'
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def playlists(video, address) -> dict[str, str]:
    """Name -> content: each would show a neighbour, or ask a server."""
    hls = '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n'
    sdp = ('v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
           'm=video 5004 RTP/AVP 96\n')
    dash = ('<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation '
            'id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period>'
            '</MPD>')
    return {
        'concat.avi': f'ffconcat version 1.0\nfile {video.name}\n',
        'concat.mp4': f'ffconcat version 1.0\nfile {video}\n',
        'concat.mkv': f'ffconcat version 1.0\nfile {address}/x.mp4\n',
        'hls.m3u8': hls.format(video.name), 'hls.mp4': hls.format(f'{address}/x.mp4'),
        'hls_file.ts': hls.format(f'file://{video}'),
        'hls_crypto.m3u8': hls.format(f'crypto+file:{video}'),
        'hls_key.m3u8': hls.format(video.name).replace(
            '#EXTINF', f'#EXT-X-KEY:METHOD=AES-128,URI="{address}/key"\n#EXTINF'),
        'dash.mpd': dash.format(f'{address}/x.mp4'), 'stream.sdp': sdp, 'sdp.mp4': sdp,
        'ram.ram': f'{address}/x.mp4\n', 'asx.asf': f'[Reference]\nRef1={address}/x.mp4\n',
        'qt.mov': '<?xml version="1.0"?><?quicktime type="application/x-quicktime-media-link"?>'
                  f'<embed src="{address}/x.mp4"/>'}


@pytest.mark.fault('S37')
def test_no_playlist_is_followed_under_any_name(tmp_path, write_video, server):
    video = write_video(tmp_path / 'neighbour.mp4')
    for name, text in playlists(video, server.address).items():
        (tmp_path / name).write_text(text)
        with pytest.raises(VisionError, match='VIS-VIDEO-503'):
            VideoFile(tmp_path / name)
    assert not server.paths


@pytest.mark.fault('S37')
def test_stock_readers_show_the_neighbour(tmp_path, write_video):
    video = write_video(tmp_path / 'neighbour.mp4')
    (tmp_path / 'list.avi').write_text(f'ffconcat version 1.0\nfile {video.name}\n')
    with av.open(str(tmp_path / 'list.avi')) as container:
        assert container.format.name == 'concat' and next(container.decode(video=0)).width == 96
    assert cv2.VideoCapture(str(tmp_path / 'list.avi')).read()[0]


@pytest.mark.fault('S37')
@pytest.mark.parametrize('name', ['concat:a.mp4|b.mp4', 'file:a.mp4', 'subfile,,start,0,end,0,,:a',
                                  'data:video,x', 'pipe:0', '-', '@x'])
def test_a_name_is_a_name(tmp_path, write_video, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / 'a.mp4')
    with pytest.raises(VisionError, match='VIS-VIDEO-502'):
        open_source(name)
    if '/' not in name:
        shutil.copy(tmp_path / 'a.mp4', tmp_path / name)
        assert sum(1 for _ in open_source(name)) == 20


@pytest.mark.fault('S37')
def test_an_address_is_not_sent_on_to_files_or_playlists(tmp_path, write_video, server, mpegts):
    video = write_video(tmp_path / 'neighbour.mp4')
    for target in (f'file://{video}', f'file:{video}', str(video), f'concat:{video}',
                   f'crypto:{video}', f'subfile,,start,0,end,0,,:{video}', 'data:video/mp4,x'):
        server.target = target
        with pytest.raises(CaptureError):
            NetworkCapture(f'{server.address}/away', timeout_s=2)
    (tmp_path / 'x.m3u8').write_text(
        f'#EXTM3U\n#EXTINF:1,\n{server.address}/hit\n#EXT-X-ENDLIST\n')
    (tmp_path / 'y').write_text(f'ffconcat version 1.0\nfile {server.address}/hit\n')
    for name in ('x.m3u8', 'y'):
        with pytest.raises(CaptureError):
            NetworkCapture(f'{server.address}/{name}', timeout_s=2)
    assert '/hit' not in server.paths
    (tmp_path / 'ok.ts').write_bytes(mpegts(30))
    server.target = f'{server.address}/ok.ts'
    capture = NetworkCapture(f'{server.address}/away')
    assert capture.read().shape == (64, 96, 3)
    capture.close()


CHILD = """
import re, sys
from vision.common.core.errors import VisionError
from vision.stream.io.sources import VideoFile
try:
    print(sum(1 for _ in VideoFile(sys.argv[1])))
except VisionError as error:
    print(error.code)
print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) // 1024)
"""


@pytest.mark.fault('R23')
def test_a_stream_that_grows_to_a_giant_takes_no_memory(tmp_path, repository):
    """A picture of 60,000 x 60,000 in a file of motion JPEG, whose frames each say their size."""
    small = cv2.imencode('.jpg', np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    huge = small.replace(b'\x00\x30\x00\x40', b'\xea\x60\xea\x60')
    assert huge != small
    (tmp_path / 'x.mjpeg').write_bytes(small * 5 + huge + small * 5)
    done = subprocess.run([sys.executable, '-c', CHILD, str(tmp_path / 'x.mjpeg')],
                          capture_output=True, text=True, cwd=repository, timeout=100,
                          env=os.environ | dict(PYTHONPATH=str(repository)))
    count, megabytes = done.stdout.split()
    assert count in ('10', 'VIS-VIDEO-503') and int(megabytes) < 1000


def test_a_title_in_another_encoding_is_no_fault(tmp_path):
    path = tmp_path / 'a.mkv'
    with av.open(str(path), 'w') as container:
        container.metadata['title'] = 'TITLE'
        stream = container.add_stream('mpeg4', rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        container.mux(stream.encode(av.VideoFrame(64, 48, 'yuv420p')))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b'TITLE', b'T\xa3\xff\xc5E'))
    with containers.open_file(path) as container:
        assert containers.holds_video(container)
