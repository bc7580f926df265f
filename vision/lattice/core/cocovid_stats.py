"""What a CocoVID file holds, in numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vision.lattice.core.cocovid import CocoVid


def statistics(data: CocoVid) -> dict[str, int | float | dict[str, int]]:
    """Counts of a checked file; ``track_gaps``: times that a track pauses and comes back."""
    labels = Counter()
    empty = tracks = gaps = 0
    lengths, sides = [], []
    for video in data.videos:
        seen: dict[int, list[int]] = {}
        for frame in video.frames:
            empty += not len(frame.labels)
            for instance in frame.instance_ids.tolist():
                seen.setdefault(instance, []).append(frame.frame_id)
            size = frame.boxes_xyxy[:, 2:] - frame.boxes_xyxy[:, :2]
            sides += np.sqrt(size.prod(1)).tolist()
        labels.update(video.labels.tolist())
        lengths.append(len(video))
        tracks += len(seen)
        gaps += sum(int((np.diff(frames) > 1).sum()) for frames in seen.values())
    return dict(
        videos=len(lengths), frames=sum(lengths), shortest_video=min(lengths, default=0),
        longest_video=max(lengths, default=0), empty_frames=empty, boxes=data.num_boxes,
        tracks=tracks, track_gaps=gaps,
        median_box_side=round(float(np.median(sides)), 1) if sides else 0.0,
        boxes_per_class={name: labels[i] for i, name in enumerate(data.classes)})


def print_statistics(data: CocoVid) -> None:
    """``statistics`` on stdout, a line for each."""
    for name, value in statistics(data).items():
        if isinstance(value, dict):
            value = ', '.join(f'{key} {count}' for key, count in value.items())
        print(f'  {name}: {value}')
