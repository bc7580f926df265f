"""How a model is spread over a pipeline, and the layers of each stage over shards."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmengine._strategy import SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError
from vision.common.mm.agreement import decided_by_first, join_ranks
from vision.common.mm.hooks import of_ours
from vision.common.mm.strategies import require_ranks
from vision.common.nn.checkpoint_folder import ELSEWHERE
from vision.common.nn.seeds import kept_random_states
from vision.pipeline.core.cut import cut
from vision.pipeline.core.tasks import Table, row_as_text, row_from_text
from vision.pipeline.core.transfers import validate
from vision.pipeline.mm.model import PipelinedModel
from vision.pipeline.mm.numbering import Numbering
from vision.pipeline.mm.plan import ONE_CHUNK, V_SHAPED, Planner, stage_costs, wrong_option
from vision.pipeline.nn.chunks import (
    Chunk,
    Piece,
    PieceCost,
    count_pieces,
    keep_pieces,
    measure_pieces,
    pieces_of,
)
from vision.pipeline.nn.profile import measured_costs
from vision.registry import STRATEGIES

DTYPES = (None, 'bfloat16', 'float16')


@STRATEGIES.register_module()
class ZeroPPStrategy(SingleDeviceStrategy):
    """Pipeline parallelism between groups of ranks, sharded data inside them, no tensor
    parallelism (ZeroPP, Tang et al., arXiv:2402.03791).

    Rank ``pp_rank * dp + dp_rank`` holds the stages of its ``pp_rank``; neighbours in number share
    stages, so that gathers stay inside a machine and only activations travel between machines.

    Args:
        pp: ranks of a pipeline (P).
        dp: ranks over which the parameters of each stage are sharded (FSDP2), each with data of
            its own. ``pp * dp`` is the number of processes.
        num_microbatches: parts of a batch of one ``dp`` rank (M); ``batch_size`` of the
            train_dataloader is a multiple.
        chunks: stages of each rank (V). Default: 1 for gpipe and 1f1b, 4 where data is sharded
            (two of them are whole at a time), else 2.
        schedule: 'zeropp', 'gpipe', '1f1b', 'interleaved-1f1b', 'breadth-first',
            'interleaved-zero-bubble', 'zbv' or 'dualpipev'. 'auto': zeropp with a unit chosen, or
            with two chunks zbv or dualpipev, where simulation has them faster, or as fast with
            less memory; a number as ``unit`` means zeropp.
        unit: micro-batches of a scheduling unit (U): more wait less and gather less often, fewer
            hold fewer activations. 'auto' takes the fastest that ``memory`` allows, by counted
            costs, and again by costs measured in the first ``profile_steps`` steps.
        memory: of a rank, such as '60GB'.
        profile_steps: steps after which the unit is chosen again; 0: never, for runs with dropout,
            or on several ``dp`` ranks, that must be repeated bit by bit.
        cut: how layers are divided among stages: 'counted' (floating-point operations),
            'measured' (seconds, on rank 0), or the number of pieces of each stage.
        stages: names of the model's modules in order of execution, where it has no
            ``pipeline_stages()``.
        active: chunks of a rank that are gathered at a time, the next one ahead included.
        reduce_grad: gradients are reduced after each unit ('per_unit') or, whole until then, at
            the end of a step ('per_step').
        param_dtype: 'bfloat16' or 'float16' of gathered parameters; gradients are accumulated
            and reduced in float32. Needs ``dp`` > 1.
        checkpoint: 'folder', written by all ranks, or 'full', one file from rank 0. Both are read
            by every strategy and by plain runners.
        **options: of MMEngine's strategies.

    Raises:
        VisionError: VIS-CONFIG-1530, pp x dp is not the number of processes; VIS-CONFIG-1535,
            options that do not go together; VIS-DIST-344, no group of ranks.
    """

    is_sharded = is_split = True

    def __init__(self, *, pp: int, num_microbatches: int, dp: int = 1, chunks: int | None = None,
                 schedule: str = 'auto', unit: int | str = 'auto',
                 memory: str | int | None = None, profile_steps: int = 3,
                 cut: str | Sequence[int] = 'counted', stages: Sequence[str] | None = None,
                 active: int = 2, reduce_grad: str = 'per_unit', param_dtype: str | None = None,
                 checkpoint: str = 'folder', reshard_after_forward: bool = False,
                 **options) -> None:
        for name, value, least in (('pp', pp, 1), ('dp', dp, 1), ('chunks', chunks or 1, 1),
                                   ('num_microbatches', num_microbatches, 1),
                                   ('profile_steps', profile_steps, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise wrong_option(f'{name}={value!r}', name, f'a whole number from {least} on')
        for name, value, allowed in (('checkpoint', checkpoint, ('folder', 'full')),
                                     ('param_dtype', param_dtype, DTYPES)):
            if value not in allowed:
                raise wrong_option(f'{name}={value!r}', name, f'one of {allowed}')
        if reshard_after_forward:
            raise wrong_option('reshard_after_forward=True', 'reshard_after_forward', 'leave it '
                               'out: the schedule says when a chunk is gathered and given back; a '
                               'module that does it by itself loses gradients without a word')
        if param_dtype and dp == 1:
            raise wrong_option(f'param_dtype={param_dtype!r} with dp=1', 'param_dtype',
                           "dp > 1, or optim_wrapper=dict(type='AmpOptimWrapper')")
        self.pp, self.dp, self.cut, self.stages = pp, dp, cut, stages
        self.profile_steps = profile_steps
        self.param_dtype, self.checkpoint = param_dtype, checkpoint
        amount = None if memory is None else parse_budget(memory)
        if amount is not None and amount.bytes is None:
            raise wrong_option(f'memory={memory!r}', 'memory', "bytes with a unit, such as '60GB'")
        if schedule == 'auto' and unit != 'auto':
            schedule = 'zeropp'
        if chunks is None:
            chunks = 4 if dp > 1 and schedule not in V_SHAPED else 2
            chunks = 1 if schedule in ONE_CHUNK else chunks
        self.planner = Planner(schedule, pp, chunks, num_microbatches, unit,
                               amount and amount.bytes, active, reduce_grad, is_sharded=dp > 1)
        self.numbering: Numbering | None = None
        self._dataloader: Any = None
        super().__init__(**options)
        require_ranks(type(self).__name__)
        if get_world_size() != pp * dp:
            raise VisionError('VIS-CONFIG-1530', f'{get_world_size()} processes for pp={pp} times '
                              f'dp={dp}', where='strategy', why='each process holds the stages of '
                              'one pipeline rank for one share of the data',
                              do=f'bash tools/dist_train.sh CONFIG {pp * dp}, or other pp and dp')
        self.mesh = init_device_mesh('cuda' if torch.cuda.is_available() else 'cpu', (pp, dp),
                                     mesh_dim_names=('pp', 'dp'))
        self.pp_rank, self.dp_rank = self.mesh.get_coordinate()

    def _setup_distributed(self, launcher: str = 'pytorch', backend: str = 'nccl', **options):
        join_ranks(launcher, backend, **options)

    @property
    def data_ranks(self) -> tuple[int, int]:
        """(share of the data that this rank reads, number of shares)."""
        return self.dp_rank, self.dp

    def see_data(self, dataloader) -> None:
        """Read from the first samples of this loader what a micro-batch looks like."""
        self._dataloader = self._dataloader or dataloader

    def prepare(self, model: nn.Module | dict, *, optim_wrapper=None, param_scheduler=None,
                compile: dict | bool = False, dispatch_kwargs: dict | None = None):
        """As MMEngine's: the model cut, this rank's part of it, and an optimizer for that part.

        Raises:
            VisionError: VIS-CONFIG-1514, ``compile``; VIS-CONFIG-1501, VIS-CONFIG-1520 to
                VIS-CONFIG-1527, a model that cannot be cut; VIS-CONFIG-1503, no schedule fits
                ``memory``.
        """
        if self._prepared:
            return self._prepared_components()
        if compile:
            raise VisionError('VIS-CONFIG-1514', f'compile={compile!r} in a pipeline',
                              where='compile', why='the backward pass of compiled layers cannot '
                              'be split into those of inputs and weights', do='compile=False')
        self.dispatch_kwargs.update(dispatch_kwargs or {})
        model = self._init_model_weights(self.build_model(model))
        model = self._with_norms(model)
        pieces = pieces_of(model, self.stages)
        model.train(optim_wrapper is not None)
        costs, ranges = decided_by_first(lambda: self._cut(model, pieces))
        if optim_wrapper is not None:
            self.optim_wrapper = self.build_optim_wrapper(_shared(optim_wrapper), model)
            self.numbering = Numbering(self.optim_wrapper, model)
            self._scale_lr()
        self.names = {name for name, _ in model.named_parameters()} \
            | {name for name, _ in model.named_buffers()}
        self._costs_of = partial(stage_costs, costs, ranges, num_shares=self.dp,
                                 states=self._num_states())
        table = self._planned()
        # From here on nothing but the unit may change: the layers lie where they lie.
        self.planner = replace(self.planner, schedule=table.name)
        chunks = self._own_chunks(model, pieces, ranges, table)
        if optim_wrapper is not None:
            self.numbering.keep(self.optim_wrapper, model)
            self.optim_wrapper.norm_group = self.mesh['pp'].get_group()
        self.model = PipelinedModel(model, chunks, table, group=self.mesh['pp'].get_group(),
                                    device=torch.device(get_device()))
        self._is_profiled = table.name != 'zeropp' or self.planner.unit != 'auto' \
            or not self.profile_steps
        if not self._is_profiled:
            self.model.after_step = self._after_step
        if not self.model.is_last:
            self.logger.addFilter(_is_no_warning_of_no_results)
        if param_scheduler is not None:
            self.param_schedulers = self.build_param_scheduler(param_scheduler,
                                                               self.optim_wrapper)
        self._prepared = True
        return self._prepared_components()

    def _with_norms(self, model: nn.Module) -> nn.Module:
        """SyncBN over the ranks that have the same layers; a CPU has none."""
        if not torch.cuda.is_available():
            return revert_sync_batchnorm(model)
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group = self.mesh['dp'].get_group()
        return model

    def _cut(self, model: nn.Module,
             pieces: Sequence[Piece]) -> tuple[list[PieceCost], list[tuple[int, int]]]:
        inputs = self._micro_batch(model)
        num_stages = self.pp * self.planner.num_chunks
        if self.cut not in ('counted', 'measured'):
            costs, counts = count_pieces(model, pieces, inputs), list(self.cut)
            if len(counts) != num_stages or sum(counts) != len(pieces) or min(counts) < 1:
                raise wrong_option(
                    f'cut={counts} for {len(pieces)} pieces and {num_stages} stages', 'cut',
                    f'{num_stages} numbers from 1 on, {len(pieces)} in all')
            ends = [sum(counts[:i + 1]) for i in range(num_stages)]
            return costs, list(zip([0, *ends], ends, strict=False))
        if self.cut == 'measured':
            device = get_device()
            costs = measure_pieces(model.to(device), pieces, inputs.to(device))
            model.to('cpu')
            return costs, cut([cost.seconds for cost in costs], num_stages)
        costs = count_pieces(model, pieces, inputs)
        return costs, cut([cost.flops for cost in costs], num_stages)

    def _micro_batch(self, model: nn.Module) -> Tensor:
        """Inputs of one micro-batch of the train_dataloader (one sample for evaluation alone)."""
        loader = self._dataloader
        if loader is None:
            raise VisionError('VIS-CONFIG-1537', 'there is no data to see the size of the inputs',
                              where='train_dataloader', do='give a dataloader')
        size = max((loader.batch_size or 1) // self.planner.num_microbatches, 1)
        with kept_random_states():
            samples = [loader.dataset[i % len(loader.dataset)] for i in range(size)]
            data = model.data_preprocessor(loader.collate_fn(samples), True)
        return data['inputs']

    def _own_chunks(self, model: nn.Module, pieces: Sequence[Piece],
                    ranges: Sequence[tuple[int, int]], table: Table) -> dict[int, nn.Module]:
        """This rank's chunks by stage, on its device and sharded; the rest of the model goes."""
        parts = {stage: pieces[slice(*ranges[stage])] for stage in table.stages_of(self.pp_rank)}
        keep_pieces(model, [piece for part in parts.values() for piece in part], pieces)
        model.to(get_device())
        chunks = {stage: Chunk(model, part) for stage, part in parts.items()}
        if self.dp > 1:
            dtype = self.param_dtype and getattr(torch, self.param_dtype)
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) \
                if dtype else MixedPrecisionPolicy()
            for chunk in chunks.values():
                fully_shard(chunk, mesh=self.mesh['dp'], mp_policy=policy,
                            reshard_after_forward=False)
        ends = ', '.join(f'{stage}: {part[0].name} .. {part[-1].name}'
                         for stage, part in parts.items())
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        self.logger.info(f'pipeline rank {self.pp_rank} of {self.pp} has stages {ends} '
                         f'({format_bytes(size)} of parameters over {self.dp} shares)')
        return chunks

    def _num_states(self) -> int:
        """Tensors that the optimizer keeps for each parameter (our estimate, by its options)."""
        if self.numbering is None:
            return 0
        options = self.optim_wrapper.optimizer.defaults
        return 2 if 'betas' in options else int(bool(options.get('momentum')))

    def _planned(self) -> Table:
        """The table that rank 0 finds best by the costs so far, on every rank."""
        table, text = decided_by_first(lambda: self.planner.make(self._costs_of))
        self.logger.info(text)
        return table

    def _after_step(self, num_steps: int) -> None:
        """Choose the unit again, once, by what the first steps took."""
        if num_steps != self.profile_steps or self._is_profiled:
            return
        costs = measured_costs(self.model.runtime, group=self.mesh['pp'].get_group(),
                               dp_group=self.mesh['dp'].get_group() if self.dp > 1 else None,
                               optimizer=self.optim_wrapper.optimizer)
        self._costs_of = lambda _: costs
        self._use(self._planned())

    def _use(self, table: Table) -> None:
        self._is_profiled = True
        self.model.use(table)

    # What of a checkpoint is whose.
    def meta(self) -> dict[str, Any]:
        """What a resumed run should know of this one's schedule."""
        rows = [row_as_text(row) for row in self.model.table.rows] if self._is_profiled else []
        return dict(pipeline=dict(self._sizes(), unit=self.model.table.unit, rows=rows))

    def go_on_from(self, content: dict) -> None:
        """Take the table of the run that wrote a checkpoint, if it was chosen for these sizes:
        dropout is drawn in the order of its actions.

        Raises:
            VisionError: what ``validate`` refuses, it is none that can run.
        """
        stored = dict(content.get('meta', {}).get('pipeline') or {})
        unit, rows = stored.pop('unit', None), stored.pop('rows', [])
        if rows and not self._is_profiled and stored == self._sizes():
            table = replace(self.model.table, unit=unit, rows=tuple(map(row_from_text, rows)))
            validate(table)
            self._use(table)

    def _sizes(self) -> dict[str, Any]:
        planner = self.planner
        return dict(schedule=planner.schedule, pp=self.pp, dp=self.dp, chunks=planner.num_chunks,
                    num_microbatches=planner.num_microbatches)

    def place_of(self, key: tuple) -> Any:
        """The parameter of this rank that an entry of a checkpoint belongs to; ELSEWHERE, of
        another rank; None, of none."""
        name = None
        if key[0] in ('state_dict', 'ema_state_dict') and len(key) == 2:
            name = key[1].removeprefix('module.')
        elif key[:2] == ('optimizer', 'state'):
            if self.numbering is None:  # evaluation steps nothing
                return ELSEWHERE
            if int(key[2]) < len(self.numbering.order):
                name = self.numbering.order[int(key[2])]
        if name not in self.names:
            return None
        own = dict(self.model.module.named_parameters())
        own.update(dict.fromkeys((name for name, _ in self.model.module.named_buffers()), None))
        return own.get(name, ELSEWHERE)

    def optimizer_state(self, state: dict) -> dict:
        """This rank's state, with parameters numbered as in the optimizer of the whole model."""
        return self.numbering.to_global(state)

    def own_optimizer_state(self, state: dict, filename: str) -> dict:
        """What this rank needs of a state of the whole model; ``filename`` is for the error.

        Raises:
            VisionError: the state is of other parameters.
        """
        return self.numbering.to_own(state, filename)

    def _scale_lr(self) -> None:
        """As MMEngine's, by the number of shares of the data instead of processes."""
        if not (self._auto_scale_lr or {}).get('enable'):
            return
        batch = self.dp * self.dispatch_kwargs['train_micro_batch_size_per_gpu']
        ratio = batch / self._auto_scale_lr['base_batch_size']
        self.logger.info(f'learning rate x {ratio:g}: a batch of {batch}')
        for group in self.optim_wrapper.optimizer.param_groups:
            group['lr'] *= ratio


def _is_no_warning_of_no_results(record: logging.LogRecord) -> bool:
    """Metrics warn on every rank that has no predictions; only the last stage's have some."""
    return 'got empty `self.results`' not in record.getMessage()


def _shared(config: Any) -> Any:
    """A config of an optimizer wrapper whose loss scaler skips a step on all ranks or on none."""
    config = of_ours(config)
    if isinstance(config, dict) and config.get('type') in ('AmpOptimWrapper',
                                                           'vision.AmpOptimWrapper'):
        return dict(config, use_fsdp=True)
    return config
