"""The head in a run: equal to a dense layer, exact resume, many ranks, refusals."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from torch.nn import functional

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import toy_faces  # noqa: E402
from waits import Waits  # noqa: E402

from vision.common.core.errors import VisionError  # noqa: E402
from vision.common.mm.optim import AmpOptimWrapper  # noqa: E402
from vision.common.mm.runner import ExactRunner  # noqa: E402
from vision.common.nn.checkpoint import load_checkpoint  # noqa: E402
from vision.faces.mm.hooks import ActiveClassHook  # noqa: E402
from vision.faces.nn.head.margins import ArcFace, Softmax  # noqa: E402
from vision.faces.nn.select import selectors  # noqa: E402
from vision.faces.nn.store import class_store  # noqa: E402
from vision.faces.nn.store.class_store import ClassStore, class_rows  # noqa: E402
from vision.faces.nn.store.host_store import HostStore  # noqa: E402
from vision.registry import HOOKS, MODELS, OPTIM_WRAPPERS  # noqa: E402


def build_head(**options):
    head = MODELS.build(toy_faces.head_config(**options))
    head.build('cpu', seed=0)
    return head.train()


def batch(seed, num=10):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num, toy_faces.DIM, generator=generator),
            torch.randint(toy_faces.NUM_CLASSES, (num,), generator=generator))


def all_rows(head):
    return head.store.pull(torch.arange(head.store.num_classes)).detach().clone()


def test_full_selector_equals_a_dense_layer_with_sgd():
    head = build_head(selector=dict(type='full'))
    dense = torch.nn.Parameter(all_rows(head))
    optimizer = torch.optim.SGD([dense], lr=0.01, momentum=0.9, weight_decay=1e-4)
    margin = ArcFace(8.0, 0.2)
    for step in range(5):
        features, labels = batch(step)
        ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
        head.step = step
        losses = head.loss(ours, labels)
        losses['loss'].backward()
        head.step_rows(lr=0.01)
        cosine = functional.normalize(theirs) @ functional.normalize(dense).T
        expected = functional.cross_entropy(margin(cosine, labels), labels)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(losses['loss'], expected)
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(all_rows(head), dense.detach(), rtol=1e-5, atol=1e-5)


def test_scaled_loss_gives_the_same_step():
    rows = []
    for scale in (1.0, 1024.0):
        head = build_head(selector=dict(type='full'))
        features, labels = batch(0)
        (head.loss(features, labels)['loss'] * scale).backward()
        head.step_rows(0.5, gradient_scale=scale)
        rows.append(all_rows(head))
    torch.testing.assert_close(*rows)


def test_the_selector_knows_the_margin_of_the_head():
    head = build_head(margin=dict(type='AdaFace', scale=8.0), selector=dict(type='oracle',
                                                                            num_active=9))
    assert head.selector.target == head.margin.target and head.selector.scale == 8.0


def test_only_active_rows_move_and_labels_are_among_them():
    head = build_head(store=dict(optimizer=dict(type='sgd', momentum=0.0, weight_decay=0.0)))
    before = all_rows(head)
    features, labels = batch(0)
    losses = head.loss(features, labels)
    rows = head.pending[0]
    losses['loss'].backward()
    head.step_rows(1.0)
    has_moved = (all_rows(head) != before).any(1)
    assert has_moved.nonzero()[:, 0].tolist() == rows.tolist() and len(rows) == 12
    assert set(labels.tolist()) <= set(rows.tolist()) and losses['num_active'] == 12


def test_subcentres_of_a_class_are_active_together():
    head = build_head(num_subcentres=3)
    features, labels = batch(0)
    loss = head.loss(features, labels)['loss']
    rows, weights = head.pending
    assert head.store.num_classes == 3 * toy_faces.NUM_CLASSES
    assert torch.equal(rows.view(-1, 3), (rows.view(-1, 3)[:, :1] // 3) * 3 + torch.arange(3))
    classes = rows.view(-1, 3)[:, 0] // 3
    cosine = functional.normalize(features) @ functional.normalize(weights).T
    columns = torch.searchsorted(classes, labels)
    assert torch.equal(classes[columns], labels)
    expected = functional.cross_entropy(
        ArcFace(8.0, 0.2)(cosine.view(len(labels), -1, 3).amax(2), columns), columns)
    torch.testing.assert_close(loss, expected)


def test_sampled_correction_weighs_what_was_drawn():
    head = build_head(correction='sampled', margin=dict(type='Softmax', scale=8.0))
    features, labels = batch(0, num=4)
    loss = head.loss(features, labels)['loss']
    rows, weights = head.pending
    columns = torch.searchsorted(rows, labels)
    num_forced = len(labels.unique())
    rate = (12 - num_forced) / (toy_faces.NUM_CLASSES - num_forced)
    counts = torch.where(torch.isin(rows, labels), 1.0, rate)
    logits = Softmax(8)(functional.normalize(features) @ functional.normalize(weights).T, columns)
    torch.testing.assert_close(loss, functional.cross_entropy(logits - counts.log(), columns))


DEVICE = dict(type='device', num_active=12, num_lists=4, nprobe=2)


def test_a_head_that_never_waits_tells_of_a_bad_label_when_the_step_ends():
    head = build_head(selector=DEVICE)
    before = all_rows(head)
    features, labels = batch(0)
    labels[3] = toy_faces.NUM_CLASSES
    for end in (lambda: head.step_rows(0.1), head.drop_step, lambda: head.loss(*batch(1))):
        head.loss(features.requires_grad_(), labels)['loss'].backward()
        with pytest.raises(VisionError, match='VIS-DATA-1014: 1 of 10 labels'):
            end()
        head.pending = None
    assert torch.equal(all_rows(head), before)
    with pytest.raises(VisionError, match='VIS-DATA-1014'), torch.no_grad():
        head.loss(features, labels)  # no step that would end


def test_a_step_of_a_head_that_never_waits_waits_once(monkeypatch):
    """For whether the gradients are finite. A CPU also looks whether rows missed steps."""
    head = build_head(selector=DEVICE)
    factors = head.store._missed.factors
    monkeypatch.setattr(head.store._missed, 'factors',
                        lambda *args, may_wait=False: factors(*args, may_wait=False))
    for step in range(3):
        features, labels = batch(step)
        with Waits() as loss, torch.enable_grad():
            head.loss(features.requires_grad_(), labels)['loss'].backward()
        head._doubt = None  # on an accelerator its answer is on the host by now
        with Waits() as update:
            head.step_rows(0.1)
    assert loss.found == [] and update.found == ['_local_scalar_dense']


@pytest.mark.parametrize('options', [{}, dict(num_subcentres=2), dict(
    store=dict(backend='host', optimizer=dict(type='sgd')))])
def test_rows_drawn_while_the_backbone_works_are_those_of_the_loss(monkeypatch, options):
    options = dict(selector=dict(type='random', num_active=12)) | options
    plain, ahead = build_head(**options), build_head(**options)
    drawn, draw = [], selectors.draw_outside
    monkeypatch.setattr(selectors, 'draw_outside', lambda *args, **kwargs: (
        drawn.append(args[-1]), draw(*args, **kwargs))[1])
    for step in range(3):
        features, labels = batch(step)
        ahead.step = plain.step = step
        ahead.prefetch(labels)
        found = []
        for head in (ahead, plain):
            head.loss(features.detach().requires_grad_(), labels)['loss'].backward()
            found.append(head.pending[0])
            head.step_rows(0.1)
        assert torch.equal(*found)
    assert torch.equal(all_rows(ahead), all_rows(plain)) and len(drawn) == 6


@pytest.mark.parametrize('selector', [DEVICE, dict(type='oracle', num_active=12)])
def test_half_precision_around_the_head_changes_no_selection(selector):
    rows = []
    for is_on in (False, True):
        head = build_head(selector=selector)
        chosen = []
        for step in range(20):
            features, labels = batch(step, num=3)
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=is_on):
                head.loss(features, labels)
            chosen.append(head.pending[0])
            head.drop_step()
        rows.append(torch.cat(chosen))
    assert torch.equal(*rows)


def test_evaluating_the_loss_asks_for_no_step():
    head = build_head().eval()
    features, labels = batch(0)
    assert head.loss(features, labels)['loss'].isfinite() and head.pending is None


def run(work_dir, **options):
    runner = ExactRunner.from_cfg(toy_faces.config(work_dir, **options))
    runner.train()
    return runner


def saved(work_dir, step):
    return load_checkpoint(work_dir / f'iter_{step}.pth')


def assert_same(one, two, where=''):
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f'{where}.{key}')
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f'{where}[{number}]')
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=lambda text: f'{where}: {text}')
    else:
        assert np.array_equal(one, two), where


@pytest.mark.parametrize('head', [
    {}, dict(margin=dict(type='AdaFace', scale=8.0)),
    dict(margin=dict(type='CurricularFace', scale=8.0), num_subcentres=2),
    dict(selector=dict(type='ivf', num_active=12, num_lists=4,
                       upkeep=dict(interval=3, swap_lag=1)),
         store=dict(backend='host', optimizer=dict(type='adamw'))),
    # The run is cut while an index is under way, and again after single rows were put in place.
    dict(selector=dict(type='ivf', num_active=12, num_lists=4, nprobe=1, upkeep=dict(
        interval=3, swap_lag=2, touched_per_step=9, warm_every=2, is_async=True))),
    dict(selector=dict(type='device', num_active=12, num_lists=4, nprobe=2,
                       upkeep=dict(interval=3, swap_lag=2))),
    dict(selector=dict(type='forest', num_active=12, num_trees=3, leaf_size=3,
                       upkeep=dict(interval=3, swap_lag=2))),
    dict(selector=dict(type='ivf', num_active=12, num_lists=4, nprobe=1,
                       upkeep=dict(interval=4, swap_lag=3), adaptive=dict(
                           monitor_every=6, active_range=(10, 14), interval_range=(4, 9),
                           warm_steps=7, least_recall=0.01, least_gain=-1.0)))])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, head):
    head = toy_faces.head_config(**head)
    run(tmp_path / 'straight', head=head)
    run(tmp_path / 'cut', head=head, max_iters=4)
    run(tmp_path / 'cut', head=head, resume=True)
    assert saved(tmp_path / 'cut', 4)['meta']['iter'] == 4
    straight, cut = saved(tmp_path / 'straight', 12), saved(tmp_path / 'cut', 12)
    for part in ('state_dict', 'active_class', 'optimizer'):
        assert_same(straight[part], cut[part], part)


def test_a_resumed_run_draws_no_new_rows_and_takes_those_of_the_file(tmp_path, monkeypatch):
    run(tmp_path, max_iters=4)
    taken = []
    load_ranges = ClassStore.load_ranges

    def watched(self, states, **options):
        load_ranges(self, states, **options)
        taken.append(self.state_dict()['rows'].data_ptr() == states[0]['rows'].data_ptr())

    monkeypatch.setattr(ClassStore, 'load_ranges', watched)
    monkeypatch.setattr(class_store, 'initial_rows', None)
    run(tmp_path, resume=True, max_iters=6)
    assert taken == [True]


@pytest.mark.parametrize('options, is_all_ahead', [
    (dict(selector=dict(type='random', num_active=12)), True),
    (dict(selector=dict(type='random', num_active=20), num_subcentres=2), True),
    (dict(selector=dict(type='ivf', num_active=12, num_lists=4)), False)])
def test_rows_in_host_memory_are_fetched_while_the_backbone_works(tmp_path, monkeypatch, options,
                                                                  is_all_ahead):
    """The run is bit for bit the one whose rows lie on the device."""
    order, num_read = [], dict(ahead=0, then=0)
    fetch, forward = ClassStore._fetch, toy_faces.ToyEmbedding.forward
    prefetch = HostStore.prefetch

    def counting_fetch(self, rows, names=None):
        is_ahead = threading.current_thread() is not threading.main_thread()
        num_read['ahead' if is_ahead else 'then'] += 0 if isinstance(rows, slice) else len(rows)
        return fetch(self, rows, names)

    monkeypatch.setattr(HostStore, 'prefetch', lambda self, rows: (
        order.append('rows'), prefetch(self, rows)))
    monkeypatch.setattr(toy_faces.ToyEmbedding, 'forward', lambda self, x: (
        order.append('backbone'), forward(self, x))[1])
    sgd = dict(type='sgd', momentum=0.9, weight_decay=1e-4)
    heads = {backend: toy_faces.head_config(store=dict(backend=backend, optimizer=sgd), **options)
             for backend in ('host', 'device')}
    with monkeypatch.context() as patch:
        patch.setattr(ClassStore, '_fetch', counting_fetch)
        run(tmp_path / 'host', head=heads['host'])
    assert order == ['rows', 'backbone'] * 12
    assert num_read['ahead'] > 0 and (num_read['then'] == 0) is is_all_ahead
    run(tmp_path / 'device', head=heads['device'])
    assert order[24:] == ['backbone'] * 12
    host, device = saved(tmp_path / 'host', 12), saved(tmp_path / 'device', 12)
    for part in ('state_dict', 'active_class', 'optimizer'):
        assert_same(host[part], device[part], part)


def test_decisions_of_the_controller_go_on_with_another_number_of_ranks():
    selector = dict(type='ivf', num_active=12, num_lists=4, adaptive=dict(
        monitor_every=2, interval_range=(20, 90), least_recall=0.01, least_gain=0.001))
    first = build_head(selector=selector)
    for step in range(5):
        features, labels = batch(step)
        first.step = step
        first.loss(features, labels)['loss'].backward()
        first.step_rows(0.1)
    state = first.rows_state(is_exact=False)
    state['selectors'] *= 2  # as if two ranks had written it
    second = build_head(selector=selector)
    second.load_rows_state(state)
    ours, theirs = second.selector, first.selector
    assert ours.controller.log == theirs.controller.log and len(ours.controller.log) == 3
    assert ours.controller.allocation == theirs.controller.allocation
    assert ours.upkeep.interval == theirs.upkeep.interval
    assert theirs.upkeep._index is not None and ours.upkeep._index is None
    features, labels = batch(9)
    assert second.loss(features, labels)['loss'].isfinite()


def test_training_learns_the_identities(tmp_path):
    runner = run(tmp_path, max_iters=200, interval=200)
    model = runner.model.eval()
    dataset = runner.train_dataloader.dataset
    items = [dataset[i] for i in range(toy_faces.NUM_CLASSES * 4)]
    images = torch.stack([item['inputs'] for item in items])
    labels = torch.cat([item['data_samples'].gt_label for item in items])
    with torch.no_grad():
        embeddings = model(images)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(items)))
    scores = embeddings @ functional.normalize(all_rows(model.head)).T
    assert (scores.argmax(1) == labels).float().mean() > 0.9
    samples = model(images[:2], mode='predict')
    torch.testing.assert_close(samples[1].embedding, embeddings[1])


def losses_of(work_dir):
    lines = [line for path in work_dir.glob('*/vis_data/*.json')
             for line in path.read_text().splitlines()]
    return {entry['step']: entry['loss'] for entry in map(json.loads, lines) if 'loss' in entry}


def test_rows_follow_the_learning_rate_of_the_schedule(tmp_path):
    head = toy_faces.head_config(
        lr_mult=2.0, selector=dict(type='full'),
        store=dict(optimizer=dict(type='sgd', momentum=0.0, weight_decay=0.0)))
    seen = []
    runner = ExactRunner.from_cfg(toy_faces.config(tmp_path, head=head, max_iters=8))
    step_rows = runner.model.head.step_rows
    runner.model.head.step_rows = lambda lr, scale: (seen.append(lr), step_rows(lr, scale))
    runner.train()
    assert seen == pytest.approx([0.1] * 5 + [0.03] * 3)


def test_a_step_that_is_not_finite_leaves_the_rows_alone(tmp_path):
    options = dict(dataset=dict(nan_at=0), max_iters=12, interval=1,
                   head=toy_faces.head_config(selector=dict(type='full')))
    runner = run(tmp_path, **options)
    assert runner.optim_wrapper.num_skipped == 1
    assert all_rows(runner.model.head).isfinite().all()


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledOnCpu(AmpOptimWrapper):
    """Mixed precision with a scaled loss, as on a GPU in float16; ``scale`` None: dynamic."""

    def __init__(self, scale, **kwargs):
        super().__init__(dtype='bfloat16', **kwargs)
        self.is_scaled, self._scale_update_param = True, scale
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale or 8.0)


@HOOKS.register_module(force=True)
class OverflowAt(Hook):
    """The backbone's gradient, and not that of the rows, overflows at one step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weight = next(runner.model.parameters())
        handle = weight.register_hook(
            lambda gradient: (handle.remove(), gradient * (torch.inf if runner.iter == 2 else 1)
                              )[1])


@pytest.mark.parametrize('scale', [4.0, None])
def test_rows_stand_still_when_the_scaler_leaves_a_step_out(tmp_path, scale):
    """Also when the scale is fixed, and nothing but the missing step tells."""
    runner = run(tmp_path, max_iters=4, interval=1, optim_wrapper=dict(
        type='ScaledOnCpu', scale=scale, optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='OverflowAt'), dict(type='ActiveClassHook')])
    assert runner.optim_wrapper.loss_scaler.get_scale() == (scale or 4.0)
    parts = [saved(tmp_path, step) for step in (1, 2, 3, 4)]
    steps = [part['active_class']['stores'][0]['missed']['num_steps'] for part in parts]
    assert steps == [1, 2, 2, 3]
    for name in ('rows', 'last'):
        one, two, three, four = (part['active_class']['stores'][0][name] for part in parts)
        assert torch.equal(two, three) and not torch.equal(one, two)
        assert not torch.equal(three, four)
    weights = [part['state_dict']['backbone.net.1.weight'] for part in parts]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])


@pytest.mark.parametrize('factor, has_stepped', [(1.0, True), (torch.inf, False)])
def test_a_fused_optimizer_that_looks_itself_is_asked(factor, has_stepped):
    """The scaler calls its ``step`` also where it then leaves the weights alone."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    hook, scaler = ActiveClassHook(), torch.amp.GradScaler('cpu', init_scale=4.0)
    optimizer.register_step_post_hook(hook._see_step)
    scaler.scale((weight * factor).sum()).backward()
    scaler.step(optimizer)
    assert bool((weight != 1).all()) is has_stepped is hook._has_stepped


def test_head_weights_may_be_missing_when_training_begins(tmp_path):
    run(tmp_path / 'first', max_iters=4)
    content = saved(tmp_path / 'first', 4)
    path = tmp_path / 'backbone.pth'
    torch.save(dict(state_dict={name: tensor for name, tensor in content['state_dict'].items()
                                if name.startswith('backbone')}), path)
    runner = run(tmp_path / 'second', max_iters=4, load_from=str(path),
                 head=toy_faces.head_config(margin=dict(type='AdaFace')))
    assert runner.iter == 4


def test_rows_of_a_loaded_checkpoint_are_taken(tmp_path):
    run(tmp_path / 'first', max_iters=4)
    options = dict(load_from=str(tmp_path / 'first' / 'iter_4.pth'), optim_wrapper=dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-12)), interval=1, max_iters=1)
    head = toy_faces.head_config(selector=dict(type='full'))
    first = run(tmp_path / 'second', head=head, **options).model.head
    other = run(tmp_path / 'third', max_iters=1, head=head).model.head
    rows = class_rows(saved(tmp_path / 'first', 4)['active_class']['stores'])
    torch.testing.assert_close(all_rows(first), rows)
    assert not torch.allclose(all_rows(other), rows)


IVF = dict(type='ivf', num_active=10, num_lists=2, upkeep=dict(interval=3, swap_lag=0))


def test_a_new_run_from_a_checkpoint_has_a_selector_of_its_own(tmp_path):
    run(tmp_path / 'first', max_iters=4, head=toy_faces.head_config(selector=IVF))
    run(tmp_path / 'full', max_iters=4, head=toy_faces.head_config(selector=dict(type='full')))
    for source, selector, num in (('first', IVF, 10), ('full', dict(IVF, num_active=9), 9),
                                  ('full', dict(type='random', num_active=8), 8)):
        head = run(tmp_path / f'{source}-{num}', max_iters=5, interval=9,
                   head=toy_faces.head_config(selector=selector),
                   load_from=str(tmp_path / source / 'iter_4.pth')).model.head
        features, labels = batch(0, num=3)
        assert head.loss(features, labels)['num_active'] == num
        if selector is IVF:  # renewed at steps of this run, once after step 3
            assert head.selector.state_dict()['upkeep']['built_step'] == 3
            assert head.selector.state_dict()['upkeep']['num_renewals'] == 1


@pytest.mark.parametrize('selector', [dict(type='random', num_active=10),
                                      dict(type='faiss', factory='HNSW32', num_active=10),
                                      dict(IVF, adaptive=dict())])
def test_a_resume_with_another_selector_is_refused(tmp_path, selector):
    run(tmp_path, max_iters=4, head=toy_faces.head_config(selector=IVF))
    with pytest.raises(VisionError, match='VIS-CKPT-1017: the run had the selector ivf, now'):
        run(tmp_path, resume=True, head=toy_faces.head_config(selector=selector))


@pytest.mark.parametrize('code, options', [
    ('VIS-DATA-1014', dict(dataset=dict(bad_label=24))),
    ('VIS-DATA-1014', dict(dataset=dict(bad_label=-1))),
    ('VIS-DATA-1015.*25 identities', dict(dataset=dict(num_classes=25))),
    ('VIS-CONFIG-1806.*24 classes, the data 23', dict(dataset=dict(num_classes=23))),
    ('VIS-DATA-1014', dict(dataset=dict(bad_label=24), head=toy_faces.head_config(
        store=dict(backend='host', optimizer=dict(type='sgd'))))),
    ('VIS-DATA-1014', dict(dataset=dict(bad_label=24), head=toy_faces.head_config(
        selector=dict(type='device', num_active=12, num_lists=4)))),
    ('VIS-CONFIG-1012', dict(custom_hooks=[])),
    ('VIS-CONFIG-1013', dict(optim_wrapper=dict(type='OptimWrapper', accumulative_counts=2,
                                                optimizer=dict(type='SGD', lr=0.1)))),
    ('VIS-CONFIG-1016', dict(model=dict(type='FaceRecognizer',
                                        backbone=dict(type='ToyEmbedding')))),
    ('VIS-CONFIG-1006', dict(model=dict(type='FaceRecognizer',
                                        backbone=dict(type='ToyEmbedding')), custom_hooks=[]))])
def test_mistakes_of_a_config_are_named(tmp_path, code, options):
    with pytest.raises(VisionError, match=code):
        run(tmp_path, **options)


@pytest.mark.parametrize('options', [
    dict(num_classes=1), dict(matmul_dtype='int8'), dict(selector=dict(num_active=3)),
    dict(correction='sampled', selector=dict(type='full')),
    dict(correction='sampled', selector=dict(type='ivf', num_active=8, random_frac=0)),
    dict(correction='sampled', num_subcentres=2)])
def test_impossible_heads_are_refused(options):
    with pytest.raises(VisionError, match='VIS-CONFIG-1003'):
        MODELS.build(toy_faces.head_config(**options))


def test_resume_with_another_number_of_classes_is_refused(tmp_path):
    run(tmp_path, max_iters=4)
    with pytest.raises(VisionError, match='VIS-CKPT-1011.*24|VIS-CKPT-1011.*25'):
        run(tmp_path, resume=True, head=toy_faces.head_config(num_classes=25, spare_classes=True))


RANKS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import mmengine.runner.runner
mmengine.runner.runner.collect_env = dict
import torch
torch.set_num_threads(1)
import toy_faces
from vision.common.mm.runner import ExactRunner
work_dir, batch_size, max_iters, resume = sys.argv[2:]
head = toy_faces.head_config(selector=dict(type='full'))
ExactRunner.from_cfg(toy_faces.config(
    work_dir, batch_size=int(batch_size), max_iters=int(max_iters), head=head,
    resume=resume == 'yes', launcher='pytorch')).train()
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # torch's gloo now and then aborts while Python shuts down, all work done
"""


def run_ranks(repository, script, work_dir, world, *, max_iters=12, resume=False):
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node',
         str(world), str(script), str(HERE), str(work_dir), str(8 // world), str(max_iters),
         'yes' if resume else 'no'], check=True, timeout=300, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(repository), 'OMP_NUM_THREADS': '1'})


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_of_torchrun_go_on_as_one_process(tmp_path, repository):
    """Other numbers, and whole runs of several: test_mm_head_ranks."""
    script = tmp_path / 'ranks.py'
    script.write_text(RANKS)
    head = toy_faces.head_config(selector=dict(type='full'))
    run(tmp_path / 'one', head=head)
    run_ranks(repository, script, tmp_path / 'mixed', 2, max_iters=4)
    run(tmp_path / 'mixed', head=head, resume=True)
    expected = losses_of(tmp_path / 'one')
    assert len(expected) == 12
    assert losses_of(tmp_path / 'mixed') == pytest.approx(expected, rel=1e-5)
    states = [saved(tmp_path / 'mixed', step)['active_class']['stores'] for step in (4, 12)]
    assert [len(state) for state in states] == [2, 1]


def test_classes_without_identities_are_taken_where_the_head_says_so(tmp_path):
    run(tmp_path, max_iters=2, dataset=dict(num_classes=23),
        head=toy_faces.head_config(spare_classes=True))
    assert any(tmp_path.glob('iter_*'))
