"""A bar of the frames that were read, where there is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vision.stream.io.opening import Source


@contextmanager
def progress_bar(source: Source, max_frames: int | None) -> Iterator[Callable[[int], None]]:
    """What the player calls with the count of frames; on standard error."""
    console = Console(stderr=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        limits = [count for count in (source.num_frames, max_frames) if count]
        task = progress.add_task('frames', total=min(limits, default=None))

        def on_frame(count: int) -> None:
            status = getattr(source, 'status', 'frames')
            progress.update(task, completed=count, description=status)

        yield on_frame
