"""Index over class rows on FAISS: the only file that imports faiss, where it is first used.

An index is built from a snapshot of the rows and never rebuilt in place: ``build_index`` and
``ClassIndex.renewal`` make a new one, which a worker thread may do while the old one answers.
Scores of an index are hints only (its rows age, its codes are rounded): callers score again.

Two kinds: 'ivf', k-means cells of ours that follow the rows (renewed, updated row by row,
answered on a GPU where faiss-gpu is installed), and 'faiss', whatever FAISS' ``index_factory``
makes of a string, built anew at each renewal.

FAISS' number of threads belongs to the calling thread and, where both wheels found one OpenMP
runtime, is that of torch too: each call sets its own and puts back what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from vision.common.core.errors import VisionError
from vision.faces.core.select.faults import damaged_index, rows_not_finite, too_few_rows
from vision.faces.core.select.sampling import draw_outside
from vision.faces.nn.index.kmeans import assign_near, lists_for, update_centroids
from vision.faces.nn.index.list_state import fault_of_lists, fill_lists, read_lists

# What of an ``IndexSpec`` each kind looks at, beside what both do.
USES = {'ivf': ('num_lists', 'nprobe', 'code', 'search_on'), 'faiss': ('factory', 'parameters')}
KINDS = tuple(USES)
GONE = {'hnsw': "factory='HNSW16,SQfp16', parameters='efSearch=128'", 'lsh': "factory='LSH256rt'",
        'nested-ivf': "factory='IVF2048(IVF32,Flat),Flat', "
                      "parameters='nprobe=16,quantizer_nprobe=16'",
        'midx': "factory='IMI2x6,SQfp16', parameters='nprobe=64'"}
CODES = ('flat', 'fp16', 'sq8')
_CHUNK = 1 << 16  # rows that are float32 at once while an index is filled
_SAMPLE_PER_LIST = 40  # rows that k-means sees: FAISS' least; later iterations see all rows
_GPU_MOST = 2048  # results of a query, and probed lists, of FAISS' GPU indexes


@dataclass(frozen=True)
class IndexSpec:
    """What to build.

    Attributes:
        kind: one of ``KINDS``.
        dim: of a row.
        num_lists: cells of an ivf; 0: 4 sqrt(C) as a power of two.
        nprobe: cells searched per query.
        code: how rows are stored: 'flat' float32, 'fp16', 'sq8' one byte per number.
        search_on: 'auto': on the GPU where faiss-gpu is installed and sees one, else on the CPU;
            'cpu'; 'gpu', refused where it cannot be. A copy there needs the memory of the codes;
            after single rows have changed, the CPU answers until the next renewal.
        factory: string for FAISS' ``index_factory``, for the kind 'faiss'. Rows are compared by
            inner product; unit rows by distance, which orders them alike, where FAISS knows
            nothing else (LSH, IMI).
        parameters: of its search, as FAISS' ``ParameterSpace`` reads them: 'efSearch=128'.
        is_cosine: rows and queries are brought to unit length; without it inner products count.
        seed: of k-means and samples.
        num_threads: of FAISS. With several a graph is not the same in each build.

    Raises:
        VisionError: VIS-CONFIG-1059, a value that no index has.
    """

    kind: str
    dim: int
    num_lists: int = 0
    nprobe: int = 16
    code: str = 'fp16'
    search_on: str = 'auto'
    factory: str = ''
    parameters: str = ''
    is_cosine: bool = True
    seed: int = 0
    num_threads: int = 1

    def __post_init__(self) -> None:
        fault, do = '', 'see the selectors in vision/faces/README.md'
        require_kind(self.kind)
        if self.code not in CODES:
            fault = f'index code {self.code!r} is none of {", ".join(CODES)}'
        elif min(self.dim, self.nprobe, self.num_threads) < 1:
            fault = 'dim, nprobe and num_threads of an index are whole numbers >= 1'
        elif self.search_on not in ('auto', 'cpu', 'gpu'):
            fault = f'search_on={self.search_on!r}: auto, cpu or gpu'
        elif (self.kind == 'faiss') != bool(self.factory):
            fault = f'index kind {self.kind!r} with factory={self.factory!r}'
            do = "a factory string such as 'HNSW32' belongs to the kind faiss"
        if fault:
            raise VisionError('VIS-CONFIG-1059', fault, where='selector', do=do)

    @property
    def has_lists(self) -> bool:
        """Can cells be chosen, and single rows put in another?"""
        return self.kind == 'ivf'

    def lists_for(self, num_rows: int) -> int:
        """Cells of an ivf over so many rows: ``num_lists``, or what the default makes of them."""
        return self.num_lists or lists_for(num_rows)


def require_kind(kind: str) -> None:
    """VIS-CONFIG-1042 for a kind that is none; VIS-CONFIG-1055 for one of before, with what to
    write now."""
    if kind in GONE:
        raise VisionError('VIS-CONFIG-1055', f'there is no index kind {kind!r} any more',
                          where='selector', why='FAISS makes it of a string, as any other index',
                          do=f"write type='faiss' (kind='faiss' of a metric), {GONE[kind]}")
    if kind not in KINDS:
        raise VisionError('VIS-CONFIG-1042', f'index kind {kind!r} is none of {", ".join(KINDS)}',
                          where='selector', do='see the selectors in vision/faces/README.md')


def make_spec(kind: str, dim: int, *, seed: int = 0, is_cosine: bool = True,
              **options) -> IndexSpec:
    """An ``IndexSpec`` from options as they stand in a config.

    Raises:
        VisionError: VIS-CONFIG-1058, an option that this kind does not look at; VIS-CONFIG-1059, a
            bad value.
    """
    require_kind(kind)
    known = {field.name for field in fields(IndexSpec)}
    unused = sorted(known & set(options) - {*USES[kind], 'num_threads'})
    if unused:
        IndexSpec(kind, dim, factory=options.get('factory', ''))  # the kind is looked at first
        raise VisionError('VIS-CONFIG-1058', f'index kind {kind!r} has no use for '
                          f'{", ".join(unused)}', where='selector',
                          do=f'it takes {", ".join(USES[kind])}, num_threads')
    return IndexSpec(kind, dim, seed=seed, is_cosine=is_cosine, **options)


def load_faiss() -> ModuleType:
    """The package, imported where it is first used.

    Raises:
        VisionError: VIS-ENV-1043, it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise VisionError('VIS-ENV-1043', 'the package faiss is not installed',
                          where='a selector that uses an index', why=str(error),
                          do="pip install faiss-cpu, or take selector type='random'") from error
    return faiss


@contextmanager
def _threads(spec: IndexSpec) -> Iterator[ModuleType]:
    """FAISS, with the threads of ``spec`` in this thread until the end of the block."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(spec.num_threads)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def build_index(spec: IndexSpec, rows: Tensor, *, seed: int | None = None) -> ClassIndex:
    """Build from nothing.

    Args:
        rows: (C, d) float16 or float32 on any device; not kept.
        seed: instead of the spec's, for another draw.

    Raises:
        VisionError: VIS-CONFIG-1044, VIS-CONFIG-1091 fewer rows than lists, VIS-INPUT-1045 other
            dimension, VIS-RUN-1047 rows that are not finite.
    """
    seed = spec.seed if seed is None else seed
    rows = _checked(spec, rows)
    if spec.kind == 'faiss':
        with _threads(spec):
            return ClassIndex(spec, _from_factory(spec, rows, seed), len(rows))
    num_lists = spec.lists_for(len(rows))
    if len(rows) < num_lists:
        raise too_few_rows(len(rows), num_lists)
    centroids = _train_centroids(spec, rows, num_lists, seed)
    return _inverted(spec, rows, centroids)


class ClassIndex:
    """A filled index; make one with ``build_index`` or ``restore_index``.

    ``centroids`` are (n, d) float32 of an ivf's cells; None for other kinds.
    """

    def __init__(self, spec: IndexSpec, index: object, num_rows: int,
                 centroids: Tensor | None = None) -> None:
        self.spec, self.num_rows, self.centroids = spec, num_rows, centroids
        self._index = index
        self._gpu_copy: _GpuCopy | None = None
        self._is_changed = False  # single rows were, since it was filled
        self.nprobe = spec.nprobe

    @property
    def has_centroids(self) -> bool:
        """Whether rows lie in cells of ours, which follow them from renewal to renewal."""
        return self.centroids is not None

    @property
    def keeps_lists(self) -> bool:
        """Can ``lists_state`` give all that a search depends on?"""
        return self.has_centroids

    @property
    def can_update(self) -> bool:
        """Whether single rows can be put elsewhere between renewals."""
        return self.spec.has_lists

    def set_nprobe(self, nprobe: int) -> None:
        """Lists searched per query from now on; all of them when there are fewer."""
        if nprobe != self.nprobe:
            self.nprobe, self._gpu_copy = nprobe, None
            self._index.nprobe = min(nprobe, self._index.nlist)

    def search(self, queries: Tensor, num: int) -> Tensor:
        """(B, d) -> (B, num) int64 row ids, best first by the index's own scores; -1 = none."""
        _check_dim(self.spec, queries)
        rows = _as_numpy(self.spec, queries)
        with _threads(self.spec) as faiss:
            index = self._index
            if self._fits_gpu(num) and _has_gpu(faiss):
                index = self._gpu_copy = self._gpu_copy or _GpuCopy(faiss, self._index)
            _, ids = index.search(rows, num)
        return torch.from_numpy(ids)

    def _fits_gpu(self, num: int) -> bool:
        return self.spec.search_on != 'cpu' and self.spec.has_lists and \
            not self._is_changed and max(num, self.nprobe) <= _GPU_MOST

    def update(self, ids: Tensor, rows: Tensor) -> None:
        """Put rows (N, d) in the place of those with unique ids (N,), in their nearest lists.

        Raises:
            VisionError: VIS-CONFIG-1046, an index of this kind cannot change single rows.
        """
        if not self.can_update:
            raise VisionError('VIS-CONFIG-1046', f'index kind {self.spec.kind} cannot change '
                              'single rows', where='selector',
                              do='leave touched rows to the rebuild, or take an ivf index')
        rows = _checked(self.spec, rows)
        self._is_changed, self._gpu_copy = True, None
        with _threads(self.spec):
            self._index.update_vectors(ids.cpu().numpy().astype(np.int64),
                                       _as_numpy(self.spec, rows))

    def renewal(self, rows: Tensor, *, num_iterations: int = 0, previous: Tensor | None = None
                ) -> Callable[[], ClassIndex]:
        """Work, for any thread, that makes a new index of the rows (C, d) as they are now.

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
        """Codes, ids, direct map and centroids of an ivf; else what the index is in a file."""
        if not self.can_update:
            return load_faiss().serialize_index(self._index).nbytes
        return self.num_rows * (self._index.code_size + 16) + self.centroids.nbytes * 2

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
        VisionError: VIS-INPUT-1092, the checkpoint's index has another dimension;
            VIS-CKPT-1054, its centroids are none.
    """
    centroids, lists = state.get('centroids'), state.get('lists')
    num_rows = len(rows) if lists is None else len(lists['ids']) if 'ids' in lists else 0
    if not {'kind', 'dim', 'centroids'} <= set(state) or centroids is not None and (
            not isinstance(centroids, Tensor) or centroids.dtype != torch.float32
            or centroids.ndim != 2 or centroids.shape[1] != state['dim']
            or not 1 <= len(centroids) <= max(1, num_rows) or not centroids.isfinite().all()):
        raise damaged_index('its centroids are not at most as many finite float32 rows as there '
                            'are class rows')
    if state['dim'] != spec.dim:
        raise VisionError('VIS-INPUT-1092', f'the checkpoint\'s index has dimension '
                          f'{state["dim"]}, this head {spec.dim}', where='selector',
                          do='resume with the config that wrote the checkpoint')
    if lists is not None:
        return _of_lists(spec, centroids, lists)
    if centroids is None or state['kind'] != spec.kind:
        return build_index(spec, rows)
    return _inverted(spec, _checked(spec, rows), centroids)


def _of_lists(spec: IndexSpec, centroids: Tensor | None, lists: dict) -> ClassIndex:
    if centroids is None or not spec.has_lists:
        raise damaged_index('it has lists, but no centroids')
    # One row makes an index of the right kind; what is in it comes from the checkpoint.
    made = _inverted(spec, torch.zeros(1, spec.dim), centroids, torch.zeros(1, dtype=torch.int64))
    faiss, index = load_faiss(), made._index
    num_ranges = index.sq.trained.size() if hasattr(index, 'sq') else 0
    fault = fault_of_lists(lists, len(centroids), index.code_size, num_ranges)
    if fault:
        raise damaged_index(fault)
    index.set_direct_map_type(faiss.DirectMap.NoMap)
    index.reset()
    fill_lists(faiss, index, lists)
    made.num_rows, made._is_changed = index.ntotal, bool(lists.get('is_changed'))
    return made


def _check_dim(spec: IndexSpec, rows: Tensor) -> None:
    if rows.ndim != 2 or rows.shape[1] != spec.dim:
        raise VisionError('VIS-INPUT-1045', f'rows of shape {tuple(rows.shape)} for an index of '
                          f'dimension {spec.dim}', where='selector',
                          do='the features and the class rows of a head have one dimension')


def _checked(spec: IndexSpec, rows: Tensor) -> Tensor:
    if spec.search_on == 'gpu' and not _has_gpu(load_faiss()):
        raise VisionError('VIS-ENV-1089', 'this FAISS cannot use a GPU',
                          where='selector.search_on', why='the package faiss-cpu is installed, '
                          'or no GPU is visible', do="install faiss-gpu, or search_on='cpu'")
    _check_dim(spec, rows)
    rows = rows.detach().cpu()
    for part in rows.split(_CHUNK):
        if not part.isfinite().all():
            raise rows_not_finite()
    return rows


def _as_numpy(spec: IndexSpec, rows: Tensor) -> np.ndarray:
    rows = rows.detach().cpu().float()
    if spec.is_cosine:
        rows = torch.nn.functional.normalize(rows)
    return np.ascontiguousarray(rows.numpy())


def _train_centroids(spec: IndexSpec, rows: Tensor, num: int, seed: int) -> Tensor:
    """(num, d) by k-means on a sample of the rows."""
    sample = _as_numpy(spec, _sample(rows, _SAMPLE_PER_LIST * num, seed))
    with _threads(spec) as faiss:
        trainer = faiss.Kmeans(spec.dim, num, niter=8, spherical=spec.is_cosine, seed=seed,
                               min_points_per_centroid=1,
                               max_points_per_centroid=_SAMPLE_PER_LIST)
        trainer.train(sample)
    return torch.from_numpy(trainer.centroids.copy())


def _sample(rows: Tensor, num: int, seed: int) -> Tensor:
    if num >= len(rows):
        return rows
    return rows[torch.from_numpy(draw_outside(np.empty(0, np.int64), len(rows), num, seed))]


def _inverted(spec: IndexSpec, rows: Tensor, centroids: Tensor,
              assignment: Tensor | None = None) -> ClassIndex:
    """IVF of given centroids; ``assignment`` (C,) int64, or each row's nearest of all."""
    with _threads(spec) as faiss:
        metric = faiss.METRIC_INNER_PRODUCT  # of queries; cells of rows are by distance
        num_lists, quantizer = len(centroids), faiss.IndexFlat(spec.dim, metric)
        quantizer.add(centroids.numpy())
        if assignment is None:
            nearest = quantizer
            if not spec.is_cosine:  # by inner product, all rows would go to the longest centroids
                nearest = faiss.IndexFlatL2(spec.dim)
                nearest.add(centroids.numpy())
            lists = np.concatenate([nearest.assign(_as_numpy(spec, part), 1)[:, 0]
                                    for part in rows.split(_CHUNK)])
        else:
            lists = assignment.numpy()
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


def _from_factory(spec: IndexSpec, rows: Tensor, seed: int):
    """A filled index of the spec's string; what FAISS says against it is an error of ours."""
    faiss = load_faiss()
    try:
        try:
            index = faiss.index_factory(spec.dim, spec.factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError:
            if not spec.is_cosine:
                raise
            index = faiss.index_factory(spec.dim, spec.factory, faiss.METRIC_L2)
        faiss.ParameterSpace().set_index_parameters(index, spec.parameters)
    except RuntimeError as error:
        raise VisionError('VIS-CONFIG-1060', f'FAISS makes no index of dimension {spec.dim} of '
                          f'factory={spec.factory!r}, parameters={spec.parameters!r}',
                          where='selector', why=_reason(error),
                          do="write a string of FAISS' index factory, such as HNSW32") from error
    try:
        index.train(_as_numpy(spec, _sample(rows, _CHUNK, seed)))
        for part in rows.split(_CHUNK):
            index.add(_as_numpy(spec, part))
    except RuntimeError as error:
        raise VisionError('VIS-CONFIG-1091', f'FAISS cannot fill {spec.factory!r} with '
                          f'{len(rows)} class rows', where='selector', why=_reason(error),
                          do="take fewer cells, or selector type='ivf', which fits them to the "
                          'number of classes') from error
    return index


def _reason(error: RuntimeError) -> str:
    return str(error).strip().split('\n')[0]


def _has_gpu(faiss: ModuleType) -> bool:
    """Is this faiss-gpu, and does it see a GPU?"""
    return hasattr(faiss, 'StandardGpuResources') and faiss.get_num_gpus() > 0


class _GpuCopy:
    """A copy of a filled index on this process's GPU, for searches only.

    The index itself stays in host memory: FAISS' GPU indexes cannot change single rows. Written
    to FAISS' documented interface and tested with a stand-in.
    """

    def __init__(self, faiss: ModuleType, index: object) -> None:
        self._resources = faiss.StandardGpuResources()  # has to outlive the copy
        device = torch.cuda.current_device() if torch.cuda.is_available() else 0
        try:
            self._index = faiss.index_cpu_to_gpu(self._resources, device, index)
        except RuntimeError as error:  # FAISS' class for all faults, also of memory
            raise VisionError('VIS-ENV-1090', f'the index does not go to GPU {device}',
                              where='selector.search_on', why=_reason(error),
                              do="search_on='cpu'") from error

    def search(self, queries: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
        return self._index.search(queries, num)
