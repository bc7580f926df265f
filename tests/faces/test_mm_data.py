"""Data sets and metrics end to end on generated pictures."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from vision.common.core.errors import VisionError
from vision.faces.core.data.recordio import write_face_records
from vision.faces.core.evaluate.verification import unit_rows
from vision.faces.mm import IdentificationMetric, VerificationMetric
from vision.registry import DATASETS

NUM_PEOPLE, NUM_EACH = 6, 3


def picture(label, number):
    rng = np.random.default_rng([label, number])
    return cv2.imencode('.png', rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    for label in range(NUM_PEOPLE):
        (tmp_path / 'faces' / f'person{label}').mkdir(parents=True)
        for number in range(NUM_EACH):
            path = tmp_path / 'faces' / f'person{label}' / f'{number}.png'
            path.write_bytes(picture(label, number))
    return tmp_path / 'faces'


def build(**config):
    return DATASETS.build(config)


def contents(dataset):
    return [(item['inputs'].numpy().tobytes(), int(item['data_samples'].gt_label))
            for item in (dataset[position] for position in range(len(dataset)))]


def test_folder_list_and_record_give_the_same(folder, tmp_path):
    expected = build(type='FaceFolder', data_root=str(folder))
    lines = [f'person{label}/{number}.png {label}\n' for label in range(NUM_PEOPLE)
             for number in range(NUM_EACH)]
    (tmp_path / 'list.txt').write_text(''.join(lines))
    write_face_records(tmp_path / 'a.rec', [[picture(label, number) for number in range(NUM_EACH)]
                                            for label in range(NUM_PEOPLE)])
    listed = build(type='FaceList', ann_file=str(tmp_path / 'list.txt'), data_root=str(folder))
    record = build(type='FaceRecord', path=str(tmp_path / 'a.rec'))
    assert contents(listed) == contents(expected) == contents(record)
    assert expected.num_classes == record.num_classes == NUM_PEOPLE
    item = expected[4]
    assert item['inputs'].shape == (3, 8, 8) and item['inputs'].dtype == torch.uint8
    assert item['data_samples'].sample_idx == 4 and not item['data_samples'].is_gallery


def test_the_first_picture_of_an_identity_is_enrolled_in_any_order(folder, tmp_path):
    """A list that comes back to a person would have enrolled it twice."""
    lines = [f'person{label}/{number}.png {label}\n' for label in range(NUM_PEOPLE)
             for number in range(NUM_EACH)]
    order = np.random.default_rng(4).permutation(len(lines))
    (tmp_path / 'list.txt').write_text(''.join(lines[row] for row in order))
    dataset = build(type='FaceList', ann_file=str(tmp_path / 'list.txt'), data_root=str(folder))
    seen, expected = set(), []
    for label in dataset.labels:
        expected.append(label not in seen)
        seen.add(label)
    found = [dataset[position]['data_samples'].is_gallery for position in range(len(dataset))]
    assert found == expected and sum(found) == NUM_PEOPLE


def test_identity_without_picture_label_gap_and_bad_picture(folder, tmp_path):
    (tmp_path / 'list.txt').write_text('person0/0.png 0\nperson1/0.png 2\n')
    with pytest.raises(VisionError, match='label 1 has no picture'):
        build(type='FaceList', ann_file=str(tmp_path / 'list.txt'), data_root=str(folder))
    (folder / 'person0' / '0.png').write_bytes(b'no picture')
    with pytest.raises(VisionError, match=r'VIS-DATA-210(.|\n)*person0/0.png'):
        build(type='FaceFolder', data_root=str(folder))[0]
    (folder / 'nobody').mkdir()
    with pytest.raises(VisionError, match="VIS-DATA-1203.*'nobody'"):
        build(type='FaceFolder', data_root=str(folder))


def evaluate(metric, dataset, embeddings, order=None):
    metric.dataset_meta = dataset.metainfo
    for position in range(len(dataset)) if order is None else order:
        sample = dataset[position]['data_samples'].to_dict()
        metric.process({}, [dict(sample, embedding=torch.from_numpy(embeddings[position]))])
    return metric.evaluate(len(dataset))


def test_verification_over_pairs_and_over_a_bin(folder, tmp_path):
    rng, lines, files, same = np.random.default_rng(0), [], [], []
    for row in range(40):
        one, other = rng.integers(0, NUM_PEOPLE), rng.integers(1, NUM_PEOPLE)
        other = one if row % 2 == 0 else (one + other) % NUM_PEOPLE
        lines.append(f'person{one}/0.png person{other}/1.png {int(row % 2 == 0)}\n')
        files += [picture(one, 0), picture(other, 1)]
        same.append(row % 2 == 0)
    (tmp_path / 'pairs.txt').write_text(''.join(lines))
    pairs = build(type='FacePairs', pairs=str(tmp_path / 'pairs.txt'), data_root=str(folder))
    people = np.eye(NUM_PEOPLE, dtype=np.float32)
    rows = np.stack([people[int(path[6])] for path in pairs.paths])
    metrics = evaluate(VerificationMetric(fars=[0.1]), pairs, rows)
    assert metrics['verification/accuracy'] == 1 and metrics['verification/tar@0.1'] == 1
    (tmp_path / 'a.bin').write_bytes(pickle.dumps((files, same)))
    assert len(build(type='FaceBin', path=str(tmp_path / 'a.bin'))) == 80
    (folder / 'person0' / '0.png').unlink()
    with pytest.raises(VisionError, match='1 of .* pictures'):
        build(type='FacePairs', pairs=str(tmp_path / 'pairs.txt'), data_root=str(folder))


def test_metrics_count_each_picture_once_and_refuse_gaps(folder):
    dataset = build(type='FaceFolder', data_root=str(folder))
    rows = unit_rows(np.random.default_rng(1).normal(size=(len(dataset), 8)))
    once = evaluate(IdentificationMetric(), dataset, rows)
    order = [*range(len(dataset))][::-1] + [0, 5]
    assert evaluate(IdentificationMetric(), dataset, rows, order) == once
    with pytest.raises(VisionError, match='17 embeddings of 18'):
        evaluate(IdentificationMetric(), dataset, rows, range(17))


def test_identification_through_an_index_equals_the_exact_one(folder):
    pytest.importorskip('faiss')
    dataset = build(type='FaceFolder', data_root=str(folder))
    rows = unit_rows(np.eye(NUM_PEOPLE, 8)[dataset.labels]
                     + np.random.default_rng(2).normal(0, 0.5, (len(dataset), 8)))
    exact = evaluate(IdentificationMetric(), dataset, rows)
    found = evaluate(IdentificationMetric(index=dict(kind='faiss', factory='HNSW32')), dataset,
                     rows)
    assert found == exact and 0 < exact['identification/rank1'] < 1


@pytest.mark.parametrize('index', [None, dict(kind='faiss', factory='HNSW32'),
                                   dict(kind='ivf')])
def test_strangers_of_a_folder_that_enrols_everybody(folder, index):
    if index:
        pytest.importorskip('faiss')
    dataset = build(type='FaceFolder', data_root=str(folder))
    rng = np.random.default_rng(3)
    rows = unit_rows(np.eye(NUM_PEOPLE, 8)[dataset.labels]
                     + rng.normal(0, 0.35, (len(dataset), 8)))
    options = dict(fpirs=[0.2, 0.5], stranger_share=0.5)
    found = evaluate(IdentificationMetric(**options, index=index), dataset, rows)
    strangers = np.random.default_rng(0).choice(NUM_PEOPLE, 3, replace=False)
    is_known = ~np.isin(dataset.labels, strangers)
    first = np.arange(len(dataset)) % NUM_EACH == 0
    scores = rows[~(is_known & first)] @ rows[is_known & first].T
    best, names = scores.max(1), dataset.labels[is_known & first][scores.argmax(1)]
    labels = dataset.labels[~(is_known & first)]
    outside = np.sort(best[np.isin(labels, strangers)])[::-1]
    assert len(outside) == 3 * NUM_EACH
    for fpir in (0.2, 0.5):
        passed = best > outside[int(fpir * len(outside))]
        right = (passed & (names == labels))[~np.isin(labels, strangers)]
        assert found[f'identification/tpir@{fpir:g}'] == pytest.approx(right.mean())
    assert 0 < found['identification/tpir@0.2'] <= found['identification/tpir@0.5']
    with pytest.raises(VisionError, match='VIS-CONFIG-1116'):
        IdentificationMetric(stranger_share=1.0)
