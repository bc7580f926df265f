"""A run begun with Partial FC's files goes on as the dense optimizer would have."""


import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.nn.checkpoint import load_checkpoint
from vision.faces.nn.store.class_store import build_store, class_rows, row_range
from vision.faces.nn.store.partial_fc import read_partial_fc
from vision.registry import MODELS

NUM, DIM, WORLD = 20, 4, 3
OPTIONS = {torch.optim.SGD: dict(momentum=0.9, weight_decay=5e-4),
           torch.optim.AdamW: dict(weight_decay=0.05)}
NAMES = {torch.optim.SGD: 'sgd', torch.optim.AdamW: 'adamw'}


def write_run(folder, kind=torch.optim.SGD, steps=5):
    """Output of a run as arcface_torch leaves it; returns (parameter, optimizer) of each rank."""
    ranks = []
    for rank in range(WORLD):
        start, end = row_range(NUM, rank, WORLD)
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(NUM, DIM, generator=generator)[start:end])
        backbone = torch.nn.Linear(3, DIM)
        optimizer = kind([dict(params=backbone.parameters()), dict(params=[weight])], lr=0.1,
                         **OPTIONS[kind])
        ranks.append((weight, optimizer))
        go_on(ranks[-1:], range(steps))
        torch.save(dict(epoch=1, global_step=steps, state_dict_backbone=backbone.state_dict(),
                        state_dict_softmax_fc=dict(weight=weight.data),
                        state_optimizer=optimizer.state_dict(),
                        state_lr_scheduler=dict(max_steps=100, last_epoch=steps)),
                   folder / f'checkpoint_gpu_{rank}.pt')
    return ranks


def go_on(ranks, steps):
    for step in steps:
        for weight, optimizer in ranks:
            optimizer.zero_grad()
            weight.grad = torch.zeros_like(weight)
            weight.grad[:2] = weight.detach()[:2] + step  # others without gradient
            optimizer.step()


@pytest.mark.parametrize('kind', OPTIONS)
def test_a_run_goes_on_as_its_own_optimizer_would(tmp_path, kind):
    ranks = write_run(tmp_path, kind)
    states, backbone = read_partial_fc(tmp_path)
    assert set(backbone) == {'weight', 'bias'}
    store = build_store(NUM, DIM, optimizer=dict(OPTIONS[kind], type=NAMES[kind]), seed=7)
    store.load_ranges(states)
    torch.testing.assert_close(store.snapshot(torch.float32),
                               torch.cat([weight.data for weight, _ in ranks]))
    # AdamW is lazy only in rows without gradient: all rows are active there.
    own = [row_range(NUM, rank, WORLD)[0] + i for rank in range(WORLD) for i in (0, 1)]
    rows = torch.tensor(own) if kind is torch.optim.SGD else torch.arange(NUM)
    for step in range(5, 30):
        weights = store.pull(rows).detach()
        is_own = torch.isin(rows, torch.tensor(own))
        store.push(rows, (weights + step) * is_own[:, None], lr=0.1)
        go_on(ranks, [step])
    torch.testing.assert_close(store.snapshot(torch.float32),
                               torch.cat([weight.data for weight, _ in ranks]))


@pytest.mark.parametrize('name, momentum', [('softmax_fc_gpu_{}.pt', False),
                                            ('rank_{}_softmax_weight.pt', True)])
def test_older_files_give_rows_and_momentum(tmp_path, name, momentum):
    whole = torch.randn(NUM, DIM)
    for rank in range(WORLD):
        start, end = row_range(NUM, rank, WORLD)
        rows = whole[start:end].clone()
        if momentum:
            torch.save(rows, tmp_path / name.format(rank))
            torch.save(rows * 2, tmp_path / f'rank_{rank}_softmax_weight_mom.pt')
        else:
            torch.save(dict(weight=rows), tmp_path / name.format(rank))
    states, backbone = read_partial_fc(tmp_path)
    assert torch.equal(class_rows(states), whole) and backbone == {}
    kept = torch.cat([state['state']['momentum'] for state in states])
    assert torch.equal(kept, whole * 2 if momentum else torch.zeros(NUM, DIM))


def test_the_command_writes_what_the_head_takes(tmp_path, capsys):
    from vision.cli import convert_partial_fc as tool
    ranks = write_run(tmp_path)
    assert tool.main([str(tmp_path), str(tmp_path / 'x.pth')]) == 0
    assert '20 classes of length 4 from 3 ranks' in capsys.readouterr().out
    content = load_checkpoint(tmp_path / 'x.pth')
    head = content['active_class']
    assert (head['num_classes'], head['dim'], head['num_subcentres']) == (NUM, DIM, 1)
    assert torch.equal(class_rows(head['stores'])[:7], ranks[0][0].data)
    assert set(content['state_dict']) == {'backbone.trunk.weight', 'backbone.trunk.bias'}
    for selector in (dict(type='random', num_active=8), dict(type='ivf', num_active=8)):
        built = MODELS.build(dict(type='ActiveClassHead', num_classes=NUM, in_channels=DIM,
                                  selector=selector, store=dict(optimizer=dict(
                                      type='sgd', **OPTIONS[torch.optim.SGD]))))
        built.build('cpu')
        assert built.fits(head)
        built.load_rows_state(head, with_selector=False)
        assert torch.equal(built.store.snapshot(torch.float32), class_rows(head['stores']))
        loss = built.loss(torch.ones(3, DIM), torch.tensor([0, 7, 19]))['loss']
        loss.backward()
        built.step_rows(0.1)
        assert not torch.equal(built.store.snapshot(torch.float32), class_rows(head['stores']))


@pytest.mark.parametrize('spoil, words', [
    (lambda f: (f / 'checkpoint_gpu_1.pt').unlink(), '2 of 3 ranks are there, rank 1 is not'),
    (lambda f: [path.unlink() for path in f.glob('*.pt')], 'it has none of checkpoint_gpu_R.pt'),
    (lambda f: (f / 'checkpoint_gpu_2.pt').unlink(), r'rank 0 has \(7, 4\)'),
    (lambda f: (f / 'checkpoint_gpu_0.pt').write_bytes(b'PK\x03\x04'), 'cannot be used'),
    (lambda f: torch.save(dict(epoch=3), f / 'checkpoint_gpu_0.pt'), 'it has no weight'),
    (lambda f: torch.save([1], f / 'checkpoint_gpu_0.pt'), 'it holds a list')])
def test_files_that_are_not_of_one_run_are_refused(tmp_path, spoil, words):
    write_run(tmp_path)
    spoil(tmp_path)
    if words.startswith('rank 0'):  # rank 2 of 3 had the last six rows: two ranks fit again
        torch.save(dict(state_dict_softmax_fc=dict(weight=torch.zeros(9, DIM))),
                   tmp_path / 'checkpoint_gpu_1.pt')
    with pytest.raises(VisionError, match=words) as error:
        read_partial_fc(tmp_path)
    assert error.value.code == 'VIS-CKPT-1025'


def without(*path, value=None):
    """A change of one entry of a file's content, reached by keys."""
    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value
    return change


GROUP = 'state_optimizer', 'param_groups', -1


@pytest.mark.parametrize('kind', OPTIONS)
@pytest.mark.parametrize('change', [
    without('state_optimizer', 'state'), without('state_optimizer', 'param_groups'),
    without('state_optimizer', 'param_groups', value=[]), without(*GROUP, 'params', value=[]),
    without(*GROUP, 'params', value=[[1]]), without(*GROUP, 'weight_decay', value='x'),
    without('state_optimizer', value=3), without('state_dict_softmax_fc', value=3),
    without('state_dict_softmax_fc', 'weight', value=torch.zeros(7)),
    without('state_dict_softmax_fc', 'weight', value=torch.zeros(7, DIM, dtype=torch.int64)),
    without('state_dict_backbone', value=[1]), without('state_dict_backbone', 'bias', value=1)])
def test_files_that_hold_something_else_are_refused(tmp_path, kind, change):
    write_run(tmp_path, kind)
    path = tmp_path / 'checkpoint_gpu_0.pt'
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(VisionError, match='VIS-CKPT-1025'):
        read_partial_fc(tmp_path)


@pytest.mark.parametrize('kind, name', [(torch.optim.SGD, 'momentum_buffer'),
                                        (torch.optim.AdamW, 'exp_avg_sq')])
@pytest.mark.parametrize('value', [3, torch.zeros(2, DIM), torch.zeros(7, DIM, dtype=torch.int64)],
                         ids=['number', 'shape', 'dtype'])
def test_a_state_that_does_not_fit_the_rows_is_refused(tmp_path, kind, name, value):
    write_run(tmp_path, kind)
    path = tmp_path / 'checkpoint_gpu_0.pt'
    content = torch.load(path, weights_only=True)
    saved = content['state_optimizer']
    saved['state'][saved['param_groups'][-1]['params'][-1]][name] = value
    torch.save(content, path)
    with pytest.raises(VisionError, match='VIS-CKPT-1025.*optimizer cannot be used'):
        read_partial_fc(tmp_path)


def test_a_rank_of_billions_is_not_counted_up_to(tmp_path):
    write_run(tmp_path)
    (tmp_path / 'checkpoint_gpu_2.pt').rename(tmp_path / 'checkpoint_gpu_2000000000.pt')
    with pytest.raises(VisionError, match='rank 2 is not'):
        read_partial_fc(tmp_path)
