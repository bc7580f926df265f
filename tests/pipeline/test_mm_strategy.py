"""Runs under ZeroPPStrategy beside runs of one process: trained, resumed, evaluated, refused."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import damage, load_checkpoint
from vision.pipeline.core.simulate import simulate
from vision.pipeline.mm.plan import NAMES, Planner, stage_costs
from vision.pipeline.nn.chunks import PieceCost

pytestmark = pytest.mark.distributed


@pytest.fixture(scope='module')
def played(repository, tmp_path_factory):
    """Folder of what the ranks of a case of ``run_cases`` left; each is played once."""
    folders = {}

    def play(case):
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(case)
            run_case(repository, case, folders[case])
        return folders[case]

    return play


def run_case(repository, case, *arguments):
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('run_cases.py')), case,
         *map(str, arguments)], capture_output=True, text=True, cwd=repository, timeout=600)
    assert result.returncode == 0, result.stderr[-8000:]


def tensors(content, name=''):
    if isinstance(content, torch.Tensor):
        return {name: content}
    pairs = content.items() if isinstance(content, dict) else enumerate(content) \
        if isinstance(content, list | tuple) else ()
    return {key: tensor for part, value in pairs
            for key, tensor in tensors(value, f'{name}/{part}').items()}


def state(path):
    content = load_checkpoint(path)
    names = 'state_dict', 'ema_state_dict', 'optimizer', 'stage_buffers'
    return tensors({name: content[name] for name in names if name in content})


def assert_same_state(path, expected, atol, *, has_same_stages=False):
    found, wanted = state(path), state(expected)
    if not has_same_stages:
        found, wanted = ({name: tensor for name, tensor in each.items()
                          if not name.startswith('/stage_buffers')} for each in (found, wanted))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize('name, ranks', [('pp2', 2), ('pp4', 4), ('pp2dp2', 4), ('gpipe', 2),
                                         ('zbv', 2)])
def test_six_steps_with_clipping_end_as_those_of_one_process(played, name, ranks):
    folder = played('equality')
    one = json.loads((folder / 'one-0.json').read_text())
    assert max(one['norms']) > 0.5  # so that gradients are clipped
    for rank in range(ranks):  # losses and norms are logged on every rank, rank 0 too
        found = json.loads((folder / f'{name}-{rank}.json').read_text())
        assert found['lr'] == one['lr']
        for key in ('norms',) if 'dp' in name else ('losses', 'norms', 'error'):
            assert found[key] == pytest.approx(one[key], rel=1e-5)
    assert_same_state(folder / name / 'iter_6.pth', folder / 'one' / 'iter_6.pth', 1e-6)


def test_gathered_parameters_in_bfloat16_train_alike(played):
    folder = played('equality')
    found, expected = (json.loads((folder / f'{name}-0.json').read_text())
                       for name in ('bf16', 'pp2dp2'))
    assert found['losses'] == pytest.approx(expected['losses'], rel=0.05)
    assert found['losses'] != expected['losses']
    weights = load_checkpoint(folder / 'bf16' / 'iter_6.pth')['state_dict']
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_full_is_one_file_and_the_rest_are_folders(played):
    folder = played('equality')
    assert (folder / 'gpipe' / 'iter_6.pth').is_file()
    assert (folder / 'pp2' / 'iter_6.pth').is_dir()
    groups = [load_checkpoint(folder / name / 'iter_6.pth')['optimizer']['param_groups']
              for name in ('one', 'pp2', 'gpipe')]
    assert groups[0] == groups[1] == groups[2] and len(groups[0]) > 20


def test_weights_used_behind_another_use_of_themselves_are_trained(played):
    folder = played('tied')
    assert_same_state(folder / 'pp2' / 'iter_6.pth', folder / 'one' / 'iter_6.pth', 2e-6)


@pytest.fixture(scope='module')
def generated_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    generator = np.random.default_rng(0)
    for number in range(10):
        (folder / 'train' / f'class{number}').mkdir(parents=True)
        for i in range(4):
            image = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / 'train' / f'class{number}' / f'{i}.jpg'),
                        cv2.resize(image, (160, 160)))
    return folder


@pytest.fixture(scope='module')
def real_pictures(shared_data):
    return shared_data / 'imagenette160-mini'


@pytest.mark.slow
@pytest.mark.parametrize('pictures', ['generated_pictures', 'real_pictures'])
def test_classifiers_of_this_codebase_train(repository, tmp_path, request, pictures):
    run_case(repository, 'classifiers', tmp_path, request.getfixturevalue(pictures))
    for one, other in (('vit-one', 'vit-pp2'), ('polynet-gpipe', 'polynet-zeropp')):
        losses = [json.loads((tmp_path / f'{name}-0.json').read_text()) for name in (one, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        # Norms of gradients are about 100: a step of 0.01 moves weights by up to 1.
        assert_same_state(tmp_path / other / 'iter_3.pth', tmp_path / one / 'iter_3.pth', 1e-4)


@pytest.mark.slow
@pytest.mark.fault('R8')
@pytest.mark.parametrize('name', ['dp1', 'dp2'])
def test_a_resumed_run_ends_bit_identical(played, name):
    """Dropout, BatchNorm, averaged weights, bfloat16, a unit chosen by measurement."""
    folder = played('resumed')
    for step in (3, 6):
        assert_same_state(folder / f'{name}-cut' / f'iter_{step}.pth',
                          folder / f'{name}-whole' / f'iter_{step}.pth', 0.0,
                          has_same_stages=True)
    tables = [load_checkpoint(folder / f'{name}-{part}' / 'iter_6.pth')['meta']['pipeline']
              for part in ('whole', 'cut')]
    assert tables[0] == tables[1] and len(tables[0]['rows']) == 2


@pytest.mark.slow
@pytest.mark.fault('R9')
def test_a_run_goes_on_with_other_stages_shares_and_strategies(played):
    folder = played('others')
    for number, name in enumerate(('one', 'pp4', 'pp2dp2', 'full', 'fsdp2', 'pp2',
                                   'last'), 1):
        step = f'iter_{3 * number}.pth'
        assert_same_state(folder / name / step, folder / 'whole' / step, 1e-6)


@pytest.mark.parametrize('name', ['pp2', 'pp3', 'pp2dp2'])
def test_metrics_are_those_of_one_process(played, name):
    """30 samples in batches of 8: the last one is short, and shares of it are uneven."""
    folder = played('evaluated')
    one = json.loads((folder / 'one-0.json').read_text())
    assert one['toy/count'] == 30
    for path in folder.glob(f'{name}-*.json'):
        found = json.loads(path.read_text())
        assert found == pytest.approx(one, rel=1e-5)


def test_wrong_options_are_one_clear_error_each(played):
    sys.path.insert(0, str(Path(__file__).parent))
    from run_cases import WRONG
    found = json.loads((played('wrong') / 'wrong.json').read_text())
    for name, (_, code) in WRONG.items():
        codes, text = found[name]
        assert all(codes), name
        assert f'ERROR {code}' in text, f'{name}: {text[-3000:]}'
        assert 'Do: ' in text, name


@pytest.mark.fault('R28')
@pytest.mark.parametrize('name, code', [('raises', 1), ('killed', -9)])
def test_a_stage_that_dies_ends_all_and_leaves_the_last_checkpoint_whole(played, name, code):
    folder = played('dies')
    codes, text = json.loads((folder / f'{name}.json').read_text())
    assert codes[3] == code and all(codes)
    assert 'RuntimeError: crash' in text if name == 'raises' else 'rank 3 of 4 is gone' in text
    assert 'Full Schedule' not in text  # torch's, hundreds of lines on every rank
    assert not damage(folder / name / 'iter_3.pth')
    assert load_checkpoint(folder / name / 'iter_3.pth')['meta']['iter'] == 3


PIECES = [PieceCost(f'{i}', flops, 100 * flops, 10, 7) for i, flops in enumerate((3, 1, 2, 4))]


def costs_of(num_stages, num_shares=1):
    ranges = {2: [(0, 2), (2, 4)], 4: [(i, i + 1) for i in range(4)]}[num_stages]
    return lambda rank_of: stage_costs(PIECES, ranges, rank_of, num_shares=num_shares, states=2)


@pytest.mark.parametrize('name', NAMES)
def test_every_schedule_makes_a_complete_table(name):
    chunks = 1 if name in ('gpipe', '1f1b') else 2
    table, text = Planner(name, 2, chunks, 4, is_sharded=True).make(costs_of(2 * chunks, 2))
    kinds = {action.kind for row in table.rows for action in row}
    assert {'F', 'SEND_F', 'RECV_B', 'UNSHARD', 'REDUCE_GRAD'} <= kinds
    assert table.name in text and name in ('auto', table.name)


def test_auto_is_as_fast_as_the_fastest_and_of_equals_the_smallest():
    timelines = {}
    for name in ('auto', 'zeropp', 'zbv', 'dualpipev'):
        table, _ = Planner(name, 2, 2, 8).make(costs_of(4))
        timelines[name] = simulate(table, costs_of(4)(table.rank_of))
    auto = timelines.pop('auto')
    least = min(timeline.makespan for timeline in timelines.values())
    assert auto.makespan <= 1.02 * least
    assert max(auto.peak_bytes) == min(max(t.peak_bytes) for t in timelines.values()
                                       if t.makespan <= 1.02 * least)


def test_a_budget_takes_a_smaller_unit():
    free, _ = Planner('zeropp', 2, 2, 8).make(costs_of(4))
    peak = max(simulate(free, costs_of(4)(free.rank_of)).peak_bytes)
    tight, _ = Planner('zeropp', 2, 2, 8, budget_bytes=peak - 1).make(costs_of(4))
    assert max(simulate(tight, costs_of(4)(tight.rank_of)).peak_bytes) < peak


def test_counted_costs_of_stages():
    costs = stage_costs(PIECES, [(0, 1), (1, 3), (3, 4)], (0, 1, 0), num_shares=2, states=1)
    assert costs.forward == (3, 3, 4)
    assert costs.backward_input == (0, 3, 4) and costs.backward_weight == (6, 3, 4)
    # A stage keeps its input: 7 bytes from the stage before.
    assert costs.activation_bytes == (300, 300 + 7, 400 + 7)
    assert costs.static_bytes == ((10 + 10) * 3 // 2, 20 * 3 // 2)


@pytest.mark.parametrize('options, code', [
    (dict(schedule='zeropp', unit=4), 1529), (dict(schedule='gpipe'), 1529),
    (dict(schedule='auto'), 1503)])
def test_what_does_not_fit_is_refused(options, code):
    chunks = 1 if options['schedule'] == 'gpipe' else 2
    planner = Planner(**options, num_ranks=2, num_chunks=chunks, num_microbatches=4,
                      budget_bytes=400)
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        planner.make(costs_of(2 * chunks))
