"""A network as an ONNX file that is kept only if onnxruntime gives what PyTorch gives."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vision.common.core.errors import VisionError

OPSET = 17


def export_onnx(module: nn.Module, batches: Sequence[Tensor], target: Path, *, output: str,
                tolerance: float, metadata: Mapping[str, str] | None = None,
                half_from: int | None = None) -> float:
    """Write ``module`` (images to one tensor, any batch size) as ``target``.

    Args:
        batches: images (B, C, H, W); the first is traced, all are compared.
        output: name of the graph's output; the input is ``images``.
        tolerance: largest allowed difference of an entry.
        metadata: texts that the file carries.
        half_from: weights of so many numbers and more are kept as float16 and widened while the
            network runs: half the file. None: all as they are.
    Returns:
        The largest difference.
    Raises:
        VisionError: VIS-RUN-1007, it differs by more: nothing is written; VIS-ENV-1009 without
            onnx or onnxruntime.
    """
    unfinished = target.with_name(f'{target.name}.unfinished')
    onnx = _package('onnx')
    try:
        with warnings.catch_warnings():
            # torch's newer exporter wants a further package (onnxscript); this one does all we
            # need and says at each use that it is the older one.
            warnings.simplefilter('ignore')
            torch.onnx.export(module.eval(), (batches[0],), str(unfinished), dynamo=False,
                              opset_version=OPSET, input_names=['images'], output_names=[output],
                              dynamic_axes={'images': {0: 'batch'}, output: {0: 'batch'}})
        graph = onnx.load(str(unfinished))
        if half_from is not None:
            _halve(onnx, graph.graph, half_from)
        onnx.helper.set_model_props(graph, dict(metadata or {}))
        onnx.save(graph, str(unfinished))
        difference = compare(module, unfinished, batches)
        if not difference <= tolerance:
            raise _refused(f'differs from PyTorch by {difference:.2g}', target,
                           f'allowed is {tolerance:g}')
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return difference


def compare(module: nn.Module, path: Path, batches: Sequence[Tensor]) -> float:
    """Largest difference of an entry between onnxruntime and PyTorch."""
    session = _package('onnxruntime').InferenceSession(str(path),
                                                       providers=['CPUExecutionProvider'])
    differences = []
    for batch in batches:
        try:
            actual, = session.run(None, dict(images=batch.numpy()))
        except Exception as error:  # onnxruntime has an exception class for each fault
            raise _refused('cannot be run', path, str(error).split('\n')[0][:300]) from error
        with torch.inference_mode():
            expected = module(batch)
        differences.append(float((torch.from_numpy(actual) - expected).abs().max()))
    return max(differences)


def _refused(what: str, target: Path, why: str) -> VisionError:
    return VisionError('VIS-RUN-1007', f'the exported graph {what}', where=str(target), why=why,
                       do='update onnxruntime, or raise the tolerance if your use allows it; '
                       'nothing was written')


def _halve(onnx, graph, half_from: int) -> None:
    """Float weights of at least so many numbers as float16, with a Cast behind each."""
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or values.size < half_from:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype('float16'), f'{name}_half'))
        graph.node.insert(0, onnx.helper.make_node(
            'Cast', [f'{name}_half'], [name], to=onnx.TensorProto.FLOAT))


def _package(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise VisionError('VIS-ENV-1009', f'the package {name} is not installed',
                          why='the export and its check need onnx and onnxruntime',
                          do="pip install 'frugal-vision[onnx]'") from error
