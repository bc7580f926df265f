"""What stands before Gradio: few paths, each file for its visitor alone, nothing from elsewhere.

Gradio serves every file of its upload folder to everybody who knows the path, and fetches
addresses that a request names. Here a request passes only if its path is on a short list, if the
files that it names are the visitor's own, and if it is not too large.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.cookies import CookieError, SimpleCookie
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qs, unquote

from vision.web.limits import MEGABYTE
from vision.web.visitors import Visitors

COOKIE = 'vision_visitor'
_KEY = re.compile(r'[0-9a-f]{32}')
_API = '/gradio_api/'
FILE = f'{_API}file='
UPLOAD = f'{_API}upload'
# What the page asks for, and no more: Gradio has routes for proxies, recordings, links, code.
PLAIN = {'/', '/config', '/config/', '/theme.css', '/favicon.ico', '/robots.txt', '/manifest.json',
         UPLOAD,
         f'{_API}upload_progress', f'{_API}queue/join', f'{_API}queue/data', f'{_API}reset',
         f'{_API}reset/', f'{_API}cancel', f'{_API}startup-events', f'{_API}theme.css',
         f'{_API}app_id'}
FOLDERS = ('/assets/', '/static/', '/svelte/', f'{_API}heartbeat/', f'{_API}stream/', FILE)
MAX_BODY = 16 * MEGABYTE  # of a request that is no upload: one picture of a camera
HEADERS = {
    'Content-Security-Policy':
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src "
        "'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
}


class Guard:
    """ASGI middleware. Args: app, what it guards; visitors, whose files are whose."""

    def __init__(self, app: Any, visitors: Visitors) -> None:
        self._app, self._visitors = app, visitors

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            if scope['type'] == 'lifespan':
                await self._app(scope, receive, send)
            return  # the page needs no websocket
        key = key_of(dict(scope['headers']).get(b'cookie', b'').decode('latin-1'))
        is_new, key = not key, key or token_hex(16)
        send = _with_headers(send, _cookie(key) if is_new else None)
        path = scope['path'].removeprefix(scope.get('root_path', '')) or '/'
        if path not in PLAIN and not path.startswith(FOLDERS):
            await _refuse(send, 404, 'there is no such page')
        elif path.startswith(FILE):
            name = unquote(path.removeprefix(FILE))
            if self._visitors.may_read(key, path.removeprefix(FILE)) \
                    or self._visitors.may_read(key, name):
                await self._app(scope, receive, send)
            else:
                await _refuse(send, 403, 'this file is not yours to read')
        elif path == UPLOAD:
            await self._upload(scope, receive, send, key)
        elif scope['method'] == 'POST':
            await self._post(scope, receive, send, key)
        else:
            visit = parse_qs(scope['query_string'].decode('latin-1')).get('session_hash', [''])[0]
            if self._is_anothers(key, visit):
                await _refuse(send, 403, 'this page belongs to another visitor')
            else:
                await self._app(scope, receive, send)

    async def _upload(self, scope, receive, send, key: str) -> None:
        limit = self._visitors.limits.max_bytes + MEGABYTE  # room for the form around the files
        length = dict(scope['headers']).get(b'content-length', b'0')
        announced = int(length) if length.isdigit() else 0
        too_large = f'an upload may have at most {self._visitors.limits.max_mb:g} MB'
        problem = too_large if announced > limit else '' if self._visitors.has_room(announced) \
            else 'the server has no room; come back later'
        if problem:
            await _drain(receive, 4 * limit)
            return await _refuse(send, 413, problem)
        num_bytes, answer = 0, _Answer()

        async def counted():
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get('body', b''))
            if num_bytes > limit:
                return {'type': 'http.disconnect'}
            return message

        try:
            await self._app(scope, counted, answer)
        except Exception:
            if num_bytes <= limit:
                raise
        if num_bytes > limit:
            await _drain(receive, 4 * limit)
            return await _refuse(send, 413, too_large)
        if answer.status == 200:
            for path in json.loads(answer.body):
                self._visitors.add_upload(key, path)
        elif answer.status == 413:
            return await _refuse(send, 413, too_large)
        await answer.replay(send)

    async def _post(self, scope, receive, send, key: str) -> None:
        """Only requests whose files are the visitor's own, and whose page is."""
        body, more = b'', True
        while more:
            message = await receive()
            if message['type'] == 'http.disconnect':
                return None
            body, more = body + message.get('body', b''), message.get('more_body', False)
            if len(body) > MAX_BODY:
                return await _refuse(send, 413, 'the request is too large')
        try:
            request = json.loads(body or b'{}')
        except (ValueError, RecursionError):
            return await _refuse(send, 400, 'the request is no JSON')
        foreign = [path for path in paths_in(request) if not self._visitors.may_read(key, path)]
        if foreign:
            return await _refuse(send, 403, 'a file of the request is not an upload of yours')
        visit = request.get('session_hash') if isinstance(request, dict) else None
        if self._is_anothers(key, visit if isinstance(visit, str) else ''):
            return await _refuse(send, 403, 'this page belongs to another visitor')
        is_read = False

        async def again():
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {'type': 'http.request', 'body': body, 'more_body': False}

        return await self._app(scope, again, send)

    def _is_anothers(self, key: str, visit: str) -> bool:
        return bool(visit) and not self._visitors.owns_visit(key, visit)


def key_of(cookies: str) -> str:
    """The visitor's secret in a Cookie header; '' when there is none of ours."""
    try:
        morsel = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ''
    return morsel.value if morsel is not None and _KEY.fullmatch(morsel.value) else ''


def paths_in(value: Any) -> Iterator[str]:
    """Everything that a request calls a path, at whatever depth, ``data:`` addresses apart: these
    hold what they name."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
            path = value.get('path')
            if isinstance(path, str) and path and not path.startswith('data:'):
                yield path


class _Answer:
    """An answer of the application, kept until it has been looked at."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.status, self.body = 0, b''

    async def __call__(self, message: dict) -> None:
        self.messages.append(message)
        self.status = message.get('status', self.status)
        self.body += message.get('body', b'')

    async def replay(self, send) -> None:
        for message in self.messages:
            await send(message)


def _with_headers(send, cookie: bytes | None):
    async def sending(message: dict) -> None:
        if message['type'] == 'http.response.start':
            names = {name.lower() for name, _ in message.get('headers', [])}
            extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()
                     if name.lower().encode() not in names]
            if cookie is not None:
                extra.append((b'set-cookie', cookie))
            message = message | dict(headers=[*message.get('headers', []), *extra])
        await send(message)
    return sending


def _cookie(key: str) -> bytes:
    return f'{COOKIE}={key}; Path=/; HttpOnly; SameSite=Strict'.encode()


async def _drain(receive, most: int) -> None:
    """Take what is being sent and forget it: a browser that may not end its sentence says that
    the network failed, not why. Beyond ``most`` bytes it may not."""
    num_bytes, more = 0, True
    while more and num_bytes < most:
        message = await receive()
        num_bytes += len(message.get('body', b''))
        more = message.get('more_body', False)


async def _refuse(send, status: int, text: str) -> None:
    body = json.dumps(dict(detail=text, error=text)).encode()
    await send({'type': 'http.response.start', 'status': status, 'headers': [
        (b'content-type', b'application/json'), (b'content-length', str(len(body)).encode())]})
    await send({'type': 'http.response.body', 'body': body})
