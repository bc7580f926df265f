"""vision logs: what is drawn and printed, and wrong inputs."""

import json

import cv2
import numpy as np
import pytest

from vision.cli.logs import main
from vision.common.core.errors import VisionError


@pytest.fixture
def logs(tmp_path):
    paths = []
    for run, scale in (('a', 1), ('b', 3)):
        path = tmp_path / run / '20260101_000000' / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(json.dumps(dict(
            iter=step, step=step, loss=scale * 100 / step, acc=step, time=0.5 * scale,
            data_time=0.1)) for step in range(10, 210, 10)))
        paths.append(str(tmp_path / run))
    return paths


def test_curves_of_two_runs(logs, tmp_path, capsys):
    out = tmp_path / 'out' / 'curves.png'
    assert main(['plot', *logs, '--keys', 'loss', 'acc', '--out', str(out)]) == 0
    assert '4 curves, 80 points' in capsys.readouterr().out
    picture = cv2.imread(str(out))
    assert picture is not None
    # Four colours of lines beside black, white and grey.
    pixels = picture.reshape(-1, 3).astype(int)
    strong = pixels[np.ptp(pixels, axis=1) > 100] // 32
    assert len(np.unique(strong, axis=0)) >= 4


@pytest.mark.parametrize('suffix', ['.pdf', '.svg'])
def test_other_formats(logs, tmp_path, suffix):
    assert main(['plot_curve', logs[0], '--out', str(tmp_path / f'x{suffix}')]) == 0
    content = (tmp_path / f'x{suffix}').read_bytes()
    assert content.startswith(b'%PDF') or b'<svg' in content


def test_summary_and_times_are_printed(logs, capsys):
    assert main(['summary', logs[0], '--keys', 'loss']) == 0
    printed = capsys.readouterr().out
    assert '0.5 ' in printed and 'acc' not in printed
    assert main(['cal_train_time', *logs]) == 0
    printed = capsys.readouterr().out
    assert '0.5000 s an iteration, 20 %' in printed and '1.5000 s an iteration, 7 %' in printed


def test_wrong_inputs(logs, tmp_path):
    with pytest.raises(VisionError, match='VIS-INPUT-1797'):
        main(['plot', logs[0], '--out', str(tmp_path / 'x.txt')])
    with pytest.raises(VisionError, match='VIS-INPUT-1792'):
        main(['plot', logs[0], '--keys', 'bbox_mAP', '--out', str(tmp_path / 'x.png')])
    for words in (['plot', *logs, '--legend', 'one'], ['draw', logs[0]], ['plot']):
        with pytest.raises(SystemExit):
            main([*words, *(['--out', str(tmp_path / 'x.png')] if words[0] == 'plot' else [])])
