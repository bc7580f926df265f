"""tools/test.py as the README calls it, on a generated CocoVID set and a lattice over blobs."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vision.common.core.errors import VisionError

LENGTHS = (1, 6, 11)  # a video of one frame, one shorter and one longer than a keyframe interval
SIDE, HEIGHT, WIDTH = 14, 48, 96
CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=['blob_parts'], allow_failed_imports=False)
model = dict(type='LatticeDetector', detector=dict(type='BlobDetector'), num_stages=1,
             keyframes=dict(type='UniformKeyframes', gap_frames=4))
test_dataloader = dict(
    batch_size={batch_size}, num_workers=0, sampler=dict(type='VideoFrameSampler'),
    dataset=dict(type='CocoVideoDataset', data_root={root!r}, ann_file='val.json',
                 data_prefix=dict(img='val/'), metainfo=dict(classes=('blob',)), test_mode=True,
                 pipeline=[dict(type='LoadVideoFrame'), dict(type='PackVideoFrame')]))
test_evaluator = [dict(type='VIDMetric', protocol='coco'), dict(type='SeenFrames')]
test_cfg = dict(type='TestLoop')
val_dataloader, val_evaluator, val_cfg = test_dataloader, test_evaluator, dict(type='ValLoop')
"""
PARTS = '''
import numpy as np
from mmengine.evaluator import BaseMetric
from scipy import ndimage
from vision.lattice.core.structures import FrameBoxes
from vision.registry import METRICS, MODELS


@MODELS.register_module(force=True)
class BlobDetector:
    """Bright connected regions."""
    classes = ('blob',)

    def detect(self, image_bgr):
        blobs, _ = ndimage.label(image_bgr[..., 2] > 120)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(blobs)]
        return FrameBoxes(np.array(boxes).reshape(-1, 4), np.full(len(boxes), 0.9),
                          np.zeros(len(boxes)))


@METRICS.register_module(force=True)
class SeenFrames(BaseMetric):
    """How many frames came, how many different ones, and how many with one box."""
    default_prefix = 'seen'

    def process(self, data_batch, data_samples):
        self.results += [(s['video_id'], s['frame_id'], len(s['pred_instances']['scores']))
                         for s in data_samples]

    def evaluate(self, size):  # not cut to the number of videos
        rows, self.results = list(self.results), []
        return {'seen/frames': len(rows), 'seen/different': len({row[:2] for row in rows}),
                'seen/with_box': sum(row[2] == 1 for row in rows)}

    def compute_metrics(self, results):
        raise NotImplementedError
'''


def write_videos(folder) -> None:
    """Bright squares that move evenly, so that the lattice finds each one on every frame."""
    images, annotations = [], []
    for video, length in enumerate(LENGTHS, 1):
        (folder / 'val' / f'{video}').mkdir(parents=True)
        for t in range(length):
            image, left = np.full((HEIGHT, WIDTH, 3), 20, np.uint8), 4 + 3 * t
            image[10:10 + SIDE, left:left + SIDE] = 220
            name = f'{video}/{t:03}.png'
            cv2.imwrite(str(folder / 'val' / name), image)
            images.append(dict(id=len(images) + 1, video_id=video, frame_id=t, file_name=name,
                               height=HEIGHT, width=WIDTH))
            annotations.append(dict(
                id=len(images), image_id=len(images), video_id=video, category_id=1,
                instance_id=video, bbox=[left, 10, SIDE, SIDE], area=SIDE**2, iscrowd=0))
    videos = [dict(id=video, name=str(video)) for video in range(1, len(LENGTHS) + 1)]
    (folder / 'val.json').write_text(json.dumps(dict(
        videos=videos, images=images, annotations=annotations,
        categories=[dict(id=1, name='blob')])))


@pytest.fixture
def job(tmp_path, repository, monkeypatch):
    """Write the config for a batch size; gives its path and that of random weights."""
    from vision.common.nn.checkpoint import save_checkpoint
    from vision.lattice.mm.detector import LatticeDetector
    write_videos(tmp_path)
    (tmp_path / 'blob_parts.py').write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    save_checkpoint(dict(state_dict=LatticeDetector(dict(type='BlobDetector')).state_dict()),
                    tmp_path / 'weights.pth')

    def write(batch_size=1):
        path = tmp_path / 'config.py'
        path.write_text(CONFIG.format(base=str(repository / 'configs/_base_/runtime.py'),
                                      root=f'{tmp_path}/', batch_size=batch_size))
        return str(path), str(tmp_path / 'weights.pth')
    return write


@pytest.fixture(scope='module')
def main():
    from vision.cli.test import main
    return main


@pytest.mark.parametrize('batch_size', [1, 3, 32])
def test_every_frame_is_judged_exactly_once(job, main, tmp_path, batch_size):
    out = tmp_path / 'metrics.json'
    assert main([*job(batch_size), '--work-dir', str(tmp_path / 'w'), '--out', str(out),
                 '--out-item', 'metrics']) == 0
    metrics = json.loads(out.read_text())
    assert metrics['seen/frames'] == metrics['seen/different'] == sum(LENGTHS)
    assert metrics['seen/with_box'] == sum(LENGTHS)
    assert metrics['vid/map50'] == pytest.approx(1)


@pytest.mark.fault('S34')
def test_python_inside_of_the_checkpoint_stays_text(job, main, tmp_path):
    from vision.common.nn.checkpoint import load_checkpoint, save_checkpoint
    config, weights = job()
    code = f'import os; os.mkdir({str(tmp_path / "marker")!r})'
    save_checkpoint(dict(load_checkpoint(weights), config=code, meta=dict(cfg=code, config=code),
                         message_hub=dict(runtime_info=dict(cfg=code))), tmp_path / 'weights.pth')
    assert main([config, weights, '--work-dir', str(tmp_path / 'w')]) == 0
    assert not (tmp_path / 'marker').exists()


def test_validation_judges_them_as_well(job, tmp_path):
    from mmengine.config import Config

    from vision.common.mm.launch import build_runner
    config, checkpoint = job()
    config = Config.fromfile(config)
    config.work_dir, config.load_from, config.launcher = str(tmp_path / 'w'), checkpoint, 'none'
    metrics = build_runner(config).val()
    assert metrics['seen/frames'] == metrics['seen/different'] == sum(LENGTHS)


def test_drawn_frames_of_equal_names_stay_apart(job, main, tmp_path):
    assert main([*job(), '--work-dir', str(tmp_path / 'w'), '--show-dir',
                 str(tmp_path / 'drawn')]) == 0
    drawn = sorted(path.relative_to(tmp_path / 'drawn') for path in
                   (tmp_path / 'drawn').rglob('*.png'))
    assert [str(path) for path in drawn] == [f'{video}/{t:03}.png' for video, length in
                                             enumerate(LENGTHS, 1) for t in range(length)]
    picture = cv2.imread(str(tmp_path / 'drawn' / '3' / '010.png'))
    plain = cv2.imread(str(tmp_path / 'val' / '3' / '010.png'))
    assert picture.shape[1] == 2 * WIDTH + 4  # what was found, and what is true
    for part in (picture[-HEIGHT:, :WIDTH], picture[-HEIGHT:, -WIDTH:]):
        changed = np.abs(part.astype(int) - plain).max(2) > 40
        assert changed[10:10 + SIDE, 4 + 3 * 10].mean() > 0.5  # the left edge of the box


def test_relative_pictures_lie_in_the_work_dir(job, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*job(), '--work-dir', str(tmp_path / 'w'), '--show-dir', 'drawn']) == 0
    assert len(list((tmp_path / 'w').glob('*/drawn/3/*.png'))) == 11
    assert not (tmp_path / 'drawn').exists()


@pytest.mark.parametrize('name', ['results.json', 'results.npz'])
def test_predictions_are_judged_again_without_the_network(job, main, tmp_path, name, monkeypatch):
    from vision.cli.eval import main as evaluate
    from vision.lattice.mm.detector import LatticeDetector
    config, weights = job(3)
    jobs = [config, weights, '--work-dir', str(tmp_path / 'w'), '--out']
    assert main([*jobs, str(tmp_path / 'metrics.json'), '--out-item', 'metrics']) == 0
    assert main([*jobs, str(tmp_path / name)]) == 0
    monkeypatch.setattr(LatticeDetector, 'predict', None)
    assert evaluate([config, str(tmp_path / name), '--out', str(tmp_path / 'again.json')]) == 0
    metrics, again = (json.loads((tmp_path / f'{what}.json').read_text())
                      for what in ('metrics', 'again'))
    # Bit for bit; the average precision of speeds without a box is nan.
    assert again.keys() == metrics.keys() and metrics['vid/map5095'] > 0.5
    np.testing.assert_array_equal(list(again.values()), list(metrics.values()))
    with pytest.raises(VisionError, match='VIS-DATA-1782.*18 samples'):
        shorter = json.loads((tmp_path / 'val.json').read_text())
        shorter['images'] = shorter['images'][:7]
        shorter['annotations'] = shorter['annotations'][:7]
        (tmp_path / 'val.json').write_text(json.dumps(shorter))
        evaluate([config, str(tmp_path / name)])


def test_errors_are_counted_and_the_worst_shown_first(job, main, tmp_path):
    """Predictions spoilt by hand: of video 2 one box is missed and one lies elsewhere, of video 3
    one frame has a box too many."""
    from vision.cli.analyze import main as analyze
    config, weights = job()
    results = tmp_path / 'results.json'
    assert main([config, weights, '--work-dir', str(tmp_path / 'w'), '--out', str(results)]) == 0
    content = json.loads(results.read_text())
    frames = {(s['video_id'], s['frame_id']): s['pred_instances'] for s in content['samples']}
    for name in ('bboxes', 'scores', 'labels', 'instances_id'):
        shape = [0, 4] if name == 'bboxes' else [0]
        frames[2, 1][name] = dict(shape=shape)
        frames[3, 4][name] *= 2
    frames[2, 3]['bboxes'] = [[60, 30, 74, 44]]
    results.write_text(json.dumps(content))
    out = tmp_path / 'pages'
    assert analyze([config, str(results), str(out), '--topk', '3']) == 0
    report = json.loads((out / 'analysis.json').read_text())
    assert report['matrix'] == [[16, 2], [2, 0]]
    totals = report['totals']
    assert (totals['pictures'], totals['true'], totals['found']) == (18, 18, 18)
    assert (totals['right'], totals['missed'], totals['extra'], totals['confused']) == (16, 2, 2,
                                                                                        0)
    assert [video['name'] for video in report['videos']] == ['2', '3', '1']
    assert report['videos'][0]['f1'] == pytest.approx(2 * 4 / (6 + 5))
    assert report['videos'][0]['worst'][:2] == ['2/003.png', '2/001.png']
    assert report['videos'][1]['worst'][0] == '3/004.png' and len(
        report['videos'][1]['worst']) == 3
    page = (out / report['videos'][0]['page']).read_text()
    assert page.index('pictures/2/003.jpg') < page.index('pictures/2/001.jpg')
    index = (out / 'index.html').read_text()
    for video in report['videos']:
        assert video['page'] in index and (out / video['page']).is_file()
    shown = cv2.imread(str(out / 'pictures' / '2' / '003.jpg')).astype(int)
    red = (shown[..., 2] > 180) & (shown[..., 1] < 120)
    left, right = red[-HEIGHT:, :WIDTH], red[-HEIGHT:, -WIDTH:]
    assert left[30:45, 58:76].any() and not left[:, :20].any()  # found where nothing is
    assert right[10:24, 11:30].any() and not right[:, 60:].any()  # missed


def test_a_name_of_a_video_is_text_on_its_page(job, main, tmp_path):
    from vision.cli.analyze import main as analyze
    config, weights = job()
    content = json.loads((tmp_path / 'val.json').read_text())
    content['videos'][0]['name'] = '<b>"1"</b>/../x'
    (tmp_path / 'val.json').write_text(json.dumps(content))
    assert main([config, weights, '--work-dir', str(tmp_path / 'w'), '--out',
                 str(tmp_path / 'r.npz')]) == 0
    assert analyze([config, str(tmp_path / 'r.npz'), str(tmp_path / 'out')]) == 0
    pages = list((tmp_path / 'out').glob('*.html'))
    assert len(pages) == 4
    assert not any('<b>' in page.read_text() for page in pages)


def test_a_lattice_is_not_augmented(job, main, tmp_path):
    with pytest.raises(VisionError, match='VIS-CONFIG-1786: --tta is not for LatticeDetector'):
        main([*job(), '--tta'])


def test_pickles_are_refused_before_the_test(job, main, tmp_path):
    with pytest.raises(VisionError, match='VIS-INPUT-1780'):
        main([*job(), '--out', str(tmp_path / 'results.pkl')])


def test_where_metrics_cannot_go_is_said_before_the_test(main, tmp_path):
    with pytest.raises(VisionError, match='VIS-ENV-109'):
        main(['no config is read', 'x.pth', '--out', str(tmp_path)])


def test_a_config_for_videos_of_ones_own_has_nothing_to_test_on(main, repository):
    with pytest.raises(VisionError, match='VIS-CONFIG-323'):
        main([str(repository / 'configs/lattice/lattice_yolox-nano_t8-s2_coco.py'),
              'zoo:lattice-pru_moving-sprites'])


def test_the_command_in_a_process_of_its_own(job, tmp_path, repository):
    environment = os.environ | dict(PYTHONPATH=f'{tmp_path}:{repository}')
    result = subprocess.run([sys.executable, 'tools/test.py', *job(), '--work-dir',
                             str(tmp_path / 'w')], cwd=repository, env=environment,
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert f'seen/frames: {sum(LENGTHS)}' in result.stdout + result.stderr
