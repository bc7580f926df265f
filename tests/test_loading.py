"""vision.load and vision.models: from names to objects, without what is not needed."""

import subprocess
import sys

import pytest

import vision
from vision.common.core.config_files import config_names, find_config
from vision.common.core.errors import VisionError
from vision.loading import OPENERS, ModelTable, card_of
from vision.zoo import Entry, ModelEntry, load_index, load_models
from vision.zoo.store import Settings, whereabouts

HEAVY = ('numpy', 'cv2', 'onnxruntime', 'torch', 'mmengine', 'yaml', 'av')


def test_importing_costs_nothing_and_names_are_there():
    code = (f'import sys, vision; print([name for name in {HEAVY} if name in sys.modules]); '
            'print(sorted(set(vision.__all__) - set(dir(vision)))); '
            'print(vision.load.__module__, hasattr(vision, "nothing"))')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines() == ['[]', '[]', 'vision.loading False'], said.stderr


def test_models_print_as_a_table():
    table = vision.models()
    assert isinstance(table, ModelTable) and {card.name for card in table} == set(load_models())
    head, *rows = repr(table).splitlines()
    assert head.split()[:4] == ['name', 'task', 'MB', 'licence'] and len(rows) == len(table)
    lattice, = vision.models('lattice*')
    assert lattice.is_here and lattice.task == 'video' and lattice.licence == 'Apache-2.0'
    assert lattice.size_mb == pytest.approx(3.65, abs=0.01) and 'coco_val2017_map' in \
        lattice.metrics
    assert repr(vision.models('nothing*')) == 'no models'


def test_every_model_names_what_is_there(repository):
    for model in load_models().values():
        assert not model.config or (repository / model.config).is_file(), model.name
        assert model.task in OPENERS and card_of(model).licence


@pytest.mark.parametrize(('name', 'place'), [('here.onnx', 'package'), ('kept.onnx', 'cache'),
                                             ('beside.onnx', 'mirror'), ('far.onnx', 'download'),
                                             ('hand.onnx', 'by hand')])
def test_where_a_file_is(tmp_path, name, place):
    kind = dict(package='package:', cache='https://example.org/')
    entry = Entry(name='a', addresses=(f'{kind.get(place, "https://example.org/")}{name}',),
                  sha256='0' * (8 if place == 'by hand' else 64), size_bytes=1, licence='MIT',
                  source='x', config='x.py')
    settings = Settings(tmp_path / 'cache', tmp_path / 'mirror')
    for folder, file in (('cache', '000000000000-kept.onnx'), ('mirror', 'beside.onnx')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    assert whereabouts(entry, settings) == place


def test_configs_are_found_by_path_and_by_name(repository, tmp_path, monkeypatch):
    wanted = repository / 'configs/lattice/lattice_yolox-nano_flow_coco.py'
    monkeypatch.chdir(tmp_path)
    for text in ('lattice_yolox-nano_flow_coco', 'configs/lattice/lattice_yolox-nano_flow_coco.py',
                 str(wanted)):
        assert find_config(text).resolve() == wanted
    assert find_config('lattice') is None and find_config('') is None


def test_names_of_configs_are_unique():
    from vision.common.core.config_files import CONFIGS
    files = [path for path in CONFIGS.rglob('*.py')
             if not {'_base_', 'demo'} & set(path.parts)]
    assert len(config_names()) == len(files) > 40


@pytest.mark.parametrize(('name', 'options', 'code'), [
    ('latice_yolox-nano', {}, 'VIS-INPUT-1711[^$]*nearest: lattice_yolox-nano,'),
    ('vit-tiny', {}, 'VIS-INPUT-1711[^$]*nearest: vit-tiny_'),
    ('qqqqqqqqqqqqqqqqq', {}, 'VIS-INPUT-1711[^$]*models: lattice_yolox-nano'),
    ('no/such.onnx', {}, 'VIS-INPUT-1711.*\nWhere: /.*no/such.onnx'),
    ('lattice_yolox-nano', dict(task='faces'), 'VIS-INPUT-1715[^$]*it is for video'),
    ('lattice_yolox-nano', dict(device='cuda:0'), 'VIS-CONFIG-1721'),
    ('lattice_yolox-nano', dict(weights='no.onnx'), 'VIS-INPUT-611'),
    ('CONFIG', {}, 'VIS-INPUT-1715[^$]*does not tell its task'),
    ('ONNX', {}, 'VIS-CKPT-807'),
    ('ONNX', dict(task='classify'), 'VIS-CKPT-1739'),
])
def test_what_load_refuses(tmp_path, name, options, code):
    (tmp_path / 'config.py').write_text('a = 1\n')
    (tmp_path / 'a.onnx').write_bytes(b'no network')
    name = dict(CONFIG=tmp_path / 'config.py', ONNX=tmp_path / 'a.onnx').get(name, name)
    with pytest.raises(VisionError, match=code):
        vision.load(name, **options)


def onnx_file(path, output_shape, metadata):
    onnx = pytest.importorskip('onnx')
    kind = onnx.TensorProto.FLOAT
    shape = onnx.helper.make_tensor('shape', onnx.TensorProto.INT64, [len(output_shape)],
                                    output_shape)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('GlobalAveragePool', ['x'], ['mean']),
         onnx.helper.make_node('Flatten', ['mean'], ['flat']),
         onnx.helper.make_node('Expand', ['flat', 'shape'], ['y'])], 'g',
        [onnx.helper.make_tensor_value_info('x', kind, [1, 1, 8, 8])],
        [onnx.helper.make_tensor_value_info('y', kind, output_shape)], [shape])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(('shape', 'metadata', 'task'), [
    ([1, 5, 1], {}, 'video'), ([1, 5], dict(names='{0: "a"}'), 'classify'), ([1, 5], {}, ''),
    ([1, 5], dict(task='faces'), 'faces'), ([1, 5, 1], dict(task='classify'), 'classify'),
    ([1, 5], dict(task='detect'), 'video'), ([1, 5], dict(task='segment'), '')])
def test_the_task_of_an_onnx_file(tmp_path, shape, metadata, task):
    from vision.loading import _task_of
    assert _task_of(onnx_file(tmp_path / 'a.onnx', shape, metadata)) == task


@pytest.mark.parametrize(('text', 'task'), [
    ("model = dict(type='LatticeDetector')", 'video'),
    ("model = {'type': 'vision.FaceRecognizer'}", 'faces'),
    ("_base_ = 'base.py'\nmodel = dict(depth=3)", 'classify'),
    ("_base_ = ['base.py']\nmodel = dict(type='mmdet.YOLOX')", 'detect'),
    ("_base_ = ['base.py']\nmodel = dict(_delete_=True, type=kind)", ''),
    ('def broken(:', ''), (b'model = "\xff"', ''), ('model = ' + '-' * 9000 + '1', ''),
    ('model = ' + '-' * 700 + '1', ''), ('_base_ = 3', ''), ('_base_ = [3, "\\0.py"]', ''),
    (f'_base_ = "{"b" * 300}.py"', ''), ('_base_ = {[]: 1}', '')],
    ids=lambda text: repr(text[:40]))
def test_the_task_of_a_config_without_running_it(tmp_path, text, task):
    from vision.loading import _task_of
    (tmp_path / 'base.py').write_text("model = dict(type='ImageClassifier')\n1 / 0\n")
    (tmp_path / 'config.py').write_bytes((text if isinstance(text, bytes) else text.encode())
                                         + b'\n')
    assert _task_of(tmp_path / 'config.py') == task


def test_the_task_of_a_config_that_is_data(tmp_path):
    from vision.loading import _task_of
    (tmp_path / 'base.yaml').write_text('model: {type: LatticeDetector}\n')
    (tmp_path / 'config.json').write_text('{"_base_": "base.yaml", "model": {"method": "flow"}}')
    assert _task_of(tmp_path / 'config.json') == 'video'


GOOD = dict(name='a', task='video', summary='x', weights='yolox-nano_coco')


@pytest.mark.parametrize(('change', 'reason'), [
    (dict(name='A b'), 'name is not'), (dict(task='fly'), 'task is none of'),
    (dict(summary=''), 'summary'), (dict(weights='nothing'), 'no entry nothing'),
    (dict(weights=''), 'neither config nor weights'), (dict(config='../x.py'), 'leads out'),
    (dict(parts=dict(detector='nothing')), 'no entry nothing'), (dict(parts=['a']), 'type'),
    (dict(name=3), 'another type')])
def test_bad_models_are_refused(change, reason):
    assert ModelEntry(**GOOD).faults(load_index()) == []
    assert reason in '; '.join(ModelEntry(**(GOOD | change)).faults(load_index()))


@pytest.mark.parametrize(('models', 'reason'), [
    ('[{name: a}]', 'missing'), ('[{name: a, task: video, summary: x, wieghts: y}]', 'wieghts'),
    ('[1]', ''), ('3', '')])
def test_a_list_of_models_that_is_none(tmp_path, models, reason):
    path = tmp_path / 'index.yml'
    path.write_text(f'models: {models}\nentries: []\n')
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1710.*{reason}'):
        load_models(path)


@pytest.mark.parametrize('sides', [[8, 9], [0, 0], ['h', 0]])
def test_an_embedder_of_faces_that_are_no_squares_is_refused(tmp_path, sides):
    from vision.faces.runtime.onnx_embedder import OnnxEmbedder
    path = channel_means(tmp_path / 'a.onnx', [1, 3, *sides])
    with pytest.raises(VisionError, match='VIS-CKPT-1730'):
        OnnxEmbedder(path)


def test_a_classifier_that_takes_no_pictures_is_refused(tmp_path):
    from vision.classify.runtime.onnx_classifier import OnnxClassifier
    with pytest.raises(VisionError, match='VIS-CKPT-1739'):
        OnnxClassifier(channel_means(tmp_path / 'a.onnx', [1, 19, 8, 8]))


def channel_means(path, shape):
    onnx = pytest.importorskip('onnx')
    kind, h = onnx.TensorProto.FLOAT, onnx.helper
    graph = h.make_graph([h.make_node('GlobalAveragePool', ['x'], ['mean']),
                          h.make_node('Flatten', ['mean'], ['y'])], 'g',
                         [h.make_tensor_value_info('x', kind, shape)],
                         [h.make_tensor_value_info('y', kind, [1, shape[1]])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8)
    onnx.save(model, path)
    return path
