"""Indexes find what an exhaustive search finds, and refuse what cannot be built."""

import ast
import builtins

import pytest
import torch
from torch.nn import functional

from vision.common.core.errors import VisionError
from vision.faces.nn.index.faiss_index import (
    GONE,
    IndexSpec,
    build_index,
    load_faiss,
    make_spec,
    restore_index,
)
from vision.faces.nn.index.kmeans import assign_near, update_centroids

DIM = 32
HNSW = dict(kind='faiss', factory='HNSW16,SQfp16', parameters='efSearch=128')


@pytest.fixture(scope='module')
def rows():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, DIM, generator=generator)
    noise = torch.randn(4000, DIM, generator=generator)
    return functional.normalize(centres.repeat_interleave(40, 0) + 0.5 * noise)


def queries_near(rows, num=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(len(rows), generator=generator)[:num]
    noise = torch.randn(num, DIM, generator=generator)
    return ids, functional.normalize(rows[ids] + 0.1 * noise)


def recall(index, rows, queries, num=10):
    exact = (queries @ rows.T).topk(num).indices
    found = index.search(queries, num)
    return (exact[:, :, None] == found[:, None, :]).any(2).float().mean().item()


@pytest.mark.parametrize(('spec', 'least'), [
    (dict(kind='ivf'), 0.95), (HNSW, 0.95),
    (dict(kind='faiss', factory='IVF64(IVF8,Flat),Flat',
          parameters='nprobe=16,quantizer_nprobe=8'), 0.9),
    (dict(kind='faiss', factory='LSH256rt'), 0.35),  # these two know no inner product
    (dict(kind='faiss', factory='IMI2x4,SQfp16', parameters='nprobe=32'), 0.8)])
def test_recall_against_exhaustive_search(spec, least, rows):
    index = build_index(IndexSpec(dim=DIM, **spec), rows)
    _, queries = queries_near(rows)
    assert recall(index, rows, queries) >= least
    assert 0 < index.num_bytes < 8 * rows.nbytes


@pytest.mark.parametrize('spec', [dict(kind='ivf'), HNSW])
def test_torch_keeps_its_threads(spec, rows):
    """They may share an OpenMP runtime: a training went on with one thread."""
    faiss, before = load_faiss(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        index = build_index(IndexSpec(dim=DIM, num_threads=2, **spec), rows)
        counts = [torch.get_num_threads()]
        index.search(rows[:8], 4)
        counts.append(torch.get_num_threads())
        if index.can_update:
            index.update(torch.arange(8), rows[8:16])
            index.renewal(rows, num_iterations=1)().search(rows[:8], 4)
        assert [*counts, torch.get_num_threads()] == [3, 3, 3]
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize('code', ['flat', 'fp16', 'sq8'])
def test_all_lists_probed_is_the_exhaustive_search(code, rows):
    index = build_index(IndexSpec('ivf', DIM, num_lists=16, nprobe=16, code=code), rows)
    _, queries = queries_near(rows)
    assert recall(index, rows, queries) >= dict(flat=1.0, fp16=0.98, sq8=0.9)[code]


def test_inner_products_of_rows_that_are_not_unit(rows):
    scaled = rows * torch.linspace(0.5, 3.0, len(rows))[:, None]
    index = build_index(IndexSpec('ivf', DIM, num_lists=16, nprobe=16, code='flat',
                                  is_cosine=False), scaled)
    _, queries = queries_near(rows)
    assert recall(index, scaled, queries) == 1.0


def test_updated_rows_are_found_at_their_new_place(rows):
    index = build_index(IndexSpec('ivf', DIM, nprobe=4), rows)
    moved = torch.arange(0, 4000, 40)
    after = rows.clone()
    after[moved] = rows[(moved + 2000) % 4000 + 1]
    assert (index.search(after[moved], 3) == moved[:, None]).any(1).float().mean() < 0.1
    index.update(moved, after[moved])
    assert (index.search(after[moved], 3) == moved[:, None]).any(1).float().mean() > 0.95


def test_refreshing_restores_recall_after_drift(rows):
    index = build_index(IndexSpec('ivf', DIM, nprobe=4), rows)
    generator = torch.Generator().manual_seed(2)
    drifted = functional.normalize(rows + 0.12 * torch.randn(rows.shape, generator=generator))
    _, queries = queries_near(drifted)
    stale, again, warm = (recall(i, drifted, queries) for i in (
        index, index.renewal(drifted)(), index.renewal(drifted, num_iterations=2)()))
    assert again > stale + 0.05 and warm > stale + 0.05
    assert index.renewal(drifted)().centroids is index.centroids


@pytest.mark.parametrize('spec', [dict(kind='ivf'), HNSW])
def test_equal_seeds_build_equal_indexes(spec, rows):
    first, second = (build_index(IndexSpec(dim=DIM, seed=3, **spec), rows) for _ in range(2))
    _, queries = queries_near(rows)
    assert torch.equal(first.search(queries, 8), second.search(queries, 8))


def test_a_restored_index_answers_as_the_one_saved(rows):
    spec = IndexSpec('ivf', DIM, nprobe=4)
    index = build_index(spec, rows)
    restored = restore_index(spec, index.state_dict(), rows)
    _, queries = queries_near(rows)
    assert recall(restored, rows, queries) >= recall(index, rows, queries)
    with pytest.raises(VisionError, match='VIS-INPUT-1092'):
        restore_index(IndexSpec('ivf', 16), index.state_dict(), rows[:, :16])


@pytest.mark.fault('R32')
@pytest.mark.parametrize('change', [
    lambda state: state.pop('dim'), lambda state: state.update(centroids=[1.0]),
    lambda state: state.update(centroids=state['centroids'][0]),
    lambda state: state.update(centroids=state['centroids'][:, :9]),
    lambda state: state.update(centroids=state['centroids'].double()),
    lambda state: state.update(centroids=state['centroids'] * torch.nan),
    lambda state: state.update(centroids=state['centroids'][:0]),
    lambda state: state.update(centroids=state['centroids'].repeat(999, 1))])
def test_centroids_of_a_damaged_checkpoint_are_refused(change, rows):
    spec = IndexSpec('ivf', DIM, nprobe=4)
    state = build_index(spec, rows).state_dict()
    restore_index(spec, state, rows)
    change(state)
    with pytest.raises(VisionError, match='VIS-CKPT-1054'):
        restore_index(spec, state, rows)


def test_near_assignment_over_all_cells_is_the_full_one(rows):
    start = torch.zeros(len(rows), dtype=torch.int64)
    centroids = rows[::50]
    full = (rows @ centroids.T).argmax(1)
    near = assign_near(rows, start, centroids, is_cosine=True, num_near=len(centroids))
    assert torch.equal(near, full)
    few = assign_near(rows, full, centroids, is_cosine=True, num_near=8)
    assert torch.equal(few, full)  # the nearest stays the nearest among any that hold it


def test_centroids_are_means_and_an_empty_cell_stays():
    rows = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    centroids = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    moved = update_centroids(rows, torch.tensor([0, 0, 1]), centroids, is_cosine=False)
    assert moved.tolist() == [[3.0, 0.0], [0.0, 6.0], [9.0, 9.0]]


@pytest.mark.parametrize(('spec', 'change', 'code'), [
    (dict(num_lists=5000), {}, '1044'),
    (dict(kind='faiss', factory='IVF5000,Flat'), {}, '1091.*IVF5000'),
    (dict(kind='faiss', factory='Tree7'), {}, '1060(.|\n)*could not parse index string Tree7'),
    (dict(HNSW, parameters='effort=3'), {}, '1060(.|\n)*could not set parameter effort'),
    (dict(kind='faiss', factory='IMI2x4', is_cosine=False), {}, '1060(.|\n)*inner prod'),
    ({}, dict(nan=True), '1047'),
    ({}, dict(dim=16), '1045')])
def test_builds_that_are_refused(spec, change, code, rows):
    rows = rows.clone()
    if change.get('nan'):
        rows[17, 3] = torch.nan
    rows = rows[:, :change.get('dim', DIM)]
    with pytest.raises(VisionError, match=code):
        build_index(IndexSpec(**dict(kind='ivf', dim=DIM) | spec), rows)


@pytest.mark.parametrize('num', [1, 2, 10, 63])
def test_few_rows_get_as_few_lists_by_themselves(num, rows):
    index = build_index(IndexSpec('ivf', DIM), rows[:num])
    assert index.search(rows[num - 1:num], 1).tolist() == [[num - 1]]


@pytest.mark.parametrize('spec, code', [
    (dict(kind='tree'), 1042), (dict(code='fp8'), 1059), (dict(nprobe=0), 1059),
    (dict(search_on='tpu'), 1059), (dict(kind='faiss'), 1059), (dict(factory='HNSW32'), 1059)])
def test_specs_that_are_refused(spec, code):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{code}'):
        IndexSpec(**dict(kind='ivf', dim=DIM) | spec)


@pytest.mark.parametrize('kind', GONE)
def test_kinds_of_old_configs_say_what_to_write_and_that_can_be_built(kind, rows):
    with pytest.raises(VisionError, match=f'1055.*{kind}') as error:
        make_spec(kind, DIM, num_bits=8)
    written = ast.parse(f'dict({error.value.do.partition("metric), ")[2]})', mode='eval').body
    options = {each.arg: each.value.value for each in written.keywords}
    index = build_index(make_spec('faiss', DIM, **options), rows)
    assert recall(index, rows, queries_near(rows)[1]) > 0.3


def test_more_lists_find_what_few_miss_and_all_of_them_everything(rows):
    index = build_index(make_spec('ivf', DIM, nprobe=1, code='flat'), rows)
    generator = torch.Generator().manual_seed(0)
    queries = functional.normalize(torch.randn(20, DIM, generator=generator))
    best = (queries @ functional.normalize(rows).T).topk(10).indices

    def share_found():
        return torch.isin(best, index.search(queries, 10)).float().mean()
    few = share_found()
    index.set_nprobe(1 << 20)
    assert few < 0.9 and share_found() > 0.99


@pytest.mark.parametrize(('spec', 'option'), [
    (dict(kind='faiss', factory='HNSW32'), dict(num_lists=64)),
    (dict(kind='faiss', factory='HNSW32'), dict(search_on='gpu')),
    (dict(kind='ivf'), dict(parameters='nprobe=3'))])
def test_options_that_a_kind_does_not_look_at_are_refused(spec, option):
    with pytest.raises(VisionError, match=f'1058.*no use for {next(iter(option))}'):
        make_spec(dim=DIM, **spec, **option)
    assert make_spec(dim=DIM, num_threads=2, **spec) == IndexSpec(dim=DIM, num_threads=2, **spec)


def test_queries_of_another_dimension_and_updates_of_a_graph_are_refused(rows):
    index = build_index(IndexSpec(dim=DIM, **HNSW), rows[:200])
    with pytest.raises(VisionError, match='1045'):
        index.search(rows[:2, :8], 3)
    with pytest.raises(VisionError, match='1046'):
        index.update(torch.tensor([0]), rows[:1])


class CopyElsewhere:
    """Stands for a GPU index: answers as the index that it was made of, and counts."""

    made = []

    def __init__(self, _resources, device, index):
        assert device == 0
        self.index, self.num_searches = index, 0
        self.made.append(self)

    def search(self, queries, num):
        self.num_searches += 1
        return self.index.search(queries, num)


@pytest.fixture
def gpu(monkeypatch):
    faiss = load_faiss()
    monkeypatch.setattr(faiss, 'StandardGpuResources', object, raising=False)
    monkeypatch.setattr(faiss, 'get_num_gpus', lambda: 1, raising=False)
    monkeypatch.setattr(faiss, 'index_cpu_to_gpu', CopyElsewhere, raising=False)
    monkeypatch.setattr(CopyElsewhere, 'made', [])
    return CopyElsewhere


def test_a_faiss_with_gpus_answers_there_until_rows_change(gpu, rows):
    index = build_index(IndexSpec('ivf', DIM), rows)
    plain = build_index(IndexSpec('ivf', DIM, search_on='cpu'), rows)
    _, queries = queries_near(rows)
    for _ in range(2):
        assert torch.equal(index.search(queries, 8), plain.search(queries, 8))
    assert [copy.num_searches for copy in gpu.made] == [2]
    index.search(queries, 3000)  # more than a GPU index gives
    index.update(torch.arange(5), rows[5:10])
    plain.update(torch.arange(5), rows[5:10])
    assert torch.equal(index.search(rows[5:10], 2), plain.search(rows[5:10], 2))
    assert [copy.num_searches for copy in gpu.made] == [2]
    index.renewal(rows)().search(queries, 8)
    assert [copy.num_searches for copy in gpu.made] == [2, 1]


def test_what_a_factory_makes_stays_on_the_cpu(gpu, rows):
    build_index(IndexSpec(dim=DIM, **HNSW), rows).search(rows[:2], 3)
    assert not gpu.made


def test_a_gpu_that_is_asked_for_and_absent_or_full_is_an_error(rows, monkeypatch, request):
    faiss = load_faiss()
    monkeypatch.delattr(faiss, 'StandardGpuResources', raising=False)
    spec = IndexSpec('ivf', DIM, search_on='gpu')
    with pytest.raises(VisionError, match='1089.*cannot use a GPU'):
        build_index(spec, rows)
    request.getfixturevalue('gpu')

    def full(*_):
        raise RuntimeError('Error: cudaMalloc error out of memory [2]\nat somewhere')
    monkeypatch.setattr(faiss, 'index_cpu_to_gpu', full)
    index = build_index(spec, rows)
    with pytest.raises(VisionError, match="1090(.|\n)*out of memory(.|\n)*search_on='cpu'"):
        index.search(rows[:2], 3)


def test_absent_faiss_is_named(monkeypatch):
    real = builtins.__import__

    def without_faiss(name, *args, **kwargs):
        if name == 'faiss':
            raise ImportError('No module named faiss')
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without_faiss)
    with pytest.raises(VisionError, match='pip install faiss-cpu'):
        load_faiss()
