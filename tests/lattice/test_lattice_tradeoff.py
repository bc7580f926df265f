"""The benchmark and the profile on generated squares, without training software.

This file needs no torch; only the last test does, and skips without it.
"""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.lattice.core.cocovid import CocoVidWriter, load_cocovid
from vision.lattice.core.structures import FrameBoxes, FrameResult
from vision.lattice.runtime import timing
from vision.lattice.runtime.detectors import CallableDetector

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, NUM_VIDEOS, NUM_FRAMES = 120, 160, 5, 25
SIDES = (36, 28)
FIELDS = {'dataset', 'method', 'setting', 'runtime', 'protocol', 'map50', 'map5095',
          'map50_medium', 'map50_fast', 'map50_medium_fast', 'ms_per_frame', 'fps_end_to_end',
          'keyframe_rate', 'mota', 'idf1', 'frames'}
METHODS = ('detect', 'shipped', 'flow', 'flow-causal', 'hold', 'linear', 'lk',
           'dis', 'bytetrack', 'bytetrack-offline', 'oracle')


def places(video, t):
    """Corners of the two squares: each turns back in the middle between two keyframes."""
    turn = abs((t + 2 * video) % 8 - 4)
    return ((10 + 7 * turn + video, 10 + t), (110 - 5 * turn, 75 - t))


def write_set(folder):
    rng, writer = np.random.default_rng(0), CocoVidWriter(['square'])
    for video in range(NUM_VIDEOS):
        # Blue and green alone are textured on the ground, so a square is where red is.
        ground = rng.integers(0, 90, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
        ground[..., 2] = 0
        ground = ground.repeat(4, 0).repeat(4, 1)
        textures = [np.dstack([rng.integers(0, 255, (side // 4, side // 4, 2), np.uint8),
                               np.full((side // 4, side // 4), 255, np.uint8)]).repeat(
                                   4, 0).repeat(4, 1) for side in SIDES]
        writer.add_video(f'v{video}', width=WIDTH, height=HEIGHT)
        (folder / f'v{video}').mkdir(parents=True)
        for t in range(NUM_FRAMES):
            image, boxes = ground.copy(), []
            for (x, y), side, texture in zip(places(video, t), SIDES, textures, strict=True):
                image[y:y + side, x:x + side] = texture
                boxes.append((x, y, x + side, y + side))
            name = f'v{video}/{t:03d}.png'
            cv2.imwrite(str(folder / name), image)
            writer.add_frame(name, boxes_xyxy=boxes, labels=[0, 0], instance_ids=[1, 2])
    writer.write(folder / 'ann' / 'val.json')


def find_squares(image_bgr):
    """Where red is; one connected part a box."""
    is_red = (image_bgr[..., 2] > 200).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(is_red)
    x, y, w, h = stats[1:, :4].T
    return np.stack([x, y, x + w, y + h], axis=1), np.full(count - 1, 0.9), np.zeros(count - 1)


@pytest.fixture(scope='module')
def tool():
    return load_script('benchmarks/lattice_tradeoff.py')


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    folder = tmp_path_factory.mktemp('squares')
    write_set(folder)
    return folder


def models(tool, sizes=None):
    """``sizes``: which inputs were asked for; a small input misses the small square."""
    def make(input_size):
        if sizes is not None:
            sizes.append(input_size)

        def detect(image_bgr):
            boxes, scores, labels = find_squares(image_bgr)
            kept = np.ones(len(boxes), bool) if input_size is None else (
                boxes[:, 2] - boxes[:, 0] > 30)
            return boxes[kept], scores[kept], labels[kept]
        return CallableDetector(detect, ['square'])
    return tool.Models(make)


@pytest.fixture(scope='module')
def content(tool, squares):
    arguments = ['--ann', f'{squares / "ann" / "val.json"}', '--images', f'{squares}',
                 '--methods', ','.join([*METHODS, 'paper']), '--gaps', '4,8', '--adaptive', '0.7',
                 '--input-sizes', '64', '--protocol', 'both', '--time-frames', '8',
                 '--repeats', '2', '--threads', '1', '--dataset', 'squares',
                 '--json', f'{squares / "out" / "rows.json"}']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, 'NUM_RESAMPLES', 40)
        assert tool.main(arguments, models(tool)) == 0
    return json.loads((squares / 'out' / 'rows.json').read_text())


def table(content, protocol='coco'):
    return {(row['method'], row['setting']): row for row in content['rows']
            if row['protocol'] == protocol}


def test_every_row_is_whole(content):
    rows = table(content)
    with_gap = [m for m in METHODS if m not in ('detect', 'shipped')]
    assert set(rows) == {('detect', 't1'), ('detect', 't1-in64'), ('shipped', 'default'),
                         ('shipped', 'default-in64'),
                         *((m, f't{gap}') for m in with_gap for gap in (4, 8)),
                         *((m, f't{gap}-e0.7') for m in ('adaptive', 'random') for gap in (4, 8))}
    assert len(content['rows']) == 2 * len(rows)
    for row in content['rows']:
        assert row.keys() >= FIELDS and row['frames'] == NUM_VIDEOS * NUM_FRAMES
        assert row['runtime'] == 'python' and row['dataset'] == 'squares'
        if row['method'] in ('oracle', 'random'):
            assert row['ms_per_frame'] is row['fps_end_to_end'] is None
        else:
            assert row['ms_per_frame'] > 0 and len(row['ms_of_turns']) == 2
            low, high = (1000 / (row['ms_per_frame'] + half) for half in (0.006, -0.006))
            assert low - 0.1 <= row['fps_end_to_end'] <= high + 0.1  # both are rounded
    assert content['threads'] == 1 and content['videos'] == NUM_VIDEOS


def test_keyframes_are_counted(content):
    rows = table(content)
    assert rows['detect', 't1']['keyframe_rate'] == 1
    for method in ('flow', 'linear', 'lk', 'dis', 'bytetrack', 'hold'):
        assert rows[method, 't8']['keyframe_rate'] == pytest.approx(4 / NUM_FRAMES)
    for gap in (4, 8):
        ours, lots = (rows[m, f't{gap}-e0.7']['keyframe_rate'] for m in ('adaptive', 'random'))
        assert ours == lots  # on each video, so in the sum


def test_what_must_be_better_is_better(content):
    rows = table(content)
    value = {key: row['map5095'] for key, row in rows.items()}
    for gap in ('t4', 't8'):
        assert value['oracle', gap] >= value['linear', gap]
        assert value['hold', gap] < value['linear', gap] < value['flow', gap]
        assert value['linear', gap] < value['lk', gap]
        assert value['linear', gap] < value['dis', gap]
    assert value['oracle', 't8'] == value['detect', 't1'] == 100
    assert value['flow', 't8'] > 80
    assert rows['detect', 't1']['mota'] == 100 and rows['flow', 't8']['idf1'] > 90
    assert rows['hold', 't8']['mota'] < rows['flow', 't8']['mota']


def test_another_input_size_is_another_detector(tool, squares, content):
    rows = table(content)
    assert rows['detect', 't1-in64']['map50'] < 60 < rows['detect', 't1']['map50']
    # One of two objects: half of the truth is found, and nothing that is false.
    assert rows['detect', 't1-in64']['mota'] == 50


def test_intervals_name_their_rivals(content):
    entries = {(e['method'], e['setting'], e['minus'], e['measure']): e
               for e in content['intervals'] if (e['protocol'], e['at']) == ('coco', 'gap')}
    one = entries['flow', 't8', 'linear', 'map5095']
    rows = table(content)
    assert one['difference'] == pytest.approx(
        rows['flow', 't8']['map5095'] - rows['linear', 't8']['map5095'], abs=0.011)
    low, high = one['interval_95']
    assert 0 < low <= one['difference'] <= high
    assert {key[2] for key in entries if key[:2] == ('flow', 't8')} == {
        'detect', 'hold', 'linear', 'lk', 'dis', 'bytetrack', 'bytetrack-offline'}
    assert {key[2] for key in entries if key[0] == 'adaptive'} == {'random'}
    assert {e['minus_setting'] for e in content['intervals'] if e['method'] == 'flow'
            and (e['minus'], e['at']) == ('detect', 'gap')} == {'t1', 't1-in64'}


def test_in_time_a_rival_meets_the_slowest_of_ours_that_takes_no_longer(content, tool):
    ms = {(row['method'], row['setting']): row['ms_per_frame'] for row in content['rows']
          if row['ms_per_frame'] is not None}
    entries = [entry for entry in content['intervals'] if entry['at'] == 'time']
    assert entries
    for entry in entries:
        mine, other = ms[entry['method'], entry['setting']], ms[entry['minus'],
                                                                entry['minus_setting']]
        assert entry['method'] in tool.OURS and mine <= other
        assert not [name for name, value in ms.items() if name[0] in tool.OURS
                    and mine < value < other and '-in' not in name[1]]


def test_few_videos_have_no_interval_and_a_table_is_beside_the_rows(tool, squares, tmp_path):
    out = tmp_path / 'rows.json'
    tool.main(['--ann', f'{squares / "ann" / "val.json"}', '--images', f'{squares}', '--json',
               f'{out}', '--methods', 'linear,flow', '--limit-videos', '2', '--time-frames', '0'],
              models(tool))
    content = json.loads(out.read_text())
    assert all(e['interval_95'] is None and e['videos'] == 2 for e in content['intervals'])
    assert all(row['ms_per_frame'] is None for row in content['rows'])
    lines = out.with_suffix('.md').read_text().splitlines()
    assert len(lines) == 2 + 2 and lines[2].startswith('| linear | t8 | coco |')


def test_the_picture_is_drawn(squares, content, tmp_path):
    pytest.importorskip('matplotlib')
    plot = load_script('benchmarks/lattice_plot.py')
    assert plot.main([f'{squares / "out" / "rows.json"}', '--out', f'{tmp_path / "a.png"}']) == 0
    image = cv2.imread(str(tmp_path / 'a.png'))
    assert image.shape[1] > 1000
    # The lattice is there in its colour (#1769aa), twice.
    is_ours = (np.abs(image.astype(int) - (0xaa, 0x69, 0x17)) < 12).all(axis=2)
    assert is_ours[:, :700].sum() > 100 and is_ours[:, 700:].sum() > 100


def test_turns_alternate_and_the_clock_runs_the_real_detector(tool, squares, monkeypatch):
    seen, real = [], tool.timed
    monkeypatch.setattr(tool, 'timed', lambda setting, *rest, **more: (
        seen.append(setting.method), real(setting, *rest, **more))[1])
    args = tool.build_parser().parse_args(['--ann', 'a', '--images', f'{squares}', '--json', 'b',
                                           '--time-frames', '8', '--repeats', '3'])
    videos = load_cocovid(squares / 'ann' / 'val.json').videos[:1]
    calls = []

    def detect(image_bgr):
        calls.append(1)
        return find_squares(image_bgr)
    detector = CallableDetector(detect, ['square'])
    settings = tool.choose_settings(['detect', 'linear'], [4])
    times = tool.measure_times(args, videos, settings, tool.Models(lambda size: detector),
                               tool.Progress(disable=True))
    assert seen == ['detect', 'linear'] * 4  # the first turn warms up
    assert [len(values) for values in times.values()] == [3, 3]
    assert len(calls) == 4 * 9 + 4 * 3  # 9 frames a turn: every one, or 0, 4 and 8


def test_drawn_keyframes_are_as_many_as_the_watched_ones():
    from vision.lattice.core import keyframe_draws as methods

    class Half:
        gap_frames, max_depth = 8, 2

        def __init__(self):
            self.rng = np.random.default_rng(3)

        def start_segment(self):
            pass

        def split(self, interval):
            return interval.gap_frames >= 2 and self.rng.random() < 0.5

    def walk(policy, gaps):
        """Asks as the engine does; gives the gaps that come out."""
        def solve(gap, depth):
            is_asked = not (depth and depth >= policy.max_depth)
            if is_asked and policy.split(type('I', (), dict(gap_frames=gap))()) and gap >= 2:
                return [*solve(gap // 2, depth + 1), *solve(gap - gap // 2, depth + 1)]
            return [gap]
        return [part for gap in gaps for part in solve(gap, 0)]

    grid = [8] * 6 + [3, 1]
    watched = methods.WatchedKeyframes(Half())
    parts = walk(watched, grid)
    assert watched.grid_gaps == grid and watched.num_splits == len(parts) - len(grid) > 3
    drawn = [walk(methods.DrawnKeyframes(watched, seed), grid) for seed in range(20)]
    assert {len(part) for part in drawn} == {len(parts)}
    assert all(sum(part) == sum(grid) for part in drawn)
    assert len({tuple(part) for part in drawn}) > 10


def test_the_upper_bound_puts_boxes_on_their_objects(tool, squares):
    frames = load_cocovid(squares / 'ann' / 'val.json').videos[0].frames[:5]
    start = FrameBoxes(frames[0].boxes_xyxy, [0.7, 0.6], [0, 0], [1, 2])
    lonely = FrameBoxes([[150, 110, 158, 118]], [0.2], [0], [3])
    start = FrameBoxes.concatenate([start, lonely])
    results = [FrameResult(t, start, 'detected', is_keyframe=t in (0, 4)) for t in range(5)]
    moved = tool.true_positions(results, frames)[2].boxes
    assert np.array_equal(moved.boxes_xyxy[:2], frames[2].boxes_xyxy)
    assert np.array_equal(moved.boxes_xyxy[2], lonely.boxes_xyxy[0])


def test_a_detector_of_the_zoo_by_its_name(tool, squares, tmp_path):
    (tmp_path / 'map.json').write_text('{"square": ["person", "car"]}')
    assert tool.main([
        '--ann', f'{squares / "ann" / "val.json"}', '--images', f'{squares}', '--json',
        f'{tmp_path / "a.json"}', '--detector', 'zoo:yolox-nano_coco', '--input-size', '96',
        '--input-sizes', '64', '--class-map', f'{tmp_path / "map.json"}', '--limit-videos', '1',
        '--methods', 'detect,linear', '--time-frames', '4', '--repeats', '1']) == 0
    content = json.loads((tmp_path / 'a.json').read_text())
    assert [(row['setting'], row['runtime']) for row in content['rows']] == [
        (setting, 'onnxruntime') for setting in ('t1', 't1-in64', 't8')]
    assert content['judged_classes'] == ['square']


def test_refusals(tool, squares, tmp_path):
    common = ['--ann', f'{squares / "ann" / "val.json"}', '--images', f'{squares}', '--json',
              f'{tmp_path / "a.json"}']
    with pytest.raises(VisionError, match='VIS-CONFIG-107'):
        tool.main([*common, '--methods', 'flow,kalman'], models(tool))
    with pytest.raises(SystemExit):
        tool.main(common)  # no detector


@pytest.mark.parametrize('script', ['benchmarks/lattice_tradeoff.py',
                                    'benchmarks/profile_lattice.py'])
def test_it_runs_in_the_light_environment(script):
    blocked = ('torch', 'mmengine', 'mmcv', 'mmdet', 'supervision', 'onnx', 'PIL', 'matplotlib')
    code = (f'import runpy, sys; sys.modules.update({dict.fromkeys(blocked)}); '
            f'sys.argv = ["tool", "--help"]; sys.path.insert(0, "{script.rpartition("/")[0]}"); '
            f'runpy.run_path("{script}", run_name="__main__")')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert '--detector' in result.stdout


@pytest.mark.parametrize(('method', 'flow_parts'), [('flow', True), ('linear', False)])
def test_the_parts_of_the_profile_add_up(squares, method, flow_parts, tmp_path):
    tool = load_script('benchmarks/profile_lattice.py')
    out = tmp_path / 'profile.json'
    assert tool.main([f'{squares / "v0"}', '--method', method, '--gap', '8', '--repeats', '1',
                      '--json', f'{out}']) == 0
    content = json.loads(out.read_text())
    rows = {row['part']: row for row in content['rows']}
    assert list(rows) == [*timing.PARTS, 'all']
    assert sum(rows[part]['ms_per_frame'] for part in timing.PARTS) == pytest.approx(
        rows['all']['ms_per_frame'], abs=0.001)
    assert rows['detect']['calls'] == 4 and rows['prepare']['calls'] == NUM_FRAMES
    assert rows['detect']['ms_per_frame'] > 0 and content['keyframe_rate'] == 4 / NUM_FRAMES


def test_the_profile_changes_no_result(squares):
    from vision.lattice.runtime.methods import build_engine
    images = [cv2.imread(str(path)) for path in sorted((squares / 'v0').glob('*.png'))]
    detector, clock = CallableDetector(find_squares, ['square']), timing.Clock()
    engines = timing.timed_engine(clock, detector, 'flow', 8), build_engine(
        detector, method='flow', keyframes=8)
    results = [[r for t, image in enumerate(images) for r in engine.push(image, t)]
               + engine.flush() for engine in engines]
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one.boxes.boxes_xyxy, other.boxes.boxes_xyxy)
        assert np.array_equal(one.boxes.track_ids, other.boxes.track_ids)
    assert clock.seconds['flow forward'] > 0 and clock.seconds['bridge'] > 0


def test_points_are_followed_backward_in_a_part_of_its_own(squares):
    images = [cv2.imread(str(path)) for path in sorted((squares / 'v0').glob('*.png'))]
    calls = []

    def detect(image_bgr):  # nothing at the first keyframe: what is new at the second goes back
        calls.append(1)
        boxes, scores, labels = find_squares(image_bgr)
        kept = slice(0 if len(calls) == 1 else 2)
        return boxes[kept], scores[kept], labels[kept]
    clock, _ = timing.profile(images[:9], CallableDetector(detect, ['square']), 'flow', 8)
    assert clock.calls['flow backward'] == 8 and clock.seconds['flow backward'] > 0
    assert timing.flow_module.cv2 is cv2


def test_the_papers_networks_over_a_light_detector(tool, squares, tmp_path):
    torch = pytest.importorskip('torch')
    pytest.importorskip('mmdet')
    (tmp_path / 'config.py').write_text(
        "model = dict(type='LatticeDetector', detector=dict(type='MMDetDetector', config="
        f"'{ROOT}/configs/detectors/faster-rcnn_r18-tiny_moving-sprites.py', "
        'allow_random=True))\n')
    from vision.lattice.mm.detector import LatticeDetector
    torch.save(dict(state_dict=LatticeDetector(detector=dict(type='none')).state_dict()),
               tmp_path / 'pru.pth')
    args = tool.build_parser().parse_args([
        '--ann', f'{squares / "ann" / "val.json"}', '--images', f'{squares}', '--json',
        f'{tmp_path / "a.json"}', '--config', f'{tmp_path / "config.py"}', '--checkpoint',
        f'{tmp_path / "pru.pth"}', '--methods', 'paper', '--gaps', '8', '--limit-videos', '1',
        '--time-frames', '4', '--repeats', '1'])
    opened = tool.open_models(args)
    assert opened.runtime(tool.Setting('detect')) == 'torch'
    light = tool.Models(models(tool).make_detector, opened.make_paper)
    arguments = ['--ann', f'{args.ann}', '--images', f'{squares}', '--json', f'{args.json}',
                 '--config', args.config, '--methods', 'paper', '--gaps', '8', '--limit-videos',
                 '1', '--time-frames', '4', '--repeats', '1']
    assert tool.main(arguments, light) == 0
    row, = json.loads(args.json.read_text())['rows']
    assert row['runtime'] == 'python+torch' and row['map50'] is not None
