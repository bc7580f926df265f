"""The benchmark of active-class selection runs, and its fidelity figures mean what they say."""

import json

import numpy as np
import pytest
import torch
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import save_checkpoint

bench_tool = load_script('benchmarks/active_class.py')
plot_tool = load_script('benchmarks/plot_active_class.py')


@pytest.fixture(autouse=True)
def keep_threads():
    """The tool sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp('bench') / 'r.json'
    assert bench_tool.main(['--quick', '--batch', '32', '--dim', '32', '--json', str(path)]) == 0
    return path


def test_every_selector_has_a_row_with_the_promised_columns(result):
    content = json.loads(result.read_text())
    rows = {row['selector']: row for row in content['rows']}
    assert set(rows) == set(bench_tool.NAMES)
    promised = {'classes', 'dim', 'batch', 'selector', 'active', 'step_ms', 'run_ms', 'data',
                'full_step_ms', 'random10_step_ms', 'grad_cosine', 'grad_rel_error',
                'outside_mass', 'extra_bytes'}
    for row in rows.values():
        assert promised <= set(row) and row['run_ms'] > 0 and row['data'] == 'synthetic'
    assert rows['ivf']['outside_mass'] <= rows['random']['outside_mass']
    assert rows['oracle']['grad_cosine'] > rows['random']['grad_cosine']
    # The whole run holds what no single step does.
    assert rows['ivf']['run_steps'] == 7 and rows['ivf']['renewal_s'] > 0
    parts_s = rows['ivf']['renewal_s'] + rows['ivf']['checkpoint_s']
    assert rows['ivf']['run_ms'] * rows['ivf']['run_steps'] > 1000 * parts_s
    assert rows['ivf']['extra_bytes'] > 4000 * 32 * 2  # fp16 codes at least
    assert content['settings']['threads'] == 1
    assert result.with_suffix('.md').read_text().count('\n') == len(rows) + 2


def test_the_plot_is_drawn(result, tmp_path):
    out = tmp_path / 'curve.png'
    assert plot_tool.main([str(result), '--out', str(out)]) == 0
    assert out.stat().st_size > 1000


def made(num=500, *options):
    args = bench_tool.build_parser().parse_args(['--batch', '16', '--json', 'x', *options])
    return bench_tool.Bench(args, bench_tool.synthetic_rows(num, 16, 0))


def test_all_classes_have_the_exact_gradient():
    bench = made()
    exact = bench_tool.fidelity(bench, bench.selector('full', 500))
    assert exact['grad_cosine'] == pytest.approx(1, abs=1e-5)
    assert exact['grad_rel_error'] < 1e-5 and abs(exact['outside_mass']) < 1e-5
    less = bench_tool.fidelity(bench, bench.selector('random', 50))
    assert less['grad_cosine'] < 0.99 and less['outside_mass'] > 0.05


def test_rows_that_stand_for_the_others_are_nearer_where_the_mass_is_spread():
    found = {}
    for correction in ('none', 'sampled'):
        bench = made(2000, '--scale', '4', '--margin', '0', '--random-frac', '0.5',
                     '--correction', correction)
        found[correction] = bench_tool.fidelity(bench, bench.selector('ivf', 400), num_batches=4)
    assert found['none']['outside_mass'] > 0.5 > 10 * abs(found['sampled']['outside_mass'])
    assert found['sampled']['grad_rel_error'] < 0.75 * found['none']['grad_rel_error']


def test_rows_put_back_are_at_rest():
    bench = made()
    selector = bench.selector('random', 100)
    for step in range(3):
        bench.step(selector, step, *bench.batch())
    everything = torch.arange(500)
    assert not torch.equal(bench.store.pull(everything), bench.rows)
    bench.reset_rows(bench.rows)
    assert torch.equal(bench.store.pull(everything).detach(), bench.rows)
    turned = bench_tool.moved(bench.rows, 0.95, bench.generator)
    assert (turned * bench.rows).sum(1).mean() == pytest.approx(0.95, abs=0.02)


def test_growth_by_hand():
    rows = [dict(selector=name, nprobe=nprobe, classes=c, run_ms=s)
            for name, nprobe in (('ivf', 12), ('ivf', 64), ('full', None))
            for c, s in ((100, 10.0), (10_000, 100.0))]
    rows[3]['run_ms'] = 1000.0
    assert bench_tool.growth(rows) == {'ivf, nprobe 12': 0.5, 'ivf, nprobe 64': 1.0, 'full': 0.5}


def test_live_features_are_what_a_step_sees(tmp_path):
    state = dict(rows=torch.randn(500, 16), features=torch.randn(20, 16),
                 labels=torch.arange(20) * 3)
    save_checkpoint(dict(state_dict=state), tmp_path / 'live.pth')
    rows, live = bench_tool.read_rows(tmp_path / 'live.pth')
    args = bench_tool.build_parser().parse_args(['--batch', '16', '--json', 'x'])
    features, labels = bench_tool.Bench(args, rows, 0, live).batch()
    assert features.requires_grad and (labels % 3 == 0).all()
    assert torch.equal(features.detach(), state['features'][labels // 3])


def test_the_fewest_rows_for_a_good_gradient_are_found(monkeypatch):
    monkeypatch.setattr(bench_tool, 'measure_selector', lambda _, name, active, options: dict(
        options, active=active))
    monkeypatch.setattr(bench_tool, 'PROBED', (1, 200))
    bench = made(4000, '--drift', '1')
    found = {name: bench_tool.measure_reached(bench, name) for name in ('oracle', 'ivf', 'random')}
    assert found['oracle']['is_reached'] and found['ivf']['is_reached']
    assert found['oracle']['active'] <= found['ivf']['active'] < 0.2 * 4000
    assert found['ivf']['nprobe'] == 200  # one list does not do
    assert not found['random']['is_reached'] and found['random']['active'] == 2800


def test_rows_of_a_file_and_files_that_hold_none(tmp_path):
    np.save(tmp_path / 'rows.npy', 3 * np.eye(4))
    rows, live = bench_tool.read_rows(tmp_path / 'rows.npy')
    assert torch.equal(rows, torch.eye(4)) and live is None
    np.save(tmp_path / 'flat.npy', np.ones(4))
    with pytest.raises(VisionError, match='1052'):
        bench_tool.read_rows(tmp_path / 'flat.npy')
