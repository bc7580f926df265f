"""Lists of CFP, AgeDB and IJB in miniature; template pooling by hand."""

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.evaluate.protocols import (
    pool_templates,
    read_agedb,
    read_cfp,
    read_ijb,
    read_ijb_subjects,
)


@pytest.fixture
def cfp(tmp_path):
    for side in 'FP':
        (tmp_path / f'Pair_list_{side}.txt').write_text(
            ''.join(f'{n} Images/{side}/{n}.jpg\n' for n in range(1, 4)))
    for kind in ('FP', 'FF'):
        for fold in range(1, 11):
            folder = tmp_path / 'Split' / kind / f'{fold:02d}'
            folder.mkdir(parents=True)
            (folder / 'same.txt').write_text('1,1\n2,2\n')
            (folder / 'diff.txt').write_text('1,3\n3,2\n')
    return tmp_path


def test_cfp(cfp):
    pairs = read_cfp(cfp, 'FP')
    assert len(pairs) == 40 and pairs.num_folds == 10
    assert pairs.paths[:2] == ('Images/F/1.jpg', 'Images/P/1.jpg')
    assert pairs.same[:4].tolist() == [True, True, False, False]
    assert set(read_cfp(cfp, 'FF').paths) == {f'Images/F/{n}.jpg' for n in (1, 2, 3)}


def test_cfp_with_an_unknown_number_is_refused(cfp):
    (cfp / 'Split/FP/07/diff.txt').write_text('1,3\n9,1\n')
    with pytest.raises(VisionError, match=r'07/diff.txt, line 2'):
        read_cfp(cfp, 'FP')


def test_agedb_names(tmp_path):
    for name in ('0_MariaCallas_35_f.jpg', '1_Le_Corbusier_60_m.jpg'):
        (tmp_path / name).touch()
    first, second = read_agedb(tmp_path)
    assert (first.name, first.age, first.gender) == ('MariaCallas', 35, 'f')
    assert (second.name, second.age) == ('Le_Corbusier', 60)
    (tmp_path / 'other.jpg').touch()
    with pytest.raises(VisionError, match=r'other\.jpg'):
        read_agedb(tmp_path)


@pytest.fixture
def ijb(tmp_path):
    (tmp_path / 'ijbc_face_tid_mid.txt').write_text('1.jpg 10 5\n2.jpg 10 5\n3.jpg 11 6\n')
    (tmp_path / 'ijbc_name_5pts_score.txt').write_text(''.join(
        f'{n}.jpg ' + ' '.join(str(n + i) for i in range(10)) + ' 0.9\n' for n in (1, 2, 3)))
    (tmp_path / 'ijbc_template_pair_label.txt').write_text('10 11 0\n10 10 1\n')
    return tmp_path


def test_ijb_pairs(ijb):
    found = read_ijb(ijb, 'ijbc')
    assert found.paths == ('1.jpg', '2.jpg', '3.jpg') and found.templates.tolist() == [10, 10, 11]
    assert found.landmarks[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert found.same.tolist() == [False, True] and found.detection_scores.tolist() == [0.9] * 3


@pytest.mark.parametrize('text, reason', [('10 12 0\n', '1 templates of the pairs'),
                                          ('10 11\n', 'line 1'), ('10 x 0\n', 'column 2')])
def test_broken_ijb_lists_are_refused(ijb, text, reason):
    (ijb / 'ijbc_template_pair_label.txt').write_text(text)
    with pytest.raises(VisionError, match=reason):
        read_ijb(ijb, 'ijbc')


def test_ijb_subjects(tmp_path):
    path = tmp_path / 'g.csv'
    path.write_text('TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,7,a\n1,7,b\n2,8,c\n')
    templates, subjects = read_ijb_subjects(path)
    assert templates.tolist() == [1, 2] and subjects.tolist() == [7, 8]
    path.write_text('TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,7,a\n1,8,b\n')
    with pytest.raises(VisionError, match='two subjects'):
        read_ijb_subjects(path)


def test_frames_of_one_video_count_as_one_picture():
    rows = np.array([[2.0, 0], [0, 0], [0, 1.0], [0, 3.0]])
    names, pooled = pool_templates(rows, np.array([4, 4, 4, 9]), np.array([1, 1, 2, 1]))
    assert names.tolist() == [4, 9]
    assert pooled == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 1]]), abs=1e-6)
