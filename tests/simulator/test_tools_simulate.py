"""The command: what it prints, what it writes, when it fails."""

import json
from pathlib import Path

import pytest

from vision.cli import simulate

ROOT = Path(__file__).parents[2]

ARGUMENTS = [str(ROOT / 'configs/classify/vit-tiny_imagenette160.py'), '--cluster',
             str(ROOT / 'configs/clusters/a100-dgx.yaml')]


def test_a_prediction_is_printed_and_written(tmp_path, capsys):
    files = [tmp_path / name for name in ('r.json', 't.json', 'm.png')]
    arguments = [*ARGUMENTS, '--gpus', '2', '--batch', '8', '--json', str(files[0]), '--trace',
                 str(files[1]), '--plot', str(files[2])]
    assert simulate.main(arguments) == 0
    text = capsys.readouterr().out
    assert 'samples/s (16 a step)' in text and 'fits' in text and 'MFU' in text
    assert json.loads(files[0].read_text())['samples_per_step'] == 16
    assert json.loads(files[1].read_text())['traceEvents'] and files[2].stat().st_size > 1000


def test_the_picture_has_streams_and_memory(monkeypatch, tmp_path):
    from matplotlib.figure import Figure
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *args, **more: (
        drawn.append(self), save(self, *args, **more)))
    assert simulate.main([*ARGUMENTS, '--gpus', '2', '--batch', '8', '--plot',
                          str(tmp_path / 'm.png')]) == 0
    above, below = drawn[0].axes
    assert [each.get_text() for each in above.get_yticklabels()] == ['compute', 'gradient']
    texts = '\n'.join(each.get_text() for each in above.texts)
    assert 'optimizer: ' in texts and 'gradients 0: ' in texts
    assert below.get_ylabel() == 'GiB' and above.get_xlim() == below.get_xlim()


def test_a_model_that_does_not_fit_says_so_in_its_exit_status(capsys):
    assert simulate.main([*ARGUMENTS, '--batch', '60000']) == 1
    assert 'out of memory' in capsys.readouterr().out


@pytest.mark.parametrize('option, value', [('--image-size', '3by4'), ('--budget', 'soon')])
def test_what_cannot_be_read_is_a_usage_error(option, value):
    with pytest.raises(SystemExit):
        simulate.main([*ARGUMENTS, option, value])
