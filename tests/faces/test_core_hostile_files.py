"""Galleries, lists and record indices that promise too much, or lead elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.data.image_lists import read_label_list
from vision.faces.core.data.insightface_bin import read_bin
from vision.faces.core.data.pairs import read_pairs
from vision.faces.core.data.recordio import FaceRecords, write_face_records
from vision.faces.core.evaluate.protocols import read_cfp, read_ijb_subjects
from vision.faces.core.gallery.gallery import Gallery, load_gallery

DIGITS = '9' * 5000


def gallery(**changed):
    rows = dict(embeddings=np.eye(4, dtype=np.float32)[:2], names=np.array(['a', 'b']),
                sources=np.array(['1', '2']), embedder=np.array('abc')) | changed
    return {key: value for key, value in rows.items() if value is not None}


GALLERIES = [
    dict(embeddings=np.full((2, 4), np.nan, np.float32)), dict(embeddings=np.eye(4)[:2]),
    dict(embeddings=np.zeros((0, 4), np.float32)), dict(embeddings=np.float32(1)),
    dict(embeddings=np.eye(4, dtype=np.float32)), dict(names=np.array([1, 2])),
    dict(names=np.array([['a', 'b']])), dict(sources=np.array(['1'])), dict(embedder=None),
    dict(names=np.array(['a', None], dtype=object))]


@pytest.mark.fault('R32')
@pytest.mark.parametrize('case', range(len(GALLERIES)))
def test_galleries_with_other_rows_are_refused(tmp_path, case):
    np.savez(tmp_path / 'x.npz', **gallery())
    assert load_gallery(tmp_path / 'x.npz').names.tolist() == ['a', 'b']
    np.savez(tmp_path / 'x.npz', **gallery(**GALLERIES[case]))
    with pytest.raises(VisionError, match='VIS-DATA-1101'):
        load_gallery(tmp_path / 'x.npz')


@pytest.mark.fault('R32')
def test_a_gallery_cut_or_flipped_anywhere_is_refused_or_whole(tmp_path):
    Gallery(*gallery().values()).save(tmp_path / 'x.npz')
    whole, judge = (tmp_path / 'x.npz').read_bytes(), load_gallery(tmp_path / 'x.npz')
    generator = np.random.default_rng(0)
    for case in range(300):
        changed = bytearray(whole[:case * len(whole) // 64] if case < 64 else whole)
        if case >= 64:
            changed[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        (tmp_path / 'x.npz').write_bytes(changed)
        try:
            found = load_gallery(tmp_path / 'x.npz')
        except VisionError as error:
            assert error.code == 'VIS-DATA-1101'
            continue
        assert np.array_equal(found.embeddings, judge.embeddings)  # a date, or a spare byte
        assert found.names.tolist() == ['a', 'b']


LABELS = ['/etc/passwd 0', '../x.jpg 0', 'a/../../x 0', 'C:\\x 0', f'a.jpg {DIGITS}', 'a.jpg ²',
          'a.jpg -1', 'a.jpg 0\0', 'http://host/a.jpg 0', 'a.jpg', 'a.jpg 0 0', '\0 0']
PAIRS = ['/etc/passwd a 1', 'a ../../b 1', 'a b 2', 'a C:\\b 0', f'a b {DIGITS}', 'a http://b/c 1',
         f'{DIGITS}', f'10\t{DIGITS}', f'1\t1\nA\t1\t{DIGITS}\nA\t1\tB\t1',
         '1\t1\n../A\t1\t2\nA\t1\tB\t1', '1\t1\nA\t1\t²\nA\t1\tB\t1', '99999999\t99999999']


@pytest.mark.fault('R19')
@pytest.mark.parametrize('line', LABELS, ids=lambda text: ascii(text[:20]))
def test_labels_and_names_that_lead_elsewhere(tmp_path, line):
    (tmp_path / 'x.txt').write_text(f'ok/1.jpg 0\n{line}\n')
    with pytest.raises(VisionError, match='VIS-DATA-(1125|1072)'):
        read_label_list(tmp_path / 'x.txt', tmp_path)


@pytest.mark.fault('R19')
@pytest.mark.parametrize('text', PAIRS, ids=lambda text: ascii(text[:20]))
def test_pairs_that_lead_elsewhere(tmp_path, text):
    (tmp_path / 'x.txt').write_text(text)
    with pytest.raises(VisionError, match='VIS-DATA-106[12]'):
        read_pairs(tmp_path / 'x.txt')


@pytest.mark.fault('R19')
@pytest.mark.parametrize('row', [f'{DIGITS},1', '1,²', '1', 'x,y', '9' * 30 + ',1', '"' * 200_000,
                                 '1,1\0'])
def test_subjects_that_are_no_numbers(tmp_path, row):
    (tmp_path / 'x.csv').write_text(f'TEMPLATE_ID,SUBJECT_ID\n1,2\n{row}\n')
    with pytest.raises(VisionError, match='VIS-DATA-1073'):
        read_ijb_subjects(tmp_path / 'x.csv')


@pytest.mark.fault('R19')
@pytest.mark.parametrize('name', ['../../etc/passwd', '/etc/passwd', '../Data/../../x'])
def test_names_of_cfp_may_go_to_its_data_and_no_further(tmp_path, name):
    for side in 'FP':
        (tmp_path / f'Pair_list_{side}.txt').write_text('1 ../Data/Images/001/frontal/01.jpg\n')
    for fold in range(1, 11):
        (tmp_path / 'Split' / 'FP' / f'{fold:02d}').mkdir(parents=True)
        for kind in ('same', 'diff'):
            (tmp_path / 'Split' / 'FP' / f'{fold:02d}' / f'{kind}.txt').write_text('1,1\n')
    assert read_cfp(tmp_path).paths == ('Data/Images/001/frontal/01.jpg',)
    (tmp_path / 'Pair_list_P.txt').write_text(f'1 {name}\n')
    with pytest.raises(VisionError, match='VIS-DATA-1073'):
        read_cfp(tmp_path)


@pytest.mark.fault('R19')
@pytest.mark.parametrize('line', [f'{DIGITS}\t0', f'9\t{DIGITS}', '²\t0', '-1\t0', f'{2**63}\t0',
                                  '9\t4294967296', '9\t3', '0\t0', '9'])
def test_record_indices_that_point_elsewhere(tmp_path, line):
    write_face_records(tmp_path / 'x.rec', [[b'a'], [b'b']])
    whole = (tmp_path / 'x.idx').read_text()
    (tmp_path / 'x.idx').write_text(whole + line + '\n', encoding='utf-8')
    with pytest.raises(VisionError, match='VIS-DATA-1069'):
        FaceRecords(tmp_path / 'x.rec')


@pytest.mark.fault('S33')
def test_a_verification_set_that_overruns_memory_is_refused(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / 'common'))
    import hostile_pickles
    marker = tmp_path / 'marker'
    cases = hostile_pickles.calls(str(marker)) | hostile_pickles.other_ways(str(marker))
    for content in cases.values():
        (tmp_path / 'x.bin').write_bytes(content)
        with pytest.raises(VisionError, match='VIS-DATA-107[01]'):
            read_bin(tmp_path / 'x.bin')
    assert not marker.exists()
