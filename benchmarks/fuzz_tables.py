"""Readers of what runs and people write down: predictions, logs, reports, clusters, costs, and
texts that are typed; and whole files of each, for ``fuzz_readers.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_mutators import (
    YAML_WORDS,
    Reader,
    calls,
    inside_zip,
    json_array,
    json_node,
    line,
    packed,
    plain_inside,
    unpacked,
)


# Whole files of each kind -----------------------------------------------------------------------
def prediction_seeds(ending: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        from vision.common.core.predictions import write_predictions
        found = dict(bboxes=np.array([[1, 2, 3, 4.1]], np.float32), labels=np.array([3]))
        none = dict(bboxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64))
        samples = [dict(img_id=7, ori_shape=(48, 64), nothing=None, pred_instances=found),
                   dict(img_id=8, ori_shape=(1, 1), scale=0.1, pred_instances=none,
                        mask=np.array([[True, False]]))]
        write_predictions(folder / f'own{ending}', samples, classes=('a', 'b'), config='c.py')
        return [(folder / f'own{ending}').read_bytes()]
    return seeds


def log_seeds(folder: Path) -> list[bytes]:
    rows = [dict(epoch=1, iter=10, step=10, loss=3.0, time=9.0, data_time=1.0),
            dict(epoch=1, iter=20, step=20, loss=float('nan'), time=2.0, data_time=1.0),
            {'top1': 40.0, 'time': 0.1, 'data_time': 0.1, 'step': 1},
            dict(epoch=2, iter=10, step=30, loss=2.5, time=8.0, data_time=0.4)]
    return [b''.join(json.dumps(row).encode() + b'\n' for row in rows)]


def report_seeds(folder: Path) -> list[bytes]:
    from vision.common.core.report import write_report
    write_report(folder / 'own.json', [dict(x=1, ms=2.5, commit='a'), dict(x=2, commit='a')],
                 is_recorded=False, seed=0)
    whole = (folder / 'own.json').read_bytes()
    content = json.loads(whole)
    del content['seal']  # changes are met by more than the seal
    return [whole, json.dumps(content).encode(), json.dumps(content).encode()]


def cluster_seeds(folder: Path) -> list[bytes]:
    from vision.common.core.config_files import CONFIGS
    return [(CONFIGS / 'clusters' / f'{name}.yaml').read_bytes() for name in ('h100', 'cpu-gloo')]


def parameter_seeds(folder: Path) -> list[bytes]:
    from vision.common.core.config_files import CONFIGS
    return [(CONFIGS / 'clusters' / 'fitted.yaml').read_bytes()]


_ROWS = """\
id,source,gpu,n_gpus,model,family,layers,hidden,heads,seq_or_img,vocab,precision,dp,tp,pp,vpp,cp,\
shard,recompute,micro_batch,global_batch,metric,value,mem_gib,hw_note
a1,torchtitan docs,H100 80GB 650 W,8,Llama 3.1 8B,transformer,32,4096,32 (8 kv),8192,128256,\
bf16 compile,8,1,1,,1,FSDP,selective op,1,8,tokens_per_s_per_gpu,6258,82.9,
b1,InternEvo table,A800 80GB,64,InternLM-7B,transformer,32,4096,32,4096,103168,bf16,64,1,1,,,\
"ZeRO-1 within 8",none,2,512,tflops_per_gpu,193.5,,4x200 Gb/s
c1,mmdetection zoo,V100 32GB,8,R-50,vision,,,,1333x800,,fp32,8,,,,,none,none,2,16,\
iteration_time,410,4.4,
"""
_VTRAIN = ('# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,'
           'tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms)\n'
           '8,16,2,1024,16,24,2048,2,2,2,812.5\n8,32,2,1024,16,24,2048,2,2,2,1520.0\n')


def row_seeds(folder: Path) -> list[bytes]:
    return [_ROWS.encode()]


def vtrain_seeds(folder: Path) -> list[bytes]:
    return [packed(_VTRAIN, _VTRAIN)]


def cost_seeds(folder: Path) -> list[bytes]:
    times = dict(forward=[1.0, 2, 1.5, 1], backward_input=[0, 1, 1, 1.0],
                 backward_weight=[1, 1, 1, 1])
    return [json.dumps(times).encode(), json.dumps(times | dict(
        latency=0.1, gather=[0.1] * 4, reduce=[0.1] * 4, activation_bytes=[10, 20, 10, 20],
        weight_bytes=[1] * 4, static_bytes=[5, 6])).encode()]


def texts(*seeds: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [text.encode() for text in seeds]


# Readers ----------------------------------------------------------------------------------------
read_predictions = calls('vision.common.core.predictions.read_predictions')
read_cluster = calls('vision.simulator.core.cluster.read_cluster')
read_parameters = calls('vision.simulator.core.parameters.read_parameters')
read_decoder = calls('vision.simulator.mm.decoders.read_decoder')


def read_log(path: Path) -> None:
    from vision.common.core.scalars import default_keys, read_log, summarise, train_times
    log = read_log(path)
    default_keys(log)
    summarise(log)
    train_times(log)


def read_report(path: Path) -> None:
    from vision.common.core.report import earlier_report, read_report
    read_report(path, code='VIS-CKPT-303', maker='-', column='x')
    earlier_report(path)


def read_rows(path: Path) -> None:
    from vision.simulator.core.published import read_rows
    _cases(read_rows(path))


def read_vtrain(path: Path) -> None:
    from vision.simulator.core.published import read_vtrain
    _cases(read_vtrain(unpacked(path, path.with_name('vtrain'), [
        f'ground_truth_{name}.csv' for name in ('single', 'multi')])))


def _cases(rows: list[dict[str, str]]) -> None:
    from vision.common.core.config_files import CONFIGS
    from vision.simulator.core.cluster import read_cluster
    from vision.simulator.core.published import case_of
    for row in rows:
        case = case_of(row, lambda name: read_cluster(CONFIGS / 'clusters' / f'{name}.yaml'))
        assert case.num_devices and case.measured >= 0 and (case.measured_bytes or 1) >= 0


def read_costs(path: Path) -> None:
    from vision.pipeline.core.compare import read_costs
    read_costs(path, 2, 4).merged(2)


def typed(read: Callable[[str], object]) -> Callable[[Path], None]:
    """Of a text as a terminal or a form hands it over."""
    return lambda path: read(path.read_bytes().decode('utf-8', 'surrogateescape'))


def read_strategy(text: str) -> None:
    from vision.simulator.mm.decoders import read_strategy
    read_strategy(text, 64, 512)


def read_budget(text: str) -> None:
    from vision.common.core.amounts import format_bytes, parse_budget
    amount = parse_budget(text)
    format_bytes(amount.bytes or 0)


def read_points(text: str) -> None:
    from vision.web.overlays import parse_points
    np.array(parse_points(text, least=2, most=50, what='zone')).astype(int)


_LINES = (line,)
TABLES = {
    'predictions-json': Reader(prediction_seeds('.json'), read_predictions, '.json',
                               structured=(json_node,)),
    'predictions-npz': Reader(prediction_seeds('.npz'), read_predictions, '.npz', structured=(
        inside_zip(plain_inside, '.npy'), inside_zip(json_array, 'head.npy'))),
    'log': Reader(log_seeds, read_log, '.json', structured=_LINES),
    'report': Reader(report_seeds, read_report, '.json', structured=(json_node,)),
    'cluster': Reader(cluster_seeds, read_cluster, '.yaml', structured=_LINES, words=YAML_WORDS),
    'parameters': Reader(parameter_seeds, read_parameters, '.yaml', structured=_LINES,
                         words=YAML_WORDS),
    'published-rows': Reader(row_seeds, read_rows, '.csv', structured=_LINES),
    'vtrain-rows': Reader(vtrain_seeds, read_vtrain, '.vtrain', structured=_LINES),
    'costs': Reader(cost_seeds, read_costs, '.json', structured=(json_node,)),
    'decoder': Reader(texts('llama3-8b', 'layers=32,hidden=4096,heads=32,vocab=128256',
                            'layers=2,hidden=64,heads=4,vocab=99,kv_heads=2,ffn=128'),
                      typed(read_decoder), '.txt', structured=_LINES, needs='mmengine.runner'),
    'strategy': Reader(texts('tensor=8,pipeline=4,recompute=full', 'zero=3',
                             'tensor=2,context=2,micro_batch=2,chunks=2,zero=1'),
                       typed(read_strategy), '.txt', structured=_LINES, needs='mmengine.runner'),
    'budget': Reader(texts('12GB', '12 GiB', '40%', ' .5tb', '800.25MB'), typed(read_budget),
                     '.txt'),
    'points': Reader(texts('10,20 300,20', '(100, 100); (500, 100.5), (500, -400)'),
                     typed(read_points), '.txt', structured=_LINES)}
