"""A clip with exact boxes made of photographs: two people, a cat and a cup move over grass.

Licences: the photographs come with the scikit-image wheel and are in the public domain or CC0; the
README beside this file names photographers. The rest is Apache-2.0, as this repository.

Objects are cut out along outlines that were measured by hand in the photographs, moved, zoomed and
rotated to sub-pixel positions over a panning background, with noise. The outline goes through
the same matrix as the pixels, so that a box is exact however the object moves: it is the extent of
the visible part of the outline. Below a quarter visible an object has no box; ``occluded`` is 1
below nine tenths. Writes OUT/val/photo_clip/%06d.jpg, OUT/photo_clip.mp4 (H.264) and
OUT/annotations/val.json (CocoVID); OUT appears complete or not at all.

Example: python datasets/photo_clip/prepare.py --out data/photo_clip
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track
from scipy.interpolate import CubicSpline

from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import sha256_of
from vision.common.core.new_folder import new_folder
from vision.lattice.core.cocovid import CocoVidWriter
from vision.stream.io.sinks import VideoSink

NAME, WIDTH, HEIGHT, FPS, NUM_FRAMES = 'photo_clip', 640, 480, 25, 240
CLASSES = ('person', 'cat', 'cup')
JPEG_QUALITY = 92
NOISE_SIGMA = 3.0  # grey levels: a good camera indoors
MIN_VISIBLE, MIN_WHOLE = 0.25, 0.9  # as in moving_sprites
POLYGON_BITS = 4  # fillPoly takes whole numbers of 1/16 px

SHA256 = {
    'astronaut.png': '88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5',
    'camera.png': 'b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a',
    'chelsea.png': '596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb',
    'coffee.png': 'cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7',
    'grass.png': 'b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89',
}
# Corners x, y in pixels of the photograph, measured by hand on a twofold enlargement.
ASTRONAUT = (
    (150, 85), (155, 55), (175, 38), (195, 22), (222, 16), (250, 20), (282, 32), (300, 60),
    (301, 90), (290, 115), (275, 135), (262, 150), (256, 174), (285, 195), (304, 230), (320, 242),
    (345, 270), (355, 310), (361, 345), (320, 370), (295, 400), (282, 440), (278, 480), (280, 512),
    (25, 512), (22, 450), (20, 400), (25, 350), (40, 290), (60, 245), (95, 215), (115, 198),
    (120, 180), (135, 157), (160, 149), (184, 149), (183, 133), (168, 118), (155, 100))
CAMERAMAN = (
    (205, 63), (235, 70), (255, 85), (270, 105), (270, 125), (258, 135), (254, 165), (245, 187),
    (240, 200), (245, 220), (262, 232), (265, 212), (280, 205), (300, 205), (308, 190), (305, 172),
    (325, 168), (332, 190), (325, 215), (310, 230), (304, 270), (280, 290), (245, 312), (206, 295),
    (170, 345), (142, 385), (150, 440), (150, 512), (0, 512), (0, 258), (20, 235), (45, 200),
    (60, 165), (75, 145), (105, 130), (130, 123), (150, 107), (162, 105), (165, 90), (180, 72))
CAT = (
    (32, 0), (400, 0), (385, 25), (362, 60), (362, 110), (358, 150), (340, 190), (318, 220),
    (310, 250), (290, 275), (268, 300), (12, 300), (20, 240), (33, 190), (30, 130))
CUP = (
    (173, 105), (178, 75), (195, 48), (225, 28), (260, 20), (290, 18), (330, 22), (370, 38),
    (395, 62), (407, 95), (407, 125), (400, 158), (388, 190), (372, 222), (348, 252), (325, 272),
    (300, 284), (275, 284), (254, 278), (240, 295), (222, 306), (200, 300), (196, 280), (203, 252),
    (216, 233), (200, 215), (182, 185), (175, 145))
# A cup is known by its table: it moves with the photograph around it, cut to this rectangle.
TABLE = ((60, 0), (500, 0), (500, 400), (60, 400))


@dataclass(frozen=True)
class Actor:
    """One moving object.

    Args:
        photo: file of the photograph.
        label: index into CLASSES.
        outline: (P, 2) corners of the object in the photograph; its box comes from them.
        path: rows (frame, x, y, scale, degrees): where the middle of the outline's box is in the
            frame, px; size over that in the photograph; rotation.
        is_smooth: a cubic spline through the rows; else straight lines with abrupt turns.
        cut: (Q, 2) corners of what is cut out; the outline itself when empty.
    """

    photo: str
    label: int
    outline: tuple[tuple[float, float], ...]
    path: tuple[tuple[float, float, float, float, float], ...]
    is_smooth: bool
    cut: tuple[tuple[float, float], ...] = field(default=())

    def matrix(self, frame: int) -> np.ndarray:
        """(2, 3) float64: photograph -> frame, coordinates of pixel edges."""
        rows = np.array(self.path, np.float64)
        if self.is_smooth:
            x, y, scale, degrees = CubicSpline(rows[:, 0], rows[:, 1:], bc_type='natural')(frame)
        else:
            x, y, scale, degrees = (np.interp(frame, rows[:, 0], values) for values in rows.T[1:])
        turn = np.deg2rad(degrees)
        linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        corners = np.array(self.outline)
        middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
        return np.column_stack([linear, np.array([x, y]) - linear @ middle])


# Back to front.
ACTORS = (
    Actor('coffee.png', 2, CUP, ((0, 470, 130, .5, 0), (40, 560, 210, .55, 3),
                                 (70, 330, 120, .6, -3), (110, 520, 110, .5, 2),
                                 (150, 420, 190, .6, -2), (190, 540, 140, .5, 3),
                                 (239, 400, 140, .55, 0)), False, TABLE),
    Actor('astronaut.png', 0, ASTRONAUT, ((0, 150, 270, .45, 0), (50, 215, 255, .5, 4),
                                          (100, 140, 280, .55, -4), (150, 190, 265, .45, 3),
                                          (200, 130, 275, .5, -3), (239, 180, 260, .5, 0)), True),
    Actor('camera.png', 0, CAMERAMAN, ((0, 800, 310, .5, 0), (30, 740, 310, .5, 0),
                                       (105, 290, 300, .55, 2), (130, 430, 320, .5, -2),
                                       (215, -110, 300, .55, 2), (239, -160, 300, .55, 2)), False),
    Actor('chelsea.png', 1, CAT, ((0, 420, 640, .5, 0), (70, 420, 590, .5, -3),
                                  (110, 440, 390, .55, 3), (160, 480, 340, .7, -3),
                                  (210, 620, 360, .6, 2), (239, 800, 380, .55, 3)), True),
)


class Cutout:
    """Pixels and transparency of an actor, made once.

    The photograph is shrunk to the largest size that it has in the clip, averaging areas, so that
    the warp which follows never skips pixels.
    """

    def __init__(self, actor: Actor, folder: Path) -> None:
        photo = read_photo(folder, actor.photo)
        cut = np.zeros(photo.shape[:2], np.uint8)
        corners = np.round(np.array(actor.cut or actor.outline)).astype(np.int32)
        cv2.fillPoly(cut, [corners], 255)
        height, width = cut.shape
        largest = min(1.0, max(row[3] for row in actor.path))
        size = round(width * largest), round(height * largest)
        self.image = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        # Soft by about a pixel: a hard edge would flicker at sub-pixel positions.
        cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA)
        self.alpha = cv2.GaussianBlur(cut, (3, 3), 0)
        self._shrink = np.diag([width / size[0], height / size[1], 1.0])

    def paint(self, canvas: np.ndarray, matrix: np.ndarray) -> None:
        """Blend into canvas (H, W, 3) float32, in place; only where the picture comes to lie."""
        matrix = matrix @ self._shrink
        height, width = self.alpha.shape
        corners = mapped(((0, 0), (width, 0), (width, height), (0, height)), matrix)
        limits = canvas.shape[1::-1]
        left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, limits)
        right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, limits)
        if right <= left or bottom <= top:
            return
        inner = pixel_matrix(matrix)
        inner[:, 2] -= left, top
        size = int(right - left), int(bottom - top)
        image = cv2.warpAffine(self.image, inner, size, flags=cv2.INTER_LINEAR,
                               borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(self.alpha, inner, size, flags=cv2.INTER_LINEAR)
        alpha = alpha[..., None] * np.float32(1 / 255)
        part = canvas[top:bottom, left:right]
        part += alpha * (image - part)


def pixel_matrix(matrix: np.ndarray) -> np.ndarray:
    """The same map between numbers of pixels, whose centres lie half a pixel from their edges."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return moved


def read_photo(folder: Path, name: str) -> np.ndarray:
    path = folder / name
    if not path.is_file() or sha256_of(path) != SHA256[name]:
        fault = 'another file' if path.is_file() else 'not there'
        raise VisionError('VIS-DATA-222', f'{name} of scikit-image is {fault}', where=str(folder),
                          why='the outlines were measured in the file of scikit-image 0.26',
                          do='pip install -c constraints.txt -e .[demo]')
    return cv2.imread(str(path), cv2.IMREAD_COLOR)


def photo_folder() -> Path:
    """Where scikit-image keeps its pictures; it is not imported, which would take a second."""
    found = importlib.util.find_spec('skimage')
    if found is None:
        raise VisionError('VIS-ENV-906', 'scikit-image is not installed', why='it carries the '
                          'photographs', do='pip install -c constraints.txt -e .[demo]')
    return Path(found.submodule_search_locations[0]) / 'data'


def background(photo: np.ndarray, frame: int) -> np.ndarray:
    """(H, W, 3) float32: grass under a camera that pans and zooms a little."""
    zoom = 1.55 + 0.05 * np.sin(frame / 60)
    shift = -70 + 25 * np.sin(frame / 45), -130 + 12 * np.cos(frame / 35)
    matrix = pixel_matrix(np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]]))
    view = cv2.warpAffine(photo, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC,
                          borderMode=cv2.BORDER_REFLECT_101)
    return view * np.array([0.55, 1.0, 0.7], np.float32)  # the photograph is grey


def mapped(corners: tuple[tuple[float, float], ...], matrix: np.ndarray) -> np.ndarray:
    return np.array(corners) @ matrix[:, :2].T + matrix[:, 2]


def area_mask(corners: np.ndarray) -> np.ndarray:
    """The part of a polygon that lies in the frame, (H, W) bool."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    points = np.round((corners - 0.5) * 2**POLYGON_BITS).astype(np.int32)
    return cv2.fillPoly(mask, [points], 1, shift=POLYGON_BITS).astype(bool)


def visible_boxes(frame: int) -> list[tuple[int, np.ndarray, float]]:
    """Number from 1, box xyxy and visible share of each actor that is to be seen in a frame.

    A side of the box is that of the outline, cut to the frame; where something in front hides it
    the box ends with what can be seen, to the pixel.
    """
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    found = []
    for number, actor in reversed(list(enumerate(ACTORS, start=1))):  # front to back
        matrix = actor.matrix(frame)
        outline = mapped(actor.outline, matrix)
        seen = area_mask(outline) & ~hidden
        share = seen.sum() / cv2.contourArea(outline.astype(np.float32))
        if share >= MIN_VISIBLE:
            box = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
            box = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
            rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
            extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
            # Drawing rounds by up to a pixel and a half: more is something in front.
            found.append((number, np.where(np.abs(box - extent) > 1.5, extent, box), share))
        hidden |= area_mask(mapped(actor.cut, matrix)) if actor.cut else area_mask(outline)
    return found[::-1]


def frames(folder: Path, num_frames: int, seed: int) -> Iterator[np.ndarray]:
    """The pictures, (H, W, 3) uint8 BGR."""
    grass = read_photo(folder, 'grass.png').astype(np.float32)
    cutouts = [Cutout(actor, folder) for actor in ACTORS]
    rng = np.random.default_rng(seed)
    # One field of noise, taken at another place for each frame: new noise would take longest.
    noise = rng.normal(0, NOISE_SIGMA, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.float32)
    for frame in range(num_frames):
        canvas = background(grass, frame)
        for actor, cutout in zip(ACTORS, cutouts, strict=True):
            cutout.paint(canvas, actor.matrix(frame))
        top, left = rng.integers(0, 65, 2)
        canvas += noise[top:top + HEIGHT, left:left + WIDTH]
        yield np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def prepare(out: Path, *, num_frames: int = NUM_FRAMES, seed: int = 0) -> dict[str, int]:
    """Write the clip into a new folder ``out``; its counts.

    Raises:
        VisionError: ``out`` exists; scikit-image, or one of its photographs, is not there.
    """
    photos = photo_folder()
    writer = CocoVidWriter(CLASSES, info=dict(description='photo_clip', seed=seed))
    writer.add_video(NAME, width=WIDTH, height=HEIGHT, fps=FPS)
    with new_folder(out) as folder:
        (folder / 'val' / NAME).mkdir(parents=True)
        sink = VideoSink(folder / f'{NAME}.mp4', fps=FPS)
        for frame, image in enumerate(track(frames(photos, num_frames, seed), NAME,
                                            total=num_frames)):
            name = f'{NAME}/{frame:06d}.jpg'
            if not cv2.imwrite(str(folder / 'val' / name), image,
                               [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
                raise OSError(f'cannot write {name}')
            sink.write(image, frame / FPS)
            rows = visible_boxes(frame)
            writer.add_frame(name, boxes_xyxy=[box for _, box, _ in rows],
                             labels=[ACTORS[number - 1].label for number, _, _ in rows],
                             instance_ids=[number for number, _, _ in rows],
                             occluded=[share < MIN_WHOLE for _, _, share in rows])
        sink.close()
        writer.write(folder / 'annotations' / 'val.json')
    return writer.counts()


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--out', type=Path, default=Path('data/photo_clip'),
                        help='new folder (default: %(default)s)')
    parser.add_argument('--num-frames', type=int, default=NUM_FRAMES,
                        help='the first so many, at most (default) %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the noise (default: %(default)s)')
    args = parser.parse_args(argv)
    if not 1 <= args.num_frames <= NUM_FRAMES or args.seed < 0:
        parser.error(f'--num-frames is 1 to {NUM_FRAMES}, --seed >= 0')
    counts = prepare(args.out, num_frames=args.num_frames, seed=args.seed)
    print('val: ' + ', '.join(f'{value} {name}' for name, value in counts.items()))
    print(f'written to {args.out}')
    return 0


if __name__ == '__main__':
    run_cli(main)
