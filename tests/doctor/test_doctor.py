"""The doctor names what is broken and how to mend it, also where nothing can be imported."""

import json
import os
import subprocess
import sys
import venv

import pytest


@pytest.fixture(scope='module')
def doctor():
    from vision.doctor import checks
    return checks


def run(repository, *arguments, python=sys.executable, first_on_path=None):
    path = os.pathsep.join(str(p) for p in (first_on_path, repository) if p)
    return subprocess.run([str(python), '-m', 'vision', 'doctor', *arguments], cwd=repository,
                          capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=path))


def package(folder, name, code):
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(code)


@pytest.fixture(scope='module')
def report(repository):
    done = run(repository, '--json')
    return done.returncode, {f['name']: f for f in json.loads(done.stdout)['findings']}


def test_this_environment_can_run_what_the_tests_run(report):
    code, findings = report
    assert findings['mmcv operators']['state'] == 'ok', findings['mmcv operators']
    assert findings['h264 (PyAV)']['state'] == 'ok' and findings['cv2 works']['state'] == 'ok'
    assert findings['torch']['expected'] == '==2.13.0' and findings['torch']['found'] != 'missing'
    assert code == (3 if any(f['state'] == 'broken' for f in findings.values()) else 0)


def test_every_problem_has_a_command(report):
    for finding in report[1].values():
        assert finding['do'] or finding['state'] in ('ok', 'info'), finding


def test_the_package_is_whole_without_training_software(doctor, tmp_path, monkeypatch):
    """As in the light environment: a Python that cannot find mmengine."""
    (tmp_path / 'sitecustomize.py').write_text(
        'import importlib.util\nfind = importlib.util.find_spec\n'
        'importlib.util.find_spec = lambda name, *rest: (\n'
        '    None if name == "mmengine" else find(name, *rest))\n'
        'import sys\nsys.modules["mmengine"] = None\n')
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{doctor.ROOT}')
    finding = doctor.vision_package(doctor.run_probe('vision'))
    assert finding.state == 'ok', finding


def test_an_environment_with_nothing_in_it(repository, tmp_path):
    venv.create(tmp_path / 'empty', with_pip=False)
    done = subprocess.run([tmp_path / 'empty' / 'bin' / 'python', '-m', 'vision', 'doctor'],
                          cwd=repository, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    assert done.returncode == 3 and 'Traceback' not in done.stdout + done.stderr
    assert 'BROKEN torch: missing' in done.stdout
    assert "No module named 'mmcv'" in done.stdout or "No module named 'torch'" in done.stdout
    assert done.stdout.count('  Do: ') >= 15


def test_a_cv2_without_its_other_half_is_found(doctor, repository, tmp_path, monkeypatch):
    # What is left after one of two opencv wheels was uninstalled: a package without contents.
    package(tmp_path, 'cv2', '')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    finding = doctor.probed('cv2 works', doctor.run_probe('cv2'), doctor.opencv_command())
    assert finding.state == 'broken' and 'imencode' in finding.found
    assert 'opencv-python==4.11.0.86 opencv-python-headless==4.11.0.86' in finding.do


@pytest.mark.parametrize(('code', 'what'), [
    ('raise ImportError("libomp.so: cannot open shared object file")', 'libomp.so'),
    ('import os\ndef IndexFlatIP(size): os.abort()', 'signal 6')])
def test_a_faiss_that_ends_the_process_is_found(doctor, tmp_path, monkeypatch, code, what):
    package(tmp_path, 'faiss', code)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    finding = doctor.faiss_works(doctor.run_probe('faiss'))
    assert finding.state == 'broken' and what in finding.found
    assert 'faiss-cpu' in finding.do


def test_faiss_that_the_project_installs_is_searched(report):
    assert report[1]['faiss beside torch']['state'] == 'ok'
    assert report[1]['faiss-cpu']['found'] != 'missing'


def test_han_fonts_are_looked_for_and_named(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, 'FONT_FOLDERS', ())
    missing = doctor.han_fonts({})
    assert missing.state == 'info' and 'fonts-noto-cjk' in missing.do
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'NotoSansCJK-Bold.ttc').touch()
    found = doctor.han_fonts(dict(VISION_FONT_DIR=f'/nowhere:{tmp_path}'))
    assert found.found == '1 Noto CJK files' and not found.do


def test_room_is_looked_at_where_the_zoo_writes(doctor, tmp_path, monkeypatch):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda path: usage._replace(
        free=1_000 if path == tmp_path else usage.free))
    states = {f.name: f for f in doctor.space(str(tmp_path / 'not' / 'made' / 'yet'))}
    assert states['disk, model zoo'].state == 'warning'
    assert 'VISION_ZOO_CACHE' in states['disk, model zoo'].do


@pytest.mark.fault('R16')
@pytest.mark.parametrize(('free', 'state'), [(999_999_999, 'warning'), (1_000_000_000, 'ok')])
def test_a_small_shared_memory_is_told_with_a_way_out(doctor, monkeypatch, free, state):
    usage = doctor.shutil.disk_usage('/')
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda path: usage._replace(
        free=free if str(path) == '/dev/shm' else usage.free))
    finding = next(found for found in doctor.space(None) if found.name == '/dev/shm')
    assert finding.state == state
    assert ('--shm-size' in finding.do and 'num_workers=0' in finding.do) == (state != 'ok')


def test_a_torchvision_of_another_torch_is_found(doctor, tmp_path, monkeypatch):
    package(tmp_path, 'torchvision',
            "raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    finding = doctor.torchvision_works(doctor.run_probe('torchvision'))
    assert finding.state == 'broken' and 'torchvision::nms' in finding.found
    assert finding.do.endswith('uninstall -y torchvision')


@pytest.mark.parametrize('code, what', [
    ('import os; os.abort()', 'signal 6'),
    ("raise ImportError('mmcv/_ext.so: undefined symbol: _ZN3c10')", 'undefined symbol'),
    ('def nms(*args):\n    return None, __import__("torch").tensor([0, 1, 2])\nroi_align = nms',
     'expected [0, 2]'),
])
def test_operators_that_crash_or_lie_are_found(doctor, tmp_path, monkeypatch, code, what):
    package(tmp_path, 'mmcv', '')
    package(tmp_path / 'mmcv', 'ops', code)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    finding = doctor.ops_work(doctor.run_probe('mmcv_ops'))
    assert finding.state == 'broken' and what in finding.found
    assert '--no-build-isolation "onedl-mmcv==2.3.6"' in finding.do


def test_a_probe_that_hangs_is_given_up(doctor, tmp_path, monkeypatch):
    package(tmp_path, 'av', 'import time; time.sleep(60)')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(doctor, 'PROBE_TIMEOUT_S', 1)
    assert 'no answer within 1 s' in doctor.run_probe('h264')['reason']


def test_exit_code_and_table_of_a_broken_installation(repository, tmp_path):
    package(tmp_path, 'cv2', '')
    done = run(repository, first_on_path=tmp_path)
    assert done.returncode == 3 and 'BROKEN cv2 works' in done.stdout
    assert '--force-reinstall' in done.stdout and 'Traceback' not in done.stderr


@pytest.mark.parametrize('version, specifier, expected', [
    ('2.13.0+cpu', '==2.13.0', True), ('13', '==13.0.0', True), ('2.4.6', '>=2.3.2,<2.5', True),
    ('2.10.0', '>=2.9', True), ('2.5.0', '>=2.3.2,<2.5', False), ('81.0.0', '<82', True),
    ('4.12.0.88', '==4.11.0.86', False), ('2.3.1', '>=2.3.2', False), ('1.0', '', True),
    ('3.0rc1', '>2', True)])
def test_versions_are_compared_by_number(doctor, version, specifier, expected):
    assert doctor.satisfies(version, specifier) is expected


def test_wanted_versions_come_from_the_files_that_install_them(doctor):
    wanted = doctor.requirements()
    assert wanted['onedl-mmcv'] == ('>=2.3.6', '==2.3.6')
    assert wanted['opencv-python-headless'] == (None, '==4.11.0.86') and 'safetensors' in wanted


@pytest.mark.parametrize('reason, package_name', [
    ("ModuleNotFoundError: No module named 'imgaug'", 'imaug'),
    ("ModuleNotFoundError: No module named 'pycocotools'", 'pycocotools'),
    ("ModuleNotFoundError: No module named 'mmdet'", 'onedl-mmdetection')])
def test_a_missing_part_of_mmdet_is_named_by_its_package(doctor, reason, package_name):
    assert doctor.mmdet_command(dict(ok=False, reason=reason)).endswith(f' {package_name}')


def test_a_light_environment_is_not_broken_for_what_it_leaves_out(repository, tmp_path):
    """With its stamp nothing of training is looked for; what it should have still is."""
    venv.create(tmp_path / 'light', with_pip=False)
    (tmp_path / 'light' / 'ready-light').touch()
    done = subprocess.run([tmp_path / 'light/bin/python', '-m', 'vision', 'doctor'],
                          cwd=repository, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    assert done.returncode == 3 and 'BROKEN onnxruntime: missing' in done.stdout
    assert 'torch' not in done.stdout and 'left out of the light environment' in done.stdout


def test_an_installed_package_is_judged_by_what_it_requires(doctor, monkeypatch):
    """Outside of a checkout there is neither setup.cfg nor constraints.txt."""
    monkeypatch.setattr(doctor, 'IS_CHECKOUT', False)
    lines = ['numpy>=2.3.2', 'torch>=2.10; extra == "train"', 'faiss-cpu; extra == "faces"',
             'onnx>=1.21; extra == "onnx"']
    monkeypatch.setattr(doctor.metadata, 'requires', lambda name: lines)
    monkeypatch.setattr(doctor, 'version_of', lambda name: None if name == 'torch' else '9.0')
    assert doctor.is_light() and doctor.wanted_extras() == ['faces']
    assert doctor.requirements() == {'numpy': ('>=2.3.2', ''), 'faiss-cpu': ('', '')}
    assert [f.state for f in doctor.package_versions()] == ['ok', 'ok']
    finding = doctor.light_environment()[0]
    assert finding.do.endswith("install 'frugal-vision[train]'")
    assert doctor.pinned('numpy').endswith("install 'numpy>=2.3.2'")
    monkeypatch.setattr(doctor, 'version_of', lambda name: '9.0')
    assert not doctor.is_light() and 'torch' in doctor.requirements()
    monkeypatch.setattr(doctor, 'version_of', {'frugal-vision': '1', 'numpy': '2.0'}.get)
    broken = doctor.package_versions()[0]
    assert broken.state == 'broken' and 'numpy>=2.3.2' in broken.do
