"""Decoders by name or sizes: what is read, what is refused, what a plan says."""

import json
from pathlib import Path

import pytest

from vision.cli import simulate
from vision.common.core.errors import VisionError
from vision.simulator.core.analytic import Strategy, predict
from vision.simulator.core.cluster import read_cluster
from vision.simulator.core.pricing import Prices
from vision.simulator.mm.decoders import PRESETS, plan, read_decoder, read_strategy

ROOT = Path(__file__).resolve().parents[2]
H100, FITTED = (ROOT / 'configs' / 'clusters' / name for name in ('h100.yaml', 'fitted.yaml'))
SIZES = 'layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256'
SMALL = 'layers=4,hidden=512,heads=8,vocab=1000'


def test_presets_have_the_parameters_that_their_names_say():
    for name, count in (('llama3-8b', 8.03e9), ('llama3-70b', 70.55e9), ('gpt3-175b', 174.6e9)):
        assert read_decoder(name).num_parameters == pytest.approx(count, rel=0.002)
    assert read_decoder(SIZES) == read_decoder('llama3-8b')
    assert read_decoder('gpt3-175b').sequence == 2048
    assert read_decoder(SIZES, 4096).sequence == 4096


@pytest.mark.parametrize('text, told', [
    ('llama4', 'NAME=VALUE(.|\n)*llama3-8b, llama3-70b, gpt3-175b'), ('', 'without layers and'),
    ('layers=32,hidden=4096,heads=32', 'without vocab'), (SIZES + ',width=3', 'no such name'),
    (SIZES + ',layers=3', 'there twice'), (SIZES.replace('=32,', '=-2,', 1), 'layers=-2'),
    (SIZES.replace('14336', '1.5'), 'no whole number')])
def test_decoders_that_nobody_knows_are_refused(text, told):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1652(.|\n)*{told}'):
        read_decoder(text)


def test_sizes_that_make_no_decoder_are_refused():
    for text, sequence, code in ((SIZES.replace('heads=32', 'heads=33'), None, 1649),
                                 (SIZES, 0, 1643)):
        with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
            read_decoder(text, sequence)


def test_the_rest_of_a_strategy_is_data_parallel():
    assert read_strategy('tensor=8, pipeline=4,micro_batch=2,recompute=full,zero=0', 128, 64) == \
        Strategy(data=4, tensor=8, pipeline=4, micro_batch=2, num_microbatches=8,
                 recompute='full', is_sequence_parallel=True)
    assert read_strategy('', 8, 8) == Strategy(data=8)


@pytest.mark.parametrize('text', ['tensor=3', 'tensor=16', 'micro_batch=3', 'data=8', 'tensor',
                                  'zero=x', 'tensor=0', 'zero=' + '9' * 5000])
def test_strategies_that_do_not_divide_are_refused(text):
    with pytest.raises(VisionError, match='VIS-CONFIG-1653'):
        read_strategy(text, 8, 8)


@pytest.mark.parametrize('num_gpus, batch, code', [(12, 12, 1656), (0, 8, 1656), (8, 0, 1656),
                                                   (8, 12, 1653)])
def test_devices_and_batches_that_do_not_divide_are_refused(num_gpus, batch, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        plan(read_decoder(SMALL), read_cluster(H100), num_gpus=num_gpus, global_batch=batch)


def test_a_plan_is_the_prediction_of_its_strategy():
    decoder, cluster = read_decoder('llama3-8b'), read_cluster(H100)
    step = plan(decoder, cluster, num_gpus=8, global_batch=16)
    own = predict(decoder, Strategy(data=8, num_microbatches=2, zero=3), Prices(cluster))
    assert step.prediction.seconds == own.seconds and step.verdict == 'tight'
    assert step.tokens_per_second == pytest.approx(16 * 8192 / 8 / own.seconds)
    assert step.mfu == pytest.approx(
        decoder.model_flops(16 * 8192) / (own.seconds * 8 * cluster.device.flops['bf16']))
    assert 0.1 < step.mfu < 0.8 and any('none was given' in each for each in step.assumed)
    many = plan(decoder, cluster, num_gpus=512, global_batch=1024, strategy='zero=3')
    assert many.cluster.num_nodes == 64 and '64 nodes' in many.assumed[0]
    assert many.prediction.seconds > step.prediction.seconds and many.verdict == 'fits'


def test_fitted_constants_bring_their_interval():
    told = [plan(read_decoder(SMALL, 512), read_cluster(H100), num_gpus=8, global_batch=8,
                 parameters=each) for each in (None, FITTED)]
    assert told[0].prediction.interval == 0.25 and told[1].prediction.interval < 0.2
    assert 'published rows' in told[1].interval_source
    assert told[0].prediction.seconds != told[1].prediction.seconds
    low, high = told[1].interval_seconds
    assert low < told[1].prediction.seconds < high and told[1].prediction.notes['fitted']


def test_the_command_prints_and_writes_a_step(tmp_path, capsys):
    path = tmp_path / 'step.json'
    arguments = ['--decoder', SMALL, '--sequence', '512', '--cluster', str(H100), '--gpus', '8']
    assert simulate.main([*arguments, '--strategy', 'tensor=2', '--json', str(path)]) == 0
    text = capsys.readouterr().out
    for part in ('tokens/s per GPU', 'MFU', 'peak', 'fits', 'data=4 tensor=2', 'assumed:'):
        assert part in text
    told = json.loads(path.read_text())
    assert told['strategy']['tensor'] == 2 and told['decoder']['vocabulary'] == 1000
    assert told['interval_seconds'][0] < told['step_seconds'] and 'search' not in told


def test_the_command_searches(tmp_path, capsys):
    path = tmp_path / 'step.json'
    assert simulate.main(['--decoder', SMALL, '--sequence', '512', '--cluster', str(H100),
                          '--gpus', '4', '--global-batch', '16', '--search', '--budget', '50s',
                          '--json', str(path)]) == 0
    text, told = capsys.readouterr().out, json.loads(path.read_text())
    assert 'could not win' in text and 'best:' in text and 'train_dataloader' in text
    front = told['search']['front']
    assert front[0]['strategy'] == told['strategy'] and told['search']['is_complete']
    assert [each['step_seconds'] for each in front] == sorted(
        each['step_seconds'] for each in front)


def test_what_does_not_fit_is_told_by_the_exit_status(capsys):
    assert simulate.main(['--decoder', 'gpt3-175b', '--cluster', str(H100), '--gpus', '8']) == 1
    assert 'out of memory' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [
    [], ['config.py', '--decoder', SMALL], ['config.py', '--sequence', '5'],
    ['--decoder', SMALL, '--batch', '4'], ['--decoder', SMALL, '--trace', 'x'],
    ['--decoder', SMALL, '--search', '--strategy', 'zero=1']])
def test_a_config_and_a_decoder_are_not_mixed(arguments, capsys):
    with pytest.raises(SystemExit):
        simulate.main(['--cluster', str(H100), *arguments])
    assert 'usage' in capsys.readouterr().err


def test_a_config_may_stand_behind_options():
    for arguments in (['--cluster', 'c', 'x.py', '--gpus', '2'], ['x.py', '--cluster', 'c']):
        assert simulate.parse(arguments).config == Path('x.py')


def test_every_preset_is_offered_by_the_help():
    text = simulate.build_parser().format_help()
    assert all(name in ' '.join(text.split()) for name in PRESETS)
