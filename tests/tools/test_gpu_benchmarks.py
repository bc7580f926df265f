"""The benchmarks for a GPU, small and on a CPU: what their rows promise on any device.

Times are not judged, and no row is left out for want of them: the limits are far, or the clock
stands still.
"""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scripts import load_script
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.faces.nn.select.selectors import RandomSelector
from vision.simulator.core.cluster import read_cluster

pytest.importorskip('mmdet')  # trained by one of them

heads, memory, training = (load_script(f'benchmarks/gpu_{name}.py')
                           for name in ('active_class', 'memory', 'training'))
CPU = torch.device('cpu')
NO_LIMIT = ['--seconds', '1e9']


def run(tool, folder, *arguments) -> dict:
    """What is in the JSON of a run."""
    path = folder / 'rows.json'
    assert tool.main(['--device', 'cpu', *arguments, '--json', str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize('tool', [heads, memory, training], ids=lambda tool: tool.__name__)
def test_a_device_that_is_not_here_is_said(tool, tmp_path):
    with pytest.raises(VisionError, match='VIS-ENV-515'):
        tool.main(['--device', f'cuda:{torch.cuda.device_count()}', '--json',
                   str(tmp_path / 'rows.json')])
    assert not list(tmp_path.iterdir())


# Heads -------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def of_heads(tmp_path_factory):
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    content = run(heads, tmp_path_factory.mktemp('heads'), '--quick', *NO_LIMIT)
    assert before == (torch.get_float32_matmul_precision(), torch.get_num_threads())
    return content


def small_bench(num: int = 600, *arguments: str):
    args = heads.build_parser().parse_args(['--batch', '32', '--steps', '2', '--json', '-',
                                            *arguments])
    args.device, args.begun = CPU, time.perf_counter()
    return args, heads.made_bench(args, num, 16)


def test_all_heads_are_there_with_all_figures(of_heads):
    rows = of_heads['rows']
    plan = [*heads.PLAN, *heads.ON_CPU]
    assert [(row['head'], row.get('share', 0), row['precision']) for row in rows] == plan
    for row in rows:
        assert (row['classes'], row['dim'], row['batch']) == (20_000, 16, 64)
        assert not {'error', 'skipped'} & set(row), row
        assert min(row['step_ms'], row['wall_ms'], row['host_ms']) > 0
        assert row['waits'] == 0 and row['peak_bytes'] is None  # there is no device to ask
        assert ('select_ms' in row) == ('grad_cosine' in row) == (row['head'] != 'dense')
        assert row.get('active') == (round(20_000 * row['share']) if 'share' in row else None)
        assert set(row.get('predicted', ())) == (
            set() if row['head'] == 'oracle' else {'assumed', 'measured'})
    made = {row['head']: row for row in rows if 'build_s' in row}
    assert set(made) == {'device', 'ivf'} and made['device']['index_bytes'] > 0
    assert 'renewal_s' in made['device'] and 'renewal_s' not in made['ivf']
    assert min(of_heads['machines']['measured'].values()) > 0 and len(of_heads['break_even']) == 8


def test_all_classes_have_the_exact_gradient_and_a_random_tenth_has_not(of_heads):
    error = {(row['head'], row.get('share'), row['precision']): row['grad_rel_error']
             for row in of_heads['rows'] if 'grad_rel_error' in row}
    assert error['full', None, 'tf32'] < 2e-3 and error['full', None, 'float32'] < 1e-5
    assert 1e-3 < error['full', None, 'bfloat16'] < 0.05
    assert error['random', 0.1, 'tf32'] == error['random ahead', 0.1, 'tf32'] > 0.3
    by_logits = [error['oracle', share, 'tf32'] for share in (0.01, 0.02, 0.1)]
    assert by_logits == sorted(by_logits, reverse=True) and by_logits[2] < 0.01
    for head in ('oracle', 'device', 'ivf'):
        assert error[head, 0.01, 'tf32'] < 0.3


def test_the_full_head_is_the_dense_one():
    """Step by step: the gradient of the next one is of rows as this one has left them."""
    _, bench = small_bench()
    batches = [bench.batch() for _ in range(4)]

    def gradients(step) -> torch.Tensor:
        found = []
        for number, (features, labels) in enumerate(batches):
            features = features.detach().clone().requires_grad_()
            # The dense one takes unit features as they are: their length has no gradient.
            step(number, functional.normalize(features), labels)
            found.append(features.grad)
        return torch.stack(found)

    def of_head(name: str, num_active: int) -> torch.Tensor:
        bench.reset_rows(bench.rows)
        selector = bench.selector(name, num_active)
        return gradients(lambda *batch: bench.step(selector, *batch))

    plain = heads.dense_step(bench)
    dense = gradients(lambda _, *batch: plain(*batch))
    torch.testing.assert_close(of_head('full', 600), dense, rtol=1e-3, atol=1e-6)
    assert (of_head('random', 60) - dense).norm() > 0.3 * dense.norm()


def test_a_selector_ahead_knows_the_labels_of_the_step_after():
    selected, expected = {}, {}

    class Selector:
        after_update = None

        def select(self, features, labels, step):
            selected[step] = labels

        def expect(self, labels, step):
            assert step - 1 in selected and step not in selected
            expected[step] = labels

    args, bench = small_bench()
    told = heads.ToldOfNext(Selector())
    heads.timed(args, bench, lambda number, *batch: told.select(*batch, number), told)
    assert list(selected) == list(range(heads.WARM_UP + args.steps))
    assert list(expected) == list(range(1, heads.WARM_UP + args.steps + 1))
    for step, labels in expected.items():
        assert step not in selected or torch.equal(selected[step], labels)


def test_heads_that_are_left_out_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, 'LARGE', 1000)
    monkeypatch.setattr(heads, 'measured_machine', lambda _: heads.GPUS['H200 (assumed)'])
    rows = run(heads, tmp_path, '--quick', '--seconds', '0')['rows']
    assert len(rows) == len(heads.PLAN) + len(heads.ON_CPU)
    assert [row['skipped'] for row in rows] == [
        'takes more memory than the device has', *['no time left'] * (len(rows) - 1)]


def test_a_head_or_a_size_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def no_room(*_):
        raise MemoryError('no room\nfor this')

    real = heads.made_bench
    monkeypatch.setattr(heads, 'measured_machine', lambda _: heads.GPUS['H200 (assumed)'])
    monkeypatch.setattr(heads, 'PLAN', (('random', 0.1, 'tf32'), ('full', 0, 'tf32')))
    monkeypatch.setattr(heads, 'ON_CPU', ())
    monkeypatch.setattr(heads, 'select_ms', lambda args, bench, selector: no_room() if isinstance(
        selector, RandomSelector) else 1.0)
    monkeypatch.setattr(heads, 'made_bench', lambda args, num, dim: no_room() if num == 900
                        else real(args, num, dim))
    rows = run(heads, tmp_path, '--sizes', '900x16', '600x16', '--batch', '32', '--steps', '2',
               *NO_LIMIT)['rows']
    assert [(row['classes'], row.get('head'), row.get('error')) for row in rows] == [
        (900, None, 'MemoryError: no room'), (600, 'random', 'MemoryError: no room'),
        (600, 'full', None)]
    assert rows[2]['step_ms'] > 0


# Memory ------------------------------------------------------------------------------------------
ALL_WAYS = [('free', None), ('block checkpoint', None), ('ours recompute', 0.4),
            ('ours both', 0.4), ('ours, nothing to do', 2.0), ('ours recompute', 0.6),
            ('ours both', 0.6)]


@pytest.fixture(scope='module')
def of_memory(tmp_path_factory):
    """Rows of the transformer; all but the idle one are compared bit by bit, for a CPU can."""
    tasks = memory.tasks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, 'tasks', lambda *args, **options: [
            replace(task, batch=8) for task in tasks(*args, **options)])
        patch.setattr(memory, 'COMPARED', {'transformer': (
            'free', 'block checkpoint', 'ours recompute', 'ours both')})
        patch.setattr(memory, 'BLOCK_STEPS', 1)
        return run(memory, tmp_path_factory.mktemp('memory'), '--quick', '--models',
                   'transformer', '--rounds', '1', *NO_LIMIT)


def small_memory_bench():
    task, = (task for task in memory.tasks(CPU, is_quick=True) if task.name == 'transformer-small')
    return memory.Bench(task, CPU, rounds=1)


def test_all_ways_are_there_with_all_figures(of_memory):
    link, *rows = of_memory['rows']
    assert link['model'] == 'link' and min(link['out_gb_per_s'], link['in_gb_per_s']) > 0
    assert [(row['method'], row['budget']) for row in rows] == ALL_WAYS
    free = rows[0]
    for row in rows:
        assert row['model'] == 'transformer' and 'failed' not in row
        assert row['first_peak_mb'] >= free['peak_mb'] * row['peak_ratio'] * (1 - 1e-9) > 0
        assert row['step_ratio'] == row['step_ms'] / free['step_ms'] and row['host_ms'] > 0


def test_peaks_are_within_their_budgets_and_near_them(of_memory):
    rows = of_memory['rows'][1:]
    free, checkpoint, idle = rows[0], rows[1], rows[4]
    assert free['peak_ratio'] == 1 and checkpoint['peak_ratio'] < 0.8
    assert idle['peak_ratio'] == pytest.approx(1, abs=0.01)
    assert idle['replayed'] == 0 and idle['drops'] == dict(drop=0, swap=0)
    for row in (each for each in rows if each['method'] in ('ours recompute', 'ours both')):
        assert 0.85 * row['budget'] < row['peak_ratio'] <= row['budget'] + 1e-6, row
        assert row['mode'] == 'planned' and not row['is_over']
        assert row['counted_mb'] == pytest.approx(row['peak_mb'], rel=0.01)
        assert sum(row['drops'].values()) > 0
        assert (row['replayed'] > 0) == (row['drops']['drop'] > 0)
        assert (row['link_gb'] > 0) == (row['host_mb'] > 0) == (row['drops']['swap'] > 0)
        assert row['drops']['swap'] == 0 or row['method'] == 'ours both'


def test_what_is_recomputed_or_swapped_is_bit_equal(of_memory):
    assert [row['bit_equal'] for row in of_memory['rows'][1:]] == [
        None if name == 'ours, nothing to do' else True for name, _ in ALL_WAYS]


class Off(memory.Method):
    """One gradient is off by a rounding, each time by another."""

    count = 0

    def step(self, task, model, *rest):
        loss = super().step(task, model, *rest)
        self.count += 1
        next(model.parameters()).grad.mul_(1 + self.count * 2**-20)
        return loss


def test_the_judge_of_bits_sees_a_rounding():
    bench = small_memory_bench()
    assert bench.is_bit_equal(bench.free) is True
    assert bench.is_bit_equal(memory.Method('again')) is True
    assert bench.is_bit_equal(Off('off')) is False


def test_free_runs_that_differ_judge_nobody():
    bench = small_memory_bench()
    bench.free = Off('free')
    assert bench.is_bit_equal(bench.free) is None
    assert bench.is_bit_equal(memory.Method('again')) is None


def test_what_is_saved_on_the_host_crosses_the_link_twice():
    bench = small_memory_bench()
    for row in memory.Turn(bench.task, CPU, 1).rows(
            [lambda bench: bench.free, *memory.rivals('transformer-small', CPU)[1]],
            float('inf')):
        assert 'failed' not in row, row
    assert row['method'] == 'save_on_cpu' and row['host_mb'] > 1
    assert row['link_gb'] == pytest.approx(2 * row['host_mb'] / 1e3)


def test_ways_for_which_no_time_is_left_say_so(tmp_path):
    rows = run(memory, tmp_path, '--quick', '--models', 'transformer', '--seconds', '0')['rows']
    assert [row['failed'] for row in rows[1:]] == [
        'no time was left for the rows from here on'] * 2  # of the most telling, of the others


def test_a_free_step_without_room_leaves_the_figures_of_others(tmp_path, monkeypatch):
    real = memory.Bench.peak

    def peak(bench, method):
        if method is bench.free:
            raise MemoryError('no room')
        return real(bench, method)
    monkeypatch.setattr(memory.Bench, 'peak', peak)
    free, checkpoint, *ours = run(memory, tmp_path, '--quick', '--models', 'transformer',
                                  '--rounds', '1', *NO_LIMIT)['rows'][1:]
    assert free['failed'] == 'MemoryError: no room' and free['traceback']
    assert checkpoint['peak_mb'] > 1 and checkpoint['step_ms'] > 0
    assert checkpoint['peak_ratio'] is None is checkpoint['step_ratio']
    assert len(ours) == 5 and all('that step failed' in row['failed'] for row in ours)


# Training ----------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def of_training(tmp_path_factory):
    """(content, what each step of a plain loop ran with): an eighteenth layer is deep enough."""
    steps, real = [], training.plain_step

    def watched(model, optimizer, data, dtype, scaler):
        images = data['inputs']
        steps.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
                      dtype and str(dtype).removeprefix('torch.'),
                      images.is_contiguous(memory_format=torch.channels_last)))
        real(model, optimizer, data, dtype, scaler)

    small = dict(type='LinearClsHead', num_classes=1000, in_channels=512)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'classifier', lambda backbone: dict(
            type='ImageClassifier', backbone=dict(backbone, depth=18), head=small))
        patch.setattr(training, 'WARM_UP', 1)
        patch.setattr(training, 'plain_step', watched)
        # It stands still where too little is left to compile, and enough for all else.
        patch.setattr(training, 'time', SimpleNamespace(
            monotonic=lambda: 0.0, perf_counter=time.perf_counter, time_ns=time.time_ns))
        content = run(training, tmp_path_factory.mktemp('training'), '--models', 'resnet50',
                      '--batch', '2', '--size', '32', '--steps', '2', '--seconds',
                      str(training.PREDICTION_S + 40))
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    return content, steps


def test_all_steps_and_runners_are_there(of_training):
    rows = of_training[0]['rows']
    *plain, compiled = training.VARIANTS
    runners = ['plain loop', 'MMEngine Runner', 'ExactRunner']
    assert [(row['part'], row['variant']) for row in rows] == [
        *(('step', name) for name in plain), *(('runner', name) for name in runners),
        ('step', compiled)]
    assert rows[-1]['left_out'] == '40 s were left' and 'step_ms' not in rows[-1]
    for row in rows[:-1]:
        if row['variant'] == 'MMEngine Runner':  # its wrapper wants a GPU for bfloat16
            assert row['failed'].startswith('AssertionError: ``Amp') and 'step_ms' not in row
            continue
        assert row['step_ms'] > 0 and row['batch'] == 2
        assert row['images_per_s'] == pytest.approx(2000 / row['step_ms'])


def test_a_variant_is_what_its_name_says(of_training):
    """TF32 of convolutions and products, type of autocast, channels last; of each step."""
    wanted = dict(float32=(False, False, None, False), default=(True, False, None, False),
                  tf32=(True, True, None, False), bfloat16=(True, True, 'bfloat16', False),
                  float16=(True, True, 'float16', False))
    wanted['bfloat16 channels_last'] = (True, True, 'bfloat16', True)
    assert of_training[1] == [options for options in wanted.values() for _ in range(3)]


def test_steps_are_predicted_and_runners_are_not(of_training, tmp_path):
    for row in of_training[0]['rows']:
        assert ('predicted_ms' in row) == (row['part'] == 'step' and 'step_ms' in row)
        if 'predicted_ms' in row:
            assert min(row['predicted_ms'], row['predicted_gib']) > 0
            assert row['error'] == pytest.approx(row['predicted_ms'] / row['step_ms'] - 1)
    (tmp_path / 'cluster.yaml').write_text(of_training[0]['cluster'])
    assert read_cluster(tmp_path / 'cluster.yaml').world_size == 1


def rows_of(monkeypatch, seconds: float, **steps) -> list[dict]:
    """Rows where a step of a variant takes so many milliseconds, or raises."""
    def step(config, batch, size, variant, args):
        if isinstance(found := steps.get(variant, 1.0), Exception):
            raise found
        return dict(step_ms=found)
    monkeypatch.setattr(training, 'step_row', step)
    monkeypatch.setattr(training, 'runner_row', lambda kind, *rest: dict(step_ms=2.0))
    args = training.build_parser().parse_args(['--models', 'resnet50', '--seconds', str(seconds)])
    args.device, args.began = CPU, time.monotonic()
    found, saved = [], []
    training.rows_of(args, found, lambda: saved.append(len(found)))
    assert saved == list(range(1, len(found) + 1))  # each as it comes
    return found


def test_a_step_that_fails_leaves_the_others(monkeypatch):
    rows = rows_of(monkeypatch, 1e9, tf32=MemoryError('no room'))
    assert len(rows) == len(training.VARIANTS) + 3
    for row in rows:
        assert row.get('failed') == (
            'MemoryError: no room' if row['variant'] == 'tf32' else None)
        assert ('step_ms' in row) == ('failed' not in row)


def test_steps_for_which_no_time_is_left_say_so(monkeypatch):
    rows = rows_of(monkeypatch, training.PREDICTION_S)
    assert len(rows) == len(training.VARIANTS) + 3
    assert all(row['left_out'].endswith(' s were left') for row in rows)


def test_a_detector_takes_a_step(monkeypatch):
    """Faster R-CNN on tiny pictures: its losses are added up and reach its first layer."""
    monkeypatch.setattr(training, 'WARM_UP', 0)
    args = SimpleNamespace(device=CPU, steps=1, models=['faster_rcnn'], batch=2, size=0)
    (config, batch, size, variants), = training.models(args).values()
    assert (batch, size, variants) == (2, (800, 1344), ('default', 'float16'))
    training.init_default_scope('vision')
    config['backbone'].update(depth=18)
    config['neck'].update(in_channels=[64, 128, 256, 512])
    row = training.step_row(config, batch, (64, 96), 'default', args)
    assert row['step_ms'] > 0 and row['images_per_s'] == pytest.approx(2000 / row['step_ms'])
