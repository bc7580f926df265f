import numpy as np
import pytest

from vision.classify.core.crops import crop_boxes, random_area_box
from vision.classify.core.folders import list_image_folder, read_image_list
from vision.common.core.errors import VisionError


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')


def test_order_is_sorted_and_other_files_are_passed_over(tmp_path):
    make(tmp_path, 'b/2.JPG', 'b/10.jpg', 'b/notes.txt', 'a/deep/1.png', '.cache/1.png')
    images = list_image_folder(tmp_path)
    assert images.classes == ('a', 'b')
    assert images.paths == ('a/deep/1.png', 'b/10.jpg', 'b/2.JPG')
    assert images.labels.tolist() == [0, 1, 1] and images.labels.dtype == np.int64


def test_given_classes_fix_the_labels(tmp_path):
    make(tmp_path, 'a/1.png', 'b/1.png', 'c/1.png')
    images = list_image_folder(tmp_path, classes=['c', 'a'])
    assert images.paths == ('c/1.png', 'a/1.png') and images.labels.tolist() == [0, 1]


@pytest.mark.fault('R21')
@pytest.mark.parametrize(('names', 'classes', 'code', 'said'), [
    ([], None, 1202, 'no class folder'),
    (['a/1.png', 'empty/readme.txt'], None, 1203, "'empty'"),
])
def test_refusals_name_the_folder(tmp_path, names, classes, code, said):
    make(tmp_path, *names)
    with pytest.raises(VisionError, match=f'VIS-DATA-{code}') as caught:
        list_image_folder(tmp_path, classes=classes)
    assert said in str(caught.value)


@pytest.mark.fault('R20')
@pytest.mark.parametrize(('classes', 'said'), [
    (['cat', 'dgo'], "'dgo' -> dog"), (['Cat', 'dog'], "'Cat' -> cat"),
    (['cat', 'zebra'], "'zebra' -> nothing near"), (['cat', 'dog '], "'dog ' -> dog"),
])
def test_a_class_without_a_folder_is_named_with_the_nearest(tmp_path, classes, said):
    make(tmp_path, 'cat/1.png', 'dog/1.png')
    with pytest.raises(VisionError, match='VIS-DATA-1204: 1 of 2') as caught:
        list_image_folder(tmp_path, classes=classes)
    assert said in caught.value.what and 'cat, dog' in caught.value.why


@pytest.mark.fault('R21')
def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(VisionError, match='VIS-DATA-1201.*nowhere'):
        list_image_folder(tmp_path / 'nowhere')


def test_image_list(tmp_path):
    path = tmp_path / 'val.txt'
    path.write_text('ILSVRC2012_val_1.JPEG 65\nwith space.JPEG 0\n')
    names, labels = read_image_list(path, num_classes=66)
    assert names == ['ILSVRC2012_val_1.JPEG', 'with space.JPEG'] and labels.tolist() == [65, 0]


@pytest.mark.parametrize('text, code', [
    ('', 'VIS-DATA-1206'), ('\n', 'VIS-DATA-1207'), ('a.jpg\n', 'VIS-DATA-1207'),
    ('a.jpg 1\nb.jpg 7\n', 'VIS-DATA-1207'), ('a.jpg -1\n', 'VIS-DATA-1207')])
def test_broken_image_list_is_refused(tmp_path, text, code):
    path = tmp_path / 'val.txt'
    path.write_text(text)
    with pytest.raises(VisionError, match=code):
        read_image_list(path, num_classes=7)


def test_five_crops_by_hand():
    assert crop_boxes(10, 12, 4, 5) == [(4, 3, 8, 7), (0, 0, 4, 4), (8, 0, 12, 4), (0, 6, 4, 10),
                                        (8, 6, 12, 10)]
    with pytest.raises(VisionError, match='VIS-INPUT-1228'):
        crop_boxes(3, 12, 4, 5)
    with pytest.raises(VisionError, match='VIS-CONFIG-1227'):
        crop_boxes(10, 12, 4, 3)


@pytest.mark.parametrize(('height', 'width'), [(40, 60), (7, 300), (300, 7), (1, 1)])
def test_random_boxes_lie_inside(height, width):
    uniform = np.random.default_rng(0).uniform
    for _ in range(200):
        left, top, right, bottom = random_area_box(height, width, (0.08, 1), (3 / 4, 4 / 3),
                                                   uniform)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_random_boxes_have_the_wanted_area_and_aspect():
    uniform = np.random.default_rng(0).uniform
    boxes = np.array([random_area_box(400, 400, (0.1, 0.5), (3 / 4, 4 / 3), uniform)
                      for _ in range(400)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = w * h / 400 ** 2
    assert share.min() > 0.095 and share.max() < 0.505
    assert abs(share.mean() - 0.3) < 0.02
    assert (w / h).min() > 0.74 and (w / h).max() < 1.35
