"""What the room uses of torch without its promise does what the room needs."""

import inspect
from collections import Counter

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
from torch.distributed.pipelining.stage import _RecvInfo

from vision.common.core.errors import VisionError
from vision.pipeline.core import tasks
from vision.pipeline.core.tasks import Action, B, F, I, Table, W, looped, v_shaped
from vision.pipeline.nn.torch_private import (
    TORCH_SCHEDULES,
    Kind,
    Stage,
    TorchAction,
    has_chained_uses,
    to_torch,
    torch_table,
)

SIZES = [('interleaved-zero-bubble', 4, 4, 28), ('interleaved-zero-bubble', 4, 1, 8),
         ('interleaved-zero-bubble', 1, 2, 3), ('interleaved-zero-bubble', 4, 2, 2),
         ('zbv', 4, 2, 16), ('zbv', 4, 2, 2), ('zbv', 1, 2, 4), ('dualpipev', 4, 2, 16),
         ('dualpipev', 1, 2, 4)]


def test_our_kinds_are_those_of_torch():
    assert {kind.value for kind in Kind} - {'OVERLAP_F_B'} == \
        {*tasks.COMPUTE, *tasks.TRANSFERS, tasks.UNSHARD, tasks.RESHARD, tasks.REDUCE_GRAD}
    assert TorchAction._fields == ('stage_index', 'computation_type', 'microbatch_index',
                                   'sub_actions')


def test_actions_of_torch_are_written_like_ours():
    row = (Action(3, F, 0), Action(3, tasks.SEND_F, 0), Action(3, tasks.UNSHARD), Action(3, I, 12))
    table = Table('x', (0,), 1, (row,))
    assert [str(action) for action in to_torch(table)[0]] == [str(action) for action in row]
    assert [TorchAction.from_str(str(action)) for action in row] == to_torch(table)[0]


@pytest.mark.parametrize('method, parameters', [
    (_PipelineScheduleRuntime._step_microbatches,
     ['self', 'arg_mbs', 'kwarg_mbs', 'target_mbs', 'losses', 'return_outputs', 'loss_kwargs']),
    (_PipelineScheduleRuntime._prepare_schedule_with_comms, ['self', 'actions', 'format']),
    (_PipelineScheduleRuntime._initialize_stages,
     ['self', 'args', 'kwargs', 'target', 'loss_kwargs']),
    (_PipelineScheduleRuntime._maybe_get_loss, ['self', 'stage', 'mb_index']),
    (_PipelineScheduleRuntime._maybe_compute_loss,
     ['self', 'stage', 'output', 'target_mbs', 'mb_index', 'loss_kwargs']),
    (_RecvInfo.__init__,
     ['self', 'input_name', 'source', 'buffer', 'tensor_meta', 'is_root_arg']),
    (FSDPParamGroup.post_backward, ['self', 'unused']),
    (FSDPParam.accumulate_unsharded_grad_if_needed, ['self']),
    (FSDPParam.to_accumulated_grad_if_needed, ['self']),
], ids=lambda value: getattr(value, '__qualname__', ''))
def test_parameters_of_what_is_called(method, parameters):
    assert list(inspect.signature(method).parameters) == parameters


def test_each_method_that_a_stage_replaces_is_one_of_torch_with_the_same_parameters():
    own = {'__init__', 'take_loss', 'finish', '_send', '_refuse_sharded', '_refuse_no_groups'}
    replaced = {name for name, value in vars(Stage).items() if inspect.isfunction(value)} - own
    assert len(replaced) >= 11
    for name in replaced - {'forward_maybe_with_nosync', '_compute_input_grads'}:
        assert list(inspect.signature(getattr(Stage, name)).parameters) == \
            list(inspect.signature(getattr(PipelineStage, name)).parameters), name
    assert callable(PipelineStage.forward_maybe_with_nosync)
    assert callable(PipelineStage._compute_input_grads)


@pytest.mark.parametrize('name, num_ranks, num_chunks, num_microbatches', SIZES)
def test_a_table_of_torch_has_each_task_once_on_its_rank(name, num_ranks, num_chunks,
                                                         num_microbatches):
    table = torch_table(name, num_ranks, num_chunks, num_microbatches)
    assert table.rank_of == (looped(num_ranks, num_chunks) if 'interleaved' in name
                             else v_shaped(num_ranks))
    found = Counter((action, rank) for rank, row in enumerate(table.rows) for action in row)
    expected = Counter()
    for stage, rank in enumerate(table.rank_of):
        for mb in range(num_microbatches):
            kinds = (F, B) if found[Action(stage, B, mb), rank] else (F, I, W)
            expected.update((Action(stage, kind, mb), rank) for kind in kinds)
    assert found == expected


def test_pairs_that_overlap_stand_one_after_the_other():
    row = torch_table('dualpipev', 2, 2, 4).rows[0]
    assert [str(action) for action in row[8:12]] == ['3B1', '3F2', '0B0', '3B2']


@pytest.mark.parametrize('name, num_ranks, num_chunks, num_microbatches, match', [
    ('zb', 2, 2, 4, 'allowed are interleaved-zero-bubble, zbv, dualpipev'),
    ('zbv', 2, 3, 4, 'two chunks'), ('dualpipev', 4, 2, 7, 'stages, 8'),
    ('interleaved-zero-bubble', 4, 2, 9, '2 equal rounds'), ('zbv', 0, 2, 4, 'at least 1'),
])
def test_what_torch_has_no_schedule_of_is_refused(name, num_ranks, num_chunks, num_microbatches,
                                                  match):
    with pytest.raises(VisionError, match=match) as caught:
        torch_table(name, num_ranks, num_chunks, num_microbatches)
    assert caught.value.code == 'VIS-CONFIG-1510'
    assert all(name in caught.value.do for name in TORCH_SCHEDULES)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.shared(self.norm(self.shared(x)))


class SideBySide(Twice):
    def forward(self, x):
        return self.shared(x) + self.shared(self.norm(x))


@pytest.mark.parametrize('module, expected', [
    (Twice(), True), (SideBySide(), False), (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), False),
    (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), False)],
    ids=lambda value: type(value).__name__)
def test_a_weight_behind_another_use_of_itself_is_found(module, expected):
    x = torch.randn(3, 4) if not isinstance(module, nn.TransformerEncoderLayer) else \
        torch.randn(2, 3, 4)
    x.requires_grad_()
    assert has_chained_uses([module(x)], [x], module.parameters()) is expected
