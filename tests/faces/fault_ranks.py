"""One of two gloo processes has a fault, the other has none; run as: fault_ranks.py NUM FOLDER.

Each says what it raised; after every case both must still find each other.
"""

import datetime
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import fork_ranks

from vision.common.core.errors import VisionError
from vision.faces.mm.head import ActiveClassHead

NUM_CLASSES, DIM = 200, 8
IVF = dict(type='ivf', num_active=40, num_lists=4, upkeep=dict(interval=2, swap_lag=1))


def build(**options):
    head = ActiveClassHead(NUM_CLASSES, DIM, **options)
    head.build('cpu', seed=0)
    return head.train()


def step(head, labels=None, number=0, spoil=None):
    """One step on four samples; ``spoil`` may change gradients or rows before the push."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    features = torch.randn(4, DIM, generator=generator, requires_grad=True)
    head.step = number
    labels = torch.tensor([3, 150, 7, 180]) if labels is None else labels
    head.prefetch(labels)
    head.loss(features, labels)['loss'].backward()
    if spoil:
        spoil(head)
    head.step_rows(0.1)


def said(work, *args, **options):
    """Code and place of the error that came, and whether the ranks meet afterwards."""
    try:
        work(*args, **options)
        found = None
    except VisionError as error:
        found = [error.code, error.where]
    together = torch.ones(1)
    dist.all_reduce(together)
    return [found, int(together)]


def nan_gradient(head):
    head.pending[1].grad[0, 0] = torch.nan


def nan_row(head):
    head.store._rows[5] = torch.nan


def steps_with_a_broken_row(rank):
    head = build(selector=IVF)
    for number in range(6):
        step(head, number=number, spoil=nan_row if rank == 0 and number == 2 else None)


def main(rank, world, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank,
                            world_size=world, timeout=datetime.timedelta(seconds=20))
    result = {}
    bad = torch.tensor([3, 150, 7, 200 if rank else 180])
    result['label'] = said(step, build(), bad)
    result['label_ahead'] = said(step, build(store=dict(backend='host')), bad)
    head = build()
    before = head.store.snapshot(torch.float32)
    result['gradient'] = said(step, head, spoil=nan_gradient if rank else None)
    result['is_unchanged'] = torch.equal(before, head.store.snapshot(torch.float32))
    result['row'] = said(steps_with_a_broken_row, rank)
    result['none'] = said(step, build(selector=IVF))
    Path(folder, f'{rank}.json').write_text(json.dumps(result))
    dist.barrier()  # a rank that leaves while another still reads aborts it
    dist.destroy_process_group()


if __name__ == '__main__':
    torch.set_num_threads(1)
    fork_ranks(main)
