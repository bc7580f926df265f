"""Archives: what is whole is unpacked, 25 hostile ones leave nothing behind."""

import io
import os
import stat
import tarfile
import zipfile

import pytest

from vision.common.core import archives
from vision.common.core.archives import unpack
from vision.common.core.errors import VisionError

FILES = {'a/1.txt': b'one', 'a/b/2.txt': b'two' * 1000, '3.txt': b''}


def as_zip(path, entries, mode=stat.S_IFREG | 0o644, packed=True):
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, 'w', kind) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo('x')
            info.filename = name  # the constructor would make it harmless
            info.external_attr, info.compress_type = mode << 16, kind
            archive.writestr(info, data)
    return path


def as_tar(path, entries, how='w', **fields):
    with tarfile.open(path, how) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


@pytest.mark.parametrize('make', [
    lambda path: as_zip(path, FILES.items()), lambda path: as_zip(path, FILES.items(), mode=0),
    lambda path: as_tar(path, FILES.items()),
    lambda path: as_tar(path, FILES.items(), 'w:gz', mode=0o7777),
    lambda path: as_tar(path, [(f'./{name}', data) for name, data in FILES.items()], 'w:bz2')])
def test_whole_archives_come_out(tmp_path, make):
    assert unpack(make(tmp_path / 'x'), tmp_path / 'out') == 3
    found = {path.relative_to(tmp_path / 'out').as_posix(): path.read_bytes()
             for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert found == FILES
    assert not os.access(tmp_path / 'out' / '3.txt', os.X_OK) or os.geteuid() == 0
    assert stat.S_IMODE((tmp_path / 'out' / '3.txt').stat().st_mode) & 0o7111 == 0


def test_a_folder_of_the_archive_itself_is_no_fault(tmp_path):
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        entry = tarfile.TarInfo('./')
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
        entry = tarfile.TarInfo('./a')
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b'x'))
    assert unpack(tmp_path / 'x.tar', tmp_path / 'out') == 1


NAMES = ('../x', '/tmp/escaped', 'a/../../x', '..', 'a/..', 'C:\\x', 'a\\..\\..\\x', '//host/x',
         'a\nb', '~/x', 'file:///x', 'n' * 300, 'd/' * 40 + 'x')
HOSTILE = {f'zip {name[:12]!r}': lambda path, name=name: as_zip(path, [('ok', b'1'), (name, b'x')])
           for name in NAMES}
HOSTILE |= {f'tar {name[:12]!r}': lambda path, name=name: as_tar(path, [(name, b'x')])
            for name in ('../x', '/tmp/escaped', 'a/../../x', '..')}
HOSTILE |= {
    'tar symbolic link': lambda path: as_tar(path, [('l', b'')], type=tarfile.SYMTYPE,
                                             linkname='/etc'),
    'tar hard link': lambda path: as_tar(path, [('l', b'')], type=tarfile.LNKTYPE,
                                         linkname='/etc/passwd'),
    'tar device': lambda path: as_tar(path, [('d', b'')], type=tarfile.CHRTYPE, devmajor=1),
    'tar pipe': lambda path: as_tar(path, [('p', b'')], type=tarfile.FIFOTYPE),
    'zip symbolic link': lambda path: as_zip(path, [('l', b'/etc')], stat.S_IFLNK | 0o777),
    'zip device': lambda path: as_zip(path, [('d', b'')], stat.S_IFBLK | 0o666),
    'zip twice': lambda path: as_zip(path, [('a', b'1'), ('a', b'2')]),
    'tar twice': lambda path: as_tar(path, [('a', b'1'), ('./a', b'2')]),
    'zip many': lambda path: as_zip(path, [(f'{i}', b'') for i in range(60)], packed=False),
    'tar many': lambda path: as_tar(path, [(f'{i}', b'') for i in range(60)]),
    'zip large': lambda path: as_zip(path, [('a', bytes(3_000_000))]),
    'tar large': lambda path: as_tar(path, [('a', bytes(3_000_000))], 'w:gz'),
    'zip cut': lambda path: path.write_bytes(as_zip(path, FILES.items()).read_bytes()[:-30]),
    'tar cut': lambda path: path.write_bytes(as_tar(path, FILES.items()).read_bytes()[:1700]),
    'nothing': lambda path: path.write_bytes(b''), 'no archive': lambda path: path.write_bytes(
        b'text' * 500), 'file in a file': lambda path: as_zip(path, [('a', b'1'), ('a/b', b'2')])}


@pytest.mark.fault('S36')
@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_archives_leave_nothing_behind(tmp_path, name):
    assert len(HOSTILE) >= 25
    (tmp_path / 'in').mkdir()
    HOSTILE[name](tmp_path / 'in' / 'x')
    with pytest.raises(VisionError, match='VIS-DATA-(231|227)'):
        unpack(tmp_path / 'in' / 'x', tmp_path / 'out', max_files=50, max_bytes=2_000_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in', 'out']
    assert not list((tmp_path / 'out').iterdir()) and not os.path.exists('/tmp/escaped')


@pytest.mark.fault('S36')
def test_a_bomb_is_left_when_it_has_grown_out_of_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'SPARE_BYTES', 1 << 20)
    as_zip(tmp_path / 'bomb', [('zeros', bytes(20_000_000))])  # a thousand times its size
    assert (tmp_path / 'bomb').stat().st_size < 30_000
    with pytest.raises(VisionError, match='VIS-DATA-227.*holds more than'):
        unpack(tmp_path / 'bomb', tmp_path / 'out')


@pytest.mark.fault('S36')
def test_a_size_that_lies_is_counted_while_it_is_written(tmp_path):
    data = bytearray(as_zip(tmp_path / 'x', [('a', bytes(3_000_000))]).read_bytes())
    for start in (data.index(b'PK\x03\x04') + 22, data.index(b'PK\x01\x02') + 24):
        data[start:start + 4] = (5).to_bytes(4, 'little')
    (tmp_path / 'x').write_bytes(data)
    with pytest.raises(VisionError, match='VIS-DATA-(231|227)'):
        unpack(tmp_path / 'x', tmp_path / 'out', max_bytes=2_000_000)
    assert not list((tmp_path / 'out').iterdir())


def test_what_is_there_already_is_not_replaced(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / '3.txt').write_text('mine')
    with pytest.raises(VisionError, match='VIS-DATA-235'):
        unpack(as_zip(tmp_path / 'x', FILES.items()), tmp_path / 'out')
    assert (tmp_path / 'out' / '3.txt').read_text() == 'mine'
