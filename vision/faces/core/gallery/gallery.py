"""A gallery: whose face is which embedding, in one file that says which embedder made it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.common.core.errors import VisionError
from vision.common.core.files import SEAL, atomic_write, sealed
from vision.common.core.plain_values import read_npz

UNKNOWN = 'unknown'


@dataclass(frozen=True)
class Gallery:
    """Enrolled faces.

    Attributes:
        embeddings: (N, d) float32 unit rows.
        names: (N,) identity of each row.
        sources: (N,) file that the face was found in.
        embedder: hash of the network that made the rows; rows of another one mean nothing here.
    """

    embeddings: np.ndarray
    names: np.ndarray
    sources: np.ndarray
    embedder: str

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        np.savez(content, embeddings=self.embeddings, names=np.asarray(self.names, dtype='U'),
                 sources=np.asarray(self.sources, dtype='U'), embedder=np.array(self.embedder))
        with zipfile.ZipFile(content, 'a') as archive:
            archive.comment = SEAL
        with atomic_write(Path(path)) as file:
            file.write(sealed(content.getvalue()))

    def joined(self, other: Gallery) -> Gallery:
        """Rows of both; a picture enrolled again under its name takes its old row's place.

        Raises:
            VisionError: VIS-CONFIG-1102 when another embedder made the other rows.
        """
        other.require(self.embedder, 'the new faces')
        again = set(zip(other.names.tolist(), other.sources.tolist(), strict=True))
        keep = [pair not in again for pair in
                zip(self.names.tolist(), self.sources.tolist(), strict=True)]
        parts = [np.concatenate([getattr(self, key)[keep], getattr(other, key)])
                 for key in ('embeddings', 'names', 'sources')]
        return Gallery(*parts, self.embedder)

    def require(self, embedder: str, where: str) -> None:
        if embedder != self.embedder:
            raise VisionError('VIS-CONFIG-1102', f'the gallery was made by embedder '
                              f'{self.embedder[:12]}, this one is {embedder[:12]}', where=where,
                              why='distances between embeddings of two networks mean nothing',
                              do='use the config, checkpoint and flip fusion of the gallery, or '
                              'build it again')

    def without(self, name: str) -> Gallery:
        """Nobody of this name any more; VIS-CONFIG-1105 when there was nobody."""
        keep = self.names != name
        if keep.all():
            raise VisionError('VIS-CONFIG-1105', f'nobody in the gallery is called {name!r}',
                              do='see the names with: vision faces gallery list FILE')
        return Gallery(self.embeddings[keep], self.names[keep], self.sources[keep], self.embedder)

    def recognise(self, scores: np.ndarray, entries: np.ndarray,
                  threshold: float) -> list[tuple[str, float]]:
        """(name, cosine) of the best entry of each probe; ``UNKNOWN`` below the threshold."""
        return [(str(self.names[entry]) if score >= threshold else UNKNOWN, float(score))
                for score, entry in zip(scores[:, 0], entries[:, 0], strict=True)]


def load_gallery(path: Path) -> Gallery:
    """Read and check a gallery; VIS-DATA-1101 says what is wrong with it."""
    try:
        raw = Path(path).read_bytes()
        if fault := _broken_seal(raw):
            raise ValueError(fault)
        content = read_npz(raw, ('embeddings', 'names', 'sources', 'embedder'))
        gallery = Gallery(content['embeddings'], content['names'], content['sources'],
                          str(content['embedder']))
    except (OSError, ValueError) as error:
        raise _broken(path, f'it cannot be read: {error}') from error
    rows = gallery.embeddings
    if rows.dtype != np.float32 or gallery.names.dtype.kind != 'U' or gallery.names.ndim != 1 \
            or gallery.sources.dtype.kind != 'U' or gallery.sources.ndim != 1:
        raise _broken(path, f'rows of {rows.dtype}, names of {gallery.names.dtype}, files of '
                      f'{gallery.sources.dtype}')
    if rows.ndim != 2 or not len(rows) or not len(rows) == len(gallery.names) == len(
            gallery.sources):
        raise _broken(path, f'rows {rows.shape}, {len(gallery.names)} names, '
                      f'{len(gallery.sources)} files')
    off = np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1)
    bad = np.flatnonzero(~(off < 1e-3))
    if len(bad):
        raise _broken(path, f'row {bad[0]} ({gallery.names[bad[0]]}) is not of length one')
    return gallery


def _broken_seal(raw: bytes) -> str:
    """What speaks against the sha256 in the archive's comment; '' also when it has none."""
    end = raw.rfind(b'PK\5\6')
    num_bytes = int.from_bytes(raw[end + 20:end + 22], 'little')
    if end < 0 or (not num_bytes and end + 22 == len(raw)):
        return ''
    rest = raw[:-len(SEAL)]
    digest = hashlib.sha256(rest + SEAL).hexdigest().encode()
    is_whole = end + 22 + num_bytes == len(raw) and raw == rest + b'sha256:' + digest
    return '' if is_whole else 'its sha256 is not the one written inside it'


def suspicious_rows(gallery: Gallery, threshold: float) -> list[str]:
    """Rows that look enrolled under a wrong name: nearer than ``threshold`` to somebody else."""
    scores = gallery.embeddings @ gallery.embeddings.T
    scores[gallery.names[:, None] == gallery.names] = -1
    nearest = scores.argmax(axis=1)
    rows = np.flatnonzero(scores.max(axis=1) >= threshold)
    return [f'{gallery.sources[row]} ({gallery.names[row]}) looks like '
            f'{gallery.sources[nearest[row]]} ({gallery.names[nearest[row]]}): cosine '
            f'{scores[row, nearest[row]]:.2f}' for row in rows]


def _broken(path: Path, what: str) -> VisionError:
    return VisionError('VIS-DATA-1101', f'not a gallery: {what}', where=str(path),
                       why='names would be given to the wrong faces',
                       do='build it with: vision faces gallery build FOLDER --out FILE')
