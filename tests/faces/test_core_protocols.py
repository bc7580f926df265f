"""Lists of CFP and IJB in miniature; template pooling by hand and against a loop."""

import tracemalloc

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.evaluate.protocols import (
    pool_templates,
    read_cfp,
    read_ijb,
    read_ijb_subjects,
    read_triples,
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
    assert found.media.tolist() == [5, 5, 6] and found.names.tolist() == [10, 11]
    assert found.landmarks[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert found.same.tolist() == [False, True] and found.detection_scores.tolist() == [0.9] * 3
    assert found.first.tolist() == [0, 0] and found.second.tolist() == [1, 0]


@pytest.mark.parametrize('text, reason', [
    ('10 12 0\n', '1 templates have no picture, first: 12'), ('10 11\n', 'line 1'),
    ('10 11 0\n\n10 x 0\n', "line 3(.|\n)*'10 x 0'|'10 x 0'(.|\n)*line 3"),
    ('10 11 0\n10 11 0 10 11 0\n', 'line 2'), ('10 11 2\n', 'labelled 2'), ('', 'empty'),
    (' \n\n', 'empty'), ('10 11 0\n10 3000000000 1\n', 'line 2'), ('10 -11 0\n', 'line 1')])
def test_broken_ijb_lists_are_refused(ijb, text, reason):
    (ijb / 'ijbc_template_pair_label.txt').write_text(text)
    with pytest.raises(VisionError, match=reason):
        read_ijb(ijb, 'ijbc')


@pytest.mark.parametrize('read_bytes', [1, 7, 1 << 22])
def test_a_long_list_is_read_in_blocks_that_nobody_notices(tmp_path, monkeypatch, read_bytes):
    from vision.faces.core.evaluate import protocols
    monkeypatch.setattr(protocols, 'READ_BYTES', read_bytes)
    rows = np.random.default_rng(0).integers(0, 2**31 - 1, (50, 3))
    text = ' \n\n' + '\r\n'.join(' '.join(map(str, row)) for row in rows[:25])
    text += '\n\n' + '\n'.join('\t'.join(map(str, row)) for row in rows[25:])
    (tmp_path / 'x.txt').write_bytes(text.encode())
    assert (read_triples(tmp_path / 'x.txt') == rows).all()
    (tmp_path / 'x.txt').write_bytes(text.encode() + b'\n1 2 9999999999\n')
    with pytest.raises(VisionError, match=r'line 54'):
        read_triples(tmp_path / 'x.txt')


def peak_bytes(call):
    """Most bytes that Python and NumPy held at once beyond what they held before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_list_takes_twelve_bytes_a_line(tmp_path, monkeypatch):
    from vision.faces.core.evaluate import protocols
    monkeypatch.setattr(protocols, 'READ_BYTES', 1 << 14)
    (tmp_path / 'x.txt').write_text('1000 2000 1\n' * 200_000)
    peak = peak_bytes(lambda: read_triples(tmp_path / 'x.txt'))
    assert 12 * 200_000 <= peak < 12 * 200_000 + 100 * (1 << 14)


def test_pooling_and_scoring_hold_a_block_of_pictures(monkeypatch):
    """16 MB of embeddings; a copy of them would show."""
    from vision.faces.core.evaluate import protocols, verification
    monkeypatch.setattr(protocols, 'POOL_ROWS', 256)
    monkeypatch.setattr(verification, 'PAIRS_AT_ONCE', 256)
    rng = np.random.default_rng(0)
    rows, templates = rng.normal(size=(32_000, 128)).astype(np.float32), np.arange(32_000) // 32
    _, pooled = pool_templates(rows, templates, templates)
    peak = peak_bytes(lambda: pool_templates(rows, templates, templates))
    assert peak < 3 * pooled.nbytes + 2_000_000 + 40 * len(rows) < rows.nbytes / 2
    first = rng.integers(0, 1000, 100_000)
    assert peak_bytes(lambda: verification.pair_cosines(pooled, first, first)) < 1_500_000


def test_ijb_subjects(tmp_path):
    path = tmp_path / 'g.csv'
    path.write_text('TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,7,a\n1,7,b\n2,8,c\n')
    templates, subjects = read_ijb_subjects(path)
    assert templates.tolist() == [1, 2] and subjects.tolist() == [7, 8]
    path.write_text('TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,7,a\n1,8,b\n')
    with pytest.raises(VisionError, match='two subjects'):
        read_ijb_subjects(path)


def test_frames_of_one_video_count_as_one_picture():
    rows = np.array([[2.0, 0], [5.0, 0], [0, 1.0], [0, 3.0]])
    names, pooled = pool_templates(rows, np.array([4, 4, 4, 9]), np.array([1, 1, 2, 1]))
    assert names.tolist() == [4, 9]
    assert pooled == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 1]]), abs=1e-6)


@pytest.mark.parametrize('pool_rows', [1, 5, 1 << 14])
def test_pooling_in_blocks_equals_a_loop(monkeypatch, pool_rows):
    from vision.faces.core.evaluate import protocols
    monkeypatch.setattr(protocols, 'POOL_ROWS', pool_rows)
    rng = np.random.default_rng(1)
    rows, weights = rng.normal(size=(60, 8)), rng.uniform(size=60)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    templates, media = rng.integers(0, 9, 60), rng.integers(0, 3, 60)
    expected = []
    for name in np.unique(templates):
        means = [np.mean([units[i] * weights[i] for i in range(60)
                          if templates[i] == name and media[i] == medium], axis=0)
                 for medium in np.unique(media[templates == name])]
        expected.append(np.sum(means, axis=0) / np.linalg.norm(np.sum(means, axis=0)))
    names, pooled = pool_templates(rows, templates, media, weights=weights)
    assert (names == np.unique(templates)).all()
    assert pooled == pytest.approx(np.array(expected), abs=1e-6)
