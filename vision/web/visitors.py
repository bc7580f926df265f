"""Who may read which file, and what is deleted when a visitor goes.

A visitor is a browser, told by a random cookie; a page of it that is open is a visit. Whoever has
no cookie is a new visitor at each request, and may read nothing that was there before.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from vision.common.core.errors import VisionError
from vision.web.faces import VisitorGallery
from vision.web.limits import MEGABYTE, Limits

NUM_LEFT = 10_000  # closed pages that are remembered


@dataclass
class Visitor:
    """What belongs to one browser.

    Args:
        key: the secret of its cookie.
        folder: of its results; nobody can guess the name, and nobody else may read inside.
        uploads: files that it sent; the same file may be another visitor's too.
        visits: pages that are open.
        faces: its gallery; in memory only.
    """

    key: str
    folder: Path
    uploads: set[Path] = field(default_factory=set)
    visits: set[str] = field(default_factory=set)
    faces: VisitorGallery = field(default_factory=VisitorGallery)
    last_seen_s: float = field(default_factory=time.monotonic)
    _look: tuple[Any, Any] | None = None  # what was chosen, and the view that this made

    def look(self, choice: Any, build: Callable[[], Any]) -> Any:
        """The present ``LiveView``; a new one after a pause, or when something else was chosen."""
        if self._look is None or self._look[0] != choice or self._look[1].is_stale:
            self.stop_looking()
            self._look = choice, build()
        return self._look[1]

    def stop_looking(self) -> None:
        """End the present look, if there is one."""
        look, self._look = self._look, None
        if look is not None:
            look[1].close()

    def new_folder(self) -> Path:
        """An empty folder for the results of a job; those of the jobs before are deleted."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        folder = self.folder / token_hex(4)
        folder.mkdir(parents=True)
        return folder


class Visitors:
    """All visitors of one server; safe from several threads.

    Args:
        store: folder of uploads and results; this class deletes inside of it.
    """

    def __init__(self, store: Path, limits: Limits) -> None:
        self.store, self.limits = Path(store).resolve(), limits
        self._visitors: dict[str, Visitor] = {}
        self._left: dict[str, None] = {}  # pages that were closed, the oldest first
        self._lock = threading.RLock()

    def of(self, key: str, visit: str = '') -> Visitor:
        """The visitor of a cookie, made when it is new; ``visit`` is the page that asks.

        Raises:
            VisionError: VIS-INPUT-1778 the page was closed: a job that waited for its turn would
                leave files behind that nobody deletes.
        """
        with self._lock:
            if visit in self._left:
                raise VisionError('VIS-INPUT-1778', 'this page was closed', why='its files are '
                                  'deleted', do='load the page again')
            visitor = self._visitors.get(key)
            if visitor is None:
                self._leave_idle()
                visitor = self._visitors[key] = Visitor(key, self.store / f'of-{token_hex(16)}')
            visitor.last_seen_s = time.monotonic()
            if visit:
                visitor.visits.add(visit)
            return visitor

    def owns_visit(self, key: str, visit: str) -> bool:
        """Whether the page is this visitor's; one that nobody had is from now on."""
        with self._lock:
            if any(visit in other.visits for other in self._visitors.values()
                   if other.key != key):
                return False
            if visit not in self._left:
                self.of(key, visit)
            return True

    def add_upload(self, key: str, path: str | Path) -> None:
        """Remember whose upload this is."""
        with self._lock:
            self.of(key).uploads.add(Path(path).resolve())

    def may_read(self, key: str, path: str | Path) -> bool:
        """Whether the file is an upload or a result of this visitor."""
        try:
            place = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links
            return False
        with self._lock:
            visitor = self._visitors.get(key)
            return visitor is not None and place.is_relative_to(self.store) and (
                place in visitor.uploads or place.is_relative_to(visitor.folder))

    def leave(self, visit: str) -> None:
        """A page was closed; with the last one of a visitor all of its data goes."""
        with self._lock:
            self._left[visit] = None
            if len(self._left) > NUM_LEFT:
                del self._left[next(iter(self._left))]
            for visitor in list(self._visitors.values()):
                if visit in visitor.visits:
                    visitor.visits.discard(visit)
                    if not visitor.visits:
                        self._forget(visitor)

    def num_bytes(self) -> int:
        """Of all files in the store."""
        return sum(path.stat().st_size for path in self.store.rglob('*') if path.is_file())

    def has_room(self, num_bytes: int) -> bool:
        """Whether so much more fits; visitors who are gone make room first."""
        with self._lock:
            self._leave_idle()
            return self.num_bytes() + num_bytes <= self.limits.store_mb * MEGABYTE

    def _leave_idle(self) -> None:
        now_s = time.monotonic()
        for visitor in list(self._visitors.values()):
            if now_s - visitor.last_seen_s > self.limits.idle_seconds:
                self._forget(visitor)

    def _forget(self, visitor: Visitor) -> None:
        del self._visitors[visitor.key]
        kept = set().union(*(other.uploads for other in self._visitors.values()))
        for path in visitor.uploads - kept:
            path.unlink(missing_ok=True)
        shutil.rmtree(visitor.folder, ignore_errors=True)
        visitor.faces.clear()
        visitor.stop_looking()
