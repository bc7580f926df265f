"""Measure this machine and write it as a cluster file for vision simulate.

Matrix products and element-wise operators by size, the host's time for an operator, collectives
between ranks by size, and how much slower compute is beside them. On a CPU ranks are forks of this
process on gloo; on GPUs one for each of them, on NCCL. About a minute; run it on a quiet machine.

Examples:
  vision calibrate --out my-machine.yaml
  vision calibrate --out my-machine.yaml --ranks 4 --dtype float32
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable
from vision.simulator.core.calibration import cluster_text
from vision.simulator.core.cluster import read_cluster

DTYPES = ('float32', 'bfloat16', 'float16', 'tf32')


def build_parser() -> argparse.ArgumentParser:
    """Options of what is measured, for how long, and where the cluster file goes."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='FILE', help='cluster file to write')
    add('--ranks', type=int, help='that take part in collectives (default: GPUs, or 2 on a CPU)')
    add('--dtype', choices=DTYPES, action='append', help='of products, again for further ones '
        '(default: float32; on GPUs bfloat16, float32 and tf32); the first one has its curve in '
        'the file')
    add('--per-size', type=float, default=0.3, metavar='SECONDS', help='for each size measured')
    add('--name', default=platform.node() or 'this-machine', help='of the cluster')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    refuse_unwritable(args.out)
    import torch

    from vision.simulator.nn.calibrate import TF32, alone, between_ranks
    from vision.simulator.nn.measure import Budget
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    ranks = args.ranks if args.ranks is not None else (
        torch.cuda.device_count() if device == 'cuda' else 2)
    dtypes = args.dtype or (['bfloat16', 'float32', TF32] if device == 'cuda' else ['float32'])
    if ranks < 1 or args.per_size <= 0 or (
            ranks > torch.cuda.device_count() if device == 'cuda' else TF32 in dtypes):
        raise VisionError('VIS-CONFIG-1647', f'{ranks} ranks on {device}, {args.per_size:g} s for '
                          f'each size of {", ".join(dtypes)}', why='at least one rank, not more '
                          'than there are GPUs, a time above 0, and tf32 on GPUs alone',
                          do='correct --ranks, --per-size or --dtype')
    budget = Budget(args.per_size, max(0.5, args.per_size))
    measured = between_ranks(ranks, device, budget) if ranks > 1 else {}
    torch.set_num_threads(1)  # a rank of a run on a CPU has one; threads of its own would be more
    measured |= alone(device, dtypes, budget)
    memory = torch.cuda.get_device_properties(0).total_memory if device == 'cuda' \
        else os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / ranks
    gpu = torch.cuda.get_device_name() if device == 'cuda' else platform.machine()
    text = cluster_text(measured, name=args.name, ranks=ranks, memory_bytes=memory,
                        provenance=f'{datetime.date.today()}, {gpu}, torch {torch.__version__}, '
                        f'{"nccl" if device == "cuda" else "gloo"}')
    with atomic_write(args.out) as file:
        file.write(text.encode())
    cluster = read_cluster(args.out)  # what cannot be read again is not handed over
    rates = ', '.join(f'{dtype} {flops / 1e12:.3g} TFLOP/s'
                      for dtype, flops in cluster.device.flops.items())
    print(f'{args.out}: {rates}, memory {cluster.device.memory_rate / 1e9:.3g} GB/s, host '
          f'{cluster.overheads.host * 1e6:.1f} us')
    return 0


if __name__ == '__main__':
    run_cli(main)
