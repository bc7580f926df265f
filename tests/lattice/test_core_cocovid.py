"""Each rule of a CocoVID file is broken once; what may be repaired is counted."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.common.core.errors import VisionError
from vision.common.core.image_bytes import what_is_wrong
from vision.lattice.core.cocovid import (
    CocoVidWriter,
    check_cocovid,
    load_cocovid,
    match_classes,
    read_json,
)
from vision.lattice.core.cocovid_stats import statistics
from vision.lattice.core.imagenet_vid import CLASSES, WORDNET_IDS, train_frames

BOXES = [[1, 2, 11, 22], [30, 30, 50, 60]]


@pytest.fixture
def data() -> dict:
    """Two videos of three frames, two objects; the second video's middle frame is empty."""
    writer = CocoVidWriter(('cat', 'dog'))
    for video in range(2):
        writer.add_video(f'v{video}', width=100, height=80, fps=25)
        for frame in range(3):
            if video == 1 and frame == 1:
                writer.add_frame(f'v{video}/{frame}.jpg')
                continue
            writer.add_frame(f'v{video}/{frame}.jpg', boxes_xyxy=BOXES,
                             labels=[0, 1], instance_ids=[1, 2], occluded=[False, True])
    return writer.to_dict()


def write(tmp_path, data) -> str:
    path = tmp_path / 'ann.json'
    path.write_text(json.dumps(data))
    return path


def rules(data) -> set[str]:
    return {problem.rule for problem in check_cocovid(data)}


def test_a_written_file_is_in_order_and_reads_back(tmp_path, data):
    assert check_cocovid(data) == []
    loaded = load_cocovid(write(tmp_path, data))
    assert loaded.classes == ('cat', 'dog') and loaded.report == {}
    assert [len(video) for video in loaded.videos] == [3, 3]
    frame = loaded.videos[1].frame(2)
    np.testing.assert_array_equal(frame.boxes_xyxy, np.float32(BOXES))
    assert frame.labels.tolist() == [0, 1] and frame.instance_ids.tolist() == [3, 4]
    assert loaded.videos[1].frame(1).boxes_xyxy.shape == (0, 4)
    assert data['annotations'][1]['occluded'] == 1


def test_frames_are_ordered_by_frame_id_not_by_place(tmp_path, data):
    data['images'].reverse()
    loaded = load_cocovid(write(tmp_path, data))
    assert [frame.frame_id for frame in loaded.videos[0].frames] == [0, 1, 2]
    assert loaded.videos[0].frame(-1).file_name == 'v0/2.jpg'


def breakages():
    """(rule, what breaks it): every rule once."""
    def change(table, index, **values):
        return lambda data: data[table][index].update(values)

    def drop(table, index, key):
        return lambda data: data[table][index].pop(key)

    box = dict(bbox=None)
    return [
        ('missing-table', lambda data: data.pop('videos')),
        ('missing-table', lambda data: data.update(images={})),
        ('record-form', lambda data: data['images'].append(3)),
        ('missing-key', drop('images', 0, 'video_id')),
        ('missing-key', drop('annotations', 0, 'instance_id')),
        ('missing-key', drop('categories', 0, 'name')),
        ('key-type', change('images', 0, frame_id='0')),
        ('key-type', change('images', 0, id=True)),
        ('key-type', change('annotations', 0, id=2**70)),
        ('key-type', change('images', 0, width=0)),
        ('key-type', change('images', 0, width=10**9)),
        ('key-type', change('images', 0, frame_id=-1)),
        ('key-type', change('categories', 0, name=['cat'])),
        ('key-type', change('categories', 0, encode_name={})),
        ('key-type', change('videos', 0, name=7)),
        ('key-type', change('annotations', 0, iscrowd=[1])),
        ('key-type', change('annotations', 0, iscrowd='yes')),
        ('file-name', change('images', 0, file_name='/etc/passwd')),
        ('file-name', change('images', 0, file_name='a/../../b.jpg')),
        ('file-name', change('images', 0, file_name='C:\\b.jpg')),
        ('file-name', change('images', 0, file_name='http://host/b.jpg')),
        ('file-name', change('images', 0, file_name='b\0.jpg')),
        ('file-name', change('images', 0, file_name=None)),
        ('frame-gap', change('images', 2, frame_id=10**18)),
        ('duplicate-id', change('annotations', 1, id=1)),
        ('duplicate-id', change('images', 1, id=1)),
        ('duplicate-name', change('categories', 1, name='cat')),
        ('unknown-video', change('images', 0, video_id=9)),
        ('unknown-image', change('annotations', 0, image_id=99)),
        ('unknown-category', change('annotations', 0, category_id=7)),
        ('other-video', change('annotations', 0, video_id=2)),
        ('duplicate-frame', change('images', 1, frame_id=0)),
        ('frame-gap', change('images', 2, frame_id=3)),
        ('frame-gap', lambda data: data['images'].pop(0)),
        ('duplicate-instance', change('annotations', 1, instance_id=1)),
        ('box-form', change('annotations', 0, bbox=[1, 2, 3])),
        ('box-form', change('annotations', 0, **box)),
        ('box-form', change('annotations', 0, bbox=[1, 2, '3', 4])),
        ('box-form', change('annotations', 0, bbox=[1, 2, 10**400, 4])),
        ('box-nan', change('annotations', 0, bbox=[1, 2, float('nan'), 4])),
        ('box-nan', change('annotations', 0, bbox=[1, 2, float('inf'), 4])),
        ('box-empty', change('annotations', 0, bbox=[1, 2, 0, 4])),
        ('box-empty', change('annotations', 0, bbox=[1, 2, -3, 4])),
        ('box-outside', change('annotations', 0, bbox=[100, 2, 3, 4])),
        ('box-outside', change('annotations', 0, bbox=[-9, 2, 9, 4])),
    ]


@pytest.mark.parametrize(('rule', 'damage'), breakages())
def test_each_broken_rule_stops_the_reader_and_names_the_record(tmp_path, data, rule, damage):
    damage(data)
    problems = check_cocovid(data)
    assert rule in {problem.rule for problem in problems if not problem.is_note}
    path = write(tmp_path, data)
    with pytest.raises(VisionError, match=rule) as caught:
        load_cocovid(path)
    assert caught.value.code == 'VIS-DATA-204' and str(path) in caught.value.what


def test_what_may_be_repaired_is_a_note_and_is_counted(tmp_path, data):
    data['annotations'][0]['bbox'] = [-4, 2, 14, 100]
    data['videos'].append(dict(id=3, name='nothing'))
    for row in data['annotations']:
        row['instance_id'] -= 1
    assert all(problem.is_note for problem in check_cocovid(data))
    loaded = load_cocovid(write(tmp_path, data))
    assert loaded.report == {'box-over-edge': 1, 'empty-video': 1, 'instance-zero': 1}
    frame = loaded.videos[0].frame(0)
    assert frame.boxes_xyxy[0].tolist() == [0, 2, 10, 80]
    assert frame.instance_ids.tolist() == [1, 2] and len(loaded.videos) == 2


def test_bad_boxes_are_dropped_only_on_request_and_counted(tmp_path, data):
    data['annotations'][0]['bbox'] = [1, 2, float('nan'), 4]
    data['annotations'][3] |= dict(category_id=9, instance_id=9)
    loaded = load_cocovid(write(tmp_path, data), bad_boxes='drop')
    assert loaded.report == {'box-nan': 1, 'unknown-category': 1}
    assert loaded.num_boxes == 8
    data['images'][0]['frame_id'] = 7  # not a matter of one box
    with pytest.raises(VisionError, match='frame-gap'):
        load_cocovid(write(tmp_path, data), bad_boxes='drop')


def test_boxes_of_other_classes_are_counted(tmp_path, data):
    loaded = load_cocovid(write(tmp_path, data), classes=('dog',))
    assert loaded.report == {'other-class': 5} and loaded.num_boxes == 5
    assert set(np.concatenate([v.labels for v in loaded.videos]).tolist()) == {0}


@pytest.mark.fault('R20')
def test_unknown_class_names_stop_with_the_nearest_and_a_histogram(tmp_path, data):
    with pytest.raises(VisionError) as caught:
        load_cocovid(write(tmp_path, data), classes=('cat', 'dgo', 'aeroplane'))
    assert caught.value.code == 'VIS-DATA-206'
    assert "'dgo' -> ['dog']" in caught.value.what and '2 of 3' in caught.value.what
    assert 'cat 5, dog 5' in caught.value.why


@pytest.mark.fault('R20')
@pytest.mark.parametrize(('name', 'near'), [
    ('dgo', "['dog']"), ('Dog', "['dog']"), ('CAT', "['cat']"), ('dog ', "['dog']"),
    ('cats', "['cat']"), ('zebra', 'nothing near'), ('', 'nothing near')])
def test_a_mistyped_class_is_answered_with_the_nearest(tmp_path, data, name, near):
    with pytest.raises(VisionError, match='VIS-DATA-206') as caught:
        load_cocovid(write(tmp_path, data), classes=('cat', name))
    assert f'{name!r} -> {near}' in caught.value.what


def test_classes_may_be_wordnet_ids():
    writer = CocoVidWriter(CLASSES, encode_names=list(WORDNET_IDS.values()))
    names, labels = match_classes(writer.to_dict(), ('n02084071', 'zebra'))
    assert names == ('n02084071', 'zebra') and labels == {CLASSES.index('dog') + 1: 0, 30: 1}


def test_files_that_are_not_there_or_cut_are_named_with_line_and_column(tmp_path, data):
    with pytest.raises(VisionError, match='is not there') as caught:
        read_json(tmp_path / 'none.json')
    assert caught.value.code == 'VIS-DATA-202'
    path = write(tmp_path, data)
    path.write_text('{"images": [\n  {"id": 1,')
    with pytest.raises(VisionError) as caught:
        read_json(path)
    assert caught.value.code == 'VIS-DATA-203' and 'line 2, column' in caught.value.where
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(VisionError, match='not a JSON file'):
        read_json(path)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(VisionError, match='0 videos and 0 images'):
        load_cocovid(write(tmp_path, CocoVidWriter(('a',)).to_dict()))


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(['id', 'bbox', 'image_id', 'name']), inner),
                    max_leaves=6)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(['categories', 'videos', 'images', 'annotations']), st.integers(0, 5),
       st.text('abcdefghijklmnopqrstuvwxyz_', min_size=2, max_size=12), JSON)
def test_the_checker_survives_any_value_anywhere(table, index, key, value):
    writer = CocoVidWriter(('a',))
    writer.add_video('v', width=9, height=9)
    for frame in range(6):
        writer.add_frame(str(frame), boxes_xyxy=[[1, 1, 3, 3]], labels=[0], instance_ids=[1])
    data = copy.deepcopy(writer.to_dict())
    rows = data[table]
    known = sorted(rows[0])
    rows[index % len(rows)][known[index % len(known)] if index % 2 else key] = value
    assert isinstance(check_cocovid(data), list)


def test_statistics_count_pauses_of_tracks(tmp_path, data):
    counts = statistics(load_cocovid(write(tmp_path, data)))
    assert counts['track_gaps'] == 2 and counts['empty_frames'] == 1 and counts['tracks'] == 4
    assert counts['boxes_per_class'] == {'cat': 5, 'dog': 5}


def test_imagenet_vid_has_thirty_classes_in_the_known_order():
    assert len(CLASSES) == 30 == len(set(WORDNET_IDS.values()))
    assert list(CLASSES) == sorted(CLASSES)
    assert (CLASSES[0], WORDNET_IDS['airplane']) == ('airplane', 'n02691156')
    assert (CLASSES[29], WORDNET_IDS['zebra']) == ('zebra', 'n02391049')


def test_imagenet_vid_table_is_mmdets():
    pytest.importorskip('mmdet', reason='the light environment has no mmdet')
    from mmdet.evaluation import imagenet_vid_classes
    assert list(CLASSES) == imagenet_vid_classes()


@pytest.mark.parametrize('length', [1, 5, 14, 15, 16, 30, 299, 5492])
def test_training_frames_are_spread_inside_the_video(length):
    frames = train_frames(length)
    assert len(frames) == len(set(frames)) == min(15, length)
    assert frames == sorted(frames) and 0 <= frames[0] and frames[-1] < length
    assert length != 30 or frames == [1 + 2 * i for i in range(15)]


def test_cut_images_are_noticed_wherever_they_are_cut():
    import cv2
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for ending in ('.jpg', '.png', '.webp'):
        data = cv2.imencode(ending, image)[1].tobytes()
        assert what_is_wrong(data) == ''
        assert ending == '.webp' or what_is_wrong(data + b'\0' * 20) == ''
        for length in range(12, len(data) - 12, 37):
            assert what_is_wrong(data[:length]), (ending, length)
    assert what_is_wrong(b'') == 'the file is empty'


@pytest.mark.fault('R19')
@pytest.mark.parametrize('text', [
    '{"images": ' + '9' * 5000 + '}', '[' * 100_000, '{"a": ' * 100_000, '', '\0', '{"a": 1',
    '\ufeff{}', '{"a": 1e999}', 'NaN'], ids=lambda text: ascii(text[:20]))
def test_json_out_of_proportion_is_refused(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(VisionError, match='VIS-DATA-20[34]'):
        load_cocovid(tmp_path / 'x.json')


def test_a_thumbnail_does_not_hide_that_the_picture_is_cut():
    import cv2
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    data = cv2.imencode('.jpg', image)[1].tobytes()
    with_thumbnail = data[:2] + b'\xff\xe1' + (len(data) + 2).to_bytes(2, 'big') + data + data[2:]
    assert what_is_wrong(with_thumbnail) == ''
    assert what_is_wrong(with_thumbnail[:-30])
