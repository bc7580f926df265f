"""Every converter, and the prepare scripts that call them, on generated miniature trees."""

import json
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from scripts import load_script

from vision.cli import (
    data_from_ilsvrc_det,
    data_from_ilsvrc_vid,
    data_from_mot,
    data_from_video,
)
from vision.common.core.errors import VisionError
from vision.lattice.core.cocovid import load_cocovid
from vision.lattice.core.track_files import read_cvat_xml, read_mot_text, read_voc_xml

ROOT = Path(__file__).resolve().parents[2]


VID, DET = data_from_ilsvrc_vid.main, data_from_ilsvrc_det.main
MOT, OWN = data_from_mot.main, data_from_video.main
prepare_mot = load_script('datasets/mot/prepare.py').main
prepare_vid = load_script('datasets/imagenet_vid/prepare.py').main


def run(main: Callable[[list[str]], int], *args) -> int:
    return main([str(arg) for arg in args])


# ImageNet ----------------------------------------------------------------------------------------
def xml(path: Path, objects, *, size=(64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ''.join(
        f'<object>{f"<trackid>{track}</trackid>" if track is not None else ""}<name>{name}</name>'
        f'<bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin><ymax>{y2}</ymax><ymin>{y1}</ymin></bndbox>'
        f'<occluded>1</occluded><generated>0</generated></object>'
        for track, name, (x1, y1, x2, y2) in objects)
    path.write_text(f'<annotation><folder>f</folder><size><width>{size[0]}</width>'
                    f'<height>{size[1]}</height></size>{rows}</annotation>')


@pytest.fixture
def ilsvrc(tmp_path) -> Path:
    """Two training videos (20 and 2 frames), one of validation, four DET images."""
    vid = tmp_path / 'Annotations' / 'VID'
    dog, zebra, box = 'n02084071', 'n02391049', (2, 3, 30, 40)
    for frame in range(20):
        objects = [(0, dog, box), (1, zebra, (5, 5, 9, 9))] if frame != 4 else []
        xml(vid / f'train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000001/{frame:06d}.xml',
            objects)
    for frame in range(2):
        xml(vid / f'train/ILSVRC2015_VID_train_0001/ILSVRC2015_train_00000002/{frame:06d}.xml',
            [(0, dog, box), (5, dog, (7, 7, 7, 9))])
    for frame in range(3):
        xml(vid / f'val/ILSVRC2015_val_00000000/{frame:06d}.xml', [(3, zebra, box)])
    det = tmp_path / 'Annotations' / 'DET' / 'train' / 'ILSVRC2013_train'
    xml(det / 'n02084071/a.xml', [(None, dog, box), (None, 'n00000001', box)])
    xml(det / 'n02084071/b.xml', [(None, 'n00000001', box)])
    xml(det / 'extra/c.xml', [(None, zebra, box)])
    xml(det / 'extra/d.xml', [])
    return tmp_path


@pytest.mark.parametrize('nproc', [1, 2])
def test_vid_without_lists(ilsvrc, nproc, capsys):
    assert run(VID, '-i', ilsvrc, '-o', ilsvrc / 'out', '--nproc', nproc, '--stats') == 0
    train = load_cocovid(ilsvrc / 'out' / 'imagenet_vid_train.json')
    assert [len(video) for video in train.videos] == [20, 2] and len(train.classes) == 30
    first = train.videos[0]
    assert first.name == 'train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000001'
    assert first.frame(0).file_name == f'{first.name}/000000.JPEG'
    assert first.frame(0).boxes_xyxy.tolist() == [[2, 3, 30, 40], [5, 5, 9, 9]]
    assert first.frame(0).instance_ids.tolist() == [1, 2] and not len(first.frame(4).labels)
    assert train.videos[1].frame(1).instance_ids.tolist() == [3]  # track 0 of the next video
    chosen = [frame.frame_id for frame in first.frames if frame.is_vid_train_frame]
    assert chosen == [int((i + 0.5) * 20 / 15) for i in range(15)]
    val = load_cocovid(ilsvrc / 'out' / 'imagenet_vid_val.json')
    assert not any(frame.is_vid_train_frame for frame in val.videos[0].frames)
    raw = json.loads((ilsvrc / 'out' / 'imagenet_vid_train.json').read_text())
    assert raw['annotations'][0]['bbox'] == [2, 3, 28, 37]  # no + 1
    assert raw['annotations'][0]['occluded'] == 1 and raw['categories'][8]['name'] == 'dog'
    assert raw['categories'][8]['encode_name'] == 'n02084071'
    printed = capsys.readouterr().out
    assert '2 boxes without area left out' in printed and 'zebra 19' in printed


def test_vid_follows_the_lists(ilsvrc):
    lists = ilsvrc / 'Lists'
    lists.mkdir()
    name = 'ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000001'
    (lists / 'VID_train_15frames.txt').write_text(f'train/{name} 1 10 20\n{name} 1 20 20\n')
    (lists / 'VID_val_videos.txt').write_text('val/ILSVRC2015_val_00000000 1 0 3\n')
    assert run(VID, '-i', ilsvrc, '-o', ilsvrc / 'out') == 0
    train = load_cocovid(ilsvrc / 'out' / 'imagenet_vid_train.json')
    assert [f.frame_id for f in train.videos[0].frames if f.is_vid_train_frame] == [9, 19]
    (lists / 'VID_val_videos.txt').write_text('val/ILSVRC2015_val_00000000 1 0 4\n')
    with pytest.raises(VisionError, match='says 4 frames'):
        run(VID, '-i', ilsvrc, '-o', ilsvrc / 'out', '--splits', 'val')
    (lists / 'VID_val_videos.txt').write_text('val/ILSVRC2015_val_00000000 1\n')
    with pytest.raises(VisionError, match='line 1'):
        run(VID, '-i', ilsvrc, '-o', ilsvrc / 'out', '--splits', 'val')


def test_vid_refuses_gaps_strange_classes_cut_xml_and_an_empty_tree(ilsvrc):
    folder = ilsvrc / 'Annotations' / 'VID' / 'val' / 'ILSVRC2015_val_00000000'
    args = ('-i', ilsvrc, '-o', ilsvrc / 'out', '--splits', 'val')
    xml(folder / '000002.xml', [(0, 'n99999999', (1, 1, 2, 2))])
    with pytest.raises(VisionError, match='n99999999'):
        run(VID, *args)
    (folder / '000002.xml').write_text('<annotation><size>')
    with pytest.raises(VisionError, match='000002.xml cannot be read'):
        run(VID, *args)
    (folder / '000001.xml').unlink()
    with pytest.raises(VisionError, match='gap: 000002.xml'):
        run(VID, *args)
    with pytest.raises(VisionError, match='no xml under'):
        run(VID, '-i', ilsvrc / 'nothing', '-o', ilsvrc / 'out')
    assert not (ilsvrc / 'out').exists()


def test_det_with_and_without_the_list(ilsvrc):
    assert run(DET, '-i', ilsvrc, '-o', ilsvrc / 'out', '--stats') == 0
    file = ilsvrc / 'out' / 'imagenet_det_30plus1cls.json'
    data = json.loads(file.read_text())
    names = [image['file_name'] for image in data['images']]
    assert names == ['train/ILSVRC2013_train/extra/c.JPEG',
                     'train/ILSVRC2013_train/n02084071/a.JPEG']
    assert [row['category_id'] for row in data['annotations']] == [30, 9, 31]
    assert len(data['categories']) == 31 and 'video_id' not in data['images'][0]
    (ilsvrc / 'Lists').mkdir()
    lines = [f'train/ILSVRC2013_train/n02084071/{name} 1' for name in 'aba']
    (ilsvrc / 'Lists' / 'DET_train_30classes.txt').write_text('\n'.join(lines))
    assert run(DET, '-i', ilsvrc, '-o', ilsvrc / 'out', '--nproc', 2) == 0
    data = json.loads(file.read_text())
    assert [image['file_name'][-6:] for image in data['images']] == ['a.JPEG', 'b.JPEG']


@pytest.mark.parametrize('name, tool', [('VID_train_15frames.txt', VID),
                                        ('DET_train_30classes.txt', DET)])
def test_lists_that_are_no_text_are_named(ilsvrc, name, tool):
    (ilsvrc / 'Lists').mkdir()
    (ilsvrc / 'Lists' / name).write_bytes(b'train/a\xff 1 1 1\n')
    with pytest.raises(VisionError, match=f'VIS-DATA-239.*{name}'):
        run(tool, '-i', ilsvrc, '-o', ilsvrc / 'out')


def test_imagenet_prepare_is_all_or_nothing(ilsvrc):
    prepare = (prepare_vid, '--root', ilsvrc, '--nproc', 1)
    assert run(*prepare) == 0
    assert sorted(path.name for path in (ilsvrc / 'annotations').iterdir()) == [
        'imagenet_det_30plus1cls.json', 'imagenet_vid_train.json', 'imagenet_vid_val.json']
    with pytest.raises(VisionError, match='exists already'):
        run(*prepare)
    shutil.rmtree(ilsvrc / 'annotations')
    shutil.rmtree(ilsvrc / 'Annotations' / 'DET')
    with pytest.raises(VisionError, match='VIS-DATA-219'):
        run(*prepare)
    assert not (ilsvrc / 'annotations').exists()
    assert not list(ilsvrc.glob('.annotations-*'))


# MOT ---------------------------------------------------------------------------------------------
def image(path: Path, value: int = 0, size=(64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), value, np.uint8))


@pytest.fixture
def mot(tmp_path) -> Path:
    """One training sequence of four frames in MOT17's form, one of testing."""
    for split, length in (('train', 4), ('test', 2)):
        folder = tmp_path / 'MOT' / split / 'S1'
        for frame in range(length):
            image(folder / 'img1' / f'{frame + 1:06d}.jpg', 40 * frame)
        (folder / 'seqinfo.ini').write_text(
            f'[Sequence]\nname=S1\nimDir=img1\nframeRate=30\nseqLength={length}\nimWidth=64\n'
            'imHeight=48\nimExt=.jpg\n')
    (folder.parents[1] / 'train' / 'S1' / 'gt').mkdir()
    rows = [(1, 7, 5, 6, 10, 20, 1, 1, 1.0), (2, 7, 6, 6, 10, 20, 1, 1, 0.5),
            (4, 7, 8, 6, 10, 20, 1, 1, 1.0), (4, 2, 50, 6, 30, 20, 1, 1, 1.0),
            (1, 3, 1, 1, 9, 9, 0, 3, 1.0), (1, 4, 1, 1, 9, 9, 0, 1, 1.0),
            (1, 5, 1, 1, 9, 9, 1, 8, 1.0)]
    (tmp_path / 'MOT' / 'train' / 'S1' / 'gt' / 'gt.txt').write_text(
        '\n'.join(','.join(map(str, row)) for row in rows))
    return tmp_path / 'MOT'


def test_mot_halves_test_part_and_what_is_left_out(mot, capsys):
    out = mot / 'annotations'
    assert run(MOT, '-i', mot, '-o', out, '--splits', 'train', 'test', 'half-train',
               'half-val', '--stats') == 0
    train = load_cocovid(out / 'train_cocoformat.json')
    video = train.videos[0]
    assert train.classes == ('pedestrian',) and video.record['fps'] == 30
    assert [len(frame.labels) for frame in video.frames] == [1, 1, 0, 2]
    assert video.frame(0).file_name == 'train/S1/img1/000001.jpg'
    assert video.frame(0).boxes_xyxy.tolist() == [[5, 6, 15, 26]]
    assert video.frame(3).instance_ids.tolist() == [1, 2] and train.report['box-over-edge'] == 1
    half = load_cocovid(out / 'half-val_cocoformat.json').videos[0]
    assert [frame.frame_id for frame in half.frames] == [0, 1]
    assert half.frame(1).file_name.endswith('000004.jpg')
    test = load_cocovid(out / 'test_cocoformat.json').videos[0]
    assert not any(frame.is_labelled for frame in test.frames)
    assert '3 rows of other classes or with flag 0 left out' in capsys.readouterr().out


def test_mot_all_classes_keeps_the_vehicles_that_are_flagged_zero(mot):
    assert run(MOT, '-i', mot, '-o', mot / 'out', '--all-classes') == 0
    data = load_cocovid(mot / 'out' / 'train_cocoformat.json')
    assert data.classes[2] == 'car' and data.videos[0].labels.tolist() == [0, 2, 0, 0, 0]


def test_mot_refuses_gaps_boxes_beyond_the_end_and_broken_files(mot):
    folder, args = mot / 'train' / 'S1', ('-i', mot, '-o', mot / 'out')
    gt = folder / 'gt' / 'gt.txt'
    gt.write_text('9,1,1,1,5,5,1,1,1')
    with pytest.raises(VisionError, match='speaks of frame 9'):
        run(MOT, *args)
    gt.write_text('1,1,1,1,five,5,1,1,1')
    with pytest.raises(VisionError, match='gt.txt cannot be read'):
        run(MOT, *args)
    gt.write_text('1,1,1,nan,5,5,1,1,1')
    with pytest.raises(VisionError, match='row 1: 6 to 10 numbers'):
        run(MOT, *args)
    (folder / 'img1' / '000002.jpg').unlink()
    with pytest.raises(VisionError, match='gap') as caught:
        run(MOT, *args)
    assert '000003.jpg follows number 1' in caught.value.what
    (folder / 'seqinfo.ini').write_text('[Sequence]\nimWidth=64\n')
    with pytest.raises(VisionError, match='seqinfo.ini cannot be read'):
        run(MOT, *args)
    with pytest.raises(VisionError, match='no sequence for test'):
        run(MOT, '-i', mot / 'train', '-o', mot / 'out', '--splits', 'test')


def test_mot_real_layout(shared_data, tmp_path):
    root = shared_data / 'mot15-mini'
    if not root.is_dir():
        pytest.skip(f'{root} is not there')
    assert run(MOT, '-i', root, '-o', tmp_path, '--class-name', 'person') == 0
    ours = load_cocovid(tmp_path / 'train_cocoformat.json')
    for split in ('train', 'val'):
        theirs = load_cocovid(root / 'annotations' / f'{split}.json').videos[0]
        mine = next(video for video in ours.videos if video.name == theirs.name)
        assert len(mine) == len(theirs)
        for a, b in zip(mine.frames, theirs.frames, strict=True):
            np.testing.assert_allclose(np.sort(a.boxes_xyxy, 0), np.sort(b.boxes_xyxy, 0),
                                       atol=0.51)


def test_mot_prepare_unzips_and_ends_without_a_trace_on_error(mot, tmp_path):
    archive = shutil.make_archive(str(tmp_path / 'MOT17'), 'zip', mot.parent, 'MOT')
    assert run(prepare_mot, '--source', archive, '--out', tmp_path / 'data') == 0
    assert sorted(path.name for path in (tmp_path / 'data').iterdir()) == [
        'annotations', 'test', 'train']
    assert load_cocovid(tmp_path / 'data/annotations/half-train_cocoformat.json').num_frames == 2
    Path(archive).write_bytes(Path(archive).read_bytes()[:200])
    with pytest.raises(VisionError, match='cannot be unpacked'):
        run(prepare_mot, '--source', archive, '--out', tmp_path / 'again')
    assert not list(tmp_path.glob('*again*')) and not list(tmp_path.glob('.again*'))


# One's own videos --------------------------------------------------------------------------------
def mp4(path: Path, num_frames: int = 12) -> None:
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for number in range(num_frames):
            pixels = np.full((48, 64, 3), 20 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format='bgr24')))
        container.mux(stream.encode())


CVAT = '''<annotations><version>1.1</version>
<track id="0" label="dog">
 <box frame="2" outside="0" occluded="0" keyframe="1" xtl="10" ytl="10" xbr="20" ybr="20"/>
 <box frame="6" outside="0" occluded="1" keyframe="1" xtl="18" ytl="10" xbr="28" ybr="20"/>
 <box frame="7" outside="1" occluded="0" keyframe="1" xtl="18" ytl="10" xbr="28" ybr="20"/>
 <box frame="9" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"/>
</track>
<track id="1" label="cat">
 <box frame="0" outside="0" occluded="0" keyframe="1" xtl="30" ytl="10" xbr="40" ybr="20"/>
</track></annotations>'''


def test_cvat_tracks_move_between_keyframes_and_pause_outside(tmp_path):
    (tmp_path / 'a.xml').write_text(CVAT)
    dog, cat = read_cvat_xml(tmp_path / 'a.xml')
    assert sorted(dog.boxes) == [2, 3, 4, 5, 6, 9] and dog.occluded == {6}
    assert dog.boxes[4] == (14, 10, 24, 20) and dog.boxes[9] == (1, 1, 9, 9)
    assert sorted(cat.boxes) == [0]


def test_an_mp4_with_cvat_tracks(tmp_path, capsys):
    mp4(tmp_path / 'clip.mp4')
    (tmp_path / 'clip.xml').write_text(CVAT)
    out = tmp_path / 'out'
    assert run(OWN, tmp_path / 'clip.mp4', '-a', tmp_path / 'clip.xml', '-o', out, '--stats') == 0
    data = load_cocovid(out / 'annotations.json')
    assert data.classes == ('cat', 'dog') and len(data.videos[0]) == 12
    assert data.videos[0].record['fps'] == 10
    assert data.videos[0].frame(4).boxes_xyxy.tolist() == [[14, 10, 24, 20]]
    pixels = cv2.imread(str(out / data.videos[0].frame(6).file_name))
    assert pixels.shape == (48, 64, 3) and abs(pixels.mean() - 120) < 4
    assert 'track_gaps: 1' in capsys.readouterr().out
    with pytest.raises(VisionError, match='exists already'):
        run(OWN, tmp_path / 'clip.mp4', '-o', out)


def test_a_frame_folder_with_mot_text_and_one_without_labels(tmp_path, capsys):
    for number in range(3, 6):
        image(tmp_path / 'frames' / f'img_{number}.png', number)
    (tmp_path / 'a.txt').write_text('1,4,1,2,10,10,1,2,0.4\n3,4,1,2,10,10,1,2,1\n'
                                    '2,4,1,2,10,10,0,2,1\n')
    out = tmp_path / 'out'
    assert run(OWN, tmp_path / 'frames', '-a', tmp_path / 'a.txt', '--classes', 'cat', 'dog',
               '-o', out) == 0
    data = load_cocovid(out / 'annotations.json')
    assert [len(frame.labels) for frame in data.videos[0].frames] == [1, 0, 1]
    assert data.videos[0].labels.tolist() == [1, 1]
    assert '1 rows with flag 0 left out' in capsys.readouterr().out
    copied = (out / data.videos[0].frame(0).file_name).read_bytes()
    assert copied == (tmp_path / 'frames' / 'img_3.png').read_bytes()
    assert run(OWN, tmp_path / 'frames', '-o', tmp_path / 'plain') == 0
    plain = load_cocovid(tmp_path / 'plain' / 'annotations.json')
    assert not any(frame.is_labelled for frame in plain.videos[0].frames)


def test_own_videos_bad_input_leaves_nothing_behind(tmp_path):
    mp4(tmp_path / 'clip.mp4', 60)
    out = tmp_path / 'out'

    def refused(match: str, *args) -> None:
        with pytest.raises(VisionError, match=match):
            run(OWN, *args, '-o', out)
        assert not out.exists() and not list(tmp_path.glob('.out-*'))

    (tmp_path / 'a.txt').write_text('99,1,1,1,5,5,1,1,1')
    refused('box in frame 98', tmp_path / 'clip.mp4', '-a', tmp_path / 'a.txt', '--classes', 'a')
    refused('class 1, --classes names 0', tmp_path / 'clip.mp4', '-a', tmp_path / 'a.txt')
    (tmp_path / 'a.txt').write_text('1,1,1,1,5,5,1,1,1\n1,1,2,2,5,5,1,1,1')
    refused('id 1 twice', tmp_path / 'clip.mp4', '-a', tmp_path / 'a.txt', '--classes', 'a')
    (tmp_path / 'a.xml').write_text(CVAT)
    refused("label 'cat'|label 'dog'", tmp_path / 'clip.mp4', '-a', tmp_path / 'a.xml',
            '--classes', 'bird')
    (tmp_path / 'a.txt').write_text('1,1,90,1,5,5,1,1,1')
    refused('box-outside', tmp_path / 'clip.mp4', '-a', tmp_path / 'a.txt', '--classes', 'a')
    refused('stops after 0 frames', tmp_path / 'none.mp4')
    cut = tmp_path / 'cut.mp4'
    cut.write_bytes((tmp_path / 'clip.mp4').read_bytes()[:-400])
    refused('cut.mp4 (stops|gives)', cut)
    image(tmp_path / 'frames' / '1.png')
    image(tmp_path / 'frames' / '3.png')
    refused('gap', tmp_path / 'frames')
    (tmp_path / 'empty').mkdir()
    refused('no image', tmp_path / 'empty')


# Configs -----------------------------------------------------------------------------------------
def loader(name: str, split: str, root: Path):
    """The data loader of a config, with its data under ``root`` and no worker processes."""
    from mmengine.config import Config
    from mmengine.runner import Runner
    text = (ROOT / 'configs' / '_base_' / 'datasets' / f'{name}.py').read_text()
    old = re.search(r"^data_root = '(.*)'$", text, re.M)[1]
    config = Config.fromstring(text.replace(old, f'{root}/'), '.py')[f'{split}_dataloader']
    config.update(num_workers=0, persistent_workers=False)
    init_default_scope('vision')
    return Runner.build_dataloader(config, seed=0)


def test_the_config_of_imagenet_vid_trains_on_the_mix_and_tests_frames(ilsvrc):
    assert run(prepare_vid, '--root', ilsvrc, '--nproc', 1) == 0
    for path in (ilsvrc / 'Annotations').rglob('*.xml'):
        image(ilsvrc / 'Data' / path.relative_to(ilsvrc / 'Annotations').with_suffix('.jpg'))
    for path in list((ilsvrc / 'Data').rglob('*.jpg')):
        path.rename(path.with_suffix('.JPEG'))
    train = loader('imagenet_vid', 'train', ilsvrc)
    # 15 frames of the long video, less the empty one if chosen; both of the short one; 2 images.
    long = sum(frame != 4 for frame in (int((i + 0.5) * 20 / 15) for i in range(15)))
    assert len(train.dataset) == long + 2 + 2
    batch = next(iter(train))
    assert batch['inputs'][0].shape[0] == 3 and len(batch['data_samples'][0].gt_instances)
    frames = [sample.frame_id for batch in loader('imagenet_vid', 'val', ilsvrc)
              for sample in batch['data_samples']]
    assert frames == [0, 1, 2]


def test_the_config_of_mot_reads_the_converted_halves(mot):
    assert run(MOT, '-i', mot, '-o', mot / 'annotations', '--splits', 'half-train',
               'half-val') == 0
    assert [len(loader('mot', split, mot)) for split in ('train', 'val')] == [1, 2]
    train = loader('mot', 'train', mot)
    assert list(next(iter(train))['video_length']) == [2]
    assert train.dataset[0]['images'][1]['bboxes'].tolist() == [[6, 6, 16, 26]]


# Readers and help --------------------------------------------------------------------------------
def test_ten_columns_are_mot15(tmp_path):
    (tmp_path / 'gt.txt').write_text('1,2,3,4,5,6,1,-4.1,-7.3,0\n')
    assert read_mot_text(tmp_path / 'gt.txt').tolist() == [[1, 2, 3, 4, 5, 6, 1, 1, 1]]


def test_readers_name_files_that_are_not_there(tmp_path):
    for read in (read_voc_xml, read_mot_text, read_cvat_xml):
        with pytest.raises(VisionError, match='is not there') as caught:
            read(tmp_path / 'none')
        assert caught.value.code == 'VIS-DATA-229'


@pytest.mark.parametrize('main', [VID, DET, MOT, OWN], ids=lambda main: main.__module__)
def test_help_teaches(main, capsys):
    with pytest.raises(SystemExit) as caught:
        run(main, '--help')
    assert caught.value.code == 0 and 'Example' in capsys.readouterr().out
