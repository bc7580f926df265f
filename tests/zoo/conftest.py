"""A loopback server that can misbehave on demand."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from vision.zoo import Entry, Settings

PAYLOAD = np.random.default_rng(0).bytes(700_000)


class LoopbackServer:
    """Serves PAYLOAD at /weights.bin.

    ``cut_after``: bytes sent before the connection is dropped, one number per request, then whole
    answers. ``requests``: the Range header of each request, None when there was none.
    """

    def __init__(self) -> None:
        self.payload, self.cut_after, self.requests = PAYLOAD, [], []
        self.has_ranges, self.status, self.redirect_to = True, None, None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{self.http.server_port}/weights.bin'
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler) -> None:
        asked = handler.headers.get('Range')
        self.requests.append(asked)
        if self.redirect_to:
            handler.send_response(302)
            handler.send_header('Location', self.redirect_to)
            handler.end_headers()
            return
        if self.status:
            handler.send_error(self.status)
            return
        start = int(asked[len('bytes='):-1]) if asked and self.has_ranges else 0
        body = self.payload[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header('Content-Range',
                                f'bytes {start}-{len(self.payload) - 1}/{len(self.payload)}')
        handler.send_header('Content-Length', str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:self.cut_after.pop(0)] if self.cut_after else body)


@pytest.fixture
def server():
    server = LoopbackServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(tmp_path / 'cache', http_hosts=('127.0.0.1',), pause_s=0.0)


@pytest.fixture
def entry_of():
    """An entry for an address; the https-only rule of the index is bypassed for loopback."""
    def make(address: str, payload: bytes = PAYLOAD, **changes) -> Entry:
        entry = Entry(name='weights_test', addresses=('https://example.org/weights.bin',),
                      sha256=hashlib.sha256(payload).hexdigest(), size_bytes=len(payload),
                      licence='MIT', source='test', config='configs/x.py', **changes)
        object.__setattr__(entry, 'addresses', (address,))
        return entry
    return make
