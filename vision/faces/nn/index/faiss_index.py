"""Index over class rows on FAISS: the only file that imports faiss, where it is first used.

An index is built from a snapshot of the rows and never rebuilt in place: ``build_index`` and
``ClassIndex.renewal`` make a new one, which a worker thread may do while the old one answers.
Scores of an index are hints only (its rows age, its codes are rounded): callers score again.

FAISS' wheel and torch each
bring an OpenMP runtime; faiss' own number of threads is set on every call, because it belongs to
the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.core.select.sampling import draw_outside
from vision.faces.nn.index import faiss_gpu
from vision.faces.nn.index.kmeans import assign_near, update_centroids
from vision.faces.nn.index.list_state import fault_of_lists, fill_lists, read_lists

# What of an ``IndexSpec`` each kind looks at, beside what all do.
USES = {'ivf': ('num_lists', 'nprobe', 'code', 'search_on'),
        'nested-ivf': ('num_lists', 'nprobe', 'code'),
        'hnsw': ('num_links', 'ef', 'code'),
        'lsh': ('num_bits',),
        'midx': ('num_bits', 'nprobe', 'code')}
KINDS = tuple(USES)
CODES = {'flat': 'Flat', 'fp16': 'SQfp16', 'sq8': 'SQ8'}
_CHUNK = 1 << 16  # rows that are float32 at once while an index is filled
_SAMPLE_PER_LIST = 40  # rows that k-means sees: FAISS' least; later iterations see all rows
_MIN_TRAIN = 39  # FAISS warns below 39 rows per centroid: sub-quantisers of midx get as many


@dataclass(frozen=True)
class IndexSpec:
    """What to build.

    Attributes:
        kind: one of ``KINDS``.
        dim: of a row.
        num_lists: cells of an IVF; 0: 4 sqrt(C) as a power of two (nested: twice as many).
        nprobe: cells searched per query (ivf, nested-ivf, midx).
        code: how rows are stored: 'flat' float32, 'fp16', 'sq8' one byte per number.
        num_bits: planes of lsh; bits of each half of midx (0: so that C / 64 cells are made).
        num_links, ef: graph degree and search width of hnsw.
        is_cosine: rows and queries are brought to unit length; without it inner products count.
        seed: of k-means, planes and samples.
        num_threads: of FAISS.
        search_on: 'auto': ivf on the GPU where faiss-gpu is installed and sees one, else on the
            CPU; 'cpu'; 'gpu', refused where it cannot be. A copy there needs the memory of the
            codes; after single rows have changed, the CPU answers until the next renewal.
    """

    kind: str
    dim: int
    num_lists: int = 0
    nprobe: int = 16
    code: str = 'fp16'
    num_bits: int = 0
    num_links: int = 16
    ef: int = 128
    is_cosine: bool = True
    seed: int = 0
    num_threads: int = 1
    search_on: str = 'auto'

    def __post_init__(self) -> None:
        fault = ''
        if self.kind not in KINDS:
            fault = f'index kind {self.kind!r} is none of {", ".join(KINDS)}'
        elif self.code not in CODES:
            fault = f'index code {self.code!r} is none of {", ".join(CODES)}'
        elif min(self.dim, self.nprobe, self.num_links, self.ef, self.num_threads) < 1:
            fault = 'dim, nprobe, num_links, ef and num_threads of an index are whole numbers >= 1'
        elif self.kind == 'midx' and (not self.is_cosine or self.dim % 2):
            fault = 'midx needs unit rows (is_cosine=True) of an even dimension'
        elif self.search_on not in ('auto', 'cpu', 'gpu') or (
                self.search_on == 'gpu' and self.kind not in faiss_gpu.KINDS):
            fault = f'search_on={self.search_on!r} of {self.kind}: auto, cpu, or for ' \
                    f'{", ".join(faiss_gpu.KINDS)} gpu'
        if fault:
            raise VisionError('VIS-CONFIG-1042', fault, where='selector',
                              do='see the selectors in vision/faces/README.md')

    @property
    def has_lists(self) -> bool:
        return 'nprobe' in USES[self.kind]

    def lists_for(self, num_rows: int) -> int:
        if self.num_lists:
            return self.num_lists
        factor = 8 if self.kind == 'nested-ivf' else 4
        return 1 << min(round(np.log2(max(1.0, factor * num_rows**0.5))),
                        max(1, num_rows).bit_length() - 1)  # a list for each row at most


def make_spec(kind: str, dim: int, *, seed: int = 0, is_cosine: bool = True,
              **options) -> IndexSpec:
    """An ``IndexSpec`` from options as they stand in a config.

    Raises:
        VisionError: VIS-CONFIG-1042, an option that this kind does not look at, or a bad value.
    """
    known = {field.name for field in fields(IndexSpec)}
    unused = sorted(known & set(options) - {*USES.get(kind, known), 'num_threads'})
    if unused:
        raise VisionError('VIS-CONFIG-1042', f'index kind {kind!r} has no use for '
                          f'{", ".join(unused)}', where='selector',
                          do=f'it takes {", ".join(USES[kind])}, num_threads')
    return IndexSpec(kind, dim, seed=seed, is_cosine=is_cosine, **options)


def load_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise VisionError('VIS-ENV-1043', 'the package faiss is not installed',
                          where='a selector that uses an index', why=str(error),
                          do="pip install faiss-cpu, or take selector type='random'") from error
    return faiss


def build_index(spec: IndexSpec, rows: Tensor, *, seed: int | None = None) -> ClassIndex:
    """Build from nothing.

    Args:
        rows: (C, d) float16 or float32 on any device; not kept.
        seed: instead of the spec's, for another draw.
    Raises:
        VisionError: VIS-CONFIG-1044 fewer rows than lists, VIS-INPUT-1045 other dimension,
            VIS-RUN-1047 rows that are not finite.
    """
    seed = spec.seed if seed is None else seed
    rows = _checked(spec, rows)
    if spec.kind not in ('ivf', 'nested-ivf'):
        return ClassIndex(spec, _fill(spec, _empty_index(spec, rows, seed), rows), len(rows))
    num_lists = spec.lists_for(len(rows))
    if len(rows) < num_lists:
        raise VisionError('VIS-CONFIG-1044', f'{len(rows)} class rows cannot fill '
                          f'{num_lists} lists', where='selector',
                          do='lower num_lists, or leave it at 0')
    centroids = _train_centroids(spec, rows, num_lists, seed)
    return _inverted(spec, rows, centroids)


class ClassIndex:
    """A filled index; make one with ``build_index`` or ``restore_index``."""

    def __init__(self, spec: IndexSpec, index: object, num_rows: int,
                 centroids: Tensor | None = None) -> None:
        self.spec, self.num_rows, self.centroids = spec, num_rows, centroids
        self._index = index
        self._gpu_copy: faiss_gpu.GpuCopy | None = None
        self._is_changed = False  # single rows were, since it was filled
        self.nprobe = spec.nprobe

    @property
    def has_centroids(self) -> bool:
        return self.centroids is not None

    @property
    def keeps_lists(self) -> bool:
        """Can ``lists_state`` give all that a search depends on?"""
        return self.has_centroids

    @property
    def can_update(self) -> bool:
        return self.spec.has_lists

    def set_nprobe(self, nprobe: int) -> None:
        """Lists searched per query from now on; all of them when there are fewer."""
        if nprobe != self.nprobe:
            self.nprobe, self._gpu_copy = nprobe, None
            self._index.nprobe = min(nprobe, self._index.nlist)

    def propose(self, queries: Tensor, num: int) -> Tensor:
        """Row ids (unsorted, repeated) that hold the ``num`` best of each query (B, d)."""
        ids = self.search(queries, min(num, self.num_rows)).flatten()
        return ids[ids >= 0]

    def search(self, queries: Tensor, num: int) -> Tensor:
        """(B, d) -> (B, num) int64 row ids, best first by the index's own scores; -1 = none."""
        _check_dim(self.spec, queries)
        faiss = load_faiss()
        faiss.omp_set_num_threads(self.spec.num_threads)
        index = self._index
        if self._fits_gpu(num) and faiss_gpu.has_gpu(faiss):
            index = self._gpu_copy = self._gpu_copy or faiss_gpu.GpuCopy(faiss, self._index)
        _, ids = index.search(_as_numpy(self.spec, queries), num)
        return torch.from_numpy(ids)

    def _fits_gpu(self, num: int) -> bool:
        spec = self.spec
        return spec.search_on != 'cpu' and spec.kind in faiss_gpu.KINDS and \
            not self._is_changed and max(num, self.nprobe) <= faiss_gpu.MOST

    def update(self, ids: Tensor, rows: Tensor) -> None:
        """Put rows (N, d) in the place of those with unique ids (N,), in their nearest lists."""
        if not self.can_update:
            raise VisionError('VIS-CONFIG-1046', f'index kind {self.spec.kind} cannot change '
                              'single rows', where='selector',
                              do='leave touched rows to the rebuild, or take an ivf index')
        rows = _checked(self.spec, rows)
        load_faiss().omp_set_num_threads(self.spec.num_threads)
        self._is_changed, self._gpu_copy = True, None
        self._index.update_vectors(ids.cpu().numpy().astype(np.int64),
                                   _as_numpy(self.spec, rows))

    def renewal(self, rows: Tensor, *, num_iterations: int = 0, previous: Tensor | None = None
                ) -> Callable[[], ClassIndex]:
        """Work, for any thread, that makes a new index of the rows as they are now.

        This index may be updated meanwhile: what the work needs of it is taken here.

        Args:
            num_iterations: of k-means from the old centroids; 0: they stay, and rows are only
                assigned again, each to a list near its old one (``assign_near``).
            previous: (C,) int64 old lists; None: those of now.
        """
        if not self.has_centroids:
            return partial(build_index, self.spec, rows)
        return partial(_renewed, self.spec, rows, self.centroids,
                       self.assignment() if previous is None else previous, num_iterations)

    def assignment(self) -> Tensor:
        """(C,) int64 list of each row."""
        faiss = load_faiss()
        return torch.from_numpy(faiss.vector_to_array(self._index.direct_map.array) >> 32)

    def imbalance(self) -> float:
        """1: all lists are equally long; 3 means searches cost three times as much as then."""
        return self._index.invlists.imbalance_factor() if self.can_update else 1.0

    @property
    def num_bytes(self) -> int:
        """Codes, ids, direct map and centroids, or the codes and links of the other kinds."""
        faiss, index = load_faiss(), self._index
        if self.can_update:
            centroids = 0 if self.centroids is None else self.centroids.nbytes * 2
            return self.num_rows * (index.code_size + 16) + centroids
        if self.spec.kind == 'hnsw':
            links = faiss.downcast_index(index).hnsw.neighbors
            return self.num_rows * index.storage.sa_code_size() + links.size() * 4
        return self.num_rows * index.sa_code_size()

    def state_dict(self) -> dict:
        """Centroids, for lists that are filled again from the rows."""
        return dict(kind=self.spec.kind, dim=self.spec.dim, centroids=self.centroids)

    def lists_state(self) -> dict:
        """The lists as they are, for ``restore_index`` as ``lists`` of its state."""
        return dict(read_lists(load_faiss(), self._index), is_changed=self._is_changed)


def _renewed(spec: IndexSpec, rows: Tensor, centroids: Tensor, assignment: Tensor,
             num_iterations: int) -> ClassIndex:
    rows, is_cosine = _checked(spec, rows), spec.is_cosine
    for _ in range(num_iterations):
        assignment = assign_near(rows, assignment, centroids, is_cosine=is_cosine)
        centroids = update_centroids(rows, assignment, centroids, is_cosine=is_cosine)
    assignment = assign_near(rows, assignment, centroids, is_cosine=is_cosine)
    return _inverted(spec, rows, centroids, assignment)


def restore_index(spec: IndexSpec, state: dict, rows: Tensor | None) -> ClassIndex:
    """The index of a checkpoint: with its ``lists`` if it has them, or over these rows.

    Kinds without centroids are built anew.

    Args:
        rows: (C, d), or None with lists.

    Raises:
        VisionError: VIS-INPUT-1045, the checkpoint's index has another dimension;
            VIS-CKPT-1054, its centroids are none.
    """
    centroids, lists = state.get('centroids'), state.get('lists')
    num_rows = len(rows) if lists is None else len(lists['ids']) if 'ids' in lists else 0
    if not {'kind', 'dim', 'centroids'} <= set(state) or centroids is not None and (
            not isinstance(centroids, Tensor) or centroids.dtype != torch.float32
            or centroids.ndim != 2 or centroids.shape[1] != state['dim']
            or not 1 <= len(centroids) <= max(1, num_rows) or not centroids.isfinite().all()):
        raise _damaged('its centroids are not at most as many finite float32 rows as there are '
                       'class rows')
    if state['dim'] != spec.dim:
        raise VisionError('VIS-INPUT-1045', f'the checkpoint\'s index has dimension '
                          f'{state["dim"]}, this head {spec.dim}', where='selector',
                          do='resume with the config that wrote the checkpoint')
    if lists is not None:
        return _of_lists(spec, centroids, lists)
    if centroids is None or state['kind'] != spec.kind:
        return build_index(spec, rows)
    return _inverted(spec, _checked(spec, rows), centroids)


def _of_lists(spec: IndexSpec, centroids: Tensor | None, lists: dict) -> ClassIndex:
    if centroids is None or not spec.has_lists:
        raise _damaged('it has lists, but no centroids')
    # One row makes an index of the right kind; what is in it comes from the checkpoint.
    made = _inverted(spec, torch.zeros(1, spec.dim), centroids, torch.zeros(1, dtype=torch.int64))
    faiss, index = load_faiss(), made._index
    num_ranges = index.sq.trained.size() if hasattr(index, 'sq') else 0
    fault = fault_of_lists(lists, len(centroids), index.code_size, num_ranges)
    if fault:
        raise _damaged(fault)
    index.set_direct_map_type(faiss.DirectMap.NoMap)
    index.reset()
    fill_lists(faiss, index, lists)
    made.num_rows, made._is_changed = index.ntotal, bool(lists.get('is_changed'))
    return made


def _damaged(why: str) -> VisionError:
    return VisionError('VIS-CKPT-1054', 'the index of the checkpoint is damaged',
                       where='selector', why=why, do='use an earlier checkpoint; or remove the '
                       'index from it, then it is built anew')


def _check_dim(spec: IndexSpec, rows: Tensor) -> None:
    if rows.ndim != 2 or rows.shape[1] != spec.dim:
        raise VisionError('VIS-INPUT-1045', f'rows of shape {tuple(rows.shape)} for an index of '
                          f'dimension {spec.dim}', where='selector',
                          do='the features and the class rows of a head have one dimension')


def _checked(spec: IndexSpec, rows: Tensor) -> Tensor:
    if spec.search_on == 'gpu':
        faiss_gpu.require_gpu(load_faiss())
    _check_dim(spec, rows)
    rows = rows.detach().cpu()
    for part in rows.split(_CHUNK):
        if not part.isfinite().all():
            raise VisionError('VIS-RUN-1047', 'class rows hold NaN or infinity: no index is '
                              'built', where='selector',
                              do='lower the learning rate, or resume from an earlier checkpoint')
    return rows


def _as_numpy(spec: IndexSpec, rows: Tensor) -> np.ndarray:
    rows = rows.detach().cpu().float()
    if spec.is_cosine:
        rows = torch.nn.functional.normalize(rows)
    return np.ascontiguousarray(rows.numpy())


def _train_centroids(spec: IndexSpec, rows: Tensor, num: int, seed: int) -> Tensor:
    """(num, d) by k-means on a sample of the rows."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(spec.num_threads)
    trainer = faiss.Kmeans(spec.dim, num, niter=8, spherical=spec.is_cosine, seed=seed,
                           min_points_per_centroid=1, max_points_per_centroid=_SAMPLE_PER_LIST)
    trainer.train(_as_numpy(spec, _sample(rows, _SAMPLE_PER_LIST * num, seed)))
    return torch.from_numpy(trainer.centroids.copy())


def _sample(rows: Tensor, num: int, seed: int) -> Tensor:
    if num >= len(rows):
        return rows
    return rows[torch.from_numpy(draw_outside(np.empty(0, np.int64), len(rows), num, seed))]


def _quantizer(spec: IndexSpec, centroids: Tensor):
    faiss = load_faiss()
    metric = faiss.METRIC_INNER_PRODUCT  # of queries; cells of rows are by distance
    if spec.kind == 'nested-ivf':
        outer = max(1, int(len(centroids)**0.5 / 2))
        quantizer = faiss.index_factory(spec.dim, f'IVF{outer},Flat', metric)
        quantizer.cp.min_points_per_centroid = 1
        quantizer.cp.seed = spec.seed + 1
        quantizer.train(centroids.numpy())
        quantizer.nprobe = max(1, outer // 2)
    else:
        quantizer = faiss.IndexFlat(spec.dim, metric)
    quantizer.add(centroids.numpy())
    return quantizer


def _inverted(spec: IndexSpec, rows: Tensor, centroids: Tensor,
              assignment: Tensor | None = None) -> ClassIndex:
    """IVF of given centroids; ``assignment`` (C,) int64, or each row's nearest of all."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(spec.num_threads)
    num_lists, quantizer = len(centroids), _quantizer(spec, centroids)
    if assignment is None:
        nearest = quantizer
        if not spec.is_cosine:  # by inner product, all rows would go to the longest centroids
            nearest = faiss.IndexFlatL2(spec.dim)
            nearest.add(centroids.numpy())
        lists = np.concatenate([nearest.assign(_as_numpy(spec, part), 1)[:, 0]
                                for part in rows.split(_CHUNK)])
    else:
        lists = assignment.numpy()
    metric = faiss.METRIC_INNER_PRODUCT
    if spec.code == 'flat':
        index = faiss.IndexIVFFlat(quantizer, spec.dim, num_lists, metric)
    else:
        code = dict(fp16=faiss.ScalarQuantizer.QT_fp16, sq8=faiss.ScalarQuantizer.QT_8bit)
        index = faiss.IndexIVFScalarQuantizer(quantizer, spec.dim, num_lists, code[spec.code],
                                              metric, False)  # rows whole, not residuals
    index.by_residual = False
    index.train(_as_numpy(spec, rows[:_CHUNK]))  # ranges of codes only: the quantizer is full
    index.nprobe = min(spec.nprobe, num_lists)
    _fill_lists(spec, index, rows, lists)
    return ClassIndex(spec, index, len(rows), centroids)


def _fill_lists(spec: IndexSpec, index, rows: Tensor, lists: np.ndarray) -> None:
    """Add row i to list lists[i]; each list gets exactly the memory it needs."""
    faiss = load_faiss()
    for number, length in enumerate(np.bincount(lists, minlength=index.nlist).tolist()):
        index.invlists.resize(number, length)  # std::vector would grow by doubling
        index.invlists.resize(number, 0)
    for start in range(0, len(rows), _CHUNK):
        part = _as_numpy(spec, rows[start:start + _CHUNK])
        ids = np.arange(start, start + len(part), dtype=np.int64)
        own = np.ascontiguousarray(lists[start:start + _CHUNK], dtype=np.int64)
        index.add_core(len(part), *(faiss.swig_ptr(a) for a in (part, ids, own)))
    index.set_direct_map_type(faiss.DirectMap.Array)


def _empty_index(spec: IndexSpec, rows: Tensor, seed: int):
    """hnsw, lsh or midx, trained."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(spec.num_threads)
    inner = faiss.METRIC_INNER_PRODUCT
    if spec.kind == 'hnsw':
        index = faiss.index_factory(spec.dim, f'HNSW{spec.num_links},{CODES[spec.code]}', inner)
        index.hnsw.efSearch = spec.ef
    elif spec.kind == 'lsh':
        index = faiss.IndexLSH(spec.dim, spec.num_bits or 256, True, False)
        index.rrot.init(seed + 1)
    else:
        bits = spec.num_bits or max(1, round(np.log2(max(4, len(rows) / 64)) / 2))
        if len(rows) < _MIN_TRAIN * 2**bits:
            raise VisionError('VIS-CONFIG-1044', f'{len(rows)} class rows are too few for two '
                              f'times {2**bits} centroids', where='selector',
                              do="lower num_bits, or take selector type='ivf'")
        # FAISS refuses inner products here; with unit rows the order by L2 is the same.
        index = faiss.index_factory(spec.dim, f'IMI2x{bits},{CODES[spec.code]}', faiss.METRIC_L2)
        index.nprobe = min(spec.nprobe, 4**bits)
    index.train(_as_numpy(spec, _sample(rows, _CHUNK, seed)))
    return index


def _fill(spec: IndexSpec, index, rows: Tensor):
    for part in rows.split(_CHUNK):
        index.add(_as_numpy(spec, part))
    if spec.kind == 'midx':
        index.set_direct_map_type(load_faiss().DirectMap.Array)
    return index
