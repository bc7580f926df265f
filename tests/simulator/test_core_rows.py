"""Published rows: a generated file of the same columns stands for the real one."""

import csv
import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.simulator.core.cluster import read_cluster
from vision.simulator.core.fit import fit, halves, score
from vision.simulator.core.parameters import read_parameters, write_parameters
from vision.simulator.core.published import case_of, read_rows, read_vtrain
from vision.simulator.core.rows import (
    FITTED,
    ablation_errors,
    fit_rows,
    predict_case,
    predict_rows,
    summary,
)

ROOT = Path(__file__).resolve().parents[2]
# python benchmarks/simulator_rows.py is the measurement; this only looks that all is read.
PUBLISHED = os.environ.get('VISION_SIMULATOR_ROWS', '')

COMMON = dict(family='transformer', vocab='50257', precision='bf16', tp='1', pp='1', vpp='', cp='',
              shard='none', recompute='full', mem_gib='', hw_note='', seq_or_img='1024',
              params_b='', notes='', locator='', status='', unit='', model='GPT')
SIZES = (('12', '1024', '16'), ('24', '2048', '16'))
KINDS = (
    dict(source='vTrain', gpu='A100', n_gpus='8', dp='4', tp='2', micro_batch='1',
         global_batch='16', metric='iteration_time'),
    dict(source='vTrain', gpu='A100', n_gpus='8', dp='2', pp='4', micro_batch='8',
         global_batch='64', metric='iteration_time'),
    dict(source='vTrain', gpu='A100 80GB?', n_gpus='64', dp='64', micro_batch='8',
         global_batch='1024', metric='iteration_time', hw_note='8 per node; 800 Gb/s inter-node'),
    dict(source='Korthikanti', gpu='A100 80GB', n_gpus='8', dp='1', tp='8', micro_batch='4',
         global_batch='4', metric='iteration_time',
         recompute='selective attention + sequence parallel'),
    dict(source='torchtitan', gpu='H100 96GB HBM2e 500 W', n_gpus='16', dp='16',
         precision='bf16+compile', shard='FSDP2 full', micro_batch='4', global_batch='64',
         metric='tokens_per_s_per_gpu', mem_gib='20'),
    dict(source='InternEvo', gpu='A100-SXM4-80GB', n_gpus='32', dp='32',
         shard='ZeRO-1 within 8', recompute='none', micro_batch='8', global_batch='512',
         metric='tokens_per_s_per_gpu', hw_note='8 per node; 4x100 Gb RoCE per node'),
    dict(source='llm-foundry', gpu='H100 80GB', n_gpus='8', dp='8', shard='FSDP1 full',
         micro_batch='8', global_batch='64', metric='tokens_per_s_per_gpu'),
    dict(source='InternEvo', gpu='A800 80GB', n_gpus='4', dp='1', tp='4', shard='ZeRO-1',
         micro_batch='1', global_batch='', metric='peak_memory'),
    dict(source='Narayanan', gpu='A100 80GB', n_gpus='32', dp='32', micro_batch='',
         global_batch='512', metric='tflops_per_gpu'),
)
TRUTH = dict(gemm_share=0.7, gemm_share_hopper=0.5, half_size=80.0, memory_share=0.6, host_us=30.0,
             intra_share=0.6, inter_share=0.6, jitter=0.008, unlisted=0.2)


@lru_cache
def preset(name):
    return read_cluster(ROOT / 'configs' / 'clusters' / f'{name}.yaml')


@pytest.fixture
def path(tmp_path):
    """Rows whose values are predictions with the constants of ``TRUTH``."""
    rows = []
    for kind in KINDS:
        for layers, hidden, heads in SIZES * 2:
            rows.append({**COMMON, **kind, 'layers': layers, 'hidden': hidden, 'heads': heads,
                         'id': f'x{len(rows):03d}', 'value': '1'})
    for count in ('1', '8'):
        rows.append({**COMMON, 'id': f'x{len(rows):03d}', 'source': 'NVIDIA', 'layers': '50',
                     'family': 'vision', 'model': 'ResNet-50', 'gpu': 'V100 32GB',
                     'n_gpus': count, 'dp': count, 'precision': 'FP32', 'micro_batch': '112',
                     'global_batch': str(112 * int(count)), 'metric': 'images_per_s',
                     'hidden': '', 'heads': '', 'value': '1'})
    for row in rows:
        case = case_of(row, preset)
        value = case.value_of(*predict_case(case, TRUTH))
        scale = dict(iteration_time=1000, peak_memory=1e-9).get(row['metric'], 1)
        row['value'] = repr(value * scale)
    file = tmp_path / 'rows.csv'
    with file.open('w', newline='') as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(reversed(rows))
    return file


def test_rows_are_sorted_and_halved(path):
    rows = read_rows(path)
    ids = [row['id'] for row in rows]
    assert ids == sorted(ids)
    fitted, held = halves(rows)
    assert [row['id'] for row in fitted[:2]] == ['x000', 'x002'] and held[0]['id'] == 'x001'
    assert len(fitted) + len(held) == len(rows)


def test_every_row_is_predicted_and_scored(path):
    rows = read_rows(path)
    outcomes = predict_rows(rows, preset, TRUTH)
    assert [each.case.row['id'] for each in outcomes] == [row['id'] for row in rows]
    assert max(abs(each.error) for each in outcomes) < 1e-9
    found = summary(outcomes)
    assert found['times']['vTrain']['order'] == found['times']['vTrain']['chosen'] == 1.0
    assert 'Narayanan (recalled)' in found['times']
    assert sum(found['times'][f'transformers, {name} node']['count'] for name in (
        'single', 'multi')) == 4 * 7
    assert found['memory']['by_source']['InternEvo']['mean_error'] < 1e-9
    assert found['memory']['said_not_to_fit_though_it_ran'] == []
    assert abs(found['scaling'][0]['error']) < 1e-9


def test_fitting_finds_what_made_the_rows(path):
    rows = read_rows(path)
    before = summary(predict_rows(rows, preset, {}))['times']
    constants = fit_rows(rows, preset)
    assert set(constants) == set(FITTED) and len(constants) <= 9
    after = summary(predict_rows(rows, preset, constants))['times']
    for name in ('vTrain, single node', 'vTrain, multi node'):
        assert after[name]['mean_error'] < 0.02 < before[name]['mean_error']


def test_held_rows_do_not_change_the_fit(path):
    rows = read_rows(path)
    constants = fit_rows(rows, preset)
    for row in halves(rows)[1]:
        row['value'] = '12345'
    assert fit_rows(rows, preset) == constants


def test_one_odd_row_does_not_bend_the_fit():
    sizes = [1.0, 2.0, 3.0, 4.0, 5.0]

    def predict_all(values):
        measured = [0.5 * size for size in sizes]
        measured[2] *= 3
        return [(values['gemm_share'] * size, each)
                for size, each in zip(sizes, measured, strict=True)]
    found = fit(predict_all, dict(gemm_share=0.9))
    assert found['gemm_share'] == pytest.approx(0.5, abs=0.02)


def test_scores_by_hand():
    pairs = [(1.1, 1.0), (1.8, 2.0), (3.0, 2.5)]
    found = score(pairs, ['a', 'a', 'b'])
    assert found.mean_error == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert found.max_error == pytest.approx(0.2)
    assert found.bias == pytest.approx((0.1 - 0.1 + 0.2) / 3)
    assert found.order == 1.0 and found.chosen == 1.0
    swapped = score([(2.0, 1.0), (1.0, 2.0)], ['a', 'a'])
    assert swapped.order == 0.0 and swapped.chosen == 2.0


def test_links_and_memory_are_those_of_the_row(path):
    cases = {(case.source, case.num_devices): case
             for case in (case_of(row, preset) for row in read_rows(path))}
    vtrain = cases['vTrain', 64].cluster
    assert vtrain.num_nodes == 8 and vtrain.links['inter'].rate == 100e9
    assert vtrain.links['inter'].shared_by == 8
    intern = cases['InternEvo', 32].cluster.links['inter']
    assert intern.rate == 12.5e9 and intern.shared_by == 2
    assert cases['torchtitan', 16].cluster.device.memory_bytes == 96 * 2**30
    assert cases['torchtitan', 16].cluster.device.flops['bf16'] == pytest.approx(
        989e12 * 0.874, rel=1e-3)  # 500 of 700 W
    assert cases['InternEvo', 4].cluster.links['intra'].rate == 200e9


def test_a_note_on_other_devices_is_not_of_this_one(path):
    row = next(row for row in read_rows(path) if row['source'] == 'llm-foundry')
    for gpu, rate in (('H100 80GB', 50e9), ('A100 80GB', 200e9)):
        note = '8 per node; A100 table states 1600 Gb/s RoCE node-to-node'
        assert case_of({**row, 'gpu': gpu, 'hw_note': note}, preset).cluster.links[
            'inter'].rate == rate


@pytest.mark.parametrize('change', [dict(source='unknown'), dict(metric='joules'),
                                    dict(gpu='TPU v4')])
def test_rows_of_unknown_kind_are_refused(path, change):
    row = {**read_rows(path)[0], **change}
    with pytest.raises(VisionError, match='VIS-DATA-1650'):
        case_of(row, preset)


@pytest.mark.parametrize('change', [
    dict(n_gpus=''), dict(n_gpus='0'), dict(value=''), dict(value='-1'), dict(value='nan'),
    dict(hidden='x'), dict(heads=''), dict(heads=None), dict(tp='1e400'), dict(micro_batch='²'),
    dict(micro_batch='0'), dict(mem_gib='much'), dict(mem_gib='-1'),
    dict(layers='9' * 5000)], ids=lambda change: repr(change)[:40])
def test_rows_whose_numbers_are_none_are_refused(path, change):
    row = {**read_rows(path)[0], **change}
    with pytest.raises(VisionError, match='VIS-DATA-1650.*row x000'):
        case_of(row, preset)


def test_more_adapters_than_devices_are_shared_by_none(path):
    row = {**read_rows(path)[0], 'hw_note': '9x100 Gb'}
    assert case_of(row, preset).cluster.links['inter'].shared_by == 1


def test_short_rows_are_refused(path):
    path.write_text(path.read_text() + 'x999,vTrain\n')
    with pytest.raises(VisionError, match='VIS-DATA-1650.*1 rows with fewer fields'):
        read_rows(path)


def test_files_without_rows_or_columns_are_refused(tmp_path):
    for text in ('', 'id,source\n1,x\n'):
        path = tmp_path / 'rows.csv'
        path.write_text(text)
        with pytest.raises(VisionError, match='VIS-DATA-1650'):
            read_rows(path)
    with pytest.raises(VisionError, match='VIS-DATA-1650'):
        read_rows(tmp_path / 'none.csv')


def test_parameters_come_back(tmp_path):
    path = tmp_path / 'fitted.yaml'
    fitted = write_parameters(path, TRUTH, [(1.1, 1.0), (0.9, 1.0)])
    assert fitted.constants == TRUTH and fitted.interval == pytest.approx(0.1)
    assert '10.0 %' in fitted.source
    path.write_text(path.read_text().replace('half_size: 80', 'half_size: 8000'))
    with pytest.raises(VisionError, match='VIS-CONFIG-1655'):
        read_parameters(path)
    path.write_text('constants: 3')
    with pytest.raises(VisionError, match='VIS-CONFIG-1651'):
        read_parameters(path)


def test_the_committed_constants_are_nine_at_most():
    assert set(read_parameters(ROOT / 'configs/clusters/fitted.yaml').constants) == set(FITTED)


def test_a_part_that_is_off_changes_the_rows_it_matters_to(path):
    constants = dict(TRUTH)
    off = ablation_errors(predict_rows(read_rows(path), preset, constants), constants)
    # The rows are predictions, so nothing is off by more than rounding with all parts on.
    assert all(each['on'] < 1e-4 < each['off'] for sources in off.values()
               for each in sources.values())
    assert 'InternEvo, multi node' in off['sharing'] and 'llm-foundry, single node' in \
        off['overlap']
    assert not any('single' in name for name in off['sharing'])


VTRAIN = ['# GPUs', 'global batch', 'micro batch', 'hidden size', 'attention heads', '# layers',
          'sequence length', 'tensor parallelism', 'data parallelism', 'pipeline parallelism',
          'iteration time (ms)']


@pytest.fixture
def vtrain(tmp_path):
    """Both files, with steps of 1 to 13 ms a layer."""
    folder = tmp_path / 'vtrain'
    folder.mkdir()
    for name, devices in (('single', 8), ('multi', 64)):
        lines = ['\ufeff' + ','.join(VTRAIN)]
        for at in range(40):
            tensor = (1, 2, 4, 8)[at % 4]
            micro = (1, 2)[at // 4 % 2]
            data = devices // tensor
            row = (devices, 8 * data * micro, micro, 1024 * (1 + at // 8 % 2), 16,
                   12 + 4 * (at % 3), 1024, tensor, data, 1, 100 + 7 * at)
            lines.append(','.join(map(str, row)))
        (folder / f'ground_truth_{name}.csv').write_text('\n'.join(lines) + '\n')
    return folder


def test_rows_of_vtrain_are_read_with_their_lines(vtrain):
    rows = read_vtrain(vtrain)
    assert len(rows) == 80 and rows[0]['id'] == 'single00002' and rows[-1]['id'] == 'multi00041'
    first, last = (case_of(row, preset) for row in (rows[0], rows[-1]))
    assert first.measured == 0.1 and first.cluster.num_nodes == 1
    assert first.strategy.data == 8 and first.strategy.num_microbatches == 8
    assert first.strategy.recompute == 'full' and first.decoder.attention == 'plain'
    assert last.cluster.num_nodes == 8 and last.cluster.links['inter'].rate == 100e9
    (vtrain / 'ground_truth_multi.csv').write_text('a,b\n1,2\n')
    with pytest.raises(VisionError, match='VIS-DATA-1650'):
        read_vtrain(vtrain)


def test_a_regression_finds_times_that_are_sums_of_its_counts(vtrain, path, tmp_path, capsys):
    tool = load_script('benchmarks/simulator_vtrain.py')
    cases = [case_of(row, preset) for row in read_vtrain(vtrain)][:40]
    truth = [2e-14, 0.0, 1e-4, 3e-12, 5e-5, 1e-11, 0.0, 2e-11, 0.0]
    known = [replace(case, row={**case.row, 'value': str(1000 * sum(
        a * b for a, b in zip(tool.counts(case), truth, strict=True)))}) for case in cases]
    assert all(guess == pytest.approx(right, rel=1e-6)
               for guess, right in tool.regressed(known[::2], known[1::2]))
    report = tmp_path / 'vtrain.json'
    assert tool.main(['--vtrain', str(vtrain), '--rows', str(path), '--parameters',
                      str(ROOT / 'configs/clusters/fitted.yaml'), '--json', str(report)]) == 0
    scores = json.loads(report.read_text())['scores']
    assert scores['quarter']['single']['fitted']['count'] == 10
    assert scores['rest']['multi']['no fit']['count'] == 30


def test_a_step_of_both_files_is_no_unseen_one(vtrain, path, tmp_path):
    tool = load_script('benchmarks/simulator_vtrain.py')
    row = next(each for each in read_vtrain(vtrain) if int(each['id'][-5:]) % 4 == 2)
    lines = path.read_text().splitlines()
    names = lines[0].split(',')
    path.write_text('\n'.join([*lines, ','.join(
        {**COMMON, **row, 'id': 'x'}.get(name, '') for name in names)]) + '\n')
    report = tmp_path / 'vtrain.json'
    assert tool.main(['--vtrain', str(vtrain), '--rows', str(path), '--part', 'rest',
                      '--parameters', str(ROOT / 'configs/clusters/fitted.yaml'), '--json',
                      str(report)]) == 0
    scores = json.loads(report.read_text())['scores']['rest']
    assert scores['single']['fitted']['count'] == 29 and scores['multi']['fitted']['count'] == 30


@pytest.mark.skipif(not PUBLISHED, reason='VISION_SIMULATOR_ROWS names no file of published rows')
def test_published_rows_are_all_predicted():
    rows = read_rows(Path(PUBLISHED))
    constants = read_parameters(ROOT / 'configs/clusters/fitted.yaml').constants
    assert len(predict_rows(rows, preset, constants)) == len(rows)


def test_the_tool_writes_rows_and_scores(path, tmp_path, capsys):
    tool = load_script('benchmarks/simulator_rows.py')
    report = tmp_path / 'report.json'
    parameters = ROOT / 'configs/clusters/fitted.yaml'
    assert tool.main(['--rows', str(path), '--parameters', str(parameters), '--json',
                      str(report)]) == 0
    assert '"held"' in report.read_text() and 'vTrain, multi node' in capsys.readouterr().out
