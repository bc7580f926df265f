import logging

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from vision.classify.mm.datasets import ImageFolder, ImageNet1k
from vision.common.core.errors import VisionError, run_cli
from vision.registry import DATASETS, TRANSFORMS

PIPELINE = [dict(type='vision.ReadImage'), dict(type='vision.PackInputs')]


def build(root, **options):
    return DATASETS.build(dict(type='ImageFolder', data_root=str(root), data_prefix='train',
                               pipeline=PIPELINE, **options))


def test_items_carry_image_and_label(colour_folder):
    dataset = build(colour_folder)
    assert len(dataset) == 24 and dataset.metainfo['classes'] == ('blue', 'green', 'red')
    item = dataset[9]
    stored = cv2.imread(item['data_samples'].img_path)
    assert item['inputs'].shape == (3, 40, 52) and item['data_samples'].gt_label.tolist() == [1]
    assert np.array_equal(item['inputs'].numpy(), stored.transpose(2, 0, 1))
    assert dataset.get_labels().tolist() == [0] * 8 + [1] * 8 + [2] * 8


def damage(colour_folder, name='green/1.png'):
    path = colour_folder / 'train' / name
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_a_cut_image_stops_and_is_named(colour_folder):
    path = damage(colour_folder)
    dataset = build(colour_folder)
    with pytest.raises(VisionError, match='VIS-DATA-210') as caught:
        dataset[9]
    assert str(path) in str(caught.value) and dataset[8]['data_samples'].gt_label == 1


def test_a_cut_image_is_named_out_of_a_loader_process_too(colour_folder, capsys):
    """Torch hands our error over as text inside a RuntimeError; commands make it one block."""
    path = damage(colour_folder)
    loader = DataLoader(build(colour_folder), batch_size=4, num_workers=1, collate_fn=list)
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: len(list(loader)))
    block = capsys.readouterr().err
    assert caught.value.code == 4 and block.startswith('ERROR VIS-DATA-210')
    assert str(path) in block and 'Do: get this file again' in block
    assert 'Traceback' not in block
    with pytest.raises(RuntimeError, match='something else'):
        run_cli(lambda: (_ for _ in ()).throw(RuntimeError('something else')))


def test_skipping_takes_the_next_image_and_counts_each_file_once(colour_folder, caplog):
    path = damage(colour_folder)
    dataset = build(colour_folder, broken='skip')
    with caplog.at_level(logging.WARNING):
        items = [dataset[9] for _ in range(3)]
    assert {item['data_samples'].img_path for item in items} == {dataset[10]['data_samples']
                                                                 .img_path}
    assert dataset.num_broken == 1 and dataset.broken_paths == [str(path)]


def test_nothing_readable_is_an_error_even_when_skipping(colour_folder):
    for path in (colour_folder / 'train').rglob('*.png'):
        path.write_bytes(b'')
    dataset = build(colour_folder, broken='skip')
    with pytest.raises(VisionError, match='VIS-DATA-1213'):
        dataset[0]
    assert dataset.num_broken == 24


def test_other_options_are_refused(colour_folder):
    with pytest.raises(VisionError, match='VIS-CONFIG-1211'):
        build(colour_folder, broken='ignore')
    with pytest.raises(VisionError, match='VIS-CONFIG-1211[^$]*with test_mode'):
        build(colour_folder, broken='skip', test_mode=True)
    with pytest.raises(VisionError, match='VIS-CONFIG-1214'):
        ImageNet1k(str(colour_folder), 'test')


@pytest.mark.parametrize('option', [dict(ann_file='list.txt'), dict(filter_cfg=dict(min_size=3)),
                                    dict(max_refetch=3)])
def test_options_of_mmengine_that_would_do_nothing_are_refused(colour_folder, option):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1811[^$]*{next(iter(option))}'):
        build(colour_folder, **option)


def test_imagenet_from_a_list_and_from_folders_agree(colour_folder):
    by_folder = ImageNet1k(str(colour_folder), 'val')
    flat = colour_folder / 'flat'
    flat.mkdir()
    lines = []
    for index in range(len(by_folder)):
        info = by_folder.get_data_info(index)
        (flat / f'{index}.png').write_bytes(open(info['img_path'], 'rb').read())
        lines.append(f'{index}.png {info["gt_label"]}\n')
    (colour_folder / 'val.txt').write_text(''.join(lines))
    listed = ImageNet1k(str(colour_folder), 'val', data_prefix='flat', ann_file='val.txt')
    assert listed.metainfo == by_folder.metainfo
    assert listed.get_labels().tolist() == by_folder.get_labels().tolist()
    assert listed.get_data_info(4)['img_path'] == str(flat / '4.png')


def test_a_prefix_may_be_a_dict_as_mmengine_has_it(colour_folder):
    dataset = ImageFolder(str(colour_folder), dict(img_path='val'))
    assert len(dataset) == 9


def test_papers_test_view():
    image = np.arange(100 * 200 * 3, dtype=np.int64).reshape(100, 200, 3) % 251
    results = dict(img=image.astype(np.uint8), img_path='x', gt_label=0)
    for config in (dict(type='Resize', scale=(378, 378), keep_ratio=False),
                   dict(type='CenterCrop', crop_size=(331, 331)), dict(type='PackInputs')):
        results = TRANSFORMS.build(config)(results)
    resized = cv2.resize(image.astype(np.uint8), (378, 378))
    # (378 - 331) / 2 = 23.5: mmcv rounds it to 24 (half to even).
    assert np.array_equal(results['inputs'].numpy(),
                          resized[24:355, 24:355].transpose(2, 0, 1))


def test_ten_crops_are_five_and_their_mirror_images():
    image = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    results = TRANSFORMS.build(dict(type='MultiCrop', crop_size=16))(dict(img=image))
    crops = results['img']
    assert crops.shape == (10, 16, 16, 3) and results['num_crops'] == 10
    assert np.array_equal(crops[0], image[2:18, 4:20]) and np.array_equal(crops[1],
                                                                          image[:16, :16])
    assert np.array_equal(crops[5:], crops[:5, :, ::-1])
    packed = TRANSFORMS.build(dict(type='PackInputs'))(dict(results, gt_label=3))
    assert packed['inputs'].shape == (10, 3, 16, 16) and packed['data_samples'].num_crops == 10


def test_a_grey_image_has_one_channel():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    packed = TRANSFORMS.build(dict(type='PackInputs'))(dict(img=grey, gt_label=0))
    assert packed['inputs'].shape == (1, 4, 5) and packed['inputs'][0, 3, 4] == 19


def test_random_resized_crop_has_its_size():
    transform = TRANSFORMS.build(dict(type='RandomResizedCrop', scale=(24, 16)))
    image = np.full((50, 60, 3), 7, np.uint8)
    for _ in range(20):
        out = transform(dict(img=image))['img']
        assert out.shape == (16, 24, 3) and (out == 7).all()
