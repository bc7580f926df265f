import errno
import io as memory
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import hostile_pickles

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


def test_a_large_file_whose_hash_agreed_is_mapped_and_never_changed(saved, monkeypatch):
    whole = io.load_checkpoint(saved)
    before = saved.read_bytes()
    monkeypatch.setattr(io, 'MAPPED_BYTES', 1)
    mapped = []
    read = io.read_torch_file

    def watched(*args, is_mapped=False):
        mapped.append(is_mapped)
        return read(*args, is_mapped=is_mapped)

    monkeypatch.setattr(io, 'read_torch_file', watched)
    content = io.load_checkpoint(saved)
    for name, tensor in content['state_dict'].items():
        assert torch.equal(tensor, whole['state_dict'][name])
        tensor.add_(1)  # in memory only
    assert saved.read_bytes() == before and io.damage(saved) == ''
    io.manifest_path(saved).unlink()
    io.load_checkpoint(saved)
    assert mapped == [True, False]


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
    for _ in range(1000):
        place = int(generator.integers(len(whole)))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(generator.integers(8))
        saved.write_bytes(flipped)
        with pytest.raises(VisionError, match='VIS-CKPT-303'):
            io.load_checkpoint(saved)


def as_archive(pickled: bytes, **entries: bytes) -> bytes:
    """A file as torch.save writes it, around a pickle of our choice."""
    content = memory.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        for name, data in dict({'data.pkl': pickled, 'version': b'3\n'}, **entries).items():
            archive.writestr(f'archive/{name}', data)
    return content.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    """The form of torch until 1.6; no storage follows."""
    head = [pickle.dumps(part, protocol=2) for part in (
        0x1950A86A20F9469CFC6C, 1001, dict(protocol_version=1001, little_endian=True))]
    return b''.join(head) + pickled + pickle.dumps([], protocol=2)


def as_tar(pickled: bytes) -> bytes:
    content = memory.BytesIO()
    with tarfile.open(fileobj=content, mode='w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, memory.BytesIO(pickled))
    return content.getvalue()


FORMS = dict(archive=as_archive, legacy=as_legacy, tar=as_tar, plain=bytes,
             nested=lambda pickled: as_archive(as_archive(pickled)),
             beside=lambda pickled: as_archive(b'\x80\x02}.', **{'more/data.pkl': pickled}),
             code=lambda pickled: as_archive(pickled, **{'constants.pkl': pickled}))


@pytest.mark.fault('S33')
@pytest.mark.parametrize('form', FORMS)
def test_hostile_files_run_nothing_and_are_refused(tmp_path, form):
    """60 calls and 40 other ways, in every form of file that torch has written."""
    marker, path = tmp_path / 'marker', tmp_path / 'hostile.pth'
    payloads = hostile_pickles.calls(str(marker)) | hostile_pickles.other_ways(str(marker))
    for pickled in payloads.values():
        path.write_bytes(FORMS[form](pickled))
        with pytest.raises(VisionError, match='VIS-CKPT-(303|304|337)'):
            io.load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.fault('S33')
def test_a_file_that_overruns_memory_does_not_end_the_process(tmp_path):
    """In a process of its own: with NumPy's own functions it ends by SIGSEGV."""
    whole = hostile_pickles.OVERRUN
    path = tmp_path / 'x.pth'
    path.write_bytes(as_archive(b'\x80\x02}X\x01\x00\x00\x00a' + whole[2:-1] + b's.'))
    code = ('import sys\nfrom vision.common.core.errors import run_cli\n'
            'from vision.common.nn.checkpoint import load_checkpoint\n'
            'run_cli(lambda: print(load_checkpoint(sys.argv[1])))')
    child = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True)
    assert child.returncode == 5 and 'VIS-CKPT-304' in child.stderr
    code = ('import sys, numpy as np, torch\n'
            'names = [np.ndarray, np.dtype, np._core.multiarray._reconstruct]\n'
            'names += [np.dtypes.Int64DType]\n'
            'with torch.serialization.safe_globals(names):\n'
            '    print(torch.load(sys.argv[1], weights_only=True)["a"].tolist()[:3])')
    stock = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True)
    assert stock.returncode < 0


@pytest.mark.fault('S33')
def test_the_stock_runner_runs_what_a_checkpoint_names(tmp_path, monkeypatch):
    from mmengine.runner import load_checkpoint
    marker, path = tmp_path / 'marker', tmp_path / 'x.pth'
    path.write_bytes(as_archive(hostile_pickles.calls(str(marker))['os.mkdir']))
    with pytest.raises(VisionError, match=r'VIS-CKPT-304[\s\S]*os\.mkdir'):
        io.load_checkpoint(path)
    assert not marker.exists()
    # Its loaders may have been replaced by ours; the stock one is asked for by its own function.
    from mmengine.runner.checkpoint import CheckpointLoader, load_from_local
    monkeypatch.setitem(CheckpointLoader._schemes, '', load_from_local)
    with pytest.raises(Exception):  # noqa: B017  it fails after the deed, in one way or another
        load_checkpoint(nn.Linear(1, 1), str(path))
    assert marker.exists()


STORAGE = (b'ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n'
           b'X\x01\x00\x00\x000X\x03\x00\x00\x00cpuNUMBERtQOFFSETSIZE\x85STRIDE\x85\x89'
           b'ccollections\nOrderedDict\n)RtR')


def tensor_file(number=4, offset=0, size=4, stride=1, data=bytes(16)) -> bytes:
    """A checkpoint of one tensor, whose promises need not be true."""
    opcodes = STORAGE
    for name, value in dict(NUMBER=number, OFFSET=offset, SIZE=size, STRIDE=stride).items():
        opcodes = opcodes.replace(name.encode(), pickle.dumps(value, protocol=2)[2:-1])
    return as_archive(b'\x80\x02}X\x01\x00\x00\x00w' + opcodes + b's.', **{'data/0': data})


@pytest.mark.fault('S33')
@pytest.mark.parametrize('promise', [
    dict(number=2**40), dict(number=3), dict(number=-1), dict(size=5), dict(size=2**62, stride=4),
    dict(size=-1), dict(offset=1), dict(offset=-1), dict(offset=2**70), dict(stride=2),
    dict(stride=-1), dict(stride=2**63), dict(data=b''), dict(number=1.5), dict(size='4')],
    ids=str)
def test_tensors_stay_inside_of_their_storage(tmp_path, promise):
    (tmp_path / 'x.pth').write_bytes(tensor_file())
    assert io.load_checkpoint(tmp_path / 'x.pth')['state_dict']['w'].tolist() == [0] * 4
    (tmp_path / 'x.pth').write_bytes(tensor_file(**promise))
    with pytest.raises(VisionError, match='VIS-CKPT-303'):
        io.load_checkpoint(tmp_path / 'x.pth')


@pytest.mark.fault('R3')
def test_archives_that_are_packed_doubled_or_flipped_are_refused(tmp_path):
    path = tmp_path / 'x.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:  # 10 MB in 10 kB
        archive.writestr('archive/data.pkl', b'\x80\x02}.' + bytes(10**7))
    with pytest.raises(VisionError, match='VIS-CKPT-303'):
        io.load_checkpoint(path)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, 'w') as archive:
        for _ in range(2):
            archive.writestr('archive/data.pkl', b'\x80\x02}.')
    with pytest.raises(VisionError, match='two entries of one name'):
        io.load_checkpoint(path)
    whole = bytearray(tensor_file(data=bytes(range(16))))
    whole[whole.index(bytes(range(16))) + 3] ^= 1
    path.write_bytes(whole)  # it has no manifest: the archive's own check sum tells
    with pytest.raises(VisionError, match='check sum'):
        io.load_checkpoint(path)


@pytest.mark.parametrize('content', [
    [], torch.ones(1), dict(state_dict=[torch.ones(1)]), dict(state_dict=None),
    dict(state_dict=dict(w=[1.0])), dict(state_dict={1: torch.ones(1)}), dict(epoch=3),
    dict(state_dict=dict(w=np.ones(1)))], ids=str)
@pytest.mark.fault('S33')
def test_what_holds_no_tensors_by_name_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(VisionError, match='VIS-CKPT-337.*no checkpoint'):
        io.load_checkpoint(tmp_path / 'x.pth')


@pytest.mark.fault('R12')
@pytest.mark.parametrize('new_form', [True, False])
def test_everything_that_a_training_saves_comes_back_equal(tmp_path, new_form):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    shared = torch.arange(12.)
    content = dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict(),
                   rng=torch.get_rng_state(), numpy_rng=np.random.get_state(),
                   turned=shared.reshape(3, 4).T, part=shared[2:5], half=shared.bfloat16(),
                   kinds=(torch.float16, torch.device('cpu'), torch.Size([2, 3])),
                   parameter=nn.Parameter(torch.ones(2), requires_grad=False))
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=new_form)
    found = io.load_checkpoint(tmp_path / 'x.pth')
    judge = torch.load(tmp_path / 'x.pth', weights_only=False)

    def require_equal(one, other):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and one.stride() == other.stride()
            assert torch.equal(one, other) and one.requires_grad == other.requires_grad
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                require_equal(one[key], other[key])
        elif isinstance(one, list | tuple):
            assert len(one) == len(other)
            for pair in zip(one, other, strict=True):
                require_equal(*pair)
        else:
            assert np.all(one == other)

    require_equal(found, judge)
    assert found['state_dict']._metadata == model.state_dict()._metadata
    assert isinstance(found['state_dict'], OrderedDict)
    found['part'][0] = 99  # what shares memory does so again
    assert found['turned'].T.flatten()[2] == 99


@pytest.mark.fault('R12')
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
    header = json.loads(whole[8:8 + int.from_bytes(whole[:8], 'little')])

    def with_header(**changed) -> bytes:
        text = json.dumps(dict(w=dict(header['w'], **changed))).encode()
        return len(text).to_bytes(8, 'little') + text + whole[-36:]

    def with_text(text: bytes) -> bytes:
        return len(text).to_bytes(8, 'little') + text

    for part in (b'', whole[:5], whole[:-4], b'\xff' * 7 + whole[7:],
                 (2**40).to_bytes(8, 'little') + whole[8:], with_header(data_offsets=[4, 40]),
                 with_header(data_offsets=[0, 32]), with_header(data_offsets=[36, 0]),
                 with_header(shape=[2**62, 4]), with_header(shape=[10]), with_header(dtype='X9'),
                 with_header(dtype='F64'), with_header(data_offsets=[0, 2**63]),
                 with_text(b'[' * 10000), with_text(b'{"w":' + b'9' * 5000 + b'}'),
                 with_text(b'{"__metadata__":{"classes":"[1]"}}'),
                 with_text(b'{"__metadata__":{"classes":"' + b'[' * 5000 + b'"}}'),
                 with_text(b'\xff\xfe')):
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


@pytest.mark.fault('R12')
def test_checkpoints_of_the_stock_runner_are_read(tmp_path):
    from mmengine.logging import HistoryBuffer
    buffer = HistoryBuffer()
    buffer.update(3.0)
    torch.save(dict(state_dict=dict(w=torch.ones(1)), message_hub=dict(loss=buffer)),
               tmp_path / 'x.pth')
    content = io.load_checkpoint(tmp_path / 'x.pth')
    assert content['state_dict']['w'] == 1
    assert content['message_hub']['loss']['values'].tolist() == [3]
    assert content['message_hub']['loss']['max_length'] == buffer.max_length
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
