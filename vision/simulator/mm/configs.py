"""What a training config asks for: the model's graph, its strategy, its optimizer.

No data is read. The size of an image is what the training pipeline makes of one, labels are zeros,
and a detector gets a few boxes. Detectors match boxes by their numbers, so they run once for real:
one or two images of at most ``REAL_PIXELS``, from which the batch is grown.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from vision.common.core.amounts import parse_budget
from vision.common.core.errors import VisionError
from vision.common.mm.launch import explained, find_classes
from vision.memory.core.plan import KINDS
from vision.registry import MODELS
from vision.simulator.core.class_rows import ClassRows
from vision.simulator.core.compile import OPTIMIZERS, Settings
from vision.simulator.core.graph import ModuleGraph, larger_batch
from vision.simulator.core.memory_plan import MemoryOptions
from vision.simulator.core.strategy import StrategyTree
from vision.simulator.nn.trace import trace

REAL_PIXELS = 256 * 320
NUM_BOXES = 4
MOST_ROWS = 4096  # of classes, that are traced; the others are counted
MOST_TRACED = 256  # samples; each has a label of its own, and larger batches only grow
# Keys in which transforms of a pipeline say how large an image leaves them.
SIZE_KEYS = ('crop_size', 'img_scale', 'scale', 'size', 'input_size', 'img_size')
# Optimizers by class name, as step costs; any other is taken for Adam, which is said.
KNOWN_OPTIMIZERS = dict(adamw='adamw', adam='adam', sgd='sgd')


@dataclass
class Configured:
    """A config, ready to be compiled.

    Args:
        graph: of one micro-batch of one share of the data.
        tree: how it is spread; ``pipeline`` holds a ZeroPPStrategy's own options, ``memory`` the
            budget of activations, ``class_rows`` those of an ActiveClassHead.
        batch_size: samples of a rank's step.
        stages: names of a pipeline's pieces in order.
        param_dtype: that the strategy computes and gathers in, if it says so.
        notes: what was assumed.
    """

    graph: ModuleGraph
    tree: StrategyTree
    settings: Settings
    batch_size: int
    image_size: tuple[int, int]
    memory: MemoryOptions | None = None
    class_rows: ClassRows | None = None
    pipeline: dict[str, Any] | None = None
    stages: tuple[str, ...] = ()
    param_dtype: str | None = None
    notes: list[str] = field(default_factory=list)


def read_training(config: Config, *, num_gpus: int | None = None, batch_size: int | None = None,
                  image_size: tuple[int, int] | None = None) -> Configured:
    """What the config trains, as a graph and a strategy.

    Args:
        num_gpus: ranks; None: what its strategy needs, or one.
        batch_size: samples of each rank; None: the train_dataloader's.
        image_size: (height, width); None: as the training pipeline says.

    Raises:
        VisionError: VIS-CONFIG-1630, it trains nothing; VIS-CONFIG-1631, nothing says how large
            its images are; VIS-CONFIG-1632, its strategy cannot have so many ranks;
            VIS-CONFIG-1677, activation_memory that training refuses; and what ``trace`` refuses.
    """
    missing = [key for key in ('train_dataloader', 'train_cfg', 'optim_wrapper')
               if not config.get(key)]
    if missing:
        raise VisionError('VIS-CONFIG-1630', f'{config.filename} trains nothing',
                          where='config', why=f'it has no {", ".join(missing)}',
                          do='give a config that tools/train.py would run')
    loader, wrapper = config.train_dataloader, config.optim_wrapper
    batch = batch_size or int(loader.get('batch_size') or 1)
    size = image_size or _image_size(loader) or _size_of_backbone(config.model)
    notes: list[str] = []
    strategy = dict(config.get('strategy') or {})
    num_microbatches = int(wrapper.get('accumulative_counts', 1))
    of_pipeline = strategy if strategy.get('type') == 'ZeroPPStrategy' else None
    samples = batch
    if of_pipeline:
        num_microbatches = int(of_pipeline['num_microbatches'])
        samples = _divided(batch, num_microbatches)
    autocast = _autocast(wrapper, strategy)
    rows, config = _class_rows(config, notes)
    graph, model = _graph(config, samples, size, autocast, rows.grown if rows else 1.0)
    tree, ranks = _tree(strategy, model, num_gpus)
    optimizer = _optimizer(wrapper.get('optimizer') or {}, notes)
    param_dtype = strategy.get('param_dtype')
    if of_pipeline:
        notes += _pipeline_notes(of_pipeline)
    if rows and of_pipeline:
        notes.append('class rows of the head are left out of a pipeline')
    settings = Settings(num_microbatches=1 if of_pipeline else num_microbatches,
                        optimizer=optimizer,
                        has_bucket_copies=not _views(config),
                        gathered_bytes=param_dtype and getattr(torch, param_dtype).itemsize)
    if of_pipeline and num_gpus not in (None, ranks):
        raise VisionError('VIS-CONFIG-1632', f'--gpus {num_gpus} for pp={of_pipeline["pp"]} times '
                          f'dp={of_pipeline.get("dp", 1)}', where='strategy',
                          do=f'--gpus {ranks}, or other pp and dp in the config')
    stages: tuple[str, ...] = ()
    if of_pipeline or hasattr(model, 'pipeline_stages'):
        from vision.pipeline.nn.chunks import pieces_of
        names = of_pipeline.get('stages') if of_pipeline else None
        try:
            stages = tuple(piece.name for piece in pieces_of(model, names))
        except VisionError:  # a backbone that cannot be cut trains all the same
            if of_pipeline:
                raise
    memory = _memory(config.get('activation_memory'), notes, is_pipeline=bool(of_pipeline))
    return Configured(graph, tree, settings, batch, size, memory, rows, of_pipeline, stages,
                      param_dtype, [*graph.notes, *notes])


def _memory(options: Mapping | None, notes: list[str], *, is_pipeline: bool
            ) -> MemoryOptions | None:
    """The budget of ``activation_memory``."""
    if not options:
        return None
    if is_pipeline or options.get('budget') is None:
        raise VisionError('VIS-CONFIG-1677', 'activation_memory in a pipeline' if is_pipeline
                          else 'activation_memory without a budget', where='activation_memory',
                          why='tools/train.py refuses it too', do='leave activation_memory out, '
                          'or shard the model (FSDP2Strategy) instead' if is_pipeline
                          else "activation_memory=dict(budget='12GB'), or a ratio: budget=0.4")
    if options.get('mode') == 'reactive' or options.get('compile'):
        notes.append('activation_memory is planned here, as mode=\'planned\' does from the second '
                     'step on')
    host, ratio = options.get('host_budget'), parse_budget(options['budget'])
    actions = options.get('actions', 'both')
    if actions not in KINDS or host is not None and parse_budget(host).bytes is None:
        raise VisionError('VIS-CONFIG-1678', f'activation_memory with actions={actions!r}, '
                          f'host_budget={host!r}', where='activation_memory',
                          why=f'actions are {", ".join(KINDS)}, and a host budget is a size',
                          do="activation_memory=dict(budget=0.4, actions='both', "
                          "host_budget='32GB')")
    given = {key: options[key] for key in ('actions', 'min_bytes') if key in options}
    return MemoryOptions(ratio.ratio, ratio.bytes, ignore=tuple(options.get('ignore') or ()),
                         host_bytes=None if host is None else parse_budget(host).bytes, **given)


def _divided(batch: int, num_microbatches: int) -> int:
    if batch % num_microbatches:
        raise VisionError('VIS-CONFIG-1639', f'a batch of {batch} in {num_microbatches} '
                          'micro-batches', where='strategy.num_microbatches',
                          do='choose a number that divides train_dataloader.batch_size')
    return batch // num_microbatches


def _image_size(loader: Mapping) -> tuple[int, int] | None:
    """(height, width) behind the pipeline's last transform that names a size."""
    dataset: Any = loader.get('dataset') or {}
    found = None
    for _ in range(6):  # data sets may be wrapped in data sets
        for step in dataset.get('pipeline') or ():
            sizes = [_pair(step.get(key), key) for key in SIZE_KEYS if step.get(key)]
            if not sizes and step.get('scales'):
                sizes = [_pair(max(step['scales'], key=_area), 'scales')]
            found = sizes[-1] if sizes and sizes[-1] else found
        inner = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if not inner:
            break
        found, dataset = found, inner
    return found


def _size_of_backbone(model: Mapping) -> tuple[int, int]:
    """(height, width) of a backbone that is built for one size, as those of faces are."""
    options = model.get('backbone') or {}
    for cls in find_classes(options.get('type')):
        for key in ('image_size', 'img_size'):
            parameter = inspect.signature(cls).parameters.get(key)
            size = options.get(key, parameter.default if parameter else None)
            if isinstance(size, int):
                return size, size
    raise VisionError('VIS-CONFIG-1631', 'nothing in the training pipeline says how large an '
                      'image is', where='train_dataloader.dataset.pipeline',
                      why=f'no transform has one of {", ".join(SIZE_KEYS)}, and the backbone is '
                      'not built for one size', do='--image-size 320x240 (width x height)')


def _area(scale: Any) -> int:
    return scale[0] * scale[1] if isinstance(scale, Sequence) else scale * scale


def _pair(value: Any, key: str) -> tuple[int, int] | None:
    """(height, width); scales of resizes are (width, height), crops (height, width)."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, Sequence) and len(value) == 2 and all(
            isinstance(each, int) and each > 1 for each in value):
        first, second = value
        return (first, second) if key in ('crop_size', 'size') else (second, first)
    return None


def _autocast(wrapper: Mapping, strategy: Mapping) -> str | None:
    """dtype of computation: of an AMP wrapper, or of FSDP2's gathered parameters."""
    if 'Amp' in str(wrapper.get('type', '')):
        return str(wrapper.get('dtype') or 'float16')
    return strategy.get('param_dtype')


def _optimizer(options: Mapping, notes: list[str]) -> str:
    name = str(options.get('type', '')).rpartition('.')[2]
    if name == 'SGD' and options.get('momentum'):
        return 'momentum'
    known = KNOWN_OPTIMIZERS.get(name.lower())
    if known is None:
        notes.append(f'optimizer {name or "of no name"} is priced as Adam: two states of each '
                     'parameter')
    assert known is None or known in OPTIMIZERS
    return known or 'adam'


def _pipeline_notes(options: Mapping) -> list[str]:
    """Where a prediction does not do what ZeroPPStrategy does."""
    notes = []
    if options.get('cut') == 'measured':
        notes.append("cut='measured' is taken as 'counted': nothing runs here that could be "
                     'measured')
    if options.get('param_dtype'):
        notes.append(f'gathers of stages take the time of {options["param_dtype"]}, whole '
                     'parameters the memory that they have in shards')
    return notes


def _class_rows(config: Config, notes: list[str]) -> tuple[ClassRows | None, Config]:
    """Rows of an ActiveClassHead, which are no parameters, and the config as it is traced: with
    as few rows as stand for those that are active, drawn at random."""
    head = config.model.get('head') or {}
    # By name: the room of faces is not imported here.
    if str(head.get('type')).rpartition('.')[2] != 'ActiveClassHead':
        return None, config
    selector, store = head.get('selector') or dict(type='full'), head.get('store') or {}
    centres, dim = int(head.get('num_subcentres', 1)), int(head.in_channels)
    num_rows = int(head.num_classes) * centres
    num_active = min(num_rows, int(selector.get('num_active') or num_rows) * centres)
    traced = max(2, min(num_active // centres, MOST_ROWS))
    config = copy.deepcopy(config)
    config.model.head.num_classes = traced
    for key in ('selector', 'store', 'correction'):
        config.model.head.pop(key, None)
    notes.append(f'{num_active} of the {num_rows} class rows are active in each step; what '
                 'chooses them is not priced')
    return ClassRows('head', num_rows, dim, _numbers_of_row(dim, store.get('optimizer') or {}),
                     num_active, store.get('backend') == 'host',
                     grown=num_active / (traced * centres)), config


def _numbers_of_row(dim: int, optimizer: Mapping) -> int:
    """Of four bytes: a class row, its optimizer's states (LazySGD, LazyAdamW, RowAdaGrad), and
    the step in which it was up to date."""
    kind = optimizer.get('type', 'sgd')
    states = dict(sgd=dim if optimizer.get('momentum') else 0, adamw=2 * dim + 1, row_adagrad=1)
    return dim + states.get(kind, 0) + 1


def _views(config: Config) -> bool:
    wrapper = config.get('model_wrapper_cfg') or {}
    return bool(wrapper.get('gradient_as_bucket_view'))


def _tree(strategy: Mapping, model: nn.Module, num_gpus: int | None) -> tuple[StrategyTree, int]:
    """How the config spreads its model, without a pipeline's stages; number of ranks."""
    kind = strategy.get('type')
    if kind == 'ZeroPPStrategy':
        ranks = int(strategy['pp']) * int(strategy.get('dp', 1))
        return StrategyTree(), ranks
    ranks = num_gpus or 1
    tree = StrategyTree(ranks).split('', 'batch', ranks)
    if kind == 'FSDP2Strategy' and ranks > 1:
        tree.shard('', zero=3)
        wrapped = set(strategy.get('wrap') or ())
        for name, module in model.named_modules():
            if type(module).__name__ in wrapped and name:
                tree.shard(name, zero=3)
    return tree, ranks


def _graph(config: Config, batch: int, size: tuple[int, int], autocast: str | None,
           grown: float) -> tuple[ModuleGraph, nn.Module]:
    """(graph of a batch, the model without data); ``grown``: how much more than what was built is
    done outside of the backbone."""
    with explained(config), torch.device('meta'):
        model = _build(config)
    call = _Loss(model)
    failure: VisionError | None = None
    try:
        traced = min(batch, MOST_TRACED)
        inputs = _inputs(model, traced, size)
        inputs['inputs'] = inputs['inputs'].to('meta')
        graph = trace(model, inputs, loss=call, autocast=autocast, how='fake')
        return graph if traced == batch and grown == 1 else larger_batch(
            graph, grown * batch / traced, {'backbone': batch / traced}), model
    except VisionError as error:
        if error.code != 'VIS-RUN-1611':
            raise
        failure = error
    with explained(config):
        real = _build(config)
    height, width = size
    shrink = min(1.0, (REAL_PIXELS / (height * width))**0.5)
    small = size if shrink == 1 else tuple(
        max(32, round(side * shrink / 32) * 32) for side in size)
    images = min(batch, 2)  # BatchNorm of vectors refuses a single one
    graph = trace(real, _inputs(real, images, small), loss=_Loss(real), autocast=autocast,
                  how='real')
    samples, pixels = batch / images, height * width / (small[0] * small[1])
    boxes = ['roi_head'] if hasattr(real, 'roi_head') else []
    graph = larger_batch(graph, samples * pixels, dict.fromkeys(boxes, samples)) \
        if grown == 1 else larger_batch(graph, samples * grown, {'backbone': samples * pixels})
    reason = str(failure.__cause__).splitlines()[0][:80] if str(failure.__cause__) else ''
    note = f'{images} of {small[1]}x{small[0]} pixels ran for real ({reason})'
    return replace(graph, batch_size=batch, notes=(*graph.notes, note)), model


def _build(config: Config) -> nn.Module:
    options = config.model
    for key in ('init_cfg', 'pretrained'):  # weights are of no use here
        if isinstance(options.get('backbone'), Mapping):
            options.backbone.pop(key, None)
    return MODELS.build(options)


class _Loss:
    """The sum that MMEngine's train_step goes back from."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, outputs: Any) -> Tensor:
        return self.model.parse_losses(outputs)[0]


def _inputs(model: nn.Module, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of ``forward`` in mode 'loss', as the preprocessor leaves them."""
    height, width = size
    divisor = getattr(getattr(model, 'data_preprocessor', None), 'pad_size_divisor', 1) or 1
    height, width = (-(-side // divisor) * divisor for side in (height, width))
    is_detector = any(hasattr(model, name) for name in ('bbox_head', 'rpn_head', 'roi_head'))
    make = _detection if is_detector else _labelled
    stem = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    images = torch.zeros(batch, stem.in_channels if stem else 3, height, width)
    return dict(inputs=images, mode='loss',
                data_samples=[make(height, width) for _ in range(batch)])


def _labelled(height: int, width: int) -> BaseDataElement:
    sample = BaseDataElement(metainfo=dict(img_shape=(height, width)))
    sample.gt_label = torch.zeros(1, dtype=torch.int64)
    return sample


def _detection(height: int, width: int) -> Any:
    """Boxes of several sizes, so that all levels of a pyramid have something to do."""
    from mmdet.structures import DetDataSample
    sample = DetDataSample(metainfo=dict(
        img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
        batch_input_shape=(height, width), scale_factor=(1.0, 1.0), flip=False))
    side = torch.tensor([0.1, 0.2, 0.4, 0.8][:NUM_BOXES])
    boxes = torch.stack((side * 0, side * 0, side * width, side * height), 1)
    sample.gt_instances = InstanceData(bboxes=boxes,
                                       labels=torch.zeros(NUM_BOXES, dtype=torch.int64))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4),
                                            labels=torch.zeros(0, dtype=torch.int64))
    return sample
