"""Four ranks that run all cases of ``test_nn_runtime.py``, one after the other, and tell what
they found: python tests/pipeline/pipeline_ranks.py FOLDER"""

import copy
import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.tasks import Costs
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import zeropp
from vision.pipeline.nn.runtime import PipelineRuntime
from vision.pipeline.nn.torch_private import TORCH_SCHEDULES, torch_table

WORLD, MB_SIZE, WIDTH = 4, 2, 6


class ConvBN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class Attention(nn.Module):
    """Its output is a view, and not contiguous."""

    def __init__(self):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return (x + self.attend(y, y, y, need_weights=False)[0]).transpose(1, 2).transpose(1, 2)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.linear(x).tanh()


MODELS = {'mlp': (Linear, (WIDTH,)), 'conv': (ConvBN, (4, 5, 5)), 'attention': (Attention, (3, 8))}


class Ranks:
    """The groups: pipelines of two (two of them) or of all four ranks."""

    def __init__(self):
        self.rank = dist.get_rank()
        self.mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('dp', 'pp'))
        self.trio = None

    def group(self, num_ranks):
        return dist.group.WORLD if num_ranks == 4 else self.mesh.get_group('pp')

    def copy_index(self, num_ranks):
        return 0 if num_ranks == 4 else self.mesh.get_local_rank('dp')


def build(kind, num_stages, seed=0):
    torch.manual_seed(seed)
    return [MODELS[kind][0]() for _ in range(num_stages)]


def batch_of(kind, num_samples, index, step=0):
    generator = torch.Generator().manual_seed(100 * step + index)
    return torch.randn(num_samples, *MODELS[kind][1], generator=generator)


def loss_for(num_microbatches):
    return lambda output, mb: (output ** 2).mean() * (1 + mb) / num_microbatches


def one_process(stages, batch, num_microbatches):
    """The judge: micro-batches in order, all stages here."""
    loss_of, losses = loss_for(num_microbatches), []
    for mb, x in enumerate(batch.chunk(num_microbatches)):
        for stage in stages:
            x = stage(x)
        losses.append(loss_of(x, mb))
        losses[-1].backward()
    return [loss.detach() for loss in losses]


def complete(table, is_sharded=False, **options):
    costs = Costs.uniform(table.num_stages, (1.0, 1.3, 0.7), latency=0.25)
    return with_transfers(with_gathers(table, **options) if is_sharded else table, costs)


def table_of(name, num_ranks, num_chunks, num_microbatches, unit=None):
    if name == 'zeropp':
        costs = Costs.uniform(num_ranks * num_chunks, (1.0, 1.3, 0.7), latency=0.25)
        return zeropp(num_ranks, num_chunks, num_microbatches, unit, costs)
    if name in TORCH_SCHEDULES:
        return torch_table(name, num_ranks, num_chunks, num_microbatches)
    return make_table(name, num_ranks, num_chunks, num_microbatches)


def runtime_of(ranks, table, stages, dp, device='cpu', **fsdp):
    group = ranks.group(table.num_ranks)
    chunks = {stage: copy.deepcopy(stages[stage])
              for stage in table.stages_of(dist.get_rank(group))}
    if dp:
        options = dict(mesh=ranks.mesh['dp'], reshard_after_forward=False) | fsdp
        for chunk in chunks.values():
            fully_shard(chunk, **options)
    return PipelineRuntime(chunks, table, group=group, device=device,
                           loss_of=loss_for(table.num_microbatches))


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def equality(ranks, name, num_ranks, num_chunks, num_microbatches, unit=None, dp=False,
             kind='mlp', num_steps=1, **options):
    """Losses, gradients and buffers beside those of one process."""
    table = complete(table_of(name, num_ranks, num_chunks, num_microbatches, unit), dp, **options)
    stages = build(kind, table.num_stages)
    runtime = runtime_of(ranks, table, stages, dp)
    num_copies = 2 if dp else 1
    gradient_error = scale = loss_error = 0.0
    for step in range(num_steps):
        batches = [batch_of(kind, MB_SIZE * num_microbatches, index, step)
                   for index in range(num_copies)]
        losses = runtime.step(batches[ranks.copy_index(num_ranks) if dp else 0])
        expected = [one_process(stages, batch, num_microbatches) for batch in batches]
        own = expected[ranks.copy_index(num_ranks) if dp else 0]
        is_last = table.num_stages - 1 in runtime.chunks
        assert len(losses) == (num_microbatches if is_last else 0)
        loss_error = max([loss_error, *((a - b).abs().item() for a, b in zip(losses, own))])
    buffers_equal = True
    for stage, chunk in runtime.chunks.items():
        judge = stages[stage]
        for (key, found), (_, wanted) in zip(chunk.named_parameters(), judge.named_parameters()):
            difference = whole(found.grad) - wanted.grad / num_copies
            gradient_error = max(gradient_error, difference.abs().max().item())
            scale = max(scale, wanted.grad.abs().max().item())
        buffers_equal &= all(torch.equal(a, b) for a, b in zip(chunk.buffers(), judge.buffers()))
    return dict(loss_error=loss_error, gradient_error=gradient_error / scale,
                buffers_equal=buffers_equal, peak=runtime.spans.peak_in_flight)


CASES = {
    'first': (equality, ('1f1b', 4, 1, 6)),
    'second': (equality, ('zeropp', 4, 2, 8, 4)),
    'third': (equality, ('zeropp', 2, 2, 6, 3), dict(dp=True)),
    'conv': (equality, ('zeropp', 4, 2, 6, 4), dict(kind='conv', num_steps=3)),
    'att': (equality, ('zeropp', 4, 2, 6, 4), dict(kind='attention')),
    'zbv': (equality, ('zbv', 4, 2, 6), dict(kind='attention')),
}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                            world_size=WORLD, timeout=datetime.timedelta(seconds=20))
    ranks, found = Ranks(), {}
    for name, (case, args, *options) in CASES.items():
        start = time.perf_counter()
        own = case(ranks, *args, **(options[0] if options else {}))
        everyone = [None] * WORLD
        dist.all_gather_object(everyone, own)
        found[name] = everyone
        if rank == 0:
            print(f'{name}: {time.perf_counter() - start:.2f} s {everyone}', flush=True)
    if rank == 0:
        (folder / 'found.json').write_text(json.dumps(found))


def main(folder):
    children = []
    for rank in range(WORLD):
        child = os.fork()
        if not child:
            code = 1
            try:
                work(rank, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
