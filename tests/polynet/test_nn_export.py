"""Traced, exported and ONNX graphs compute what the network computes, at several sizes."""

import pytest
import torch

from vision.polynet.core.arch import Arch, released_path_scales
from vision.polynet.nn.blocks import Layers
from vision.polynet.nn.trunk import PolyNetTrunk

TINY = Arch((('2-way',), ('poly-3',), ('mpoly-2',)))
SIZES = [(75, 76), (97, 80)]


@pytest.fixture(scope='module')
def trunk():
    torch.manual_seed(0)
    return PolyNetTrunk(TINY, out_levels=(1, 2, 3, 4), path_scales=released_path_scales(3),
                        layers=Layers(is_same=True)).eval()


def image(size: tuple[int, int]) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(1, 3, *size)


@pytest.mark.parametrize('size', SIZES)
@torch.inference_mode()
def test_traced(trunk, size):
    traced = torch.jit.trace(trunk, image((80, 80)))
    torch.testing.assert_close(traced(image(size)), trunk(image(size)))


def test_exported_for_any_size(trunk):
    dims = {2: torch.export.Dim('height', min=75, max=512), 3: torch.export.Dim(
        'width', min=75, max=512)}
    exported = torch.export.export(trunk, (image((80, 96)),), dynamic_shapes=(dims,)).module()
    for size in SIZES:
        torch.testing.assert_close(exported(image(size)), trunk(image(size)))


@pytest.mark.parametrize('is_same', [False, True])
def test_onnx_gives_the_same_numbers(is_same, tmp_path):
    pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    trunk = PolyNetTrunk(TINY, out_levels=(1, 2, 3, 4), layers=Layers(is_same=is_same)).eval()
    axes = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
    path = str(tmp_path / 'trunk.onnx')
    torch.onnx.export(trunk, (image((80, 80)),), path, input_names=['image'], dynamo=False,
                      dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for size in SIZES:
        expected = trunk(image(size))
        for ours, theirs in zip(expected, session.run(None, {'image': image(size).numpy()}),
                                strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('size', [331, 299, 75, 76, 90])
@pytest.mark.parametrize('is_same', [False, True])
def test_map_sizes(size, is_same):
    with torch.device('meta'):
        maps = PolyNetTrunk(TINY, out_levels=range(5), layers=Layers(is_same=is_same))(
            torch.zeros(2, 3, size, size + 7))

    def sizes(length: int) -> list[int]:
        if is_same:
            return [-(-length // stride) for stride in (2, 4, 8, 16, 32)]
        first = (length - 3) // 2 + 1 - 2
        second = (first - 3) // 2 + 1 - 2
        found = [first, second]
        for _ in range(3):
            found.append((found[-1] - 3) // 2 + 1)
        return found

    assert [y.shape[-2:] for y in maps] == list(zip(sizes(size), sizes(size + 7), strict=True))
