"""Shares of the data, norms over ranks, one loss scale: what a pipeline asks of others."""

import multiprocessing
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from vision.common.core.errors import VisionError
from vision.common.mm.exact_data import build_dataloader
from vision.common.mm.optim import OptimWrapper, total_norm
from vision.pipeline.core.schedules import make_table
from vision.pipeline.core.tasks import Costs
from vision.pipeline.core.transfers import with_transfers
from vision.pipeline.mm.numbering import Numbering
from vision.pipeline.mm.strategy import _shared
from vision.pipeline.nn.runtime import PipelineRuntime


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return index


def sampler_of(kind, share, num_shares, **options):
    """As MMEngine makes it on this one of so many ranks."""
    with mock.patch('mmengine.dataset.sampler.get_dist_info', lambda: (share, num_shares)):
        return kind(Numbers(), seed=5, **options)


def first(iterable, count=30):
    return [int(value) for value, _ in zip(iterable, range(count), strict=False)]


@pytest.mark.parametrize('kind, options', [
    (DefaultSampler, dict(shuffle=True)), (DefaultSampler, dict(shuffle=False, round_up=False)),
    (InfiniteSampler, dict(shuffle=True))], ids=['rounded', 'short', 'endless'])
@pytest.mark.parametrize('share', [0, 1, 2])
def test_a_share_is_what_mmengine_gives_that_one_of_so_many_ranks(kind, options, share):
    loader = build_dataloader(dict(
        dataset=Numbers(), batch_size=2, num_workers=0,
        sampler=dict(type=kind.__name__, **options)), seed=5, data_ranks=(share, 3))
    expected = sampler_of(kind, share, 3, **options)
    assert first(loader.sampler) == first(expected)
    assert len(loader.sampler) == len(expected)


def test_another_sampler_is_refused():
    class OfMine(DefaultSampler):
        pass
    with pytest.raises(VisionError, match='VIS-CONFIG-1531'):
        build_dataloader(dict(dataset=Numbers(), batch_size=2, num_workers=0,
                              sampler=OfMine(Numbers())), data_ranks=(0, 2))


def in_ranks(work, num_ranks, folder):
    context = multiprocessing.get_context('fork')

    def run(rank, results):
        torch.set_num_threads(1)
        dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank,
                                world_size=num_ranks)
        results.put((rank, work(rank)))
        dist.barrier()
        dist.destroy_process_group()

    results = context.Queue()
    processes = [context.Process(target=run, args=(rank, results)) for rank in range(num_ranks)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [found[rank] for rank in range(num_ranks)]


GRADIENTS = [torch.tensor([3.0, -1.0]), torch.tensor([[2.0]]), torch.tensor([-4.0, 0.5, 1.0])]


@pytest.mark.distributed
@pytest.mark.parametrize('norm_type', [2.0, 1.0, float('inf')])
def test_the_norm_over_ranks_is_that_of_all_gradients(tmp_path, norm_type):
    """Rank 2 has none."""
    parts = [GRADIENTS[:2], GRADIENTS[2:], []]
    found = in_ranks(lambda rank: float(total_norm(parts[rank], norm_type,
                                                   group=dist.group.WORLD)), 3, tmp_path)
    expected = float(torch.nn.utils.get_total_norm(GRADIENTS, norm_type))
    assert found == pytest.approx([expected] * 3)


def stepped(rank, max_norm=None):
    """Weights after a step; rank 1's gradient is NaN without a norm to clip by."""
    weight = nn.Parameter(torch.zeros(2))
    wrapper = OptimWrapper(torch.optim.SGD([weight], lr=1.0),
                           clip_grad=max_norm and dict(max_norm=max_norm))
    wrapper.norm_group = dist.group.WORLD
    weight.grad = torch.tensor([3.0, 0.0]) if rank == 0 else torch.tensor(
        [0.0, 4.0 if max_norm else float('nan')])
    wrapper.finish_step()
    return weight.tolist(), wrapper.num_skipped


@pytest.mark.distributed
def test_all_ranks_clip_by_one_norm_and_leave_out_one_step(tmp_path):
    (tmp_path / 'clip').mkdir()
    clipped = in_ranks(lambda rank: stepped(rank, 1.0), 2, tmp_path / 'clip')
    assert clipped[0][0] == pytest.approx([-0.6, 0.0], abs=1e-6)
    assert clipped[1][0] == pytest.approx([0.0, -0.8], abs=1e-6)
    assert in_ranks(stepped, 2, tmp_path) == [([0.0, 0.0], 1)] * 2


def scaled_step(rank):
    """One rank's gradient overflowed: its scaler's flag, on a device that counts as one."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = ShardedGradScaler(device='cpu', init_scale=8.0)
    scaler.scale(torch.zeros(()))
    weight.grad = torch.tensor([float('inf') if rank == 1 else 8.0])
    scaler.step(optimizer)
    scaler.update()
    return float(weight), scaler.get_scale()


@pytest.mark.distributed
def test_a_loss_scaler_of_float16_skips_a_step_on_all_ranks(tmp_path):
    assert in_ranks(scaled_step, 2, tmp_path) == [(0.0, 4.0)] * 2
    # AmpOptimWrapper takes that scaler when told so.
    assert _shared(dict(type='AmpOptimWrapper', dtype='float16'))['use_fsdp'] is True
    assert 'use_fsdp' not in _shared(dict(type='OptimWrapper'))


def numbering_of(optimizer, model):
    return Numbering(OptimWrapper(optimizer), model)


def test_the_state_of_a_part_is_numbered_as_in_the_whole():
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))

    def groups(model):
        return [dict(params=[model[0].weight, model[1].weight]),
                dict(params=[model[0].bias, model[1].bias], weight_decay=0.0)]

    whole = build()
    judge = torch.optim.AdamW(groups(whole))
    whole(torch.ones(4, 2)).square().sum().backward()
    judge.step()
    part = build()
    wrapper = OptimWrapper(torch.optim.AdamW(groups(part)))
    numbering = Numbering(wrapper, part)
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    part[0] = nn.Identity()  # on another rank
    numbering.keep(wrapper, part)
    for name, parameter in part.named_parameters():
        parameter.grad = gradients[name]
    wrapper.optimizer.step()
    found, expected = numbering.to_global(wrapper.state_dict()), judge.state_dict()
    assert found['param_groups'] == expected['param_groups']
    assert sorted(found['state']) == [1, 3]
    for number in (1, 3):
        for name, tensor in expected['state'][number].items():
            assert torch.equal(found['state'][number][name], tensor)
    own = numbering.to_own(expected, 'x.pth')
    wrapper.optimizer.load_state_dict(own)
    assert numbering.to_global(wrapper.state_dict())['state'].keys() == {1, 3}
    with pytest.raises(VisionError, match='VIS-CONFIG-348'):
        numbering.to_own(torch.optim.AdamW(whole.parameters()).state_dict(), 'x.pth')


class FailsLater(nn.Linear):
    num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        if self.num_calls > 3:  # one is for the shapes
            raise RuntimeError('a broken kernel')
        return super().forward(x)


def failing(rank):
    costs = Costs.uniform(1)
    runtime = PipelineRuntime(
        {0: FailsLater(2, 1)}, with_transfers(make_table('gpipe', 1, 1, 4), costs),
        group=None, device='cpu', loss_of=lambda output, mb: output.sum())
    try:
        runtime.step(torch.ones(4, 2))
    except RuntimeError as error:
        return error.__notes__, str(error.__cause__)


@pytest.mark.distributed
def test_an_error_says_where_in_the_table_it_was(tmp_path):
    (notes, cause), = in_ranks(failing, 1, tmp_path)
    assert notes == ['rank 0 of the pipeline was at or behind 0F2']
    assert cause == 'a broken kernel'
