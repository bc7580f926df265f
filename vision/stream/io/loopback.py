"""A network source on this machine that loses its connections: tests and measurements read it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

POLL_S = 0.1  # how soon a server that is closed sees it
CLIENT_TIMEOUT_S = 5.0  # a client that neither reads nor leaves is given up after this


class LoopbackServer:
    """Serves one connection at a time in a thread of its own while its ``with`` block lasts.

    Args:
        talk: serves one connection: ``talk(server, connection)``. The connection is closed when
            it returns; an OSError in it means that the client has left.
        scheme: of ``address``, e.g. http or rtsp.

    Attributes:
        address: SCHEME://127.0.0.1:PORT/live, with a port that was free.
        num_served: connections that came so far, the one that is served included.
    """

    def __init__(self, talk: Callable[[LoopbackServer, socket.socket], None],
                 scheme: str = 'http') -> None:
        self._talk, self.num_served = talk, 0
        self._socket = socket.create_server(('127.0.0.1', 0))
        self._socket.settimeout(POLL_S)
        self.address = f'{scheme}://127.0.0.1:{self._socket.getsockname()[1]}/live'
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> LoopbackServer:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_closing.set()
        self._thread.join()
        self._socket.close()

    def wait(self, seconds: float) -> None:
        """Let so much time pass in ``talk``, or less if the server is closed."""
        self._is_closing.wait(seconds)

    def _serve(self) -> None:
        while not self._is_closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(CLIENT_TIMEOUT_S)
                self.num_served += 1
                try:
                    self._talk(self, connection)
                except OSError:
                    continue


def lossy_http(content: bytes, stall_s: float) -> Callable[[LoopbackServer, socket.socket], None]:
    """``talk`` of an HTTP stream (MPEG-TS bytes) that is lost in three ways, one connection after
    the other: closed after the last byte, silent for ``stall_s`` before that, cut in a packet."""
    def talk(server: LoopbackServer, connection: socket.socket) -> None:
        way = ('close', 'stall', 'cut')[(server.num_served - 1) % 3]
        size = len(content) // 2 - 77 if way == 'cut' else len(content)
        connection.recv(4096)
        connection.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n' + content[:size])
        if way == 'stall':
            server.wait(stall_s)
    return talk
