"""Summary, refusals and picture of the comparison of full, active and random softmax."""

import importlib.util
import json
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError

ROOT = Path(__file__).resolve().parents[2]


def load_tool(*parts):
    path = ROOT.joinpath('tools', *parts)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


tool = load_tool('benchmarks', 'glyph_accuracy.py')


def row(arm, seed, accuracy):
    values = dict.fromkeys(tool.METRICS, accuracy)
    curve = [dict(iter=step, **values) for step in (10, 20)]
    return dict(arm=arm, seed=seed, iters=20, commit='abc', curve=curve, **values)


def test_differences_are_of_the_same_seed():
    rows = [row('active', 1, 0.91), row('full', 0, 0.90), row('full', 1, 0.92),
            row('active', 0, 0.905)]
    summary = tool.summarize(rows)
    assert summary['active']['accuracy'] == dict(mean=90.75, std=0.354, minus_full=[0.5, -1.0])
    assert summary['full']['num_seeds'] == 2 and 'random' not in summary


def test_results_of_other_settings_are_not_mixed(tmp_path):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(dict(settings=dict(config=tool.CONFIG, iters=7, threads=1))))
    with pytest.raises(VisionError, match='VIS-RUN-1240'):
        tool.main(['--iters', '8', '--json', str(path)])


def test_a_failed_run_shows_the_end_of_its_log(tmp_path):
    args = tool.build_parser().parse_args(['--json', str(tmp_path / 'x.json'),
                                           '--work-dir', str(tmp_path)])
    with pytest.raises(VisionError, match='VIS-RUN-1241(.|\n)*no_such_option'):
        tool.call('train.py', args, 'full', 0, 300, tmp_path / 'full',
                  'model.no_such_option=1')


def test_figures_of_the_newest_log(tmp_path):
    assert tool.scalars(tmp_path) == []
    folder = tmp_path / '2026' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"loss": 1.5, "iter": 50}\n{"loss": 1.0, "iter": 100}\n')
    assert [line['iter'] for line in tool.scalars(tmp_path)] == [50, 100]


def test_validations_stand_at_the_step_before_them():
    metrics = dict.fromkeys(tool.METRICS.values(), 0.5)
    lines = [dict(iter=50, loss=1.0), dict(metrics, step=0), dict(iter=100, loss=1.0),
             dict(metrics, step=0)]
    assert [point['iter'] for point in tool.curve_of(lines)] == [50, 100]


def test_the_picture_needs_rows(tmp_path):
    plot = load_tool('analysis', 'plot_glyph_accuracy.py')
    path, picture = tmp_path / 'x.json', tmp_path / 'x.png'
    path.write_text(json.dumps(dict(rows=[])))
    with pytest.raises(VisionError, match='VIS-INPUT-1243'):
        plot.main([str(path), '--out', str(picture)])
    rows = [row(arm, seed, 0.9) for arm in tool.ARMS for seed in (0, 1)]
    path.write_text(json.dumps(dict(rows=rows, step_ms=dict.fromkeys(tool.ARMS, 100.0))))
    assert plot.main([str(path), '--out', str(picture)]) == 0 and picture.stat().st_size > 5000
