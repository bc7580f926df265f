"""MovingSprites-VID: generated videos with boxes and track ids (pure numpy, from a seed).

Eight textured shapes move over textured backgrounds; objects hide each other and pass behind
bars, enter and leave, blur with speed; bursts of blur, noise and defocus make some frames hard;
a part of the videos has a moving camera. Our own data set (no paper); speed classes follow FGFA's
motion IoU (arXiv:1703.10025, section 5). Textures of ``train`` and ``val`` come from two disjoint
banks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vision.lattice.core.sprite_shapes import SHAPES, background_texture, sprite_texture

CLASSES = tuple(SHAPES)
METAINFO = dict(classes=CLASSES)
SPLITS = ('train', 'val')
MOTIONS = ('linear', 'sinusoid', 'bounce', 'turn', 'zoom', 'rotation')
# Speed in sides of the object per frame; with FGFA's offsets -10..10 the bounds .9 and .7 of the
# motion IoU lie near 0.01 and 0.032 for a straight path. The gaps keep the classes apart.
SPEEDS = dict(slow=(0.0, 0.006), medium=(0.013, 0.024), fast=(0.04, 0.11))
SPEED_SHARES = (0.46, 0.22, 0.32)
SLOT_SHARES = (0.08, 0.14, 0.2, 0.22, 0.2, 0.16)  # 1 to 6 objects at a time
BANK = dict(train=range(0, 64), val=range(64, 96))  # seeds of the sprites' textures
BACKGROUNDS = dict(train=range(0, 96), val=range(96, 144))
MIN_SIDE, MAX_SIDE = 16, 90
MIN_VISIBLE = 0.25  # of the object's area; below it the object has no box
OCCLUDED_BELOW = 0.9
CAMERA_MARGIN = 64  # pixels of background around the first view


@dataclass(frozen=True)
class SpriteConfig:
    """What to generate; equal configs give equal bytes.

    Args:
        seed: any integer >= 0. num_videos: length of the set. num_frames: frames of each video.
        height, width: pixels, at least 120 x 160. split: ``train`` or ``val``.
    """

    seed: int = 0
    num_videos: int = 40
    num_frames: int = 96
    height: int = 240
    width: int = 320
    split: str = 'train'

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f'split must be one of {SPLITS}, got {self.split!r}')
        if min(self.num_frames, self.num_videos) < 1 or self.height < 120 or self.width < 160:
            raise ValueError(f'needs >= 1 video, >= 1 frame and >= 120x160 pixels, got {self}')


@dataclass
class SpriteVideo:
    """One video; index i of every list is frame i, row j of its arrays is box j.

    Shapes: frames (H, W, 3) uint8 BGR; boxes (N, 4) float32 xyxy, the tight visible extent in the
        image; labels (N,) int64 index into ``CLASSES``; instance_ids (N,) int64 from 1; occluded
        (N,) bool: less than 90 % of the object can be seen.
    """

    name: str
    camera_motion: str  # none, pan or jitter
    frames: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    instance_ids: list[np.ndarray] = field(default_factory=list)
    occluded: list[np.ndarray] = field(default_factory=list)


@dataclass
class _Track:
    """One object's life: rows of the arrays are the frames first .. first + len - 1."""

    label: int
    texture: np.ndarray
    border: float  # how dark the rim is drawn, 0..0.6
    first: int
    centre_xy: np.ndarray  # (T, 2) pixels of the world (the first view's pixels)
    radius: np.ndarray  # (T,) pixels
    angle: np.ndarray  # (T,) radians


def make_video(config: SpriteConfig, index: int) -> SpriteVideo:
    """Video ``index`` of the set: a function of config and index alone.

    Raises:
        IndexError: index is not below ``config.num_videos``.
    """
    if not 0 <= index < config.num_videos:
        raise IndexError(f'video {index} of {config.num_videos}')
    rng = np.random.default_rng([config.seed, SPLITS.index(config.split), index])
    kind, camera = _camera_path(rng, config)
    size = config.height + 2 * CAMERA_MARGIN, config.width + 2 * CAMERA_MARGIN
    bank = np.random.default_rng(int(rng.choice(BACKGROUNDS[config.split])) + 10_000)
    background = background_texture(bank, *size)
    num_slots = int(rng.choice(6, p=SLOT_SHARES)) + 1
    tracks = [track for _ in range(num_slots) for track in _slot(rng, config)]
    order = rng.permutation(len(tracks))  # front to back, for the whole video
    bars = _bars(rng, config) if rng.random() < 0.35 else np.zeros(size, np.float32)
    bar_texture = np.roll(background[::-1, ::-1], 40, 1) * 0.55
    effects = _Effects(rng, config)
    video = SpriteVideo(f'{config.split}_{index:04d}', kind)
    for frame in range(config.num_frames):
        view = camera[frame]
        cover = _crop(bars, view, config)
        canvas = _crop(bar_texture, view, config) * cover[..., None]
        rows = [(tracks[i], i + 1) for i in order]
        found = [_paint(canvas, cover, track, number, frame, view) for track, number in rows]
        canvas += (1 - cover)[..., None] * _crop(background, view, config)
        video.frames.append(effects.apply(canvas, frame))
        _store(video, [row for row in found if row is not None])
    return video


def _store(video: SpriteVideo, rows: list[tuple]) -> None:
    rows.sort(key=lambda row: row[2])
    box, label, number, hidden = zip(*rows, strict=True) if rows else ((), (), (), ())
    video.boxes.append(np.array(box, np.float32).reshape(-1, 4))
    video.labels.append(np.array(label, np.int64))
    video.instance_ids.append(np.array(number, np.int64))
    video.occluded.append(np.array(hidden, bool))


# Motion ------------------------------------------------------------------------------------------
def _camera_path(rng: np.random.Generator, config: SpriteConfig) -> tuple[str, np.ndarray]:
    """(kind, (T, 2) offset of the view in the world, pixels, within the margin)."""
    steps, limit = np.arange(config.num_frames), CAMERA_MARGIN - 2
    kind = rng.choice(['none', 'pan', 'jitter'], p=[0.72, 0.16, 0.12])
    path = np.zeros((config.num_frames, 2))
    if kind == 'pan':
        heading, speed = rng.random() * 2 * np.pi, rng.uniform(0.4, 1.4)
        path += _fold(speed * steps[:, None] * [np.cos(heading), np.sin(heading)], -limit, limit)
    elif kind == 'jitter':
        shake = rng.normal(0, 1, (config.num_frames + 4, 2))
        path += sum(shake[i:i + config.num_frames] for i in range(5)) / np.sqrt(5) * 1.8
    return str(kind), path.clip(-limit, limit)


def _fold(path: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Reflect a free path at both walls (a ball between mirrors)."""
    span = np.subtract(high, low)
    phase = np.mod(path - low, 2 * span)
    return low + np.where(phase > span, 2 * span - phase, phase)


def _slot(rng: np.random.Generator, config: SpriteConfig) -> list[_Track]:
    """Objects that follow one another: when one has left, a new one enters."""
    tracks, frame = [], 0
    if rng.random() < 0.2:  # the first comes later
        frame = int(rng.integers(0, config.num_frames // 3 + 1))
    speed_class = rng.choice(list(SPEEDS), p=SPEED_SHARES)
    while config.num_frames - frame >= (12 if tracks else 1):
        track = _track(rng, config, frame, str(speed_class), enters=bool(tracks or frame))
        tracks.append(track)
        frame += len(track.radius) + int(rng.integers(2, 12))
    return tracks


def _track(rng: np.random.Generator, config: SpriteConfig, first: int, speed_class: str,
           *, enters: bool) -> _Track:
    length = config.num_frames - first
    # On a small slow object the whole-pixel steps of its box would read as motion.
    smallest = 32 if speed_class == 'slow' else MIN_SIDE + 4
    side = float(np.exp(rng.uniform(np.log(smallest), np.log(MAX_SIDE - 6))))
    speed = rng.uniform(*SPEEDS[speed_class]) * side
    motion = str(rng.choice(MOTIONS))
    steps = np.arange(length)
    radius = np.full(length, side / 2)
    angle = rng.random() * 2 * np.pi + np.zeros(length)
    if motion == 'zoom':
        period = dict(slow=600, medium=170, fast=70)[speed_class] * rng.uniform(0.8, 1.2)
        middle = np.sqrt(MIN_SIDE * MAX_SIDE) / 2 * rng.uniform(0.8, 1.2)
        radius = middle * np.exp(0.6 * np.sin(2 * np.pi * (steps / period + rng.random())))
        speed *= 0.3
    if motion == 'rotation' or rng.random() < 0.2:
        turn = dict(slow=0.008, medium=0.03, fast=0.12)[speed_class] * rng.uniform(0.4, 1)
        angle = angle + steps * rng.choice([-1, 1]) * turn
    centre = _path(rng, config, length, motion, speed, side, enters=enters)
    if motion in ('linear', 'sinusoid'):  # these leave for good; the others stay
        centre = centre[:_last_inside(centre, side / 2, config)]
    seed = int(rng.choice(BANK[config.split]))
    alive = len(centre)
    return _Track(int(rng.integers(len(CLASSES))), sprite_texture(np.random.default_rng(seed)),
                  float(rng.choice([0, 0.35, 0.6])), first, centre,
                  radius[:alive].clip(MIN_SIDE / 2, MAX_SIDE / 2), angle[:alive])


def _path(rng: np.random.Generator, config: SpriteConfig, length: int, motion: str, speed: float,
          side: float, *, enters: bool) -> np.ndarray:
    """(T, 2) centres in pixels of the world; ``speed`` in pixels per frame."""
    size = np.array([config.width, config.height])
    start = rng.uniform(0.15, 0.85, 2) * size
    heading = rng.random() * 2 * np.pi
    if enters:  # begin just outside one edge, heading for a point in the middle
        edge, aim = int(rng.integers(4)), rng.uniform(0.3, 0.7, 2) * size
        start[edge % 2] = -side / 2 if edge < 2 else size[edge % 2] + side / 2
        heading = np.arctan2(*(aim - start)[::-1])
        speed = max(speed, 0.35)  # a slower one would hardly come in
    headings = np.full(length, heading)
    if motion == 'turn':
        turns = np.cumsum(rng.random(length) < 1 / 22)
        headings += rng.uniform(0.8, 2.6, length + 1).cumsum()[turns] * (turns > 0)
    steps = speed * np.stack([np.cos(headings), np.sin(headings)], 1)
    path = start + np.concatenate([np.zeros((1, 2)), steps.cumsum(0)[:-1]])
    if motion == 'sinusoid':
        across = np.array([-np.sin(heading), np.cos(heading)])
        period, swing = rng.uniform(30, 60), min(40.0, speed * 8)
        path += across * (swing * np.sin(2 * np.pi * np.arange(length) / period))[:, None]
    if motion in ('linear', 'sinusoid') or enters:
        return path
    inset = side * rng.uniform(-0.1, 0.5)  # some dip over the edge while they bounce
    return _fold(path, np.full(2, inset), size - inset)


def _last_inside(centre: np.ndarray, radius: float, config: SpriteConfig) -> int:
    limit = np.array([config.width, config.height]) + radius
    inside = ((centre > -radius - 1) & (centre < limit + 1)).all(1)
    return int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 1


# Painting ----------------------------------------------------------------------------------------
def _bars(rng: np.random.Generator, config: SpriteConfig) -> np.ndarray:
    """Opacity of one or two bars in front of everything, over the whole world."""
    size = config.height + 2 * CAMERA_MARGIN, config.width + 2 * CAMERA_MARGIN
    y, x = np.mgrid[:size[0], :size[1]].astype(np.float32)
    cover = np.zeros(size, np.float32)
    for _ in range(int(rng.integers(1, 3))):
        angle, half = rng.choice([0, np.pi / 2, rng.random() * np.pi]), rng.uniform(7, 15)
        through = rng.uniform(0.3, 0.7, 2) * size
        distance = abs((x - through[1]) * np.cos(angle) + (y - through[0]) * np.sin(angle))
        cover = np.maximum(cover, np.clip(half + 0.5 - distance, 0, 1))
    return cover


def _crop(world: np.ndarray, view_xy: np.ndarray, config: SpriteConfig) -> np.ndarray:
    """The view's part of the world, bilinear between whole pixels; always a copy."""
    left, top = view_xy + CAMERA_MARGIN
    x, y = int(left), int(top)
    fx, fy = np.float32(left - x), np.float32(top - y)
    rows = world[y:y + config.height + 1, x:x + config.width + 1]
    if fx == 0 and fy == 0:
        return rows[:-1, :-1].astype(np.float32)
    rows = rows[:-1] * (1 - fy) + rows[1:] * fy
    return rows[:, :-1] * (1 - fx) + rows[:, 1:] * fx


def _paint(canvas: np.ndarray, cover: np.ndarray, track: _Track, number: int, frame: int,
           view_xy: np.ndarray) -> tuple | None:
    """Add one object behind what ``cover`` already hides; its row, or None when hardly seen."""
    step = frame - track.first
    if not 0 <= step < len(track.radius):
        return None
    radius, angle = float(track.radius[step]), float(track.angle[step])
    x, y = track.centre_xy[step] - view_xy
    before = track.centre_xy[max(step - 1, 0)]
    smear = (track.centre_xy[step] - before) * 0.5  # the shutter is open half of the time
    reach = radius + abs(smear).max() + 2
    left, top = int(np.floor(x - reach)), int(np.floor(y - reach))
    right, bottom = int(np.ceil(x + reach)), int(np.ceil(y + reach))
    height, width = cover.shape
    clip = np.s_[max(top, 0):min(bottom, height), max(left, 0):min(right, width)]
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        return None
    local = np.s_[clip[0].start - top:clip[0].stop - top, clip[1].start - left:clip[1].stop - left]
    px = np.arange(left, right, dtype=np.float32) + 0.5 - np.float32(x)
    py = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - np.float32(y)
    shape = SHAPES[CLASSES[track.label]]
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    u, v = px * cos + py * sin, py * cos - px * sin
    distance = shape(u, v) * np.float32(radius)
    sharp = np.clip(0.5 - distance, 0, 1)
    alpha = sharp[local]
    if np.hypot(*smear) > 1.5:
        du, dv = smear @ [[cos, -sin], [sin, cos]]
        sides = [np.clip(0.5 - radius * shape(u[local] + s * du, v[local] + s * dv), 0, 1)
                 for s in (-0.5, 0.5)]
        alpha = (alpha + sides[0] + sides[1]) / 3
    room = 1 - cover[clip]
    seen = sharp[local] * room
    canvas[clip] += (alpha * room)[..., None] * _colours(track, u[local], v[local],
                                                         distance[local])
    cover[clip] += alpha * room
    return _row(seen, sharp.sum(), clip, track.label, number)


def _row(seen: np.ndarray, area: float, clip: tuple, label: int, number: int) -> tuple | None:
    share = seen.sum() / max(float(area), 1e-6)
    mask = seen > 0.5
    if share < MIN_VISIBLE or not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = clip[0].start, clip[1].start
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return box, label, number, bool(share < OCCLUDED_BELOW)


def _colours(track: _Track, u: np.ndarray, v: np.ndarray, distance: np.ndarray) -> np.ndarray:
    size = len(track.texture)
    columns = ((u + 1) * (size / 2)).astype(np.int32).clip(0, size - 1)
    rows = ((v + 1) * (size / 2)).astype(np.int32).clip(0, size - 1)
    colours = track.texture[rows, columns]
    if track.border:
        rim = np.clip(1 + distance / 2.5, 0, 1) * np.float32(track.border)
        colours = colours * (1 - rim)[..., None]
    return colours


class _Effects:
    """What the whole frame suffers: grain always; bursts of blur, noise or defocus sometimes."""

    def __init__(self, rng: np.random.Generator, config: SpriteConfig) -> None:
        self.shape = config.height, config.width
        self.noise = rng.standard_normal((config.height + 31, config.width + 31, 3),
                                         dtype=np.float32)
        self.offsets = rng.integers(0, 32, (config.num_frames, 2))
        self.sigma = np.full(config.num_frames, rng.uniform(1, 5), np.float32)
        self.blur: dict[int, list[tuple[int, int, int]]] = {}  # frame: smears (num_taps, dx, dy)
        for _ in range(int(rng.integers(0, 4))):
            self._burst(rng, config.num_frames)

    def _burst(self, rng: np.random.Generator, num_frames: int) -> None:
        first = int(rng.integers(num_frames))
        frames = range(first, min(first + int(rng.integers(4, 13)), num_frames))
        kind = rng.choice(['noise', 'blur', 'defocus'])
        if kind == 'noise':
            self.sigma[list(frames)] = rng.uniform(18, 45)
            return
        taps = int(rng.choice([5, 7, 9]))
        step = ((1, 0), (0, 1), (1, 1), (1, -1))[rng.integers(4)]
        smears = [(taps, *step)] if kind == 'blur' else [(taps - 2, 1, 0), (taps - 2, 0, 1)]
        self.blur |= dict.fromkeys(frames, smears)

    def apply(self, canvas: np.ndarray, frame: int) -> np.ndarray:
        for smear in self.blur.get(frame, ()):
            canvas = _smeared(canvas, *smear)
        y, x = self.offsets[frame]
        height, width = self.shape
        canvas = canvas + self.noise[y:y + height, x:x + width] * self.sigma[frame]
        return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _smeared(image: np.ndarray, taps: int, dx: int, dy: int) -> np.ndarray:
    """Mean of ``taps`` copies shifted along (dx, dy), edges repeated."""
    half = taps // 2
    height, width = image.shape[:2]
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode='edge')
    total = sum(padded[half + k * dy:half + k * dy + height, half + k * dx:half + k * dx + width]
                for k in range(-half, half + 1))
    return total / taps
