"""vision faces verify, gallery and recognize on generated pictures; twins on real faces."""

import importlib
import json
import pickle
import signal

import cv2
import numpy as np
import pytest

from vision.common.core.boxes import iou_matrix
from vision.common.core.errors import VisionError

CONFIG = '''model = dict(type='FaceRecognizer', flip_fusion={flip},
    backbone=dict(type='MobileFaceNet', dim=16, image_size=112))'''


@pytest.fixture(scope='module')
def tool():
    return lambda name: importlib.import_module(f'vision.cli.faces_{name}')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """[config, checkpoint] of an embedder with random weights."""
    import torch

    from vision.common.nn.checkpoint import save_checkpoint
    from vision.registry import MODELS
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    built = MODELS.build(dict(type='FaceRecognizer', backbone=dict(
        type='MobileFaceNet', dim=16, image_size=112)))
    save_checkpoint(dict(state_dict=built.state_dict()), folder / 'm.pth')
    (folder / 'm.py').write_text(CONFIG.format(flip=False))
    (folder / 'flip.py').write_text(CONFIG.format(flip=True))
    return [str(folder / 'm.py'), str(folder / 'm.pth')]


def chosen(model):
    return ['--model', model[0], '--weights', model[1]]


def picture(path, seed, noise=0.0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3)).astype(np.float32)
    grain = np.random.default_rng(9).normal(0, noise, (112, 112, 3))
    image = cv2.resize(coarse, (112, 112)) + grain
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8))


@pytest.fixture
def pairs(tmp_path):
    lines = []
    for row in range(10):
        picture(tmp_path / f'p{row}/a.png', row)
        picture(tmp_path / f'p{row}/b.png', row, noise=2)
        lines += [f'p{row}/a.png p{row}/b.png 1\n', f'p{row}/a.png p{(row + 3) % 10}/b.png 0\n']
    (tmp_path / 'pairs.txt').write_text(''.join(lines))
    return ['--pairs', str(tmp_path / 'pairs.txt'), '--images', str(tmp_path)]


def test_verification_writes_its_report(tool, model, pairs, tmp_path, capsys):
    target = tmp_path / 'v.json'
    assert tool('verify').main([*model, *pairs, '--far', '0.1', '--json', str(target)]) == 0
    row, = json.loads(target.read_text())['rows']
    assert row['num_pairs'] == 20 and row['num_images'] == 20 and row['flip_fusion'] is False
    assert row['accuracy'] >= 0.9  # near copies against other pictures, even at random weights
    assert len(row['fold_thresholds']) == 10 and 'accuracy' in capsys.readouterr().out


def test_pictures_of_another_size_or_cut_are_refused_before_the_embedder_is_there(
        tool, model, pairs, tmp_path, monkeypatch):
    """The last picture of the list: the minute of embedding would come first."""
    monkeypatch.setattr('vision.faces.mm.protocol_pictures.load_embedder',
                        lambda *_, **__: pytest.fail('the embedder was built'))
    verify = tool('verify').main
    last = tmp_path / 'p9/b.png'
    whole = last.read_bytes()
    cv2.imwrite(str(last), np.zeros((90, 112, 3), np.uint8))
    with pytest.raises(VisionError, match='112 x 90 px'):
        verify([*model, *pairs])
    last.write_bytes(whole[:-100])
    with pytest.raises(VisionError, match='VIS-DATA-210.*p9/b.png'):
        verify([*model, *pairs])
    other = cv2.imencode('.png', np.zeros((90, 112, 3), np.uint8))[1].tobytes()
    (tmp_path / 'x.bin').write_bytes(pickle.dumps(([whole] * 39 + [other], [True, False] * 10)))
    with pytest.raises(VisionError, match='picture 39 is 112 x 90 px'):
        verify([*model, '--bin', str(tmp_path / 'x.bin'), '--far', '0.1'])


def test_verification_refuses(tool, model, pairs, tmp_path):
    verify = tool('verify')
    with pytest.raises(VisionError, match='VIS-CONFIG-1131'):
        verify.main([*model, '--pairs', pairs[1]])
    cv2.imwrite(str(tmp_path / 'p3/a.png'), np.zeros((90, 112, 3), np.uint8))
    with pytest.raises(VisionError, match='112 x 90 px'):
        verify.main([*model, *pairs])
    marker = tmp_path / 'marker'
    (tmp_path / 'hostile.yaml').write_text(f'!!python/object/apply:os.mkdir [{marker}]')
    cv2.imwrite(str(tmp_path / 'p3/a.png'), np.zeros((112, 112, 3), np.uint8))
    with pytest.raises(VisionError, match='VIS-CONFIG-351'):
        verify.main([str(tmp_path / 'hostile.yaml'), model[1], *pairs])
    assert not marker.exists()
    (tmp_path / 'empty.py').write_text('x = 1')
    with pytest.raises(VisionError, match='VIS-CONFIG-1130'):
        verify.main([str(tmp_path / 'empty.py'), model[1], *pairs])


def test_what_pairs_cannot_tell_is_refused_before_a_picture_is_read(tool, model, pairs, tmp_path,
                                                                    monkeypatch):
    """Ten impostor pairs; a list of one fold; a result that cannot be written."""
    monkeypatch.setattr('vision.faces.mm.datasets.FacePairs.read',
                        lambda *_: pytest.fail('a picture was read'))
    verify = tool('verify').main
    with pytest.raises(VisionError, match='VIS-DATA-1064'):
        verify([*model, *pairs, '--far', '0.001'])
    with pytest.raises(VisionError, match='VIS-DATA-1064'):
        verify([*model, *pairs, '--far', '0.1', '2'])
    with pytest.raises(VisionError, match='VIS-ENV-109'):
        verify([*model, *pairs, '--json', str(tmp_path)])
    only = tmp_path / 'genuine.txt'
    only.write_text(''.join(f'p{row}/a.png p{row}/b.png 1\n' for row in range(10)))
    with pytest.raises(VisionError, match='VIS-DATA-1110'):
        verify([*model, '--pairs', str(only), '--images', str(tmp_path), '--far', '0.1'])


def test_the_default_rates_are_those_that_the_pairs_can_tell(tool, model, pairs, tmp_path, capsys):
    target = tmp_path / 'v.json'
    assert tool('verify').main([*model, *pairs, '--json', str(target)]) == 0
    assert json.loads(target.read_text())['rows'][0]['tar_at_far'] == []
    assert 'no TAR at FAR 0.001, 0.01: there are 10 impostor pairs' in capsys.readouterr().err


def embeddings(path):
    with np.load(path) as content:
        return dict(zip(content['paths'].tolist(), content['embeddings'], strict=True))


def test_pictures_of_ijb_are_aligned_by_their_landmarks(tool, model, tmp_path):
    """Faces somewhere in larger pictures give the embeddings of the faces themselves."""
    from vision.faces.core.gallery.alignment import TEMPLATE_112
    verify, faces, pairs, points = tool('verify').main, [], [], []
    for row in range(4):
        picture(tmp_path / f'faces/{row // 2}/{row}.png', row)
        x, y = 10 * row + 3, 5 * row
        canvas = np.zeros((200, 240, 3), np.uint8)
        canvas[y:y + 112, x:x + 112] = cv2.imread(str(tmp_path / f'faces/{row // 2}/{row}.png'))
        (tmp_path / 'whole').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f'whole/{row}.png'), canvas)
        numbers = ' '.join(map(str, (TEMPLATE_112 + [x, y]).ravel()))
        points.append(f'{row}.png {numbers} 0.9\n')
        faces.append(f'{row}.png {row} {row}\n')
        pairs.append(f'{row} {row ^ 1} 1\n{row} {row ^ 2} 0\n')
    for name, lines in (('face_tid_mid', faces), ('name_5pts_score', points),
                        ('template_pair_label', pairs)):
        (tmp_path / f'ijbb_{name}.txt').write_text(''.join(lines))
    assert verify([*model, '--protocol', 'ijbb', '--lists', str(tmp_path), '--images', str(
        tmp_path / 'whole'), '--far', '0.5', '--save-embeddings', str(tmp_path / 'i.npz')]) == 0
    assert verify([*model, '--protocol', 'allpairs', '--images', str(tmp_path / 'faces'), '--far',
                   '0.5', '--save-embeddings', str(tmp_path / 'f.npz')]) == 0
    found, judge = embeddings(tmp_path / 'i.npz'), embeddings(tmp_path / 'f.npz')
    for row in range(4):
        assert found[f'{row}.png'] == pytest.approx(judge[f'{row // 2}/{row}.png'], abs=1e-3)


def test_distractors_from_pictures_are_those_from_their_embeddings(tool, model, tmp_path):
    verify, rows = tool('verify').main, []
    for row in range(4):
        picture(tmp_path / f'people/{row // 2}/{row}.png', row // 2, noise=4 * row)
        picture(tmp_path / f'others/sub/{row}.png', 9 + row)
    (tmp_path / 'others.txt').write_text(''.join(f'sub/{row}.png 0\n' for row in range(4))
                                         + 'sub/0.png 1\n')
    common = [*model, '--protocol', 'megaface', '--images', str(tmp_path / 'people')]
    verify([*model, '--protocol', 'allpairs', '--list', str(tmp_path / 'others.txt'), '--far',
            '0.5', '--images', str(tmp_path / 'others'), '--save-embeddings',
            str(tmp_path / 'o.npz')])
    for distractors in ('others', 'o.npz'):
        assert verify([*common, '--distractors', str(tmp_path / distractors), '--sizes', '1', '4',
                       '--json', str(tmp_path / 'm.json')]) == 0
        rows.append(json.loads((tmp_path / 'm.json').read_text())['rows'][0])
    assert rows[0]['rank1'] == rows[1]['rank1'] and rows[0]['num_questions'] == 4
    np.save(tmp_path / 'd.npy', np.ones((5, 3), dtype=np.float32))
    with pytest.raises(VisionError, match='VIS-DATA-1087: .*rows of 3 numbers.* have 16'):
        verify([*common, '--distractors', str(tmp_path / 'd.npy')])


def test_gallery_life(tool, model, tmp_path, capsys):
    gallery, out = tool('gallery').main, str(tmp_path / 'g.npz')
    for name, seed in (('ada', 1), ('bob', 2)):
        picture(tmp_path / 'people' / name / '1.png', seed)
    picture(tmp_path / 'more' / 'eve' / '1.png', 3)
    enrol = [*chosen(model), '--out', out, '--aligned']
    assert gallery(['build', str(tmp_path / 'people'), *enrol]) == 0
    with pytest.raises(VisionError, match='VIS-CONFIG-1104'):
        gallery(['build', str(tmp_path / 'people'), *enrol])
    assert gallery(['add', str(tmp_path / 'more'), *enrol]) == 0
    assert gallery(['add', str(tmp_path / 'more'), *enrol]) == 0  # again: no second row
    gallery(['remove', out, 'bob'])
    capsys.readouterr()
    gallery(['list', out])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:2]] == [
        ['1', 'ada'], ['1', 'eve']]
    flip = [*chosen([model[0].replace('m.py', 'flip.py'), model[1]]), '--out', out, '--aligned']
    with pytest.raises(VisionError, match='VIS-CONFIG-1102'):
        gallery(['add', str(tmp_path / 'people'), *flip])
    with pytest.raises(VisionError, match='VIS-CONFIG-1105'):
        gallery(['remove', out, 'nobody'])
    (tmp_path / 'g.npz').write_bytes(b'PK nonsense')
    with pytest.raises(VisionError, match='VIS-DATA-1101'):
        gallery(['list', out])


def test_people_without_a_face_are_named_and_pictures_counted(tool, model, tmp_path, monkeypatch,
                                                              capsys):
    class Finder(TemplateFinder):
        def __call__(self, image):
            faces = super().__call__(image)
            if image.mean() < 10:  # a black picture has none
                return type(faces)(faces.boxes_xyxy[:0], faces.landmarks[:0], faces.scores[:0])
            return faces
    monkeypatch.setattr('vision.faces.api.open_finder', Finder)
    people, out = tmp_path / 'people', tmp_path / 'g.npz'
    for name, seed in (('ada', 1), ('bob', 2)):
        picture(people / name / '1.png', seed)
    cv2.imwrite(str(people / 'ada' / '2.png'), np.zeros((112, 112, 3), np.uint8))
    build = ['build', str(people), *chosen(model), '--out', str(out), '--detector', 'unused']
    with pytest.raises(VisionError, match='VIS-DATA-1106: no face in .*ada/2.png'):
        tool('gallery').main([*build, '--strict'])
    assert tool('gallery').main(build) == 0
    printed = capsys.readouterr()
    assert '2 faces of 2 people' in printed.out and 'people/ada/2.png: left out' in printed.err
    assert 'left out: 1 of 3 pictures' in printed.out and 'WARNING' not in printed.out
    out.unlink()
    (people / 'ada' / '3.png').write_bytes(b'torn')
    cv2.imwrite(str(people / 'bob' / '1.png'), np.zeros((112, 112, 3), np.uint8))
    assert tool('gallery').main(build) == 0  # ada's face is not lost because bob has none
    printed = capsys.readouterr()
    assert '1 faces of 1 people' in printed.out and 'left out: 3 of 4 pictures' in printed.out
    assert 'no face in any picture: bob (1 of 2 people)' in printed.out
    assert 'ada/3.png' in printed.err
    out.unlink()
    cv2.imwrite(str(people / 'ada' / '1.png'), np.zeros((112, 112, 3), np.uint8))
    with pytest.raises(VisionError, match=r'VIS-DATA-1106: no face in any of 4 pictures'):
        tool('gallery').main(build)
    assert not out.exists()


def test_a_picture_that_is_not_aligned_is_left_out(tool, model, tmp_path, capsys):
    picture(tmp_path / 'people' / 'ada' / '1.png', 1)
    cv2.imwrite(str(tmp_path / 'people' / 'ada' / '2.png'), np.zeros((90, 112, 3), np.uint8))
    build = ['build', str(tmp_path / 'people'), *chosen(model), '--out', str(tmp_path / 'g.npz')]
    assert tool('gallery').main([*build, '--aligned']) == 0
    assert 'ada/2.png is 112 x 90 px: left out' in capsys.readouterr().err
    with pytest.raises(VisionError, match='VIS-INPUT-611'):
        tool('gallery').main([*build[:-1], str(tmp_path / 'h.npz'), '--detector', 'none.onnx'])


def test_doubtful_rows_are_named():
    from vision.faces.core.gallery.gallery import Gallery, suspicious_rows
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.0, -1]], dtype=np.float32)
    names, files = np.array(['a', 'b', 'a', 'c']), np.array(['1', '2', '3', '4'])
    doubts = suspicious_rows(Gallery(rows, names, files, 'x'), 0.7)
    assert len(doubts) == 2 and doubts[0] == '1 (a) looks like 2 (b): cosine 0.80'


def test_detected_faces_are_those_of_the_annotation(shared_data):
    import xml.etree.ElementTree as ElementTree

    from vision.faces.runtime.face_finder import FaceFinder, align_faces
    finder = FaceFinder(shared_data / 'weights' / 'yunet_n_dynamic.onnx')
    folder = shared_data / 'dlib-faces-landmarks'
    found = total = 0
    for image in ElementTree.parse(folder / 'training_with_face_landmarks.xml').iter('image'):
        pixels = cv2.imread(str(folder / image.get('file')))
        faces = finder(pixels)
        boxes = np.array([[int(box.get(key)) for key in ('left', 'top', 'width', 'height')]
                          for box in image.iter('box')], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        found += (iou_matrix(boxes, faces.boxes_xyxy).max(axis=1, initial=0) > 0.3).sum()
        total += len(boxes)
        assert align_faces(pixels, faces.landmarks).shape == (len(faces), 112, 112, 3)
    assert total > 10 and found / total >= 0.8


def test_missing_detector_is_named(tmp_path):
    from vision.faces.runtime.face_finder import FaceFinder
    with pytest.raises(VisionError, match='VIS-CKPT-1103'):
        FaceFinder(tmp_path / 'none.onnx')


SIZE, PLACES = (160, 320), ((10, 20), (190, 30))  # of the frames; left top corners of the faces


class TemplateFinder:
    """Stands for the detector: faces lie aligned at ``PLACES``; ``at`` runs at each frame."""

    def __init__(self, *_, **__):
        self.count = 0

    at = staticmethod(lambda count: None)

    def __call__(self, image):
        from vision.faces.core.gallery.alignment import TEMPLATE_112
        from vision.faces.runtime.face_finder import Faces
        self.at(self.count)
        self.count += 1
        corners = np.array(PLACES, dtype=np.float32)
        return Faces(np.concatenate([corners, corners + 112], axis=1),
                     TEMPLATE_112[None] + corners[:, None], np.array([0.9, 0.8]))


@pytest.fixture
def demo(tool, model, tmp_path, monkeypatch):
    """(run the demo on a source, folder of eight frames): ada left; right bob, then a stranger."""
    monkeypatch.setattr('vision.faces.api.open_finder', TemplateFinder)
    monkeypatch.setattr(TemplateFinder, 'at', staticmethod(lambda count: None))  # put back later
    for name, seed in (('ada', 1), ('bob', 2), ('eve', 3)):
        picture(tmp_path / 'all' / name / '1.png', seed)
    for name in ('ada', 'bob'):
        (tmp_path / 'people').mkdir(exist_ok=True)
        (tmp_path / 'people' / name).symlink_to(tmp_path / 'all' / name)
    faces = {name: cv2.imread(str(tmp_path / 'all' / name / '1.png'))
             for name in ('ada', 'bob', 'eve')}
    gallery = str(tmp_path / 'g.npz')
    tool('gallery').main(['build', str(tmp_path / 'people'), *chosen(model), '--out', gallery,
                          '--aligned'])
    (tmp_path / 'frames').mkdir()
    for t in range(8):
        frame = np.full((*SIZE, 3), 40, np.uint8)
        for (x, y), name in zip(PLACES, ('ada', 'bob' if t < 4 else 'eve'), strict=True):
            frame[y:y + 112, x:x + 112] = faces[name]
        cv2.imwrite(str(tmp_path / 'frames' / f'{t}.png'), frame)

    def run(source, *options, out='out'):
        return tool('recognize').main([
            str(source), *chosen(model), '--gallery', gallery, '--detector', 'unused',
            '--threshold', '0.999', '--out-dir', str(tmp_path / out), *options])
    return run, tmp_path / 'frames'


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def decoded(path):
    import av
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format='bgr24') for frame in container.decode(video=0)]


@pytest.mark.parametrize('index', ['exact', 'HNSW16', 'ivf'])
def test_names_in_a_video(demo, tmp_path, index, capsys):
    run, frames = demo
    assert run(frames, '--index', index, '--fps', '10') == 0
    found = rows(tmp_path / 'out' / 'frames.jsonl')
    assert [[face['name'] for face in row['faces']] for row in found] == \
        [['ada', 'bob']] * 4 + [['ada', 'unknown']] * 4
    assert [row['timestamp'] for row in found] == pytest.approx([t / 10 for t in range(8)])
    assert found[0]['faces'][1]['box'] == [190, 30, 302, 142]
    pictures = decoded(tmp_path / 'out' / 'frames.mp4')
    assert len(pictures) == 8 and pictures[0].shape == (*SIZE, 3)
    for t, colour in ((1, (80, 200, 60)), (6, (60, 60, 220))):  # the box of the right face
        assert np.abs(pictures[t][100, 302] - np.array(colour)).max() < 90
        assert np.abs(pictures[t][100, 312] - np.array([40] * 3)).max() < 20
    assert '8 frames, 16 faces: ada 8, bob 4, unknown 4' in capsys.readouterr().out


def test_a_video_of_a_video_file(demo, tmp_path):
    run, frames = demo
    run(frames)
    source = tmp_path / 'out' / 'frames.mp4'
    assert run(source, '--max-frames', '3', out='again') == 0
    assert len(decoded(tmp_path / 'again' / 'frames.mp4')) == 3
    assert len(rows(tmp_path / 'again' / 'frames.jsonl')) == 3
    before = source.read_bytes()
    with pytest.raises(VisionError, match='VIS-CONFIG-1744.*place of the source'):
        run(source)
    assert source.read_bytes() == before


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_finishes_its_files(demo, tmp_path, number):
    run, frames = demo
    TemplateFinder.at = staticmethod(
        lambda count: signal.raise_signal(number) if count == 2 else None)
    assert run(frames) == 128 + number
    assert len(rows(tmp_path / 'out' / 'frames.jsonl')) == 3
    assert len(decoded(tmp_path / 'out' / 'frames.mp4')) == 3
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'frames.jsonl', 'frames.mp4']


def test_what_came_before_a_fault_is_kept(demo, tmp_path):
    run, frames = demo
    (frames / '5.png').write_bytes(b'no picture')
    with pytest.raises(VisionError, match=r'VIS-DATA-507(.|\n)*--keep-going'):
        run(frames)
    assert len(rows(tmp_path / 'out' / 'frames.jsonl')) == 5
    assert run(frames, '--keep-going', out='all') == 0
    assert len(decoded(tmp_path / 'all' / 'frames.mp4')) == 7

    def fail(count):
        assert count < 4
    TemplateFinder.at = staticmethod(fail)
    with pytest.raises(AssertionError):
        run(frames, out='failed')
    assert len(rows(tmp_path / 'failed' / 'frames.jsonl')) == 4
    assert len(decoded(tmp_path / 'failed' / 'frames.mp4')) == 4


@pytest.mark.parametrize('options', [('--threshold', '2'), ('--min-score', '0'), ('--fps', '0'),
                                     ('--max-frames', '0')])
def test_numbers_out_of_range_are_refused_before_any_work(tool, options):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1744: {options[0]}'):
        tool('recognize').main(['a.mp4', '--gallery', 'g', '--detector', 'd', *options])


@pytest.mark.slow
def test_real_faces_are_recognised(tool, shared_data, tmp_path):
    """The public weights on 24 originals: enrol the aligned picture, find its original."""
    weights = shared_data / 'weights'
    model = ['mobilefacenet', str(weights / 'mobilefacenet.pt')]
    data = shared_data / 'lfw-aligned-subset'
    raws = sorted((data / 'raw250').glob('*.jpg'))[:24:6]
    for raw in raws:
        person = raw.stem[:-5]
        (tmp_path / 'people' / person).mkdir(parents=True)
        (tmp_path / 'people' / person / raw.name).write_bytes(
            (data / 'images' / person / raw.name).read_bytes())
    gallery = str(tmp_path / 'g.npz')
    tool('gallery').main(['build', str(tmp_path / 'people'), *chosen(model), '--out', gallery,
                          '--aligned'])
    for raw in raws:
        tool('recognize').main([
            str(raw), *chosen(model), '--gallery', gallery, '--out-dir', str(tmp_path / 'out'),
            '--detector', str(weights / 'yunet_n_dynamic.onnx')])
        faces = json.loads((tmp_path / 'out' / f'{raw.stem}.jsonl').read_text())['faces']
        assert raw.stem[:-5] in [face['name'] for face in faces]


@pytest.mark.slow
def test_real_faces_of_a_video_are_recognised(tool, shared_data, tmp_path):
    """Enrolled from whole pictures with the detector, looked up in a graph, on moving pictures."""
    from vision.stream.io.sinks import VideoSink
    weights = shared_data / 'weights'
    options = ['--weights', str(weights / 'mobilefacenet.pt'),
               '--detector', str(weights / 'yunet_n_dynamic.onnx')]
    raws = sorted((shared_data / 'lfw-aligned-subset' / 'raw250').glob('*.jpg'))[:24:6]
    known, stranger = raws[:3], raws[3]
    for raw in known:
        (tmp_path / 'people' / raw.stem[:-5]).mkdir(parents=True)
        (tmp_path / 'people' / raw.stem[:-5] / raw.name).write_bytes(raw.read_bytes())
    gallery = str(tmp_path / 'g.npz')
    tool('gallery').main(['build', str(tmp_path / 'people'), '--out', gallery, *options])
    sink = VideoSink(tmp_path / 'clip.mp4', fps=10)
    for t in range(12):
        frame = np.full((300, 560, 3), 60, np.uint8)
        frame[10 + t:260 + t, 10:260] = cv2.imread(str(known[t // 4]))
        frame[30:280, 300 - t:550 - t] = cv2.imread(str(stranger))
        sink.write(frame, t / 10)
    sink.close()
    tool('recognize').main([str(tmp_path / 'clip.mp4'), *options, '--gallery', gallery,
                            '--index', 'HNSW16', '--out-dir', str(tmp_path / 'out')])
    for t, row in enumerate(rows(tmp_path / 'out' / 'clip.jsonl')):
        left, right = ([face['name'] for face in row['faces'] if (face['box'][0] > 280) is side]
                       for side in (False, True))
        assert known[t // 4].stem[:-5] in left and right == ['unknown'], t
    assert t == 11


@pytest.mark.parametrize(('options', 'what'), [
    (['--min-score', '7'], '--min-score 7.0'), (['--min-score', '0'], '--min-score 0.0'),
    (['--aligned', '--detector', 'd.onnx'], '--aligned and --detector together')])
def test_a_gallery_is_not_begun_with_options_that_cannot_be_meant(tool, tmp_path, options, what):
    with pytest.raises(VisionError, match='VIS-CONFIG-1104') as error:
        tool('gallery').main(['build', 'people', '--out', str(tmp_path / 'new' / 'g.npz'),
                              *options])
    assert error.value.what == what and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('option', ['--batch-size', '--image-size'])
def test_pictures_by_the_none_are_refused_before_work(tool, option):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1126: {option} 0'):
        tool('verify').main(['c.py', 'w.pth', '--bin', 'x.bin', option, '0'])
