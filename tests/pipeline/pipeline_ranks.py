"""Four ranks that run all cases of ``test_nn_runtime.py``, one after the other, and tell what
they found: python tests/pipeline/pipeline_ranks.py FOLDER"""

import copy
import datetime
import json
import os
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.tensor import DTensor

from vision.common.core.errors import VisionError
from vision.pipeline.core.gathers import with_gathers
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.tasks import Costs, looped, v_shaped
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.core.zeropp import zeropp
from vision.pipeline.nn import evaluate
from vision.pipeline.nn.evaluate import forward_only
from vision.pipeline.nn.profile import measured_costs
from vision.pipeline.nn.runtime import PipelineRuntime, Spans
from vision.pipeline.nn.torch_private import TORCH_SCHEDULES, to_torch, torch_table

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
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return x.transpose(1, 2).contiguous().transpose(1, 2)


class Several(nn.Module):
    def forward(self, x):
        return dict(x=x)


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
        self.mesh = init_device_mesh('cpu', (2, 2, 1), mesh_dim_names=('dp', 'pp', 'alone'))

    def group(self, num_ranks):
        return {4: dist.group.WORLD, 2: self.mesh.get_group('pp'),
                1: self.mesh.get_group('alone')}[num_ranks]

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
             kind='mlp', num_steps=1, frozen=(), growth=0, **options):
    """Losses, gradients, added up over steps, and buffers beside those of one process.

    ``growth``: samples that a micro-batch has more from step to step.
    """
    table = complete(table_of(name, num_ranks, num_chunks, num_microbatches, unit), dp, **options)
    stages = build(kind, table.num_stages)
    for stage in frozen:
        stages[stage].requires_grad_(False)
    runtime = runtime_of(ranks, table, stages, dp)
    copies = [copy.deepcopy(stages) for _ in range(2 if dp else 1)]
    own = ranks.copy_index(num_ranks) if dp else 0
    for step in range(num_steps):
        batches = [batch_of(kind, (MB_SIZE + growth * step) * num_microbatches, index, step)
                   for index in range(len(copies))]
        losses = runtime.step(batches[own])
        expected = [one_process(judge, batch, num_microbatches)
                    for judge, batch in zip(copies, batches, strict=True)]
        is_last = table.num_stages - 1 in runtime.chunks
        assert losses == (expected[own] if is_last else []), (losses, expected[own])
    return dict(gradient_error=gradient_error(runtime, copies),
                buffers_equal=all(torch.equal(a, b) for stage, chunk in runtime.chunks.items()
                                  for a, b in zip(chunk.buffers(), copies[own][stage].buffers(),
                                                  strict=True)),
                peak=runtime.spans.peak_in_flight)


def gradient_error(runtime, copies):
    """Largest difference from the mean over the copies, relative to the largest gradient; of
    what has none, 1."""
    error, scale = 0.0, 1e-30
    for stage, chunk in runtime.chunks.items():
        for name, found in chunk.named_parameters():
            wanted = [dict(judge[stage].named_parameters())[name].grad for judge in copies]
            if wanted[0] is None:
                assert found.grad is None
                continue
            wanted = torch.stack(wanted).mean(0)
            scale = max(scale, wanted.abs().max().item())
            lost = wanted if found.grad is None else whole(found.grad) - wanted
            error = max(error, lost.abs().max().item())
    return error / scale


def training(ranks, num_ranks=2, num_chunks=2, num_microbatches=6, unit=3):
    """Three steps of AdamW with the norm clipped over the pipeline, and their judge."""
    table = complete(table_of('zeropp', num_ranks, num_chunks, num_microbatches, unit), True)
    stages = build('mlp', table.num_stages)
    runtime = runtime_of(ranks, table, stages, True)
    parameters = [p for chunk in runtime.chunks.values() for p in chunk.parameters()]
    judged = [p for stage in stages for p in stage.parameters()]
    optimizer, judge = (torch.optim.AdamW(each, 1e-2) for each in (parameters, judged))
    norm_error = 0.0
    for step in range(3):
        batches = [batch_of('mlp', MB_SIZE * num_microbatches, index, step)
                   for index in range(2)]
        optimizer.zero_grad(), judge.zero_grad()
        runtime.step(batches[ranks.copy_index(num_ranks)])
        for batch in batches:
            one_process(stages, batch, num_microbatches)
        for p in judged:
            p.grad /= 2
        square = sum(whole(p.grad).square().sum() for p in parameters)
        dist.all_reduce(square, group=ranks.group(num_ranks))
        expected = torch.nn.utils.clip_grad_norm_(judged, 0.01)
        norm_error = max(norm_error, (square.sqrt() / expected - 1).abs().item())
        for p in parameters:
            p.grad *= 0.01 / (square.sqrt() + 1e-6)
        optimizer.step(), judge.step()
    error = max((whole(a) - b).abs().max().item() for stage, chunk in runtime.chunks.items()
                for a, b in zip(chunk.parameters(), stages[stage].parameters(), strict=True))
    return dict(error=error, norm_error=norm_error)


def changes(ranks):
    """Another shape, another table and another number of micro-batches, step after step."""
    stages, found = build('conv', 8), []
    tables = [complete(table_of('zeropp', 4, 2, *sizes)) for sizes in ((6, 3), (6, 6), (4, 4))]
    runtime = runtime_of(ranks, tables[0], stages, False)
    before = torch.get_rng_state()
    for table, size in ((tables[0], 2), (tables[0], 3), (tables[1], 3), (tables[2], 3),
                        (tables[0], 2)):
        for parameter in (p for s in (*stages, *runtime.chunks.values()) for p in s.parameters()):
            parameter.grad = None
        runtime.loss_of = loss_for(table.num_microbatches)
        runtime.use(table)
        batch = batch_of('conv', size * table.num_microbatches, 0)
        runtime.step(batch)
        one_process(stages, batch, table.num_microbatches)
        found.append(gradient_error(runtime, [stages]))
    buffers = all(torch.equal(a, b) for stage, chunk in runtime.chunks.items()
                  for a, b in zip(chunk.buffers(), stages[stage].buffers(), strict=True))
    return dict(errors=found, buffers_equal=buffers,
                is_random_kept=torch.equal(before, torch.get_rng_state()))


def stock(ranks, reshard, with_units):
    """Gradients of torch's runtime as it is: T1 with its own schedule, T2 with ours."""
    torch_runtime, stage_class = schedules._PipelineScheduleRuntime, PipelineStage
    num_microbatches, stages = 6, build('mlp', 4)
    table = complete(table_of('zeropp', 2, 2, 6, 3) if with_units else
                     table_of('interleaved-zero-bubble', 2, 2, 6), True)
    group = ranks.group(2)
    chunks = {stage: copy.deepcopy(stages[stage])
              for stage in table.stages_of(dist.get_rank(group))}
    for chunk in chunks.values():
        fully_shard(chunk, mesh=ranks.mesh['dp'], reshard_after_forward=reshard)
    made = [stage_class(chunk, stage, 4, torch.device('cpu'), group=group)
            for stage, chunk in chunks.items()]
    loss_of = loss_for(num_microbatches)
    options = dict(loss_fn=lambda output, target: loss_of(output, int(target[0])),
                   scale_grads=False)
    if with_units:
        schedule = torch_runtime(made, num_microbatches, **options)
        schedule._prepare_schedule_with_comms(to_torch(table), format='compute_comms')
    else:
        schedule = schedules.ScheduleInterleavedZeroBubble(made, num_microbatches, **options)
    copies = [copy.deepcopy(stages) for _ in range(2)]
    batches = [batch_of('mlp', MB_SIZE * num_microbatches, index) for index in range(2)]
    for judge, batch in zip(copies, batches, strict=True):
        one_process(judge, batch, num_microbatches)
    inputs = (batches[ranks.copy_index(2)],) if 0 in chunks else ()
    target = torch.arange(num_microbatches).repeat_interleave(MB_SIZE)
    schedule.step(*inputs, target=target, losses=[])
    return dict(error=gradient_error(SimpleNamespace(chunks=chunks), copies))


def bfloat16(ranks):
    """Gradients of bfloat16 are added up in float32: as those of a float32 sum of the judge."""
    num_microbatches = 12
    table = complete(table_of('zeropp', 2, 2, num_microbatches, num_microbatches), True)
    stages = build('mlp', 4)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    runtime = runtime_of(ranks, table, stages, True, mp_policy=policy)
    batch = batch_of('mlp', MB_SIZE * num_microbatches, 0)
    runtime.step(batch)
    judge = [copy.deepcopy(stage).bfloat16() for stage in stages]
    sums = {}
    loss_of = loss_for(num_microbatches)
    for mb, x in enumerate(batch.bfloat16().chunk(num_microbatches)):
        for stage in judge:
            x = stage(x)
        loss_of(x, mb).backward()
        for number, stage in enumerate(judge):
            for name, p in stage.named_parameters():
                sums[number, name] = sums.get((number, name), 0) + p.grad.float()
                p.grad = None
    differences = [(whole(p.grad) - sums[stage, name]).abs().max() / sums[stage, name].abs().max()
                   for stage, chunk in runtime.chunks.items()
                   for name, p in chunk.named_parameters()]
    return dict(error=max(differences).item())


class Counted:
    """Counts the collectives of FSDP2 while it is entered."""
    NAMES = ('all_gather_single', 'reduce_scatter_single')

    def __enter__(self):
        self.counts, self.before = dict.fromkeys(self.NAMES, 0), {}
        for name in self.NAMES:
            self.before[name] = getattr(dist, name)
            setattr(dist, name, self._counting(name))
        return self

    def _counting(self, name):
        def call(*args, **kwargs):
            self.counts[name] += 1
            return self.before[name](*args, **kwargs)
        return call

    def __exit__(self, *args):
        for name in self.NAMES:
            setattr(dist, name, self.before[name])

    @property
    def gathers_and_reduces(self):
        return tuple(self.counts.values())


def counted(ranks, name, num_chunks, num_microbatches, unit=None, **options):
    """Real collectives of a step beside those of the table's row."""
    table = complete(table_of(name, 2, num_chunks, num_microbatches, unit), True, **options)
    runtime = runtime_of(ranks, table, build('mlp', table.num_stages), True)
    batch = batch_of('mlp', MB_SIZE * num_microbatches, 0)
    runtime.step(batch)
    with Counted() as counts:
        runtime.step(batch)
    kinds = [action.kind for action in table.rows[runtime.rank]]
    return dict(real=counts.gathers_and_reduces,
                planned=(kinds.count('UNSHARD'), kinds.count('REDUCE_GRAD')))


class Watched(nn.Module):
    """Counts what its forward passes left alive: graphs by what autograd saved, and outputs."""

    def __init__(self, module, graphs, outputs):
        super().__init__()
        self.module = module
        self.graphs, self.outputs = graphs, outputs

    def forward(self, x):
        mark = type('Mark', (), {})()
        self.graphs.add(mark)
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda tensor: (tensor.detach(), mark), lambda kept: kept[0]):
            output = self.module(x)
        self.outputs.add(output)
        return output


def memory(ranks, name, unit=None):
    """In flight, live graphs and live outputs of a rank at most, with 8 and 16 micro-batches."""
    return dict(few=peaks_of(ranks, complete(table_of(name, 4, 2, 8, unit))),
                many=peaks_of(ranks, complete(table_of(name, 4, 2, 16, unit))))


def peaks_of(ranks, table):
    graphs, outputs, peaks = WeakSet(), WeakSet(), [0, 0]
    stages = [Watched(stage, graphs, outputs) for stage in build('mlp', 8)]
    group = ranks.group(4)
    runtime = PipelineRuntime({s: stages[s] for s in table.stages_of(dist.get_rank(group))}, table,
                              group=group, device='cpu', loss_of=loss_for(table.num_microbatches))

    class Watching(Spans):
        @contextmanager
        def __call__(self, action):
            with super().__call__(action):
                yield
            peaks[:] = max(peaks[0], len(graphs)), max(peaks[1], len(outputs))

    runtime.spans.__class__ = Watching
    for _ in range(2):  # shapes are learned in the first
        peaks[:] = 0, 0
        runtime.step(batch_of('mlp', MB_SIZE * table.num_microbatches, 0))
    assert not graphs
    assert all(info.buffer is None for stage in runtime.stages for infos in
               (*stage.args_recv_info.values(), *stage.grad_recv_info.values()) for info in infos)
    return runtime.spans.peak_in_flight, *peaks


def refusals(ranks):
    """The code of each fault that ends before anything is sent, or on all ranks alike."""
    table, found = complete(table_of('zeropp', 2, 2, 4, 4)), {}
    sharded = complete(table_of('zeropp', 2, 2, 4, 4), True)
    stages = build('mlp', 4)

    def code_of(work):
        try:
            work()
        except VisionError as error:
            return error.code
        return None

    found['reshards'] = code_of(
        lambda: runtime_of(ranks, sharded, stages, True, reshard_after_forward=True))
    found['no gathers'] = code_of(lambda: runtime_of(ranks, table, stages, True))
    found['compute only'] = code_of(
        lambda: runtime_of(ranks, table_of('zeropp', 2, 2, 4, 4), stages, False))
    found['compiled'] = code_of(
        lambda: runtime_of(ranks, table, [torch.compile(stage) for stage in stages], False))
    found['ranks'] = code_of(lambda: PipelineRuntime(
        {}, table, group=ranks.group(4), device='cpu', loss_of=loss_for(4)))
    wrapped = {stage: nn.parallel.DistributedDataParallel(copy.deepcopy(stages[stage]))
               for stage in table.stages_of(dist.get_rank(ranks.group(2)))}
    found['ddp'] = code_of(lambda: PipelineRuntime(
        wrapped, table, group=ranks.group(2), device='cpu', loss_of=loss_for(4)))
    runtime = runtime_of(ranks, table, stages, False)
    found['batch'] = code_of(lambda: runtime._split(batch_of('mlp', 9, 0)))
    # A pipeline of one rank: all ranks meet the fault in the same place, and none waits.
    alone = complete(table_of('zeropp', 1, 2, 4, 4), True)
    late = runtime_of(ranks, alone, stages[:2], True)
    for chunk in late.chunks.values():
        chunk.set_reshard_after_forward(True)
    found['late'] = code_of(lambda: late.step(batch_of('mlp', 8, 0)))
    unused = [copy.deepcopy(stage) for stage in stages]
    for stage in unused:
        stage.register_parameter('unused', nn.Parameter(torch.ones(2)))
    unused = runtime_of(ranks, table, unused, False)
    found['unused'] = code_of(lambda: unused.step(batch_of('mlp', 8, 0)))
    several = PipelineRuntime({0: Several(), 1: nn.Identity()}, complete(
        table_of('zeropp', 1, 2, 4, 4)), group=ranks.group(1), device='cpu', loss_of=loss_for(4))
    found['outputs'] = code_of(lambda: several.step(batch_of('mlp', 8, 0)))
    found['outputs of evaluation'] = code_of(
        lambda: evaluate._send(dict(x=1), 0, 1, None, 'cpu'))
    found['many outputs'] = code_of(
        lambda: evaluate._send([torch.ones(1)] * 100, 0, 1, None, 'cpu'))
    other = complete(table_of('zeropp', 2, 2, 4, 2))
    if runtime.rank:
        runtime.use(other)
    found['tables'] = code_of(lambda: runtime._agree(()))
    return found


def evaluation(ranks, num_ranks, placement, sizes, dp=False):
    """Outputs of micro-batches of all sizes beside those of one process."""
    rank_of = v_shaped(num_ranks) if placement == 'v' else looped(num_ranks, 3)
    stages = build('attention', len(rank_of))
    group = ranks.group(num_ranks)
    chunks = {stage: copy.deepcopy(stages[stage]) for stage, rank in enumerate(rank_of)
              if rank == dist.get_rank(group)}
    for chunk in chunks.values() if dp else ():
        fully_shard(chunk, mesh=ranks.mesh['dp'], reshard_after_forward=False)
    batches = [batch_of('attention', size, 0, number) for number, size in enumerate(sizes)]
    with Counted() as counts:
        outputs = forward_only(chunks, rank_of, batches if 0 in chunks else None, group=group,
                               device='cpu')
    expected = []
    for x in batches:
        for stage in stages:
            x = stage(x)
        expected.append(x)
    is_last = len(rank_of) - 1 in chunks
    is_equal = bool(outputs) == (is_last and bool(expected)) and \
        all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=is_last))
    return dict(is_equal=is_equal, gathers=counts.gathers_and_reduces[0], chunks=len(chunks),
                is_free=not any(output.requires_grad for output in outputs),
                is_sharded=all(isinstance(p, DTensor) for chunk in chunks.values()
                               for p in chunk.parameters()))


def profile(ranks):
    """Costs of a pipeline of two, sharded, on every rank."""
    table = complete(table_of('zeropp', 2, 2, 6, 3), True)
    runtime = runtime_of(ranks, table, build('mlp', 4), True)
    for _ in range(2):
        runtime.step(batch_of('mlp', MB_SIZE * 6, 0))
    costs = measured_costs(runtime, group=ranks.group(2), dp_group=ranks.mesh.get_group('dp'))
    everyone = [None] * WORLD
    dist.all_gather_object(everyone, costs)
    return dict(is_same=all(other == costs for other in everyone), costs=asdict(costs))


def equality_cases():
    """Name -> (arguments, options) of ``equality``."""
    found = {}
    for num_chunks in (2, 4):
        for dp in (False, True):
            for num_microbatches, unit in ((6, 2), (6, 3), (6, 6), (7, 3)):
                found[f'zeropp-2-{num_chunks}-{num_microbatches}-{unit}-{dp}'] = (
                    ('zeropp', 2, num_chunks, num_microbatches, unit), dict(dp=dp))
        for num_microbatches, unit in ((14, 4), (14, 7), (10, 4), (14, 14)):
            if num_chunks == 4 and unit == 14:
                continue  # a second more, and nothing new
            found[f'zeropp-4-{num_chunks}-{num_microbatches}-{unit}'] = (
                ('zeropp', 4, num_chunks, num_microbatches, unit), {})
    for name, num_chunks in (('gpipe', 1), ('1f1b', 1), ('interleaved-1f1b', 2),
                             ('breadth-first', 2), ('interleaved-zero-bubble', 2), ('zbv', 2),
                             ('dualpipev', 2)):
        found[f'{name}-4'] = (name, 4, num_chunks, 8), {}
        found[f'{name}-2-dp'] = (name, 2, num_chunks, 8), dict(dp=True)
    for kind in ('conv', 'attention'):
        num_steps = 3 if kind == 'conv' else 1
        found[f'{kind}-4'] = ('zeropp', 4, 2, 14, 7), dict(kind=kind, num_steps=num_steps)
        found[f'{kind}-dp'] = ('zeropp', 2, 2, 6, 3), dict(kind=kind, num_steps=2, dp=True)
        found[f'{kind}-per-step'] = (('zeropp', 2, 4, 6, 3),
                                     dict(kind=kind, dp=True, reduce='per_step'))
    found['growth-dp'] = (('zeropp', 2, 2, 6, 3),
                          dict(kind='conv', num_steps=3, growth=1, dp=True))
    found['frozen'] = ('zeropp', 4, 2, 8, 4), dict(frozen=(0, 1, 2))
    found['frozen-v'] = ('zbv', 4, 2, 8), dict(frozen=(0, 1, 2, 3, 4))
    found['frozen-dp'] = ('zeropp', 2, 2, 6, 3), dict(frozen=(0, 2), dp=True)
    return found


CASES = {
    **{f'equal-{name}': (equality, *case) for name, case in equality_cases().items()},
    'training': (training, ()),
    'changes': (changes, ()),
    'stock-right': (stock, (False, False)),
    'stock-reshards': (stock, (True, False)),
    'stock-units': (stock, (False, True)),
    'bfloat16': (bfloat16, ()),
    **{f'counted-{name}-{num_chunks}-{unit}-{active}-{reduce}': (
        counted, (name, num_chunks, 6, unit), dict(active=active, reduce=reduce))
       for name, num_chunks, unit, active, reduce in (
           ('zeropp', 4, 3, 2, 'per_unit'), ('zeropp', 4, 3, 3, 'per_step'),
           ('zeropp', 4, 6, 1, 'per_unit'), ('zeropp', 4, 2, 2, 'per_unit'),
           ('breadth-first', 4, None, 2, 'per_unit'),
           ('interleaved-zero-bubble', 4, None, 2, 'per_unit'))},
    'memory-zeropp': (memory, ('zeropp', 4)),
    'memory-breadth': (memory, ('breadth-first',)),
    'refusals': (refusals, ()),
    'evaluate-looped': (evaluation, (4, 'looped', (2, 2, 2, 2, 2, 1))),
    'evaluate-one': (evaluation, (4, 'looped', (3,))),
    'evaluate-few': (evaluation, (4, 'v', (2, 1))),
    'evaluate-none': (evaluation, (4, 'v', ())),
    'evaluate-v': (evaluation, (4, 'v', (2,) * 9 + (1,))),
    'evaluate-dp': (evaluation, (2, 'looped', (2, 2, 1)), dict(dp=True)),
    'profile': (profile, ()),
}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                            world_size=WORLD, timeout=datetime.timedelta(seconds=20))
    ranks, found = Ranks(), {}
    wanted = os.environ.get('CASES', '').split()
    for name, (case, args, *options) in CASES.items():
        if wanted and not any(part in name for part in wanted):
            continue
        start = time.perf_counter()
        own = case(ranks, *args, **(options[0] if options else {}))
        everyone = [None] * WORLD
        dist.all_gather_object(everyone, own)
        found[name] = everyone
        if rank == 0:
            print(f'{name}: {time.perf_counter() - start:.2f} s {everyone}', flush=True)
    if rank == 0:
        (folder / 'found.json').write_text(json.dumps(found))
    # A rank that leaves closes its connections: not while another still reads from them.
    (folder / f'done-{rank}').touch()
    while len(list(folder.glob('done-*'))) < WORLD:
        time.sleep(0.01)


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
                (folder / f'done-{rank}').touch()  # after an error too: none waits for it
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
