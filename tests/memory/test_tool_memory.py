"""benchmarks/memory.py, its picture and `vision memory`, on networks of a second."""

import json
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script
from torch import nn

from vision.cli import memory as report
from vision.common.core.errors import VisionError
from vision.common.core.report import write_report
from vision.memory.core.graph import Call, Trace, Value

ROOT = Path(__file__).resolve().parents[2]

memory = load_script('benchmarks/memory.py')
picture = load_script('benchmarks/plot_memory.py')
models, rivals = sys.modules['memory_models'], sys.modules['memory_rivals']


class Block(nn.Sequential):
    """As in a residual network: norm, ReLU in place, dropout, an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1),
                         nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Dropout(0.1))

    def forward(self, x):
        return super().forward(x) + x


def tiny_task(num_blocks: int = 8):
    """Eight blocks of 512 KiB maps: what waits for backward dwarfs what one operator needs."""
    def build():
        body = nn.Sequential(nn.Conv2d(3, 8, 1), *(Block(8) for _ in range(num_blocks)))
        return models.Classifier(Listed(body), 8).train()

    return models.Task('tiny', build, models.labelled((3, 64, 64)),
                              models.classification_loss,
                              lambda model: list(model.backbone.body)[1:], 4, 'tiny')


class Listed(nn.Module):
    """A backbone gives a tuple of maps."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return (self.body(x),)


@pytest.fixture(scope='module')
def bench():
    torch.set_num_threads(1)
    return memory.Bench(tiny_task(), fidelity_steps=3, rounds=2)


def test_the_unmanaged_step_is_its_own_measure(bench):
    row = bench.row(bench.unmanaged)
    assert row['peak_ratio'] == row['saved_ratio'] == 1 and row['bit_equal']
    assert row['extra_op_time'] == pytest.approx(0, abs=1e-9)
    saved_by_hand = 8 * 5 * 512 * 1024  # input, convolution, norm, mask, dropout of each block
    assert 0.5 * saved_by_hand < bench.plain.saved < bench.peak_bytes < 1.5 * saved_by_hand


class DoublesGradients(memory.Method):
    def step(self, task, model, *args, **kwargs):
        loss = super().step(task, model, *args, **kwargs)
        model.head.bias.grad *= 2
        return loss


class LooksTwice(memory.Method):
    """Runs forward once more for nothing, where somebody counts."""

    def step(self, task, model, batch, meters=(), **kwargs):
        with torch.no_grad():
            for meter in meters:
                with meter:
                    task.loss(model, batch)
        return super().step(task, model, batch, meters, **kwargs)


def test_a_wrong_gradient_and_work_done_twice_are_found(bench):
    wrong = bench.row(DoublesGradients('wrong'))
    assert not wrong['bit_equal'] and wrong['peak_ratio'] == 1
    assert any(name.startswith(('loss', 'weight', 'gradient')) for name in wrong['differs'])
    twice = bench.row(LooksTwice('twice'))
    assert 0.2 < twice['extra_op_time'] < 0.8  # of forward and backward, forward


@pytest.mark.parametrize(('how', 'highest'), [('non-reentrant', 0.5), ('reentrant', 0.5),
                                              ('selective', 0.9)])
def test_checkpointing_saves_memory_and_moves_norms_twice(bench, how, highest):
    row = bench.row(memory.make_rivals()[['non-reentrant', 'reentrant',
                                          'selective'].index(how) + 1])
    assert row['peak_ratio'] < highest and row['saved_ratio'] < highest
    assert row['extra_op_time'] > 0.02
    assert not row['bit_equal'] and all(name.startswith('buffer') for name in row['differs'][:3])
    assert not hasattr(bench.model.backbone.body[1].forward, 'func')  # nothing is left wrapped


def test_save_on_cpu_holds_everything_on_the_host_and_changes_nothing(bench):
    method = rivals.SavedOnCpu('save_on_cpu')
    row = bench.row(method)
    assert row['bit_equal'] and row['peak_ratio'] < 0.3 and row['saved_ratio'] < 0.05
    assert row['host_pool_ratio'] > 0.9 and row['transfer_time'] > 0


def test_save_on_cpu_gives_every_kind_of_tensor_back():
    method = rivals.SavedOnCpu('save_on_cpu')
    for tensor in (torch.randn(3, 4).T, torch.randn(5).bfloat16(), torch.tensor(True),
                   torch.arange(6).view(2, 3), torch.tensor(0.5, requires_grad=True)):
        assert torch.equal(rivals.from_host(method.to_host(tensor)), tensor)


def test_the_compiler_saves_less_the_less_it_may(bench):
    rows = [bench.row(method) for method in memory.make_rivals()
            if isinstance(method, rivals.Compiled) and method.budget in (0.5, 0.1)]
    assert 1 > rows[0]['saved_ratio'] > rows[1]['saved_ratio']


@pytest.mark.parametrize('name', rivals.OURS)
def test_ours_keeps_to_the_budget_and_changes_nothing(bench, name):
    method = next(each for each in memory.make_ours([0.5], bench.peak_bytes) if each.name == name)
    row = bench.row(method)
    method.close()
    assert row['bit_equal'], row['differs']
    assert row['peak_ratio'] <= 1.05 * 0.5
    assert row['extra_op_time'] > 0.01 or row['host_pool_ratio'] > 0.1  # something was left out
    if name == 'ours recompute':
        assert row['own_extra'] > 0  # how much is a matter of times, which a test has no say in


def test_largest_batch(bench):
    assert bench.max_batch(memory.Method) == (4, 1)  # the cap is the peak of the base batch
    checkpointed, first_ratio = bench.max_batch(lambda: memory.make_rivals()[1])
    assert 8 <= checkpointed <= 32 and first_ratio <= 1
    live = []
    for size in (checkpointed, checkpointed + 1):
        live.append(bench.read(memory.make_rivals()[1], bench.task.batches(size)).peak)
    assert live[0] <= bench.peak_bytes < live[1]


def test_steps_take_turns(bench):
    ratios = bench.step_ratios([bench.unmanaged, memory.make_rivals()[1]], lambda: None)
    assert ratios[bench.unmanaged] == 1 and len(ratios) == 2


def test_rows_of_a_run(tmp_path):
    path = tmp_path / 'rows.json'
    assert memory.main(['transformer', '--quick', '--budgets', '0.5', '--methods', 'ours r',
                        'block checkpoint', '--json', str(path)]) == 0
    rows = json.loads(path.read_text())['rows']
    assert [row['method'] for row in rows] == ['unmanaged', 'block checkpoint',
                                               'block checkpoint, reentrant', 'ours recompute']
    for row in rows:
        assert {'model', 'batch', 'budget', *memory.COLUMNS} <= row.keys()
    assert rows[-1]['max_batch'] > rows[0]['max_batch']
    assert picture.main([str(path), '--out', str(tmp_path / 'memory_transformer.png')]) == 0
    assert (tmp_path / 'memory_transformer.png').stat().st_size > 5000


def test_what_a_rival_cannot_do_is_a_row_with_its_reason(monkeypatch):
    class Fails(memory.Method):
        def step(self, *args, **kwargs):
            raise NotImplementedError('no such operator\nand more')

    monkeypatch.setattr(memory, 'make_rivals', lambda: [memory.Method(), Fails('fails')])
    monkeypatch.setitem(memory.SMALL_TASKS, 'transformer', lambda: tiny_task(2))
    args = memory.build_parser().parse_args(['transformer', '--methods', 'fails', '--rounds', '1',
                                             '--fidelity-steps', '1', '--no-max-batch'])
    _, row = memory.measure(args, tiny_task(2))
    assert row['failed'] == 'NotImplementedError: no such operator' and 'peak_ratio' not in row


def test_nothing_is_left_after_many_steps_and_an_exception():
    for row in memory.leak(num_steps=5):
        assert row['live_bytes'] == row['bytes_more'] == row['tensors_more'] == 0


def test_resident_peak_is_seen():
    """In this process: 32 MiB straight from the system, which a thread must see between two
    readings."""
    with memory.ResidentPeak() as resident:
        with mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
            held[::4096] = b'x' * 2**13
            memory.time.sleep(0.05)
    assert 30e6 < resident.peak_bytes < 45e6


@pytest.mark.parametrize('arguments', [['--budgets', '1.5'], ['--budgets', '0'],
                                       ['--rounds', '0'], ['--fidelity-steps', '0']])
def test_impossible_numbers_are_refused_before_work(arguments):
    with pytest.raises(VisionError, match='VIS-INPUT-1455'):
        memory.main(['resnet50', *arguments])


# The report ------------------------------------------------------------------------------------


def test_holders_of_the_peak_by_hand():
    calls = tuple(Call(f'aten.{name}', moment, 1.0, (), (moment,))
                  for moment, name in enumerate(('relu', 'relu', 'mm', 'add')))
    values = (Value(10, 0, 0, 3, where='a', shape=(5, 2)), Value(10, 1, 1, 3, where='a',
                                                                shape=(5, 2)),
              Value(15, 2, 2, 2, where='b'), Value(9, 3, 3, 3, where='b'))
    trace = Trace(calls, values, np.array([10, 20, 35, 29]), np.array([10, 10, 15, 9]),
                  np.ones(4), ())
    assert report.peak_holders(trace) == [report.Holder('a', 'aten.relu', (5, 2), 20, 2),
                                          report.Holder('b', 'aten.mm', (), 15, 1)]


@pytest.fixture
def tiny_config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(f'''
_base_ = [{str(ROOT / 'configs/polynet/polynet-small_imagenette160.py')!r}]
model = dict(backbone=dict(arch=[['1-way']] * 3), head=dict(num_classes=3))
train_dataloader = dict(batch_size=3, dataset=dict(data_root={str(tmp_path / 'data')!r}))
''')
    return path


@pytest.fixture
def images(tmp_path):
    import cv2
    generator = np.random.default_rng(0)
    for name in ('a', 'b', 'c'):
        folder = tmp_path / 'data' / 'train' / name
        folder.mkdir(parents=True)
        for index in range(2):
            cv2.imwrite(str(folder / f'{index}.png'),
                        generator.integers(0, 255, (160, 160, 3), dtype=np.uint8))


def test_report_of_a_config(tiny_config, images, tmp_path, monkeypatch, capsys):
    found = {}
    record = report.record
    monkeypatch.setattr(report, 'record', lambda args: found.setdefault('step', record(args)))
    out = tmp_path / 'pictures'
    assert report.main([str(tiny_config), '--budget', '0.6', '30MB', '--batch', '2', '--out',
                        str(out)]) == 0
    trace, measured = found['step']
    assert trace.peak_bytes == measured > 1e6
    assert (out / 'live.png').stat().st_size > 5000 < (out / 'trade_off.png').stat().st_size
    said = capsys.readouterr().out
    assert 'backbone' in said and '30MB' in said
    held = sum(holder.num_bytes for holder in report.peak_holders(trace))
    assert 0.5 * trace.peak_bytes < held <= trace.peak_bytes  # the rest is made in backward


def test_report_refuses_what_it_cannot_answer(tiny_config, images, tmp_path):
    with pytest.raises(VisionError, match='VIS-CONFIG-1452'):
        report.main([str(tiny_config), '--budget', '10KB'])
    with pytest.raises(VisionError, match='VIS-INPUT-1453'):
        report.main([str(tiny_config), '--batch', '0'])
    empty = tmp_path / 'empty.py'
    empty.write_text("model = dict(type='ImageClassifier')\ndefault_scope = 'vision'\n")
    with pytest.raises(VisionError, match='VIS-CONFIG-1450.*train_dataloader'):
        report.main([str(empty)])
    failed = tmp_path / 'failed.json'
    write_report(failed, [dict(method='x', failed='y')])
    with pytest.raises(VisionError, match='VIS-INPUT-1454'):
        picture.main([str(failed), '--out', str(tmp_path / 'x.png')])
    with pytest.raises(SystemExit):
        report.main([])
