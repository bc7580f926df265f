"""The loss of unequal batches and rows in several gloo processes; run as: selective_ranks.py NUM
FOLDER. The first 1, 2 and 4 of four processes compute the same."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import fork_ranks

from vision.faces.nn.head.gather import gather_batch
from vision.faces.nn.head.margins import build_margin
from vision.faces.nn.head.selective import selective_loss

NAMES = ('Softmax', 'ArcFace', 'AdaFace', 'CurricularFace')
# Samples of each rank, and where the rows are cut.
PARTS = {1: ([7], [0, 30]), 2: ([5, 2], [0, 11, 30]), 4: ([3, 0, 2, 2], [0, 9, 9, 20, 30])}


def main(rank, num, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank,
                            world_size=num)
    groups = {world: dist.new_group(list(range(world))) for world in PARTS}
    for world, group in groups.items():
        if rank < world:
            compute(rank, world, group, folder)
    dist.barrier()  # a rank that leaves while another still reads aborts it
    dist.destroy_process_group()


def compute(rank, world, group, folder):
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(30, (7,), generator=generator)
    features = full[labels] + torch.randn(7, 6, generator=generator, dtype=torch.float64)
    sizes, cuts = PARTS[world]
    start = sum(sizes[:rank])
    for name in NAMES:
        mine = features[start:start + sizes[rank]].clone().requires_grad_()
        rows = full[cuts[rank]:cuts[rank + 1]].clone().requires_grad_()
        x, y = gather_batch(mine, labels[start:start + sizes[rank]], group)
        assert y.tolist() == labels.tolist()
        is_here = (y >= cuts[rank]) & (y < cuts[rank + 1])
        margin = build_margin(name, scale=8)
        result = selective_loss(x, rows, torch.where(is_here, y - cuts[rank], -1), margin,
                                group=group)
        result.loss.backward()
        torch.save(dict(loss=result.loss.detach(), features=mine.grad, rows=rows.grad,
                        buffers=dict(margin.named_buffers())),
                   f'{folder}/{name}_{world}_{rank}.pt')


if __name__ == '__main__':
    fork_ranks(main)
