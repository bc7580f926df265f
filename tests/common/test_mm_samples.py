"""Views of samples are what the pipeline saw and gave."""

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from vision.common.core.errors import VisionError
from vision.common.mm.samples import (
    View,
    chosen_views,
    contact_sheet,
    picture_of,
    places_of,
    record,
    views_of,
)
from vision.registry import DATASETS


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('vision')


@pytest.fixture
def people(tmp_path):
    """Two identities; the left half of each picture is white."""
    for number in range(6):
        image = np.full((32, 32, 3), 40 + 20 * number, np.uint8)
        image[:, :16] = 255
        path = tmp_path / 'people' / f'p{number % 2}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return tmp_path / 'people'


def faces(people):
    return DATASETS.build(dict(type='FaceFolder', data_root=str(people), pipeline=[
        dict(type='RandomMirror'), dict(type='PackFaceInputs')]))


def test_original_and_augmented_pictures_of_faces(people):
    turned = 0
    for views in views_of(faces(people), 6, seed=1):
        assert [view.title.partition(':')[0] for view in views] == ['original', 'RandomMirror',
                                                                    'PackFaceInputs']
        assert (views[0].image[:, :16] == 255).all() and (views[0].image[:, 16:] < 255).all()
        is_turned = not np.array_equal(views[-1].image, views[0].image)
        if is_turned:
            np.testing.assert_array_equal(views[-1].image, views[0].image[:, ::-1])
        turned += is_turned
    assert 0 < turned < 6
    assert views[0].title == 'original: p1'


def test_a_sample_is_drawn_as_the_training_draws_it(people):
    plain, recorded = faces(people), faces(people)
    notes = record(recorded)
    for place in range(6):
        np.random.seed(place)
        expected = plain[place]['inputs'].numpy()
        np.random.seed(place)
        assert (recorded[place]['inputs'].numpy() == expected).all()
        np.testing.assert_array_equal(notes[0][-1].image, expected.transpose(1, 2, 0))


def test_wrapped_data_sets_of_images(people):
    dataset = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=dict(
        type='ImageFolder', data_root=str(people), pipeline=[
            dict(type='ReadImage'), dict(type='RandomResizedCrop', scale=8),
            dict(type='MultiCrop', crop_size=8, num_crops=10), dict(type='PackInputs')])))
    assert len(dataset) == 12
    views = next(views_of(dataset, 1))
    assert [view.title for view in views] == ['original: p0', 'ReadImage', 'RandomResizedCrop',
                                              'MultiCrop', 'PackInputs']
    assert views[2].image.shape == (8, 8, 3) and views[3].image.shape[1] == 10 * 8 + 9 * 4
    np.testing.assert_array_equal(views[0].image, views[1].image)


def test_boxes_are_drawn_where_they_are():
    image = np.zeros((40, 40, 3), np.uint8)
    boxes = np.array([[10, 20, 30, 35]], np.float32)
    drawn = picture_of(dict(img=image, gt_bboxes=boxes, gt_bboxes_labels=np.array([0])), ('x',))
    assert drawn[35, 12:28].any(1).all() and not drawn[37:].any() and not image.any()


def test_normalised_and_grey_pictures_become_visible():
    ramp = np.linspace(-2, 2, 16).reshape(4, 4)
    shown = picture_of(dict(img=ramp), ())
    assert shown.shape == (4, 4, 3) and shown.min() == 0 and shown.max() == 255
    assert (picture_of(dict(img=np.full((2, 2), 7, np.uint8)), ()) == 7).all()


def test_modes():
    views = [View(str(i), np.full((10 + i, 20, 3), i, np.uint8)) for i in range(3)]
    shown = {mode: [view.title for view in chosen_views(views, mode)]
             for mode in ('original', 'transformed', 'concat', 'pipeline')}
    assert shown == dict(original=['0'], transformed=['2'], concat=['0', '2'],
                         pipeline=['0', '1', '2'])
    assert [view.title for view in chosen_views(views[:1], 'concat')] == ['0']
    assert contact_sheet([views] * 3, 'pipeline').shape[0] > 2 * 200


def test_places_are_spread_and_frames_are_asked_for_in_tests(people):
    assert places_of(faces(people), 3) == [0, 2, 5] and len(places_of(faces(people), 99)) == 6

    class Videos:
        test_mode = True

        def __len__(self):
            return 2

        def get_len_per_video(self, video):
            return 3 + video
    assert places_of(Videos(), 3) == [(0, 0), (1, 0), (1, 3)]


def test_a_pipeline_without_pictures_is_refused():
    class Numbers:
        pipeline = [lambda results: results]

        def __len__(self):
            return 1

        def __getitem__(self, place):
            return self.pipeline[0](dict(number=place))
    with pytest.raises(VisionError, match='VIS-DATA-1788: Numbers'):
        next(views_of(Numbers(), 1))
