"""The experiment: the rule by hand, intervals by hand, paired batches, rows that are refused."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scripts import load_script

from vision.common.core.errors import VisionError

tool = load_script('benchmarks/active_class_experiment.py')
task = sys.modules['active_class_task']

SMALL = replace(task.Settings(), num_classes=200, batch=8, trunk_steps=3, steps=4, warmup=2,
                num_scored=32)


def small_glyphs():
    """220 characters, the last 20 unseen, in two training and three held-out styles of noise."""
    glyphs = task.Glyphs.__new__(task.Glyphs)
    glyphs.images = np.random.default_rng(0).integers(0, 256, (1100, 32, 32), dtype=np.uint8)
    places = np.arange(1100).reshape(220, 5)

    def samples(labels, styles):
        return np.stack([places[labels][:, styles].ravel(),
                         np.repeat(labels, len(styles))], axis=1)
    glyphs.num_classes = 200
    glyphs.train, glyphs.val = samples(np.arange(200), [0, 1]), samples(np.arange(220), [2, 3, 4])
    glyphs.is_gallery = np.tile([True, False, False], 220)
    return glyphs


def row(arm, seed, rank1, hits=(3, 1), objective='cosface'):
    return dict(arm=arm, seed=seed, objective=objective, rank1=rank1, commit='abc',
                rank1_unseen=rank1, loss_train=0.5, loss_held_out=1.0, loss_own=0.4,
                settings=asdict(SMALL), trace=[1.0], hits=tool.packed(np.array(hits)))


def rows_of(**by_arm):
    return [row(arm.replace('_', '-'), seed, value) for arm, values in by_arm.items()
            for seed, value in enumerate(values)]


def test_the_rule_by_hand():
    rows = rows_of(full=(0.90, 0.92), random_1=(0.80, 0.83), random_10=(0.88, 0.90),
                   oracle_1=(0.90, 0.914), ivf_1=(0.91, 0.825), forest_1=(0.87, 0.90))
    verdict = tool.decide(rows)
    assert verdict['oracle-1'] == dict(near_full=True, better_than_random=True)
    assert verdict['ivf-1'] == dict(near_full=False, better_than_random=False)  # below in seed 1
    assert verdict['forest-1'] == dict(near_full=False, better_than_random=False)  # mean below 10
    assert verdict['refuted'] is False
    worse = rows_of(random_1=(0.80, 0.83), oracle_1=(0.82, 0.81))
    assert tool.decide(worse)['refuted'] is True


def test_nothing_is_decided_while_a_seed_is_missing():
    rows = rows_of(full=(0.9, 0.9), random_1=(0.8, 0.8), random_10=(0.8, 0.8), ivf_1=(0.9,))
    verdict = tool.decide(rows)
    assert verdict['ivf-1'] == dict(near_full=None, better_than_random=None)
    assert verdict['refuted'] is None
    assert tool.decide([])['seeds'] == []


def test_difference_by_hand():
    """Ten characters of three probes; one arm finds one probe more of each in the second seed."""
    hits = np.array([2, 1] * 5)
    pairs = [(row('ivf-1', seed, (15 + 10 * seed) / 30, hits + seed), row('full', seed, 0.5, hits))
             for seed in (0, 1)]
    found = tool.difference(pairs)
    assert found['points'] == [0.0, 33.333] and found['mean'] == 16.667
    assert found['interval'] == [16.667, 16.667]  # every character gains the same
    one = tool.difference([(row('ivf-1', 0, 16 / 30, [3, *hits[1:]]), row('full', 0, 0.5, hits))])
    low, high = one['interval']
    assert low == 0.0 and one['mean'] == 3.333 < high < 15


def test_hits_survive_packing():
    hits = np.random.default_rng(0).integers(0, 4, 22_000)
    assert (tool.unpacked(tool.packed(hits)) == hits).all() and len(tool.packed(hits)) < 10_000


def test_batches_depend_on_seed_and_step_alone():
    glyphs = small_glyphs()
    (a, labels), (b, same), (c, other) = (
        glyphs.batch(seed, 30, SMALL) for seed in (0, 0, 1))
    assert torch.equal(a, b) and torch.equal(labels, same) and not torch.equal(labels, other)
    assert a.shape == (8, 1, 32, 32) and not torch.equal(a, c)
    seen = torch.cat([glyphs.batch(0, step, SMALL)[1] for step in range(400 // 8)])
    assert (seen.bincount() == 2).all()  # an epoch has every picture once


def test_shifts_move_the_picture_and_fill_with_black():
    glyphs = small_glyphs()
    still = glyphs.pictures(np.array([7]))
    moved = glyphs.pictures(np.array([7]), 2, np.array([[2 + 1], [2 - 2]]))
    assert torch.equal(moved[0, 0, :-1, 2:], still[0, 0, 1:, :-2])
    assert (moved[0, 0, -1] == -1).all() and (moved[0, 0, :, :2] == -1).all()


def test_learning_rates():
    run = task.Run(SMALL, 0, task.OBJECTIVES['cosface']())
    rates = []
    for run.step in range(SMALL.trunk_steps + SMALL.steps):
        rates.append(run.rate())
    assert rates[:4] == [0.5, 1.0, 1.0, 1.0] and rates[5] == pytest.approx(0.5)
    assert all(a >= b for a, b in zip(rates[3:], rates[4:], strict=False))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Three arms of a tiny experiment; the third in a second call."""
    folder = tmp_path_factory.mktemp('experiment')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, 'Settings', lambda: SMALL)
        patch.setattr(tool, 'load_glyphs', lambda *_: small_glyphs())
        for name, value in dict(CURVE_STEPS=2, NUM_LIVE=60, NUM_ROUNDS=1, HEAD_STEPS=10).items():
            patch.setattr(tool, name, value)
        options = ['--seeds', '0', '--work-dir', str(folder / 'w'),
                   '--json', str(folder / 'x.json')]
        assert tool.main(['--arms', 'full', 'positives', *options]) == 0
        before = json.loads((folder / 'x.json').read_text())['rows']
        assert tool.main(['--arms', 'full', 'random-10', *options]) == 0
        assert tool.main(['--arms', 'full', 'ivf-1', '--time', *options]) == 0
    return folder, before, json.loads((folder / 'x.json').read_text())


def test_finished_arms_are_kept_and_missing_ones_made(finished):
    _, before, content = finished
    assert content['rows'][:2] == before
    assert [each['arm'] for each in content['rows']] == ['full', 'positives', 'random-10']
    assert content['head_ms']['ivf-1']['best'] > 0 and 'backbone' in content['head_ms']
    assert content['rule'] == tool.RULE


def test_all_arms_start_from_one_trunk_and_end_apart(finished):
    rows = finished[2]['rows']
    assert len({each['trunk'] for each in rows}) == 1
    assert len({each['loss_train'] for each in rows}) == 3


def test_two_jobs_find_what_one_finds(finished, tmp_path, monkeypatch):
    """Threads in the place of processes: what each of those does is ``run_alone``."""
    monkeypatch.setattr(tool, 'Settings', lambda: SMALL)
    monkeypatch.setattr(tool, 'load_glyphs', lambda *_: small_glyphs())
    monkeypatch.setattr(tool, 'CURVE_STEPS', 2)
    monkeypatch.setattr(tool, 'ProcessPoolExecutor',
                        lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    assert tool.main(['--arms', 'full', 'positives', 'random-10', '--seeds', '0', '--jobs', '2',
                      '--work-dir', str(tmp_path / 'w'), '--json', str(tmp_path / 'x.json')]) == 0

    def figures(rows):
        return sorted((each['arm'], each['trunk'], each['rank1'], each['loss_train'])
                      for each in rows)
    rows = json.loads((tmp_path / 'x.json').read_text())['rows']
    assert figures(rows) == figures(finished[2]['rows'])


def test_live_features_of_the_full_arm_are_kept(finished):
    content = torch.load(finished[0] / 'w' / 'live_cosface_0.pth', weights_only=True)['state_dict']
    assert content['rows'].shape == (200, 64) and len(content['features']) == \
        len(content['labels']) == 64


def test_rows_of_other_settings_or_code_are_refused(finished, monkeypatch):
    rows = finished[2]['rows']
    tool.refuse_others(rows, SMALL)
    with pytest.raises(VisionError, match='VIS-RUN-1248(.|\n)*other settings'):
        tool.refuse_others(rows, replace(SMALL, lr=1.0))
    monkeypatch.setitem(tool.ARMS, 'random-10', replace(tool.ARMS['random-10'], share=0.2))
    with pytest.raises(VisionError, match='VIS-RUN-1249(.|\n)*--again random-10'):
        tool.refuse_others(rows, SMALL)


def test_pilots_change_settings_by_name():
    changed = tool.with_values(task.Settings(), ['lr=0.5', 'batch=32'])
    assert (changed.lr, changed.batch) == (0.5, 32)
    with pytest.raises(VisionError, match='VIS-RUN-1241'):
        tool.with_values(task.Settings(), ['learning=0.5'])


def test_a_run_is_the_same_again():
    first, again = (task.trace(task.ARMS['ivf-1'], 'cosface', 4) for _ in range(2))
    assert first == again != task.trace(task.ARMS['random-1'], 'cosface', 4)


def test_the_picture_is_drawn(finished, tmp_path):
    plot = load_script('benchmarks/plot_active_class_experiment.py')
    assert plot.main([str(finished[0] / 'x.json'), '--out', str(tmp_path / 'x.png')]) == 0
    assert (tmp_path / 'x.png').stat().st_size > 5000
    (tmp_path / 'none.json').write_text(json.dumps(dict(rows=[])))
    with pytest.raises(VisionError, match='VIS-INPUT-1243'):
        plot.main([str(tmp_path / 'none.json'), '--out', str(tmp_path / 'y.png')])
