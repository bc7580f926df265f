"""tools/demo.py, tools/demo_train.py and tools/environment.py: what is done is not done again."""

from pathlib import Path

import pytest
from scripts import load_script

from vision.common.core.errors import VisionError


@pytest.fixture
def demo():
    return load_script('tools/demo.py')


@pytest.fixture
def environment(tmp_path, monkeypatch):
    module = load_script('tools/environment.py')
    monkeypatch.setattr(module, 'STAMP', tmp_path / 'ready')
    monkeypatch.setattr(module, 'LIGHT_STAMP', tmp_path / 'ready-light')
    module.made = []
    monkeypatch.setattr(module, 'make', lambda *args: module.made.append('full'))
    monkeypatch.setattr(module, 'make_light', lambda: module.made.append('light'))
    return module


def step(demo, tmp_path, number, code='pass'):
    product = tmp_path / 'out' / f'{number}.txt'
    code = f'from pathlib import Path; p = Path({str(product)!r}); ' \
           f'p.parent.mkdir(exist_ok=True); p.open("a").write("x"); {code}'
    return demo.Step(f'step {number}', 0.1, ('-c', code), product)


def test_finished_steps_are_kept_and_a_failed_one_is_named(demo, tmp_path):
    out = tmp_path / 'out'
    failing = [step(demo, tmp_path, 1), step(demo, tmp_path, 2, 'p.unlink(); raise SystemExit(7)')]
    with pytest.raises(VisionError, match='VIS-RUN-904.*step 2.*exit code 7') as caught:
        demo.run_all(failing, out, 'make demo', is_fresh=False, results={})
    assert 'make demo again' in caught.value.do
    good = [step(demo, tmp_path, 1), step(demo, tmp_path, 2)]
    demo.run_all(good, out, 'make demo', is_fresh=False, results={})
    assert [s.product.read_text() for s in good] == ['x', 'x']
    demo.run_all(good, out, 'make demo', is_fresh=False, results={})
    assert [s.product.read_text() for s in good] == ['x', 'x']
    (out / 'old.txt').touch()
    demo.run_all(good, out, 'make demo', is_fresh=True, results={})
    assert not (out / 'old.txt').exists() and good[0].product.read_text() == 'x'


def test_a_step_without_its_product_has_failed(demo, tmp_path):
    with pytest.raises(VisionError, match='VIS-RUN-904'):
        demo.run_all([step(demo, tmp_path, 1, 'p.unlink()')], tmp_path / 'out', 'make demo',
                     is_fresh=False, results={})


def test_the_demos_write_into_folders_of_their_own(demo, repository, monkeypatch):
    train = load_script('tools/demo_train.py')
    for module, names in ((demo, ('clip', 'video')), (train, ('moving_sprites', 'video'))):
        assert all(module.OUT in step.product.parents for step in module.steps())
        assert {step.product.relative_to(module.OUT).parts[0] for step in module.steps()} >= set(
            names)
    assert demo.OUT != train.OUT
    ignored = (repository / '.gitignore').read_text().split()
    assert f'{demo.OUT}/' in ignored and f'{train.OUT}/' in ignored
    configs = (repository / 'configs' / 'demo').glob('*.py')
    assert all(f'{train.OUT}/' in path.read_text() for path in configs)
    assert all((repository / step.arguments[0]).is_file() for step in train.steps())


def test_a_full_environment_serves_as_light_and_not_the_other_way(environment):
    assert environment.main(['--light']) == environment.main(['--light']) == 0
    assert environment.made == ['light']
    assert environment.main([]) == environment.main([]) == 0
    assert environment.made == ['light', 'full']
    environment.LIGHT_STAMP.unlink()
    assert environment.main(['--light']) == 0 and environment.made == ['light', 'full']
    environment.STAMP.write_text('of an older setup.cfg')
    assert environment.main(['--light']) == 0 and environment.made[-1] == 'light'


def test_the_light_environment_needs_no_compiler(environment, monkeypatch, capsys):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    assert environment.main(['--light']) == 0 and environment.made == ['light']
    assert environment.main([]) == 3 and environment.made == ['light']
    assert 'VIS-ENV-903' in capsys.readouterr().err


def test_what_runs_is_required_without_torch_and_everything_by_the_full_one(repository):
    import configparser
    config = configparser.ConfigParser()
    config.read(repository / 'setup.cfg')
    base = config['options']['install_requires']
    assert not any(name in base for name in ('torch', 'mm', 'supervision', 'faiss'))
    used = Path(repository / 'tools' / 'environment.py').read_text()
    # Its packages are locked and installed; what pip would ask of it, gradio's old pillow, is not.
    extras = [extra for extra in config['options.extras_require'] if extra != 'web']
    assert f"[{','.join(extras)}]" in used
