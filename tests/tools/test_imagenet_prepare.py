"""datasets/imagenet/prepare.py on a generated miniature tree."""


import numpy as np
import pytest
from scipy.io import savemat
from scripts import load_script

from vision.classify.mm.datasets import ImageNet1k
from vision.common.core.errors import VisionError

prepare = load_script('datasets/imagenet/prepare.py')

WNIDS = ('n01', 'n02', 'n03')
# The devkit's numbers are in another order than the sorted wnids.
NUMBER = {'n01': 3, 'n02': 1, 'n03': 2}
VAL = [2, 3, 1, 1]  # devkit numbers of val images 1..4


@pytest.fixture
def root(tmp_path):
    for wnid in WNIDS:
        (tmp_path / 'imagenet/train' / wnid).mkdir(parents=True)
        (tmp_path / 'imagenet/train' / wnid / f'{wnid}_1.JPEG').write_bytes(b'x')
    (tmp_path / 'imagenet/val').mkdir()
    for index in range(1, 5):
        (tmp_path / f'imagenet/val/ILSVRC2012_val_0000000{index}.JPEG').write_bytes(b'x')
    return tmp_path / 'imagenet'


@pytest.fixture
def devkit(tmp_path):
    folder = tmp_path / 'devkit'
    (folder / 'data').mkdir(parents=True)
    synsets = np.array([(NUMBER[w], w) for w in WNIDS],
                       dtype=[('ILSVRC2012_ID', 'O'), ('WNID', 'O')])
    savemat(folder / prepare.SYNSETS, dict(synsets=synsets))
    (folder / prepare.GROUND_TRUTH).write_text('\n'.join(map(str, VAL)) + '\n')
    return folder


def test_devkit_numbers_become_sorted_labels(root, devkit, capsys):
    assert prepare.main(['--root', str(root), '--devkit', str(devkit), '--subset']) == 0
    assert '3 classes, 3 training images, 4 validation images' in capsys.readouterr().out
    dataset = ImageNet1k(str(root), 'val', ann_file='val.txt')
    assert dataset.get_labels().tolist() == [2, 0, 1, 1]
    assert dataset.metainfo['classes'] == WNIDS


def test_a_given_list_must_name_every_image(root, tmp_path):
    labels = tmp_path / 'list.txt'
    labels.write_text('ILSVRC2012_val_00000001.JPEG 2\n')
    with pytest.raises(VisionError, match='VIS-DATA-1217.*3 images of val'):
        prepare.main(['--root', str(root), '--labels', str(labels), '--subset'])
    assert not (root / 'val.txt').exists()


def test_refusals(root, devkit, tmp_path):
    arguments = ['--root', str(root), '--subset']
    with pytest.raises(VisionError, match='VIS-DATA-1215'):
        prepare.main(arguments[:2] + ['--devkit', str(devkit)])
    with pytest.raises(VisionError, match='VIS-INPUT-1218'):
        prepare.main(arguments)
    with pytest.raises(VisionError, match='VIS-DATA-1208'):
        prepare.main([*arguments, '--devkit', str(tmp_path)])


def test_val_in_folders_needs_no_list(root, capsys):
    for path in list((root / 'val').iterdir()):
        path.unlink()
    for wnid in WNIDS:
        (root / 'val' / wnid).mkdir()
        (root / 'val' / wnid / '1.JPEG').write_bytes(b'x')
    assert prepare.main(['--root', str(root), '--subset']) == 0
    assert 'no list is needed' in capsys.readouterr().out
