"""Omniglot, ORL and LFW as they are published, read by the data sets of the face room."""

import zipfile

import cv2
import numpy as np
import pytest
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.registry import DATASETS


@pytest.fixture(scope='module')
def omniglot():
    return load_script('datasets/omniglot/prepare.py').main


def archive(path, names):
    png = cv2.imencode('.png', np.full((105, 105), 255, np.uint8))[1].tobytes()
    with zipfile.ZipFile(path, 'w') as content:
        for name in names:
            content.writestr(name, png)
    return str(path)


def test_a_character_of_an_alphabet_is_a_class(omniglot, tmp_path, capsys):
    source = archive(tmp_path / 'a.zip', [f'images_x/{alphabet}/character01/000{n}.png' for n in
                                          (1, 2) for alphabet in ('Greek', 'Latin')])
    assert omniglot([source, '--out', str(tmp_path / 'out')]) == 0
    assert '4 pictures of 2 characters' in capsys.readouterr().out
    dataset = DATASETS.build(dict(type='FaceFolder', data_root=str(tmp_path / 'out')))
    assert dataset.metainfo['classes'] == ('Greek.character01', 'Latin.character01')
    assert dataset.labels.tolist() == [0, 0, 1, 1] and dataset.read(3).shape == (105, 105, 3)
    with pytest.raises(VisionError, match='VIS-DATA-201'):
        omniglot([source, '--out', str(tmp_path / 'out')])


@pytest.mark.parametrize('names', [[], ['loose.png'], ['Greek/character01/1.png', 'a/b.png']])
def test_another_archive_is_refused_and_leaves_nothing(omniglot, tmp_path, names):
    source = archive(tmp_path / 'a.zip', names)
    with pytest.raises(VisionError, match='VIS-DATA-(1086|231)'):
        omniglot([source, '--out', str(tmp_path / 'out')])
    (tmp_path / 'a.zip').write_bytes(b'PK nonsense')
    with pytest.raises(VisionError, match='VIS-DATA-(1086|231)'):
        omniglot([source, '--out', str(tmp_path / 'out')])
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']


def test_the_published_omniglot_archive(omniglot, shared_data, tmp_path):
    source = shared_data / 'omniglot-small' / 'images_background_small1.zip'
    omniglot([str(source), '--out', str(tmp_path / 'out')])
    dataset = DATASETS.build(dict(type='FaceFolder', data_root=str(tmp_path / 'out'), pipeline=[
        dict(type='ResizeSquare', size=32), dict(type='PackFaceInputs')]))
    assert dataset.num_classes == 136 and len(dataset) == 2720
    assert np.bincount(dataset.labels).tolist() == [20] * 136
    assert dataset[2719]['inputs'].shape == (3, 32, 32)


def test_the_orl_folder_is_read_as_it_is(shared_data):
    dataset = DATASETS.build(dict(
        type='FaceFolder', data_root=str(shared_data / 'orl-faces'),
        pipeline=[dict(type='ResizeSquare', size=112), dict(type='PackFaceInputs')]))
    assert dataset.num_classes == 27 and np.bincount(dataset.labels).tolist() == [10] * 27
    assert dataset.read(0).shape == (112, 92, 3) and dataset.read(0).std() > 10
    assert dataset[269]['inputs'].shape == (3, 112, 112)


def test_lfw_by_folder_by_list_and_by_pairs_is_the_same(shared_data):
    data = shared_data / 'lfw-aligned-subset'
    listed = DATASETS.build(dict(type='FaceList', ann_file=str(data / 'list.txt'),
                                 data_root=str(data / 'images')))
    folder = DATASETS.build(dict(type='FaceFolder', data_root=str(data / 'images')))
    assert len(listed) == len(folder) == 3486 and listed.num_classes == folder.num_classes == 1648
    assert dict(zip(listed.paths, listed.labels, strict=True)) == \
        dict(zip(folder.paths, folder.labels, strict=True))
    pairs = DATASETS.build(dict(type='FacePairs', pairs=str(data / 'pairs.txt'),
                                data_root=str(data / 'images')))
    found = pairs.metainfo['pairs']
    names = np.array([path.split('/')[0] for path in pairs.paths])
    assert len(found) == 3000 and found.num_folds == 10
    assert (found.same == (names[found.first] == names[found.second])).all()
    assert pairs.read(0).shape == (112, 112, 3)
