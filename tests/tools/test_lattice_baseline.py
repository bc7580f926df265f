"""The benchmark from annotation to JSON, on a generated video and random weights."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch


@pytest.fixture(scope='module')
def outcome(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp('baseline')
    subprocess.run([sys.executable, 'datasets/moving_sprites/prepare.py', '--out',
                    str(folder / 'sprites'), '--num-train', '1', '--num-val', '2',
                    '--num-frames', '14'], cwd=repository, check=True, capture_output=True)
    (folder / 'config.py').write_text(
        "model = dict(type='LatticeDetector', detector=dict(type='MMDetDetector', config="
        f"'{repository}/configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py', "
        'allow_random=True))\n')
    from vision.lattice.mm.detector import LatticeDetector
    model = LatticeDetector(detector=dict(type='none'))
    torch.save(dict(state_dict=model.state_dict()), folder / 'pru.pth')
    tool = repository / 'tools' / 'benchmarks' / 'lattice_baseline.py'
    spec = importlib.util.spec_from_file_location('lattice_baseline', tool)
    module = importlib.util.module_from_spec(spec)
    sys.modules['lattice_baseline'] = module
    spec.loader.exec_module(module)
    assert module.main([
        '--ann', str(folder / 'sprites/annotations/val.json'), '--images',
        str(folder / 'sprites/val'), '--config', str(folder / 'config.py'), '--checkpoint',
        str(folder / 'pru.pth'), '--json', str(folder / 'rows.json'), '--gaps', '1,4',
        '--adaptive', '0.5', '--oracle', '--full-frames', '6']) == 0
    return folder


def test_rows_have_every_field(outcome):
    content = json.loads((outcome / 'rows.json').read_text())
    assert [row['method'] for row in content['rows']] == ['detect', 'linear', 'lattice',
                                                          'oracle', 'adaptive']
    for row in content['rows']:
        assert {'dataset', 'method', 'setting', 'protocol', 'map50', 'map5095', 'map50_slow',
                'map50_medium', 'map50_fast', 'ms_per_frame', 'fps_end_to_end', 'keyframe_rate',
                'frames'} <= row.keys()
        assert row['frames'] == 28 and row['ms_per_frame'] > 0
        if row['timing'] == 'composed':
            assert sum(row['parts_ms'].values()) == pytest.approx(row['ms_per_frame'], abs=0.02)
    rates = [row['keyframe_rate'] for row in content['rows']]
    assert rates[0] == 1 and rates[1] == rates[2] == pytest.approx(10 / 28, abs=1e-3)
    assert content['judged_classes'] and content['commit'] is not None
    parts = {row['method']: row['parts_ms'] for row in content['rows']}
    assert parts['linear']['propagate'] == parts['detect']['refine'] == 0
    assert all(value > 0 for value in parts['lattice'].values())
    assert {entry['speed'] for entry in content['lattice_minus_linear']} == {'all', 'medium_fast'}
    # Two videos are too few to draw from.
    assert all(entry['interval_95'] == [None, None] and entry['videos'] == 2
               for entry in content['lattice_minus_linear'])


def test_table_is_beside_the_rows(outcome):
    lines = (outcome / 'rows.md').read_text().splitlines()
    assert len(lines) == 2 + 5 and lines[2].startswith('| detect | t1-s0 |')


def test_the_curve_is_a_picture(outcome, repository):
    subprocess.run([sys.executable, 'tools/analysis/plot_lattice.py', str(outcome / 'rows.json'),
                    '--out', str(outcome / 'curve.png')], cwd=repository, check=True,
                   capture_output=True)
    import cv2
    assert cv2.imread(str(outcome / 'curve.png')).shape[1] > 600


def test_the_upper_bound_puts_boxes_on_their_objects(outcome):
    import numpy as np

    from vision.lattice.core.cocovid import load_cocovid
    from vision.lattice.core.structures import FrameBoxes, FrameResult
    tool = sys.modules['lattice_baseline']
    frames = load_cocovid(outcome / 'sprites/annotations/val.json').videos[0].frames[:5]
    truth = frames[0]
    start = FrameBoxes(truth.boxes_xyxy, np.full(len(truth.labels), 0.7), truth.labels,
                       np.arange(1, len(truth.labels) + 1))
    results = [FrameResult(t, start, 'detected', is_keyframe=t in (0, 4)) for t in range(5)]
    moved = tool.true_positions(results, frames)[2].boxes
    there = {int(i): box for i, box in zip(frames[2].instance_ids, frames[2].boxes_xyxy,
                                           strict=True)}
    expected = [there[int(i)] for i in truth.instance_ids if int(i) in there]
    assert len(expected) and np.array_equal(moved.boxes_xyxy, expected)


def test_another_librarys_scope_does_not_matter(outcome):
    from mmengine.registry import DefaultScope

    from vision.lattice.mm.loading import load_lattice
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = load_lattice(str(outcome / 'config.py'), str(outcome / 'pru.pth'))
        assert len(model.classes) == 8
