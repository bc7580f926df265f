"""The list of models: what it holds, and what it refuses."""

import pytest

from vision.common.core.errors import VisionError
from vision.zoo import find, load_index
from vision.zoo.index import PACKAGE_WEIGHTS, Entry
from vision.zoo.store import sha256_of

GOOD = dict(name='a_b', addresses=('https://example.org/a.onnx',), sha256='0' * 64, size_bytes=1,
            licence='MIT', source='x', config='configs/x.py')


def test_every_entry_names_a_config_that_exists(repository):
    entries = load_index()
    assert 'yolox-nano_coco' in entries
    for entry in entries.values():
        assert (repository / entry.config).is_file(), entry.name


def test_files_of_the_package_are_there_and_are_those_of_the_index():
    for entry in load_index().values():
        if entry.is_packaged:
            path = PACKAGE_WEIGHTS / entry.file_name
            assert path.stat().st_size == entry.size_bytes and sha256_of(path) == entry.sha256
    listed = {entry.file_name for entry in load_index().values()}
    assert {path.name for path in PACKAGE_WEIGHTS.iterdir()
            if not path.name.endswith('.LICENSE.txt')} <= listed


def test_weights_of_others_travel_with_their_licence():
    foreign = [entry for entry in load_index().values()
               if entry.is_packaged and 'this repository' not in entry.source]
    assert [entry.name for entry in foreign] == ['yolox-nano_coco']
    for entry in foreign:
        text = (PACKAGE_WEIGHTS / f'{entry.name}.LICENSE.txt').read_text()
        assert 'Megvii' in text and entry.sha256 in text
        assert entry.licence == 'Apache-2.0' and 'Apache License' in text


def test_the_copy_of_yolox_is_not_claimed_to_be_the_official_file():
    assert find('yolox-nano_coco').verified is False


def test_the_recorded_hash_is_that_of_the_copy(shared_data):
    source = sha256_of(shared_data / 'weights' / 'yolox_nano.onnx')
    assert source in find('yolox-nano_coco').note


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(VisionError, match=r'VIS-INPUT-602.*\n.*\n.*nearest: yolox-nano_coco'):
        find('yolox_nano_coco')


@pytest.mark.parametrize('change, reason', [
    (dict(addresses=('http://example.org/a.onnx',)), 'neither https'),
    (dict(addresses=('file:///etc/passwd',)), 'neither https'),
    (dict(addresses=('package:../secrets',)), 'neither https'),
    (dict(addresses=('https://example.org/',)), 'neither https'),
    (dict(addresses=()), 'no address'),
    (dict(addresses=('https://a.org/a.onnx', 'https://b.org/b.onnx')), 'different files'),
    (dict(sha256='0' * 63), 'sha256'),
    (dict(sha256='A' * 64), 'sha256'),
    (dict(size_bytes=0), 'size_bytes'),
    (dict(sha256='0' * 8, verified=True), 'only 8 digits'),
    (dict(sha256='0' * 8, addresses=('package:a.safetensors',)), 'only 8 digits'),
    (dict(sha256='0' * 8, size_bytes=-1), 'size_bytes'),
    (dict(size_bytes=True), 'size_bytes'),
    (dict(name='../a'), 'name is not'),
    (dict(metrics={'map': 1.0}), 'metrics_from'),
    (dict(licence=''), 'licence'),
])
def test_bad_entries_are_refused(change, reason):
    assert Entry(**GOOD).file_name == 'a.onnx'
    with pytest.raises(VisionError, match=f'VIS-CONFIG-601.*{reason}'):
        Entry(**(GOOD | change))


@pytest.mark.parametrize('row, reason', [
    ('{name: a_b}', 'missing'),
    ('{name: a_b, sha: 1}', r"does not know \['sha'\]"),
    ('{name: yolox, adresses: []}', 'does not know'),
])
def test_a_row_with_a_key_nobody_reads_is_refused(tmp_path, row, reason):
    path = tmp_path / 'index.yml'
    path.write_text(f'entries:\n- {row}\n')
    with pytest.raises(VisionError, match=f'VIS-CONFIG-601.*{reason}'):
        load_index(path)


def test_a_name_that_comes_twice_is_refused(tmp_path):
    row = ('- {name: a_b, addresses: ["https://e.org/a"], sha256: "' + '0' * 64
           + '", size_bytes: 1, licence: MIT, source: x, config: c}\n')
    path = tmp_path / 'index.yml'
    path.write_text('entries:\n' + row)
    assert list(load_index(path)) == ['a_b']
    path.write_text('entries:\n' + row * 2)
    with pytest.raises(VisionError, match='comes twice'):
        load_index(path)
