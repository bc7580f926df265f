"""Tables that run on four ranks beside one process, which is the judge, and beside torch as it is.

The cases are played by ``pipeline_ranks.py`` in one go: forks of one process, which stay.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


@pytest.fixture(scope='module')
def found(repository, tmp_path_factory):
    """Name of the case -> what each of the four ranks found."""
    folder = tmp_path_factory.mktemp('ranks')
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('pipeline_ranks.py')), str(folder)],
        capture_output=True, text=True, cwd=repository, timeout=300)
    assert result.returncode == 0, result.stderr[-8000:]
    return json.loads((folder / 'found.json').read_text())


def chosen(found, prefix):
    rows = {name: ranks for name, ranks in found.items() if name.startswith(prefix)}
    assert rows
    return rows


def test_gradients_are_bit_equal_to_one_process(found):
    """Losses are compared where they are made. All schedules, units, chunks and models."""
    rows = chosen(found, 'equal-')
    plain = {name: ranks for name, ranks in rows.items()
             if not any(word in name for word in ('True', 'dp', 'per-step'))}
    assert len(plain) == 26
    assert {name: ranks for name, ranks in plain.items()
            if any(rank['gradient_error'] for rank in ranks)} == {}


def test_gradients_of_sharded_data_are_the_mean_over_the_copies(found):
    sharded = {name: ranks for name, ranks in chosen(found, 'equal-').items()
               if any(word in name for word in ('True', 'dp', 'per-step'))}
    assert len(sharded) == 21
    assert {name: ranks for name, ranks in sharded.items()
            if any(rank['gradient_error'] > 1e-6 for rank in ranks)} == {}


def test_buffers_are_those_of_one_process_bit_by_bit(found):
    """Learning the shapes runs a micro-batch more: BatchNorm must not have seen it."""
    assert all(rank['buffers_equal'] for ranks in chosen(found, 'equal-').values()
               for rank in ranks)


@pytest.mark.parametrize('num_ranks, num_chunks, num_microbatches, unit', [
    (2, 2, 6, 2), (2, 4, 6, 3), (4, 2, 14, 4), (4, 2, 14, 7), (4, 4, 14, 4), (4, 4, 14, 7)])
def test_micro_batches_in_flight_are_bounded(found, num_ranks, num_chunks, num_microbatches, unit):
    name = f'equal-zeropp-{num_ranks}-{num_chunks}-{num_microbatches}-{unit}'
    peaks = [rank['peak'] for rank in found.get(name) or found[f'{name}-False']]
    assert 0 < max(peaks) <= num_chunks * unit + num_ranks


def test_memory_does_not_grow_with_the_number_of_micro_batches(found):
    """Of 8 and 16 micro-batches: in flight, live graphs, live outputs."""
    for rank in found['memory-zeropp']:
        assert rank['few'] == rank['many']
        assert max(rank['few']) <= 2 * 4 + 4
    # Breadth-first keeps all; otherwise the test above would see nothing.
    assert [rank['many'] for rank in found['memory-breadth']] == [[32] * 3] * 4


def test_three_clipped_steps_of_adamw(found):
    for rank in found['training']:
        assert rank['error'] < 1e-6 and rank['norm_error'] < 1e-6


def test_shapes_tables_and_the_number_of_micro_batches_may_change(found):
    for rank in found['changes']:
        assert rank == dict(errors=[0.0] * 5, buffers_equal=True, is_random_kept=True)


def test_torch_alone_loses_gradients_of_chunks_that_shard_after_the_forward_pass(found):
    """T1: with its own schedule, and no error. The same without resharding is right."""
    assert max(rank['error'] for rank in found['stock-reshards']) > 0.1
    assert max(rank['error'] for rank in found['stock-right']) < 1e-6


def test_torch_alone_loses_gradients_when_they_are_reduced_more_than_once(found):
    """T2: a table with two units, which ours runs right (``equal-zeropp-2-2-6-3-True``)."""
    assert max(rank['error'] for rank in found['stock-units']) > 0.01


def test_gradients_in_bfloat16_are_added_up_in_float32(found):
    assert max(rank['error'] for rank in found['bfloat16']) == 0


def test_collectives_are_those_of_the_table_one_to_one(found):
    rows = chosen(found, 'counted-')
    assert len(rows) == 6
    for ranks in rows.values():
        for rank in ranks:
            assert rank['real'] == rank['planned'] and min(rank['real']) > 0


@pytest.mark.parametrize('fault, code', [
    ('reshards', 'VIS-CONFIG-1512'), ('no gathers', 'VIS-CONFIG-1516'),
    ('compute only', 'VIS-CONFIG-1516'), ('ranks', 'VIS-CONFIG-1516'),
    ('compiled', 'VIS-CONFIG-1546'), ('ddp', 'VIS-CONFIG-1515'), ('batch', 'VIS-CONFIG-1543'),
    ('late', 'VIS-RUN-1544'), ('unused', 'VIS-RUN-1513'), ('outputs', 'VIS-CONFIG-1518'),
    ('outputs of evaluation', 'VIS-CONFIG-1518'), ('many outputs', 'VIS-CONFIG-1519')])
def test_a_fault_is_refused_on_every_rank(found, fault, code):
    assert [rank[fault] for rank in found['refusals']] == [code] * 4


def test_a_rank_with_another_table_says_so(found):
    assert [rank['tables'] for rank in found['refusals']] == [None, 'VIS-RUN-1517'] * 2


@pytest.mark.parametrize('name', ['looped', 'one', 'few', 'none', 'v', 'dp'])
def test_evaluation_gives_what_one_process_gives(found, name):
    for rank in found[f'evaluate-{name}']:
        assert rank['is_equal'] and rank['is_free']
        is_dp = name == 'dp'
        assert rank['gathers'] == is_dp * rank['chunks'] and rank['is_sharded'] == is_dp


def test_measured_costs_are_the_same_everywhere_and_count_bytes(found):
    for rank in found['profile']:
        assert rank['is_same']
        costs = rank['costs']
        assert all(time > 0 for key in ('forward', 'backward_weight', 'gather', 'reduce')
                   for time in costs[key]) and costs['latency'] > 0
        # torch does all of stage 0's backward in W
        assert costs['backward_input'][0] < min(costs['backward_input'][1:])
        # a layer of 6 x 6 + 6 float32; 2 samples of 6 numbers go in and come out
        assert costs['weight_bytes'] == [4 * 42] * 4
        assert costs['activation_bytes'] == [2 * 4 * 2 * 6] * 4
        # two chunks of a rank: half of each is here, as parameters and as gradients
        assert costs['static_bytes'] == [2 * 2 * 4 * 42 // 2] * 2


@pytest.mark.slow
def test_the_benchmark_runs_every_schedule_as_planned(repository):
    """With actions of 2 ms: what it measures then says nothing, what it counts does."""
    code = ('import json, pipeline_executed as it; it.NUM_ROUNDS, it.TASK_S = 1, 0.002; '
            'print(json.dumps(it.executed()))')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            cwd=repository / 'benchmarks', timeout=300)
    assert result.returncode == 0, result.stderr[-8000:]
    rows = json.loads(result.stdout)
    assert len(rows) == 9
    for row in rows:
        assert row['is_as_planned'] and row['gradient_error'] == 0
        assert row['sharded_gradient_error'] < 1e-6 and row['makespan_s'] > row['simulated_s'] / 2
