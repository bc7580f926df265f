"""A camera that talks RTSP: one MPEG transport stream over RTP in the RTSP connection.

As cameras do it: OPTIONS, DESCRIBE, SETUP (interleaved TCP), PLAY (RFC 2326), then RTP packets
of seven transport packets each (RFC 2250, payload type 33). After the content the connection is
closed, which is what a camera that restarts looks like.
"""

import socket
import struct
import time

from vision.stream.io.loopback import LoopbackServer

SDP = ('v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n'
       'm=video 0 RTP/AVP 33\r\na=control:track\r\n')
PACKET = 7 * 188


class RtspCamera:
    """``talk`` is for a LoopbackServer. Args: content, its bytes; seconds, to send them in."""

    def __init__(self, content: bytes, seconds: float) -> None:
        self._content, self._pause = content, seconds * PACKET / len(content)
        self.methods: list[str] = []
        self.num_played = 0

    def talk(self, server: LoopbackServer, connection: socket.socket) -> None:
        with connection.makefile('rb') as lines:
            while request := lines.readline().decode().split():
                headers = {}
                while line := lines.readline().decode().strip():
                    name, _, value = line.partition(':')
                    headers[name.lower()] = value.strip()
                self.methods.append(request[0])
                connection.sendall(self._answer(server.address, request, headers))
                if request[0] == 'PLAY':
                    self._send(connection)
                    return

    def _answer(self, address: str, request: list[str], headers: dict[str, str]) -> bytes:
        body, extra = '', ''
        if request[0] == 'OPTIONS':
            extra = 'Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n'
        elif request[0] == 'DESCRIBE':
            body = SDP
            extra = f'Content-Base: {address}/\r\nContent-Type: application/sdp\r\n'
        else:
            extra = 'Session: 1\r\n'
            if request[0] == 'SETUP':
                extra += f'Transport: {headers["transport"]}\r\n'
        return (f'RTSP/1.0 200 OK\r\nCSeq: {headers["cseq"]}\r\n{extra}'
                f'Content-Length: {len(body)}\r\n\r\n{body}').encode()

    def _send(self, connection: socket.socket) -> None:
        self.num_played += 1
        start = time.monotonic()
        for number, place in enumerate(range(0, len(self._content), PACKET)):
            time.sleep(max(0.0, start + number * self._pause - time.monotonic()))
            stamp = int((time.monotonic() - start) * 90_000)
            header = struct.pack('>BBHII', 0x80, 33, number & 0xFFFF, stamp, 7)
            packet = header + self._content[place:place + PACKET]
            connection.sendall(b'$\0' + struct.pack('>H', len(packet)) + packet)
