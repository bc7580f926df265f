"""The page's server, asked by HTTP: who may read and send what."""

import json
import os
import re
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from vision.common.core.errors import VisionError
from vision.web.guard import COOKIE, key_of, paths_in
from vision.web.limits import Limits
from vision.web.models import Models
from vision.web.server import is_local
from vision.web.visitors import Visitors

pytestmark = pytest.mark.fault('S38')


class Browser:
    """One visitor by HTTP: keeps its cookie."""

    def __init__(self, address: str) -> None:
        self.address, self.visit = address, os.urandom(6).hex()
        _, headers, _ = self.ask('/')
        self.cookie = headers['set-cookie'].split(';')[0]

    cookie = ''

    def ask(self, path: str, body: bytes | None = None, **headers: str):
        """(status, headers, body)."""
        request = Request(self.address + path, body, headers | dict(cookie=self.cookie))
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except HTTPError as error:
            return error.code, error.headers, error.read()

    def upload(self, name: str, data: bytes):
        """(status, path on the server or text)."""
        edge = 'b0undary'
        body = (f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
                'Content-Type: application/octet-stream\r\n\r\n').encode() + data + \
            f'\r\n--{edge}--\r\n'.encode()
        status, _, answer = self.ask('/gradio_api/upload', body,
                                     **{'Content-Type': f'multipart/form-data; boundary={edge}'})
        return status, json.loads(answer)[0] if status == 200 else answer.decode()

    def read(self, path: str | Path) -> int:
        return self.ask(f'/gradio_api/file={quote(str(path))}')[0]

    def call(self, button: str, data: list):
        """What a button of the page answers: (status, outputs or text)."""
        config = json.loads(self.ask('/config')[2])
        part = next(part['id'] for part in config['components']
                    if part['props'].get('elem_id') == button)
        number = next(step['id'] for step in config['dependencies']
                      if [part, 'click'] in step['targets'] and step['backend_fn'])
        status, _, answer = self.ask('/gradio_api/queue/join', json.dumps(dict(
            data=data, fn_index=number, session_hash=self.visit, trigger_id=part)).encode(),
            **{'Content-Type': 'application/json'})
        if status != 200:
            return status, answer.decode()
        with urlopen(Request(f'{self.address}/gradio_api/queue/data?session_hash={self.visit}',
                             headers=dict(cookie=self.cookie)), timeout=120) as stream:
            for line in stream:
                if line.startswith(b'data:'):
                    message = json.loads(line[5:])
                    if message['msg'] == 'process_completed':
                        return 200, message['output'].get('data') or message['output']
        raise AssertionError('no answer')


def run(browser: Browser, path: str, **changed):
    """Press Run on an uploaded clip."""
    fields = dict(clip=dict(path=path, meta={'_type': 'gradio.FileData'}), model='yellow', fps=0,
                  threshold=0.3, mode='buffered', line='', zone='', blurred=[], faces=False,
                  heat=False, boxes=True) | changed
    return browser.call('run', list(fields.values()))


@pytest.fixture
def browser(address) -> Browser:
    return Browser(address)


@pytest.fixture
def done(browser, clip):
    """(upload, outputs) of a clip that was worked on."""
    _, path = browser.upload('square.mp4', clip.read_bytes())
    status, outputs = run(browser, path)
    assert status == 200 and outputs[0], outputs
    return path, outputs


def test_a_clip_is_worked_on_and_its_files_are_the_visitors(browser, done):
    upload, (video, files, text) = done
    assert 'different ids' in text and '>24<' in text
    assert browser.read(upload) == 200
    assert [browser.read(file['path']) for file in files] == [200, 200, 200]
    status, _, data = browser.ask(f'/gradio_api/file={quote(video["path"])}')
    assert status == 200 and data[4:8] == b'ftyp'


def test_nobody_else_reads_uploads_or_results(address, done):
    upload, (_, files, _) = done
    other = Browser(address)
    other.upload('x.txt', b'x')  # a visitor with things of its own
    for path in (upload, *(file['path'] for file in files)):
        assert other.read(path) == 403
        other.cookie, cookie = '', other.cookie
        assert other.read(path) == 403
        other.cookie = cookie
    status, text = run(other, upload)
    assert status == 403 and 'not an upload of yours' in text


@pytest.mark.parametrize('path', [
    '/etc/passwd', __file__, 'setup.cfg', './README.md', '../../../etc/passwd',
    '/proc/self/environ', 'http://127.0.0.1:1/', 'http://example.org/x.png', 'file:///etc/passwd',
    '/', '', '%2fetc%2fpasswd',
    '/tmp', 'C:/windows/win.ini', '\0', '/etc/passwd\0.mp4'])
def test_no_file_of_the_server_is_read(browser, path):
    assert browser.read(path) == 403
    assert run(browser, path)[0] in (403, 200)
    if path:
        assert run(browser, path)[0] == 403


def test_dots_do_not_lead_out_of_the_visitors_folder(browser, done):
    folder = Path(done[1][1][0]['path']).parent
    assert browser.read(f'{folder}/../../../../etc/passwd') == 403
    assert browser.read(folder) == 403


def test_a_request_that_hides_a_path_is_refused(browser):
    deep = dict(a=[dict(b=dict(path='/etc/passwd', meta={'_type': 'gradio.FileData'}))])
    assert list(paths_in(deep)) == ['/etc/passwd']
    assert browser.call('run', [deep])[0] == 403
    assert list(paths_in(dict(path='data:image/png;base64,xx'))) == []


@pytest.mark.parametrize('path', [
    '/gradio_api/proxy=http://127.0.0.1:1/', '/gradio_api/info', '/gradio_api/openapi.json',
    '/monitoring', '/monitoring/summary', '/gradio_api/deep_link', '/docs', '/redoc',
    '/openapi.json',
    '/gradio_api/vibe-code', '/gradio_api/run/predict', '/gradio_api/call/work', '/api/predict',
    '/gradio_api/runs', '/gradio_api/custom_component/1/client/component/index.js', '/pwa_icon',
    '/gradio_api/dev/reload', '/gradio_api/component_server', '/nothing'])
def test_paths_that_the_page_does_not_need_are_not_there(browser, path):
    assert browser.ask(path)[0] == 404
    assert browser.ask(path, b'{}', **{'Content-Type': 'application/json'})[0] == 404


def test_too_large_an_upload_is_refused(browser, limits):
    status, text = browser.upload('big.mp4', b'\0' * (limits.max_bytes + 100))
    assert status == 413 and f'{limits.max_mb:g} MB' in text
    status, text = browser.upload('bigger.mp4', b'\0' * (2 * limits.max_bytes))
    assert status == 413 and f'{limits.max_mb:g} MB' in text


def test_a_body_without_a_length_is_counted(browser, limits):
    """Chunked: nothing announces its size."""
    import http.client
    host = browser.address.removeprefix('http://')
    connection = http.client.HTTPConnection(host, timeout=30)
    head = (b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n')

    def pieces():
        yield head
        for _ in range(80):
            yield b'\0' * (1 << 16)

    try:
        connection.request('POST', '/gradio_api/upload', pieces(), {
            'Content-Type': 'multipart/form-data; boundary=b', 'Cookie': browser.cookie},
            encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
        status = 413
    assert status == 413


def test_a_request_that_is_no_upload_has_a_limit_too(browser):
    status, _, _ = browser.ask('/gradio_api/queue/join', b'"' + b'x' * (17 << 20) + b'"',
                               **{'Content-Type': 'application/json'})
    assert status == 413


@pytest.mark.parametrize('body', [b'', b'{', b'[' * 5000, b'[]', b'null', b'{"data": 3}'])
def test_odd_requests_do_not_end_the_server(browser, body):
    status, _, _ = browser.ask('/gradio_api/queue/join', body,
                               **{'Content-Type': 'application/json'})
    assert 400 <= status < 500 and browser.ask('/')[0] == 200


@pytest.mark.parametrize('name', ['a b.mp4', '../../evil.mp4', '/etc/passwd', '.hidden.mp4', '..',
                                  '<img src=x onerror=alert(1)>.mp4', 'name\n.mp4', 'x' * 300,
                                  'con.mp4', '日本語.mp4', '%2e%2e%2fx.mp4', '-rf.mp4',
                                  'concat:a|b.mp4', "a'b;c.mp4"])
def test_hostile_names_stay_names(browser, clip, name):
    status, path = browser.upload(name.replace('\n', '%0A'), clip.read_bytes())
    if status != 200:
        assert status in (400, 413, 422)
        return
    assert browser.visit and browser.read(path) == 200
    status, outputs = run(browser, path)
    assert status == 200 and ('different ids' in outputs[2] or 'vision-error' in outputs[2])
    assert '<img src=x' not in outputs[2]
    assert browser.ask('/')[0] == 200


@pytest.mark.parametrize(('data', 'says'), [
    (b'PK\3\4' + b'\0' * 200, 'cannot be read as a video'), (b'\0', 'cannot be read as a video'),
    (b'', 'cannot be read as a video'), (b'#EXTM3U\nhttp://127.0.0.1:1/a.ts\n', 'cannot be read')])
def test_what_is_no_clip_is_one_sentence_on_the_page(browser, data, says):
    _, path = browser.upload('a.mp4', data)
    status, (video, files, text) = run(browser, path)
    assert status == 200 and video is None and files is None
    assert says in text and 'VIS-INPUT-1771' in text and 'Traceback' not in text
    assert '/tmp' not in text


def test_a_clip_that_is_too_long_is_told(browser, write_clip, tmp_path):
    _, path = browser.upload('long.mp4', write_clip(tmp_path / 'l.mp4', 60).read_bytes())
    assert 'longer than 4 s' in run(browser, path)[1][2]


@pytest.mark.parametrize(('changed', 'says'), [
    (dict(model='nobody'), 'nobody'), (dict(model=None), 'no model'), (dict(fps=-3), '-3'),
    (dict(line='1,2'), '2 points'), (dict(zone='x'), '3 to 50 points'),
    (dict(blurred=['cat']), 'cat'), (dict(clip=None), 'no clip was chosen')])
def test_wrong_fields_are_one_sentence_on_the_page(browser, clip, changed, says):
    _, path = browser.upload('a.mp4', clip.read_bytes())
    status, answer = run(browser, path, **changed)
    text = str(answer)
    assert says in text and 'Traceback' not in text and '/tmp' not in text
    assert browser.ask('/')[0] == 200


def test_a_fault_of_ours_is_logged_and_not_shown(browser, clip, monkeypatch):
    monkeypatch.setattr('vision.web.page.run_clip', lambda *_, **__: 1 / 0)
    _, path = browser.upload('a.mp4', clip.read_bytes())
    text = run(browser, path)[1][2]
    assert 'something went wrong' in text and 'division' not in text


def test_a_page_belongs_to_its_visitor(address, browser, clip):
    run(browser, browser.upload('a.mp4', b'x')[1])
    thief = Browser(address)
    thief.visit = browser.visit
    assert thief.ask(f'/gradio_api/queue/data?session_hash={browser.visit}')[0] == 403
    assert run(thief, thief.upload('b.mp4', b'x')[1])[0] == 403


def test_closing_the_page_deletes_everything(browser, clip):
    _, upload = browser.upload('mine.mp4', clip.read_bytes() + b'\0\0\0\x08free')
    _, (_, files, _) = run(browser, upload)
    stream = urlopen(Request(f'{browser.address}/gradio_api/heartbeat/{browser.visit}',
                             headers=dict(cookie=browser.cookie)), timeout=30)
    stream.readline()
    assert Path(upload).exists()
    stream.close()
    until = time.monotonic() + 40
    while time.monotonic() < until and any(Path(p).exists() for p in (upload, files[0]['path'])):
        time.sleep(0.2)
    assert not Path(upload).exists() and not Path(files[0]['path']).exists()
    assert browser.read(upload) == 403


def test_many_at_once_are_queued_or_told_to_wait(address, clip):
    """Twenty visitors press Run: each gets its result or a plain no; the server lives on."""
    answers = []

    def visit():
        browser = Browser(address)
        status, path = browser.upload('a.mp4', clip.read_bytes())
        answers.append(run(browser, path))

    threads = [threading.Thread(target=visit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 20
    assert {status for status, _ in answers} <= {200, 503}
    finished = [outputs for status, outputs in answers if status == 200]
    assert len(finished) >= 9 and all(outputs[0] for outputs in finished)
    assert Browser(address).ask('/')[0] == 200


def test_the_page_asks_nothing_of_other_machines(browser):
    status, headers, page = browser.ask('/')
    assert status == 200 and "default-src 'self'" in headers['content-security-policy']
    loaded = re.findall(rb'(?:src|href)="(https?://[^"]+)"', page)
    assert not [url for url in loaded if not url.startswith(browser.address.encode())]
    config = json.loads(browser.ask('/config')[2])
    assert config['analytics_enabled'] is False and not config.get('space_id')


def test_cookies_are_read_strictly():
    key = 'ab' * 16
    assert key_of(f'a=b; {COOKIE}={key}') == key
    for text in ('', 'a=b', f'{COOKIE}=', f'{COOKIE}=../../x', f'{COOKIE}={key}00', '\0;;=;'):
        assert key_of(text) == ''


def test_a_full_store_is_told_and_idle_visitors_make_room(tmp_path):
    visitors = Visitors(tmp_path, Limits(store_mb=1, idle_seconds=0.05))
    path = tmp_path / 'u' / 'a.mp4'
    path.parent.mkdir()
    path.write_bytes(b'\0' * (1 << 20))
    visitors.add_upload('a', path)
    assert not visitors.has_room(1000)
    time.sleep(0.1)
    assert visitors.has_room(1000) and not path.exists()


def test_the_same_upload_of_two_visitors_stays_for_the_other(tmp_path):
    visitors = Visitors(tmp_path, Limits())
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'x')
    for key in 'ab':
        visitors.of(key, f'page-{key}')
        visitors.add_upload(key, path)
    visitors.leave('page-a')
    assert path.exists() and visitors.may_read('b', path) and not visitors.may_read('a', path)
    visitors.leave('page-b')
    assert not path.exists()


def test_a_job_of_a_closed_page_does_not_begin(tmp_path):
    """It waited in the queue while its visitor left."""
    visitors = Visitors(tmp_path, Limits())
    assert visitors.owns_visit('a', 'page')
    visitors.leave('page')
    with pytest.raises(VisionError, match='closed'):
        visitors.of('a', 'page')
    assert visitors.owns_visit('a', 'page') and not visitors.of('a').visits
    visitors.leave('')


@pytest.mark.parametrize(('host', 'is_here'), [
    ('127.0.0.1', True), ('::1', True), ('localhost', True), ('0.0.0.0', False), ('::', False),
    ('192.168.1.2', False), ('example.org', False)])
def test_a_host_that_others_reach_is_known(host, is_here):
    assert is_local(host) is is_here


def test_a_model_that_is_not_offered_is_told(yellow_model):
    models = Models(['yellow'], load=yellow_model)
    assert models.names('video') == ['yellow']
    with models.borrowed('yellow') as first, models.borrowed('yellow') as second:
        assert first is not second  # a model runs one video at a time
    with models.borrowed('yellow') as again:
        assert again in (first, second)
