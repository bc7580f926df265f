"""The checker, the browser, and the sets that are made without a converter."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from scripts import load_script

from vision.cli.data_check import main as check
from vision.common.core.errors import VisionError
from vision.lattice.core.cocovid import check_cocovid, load_cocovid

ROOT = Path(__file__).resolve().parents[2]

browse = load_script('tools/browse_dataset.py').main
prepare_davis = load_script('datasets/davis_boxes/prepare.py').main
prepare_sprites = load_script('datasets/moving_sprites/prepare.py').main


def run(main: Callable[[list[str]], int], *args) -> int:
    return main([str(arg) for arg in args])


def image(path: Path, size=(64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((size[1], size[0], 3), np.uint8))


@pytest.fixture(scope='module')
def sprites(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('sprites') / 'moving_sprites'
    assert run(prepare_sprites, '--out', out, '--num-train', 2, '--num-val', 1,
               '--num-frames', 8, '--workers', 1) == 0
    return out


def test_moving_sprites_are_complete_and_in_order(sprites):
    for split, count in (('train', 2), ('val', 1)):
        file = sprites / 'annotations' / f'{split}.json'
        assert check_cocovid(json.loads(file.read_text())) == []
        assert run(check, file, '--images', sprites / split, '--decode', '--stats') == 0
        assert load_cocovid(file).num_frames == 8 * count
    assert not list(sprites.parent.glob('.moving*'))
    with pytest.raises(VisionError, match='exists already'):
        run(prepare_sprites, '--out', sprites)


def test_several_processes_give_the_same_files(sprites, tmp_path):
    command = [sys.executable, 'datasets/moving_sprites/prepare.py', '--out', str(tmp_path / 'b'),
               '--num-train', '2', '--num-val', '1', '--num-frames', '8', '--workers', '2']
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True,
                   env=dict(PYTHONPATH=str(ROOT), PATH='/usr/bin:/bin'))
    files = [path.relative_to(sprites) for path in sprites.rglob('*') if path.is_file()]
    assert len(files) == 26
    assert all((sprites / f).read_bytes() == (tmp_path / 'b' / f).read_bytes() for f in files)


def test_the_checker_names_file_id_and_rule_and_ends_with_4(sprites, tmp_path, capsys):
    data = json.loads((sprites / 'annotations' / 'val.json').read_text())
    data['annotations'][0]['bbox'] = [1, 2, float('nan'), 4]
    file = tmp_path / 'bad.json'
    file.write_text(json.dumps(data))
    assert run(check, file) == 4
    printed = capsys.readouterr().out
    assert f'ERROR {file}: annotations 1: box-nan: ' in printed and '1 errors' in printed


def test_the_checker_tells_notes_from_errors_and_looks_at_images(sprites, tmp_path, capsys):
    shutil.copytree(sprites / 'val', tmp_path / 'val')
    data = json.loads((sprites / 'annotations' / 'val.json').read_text())
    data['annotations'][0]['bbox'] = [-3, 2, 30, 40]
    file = tmp_path / 'note.json'
    file.write_text(json.dumps(data))
    assert run(check, file, '--images', tmp_path / 'val') == 0
    assert run(check, file, '--strict') == 4
    first, second = (tmp_path / 'val' / data['images'][i]['file_name'] for i in (0, 1))
    first.unlink()
    second.write_bytes(second.read_bytes()[:900])
    image(tmp_path / 'val' / data['images'][2]['file_name'], size=(32, 32))
    assert run(check, file, '--images', tmp_path / 'val') == 4
    assert 'missing-image: 1' in capsys.readouterr().out
    assert run(check, file, '--images', tmp_path / 'val', '--decode') == 4
    printed = capsys.readouterr().out
    assert 'broken-image: 2' in printed and 'image-size: 1' in printed


def test_a_sheet_that_cannot_be_written_is_refused_before_it_is_drawn(tmp_path):
    source = '--ann', tmp_path / 'none.json', '--images', tmp_path
    with pytest.raises(VisionError, match='VIS-INPUT-226'):
        run(browse, *source, '--sheet', tmp_path / 'a.txt')
    with pytest.raises(VisionError, match='VIS-ENV-109'):
        run(browse, *source, '--mp4', tmp_path)


def test_browse_draws_a_sheet_and_a_video(sprites, tmp_path):
    ann = ('--ann', sprites / 'annotations/train.json', '--images', sprites / 'train')
    assert run(browse, *ann, '--sheet', tmp_path / 'a' / 'sheet.png', '--columns', 3, '--mp4',
               tmp_path / 'a' / 'v.mp4', '--video', 'train_0001') == 0
    sheet = cv2.imread(str(tmp_path / 'a' / 'sheet.png'))
    assert sheet.shape == (480, 960, 3)
    with av.open(str(tmp_path / 'a' / 'v.mp4')) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264' and stream.codec_context.pix_fmt == 'yuv420p'
        assert sum(1 for _ in container.decode(stream)) == 8
    plain = cv2.imread(str(sprites / 'train' / 'train_0000' / '000000.jpg'))
    boxes = load_cocovid(sprites / 'annotations/train.json').videos[0].frame(0).boxes_xyxy
    changed = abs(sheet[:240, :320].astype(int) - plain).max(2) > 60
    x1, y1, x2, y2 = boxes[0].astype(int)
    assert changed[y1:y2, x1:x2].mean() > 0.05  # its frame is drawn where the box is


def test_browse_takes_a_config_and_refuses_what_is_not_there(sprites, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'val_dataloader = dict(dataset=dict(data_root={str(sprites)!r}, '
                      "ann_file='annotations/val.json', data_prefix=dict(img='val'), "
                      "metainfo=dict(classes=('ring', 'star'))))")
    assert run(browse, config, '--mode', 'annotations', '--sheet', tmp_path / 'a.jpg') == 0
    assert (tmp_path / 'a.jpg').exists()
    with pytest.raises(VisionError, match='no test_dataloader'):
        run(browse, config, '-m', 'annotations', '--split', 'test', '--sheet',
            tmp_path / 'a.jpg')
    with pytest.raises(VisionError, match="no video 'x'"):
        run(browse, config, '--mp4', tmp_path / 'a.mp4', '--video', 'x')
    with pytest.raises(SystemExit):
        run(browse, config, '--mode', 'annotations')


def test_browse_shows_training_samples_of_videos_and_of_their_frames(sprites, tmp_path, capsys,
                                                                    monkeypatch):
    monkeypatch.chdir(ROOT)
    names = 'lattice/lattice_frcnn-tiny_t8-s2', 'detectors/faster-rcnn_r18-tiny'
    for name, last in zip(names, ('middle', 'PackDetInputs'), strict=True):
        out = tmp_path / f'{last}.png'
        assert run(browse, ROOT / f'configs/{name}_moving-sprites.py', '-n', 2, '-m', 'pipeline',
                   '--sheet', out, '--output-dir', tmp_path / last, '--cfg-options',
                   f'train_dataloader.dataset.data_root={sprites}/') == 0
        assert f'-> {last}' in capsys.readouterr().out
        assert cv2.imread(str(out)).std() > 10
        assert len(list((tmp_path / last).glob('*.jpg'))) == 2
    with pytest.raises(VisionError, match='no val_dataloader'):
        run(browse, ROOT / 'configs/faces/mobilefacenet_ivf_folder.py', '--phase', 'val')


def test_davis_boxes_from_masks(tmp_path):
    for number in range(2):
        image(tmp_path / 'D/JPEGImages/480p/bear' / f'{number:05d}.jpg')
        mask = np.zeros((48, 64), np.uint8)
        mask[10:30, 20:40] = 255
        mask[0, 0] = 255  # a splinter
        path = tmp_path / 'D/Annotations/480p/bear' / f'{number:05d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), mask * (number == 0))
    assert run(prepare_davis, '--source', tmp_path / 'D', '--out', tmp_path / 'out') == 0
    data = load_cocovid(tmp_path / 'out' / 'annotations' / 'train.json')
    video = data.videos[0]
    assert video.frame(0).boxes_xyxy.tolist() == [[20, 10, 40, 30]]
    assert data.classes[video.frame(0).labels[0]] == 'bear' and not len(video.frame(1).labels)
    assert (tmp_path / 'out' / 'JPEGImages' / video.frame(1).file_name).is_file()
    with pytest.raises(VisionError, match='no sequence of DAVIS'):
        run(prepare_davis, '--source', tmp_path / 'nothing', '--out', tmp_path / 'other')
    assert not list(tmp_path.glob('*other*'))


@pytest.mark.parametrize('main', [check, browse], ids=['check', 'browse'])
def test_help_teaches(main, capsys):
    with pytest.raises(SystemExit) as caught:
        run(main, '--help')
    assert caught.value.code == 0 and 'Example' in capsys.readouterr().out
