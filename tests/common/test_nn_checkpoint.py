import errno
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from vision.common.core import files
from vision.common.core.errors import VisionError
from vision.common.nn import checkpoint as io


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'x.pth'
    io.save_checkpoint(dict(state_dict=nn.Linear(20, 20).state_dict(), meta=dict(iter=3)), path,
                       iter=3)
    return path


def test_what_was_saved_comes_back(saved):
    content = io.load_checkpoint(saved)
    torch.manual_seed(0)
    assert torch.equal(content['state_dict']['weight'], nn.Linear(20, 20).weight)
    assert content['meta'] == dict(iter=3) and io.damage(saved) == ''


@pytest.mark.fault('R3')
def test_every_cut_is_found(saved):
    whole = saved.read_bytes()
    for i in range(64):
        saved.write_bytes(whole[:len(whole) * i // 64])
        with pytest.raises(VisionError, match='VIS-CKPT-303'):
            io.load_checkpoint(saved)


@pytest.mark.fault('R4')
def test_every_flipped_bit_is_found(saved):
    whole, generator = saved.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        place = int(generator.integers(len(whole)))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(generator.integers(8))
        saved.write_bytes(flipped)
        with pytest.raises(VisionError, match='VIS-CKPT-303'):
            io.load_checkpoint(saved)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Reach(Payload):
    """Calls through an importer."""

    def __reduce__(self):
        return __import__, ('os',)


@pytest.mark.parametrize('kind', [Payload, Reach])
@pytest.mark.parametrize('legacy', [True, False])
def test_hostile_pickles_run_nothing(tmp_path, kind, legacy):
    marker = tmp_path / 'marker'
    path = tmp_path / 'hostile.pth'
    torch.save(dict(state_dict=dict(w=kind(str(marker)))), path,
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(VisionError, match='VIS-CKPT-304'):
        io.load_checkpoint(path)
    path.write_bytes(pickle.dumps(kind(str(marker))))
    with pytest.raises(VisionError, match='VIS-CKPT-30[34]'):
        io.load_checkpoint(path)
    assert not marker.exists()


def test_numpy_scalars_and_arrays_of_others_are_read(tmp_path):
    torch.save(dict(state_dict={}, a=np.arange(3.0), b=np.float64(2)), tmp_path / 'x.pth')
    content = io.load_checkpoint(tmp_path / 'x.pth')
    assert content['b'] == 2 and content['a'].tolist() == [0, 1, 2]


@pytest.mark.fault('R2')
def test_full_disk_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(VisionError, match=r'VIS-CKPT-301[^$]*bytes free'):
        io.save_checkpoint(dict(state_dict={}), saved)
    assert saved.read_bytes() == before
    assert sorted(os.listdir(saved.parent)) == [saved.name, f'{saved.name}.json']


@pytest.mark.fault('R2')
def test_room_is_looked_at_before_anything_is_written(saved, monkeypatch):
    before, usage = saved.read_bytes(), shutil.disk_usage(saved.parent)
    monkeypatch.setattr(io.shutil, 'disk_usage', lambda path: usage._replace(free=3_000_000))
    monkeypatch.setattr(io.torch, 'save', lambda *args: pytest.fail('it was written'))
    with pytest.raises(VisionError, match='VIS-CKPT-301[^$]*3000000 bytes free, about 5048576 ne'):
        io.save_checkpoint(dict(state_dict=dict(a=torch.zeros(1_000_000))), saved)
    assert saved.read_bytes() == before


def test_other_architectures_are_refused_and_nothing_is_loaded():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = {'0.weight': torch.zeros(2, 2), '0.bias': torch.zeros(5), 'head.w': torch.zeros(1)}
    with pytest.raises(VisionError) as caught:
        io.load_state(model, wrong)
    text = str(caught.value)
    assert '2 missing (1.weight, 1.bias)' in text and '1 unknown (head.w)' in text
    assert '0.bias (5,) instead of (2,)' in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


KEYS = {'0.weight': (2, 2), '0.bias': (2,), '1.weight': (3, 2), '1.bias': (3,)}


@pytest.mark.fault('R11')
@pytest.mark.parametrize(('state', 'says'), [
    (KEYS, None),
    ({f'module.{name}': shape for name, shape in KEYS.items()}, None),
    ({}, '4 missing'),
    ({f'net.{name}': shape for name, shape in KEYS.items()}, '4 unknown'),
    ({name: shape for name, shape in KEYS.items() if name != '1.bias'}, '1 missing (1.bias)'),
    (KEYS | {'1.bias': (4,)}, '1 of another shape (1.bias (4,) instead of (3,))')])
def test_all_keys_match_or_the_model_stays_as_it_is(state, says):
    """Stricter than nine tenths: one tensor that is missing is an error."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: torch.ones(shape) for name, shape in state.items()}
    if says is None:
        io.load_state(model, state)
        assert all(value.eq(1).all() for value in model.state_dict().values())
        return
    with pytest.raises(VisionError) as caught:
        io.load_state(model, state)
    assert caught.value.code == 'VIS-CKPT-305' and says in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_optional_prefixes_may_be_absent_and_module_prefix_is_understood():
    model = nn.ModuleDict(dict(detector=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    state = {f'module.head.{k}': torch.ones_like(v)
             for k, v in model['head'].state_dict().items()}
    io.load_state(model, state, optional_prefixes=('detector.',))
    assert model['head'].weight.eq(1).all()
    with pytest.raises(VisionError, match='2 missing'):
        io.load_state(model, state)


def test_safetensors_are_weights(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(w=torch.arange(3.0)), tmp_path / 'w.safetensors')
    assert io.load_checkpoint(tmp_path / 'w.safetensors')['state_dict']['w'].tolist() == [0, 1, 2]


def test_weights_carry_their_class_names_and_the_same_content_the_same_bytes(tmp_path):
    state = dict(w=torch.arange(6.).reshape(2, 3).T, b=torch.ones(1))  # w is not contiguous
    for name in ('x', 'y'):
        io.save_weights(state, tmp_path / f'{name}.safetensors', classes=('disc', 'Stern ü'))
    content = io.load_checkpoint(tmp_path / 'x.safetensors')
    assert io.class_names(content) == ('disc', 'Stern ü')
    assert torch.equal(content['state_dict']['w'], state['w'])
    assert (tmp_path / 'x.safetensors').read_bytes() == (tmp_path / 'y.safetensors').read_bytes()
    io.save_weights(state, tmp_path / 'x.safetensors')
    assert io.class_names(io.load_checkpoint(tmp_path / 'x.safetensors')) is None


@pytest.mark.fault('R3')
def test_damaged_safetensors_are_named(tmp_path):
    io.save_weights(dict(w=torch.ones(9)), tmp_path / 'w.safetensors')
    whole = (tmp_path / 'w.safetensors').read_bytes()
    for part in (b'', whole[:5], whole[:-4]):
        (tmp_path / 'w.safetensors').write_bytes(part)
        with pytest.raises(VisionError, match='VIS-CKPT-303'):
            io.load_checkpoint(tmp_path / 'w.safetensors')


@pytest.mark.fault('R4')
def test_a_flipped_bit_in_weights_is_found_by_their_seal(tmp_path):
    path = tmp_path / 'w.safetensors'
    io.save_weights(dict(w=torch.randn(50)), path, classes=('a',))
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(VisionError, match='VIS-CKPT-303'):
            io.load_checkpoint(path)


def test_class_names_in_both_forms_of_mmengine():
    assert io.class_names(dict(meta=dict(dataset_meta=dict(classes=['a', 'b'])))) == ('a', 'b')
    assert io.class_names(dict(meta=dict(dataset_meta=dict(CLASSES=('c',))))) == ('c',)
    assert io.class_names({}) is io.class_names(dict(meta=dict(dataset_meta={}))) is None


def test_a_model_sees_the_checkpoint_that_it_was_loaded_from():
    class Curious(nn.Linear):
        checkpoint_unused_prefixes = ('other.',)

        def take_checkpoint(self, content, where):
            self.seen = content['meta'], where

    model = Curious(2, 2)
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    io.load_model(model, dict(state_dict=state | {'other.w': torch.ones(1)}, meta=5), where='here')
    assert model.seen == (5, 'here') and model.weight.eq(1).all()


class Attribute:
    def __reduce__(self):
        return getattr, ('text', 'upper')


def test_getattr_in_a_file_looks_nothing_up(tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones(1)), method=Attribute()), tmp_path / 'x.pth')
    assert io.load_checkpoint(tmp_path / 'x.pth')['method'] is None


def test_checkpoints_of_the_stock_runner_are_read(tmp_path):
    from mmengine.logging import HistoryBuffer
    buffer = HistoryBuffer()
    buffer.update(3.0)
    torch.save(dict(state_dict=dict(w=torch.ones(1)), message_hub=dict(loss=buffer)),
               tmp_path / 'x.pth')
    assert io.load_checkpoint(tmp_path / 'x.pth')['state_dict']['w'] == 1
    # What the file names as methods must not become those of all buffers.
    assert buffer.statistics('mean') == buffer.statistics('current') == 3


def test_a_file_that_is_no_checkpoint_says_so(tmp_path):
    (tmp_path / 'x.pth').write_text('hello\n')
    with pytest.raises(VisionError, match='(?s)VIS-CKPT-303.*no file that torch.save wrote'):
        io.load_checkpoint(tmp_path / 'x.pth')


def test_names_that_share_a_beginning_are_told_apart_behind_it():
    model = nn.ModuleDict(dict(a=nn.ModuleDict(dict(b=nn.Linear(1, 1), c=nn.ModuleList(
        nn.Linear(1, 1) for _ in range(3))))))
    with pytest.raises(VisionError, match=r'most under a\.c \(6\), a\.b \(2\)'):
        io.load_state(model, {})
