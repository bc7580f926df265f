"""What a runner holds of a model that is spread over a pipeline, and the steps it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.registry import MODEL_WRAPPERS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from vision.common.core.errors import VisionError
from vision.pipeline.core.tasks import Table
from vision.pipeline.nn.evaluate import forward_only
from vision.pipeline.nn.runtime import PipelineRuntime


@MODEL_WRAPPERS.register_module()
class PipelinedModel(nn.Module):
    """This rank's layers, and the steps that all ranks of a pipeline take together.

    ``module`` is the model with its other layers taken out: what is left has the names that it
    has in the whole model, so that hooks which walk a model find their way.

    Args:
        module: an MMEngine model with ``finish(outputs, data_samples, mode)``: 'loss' gives its
            losses, 'predict' its results, both from what its last layer gave.
        chunks: of this rank by stage, made of the module's own layers.
        table: the first one; ``use`` changes it.
        group: ranks of this pipeline.

    Attributes:
        after_step: called with the number of steps so far, on all ranks at the same places.

    Raises:
        VisionError: VIS-CONFIG-1532, the model has no method ``finish``.
    """

    def __init__(self, module: nn.Module, chunks: Mapping[int, nn.Module], table: Table, *,
                 group: dist.ProcessGroup, device: torch.device) -> None:
        super().__init__()
        if not hasattr(module, 'finish'):
            raise VisionError(
                'VIS-CONFIG-1532', f'{type(module).__name__} has no method finish',
                where='model', why='the rank of the last layer computes losses and predictions '
                'from what that layer gives; nothing else of the model is there',
                do='def finish(self, outputs, data_samples, mode): the losses (mode "loss") or '
                'the samples with predictions ("predict"); see ImageClassifier')
        self.module = module
        self.is_first, self.is_last = 0 in chunks, table.num_stages - 1 in chunks
        self._group, self._device = group, device
        self._chunks, self._table = dict(chunks), table  # the modules are those of ``module``
        self._batch: list | None = None
        self._logged: dict[int, dict[str, float]] = {}
        self._scaled: Any = None
        self.runtime: PipelineRuntime | None = None
        self.num_steps = 0
        self.after_step: Callable[[int], None] | None = None

    @property
    def table(self) -> Table:
        """What the next step runs."""
        return self._table

    def use(self, table: Table) -> None:
        """Run this table from the next step on."""
        self._table = table
        if self.runtime is not None:
            self.runtime.use(table)

    def train_step(self, data: dict, optim_wrapper) -> dict[str, float]:
        """One step: all micro-batches forward and backward, then the optimizer.

        Returns:
            On every rank the losses, and what else the model logs, of the last stage: means over
            the micro-batches.

        Raises:
            VisionError: VIS-CONFIG-1511, the batch is no multiple of the micro-batches;
                VIS-CONFIG-1533, the model has other numbers of inputs and samples.
        """
        if self.runtime is None:
            self.runtime = PipelineRuntime(self._chunks, self._table, group=self._group,
                                           device=self._device, loss_of=self._loss_of)
        with optim_wrapper.optim_context(self):
            data = self.module.data_preprocessor(data, True)
            self._batch = self._in_parts(data, self._table.num_microbatches)
            self._scaled, self._logged = optim_wrapper.scaled, {}
            # A loss scaler begins with its first loss, and only the last stage has one.
            optim_wrapper.scaled(torch.zeros((), device=self._device))
            self.runtime.step(data['inputs'] if self.is_first else None)
        log = self._told_by_last()
        optim_wrapper.finish_step()
        self._batch = None
        self.num_steps += 1
        if self.after_step is not None:
            self.after_step(self.num_steps)
        return log

    def _in_parts(self, data: dict, num_parts: int) -> list[list | None]:
        """Data samples of each micro-batch."""
        inputs, samples = data['inputs'], data.get('data_samples')
        if len(inputs) % num_parts:
            raise VisionError(
                'VIS-CONFIG-1511', f'a batch of {len(inputs)} samples for {num_parts} '
                'micro-batches', where='train_dataloader.batch_size', why='all micro-batches '
                'have one size, also in the last batch of an epoch', do='make batch_size a '
                f'multiple of {num_parts} with drop_last=True, or change num_microbatches')
        if samples is None:
            return [None] * num_parts
        if len(samples) != len(inputs):
            raise VisionError('VIS-CONFIG-1533', f'{len(inputs)} inputs for {len(samples)} '
                              'samples', where='data_preprocessor', why='micro-batches are '
                              'equal parts of both', do='let each sample be one input')
        size = len(inputs) // num_parts
        return [samples[i:i + size] for i in range(0, len(samples), size)]

    def _loss_of(self, output: Any, mb: int) -> Tensor:
        losses = self.module.finish(output, self._batch[mb], 'loss')
        loss, log = self.module.parse_losses(losses)
        # No numbers yet: on a GPU each would wait for all that was begun, in every micro-batch.
        self._logged[mb] = {name: torch.as_tensor(value).detach() for name, value in log.items()}
        return self._scaled(loss / self._table.num_microbatches)

    def _told_by_last(self) -> dict[str, float]:
        box: list = [None]
        if self.is_last:
            logs = [{name: float(value) for name, value in self._logged[mb].items()}
                    for mb in sorted(self._logged)]
            box = [{name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}]
        dist.broadcast_object_list(box, group=self._group, group_src=self._table.rank_of[-1])
        return box[0]

    def val_step(self, data: dict) -> list:
        """Predictions on the ranks of the last layer; the others have none."""
        data = self.module.data_preprocessor(data, False)
        inputs = data['inputs']
        size = -(-len(inputs) // min(len(inputs), self._table.num_microbatches))
        outputs = forward_only(self._chunks, self._table.rank_of,
                               list(inputs.split(size)) if self.is_first else None,
                               group=self._group, device=self._device)
        if not self.is_last:  # what MMEngine's loops take for: nothing, and no loss
            return [BaseDataElement(loss={})]
        whole = torch.cat(outputs) if isinstance(outputs[0], Tensor) else \
            tuple(map(torch.cat, zip(*outputs, strict=True)))
        return self.module.finish(whole, data.get('data_samples'), 'predict')

    test_step = val_step

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Refused: no rank has all layers.

        Raises:
            VisionError: VIS-RUN-1534, always.
        """
        raise VisionError('VIS-RUN-1534', 'a pipelined model has no forward of its own',
                          why='each rank has some of its layers', do='use train_step, val_step '
                          'and test_step, on all ranks together')
