"""The command from its options to files, with the detector that comes with the package."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import av
import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError

CONFIG = """
custom_imports = dict(imports=['blob_detector'])
model = dict(type='LatticeDetector', detector=dict(type='BlobDetector'),
             keyframes=dict(type='UniformKeyframes', gap_frames=4), num_stages=1)
"""
DETECTOR = '''
import numpy as np
from scipy import ndimage
from vision.lattice.core.structures import FrameBoxes
from vision.registry import MODELS


@MODELS.register_module(force=True)
class BlobDetector:
    """Bright connected regions."""
    classes = ('blob',)

    def detect(self, image_bgr):
        blobs, _ = ndimage.label(image_bgr[..., 2] > 120)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(blobs)]
        return FrameBoxes(np.array(boxes).reshape(-1, 4), np.full(len(boxes), 0.9),
                          np.zeros(len(boxes)))
'''
# A folder of the tool alone: the repository is no package root of whoever runs it from elsewhere.
BLOCKED = """
import sys
for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'supervision'):
    sys.modules[name] = None
sys.argv[0] = {tool!r}
import runpy
runpy.run_path({tool!r}, run_name='__main__')
"""


@pytest.fixture
def job(tmp_path, repository):
    """(main, argument list, environment) on a folder of 14 frames."""
    frames = tmp_path / 'frames'
    frames.mkdir()
    for t in range(14):
        image = np.full((48, 80, 3), 20, np.uint8)
        image[10:22, 5 + 2 * t:17 + 2 * t] = 220
        cv2.imwrite(str(frames / f'{t:03}.png'), image)
    from vision.cli.video import main
    environment = os.environ | dict(PYTHONPATH=f'{repository}')
    num_threads = cv2.getNumThreads()
    yield (main, [f'{frames}', '--gap', '4', '--out-dir', f'{tmp_path / "out"}'],
           environment)
    cv2.setNumThreads(num_threads)


@pytest.fixture
def torch_job(job, tmp_path, monkeypatch):
    """The same with a lattice of a config, over a detector of the test."""
    from mmengine.config import Config

    from vision.common.nn.checkpoint import save_checkpoint
    from vision.registry import MODELS
    main, (frames, _, _, *out), environment = job
    (tmp_path / 'blob_detector.py').write_text(DETECTOR)
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Config.fromfile(tmp_path / 'config.py')
    save_checkpoint(dict(state_dict=MODELS.build(config.model).state_dict()),
                    tmp_path / 'weights.pth')
    return main, [frames, '--config', f'{tmp_path / "config.py"}', '--checkpoint',
                  f'{tmp_path / "weights.pth"}', *out], environment


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def num_rows(tmp_path) -> int:
    return len((tmp_path / 'out' / 'frames.jsonl').read_text().splitlines())


@pytest.mark.fault('R26')
@pytest.mark.parametrize('mode', ['buffered', 'causal', 'offline'])
def test_a_folder_becomes_three_files(job, tmp_path, mode, capsys):
    main, arguments, _ = job
    assert main([*arguments, '--mode', mode]) == 0
    assert sorted(os.listdir(tmp_path / 'out')) == ['frames.csv', 'frames.jsonl', 'frames.mp4']
    assert num_rows(tmp_path) == 14
    assert 'latency p50 / p95 / max' in capsys.readouterr().out


def test_a_damaged_frame_is_exit_4_after_the_files_are_finished(job, tmp_path):
    main, arguments, _ = job
    (tmp_path / 'frames' / '009.png').write_bytes(b'')
    with pytest.raises(VisionError, match='VIS-DATA-507') as error:
        main(arguments)
    assert error.value.exit_code == 4 and num_rows(tmp_path) == 9
    assert main([*arguments, '--keep-going']) == 0
    assert num_rows(tmp_path) == 13


@pytest.mark.parametrize(('extra', 'code'), [
    (['--score-thr', '2'], 'VIS-CONFIG-513'),
    (['--max-frames', '0'], 'VIS-CONFIG-513'),
    (['--deadline-ms', '-1'], 'VIS-CONFIG-513'),
    (['--max-reconnect', '-1'], 'max_reconnect=-1[^$]*it must be a whole number, at least 0'),
    (['--keyframe-rate', '1.5'], 'it must be a number above 0 and at most 1'),
    (['--stats', '/dev/null/x.json'], 'VIS-ENV-109'),
    (['--keyframes', 'UniformKeyframes'], 'VIS-CONFIG-519'),
    (['--method', 'detect'], 'VIS-CONFIG-519'),
    (['--target-fps', '30', '--keyframe-rate', '0.2'], 'VIS-CONFIG-519'),
    (['--keyframe-rate', '0.3', '--mode', 'causal'], 'VIS-CONFIG-519'),
    (['--device', 'cpu'], 'VIS-CONFIG-519'),
    (['--runtime', 'torch'], 'VIS-CONFIG-519'),
    (['--config', 'x.py', '--detector', 'x.onnx'], 'VIS-CONFIG-519'),
    (['--config', 'lattice_yolo-nano_flow'], 'VIS-INPUT-1711[^$]*nearest: lattice_yolox-nano'),
    (['--fps', '3', '--runtime', 'onnxruntime', '--config', 'x.py'], 'VIS-CONFIG-519'),
    (['--detector', 'zoo:polynet'], 'VIS-'),
    (['--keyframe-rate', '0.9'], 'VIS-CONFIG-105'),
])
def test_bad_options_are_refused_before_work(job, tmp_path, extra, code):
    main, arguments, _ = job
    with pytest.raises(VisionError, match=code):
        main([*arguments, *extra])
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('text, code', [
    ('Uniform:gap_frames=4', 704), ('UniformKeyframes:4', 712),
    ('UniformKeyframes:gap_frames=os', 712), ('UniformKeyframes:gap=4', 709)])
def test_a_policy_that_is_none_is_refused(job, text, code):
    main, (frames, *_), _ = job
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        main([frames, '--keyframes', text])


@pytest.mark.parametrize(('options', 'keyframes'), [
    (['--gap', '5'], [0, 5, 10, 13]), (['--method', 'detect'], list(range(14))),
    (['--keyframes', 'UniformKeyframes:gap_frames=6'], [0, 6, 12, 13]),
    (['--keyframe-rate', '1'], list(range(14)))])
def test_where_keyframes_are_is_an_option(job, tmp_path, options, keyframes):
    main, (frames, _, _, *out), _ = job
    assert main([frames, *options, '--no-video', *out]) == 0
    rows = rows_of(tmp_path / 'out' / 'frames.jsonl')
    assert [row['frame_id'] for row in rows if row['is_keyframe']] == keyframes


def test_a_budget_is_in_the_summary(job, tmp_path, capsys):
    main, (frames, _, _, *out), _ = job
    assert main([frames, '--target-fps', '0.5', '--deadline-ms', '60000', '--stats',
                 f'{tmp_path / "s.json"}', *out]) == 0
    text = capsys.readouterr().out
    stats = json.loads((tmp_path / 's.json').read_text())
    assert stats['num_finished'] == 14 and stats['deadline_misses'] == 0
    assert stats['fps_end_to_end'] == pytest.approx(14 / stats['duration_s'])
    assert 'of 0.5 fps asked for' in text and 'later than 60000 ms' in text


def test_revision_has_a_status_in_the_tables(job, tmp_path):
    main, arguments, _ = job
    assert main([*arguments, '--mode', 'causal+revise']) == 0
    rows = rows_of(tmp_path / 'out' / 'frames.jsonl')
    assert [row['frame_id'] for row in rows if row['status'] == 'final'] == list(range(14))
    assert len(rows) == 14 + sum(1 for t in range(14) if t % 4)


def test_it_runs_from_any_folder_without_torch(job, tmp_path, repository):
    """Also without a package index, a cache or a converter: the weights come with the package."""
    _, arguments, environment = job
    (tmp_path / 'elsewhere').mkdir()
    tool = str(repository / 'tools' / 'video_demo.py')
    result = subprocess.run(
        [sys.executable, '-c', BLOCKED.format(tool=tool), arguments[0], '--max-frames', '3'],
        cwd=tmp_path / 'elsewhere', capture_output=True, text=True, timeout=120,
        env={**environment, 'VISION_ZOO_CACHE': str(tmp_path / 'cache'), 'VISION_ZOO_MIRROR': ''})
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path / 'elsewhere' / 'video_out')) \
        == ['frames.csv', 'frames.jsonl', 'frames.mp4']


@pytest.mark.parametrize('runtime', [[], ['--runtime', 'torch']])
def test_a_config_of_a_trained_lattice(torch_job, tmp_path, runtime):
    main, arguments, _ = torch_job
    assert main([*arguments, *runtime]) == 0
    rows = rows_of(tmp_path / 'out' / 'frames.jsonl')
    assert [row['frame_id'] for row in rows if row['is_keyframe']] == [0, 4, 8, 12, 13]
    assert {tuple(row['labels']) for row in rows} == {('blob',)}
    with pytest.raises(VisionError, match='VIS-CONFIG'):
        main([*arguments, '--cfg-options', 'modle.depth=1'])


def test_a_config_is_found_from_elsewhere(torch_job, tmp_path, monkeypatch):
    """Relative to the repository; what it lacks here is its detector's converted weights."""
    main, (frames, *_), _ = torch_job
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VisionError) as error:
        main([frames, '--config', 'configs/lattice/lattice_yolox-nano_t8-s2_coco.py',
              '--cfg-options', 'model.keyframes.type=Nothing'])
    assert error.value.code == 'VIS-CONFIG-704'


def test_a_config_of_another_model_is_refused(torch_job, tmp_path):
    main, arguments, _ = torch_job
    (tmp_path / 'config.py').write_text("model = dict(type='BlobDetector')")
    with pytest.raises(VisionError, match='VIS-CONFIG-514'):
        main(arguments)


def test_a_config_without_the_full_environment_is_one_error(job, repository, tmp_path):
    _, (frames, *_), environment = job
    tool = str(repository / 'tools' / 'video_demo.py')
    result = subprocess.run([sys.executable, '-c', BLOCKED.format(tool=tool), frames, '--config',
                             'lattice_yolox-nano_t8-s2_coco'], cwd=tmp_path, env=environment,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 3 and result.stderr.startswith('ERROR VIS-ENV-520')
    assert 'make env' in result.stderr


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_files(job, tmp_path, repository, number, code):
    _, arguments, environment = job
    # The signal comes from inside, at a known frame: a real signal, and no race.
    script = ('import sys, os; from vision.cli.video import main\n'
              'from vision.stream.io.sources import FrameFolder\n'
              'frames = FrameFolder.__iter__\n'
              'def interrupted(self):\n'
              '    for count, frame in enumerate(frames(self)):\n'
              f'        if count == 6: os.kill(os.getpid(), {int(number)})\n'
              '        yield frame\n'
              'FrameFolder.__iter__ = interrupted\n'
              'sys.exit(main(sys.argv[1:]))')
    result = subprocess.run([sys.executable, '-c', script, *arguments], cwd=repository,
                            env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == code, result.stderr
    rows = rows_of(tmp_path / 'out' / 'frames.jsonl')
    # The reader was ahead by what its queue holds.
    assert [row['frame_id'] for row in rows] == list(range(len(rows))) and 1 <= len(rows) <= 7
    assert not [name for name in os.listdir(tmp_path / 'out') if name.startswith('.')]


def test_an_unreachable_address_is_exit_6_even_if_damage_is_accepted(job, tmp_path):
    main, arguments, _ = job
    with pytest.raises(VisionError, match='VIS-NET-511') as error:
        main(['http://127.0.0.1:9/live', *arguments[1:], '--max-reconnect', '0', '--keep-going'])
    assert error.value.exit_code == 6 and 'could not be opened' in error.value.what


def test_a_device_that_is_not_there_is_refused(torch_job):
    import torch
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    main, arguments, _ = torch_job
    with pytest.raises(VisionError, match='VIS-ENV-515'):
        main([*arguments, '--device', 'cuda:0'])


def test_offline_mode_of_a_live_source_is_refused(job):
    main, arguments, _ = job
    with pytest.raises(VisionError, match='VIS-CONFIG-512'):
        main(['rtsp://127.0.0.1:9/live', *arguments[1:], '--mode', 'offline'])


def test_help_teaches_by_examples(job, capsys):
    main, *_ = job
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.count('vision video') >= 4


def test_the_source_is_never_overwritten(job, tmp_path):
    main, arguments, _ = job
    assert main(arguments) == 0
    video = tmp_path / 'out' / 'frames.mp4'
    before = video.read_bytes()
    with pytest.raises(VisionError, match='VIS-CONFIG-516'):
        main([str(video), *arguments[1:]])
    assert video.read_bytes() == before
    assert main([str(video), *arguments[1:-1], str(tmp_path / 'elsewhere')]) == 0


@pytest.mark.fault('R25')
def test_a_missing_camera_is_one_block_on_stderr(job, repository):
    _, arguments, environment = job
    result = subprocess.run([sys.executable, 'tools/video_demo.py', '99', *arguments[1:]],
                            cwd=repository, env=environment, capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 4 and result.stderr.startswith('ERROR VIS-VIDEO-510')
    assert len(result.stderr.splitlines()) == 4


class Webcam(BaseHTTPRequestHandler):
    """Motion JPEG at 50 frames a second; each connection is cut after 20 frames."""

    def do_GET(self):
        self.server.num_served += 1
        self.send_response(200)
        self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
        self.end_headers()
        for t in range(20):
            image = np.full((48, 80, 3), 20, np.uint8)
            image[10:22, 5 + 2 * t:17 + 2 * t] = 220
            picture = cv2.imencode('.jpg', image)[1].tobytes()
            self.wfile.write(b'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: '
                             + str(len(picture)).encode() + b'\r\n\r\n' + picture + b'\r\n')
            time.sleep(0.02)

    def log_message(self, *_):
        """Quiet."""


@pytest.mark.fault('R24')
def test_ctrl_c_ends_a_stream_that_reconnects(job, tmp_path, repository):
    _, arguments, environment = job
    server = HTTPServer(('127.0.0.1', 0), Webcam)
    server.num_served = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    child = subprocess.Popen([sys.executable, 'tools/video_demo.py',
                              f'http://127.0.0.1:{server.server_port}/live', *arguments[1:]],
                             cwd=repository, env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while server.num_served < 3 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    finally:
        child.kill()
        server.shutdown()
        thread.join()
        server.server_close()
    assert child.returncode == 130, err
    rows = [json.loads(row) for row in (tmp_path / 'out' / 'live.jsonl').read_text().splitlines()]
    assert [row['frame_id'] for row in rows] == list(range(len(rows))) and len(rows) > 5
    assert max(np.diff([row['timestamp'] for row in rows])) > 0.4  # the wait of a reconnection
    with av.open(str(tmp_path / 'out' / 'live.mp4')) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(rows)
    assert 'reconnections' in out
