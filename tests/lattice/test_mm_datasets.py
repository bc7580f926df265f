"""CocoVideoDataset and the mix of frames and images, on generated files."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from vision.common.core.errors import VisionError
from vision.common.nn.images import read_image
from vision.lattice.core.cocovid import CocoVidWriter
from vision.lattice.mm.samplers import VideoFrameSampler
from vision.registry import DATASETS, TRANSFORMS

CLASSES = ('cat', 'dog')
FRAMES = [dict(type='LoadVideoFrame'), dict(type='PackVideoFrame')]
STILL = [dict(type='LoadVideoFrame'), dict(type='mmdet.LoadAnnotations', with_bbox=True),
         dict(type='mmdet.Resize', scale=(32, 24)), dict(type='mmdet.PackDetInputs')]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('vision')


@pytest.fixture
def root(tmp_path):
    """Two videos of 3 and 5 frames of 64x48; frame 1 of each is empty; frames 0 and 2 train."""
    writer = CocoVidWriter(CLASSES)
    for video, length in enumerate((3, 5)):
        (tmp_path / 'img' / f'v{video}').mkdir(parents=True)
        writer.add_video(f'v{video}', width=64, height=48)
        for frame in range(length):
            name = f'v{video}/{frame:06d}.png'
            cv2.imwrite(str(tmp_path / 'img' / name),
                        np.full((48, 64, 3), 50 * video + 10 * frame, np.uint8))
            boxes = dict(boxes_xyxy=[[frame, 2, 20 + frame, 30], [5, 5, 9, 9]], labels=[1, 0],
                         instance_ids=[1, 2]) if frame != 1 else {}
            writer.add_frame(name, image_fields=dict(is_vid_train_frame=frame in (0, 2)), **boxes)
    writer.write(tmp_path / 'ann.json')
    return tmp_path


def config(root, **options) -> dict:
    return dict(type='CocoVideoDataset', data_root=str(root), ann_file='ann.json',
                data_prefix=dict(img='img'), metainfo=dict(classes=CLASSES)) | options


def edit(root, change) -> None:
    data = json.loads((root / 'ann.json').read_text())
    change(data)
    (root / 'ann.json').write_text(json.dumps(data))


def test_a_frame_item_has_pixels_boxes_and_its_place(root):
    data = DATASETS.build(config(root, pipeline=FRAMES, test_mode=True))
    item = data[1, 3]
    assert item['inputs'].shape == (3, 48, 64) and item['inputs'].dtype == torch.uint8
    assert item['inputs'].unique().tolist() == [80]
    sample = item['data_samples']
    assert (sample.video_id, sample.frame_id, sample.video_length) == (2, 3, 5)
    assert sample.img_id == 7 and sample.ori_shape == (48, 64) and sample.is_labelled
    assert sample.img_path.endswith('v1/000003.png')
    assert sample.gt_instances.bboxes.tolist() == [[3, 2, 23, 30], [5, 5, 9, 9]]
    assert sample.gt_instances.labels.tolist() == [1, 0]
    assert sample.gt_instances.instances_ids.tolist() == [3, 4]
    assert len(sample.ignored_instances) == 0


def test_crowd_boxes_are_set_apart(root):
    edit(root, lambda data: data['annotations'][0].update(iscrowd=1))
    sample = DATASETS.build(config(root, pipeline=FRAMES, test_mode=True))[0, 0]['data_samples']
    assert sample.gt_instances.labels.tolist() == [0]
    assert sample.ignored_instances.bboxes.tolist() == [[0, 2, 20, 30]]


@pytest.mark.parametrize('test_mode', [False, True])
def test_empty_frames_stay_so_that_places_are_frame_ids(root, test_mode):
    data = DATASETS.build(config(root, test_mode=test_mode))
    assert [data.get_len_per_video(i) for i in range(len(data))] == [3, 5]
    video = data[1]
    assert [frame['frame_id'] for frame in video['images']] == list(range(5))
    assert video['images'][1]['bboxes'].shape == (0, 4)
    assert data[1, 1]['instances'] == [] and data.get_cat_ids((1, 0)) == [1, 0]


def test_order_is_by_frame_id_and_instance_zero_does_not_collide(root):
    def change(data):
        data['images'].reverse()
        for row in data['annotations']:
            row['instance_id'] -= 1
    edit(root, change)
    data = DATASETS.build(config(root))
    assert [f['img_path'][-5] for f in data[0]['images']] == ['0', '1', '2']
    assert data[0, 0]['instances_ids'].tolist() == [1, 2]
    assert [row['instance_id'] for row in data[1, 0]['instances']] == [3, 4]


def test_items_do_not_share_memory_with_the_data_set(root):
    data = DATASETS.build(config(root))
    data[0, 0]['bboxes'][:] = -1
    assert data[0, 0]['bboxes'].min() >= 0


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_loader_gives_whole_videos_in_order(root, num_workers):
    data = DATASETS.build(config(root, pipeline=FRAMES, test_mode=True))
    loader = DataLoader(data, batch_size=3, sampler=VideoFrameSampler(data),
                        num_workers=num_workers, collate_fn=pseudo_collate)
    places = [(s.video_id, s.frame_id) for batch in loader for s in batch['data_samples']]
    assert places == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]


def test_a_record_without_video_id_is_an_error(root):
    edit(root, lambda data: data['images'][0].pop('video_id'))
    with pytest.raises(VisionError, match='missing-key'):
        DATASETS.build(config(root))


@pytest.mark.fault('R20')
def test_classes_that_match_nothing_stop_with_advice(root):
    with pytest.raises(VisionError, match='29 of 30 class names') as caught:
        DATASETS.build(config(root, metainfo=None))
    assert 'cat 6, dog 6' in caught.value.why


def test_no_box_of_the_wanted_class_stops_training_but_not_testing(root):
    edit(root, lambda data: data['categories'].append(dict(id=3, name='cow')))
    only = dict(metainfo=dict(classes=('cow',)))
    with pytest.raises(VisionError, match='no box') as caught:
        DATASETS.build(config(root, **only))
    assert caught.value.code == 'VIS-DATA-207'
    assert len(DATASETS.build(config(root, test_mode=True, **only))) == 2


def test_missing_images_are_found_before_work_starts(root):
    (root / 'img' / 'v0' / '000001.png').unlink()
    with pytest.raises(VisionError, match='1 of 8 images') as caught:
        DATASETS.build(config(root))
    assert 'v0/000001.png' in caught.value.what and caught.value.exit_code == 4
    with pytest.raises(VisionError, match='8 of 8 images'):
        DATASETS.build(config(root, data_prefix=dict(img='elsewhere')))
    assert len(DATASETS.build(config(root, check_files=False))) == 2


EMPTY = dict(videos=[], images=[], annotations=[], categories=[])


@pytest.mark.fault('R21')
@pytest.mark.parametrize(('options', 'edit_files', 'code', 'tried'), [
    (dict(data_root='elsewhere'), None, 'VIS-DATA-202', 'elsewhere/ann.json'),
    (dict(ann_file='train.json'), None, 'VIS-DATA-202', 'train.json'),
    (dict(ann_file=''), None, 'VIS-DATA-202', ''),
    ({}, lambda root: (root / 'ann.json').write_text(json.dumps(EMPTY)), 'VIS-DATA-205',
     'ann.json'),
    (dict(data_prefix=dict(img='frames')), None, 'VIS-DATA-208', 'frames/v0/000000.png'),
    (dict(data_prefix=dict(img='img/v0')), None, 'VIS-DATA-208', 'img/v0/v0/000000.png'),
    ({}, lambda root: shutil.rmtree(root / 'img'), 'VIS-DATA-208', 'img/v0/000000.png'),
    ({}, lambda root: shutil.rmtree(root / 'img' / 'v1'), 'VIS-DATA-208', 'img/v1/000000.png'),
])
def test_data_that_is_not_where_the_config_says(root, options, edit_files, code, tried):
    """The path as it was tried, the key of the config, and where the set's command stands."""
    if edit_files:
        edit_files(root)
    with pytest.raises(VisionError, match=code) as caught:
        DATASETS.build(config(root, **options))
    assert tried in caught.value.render() and caught.value.exit_code == 4
    if code != 'VIS-DATA-205':
        assert 'data_root' in caught.value.do and 'datasets/README.md' in caught.value.do


def test_options_that_nobody_knows_are_refused(root):
    with pytest.raises(VisionError, match='data_prefix'):
        DATASETS.build(config(root, data_prefix=dict(img_path='img')))
    with pytest.raises(VisionError, match='on_bad_image'):
        DATASETS.build(config(root, on_bad_image='ignore'))


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_a_cut_image_stops_by_default(root):
    cut(root / 'img' / 'v0' / '000000.png')
    data = DATASETS.build(config(root, pipeline=FRAMES, on_bad_image='skip', test_mode=True))
    with pytest.raises(VisionError, match='PNG without end') as caught:
        data[0, 0]
    assert caught.value.code == 'VIS-DATA-210'


class ReadAll:
    """What a training transform of whole videos does: read the images of all frames."""

    def __call__(self, video: dict) -> dict:
        return dict(video_id=video['video_id'], size=sum(
            read_image(frame['img_path']).size for frame in video['images']))


def test_skipping_draws_another_video_and_counts_until_the_limit(root):
    cut(root / 'img' / 'v0' / '000000.png')
    data = DATASETS.build(config(root, pipeline=[ReadAll()], on_bad_image='skip'))
    assert data[0]['video_id'] == 2 and len(data.skipped_images) == 1
    cut(root / 'img' / 'v1' / '000000.png')
    with pytest.raises(VisionError, match='2 images are broken, the limit is 1') as caught:
        for _ in range(9):
            data[1]
    assert caught.value.code == 'VIS-DATA-209' and 'v0/000000.png' in caught.value.where


def test_an_image_of_another_size_is_refused(root):
    cv2.imwrite(str(root / 'img' / 'v0' / '000000.png'), np.zeros((24, 32, 3), np.uint8))
    data = DATASETS.build(config(root, pipeline=FRAMES, test_mode=True))
    with pytest.raises(VisionError, match='is 32x24, its annotation says 64x48'):
        data[0, 0]


def test_a_whole_video_in_the_frame_pipeline_is_refused(root):
    data = DATASETS.build(config(root, pipeline=FRAMES, test_mode=True))
    with pytest.raises(VisionError, match='whole video') as caught:
        data[0]
    assert 'VideoFrameSampler' in caught.value.do


def test_undecodable_and_absent_files_are_named(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'hello')
    for name, text in (('a.jpg', 'cannot be decoded'), ('b.jpg', 'No such file')):
        with pytest.raises(VisionError, match=text):
            read_image(tmp_path / name)


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp'])
def test_mutated_files_give_an_image_or_our_error_and_cut_ones_never_an_image(tmp_path, ending):
    rng = np.random.default_rng(0)
    data = cv2.imencode(ending, rng.integers(0, 255, (30, 40, 3), np.uint8))[1].tobytes()
    path = tmp_path / f'a{ending}'
    num_refused = 0
    for _ in range(150):
        mutated = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            assert read_image(path).dtype == np.uint8
        except VisionError as error:
            num_refused += error.code == 'VIS-DATA-210'
        path.write_bytes(data[:rng.integers(len(data) - 12)])
        with pytest.raises(VisionError):
            read_image(path)
    assert num_refused > 0


@pytest.fixture
def stills(root):
    """Three still images with a box of dog each, the last also one of another class."""
    (root / 'det').mkdir()
    data = dict(categories=[dict(id=i + 1, name=name) for i, name in
                            enumerate((*CLASSES, 'other'))], images=[], annotations=[])
    for i in range(3):
        cv2.imwrite(str(root / 'det' / f'{i}.png'), np.full((40, 60, 3), 200 + i, np.uint8))
        data['images'].append(dict(id=i + 1, file_name=f'{i}.png', height=40, width=60))
        for category in (2, 3)[:1 + i // 2]:
            data['annotations'].append(dict(
                id=len(data['annotations']) + 1, image_id=i + 1, category_id=category,
                bbox=[3, 3, 20, 20], area=400, iscrowd=0))
    (root / 'det.json').write_text(json.dumps(data))
    return dict(type='mmdet.CocoDataset', data_root=str(root), ann_file='det.json',
                data_prefix=dict(img='det/'), metainfo=dict(classes=CLASSES), pipeline=[])


def mix_config(root, stills, **options) -> dict:
    return dict(type='MixedVideoImageDataset', videos=[config(root)], images=[stills],
                pipeline=STILL) | options


def mixed(root, stills, **options):
    return DATASETS.build(mix_config(root, stills, **options))


def test_mixing_takes_training_frames_then_images(root, stills):
    data = mixed(root, stills)
    assert len(data) == 2 + 2 + 3
    values = [int(data[i]['inputs'].unique()[0]) for i in range(len(data))]
    assert values == [0, 20, 50, 70, 200, 201, 202]
    assert data[6]['data_samples'].gt_instances.labels.tolist() == [1]  # "other" is left out
    assert data.get_cat_ids(0) == [1, 0] and data.get_data_info(5)['width'] == 60


def test_mixing_all_frames_keeps_or_leaves_out_empty_ones(root, stills):
    assert len(mixed(root, stills, frames='all')) == 2 + 4 + 3
    assert len(mixed(root, stills, frames='all', filter_empty=False)) == 3 + 5 + 3


def test_a_mix_works_in_wrappers_and_loaders(root, stills):
    both = ConcatDataset([mix_config(root, stills), mix_config(root, stills)])
    loader = DataLoader(both, batch_size=7, collate_fn=pseudo_collate, num_workers=2)
    batches = [[int(x.unique()[0]) for x in batch['inputs']] for batch in loader]
    assert len(both) == 14 and batches[0] == batches[1] == [0, 20, 50, 70, 200, 201, 202]


def test_a_mix_of_different_classes_or_without_samples_is_refused(root, stills):
    with pytest.raises(VisionError, match='is read with classes') as caught:
        mixed(root, stills | dict(metainfo=dict(classes=('dog', 'cat'))))
    assert caught.value.code == 'VIS-CONFIG-214'
    with pytest.raises(VisionError, match='not in the file'):
        mixed(root, stills | dict(metainfo=dict(classes=('cat', 'dgo'))))
    edit(root, lambda data: [row.update(is_vid_train_frame=False) for row in data['images']])
    with pytest.raises(VisionError, match='no sample'):
        mixed(root, stills)
    with pytest.raises(ValueError, match="'train' or 'all'"):
        mixed(root, stills, frames='some')


def test_a_mix_skips_broken_images_up_to_the_limit(root, stills):
    cut(root / 'det' / '0.png')
    with pytest.raises(VisionError, match='PNG without end'):
        mixed(root, stills)[4]
    data = mixed(root, stills, on_bad_image='skip')
    assert data[4]['inputs'].shape[0] == 3 and len(data.skipped_images) == 1


def test_a_pipeline_that_gives_nothing_ends_with_an_error(root, stills):
    with pytest.raises(VisionError, match='4 samples in a row'):
        mixed(root, stills, pipeline=[lambda info: None], max_refetch=3)[0]


def test_mmdets_own_data_set_reads_our_file(root):
    data = DATASETS.build(dict(type='mmdet.CocoDataset', data_root=str(root), ann_file='ann.json',
                               data_prefix=dict(img='img/'), metainfo=dict(classes=CLASSES),
                               pipeline=[]))
    assert len(data) == 8
    assert data[0]['instances'][0]['bbox'] == [0, 2, 20, 30]


def test_transforms_are_registered():
    assert TRANSFORMS.build(dict(type='PackVideoFrame', meta_keys=('img_id',))).meta_keys == (
        'img_id',)
