"""Each protocol of "vision faces verify" on embeddings made by hand, and what it refuses."""

import json
import pickle

import numpy as np
import pytest

from vision.common.core.errors import VisionError


@pytest.fixture(scope='module')
def tool():
    from vision.cli import faces_verify
    return faces_verify


@pytest.fixture
def ask(tool, tmp_path):
    """Options -> the row of the report; embeddings are a dict path -> row."""
    def run(protocol, embeddings, *options):
        np.savez(tmp_path / 'e.npz', paths=np.array(list(embeddings)[::-1]),
                 embeddings=np.array(list(embeddings.values()), dtype=np.float32)[::-1])
        assert tool.main(['--protocol', protocol, *map(str, options), '--json',
                          str(tmp_path / 'r.json'), '--embeddings', str(tmp_path / 'e.npz')]) == 0
        return json.loads((tmp_path / 'r.json').read_text())['rows'][0]
    return run


# Ten folds of one pair of each kind: two people are at right angles, one person is one direction;
# but that of fold 3 is too. So fold 3 is half right: 0.95. At FAR 0.1 one of ten impostors may
# pass, the threshold is a cosine of 0, and 9 of 10 genuine pairs are above it.
EMBEDDINGS = {f'{row}{side}.jpg': [0, 3] if (row, side) == (3, 'b') else [2, 0]
              for row in range(10) for side in 'ab'} | {'x.jpg': [0, 1], 'y.jpg': [1, 0]}
PAIRS = [(f'{row}a.jpg', f'{row}b.jpg', 1) for row in range(10)], \
    [(f'{row}a.jpg', 'x.jpg', 0) for row in range(10)]


def is_as_worked_out(row):
    assert row['fold_accuracies'] == [1, 1, 1, 0.5, 1, 1, 1, 1, 1, 1]
    assert row['accuracy'] == pytest.approx(0.95) and row['num_pairs'] == 20
    assert row['tar_at_far'][0]['tar'] == 0.9 and row['flip_fusion'] is None


@pytest.mark.parametrize('protocol', ['lfw', 'agedb', 'pairs'])
def test_a_list_of_pairs(ask, tmp_path, protocol):
    (tmp_path / 'p.txt').write_text(''.join(f'{a} {b} {same}\n' for part in PAIRS
                                            for a, b, same in part))
    is_as_worked_out(ask(protocol, EMBEDDINGS, '--pairs', tmp_path / 'p.txt', '--far', 0.1))


@pytest.mark.parametrize('protocol', ['calfw', 'cplfw'])
def test_two_lines_a_pair(ask, tmp_path, protocol):
    (tmp_path / 'p.txt').write_text(''.join(f'{a} {same}\n{b} {same}\n' for part in PAIRS
                                            for a, b, same in part))
    is_as_worked_out(ask(protocol, EMBEDDINGS, '--pairs', tmp_path / 'p.txt', '--far', 0.1))


def test_a_packed_set(ask, tmp_path):
    rows = [pair for both in zip(*PAIRS, strict=True) for pair in both]
    (tmp_path / 'a.bin').write_bytes(pickle.dumps(([b'picture'] * 40, [pair[2] for pair in rows])))
    ends = [EMBEDDINGS[end] for pair in rows for end in pair[:2]]
    is_as_worked_out(ask('agedb', {str(i): row for i, row in enumerate(ends)},
                         '--bin', tmp_path / 'a.bin', '--far', 0.1))


@pytest.mark.parametrize('kind', ['FP', 'FF'])
def test_cfp(ask, tmp_path, kind):
    for side in 'FP':
        names = [f'{row}{"a" if side == "F" else "b"}.jpg' for row in range(10)] + ['x.jpg']
        (tmp_path / f'Pair_list_{side}.txt').write_text(''.join(
            f'{n} ../Data/{name}\n' for n, name in enumerate(names)))
    for fold in range(10):
        folder = tmp_path / 'Split' / kind / f'{fold + 1:02d}'
        folder.mkdir(parents=True)
        (folder / 'same.txt').write_text(f'{fold},{fold}\n')
        (folder / 'diff.txt').write_text(f'{fold},10\n')
    embeddings = {f'Data/{name}': row for name, row in EMBEDDINGS.items()}
    row = ask('cfp', embeddings, '--lists', tmp_path, '--kind', kind, '--far', 0.1)
    if kind == 'FP':
        is_as_worked_out(row)
    else:  # one picture of each pair only: no turned one among them
        assert row['accuracy'] == 1 and row['num_images'] == 11


@pytest.fixture
def ijb(tmp_path):
    """(folder of lists, embeddings) of four subjects, a template each, and four probes."""
    rows = {'A': [1, 0, 0, 0], 'B': [0, 1, 0, 0], 'C': [0, 0, 1, 0], 'D': [0, 0, 0, 1],
            'a': [0.8, 0.6, 0, 0], 'b': [0, 0.9, 0.1, 0], 'c': [0.1, 0.5, 0.6, 0.61],
            'd': [0, 0.2, 0, 0.98]}
    ids = {name: 10 + place for place, name in enumerate(rows)}
    (tmp_path / 'ijbc_face_tid_mid.txt').write_text(''.join(
        f'{name}.jpg {ids[name]} {ids[name]}\n' for name in rows))
    points = '38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2'
    (tmp_path / 'ijbc_name_5pts_score.txt').write_text(''.join(
        f'{name}.jpg {points} 0.9\n' for name in rows))
    pairs = [('A', 'a', 1), ('C', 'c', 1), ('A', 'c', 0), ('B', 'c', 0), ('D', 'a', 0)]
    (tmp_path / 'ijbc_template_pair_label.txt').write_text(''.join(
        f'{ids[one]} {ids[other]} {same}\n' for one, other, same in pairs))
    for part, names in (('gallery_G1', 'AB'), ('gallery_G2', 'CD'), ('probe_mixed', 'abcd')):
        lines = ''.join(f'{ids[name]},{ord(name.upper())},{name}.jpg\n' for name in names)
        (tmp_path / f'ijbc_1N_{part}.csv').write_text('TEMPLATE_ID,SUBJECT_ID,FILENAME\n' + lines)
    return tmp_path, {f'{name}.jpg': row for name, row in rows.items()}


def test_ijb(ask, ijb):
    """G1: a and b are found first; strangers score 0.50 (c) and 0.20 (d). G2: d is first, c second
    behind D; strangers score 0.11 (b) and 0. At FPIR 0.5 one stranger passes."""
    row = ask('ijbc', ijb[1], '--lists', ijb[0], '--far', 0.34, '--fpir', 0.5, '--ranks', 1, 2)
    assert row['tar_at_far'][0]['tar'] == 1 and row['num_pairs'] == 5
    assert row['tar_at_far'][0]['threshold'] == pytest.approx(0.1, abs=2e-3)
    first, second, mean = row['identification']
    assert first == {'gallery': 'G1', 'rank1': 1, 'rank2': 1, 'tpir@0.5': 1}
    assert second == {'gallery': 'G2', 'rank1': 0.5, 'rank2': 1, 'tpir@0.5': 0.5}
    assert mean == {'gallery': 'mean', 'rank1': 0.75, 'rank2': 1, 'tpir@0.5': 0.75}


def test_ijb_without_its_1n_lists_says_so(ask, ijb, tool, capsys):
    for path in ijb[0].glob('*_1N_*'):
        path.unlink()
    row = ask('ijbc', ijb[1], '--lists', ijb[0])
    assert 'identification' not in row and row['tar_at_far'] == []
    said = capsys.readouterr().err
    assert 'no identification: ijbc_1N_gallery_G1.csv' in said
    assert 'no TAR at FAR 1e-06' in said and 'there are 3 impostor pairs' in said
    for option in ('--fpir', 0.5), ('--ranks', 1):
        with pytest.raises(VisionError, match='VIS-DATA-1123.*gallery_G1'):
            ask('ijbc', ijb[1], '--lists', ijb[0], *option)


PEOPLE = {'a/1.jpg': [1, 0, 0], 'a/2.jpg': [0.8, 0.6, 0], 'b/1.jpg': [0, 0, 1]}


@pytest.fixture
def people(tmp_path):
    (tmp_path / 'list.txt').write_text('a/1.jpg 0\na/2.jpg 0\nb/1.jpg 1\n')
    return '--list', tmp_path / 'list.txt'


def test_megaface(ask, people, tmp_path):
    # The cosine of the two pictures is 0.8; a distractor ties with it from the first one's side.
    np.save(tmp_path / 'd.npy', np.array([[0.6, -0.8, 0], [1.6, -1.2, 0]], dtype=np.float32))
    row = ask('megaface', PEOPLE, *people, '--distractors', tmp_path / 'd.npy', '--sizes', 1, 2)
    assert row['num_questions'] == 2
    assert row['rank1'] == [dict(distractors=1, rate=1), dict(distractors=2, rate=0.5)]
    assert [rate['distractors'] for rate in ask(
        'megaface', PEOPLE, *people, '--distractors', tmp_path / 'd.npy')['rank1']] == [2]


def test_all_pairs(ask, people):
    row = ask('allpairs', PEOPLE, *people, '--far', 0.5)  # impostors: 0 and 0, one may pass
    assert row['num_pairs'] == 3 and row['tar_at_far'] == [dict(far=0.5, tar=1, threshold=0)]


def test_embeddings_that_do_not_fit(ask, people, tool, tmp_path):
    with pytest.raises(VisionError, match='VIS-DATA-1087: .*1 of 3 pictures.*b/1.jpg'):
        ask('allpairs', {name: PEOPLE[name] for name in ('a/1.jpg', 'a/2.jpg')}, *people)
    np.save(tmp_path / 'd.npy', np.ones((5, 4), dtype=np.float32))
    with pytest.raises(VisionError, match='VIS-DATA-1087: .*rows of 4 numbers, the others have 3'):
        ask('megaface', PEOPLE, *people, '--distractors', tmp_path / 'd.npy')
    for rows in (np.zeros(3), np.zeros((3, 2), int), np.zeros((4, 2)), np.array([{}, {}, {}])):
        np.save(tmp_path / 'x.npy', rows)
        with pytest.raises(VisionError, match='VIS-DATA-1087'):
            tool.main(['--protocol', 'allpairs', *map(str, people), '--embeddings',
                       str(tmp_path / 'x.npy')])
    for header in (b"{'a': (", b"{'descr': '<f4', 'fortran_order': False, 'shape': (9" + b'9' * 30
                   + b', 2)}'):
        (tmp_path / 'x.npy').write_bytes(b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little')
                                         + header)
        with pytest.raises(VisionError, match='VIS-DATA-1087'):
            tool.main(['--protocol', 'allpairs', *map(str, people), '--embeddings',
                       str(tmp_path / 'x.npy')])
    np.save(tmp_path / 'x.npy', np.array(list(PEOPLE.values())))  # in the order of the list
    tool.main(['--protocol', 'allpairs', *map(str, people), '--embeddings',
               str(tmp_path / 'x.npy'), '--far', '0.5'])


@pytest.mark.parametrize(('options', 'code'), [
    (['--far', '0.3'], 'VIS-DATA-1064'), (['--fpir', '0.4'], 'VIS-DATA-1064'),
    (['--ranks', '0'], 'VIS-CONFIG-1126'), (['--sizes', '3'], 'VIS-CONFIG-1085'),
    (['--pairs', 'p.txt'], 'VIS-CONFIG-1085')])
def test_what_ijb_cannot_tell_is_refused_before_the_embedder_is_there(tool, ijb, monkeypatch,
                                                                      options, code):
    monkeypatch.setattr('vision.faces.mm.protocol_pictures.load_embedder',
                        lambda *_, **__: pytest.fail('the embedder was built'))
    with pytest.raises(VisionError, match=code):
        tool.main(['c.py', 'w.pth', '--protocol', 'ijbc', '--lists', str(ijb[0]), '--images',
                   str(ijb[0]), *options])
    with pytest.raises(VisionError, match='VIS-DATA-1127: 8 of 8 pictures'):
        tool.main(['c.py', 'w.pth', '--protocol', 'ijbc', '--lists', str(ijb[0]), '--images',
                   str(ijb[0])])
    (ijb[0] / 'ijbc_1N_probe_mixed.csv').write_text('TEMPLATE_ID,SUBJECT_ID\n99,65\n')
    with pytest.raises(VisionError, match='VIS-DATA-1073.*99'):
        tool.main(['c.py', 'w.pth', '--protocol', 'ijbc', '--lists', str(ijb[0]), '--images',
                   str(ijb[0])])


@pytest.mark.parametrize(('protocol', 'options', 'what'), [
    ('megaface', ['--sizes', '3'], '2 pairs of one person among 3 of 2'),
    ('megaface', ['--far', '0.1'], '--far says nothing'), ('allpairs', ['--far', '0.4'], '1064'),
    ('megaface', ['--distractors', 'zero.npy'], 'first: row 1')])
def test_what_a_set_cannot_tell_is_refused_before_the_embedder_is_there(
        tool, people, tmp_path, monkeypatch, protocol, options, what):
    monkeypatch.setattr('vision.faces.mm.protocol_pictures.load_embedder',
                        lambda *_, **__: pytest.fail('the embedder was built'))
    monkeypatch.chdir(tmp_path)
    np.save('d.npy', np.ones((2, 3), dtype=np.float32))
    np.save('zero.npy', np.array([[1.0, 0], [0, 0]]))
    given = ['--distractors', 'd.npy'] if protocol == 'megaface' else []
    with pytest.raises(VisionError, match=what):
        tool.main(['c.py', 'w.pth', '--protocol', protocol, *map(str, people), '--images', '.',
                   *given, *options])


@pytest.mark.parametrize('options', [
    ['--protocol', 'lfw'], ['--protocol', 'ijbb'], ['--protocol', 'megaface', '--list', 'x'],
    ['--protocol', 'allpairs'], ['--protocol', 'cfp', '--lists', 'x', '--bin', 'y'],
    ['c.py', 'w.pth', '--bin', 'x', '--images', 'y'],
    ['c.py', 'w.pth', '--protocol', 'cfp', '--bin', 'x', '--kind', 'FF'],
    ['c.py', '--protocol', 'lfw', '--bin', 'x'], ['--protocol', 'lfw', '--bin', 'x'],
    ['c.py', 'w.pth', '--protocol', 'lfw', '--bin', 'x', '--embeddings', 'y'],
    ['c.py', 'w.pth', '--protocol', 'lfw', '--pairs', 'x'],
    ['--protocol', 'ijbb', '--lists', 'x', '--images', 'y', '--embeddings', 'z']])
def test_what_does_not_say_what_to_compare_is_refused(tool, options):
    with pytest.raises(VisionError, match='VIS-CONFIG-1131'):
        tool.main(options)
