"""ResNet-50 and the detectors built on it as operators, from their published layer lists; for rows
that were measured on images, where no framework of the model is installed.

He et al. 2016 (arXiv:1512.03385) with the stride in the 3 x 3 convolution ('v1.5'); FPN (Lin et
al. 2017, arXiv:1612.03144), RetinaNet (arXiv:1708.02002), Mask R-CNN (arXiv:1703.06870). Any other
model is traced instead (vision.simulator.nn).
"""

from __future__ import annotations

from dataclasses import dataclass

from vision.simulator.core.graph import FORWARD, Op

NUM_BLOCKS = (3, 4, 6, 3)
RESNET50_PARAMETERS = 25_557_032
# Weights of the backbone without its classifier, FPN and heads as in the model zoo's files.
RETINANET_PARAMETERS, MASK_RCNN_PARAMETERS = 37_970_000, 44_400_000


@dataclass
class ConvWriter:
    """Collects operators of a batch of images.

    Args:
        images: in the batch; element_bytes of activations: 2 or 4; dtype: as torch writes it.
        is_trained: whether statistics of BatchNorm are of the batch; frozen, they are one pass.
    """

    images: int
    element_bytes: int
    dtype: str
    is_trained: bool = True

    def __post_init__(self) -> None:
        self.ops: list[Op] = []

    @property
    def saved(self) -> int:
        """Bytes that stay for the backward."""
        return sum(op.saved_bytes for op in self.ops)

    def conv(self, name: str, height: int, width: int, cin: int, cout: int, kernel: int,
             stride: int = 1, *, norm: bool = True, relu: bool = True) -> tuple[int, int]:
        """A convolution, its norm and activation; the size of its output."""
        out_h, out_w = -(-height // stride), -(-width // stride)
        rows = self.images * out_h * out_w
        read = self.images * height * width * cin
        out = rows * cout
        size = self.element_bytes
        weights = cin * cout * kernel * kernel
        self.ops.append(Op(name, name, 'conv', 2.0 * rows * weights, size * (read + out + weights),
                           self.dtype, FORWARD, rows, cout, cin * kernel**2,
                           saved_bytes=size * out, output_bytes=size * out))
        if norm:
            self.small('norm', out, 3 if self.is_trained else 2, is_saved=self.is_trained)
        if relu:
            self.small('relu', out, 2)
        return out_h, out_w

    def linear(self, name: str, rows: int, cin: int, cout: int) -> None:
        """A product of (rows, cin) with (cin, cout); its output stays for the backward."""
        size = self.element_bytes
        self.ops.append(Op(name, name, 'gemm', 2.0 * rows * cin * cout,
                           size * (rows * cin + cin * cout + rows * cout), self.dtype, FORWARD,
                           rows, cout, cin, saved_bytes=size * rows * cout,
                           output_bytes=size * rows * cout))

    def small(self, name: str, elements: int, moved: float, *, is_saved: bool = False) -> None:
        """An element-wise operator without FLOPs that reads and writes ``moved`` times
        ``elements`` numbers; one number each stays for the backward with ``is_saved``."""
        size = self.element_bytes
        saved = size * elements if is_saved else 0
        self.ops.append(Op(name, name, 'elementwise', 0.0, size * moved * elements, self.dtype,
                           saved_bytes=saved, output_bytes=saved))

    def trunk(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """ResNet-50 without its classifier; (height, width, channels) of its four stages."""
        h, w = self.conv('stem', height, width, 3, 64, 7, 2)
        h, w = -(-h // 2), -(-w // 2)
        self.small('max_pool', self.images * h * w * 64, 5)
        levels, cin = [], 64
        for stage, count in enumerate(NUM_BLOCKS):
            mid = 64 * 2**stage
            for block in range(count):
                stride = 2 if stage and not block else 1
                name = f'stage{stage}.{block}'
                self.conv(f'{name}.conv1', h, w, cin, mid, 1)
                out = self.conv(f'{name}.conv2', h, w, mid, mid, 3, stride)
                self.conv(f'{name}.conv3', *out, mid, 4 * mid, 1, relu=False)
                if not block:
                    self.conv(f'{name}.down', h, w, cin, 4 * mid, 1, stride, relu=False)
                (h, w), cin = out, 4 * mid
                self.small('add_relu', self.images * h * w * cin, 4)
            levels.append((h, w, cin))
        return levels

    def pyramid(self, levels: list[tuple[int, int, int]], *, first: int
                ) -> list[tuple[int, int]]:
        """FPN of 256 channels from stage ``first`` on; sizes of its levels, finest first."""
        sizes = []
        for index, (h, w, channels) in enumerate(levels[first:]):
            self.conv(f'fpn.lateral{index}', h, w, channels, 256, 1, norm=False, relu=False)
            self.conv(f'fpn.out{index}', h, w, 256, 256, 3, norm=False, relu=False)
            sizes.append((h, w))
        return sizes


def resnet50(images: int, *, dtype: str, side: int = 224) -> ConvWriter:
    """Forward of a batch; ``saved`` are the bytes that stay for its backward."""
    write = ConvWriter(images, 2 if dtype == 'float16' else 4, dtype)
    write.trunk(side, side)
    write.linear('fc', images, 2048, 1000)
    return write


def retinanet(images: int, height: int, width: int) -> ConvWriter:
    """RetinaNet R-50 FPN in 32 bits, frozen norms: levels P3 to P7, two towers of four."""
    write = ConvWriter(images, 4, 'float32', is_trained=False)
    sizes = write.pyramid(write.trunk(height, width), first=1)
    for level in (6, 7):
        h, w = sizes[-1]
        sizes.append(write.conv(f'fpn.p{level}', h, w, 2048 if level == 6 else 256, 256, 3, 2,
                                norm=False, relu=False))
    for h, w in sizes:
        for tower, out in (('cls', 9 * 80), ('box', 9 * 4)):
            for index in range(4):
                write.conv(f'{tower}.{index}', h, w, 256, 256, 3, norm=False)
            write.conv(f'{tower}.out', h, w, 256, out, 3, norm=False, relu=False)
        # Focal loss in some ten passes over scores of all anchors; assignment of anchors.
        write.small('focal_loss', images * h * w * 9 * 80, 10)
    return write


def mask_rcnn(images: int, height: int, width: int) -> ConvWriter:
    """Mask R-CNN R-50 FPN in 32 bits, frozen norms: 512 boxes and 128 masks of each image."""
    write = ConvWriter(images, 4, 'float32', is_trained=False)
    sizes = write.pyramid(write.trunk(height, width), first=0)
    for h, w in (*sizes, (-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2))):
        write.conv('rpn', h, w, 256, 256, 3, norm=False)
        write.conv('rpn.out', h, w, 256, 15, 1, norm=False, relu=False)
    boxes, masks = 512 * images, 128 * images
    write.small('roi_align', boxes * 256 * 49 * 4, 3)
    write.linear('box.fc1', boxes, 256 * 49, 1024)
    write.linear('box.fc2', boxes, 1024, 1024)
    write.linear('box.out', boxes, 1024, 81 + 320)
    rois = ConvWriter(masks, 4, 'float32', is_trained=False)
    for index in range(4):
        rois.conv(f'mask.{index}', 14, 14, 256, 256, 3, norm=False)
    rois.conv('mask.up', 28, 28, 256, 256, 1, norm=False)
    rois.conv('mask.out', 28, 28, 256, 80, 1, norm=False, relu=False)
    write.ops += rois.ops
    return write
