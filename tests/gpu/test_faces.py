"""The face head on a GPU: the same step as on the CPU, what waits, rows in host memory, resumes.

Float32 results of the two devices differ by the order of sums: logits are up to 64, so their
rounding is some 1e-5, and gradients are compared to a relative 1e-4 in norm, without TF32.
"""

import copy
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'faces'))
import toy_faces
from mmengine.hooks import Hook
from rows import TensorStore, batch_near, clustered_rows, selections
from slow_oracle import SlowOracle

from vision.common.core.errors import VisionError
from vision.common.mm.optim import AmpOptimWrapper
from vision.common.mm.runner import ExactRunner
from vision.common.nn.checkpoint import load_checkpoint, save_checkpoint
from vision.faces.nn.backbones.embedder import (
    Embedder,
    embed_images,
    embedder_hash,
)
from vision.faces.nn.backbones.mobilefacenet import MobileFaceNetTrunk
from vision.faces.nn.head.margins import MARGINS, build_margin
from vision.faces.nn.head.selective import selective_loss
from vision.faces.nn.index.device_lists import restore_lists
from vision.faces.nn.select import oracle
from vision.faces.nn.select.build import NAMES, build_selector
from vision.faces.nn.store import lazy_optim
from vision.faces.nn.store.class_store import build_store
from vision.registry import HOOKS, MODELS, OPTIM_WRAPPERS

pytestmark = pytest.mark.gpu
NUM, DIM, BATCH = 20_000, 64, 256
SGD = dict(type='sgd', momentum=0.9, weight_decay=5e-4)
OPTIONS = dict(forest=dict(num_trees=4), device=dict(nprobe=32), ivf=dict(nprobe=32),
               faiss=dict(factory='IVF64,SQfp16', parameters='nprobe=8'))
NEVER_WAIT = ('oracle', 'device')
TOLERANCE = 1e-4  # relative, in norm


@pytest.fixture(autouse=True)
def exact_products(device):
    """Products in float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def one_order():
    """Kernels that add in one order: centroids of k-means are sums."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope='module')
def weights():
    return clustered_rows(NUM, DIM)


@contextmanager
def waiting(device, mode):
    """CUDA operations that wait raise, or are found as (file, line); a CPU has none."""
    if device.type != 'cuda':
        yield []
        return
    torch.cuda.synchronize()
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode(mode)
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode('default')
    found += [f'{Path(each.filename).name}:{each.lineno}' for each in caught
              if 'called a synchronizing' in str(each.message)]


def relative(actual, expected):
    expected = expected.cpu().double()
    return float((actual.cpu().double() - expected).norm() / expected.norm())


def store_of(weights, device, optimizer=SGD, backend='device'):
    store = build_store(*weights.shape, backend=backend, optimizer=optimizer, device=device)
    store.state_dict()['rows'].copy_(weights)
    return store


def stepped(store, features, rows, columns, margin, **options):
    """Loss, the features' gradient and all rows after one step."""
    features = features.detach().to(store.device, copy=True).requires_grad_()
    active = store.pull(rows.to(store.device))
    result = selective_loss(features, active, columns.to(store.device), margin, **options)
    result.loss.backward()
    store.push(rows.to(store.device), active.grad, lr=0.1)
    return result.loss.detach(), features.grad, store.snapshot(torch.float32)


# 1. The same step as on the CPU.

@pytest.mark.parametrize('name', NAMES)
def test_a_step_is_that_of_the_cpu(device, weights, name):
    if name in ('ivf', 'faiss'):
        pytest.importorskip('faiss')
    features, labels = batch_near(weights, num=BATCH)
    margin = build_margin('ArcFace')
    selections, stores = {}, {where: store_of(weights, where) for where in ('cpu', device)}
    selectors = {where: build_selector(name, store, num_active=2000, target=margin.target,
                                       **OPTIONS.get(name, {})) for where, store in stores.items()}
    if name == 'device':  # k-means adds in another order: both search the same lists
        lists = selectors['cpu'].upkeep.index(0)
        state = dict(lists.state_dict(), lists=lists.lists_state())
        selectors[device].upkeep.adopt(restore_lists(state, None, device), 0)
    for where, selector in selectors.items():
        selections[where] = selector.select(features.to(where), labels.to(where), 0)
    theirs, ours = selections['cpu'], selections[device]
    assert ours.rows.device.type == ours.columns.device.type == device.type
    assert torch.equal(ours.rows[ours.columns].cpu(), labels)
    # Rows whose worth is equal but for rounding may change places at the border.
    both = np.intersect1d(theirs.rows, ours.rows.cpu())
    assert len(both) >= (len(theirs.rows) if name in ('full', 'random')
                         else 0.99 * len(theirs.rows))
    results = [stepped(store, features, theirs.rows, theirs.columns, margin)
               for store in stores.values()]
    for expected, actual in zip(*results, strict=True):
        assert actual.device.type == device.type
        assert relative(actual, expected) < TOLERANCE


@pytest.mark.parametrize('name', MARGINS)
@pytest.mark.parametrize('options', [{}, dict(num_subcentres=4),
                                     dict(matmul_dtype=torch.float16),
                                     dict(matmul_dtype=torch.bfloat16)])
def test_every_margin_and_product_is_that_of_the_cpu(device, weights, name, options):
    """In half precision both round their factors alike and sum in float32; where a cosine is near
    the border between two numbers, a logit may differ by 64 units in the last place."""
    features, _ = batch_near(weights, num=64)
    rows = torch.arange(0, 4000, 2)
    columns = torch.randint(2000 // options.get('num_subcentres', 1), (64,))
    results = []
    for where in ('cpu', device):
        margin = build_margin(name).to(where).train()
        results.append(stepped(store_of(weights[:4000], where), 20 * features, rows, columns,
                               margin, **options))
    tolerance = 3e-2 if 'matmul_dtype' in options else TOLERANCE
    for expected, actual in zip(*results, strict=True):
        assert relative(actual, expected) < tolerance


def test_the_loss_takes_one_buffer_of_the_size_of_the_logits(device):
    if device.type != 'cuda':
        pytest.skip('memory of a GPU')
    features = torch.randn(1024, DIM, device=device, requires_grad=True)
    rows = torch.randn(100_000, DIM, device=device, requires_grad=True)
    columns = torch.randint(100_000, (1024,), device=device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    selective_loss(features, rows, columns, build_margin('ArcFace')).loss.backward()
    taken = torch.cuda.max_memory_allocated() - before
    logits = 4 * 1024 * 100_000
    print(f'{taken / logits:.2f} of the logits, rows {rows.nbytes / logits:.2f}')
    assert taken < 1.1 * logits + 6 * rows.nbytes


def oracle_of(weights, device, num_active=2000):
    return build_selector('oracle', store_of(weights, device), num_active=num_active,
                          random_frac=0.0, target=build_margin('ArcFace').target)


@pytest.mark.parametrize('passes', [1, 2])
def test_the_oracle_chooses_as_the_slow_one(device, monkeypatch, weights, passes):
    """On the CPU, in logarithms; in parts, kept or worked out twice; equal bits whenever asked."""
    monkeypatch.setattr(oracle, 'CHUNK_BYTES', 1 << 21)
    monkeypatch.setattr(oracle, 'KEPT_BYTES', 1 << 32 if passes == 1 else 0)
    features, labels = batch_near(weights, num=BATCH)
    selector = oracle_of(weights, device)
    rows = [selector.select(features.to(device), labels.to(device), step).rows.cpu()
            for step in range(3)]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    expected = SlowOracle(store_of(weights, 'cpu'), num_active=2000, random_frac=0.0,
                          target=selector.target).select(features, labels, 0).rows
    assert len(np.intersect1d(rows[0], expected)) >= 0.995 * len(expected)


def test_the_oracle_loses_no_mass_by_products_in_tf32(device, weights):
    features, labels = (each.to(device) for each in batch_near(weights, num=BATCH))
    masses = []
    for is_on in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = is_on  # put back by exact_products
        rows = oracle_of(weights, device, num_active=600).select(features, labels, 0).rows
        torch.backends.cuda.matmul.allow_tf32 = False
        inside = (64.0 * features @ weights.to(device).T).softmax(1)[:, rows].sum(1)
        masses.append(inside.mean().item())
    assert masses[1] > masses[0] - 1e-4


@pytest.mark.parametrize('passes', [1, 2])
def test_memory_of_the_oracle(device, monkeypatch, passes):
    """E is kept once, or a part of it; beside it parts of the rows."""
    if device.type != 'cuda':
        pytest.skip('memory of a GPU')
    monkeypatch.setattr(oracle, 'CHUNK_BYTES', 1 << 26)
    monkeypatch.setattr(oracle, 'KEPT_BYTES', 1 << 32 if passes == 1 else 0)
    rows = torch.randn(200_000, DIM, device=device)
    features, labels = batch_near(rows[:1024].cpu(), num=1024)
    selector = oracle_of(rows, device)
    features, labels = features.to(device), labels.to(device)
    selector.select(features, labels, 0)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    selector.select(features, labels, 1)
    taken = torch.cuda.max_memory_allocated() - before
    print(f'{taken / (4 * 1024 * len(rows)):.2f} of E')
    assert taken < (4 * 1024 * len(rows) if passes == 1 else 0) + (4 << 26)


# 2. What waits.

def made_head(device, **options):
    head = MODELS.build(dict(dict(
        type='ActiveClassHead', num_classes=NUM, in_channels=DIM,
        margin=dict(type='ArcFace'), store=dict(optimizer=SGD),
        selector=dict(type='device', num_active=2000, nprobe=8)), **options))
    head.to(device).build(device, seed=0)
    return head.train()


def head_step(head, weights, step, device, lr=0.1, scale=1.0):
    """One training step; its loss."""
    features, labels = (each.to(device) for each in batch_near(weights, num=BATCH, seed=step))
    head.step = step
    head.prefetch(labels)
    loss = head.loss(features.requires_grad_(), labels)['loss']
    (loss * scale).backward()
    head.step_rows(lr, scale)
    return loss.detach()


@pytest.mark.parametrize('name', NEVER_WAIT)
def test_a_selection_on_the_device_waits_for_nothing(device, weights, name):
    store = store_of(weights, device)
    selector = build_selector(name, store, num_active=2000,
                              target=build_margin('AdaFace').to(device).target)
    for step in range(3):
        features, labels = (each.to(device) for each in batch_near(weights, BATCH, seed=step))
        rows = selector.select(features, labels, step).rows
        store.push(rows, torch.ones(len(store.pull(rows)), DIM, device=device), lr=0.1)
    with waiting(device, 'error'):
        selection = selector.select(features, labels, 3)
        weights = store.pull(selection.rows, is_checked=True)
    assert len(selection.rows) == len(weights) == 2000


@pytest.mark.parametrize('margin', ['ArcFace', 'AdaFace', 'CurricularFace'])
def test_loss_and_backward_of_the_head_wait_for_nothing(device, weights, margin):
    head = made_head(device, margin=dict(type=margin))
    for step in range(3):
        head_step(head, weights, step, device)
    features, labels = (each.to(device) for each in batch_near(weights, BATCH, seed=3))
    features.requires_grad_()
    with waiting(device, 'error'):
        losses = head.loss(features, labels)
        losses['loss'].backward()
    with waiting(device, 'warn') as found:
        head.step_rows(0.1)
    print(margin, 'step_rows waits at', found)
    assert losses['loss'].isfinite() and len(found) <= 1  # are the gradients finite?


@pytest.mark.parametrize('name', NAMES)
def test_how_often_a_whole_step_waits(device, weights, name):
    """A figure for the README, with the places; only selectors that never wait have a promise."""
    if name in ('ivf', 'faiss'):
        pytest.importorskip('faiss')
    head = made_head(device, selector=dict(type=name, **OPTIONS.get(name, {}), **(
        {} if name == 'full' else dict(num_active=2000))))
    for step in range(2):
        head_step(head, weights, step, device)
    features, labels = (each.to(device) for each in batch_near(weights, BATCH, seed=3))
    with waiting(device, 'warn') as found:
        head.loss(features.requires_grad_(), labels)['loss'].backward()
        head.step_rows(0.1)
    print(name, len(found), found)
    assert name not in NEVER_WAIT or len(found) <= 1


def test_a_label_that_is_no_class_is_told_when_the_rows_are_stepped(device, weights):
    head = made_head(device)
    features, labels = (each.to(device) for each in batch_near(weights, BATCH))
    labels[7] = NUM
    before = head.store.snapshot(torch.float32)
    head.loss(features.requires_grad_(), labels)['loss'].backward()
    with pytest.raises(VisionError, match=f'VIS-DATA-1014.*{NUM}'):
        head.step_rows(0.1)
    assert torch.equal(head.store.snapshot(torch.float32), before)


# 3. Rows in host memory.

@pytest.mark.parametrize('selector', [dict(type='random', num_active=2000), dict(type='full'),
                                      dict(type='oracle', num_active=1000)])
@pytest.mark.parametrize('optimizer', [SGD, dict(type='adamw'), dict(type='row_adagrad')])
def test_rows_in_host_memory_are_those_of_the_device_bit_for_bit(device, weights, selector,
                                                                 optimizer):
    heads = {backend: made_head(device, selector=selector, store=dict(
        backend=backend, optimizer=optimizer)) for backend in ('device', 'host')}
    losses = {backend: [head_step(head, weights, step, device) for step in range(20)]
              for backend, head in heads.items()}
    assert torch.equal(torch.stack(losses['host']), torch.stack(losses['device']))
    rows = {backend: head.store.snapshot(torch.float32) for backend, head in heads.items()}
    assert rows['host'].device.type == 'cpu' and rows['device'].device.type == device.type
    assert torch.equal(rows['host'], rows['device'].cpu())


@pytest.mark.parametrize('backend', ['device', 'host'])
@pytest.mark.parametrize('selector', [
    dict(type='random', num_active=2000),
    # Cut while an index is under way: its rows come from the file.
    dict(type='device', num_active=2000, nprobe=8, upkeep=dict(
        interval=6, swap_lag=4, warm_every=2, is_async=True)),
    dict(type='device', num_active=2000, nprobe=8, upkeep=dict(
        interval=6, swap_lag=4, cold_imbalance=0.0)),
    dict(type='ivf', num_active=2000, upkeep=dict(interval=6, swap_lag=4, touched_per_step=50,
                                                  is_async=True))])
def test_a_resumed_head_goes_on_as_one_that_was_not_stopped(device, one_order, weights, tmp_path,
                                                            backend, selector):
    if selector['type'] == 'ivf':
        pytest.importorskip('faiss')
    if selector['type'] == 'device' and backend == 'host':
        pytest.skip('refused: its rows are on the device')
    options = dict(selector=selector, store=dict(backend=backend, optimizer=SGD))
    head = made_head(device, **options)
    for step in range(9):
        head_step(head, weights, step, device)
    save_checkpoint(dict(state_dict={}, active_class=head.rows_state()), tmp_path / 'x.pth')
    content = load_checkpoint(tmp_path / 'x.pth')['active_class']
    if selector['type'] != 'random':
        assert content['selectors'][0]['upkeep']['coming'] is not None
    other = made_head(device, **options)
    other.load_rows_state(content)
    for step in range(9, 20):
        losses = [head_step(each, weights, step, device) for each in (head, other)]
        assert torch.equal(*losses), step
    assert torch.equal(*(each.store.snapshot(torch.float32) for each in (head, other)))


# 4. Mixed precision.

def test_a_selection_under_autocast_is_that_without(device, one_order, weights):
    features, labels = (each.to(device) for each in batch_near(weights, BATCH))
    rows = []
    for is_on in (False, True):
        head = made_head(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_on):
            head.loss(features, labels)
        rows.append(head.pending[0])
    assert torch.equal(*rows)


@pytest.mark.parametrize('scale', [1024.0, 65536.0])
def test_a_scaled_loss_gives_the_same_rows(device, one_order, weights, scale):
    """Powers of two change no bit of a float32 that is in range."""
    heads = [made_head(device) for _ in range(2)]
    for step in range(3):
        for head, factor in zip(heads, (1.0, scale), strict=True):
            head_step(head, weights, step, device, scale=factor)
    one, two = (head.store.snapshot(torch.float32) for head in heads)
    assert relative(two, one) < 1e-6


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledWhereverItRuns(AmpOptimWrapper):
    """Float16 with a scaled loss on a GPU; on a CPU bfloat16 stands for it, scaled as well."""

    def __init__(self, scale, **kwargs):
        if torch.cuda.is_available():
            super().__init__(dtype='float16', loss_scale=scale or dict(init_scale=8.0), **kwargs)
            return
        super().__init__(dtype='bfloat16', **kwargs)
        self.is_scaled, self._scale_update_param = True, scale
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale or 8.0)


@HOOKS.register_module(force=True)
class OverflowOnce(Hook):
    """The backbone's gradient overflows at one step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weight = next(runner.model.parameters())
        handle = weight.register_hook(lambda gradient: (
            handle.remove(), gradient * (torch.inf if runner.iter == 2 else 1))[1])


def run(work_dir, **options):
    runner = ExactRunner.from_cfg(toy_faces.config(work_dir, **options))
    runner.train()
    return runner


@pytest.mark.parametrize('scale', [4.0, None, 'bfloat16'])
@pytest.mark.parametrize('selector', [dict(type='random', num_active=12),
                                      dict(type='device', num_active=12, num_lists=4, nprobe=2)])
def test_rows_stand_still_when_a_step_is_left_out(device, tmp_path, scale, selector):
    """Scaled statically, dynamically, and not at all: the rows follow the model's optimizer."""
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16') if scale == 'bfloat16' else dict(
        type='ScaledWhereverItRuns', scale=scale)
    runner = run(tmp_path, max_iters=4, interval=1, head=toy_faces.head_config(selector=selector),
                 optim_wrapper=dict(wrapper, optimizer=dict(type='SGD', lr=0.1)),
                 custom_hooks=[dict(type='OverflowOnce'), dict(type='ActiveClassHook')])
    assert runner.model.head.store.device.type == device.type
    parts = [load_checkpoint(tmp_path / f'iter_{step}.pth') for step in (1, 2, 3, 4)]
    stores = [part['active_class']['stores'][0] for part in parts]
    assert [store['missed']['num_steps'] for store in stores] == [1, 2, 2, 3]
    for name in ('rows', 'last'):
        one, two, three, four = (store[name] for store in stores)
        assert torch.equal(two, three) and not torch.equal(one, two)
        assert not torch.equal(three, four)
    assert all(store['rows'].isfinite().all() for store in stores)


# 5. Lazy optimizers, threads, resumed runs.

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('optimizer', [
    dict(type='sgd'), SGD, dict(type='sgd', momentum=0.9), dict(type='adamw', weight_decay=0.02),
    dict(type='row_adagrad', weight_decay=0.01)])
def test_lazy_optimizers_are_those_of_the_cpu(device, monkeypatch, optimizer, dtype):
    """Across two restarts of the window of missed steps."""
    monkeypatch.setattr(lazy_optim.MissedSteps.__init__, '__defaults__', ('cpu', 64))
    stores = [build_store(500, 16, optimizer=optimizer, dtype=dtype, device=where, seed=4)
              for where in ('cpu', device)]
    generator = torch.Generator().manual_seed(0)
    for step in range(150):
        rows = torch.randperm(500, generator=generator)[:40].sort()[0]
        noise = torch.randn(40, 16, generator=generator, dtype=dtype)
        for store in stores:
            own = rows.to(store.device)
            gradient = 0.01 * noise.to(store.device) + 0.1 * store.pull(own).detach()
            store.push(own, gradient, lr=0.1 if step < 100 else 0.02)
    expected, actual = (store.snapshot(dtype) for store in stores)
    assert relative(actual, expected) < (1e-5 if dtype == torch.float32 else 1e-12)
    assert stores[1]._missed.num_steps == 150 % 64


@pytest.mark.parametrize('name', ['device', 'ivf', 'forest'])
def test_a_renewal_in_a_thread_changes_no_selection(device, one_order, weights, name):
    """Bit for bit, also where thread and training use one GPU at a time."""
    if name == 'ivf':
        pytest.importorskip('faiss')

    def trained(is_async):
        store = TensorStore(weights[:4000].to(device))
        schedule = dict(interval=6, swap_lag=3, warm_every=2, is_async=is_async)
        selector = build_selector(name, store, num_active=400, upkeep=schedule,
                                  **OPTIONS.get(name, {}))
        batches = [[each.to(device) for each in batch_near(weights[:4000], num=64, seed=step)]
                   for step in range(20)]
        return selections(selector, store, batches), store.weights
    (chosen, rows), (chosen_too, rows_too) = trained(False), trained(True)
    assert all(map(torch.equal, chosen, chosen_too)) and torch.equal(rows, rows_too)


@pytest.mark.parametrize('selector', [
    dict(type='random', num_active=12),
    dict(type='device', num_active=12, num_lists=4, nprobe=2,
         upkeep=dict(interval=3, swap_lag=2))])
@pytest.mark.parametrize('backend', ['device', 'host'])
def test_a_resumed_run_is_the_run_that_was_not_stopped(device, one_order, tmp_path, selector,
                                                       backend):
    if selector['type'] == 'device' and backend == 'host':
        pytest.skip('refused: its rows are on the device')
    head = toy_faces.head_config(selector=selector, store=dict(backend=backend, optimizer=SGD))
    run(tmp_path / 'straight', head=head)
    run(tmp_path / 'cut', head=head, max_iters=4)
    run(tmp_path / 'cut', head=head, resume=True)
    straight, cut = (load_checkpoint(tmp_path / name / 'iter_12.pth')
                     for name in ('straight', 'cut'))
    assert torch.equal(*(part['active_class']['stores'][0]['rows'] for part in (straight, cut)))
    for name, tensor in straight['state_dict'].items():
        assert torch.equal(tensor, cut['state_dict'][name]), name


# 6. Embedders.

def test_an_embedder_on_the_device_is_that_on_the_cpu(device):
    torch.manual_seed(0)
    embedder = Embedder(MobileFaceNetTrunk(64), mean=[127.5] * 3, std=[128.0] * 3,
                        swaps_channels=True, with_flip=True).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    expected, known = embed_images(embedder, images), embedder_hash(embedder)
    moved = copy.deepcopy(embedder).to(device)
    np.testing.assert_allclose(embed_images(moved, images, batch_size=2), expected, atol=1e-4)
    assert embedder_hash(moved) == known


def test_a_recogniser_on_the_device_classifies_by_its_rows(device, tmp_path):
    runner = run(tmp_path, max_iters=4)
    model = runner.model.eval()
    content = load_checkpoint(tmp_path / 'iter_4.pth')
    classifier = model.as_classifier(content, 'x')
    images = torch.randn(3, 1, toy_faces.SIZE, toy_faces.SIZE, device=device)
    logits = classifier(images)
    rows = functional.normalize(model.head.store.snapshot(torch.float32))
    torch.testing.assert_close(logits, model(images) @ rows.T * model.head.margin.scale)
