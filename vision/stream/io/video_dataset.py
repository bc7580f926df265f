"""Videos or frame folders with CVAT or MOT annotations as one CocoVID data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import cv2
from rich.progress import track

from vision.common.core.errors import VisionError
from vision.common.core.new_folder import new_folder
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import CocoVidWriter, load_cocovid
from vision.lattice.core.track_files import (
    Track,
    numbered_frames,
    read_cvat_xml,
    read_mot_text,
)
from vision.stream.io.containers import holds_video, open_file, why_closed

JPEG_QUALITY = 95


def extract_frames(video: Path, folder: Path) -> tuple[list[Path], float | None]:
    """Decode a video into numbered jpg files; the files and the frame rate.

    Raises:
        VisionError: the file cannot be opened, breaks off, or has fewer frames than it says.
    """
    files = []
    try:
        with open_file(video) as container:
            if not holds_video(container):
                raise _broken_video(video, 'holds no video that can be decoded')
            stream = container.streams.video[0]
            promised = stream.frames
            fps = float(stream.average_rate) if stream.average_rate else None
            for frame in track(container.decode(stream), video.name, total=promised or None):
                files.append(folder / f'{len(files):06d}.jpg')
                cv2.imwrite(str(files[-1]), frame.to_ndarray(format='bgr24'),
                            [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    except (av.error.FFmpegError, OSError) as error:
        raise _broken_video(video, f'stops after {len(files)} frames: {why_closed(error)}'
                            ) from error
    if not files or len(files) < promised:
        raise _broken_video(video, f'gives {len(files)} of {promised} frames')
    return files, fps


def _broken_video(video: Path, text: str) -> VisionError:
    return VisionError('VIS-VIDEO-222', f'{video} {text}', why='the file is cut short, damaged or '
                       'no video; boxes would point at the wrong frames',
                       do='copy it again, or repair it: ffmpeg -i IN -c copy OUT.mp4')


def copy_frames(source: Path, folder: Path) -> list[Path]:
    """Copy a frame folder, numbered anew from 0."""
    files = []
    for number, path in enumerate(numbered_frames(source)):
        files.append(folder / f'{number:06d}{path.suffix.lower()}')
        shutil.copyfile(path, files[-1])
    return files


def read_tracks(path: Path, classes: list[str]) -> list[Track]:
    """Tracks of either form.

    Raises:
        VisionError: a MOT class has no name.
    """
    if path.suffix.lower() == '.xml':
        return read_cvat_xml(path)
    table = read_mot_text(path)
    ignored = int((table[:, 6] == 0).sum())
    if ignored:
        print(f'{path}: {ignored} rows with flag 0 left out')
    table = table[table[:, 6] != 0]
    tracks: dict[tuple[int, int], Track] = {}
    for frame, number, x, y, w, h, _, kind, visibility in table.tolist():
        if not 1 <= kind <= len(classes):
            raise VisionError('VIS-INPUT-223', f'{path} has class {kind:.0f}, --classes names '
                              f'{len(classes)}', why='classes of MOT text are numbers from 1',
                              do='--classes NAME1 NAME2 ...')
        key = int(number), int(kind)
        one = tracks.setdefault(key, Track(classes[int(kind) - 1], key[0], {}, set()))
        if int(frame) - 1 in one.boxes:
            raise VisionError('VIS-DATA-240', f'{path}: frame {frame:.0f} has id {key[0]} twice',
                              where=str(path), why='a track has one box in a frame',
                              do='mend the ids')
        one.boxes[int(frame) - 1] = (x, y, x + w, y + h)
        if visibility < 0.9:
            one.occluded.add(int(frame) - 1)
    return list(tracks.values())


def add_video(writer: CocoVidWriter, name: str, files: list[Path], fps: float | None,
              tracks: list[Track] | None, labels: dict[str, int]) -> None:
    """Add a video. tracks None: nothing is known of its frames.

    Raises:
        VisionError: a track goes beyond the last frame, or has a label that is not wanted.
    """
    height, width = read_image(files[0]).shape[:2]
    writer.add_video(name, width=width, height=height, **(dict(fps=fps) if fps else {}))
    rows: list[list[tuple]] = [[] for _ in files]
    for number, one in enumerate(tracks or (), 1):
        if one.name not in labels:
            raise VisionError('VIS-INPUT-245', f'{name}: track {one.track_id} has the label '
                              f'{one.name!r}', why=f'--classes are {", ".join(labels)}',
                              do='add it to --classes, or leave --classes out for CVAT files')
        beyond = [frame for frame in one.boxes if not 0 <= frame < len(files)]
        if beyond:
            raise VisionError('VIS-DATA-244', f'{name}: track {one.track_id} has a box in frame '
                              f'{beyond[0]}, the video has {len(files)}', why='annotation and '
                              'video do not belong together', do='check their order')
        for frame, box in one.boxes.items():
            rows[frame].append((box, labels[one.name], number, frame in one.occluded))
    for path, here in zip(files, rows, strict=True):
        writer.add_frame(f'{name}/{path.name}', boxes_xyxy=[row[0] for row in here],
                         labels=[row[1] for row in here], instance_ids=[row[2] for row in here],
                         occluded=[row[3] for row in here],
                         image_fields=dict(is_labelled=tracks is not None))


def convert(videos: list[Path], annotations: list[Path], out: Path, classes: list[str]) -> dict:
    """Write the data set; its counts.

    Raises:
        VisionError: see the parts above; ``out`` exists.
    """
    all_tracks = [read_tracks(path, classes) for path in annotations] or [None] * len(videos)
    names = classes or sorted({one.name for tracks in all_tracks for one in tracks or ()})
    labels = {name: i for i, name in enumerate(names or ['object'])}
    writer = CocoVidWriter(list(labels))
    with new_folder(out) as target:
        for video, tracks in zip(videos, all_tracks, strict=True):
            folder = target / video.stem
            folder.mkdir()
            files, fps = (copy_frames(video, folder), None) if video.is_dir() else extract_frames(
                video, folder)
            add_video(writer, video.stem, files, fps, tracks, labels)
        writer.write(target / 'annotations.json')
        load_cocovid(target / 'annotations.json')  # refuses what no reader could use
    return writer.counts()
