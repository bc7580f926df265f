"""Readers of weights, configs, pictures, videos and archives, and whole files of each, for
``fuzz_readers.py``."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from fuzz_mutators import (
    OPCODES,
    YAML_WORDS,
    Reader,
    archive_name,
    calls,
    header,
    in_one_file,
    inside_zip,
    json_node,
    line,
    opcode,
    packed,
    plain_inside,
    unpacked,
)


# Whole files of each kind -----------------------------------------------------------------------
def glyph_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(dict(size=4, num_classes=2, characters=[65, 66, 67], num_images=5,
                            styles=[['a', 'a.ttf', 0], ['b', 'b.ttf', 0]], num_train_styles=1,
                            covered=[3, 3, 2])).encode()]


def embedding_seeds(folder: Path) -> list[bytes]:
    rows, contents = np.eye(4, 6, dtype=np.float32), []
    for save in (np.save, lambda file, rows: np.savez(file, embeddings=rows,
                                                      paths=np.array(list('abcd')))):
        save(content := io.BytesIO(), rows)
        contents.append(content.getvalue())
    return contents


def index_seeds(folder: Path) -> list[bytes]:
    _records(folder)
    return [(folder / 'own.idx').read_bytes()]


def record_seeds(folder: Path) -> list[bytes]:
    _records(folder)
    return [(folder / 'own.rec').read_bytes()]


def _records(folder: Path) -> None:
    from vision.faces.core.data.recordio import write_face_records
    write_face_records(folder / 'own.rec', [[b'picture' * 3, b'\x0a\x23\xd7\xce' * 2], [b'xyz']])


def checkpoint_seeds(folder: Path) -> list[bytes]:
    import torch

    from vision.common.nn.checkpoint import save_checkpoint
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict(),
                   meta=dict(iter=3, dataset_meta=dict(classes=('a', 'b'))), t={(1, 2): 3},
                   numbers=[np.arange(6.).reshape(2, 3), np.float32(2), 2**70, b'ab', {1}],
                   index=dict(kind='ivf', dim=4, centroids=torch.randn(2, 4)))
    seeds = []
    for is_new in (True, False):
        torch.save(content, folder / 'own.pth', _use_new_zipfile_serialization=is_new)
        seeds.append((folder / 'own.pth').read_bytes())
    save_checkpoint(content, folder / 'saved.pth')
    return seeds


def safetensors_seeds(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save

    from vision.common.nn.checkpoint import save_weights
    tensors = dict(w=torch.arange(6.).reshape(2, 3), b=torch.ones(2).half())
    save_weights(tensors, folder / 'own.safetensors', classes=('a', 'b'))
    unsealed = save(tensors, dict(classes='["a", "b"]'))  # changes are met by more than the seal
    return [(folder / 'own.safetensors').read_bytes(), unsealed, unsealed]


def bin_seeds(folder: Path) -> list[bytes]:
    images = [b'\xff\xd8' + bytes([i]) * 9 for i in range(8)]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    pixels = [np.full((2, 2, 3), i, np.uint8) for i in range(8)]
    same = [True, False] * 2
    return [pickle.dumps((images, same), protocol=4), pickle.dumps((arrays, same), protocol=2),
            pickle.dumps((pixels, np.array(same)), protocol=4),
            pickle.dumps((images, same), protocol=0)]


def gallery_seeds(folder: Path) -> list[bytes]:
    from vision.faces.core.gallery.gallery import Gallery
    rows = np.eye(4, dtype=np.float32)[:3]
    gallery = Gallery(rows, np.array(['a', 'b', 'b']), np.array(['1', '2', '3']), 'abc')
    gallery.save(folder / 'own.npz')
    np.savez(folder / 'unsealed.npz', **vars(gallery))  # changes are met by more than the seal
    return [(folder / name).read_bytes() for name in ('own.npz', 'unsealed.npz', 'unsealed.npz')]


def yaml_seeds(folder: Path) -> list[bytes]:
    return [b'model: {type: LatticeDetector, num_stages: 2, detector: &d {type: X, a: [1, 2.5]}}\n'
            b'work_dir: x\ntrain_dataloader:\n  batch_size: 2\n  dataset: {<<: *d, b: null}\n'
            b'log_level: "INFO"\n']


def json_config_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(dict(model=dict(type='A', x=[1, 2.5, None, dict(y=True)]), work_dir='w',
                            default_scope='vision')).encode()]


def zoo_seeds(folder: Path) -> list[bytes]:
    from vision.zoo.index import INDEX
    return [INDEX.read_bytes()]


def image_seeds(folder: Path) -> list[bytes]:
    import cv2
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    kinds = [('.jpg', []), ('.jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), ('.png', []),
             ('.webp', [cv2.IMWRITE_WEBP_QUALITY, 50]), ('.webp', [cv2.IMWRITE_WEBP_QUALITY, 101]),
             ('.bmp', []), ('.tiff', []), ('.ppm', [])]
    return [cv2.imencode(ending, picture, options)[1].tobytes() for ending, options in kinds]


def video_seeds(folder: Path) -> list[bytes]:
    import av
    seeds = []
    for ending, codec in (('mp4', 'libx264'), ('avi', 'mjpeg'), ('mkv', 'mpeg4'),
                          ('ts', 'mpeg2video')):
        path = folder / f'own.{ending}'
        with av.open(str(path), 'w') as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
            for t in range(5 if ending != 'ts' else 25):  # FFmpeg looks at some before it tells
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * t, np.uint8), 'bgr24')
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))
        seeds.append(path.read_bytes())
    return seeds


def onnx_seeds(folder: Path) -> list[bytes]:
    """A network of one constant output, made by hand: protobuf of a few fields."""
    import onnx
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    output = np.random.default_rng(0).uniform(0, 1, (1, 7, 84)).astype(np.float32)
    graph = h.make_graph(
        [h.make_node('Add', ['values', 'zero'], ['output'])], 'g',
        [h.make_tensor_value_info('images', kind, [1, 3, 64, 64])],
        [h.make_tensor_value_info('output', kind, [1, 7, 84])],
        [onnx.numpy_helper.from_array(output, 'values'),
         onnx.numpy_helper.from_array(np.zeros(1, np.float32), 'zero')])
    model = h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8)
    h.set_model_props(model, dict(names="{0: 'a', 1: 'b', 2: 'c'}"))
    return [model.SerializeToString()]


def partial_fc_seeds(folder: Path) -> list[bytes]:
    """One rank's file of InsightFace's three generations."""
    import torch
    weight, backbone = torch.nn.Parameter(torch.ones(5, 4)), torch.nn.Linear(3, 4)
    contents = [dict(weight=weight.data, weight_mom=weight.data / 2), weight.data]
    for kind, options in ((torch.optim.SGD, dict(momentum=0.9)), (torch.optim.AdamW, {})):
        optimizer = kind([dict(params=backbone.parameters()), dict(params=[weight])], lr=0.1,
                         **options)
        weight.sum().backward()
        optimizer.step()
        contents.append(dict(
            epoch=1, global_step=5, state_dict_backbone=backbone.state_dict(),
            state_dict_softmax_fc=dict(weight=weight.data),
            state_optimizer=optimizer.state_dict(), state_lr_scheduler=dict(last_epoch=5)))
    seeds = []
    for content in contents:
        torch.save(content, target := io.BytesIO())
        seeds.append(target.getvalue())
    return seeds


def folder_seeds(folder: Path) -> list[bytes]:
    """A checkpoint of one rank as a folder."""
    import torch

    from vision.common.nn.checkpoint_folder import save_folder
    save_folder(dict(state_dict=dict(w=torch.ones(2, 3)), meta=dict(iter=3)), folder / 'own',
                spread=('state_dict',),
                parts=dict(rng=dict(states=[1, 2], tensor=torch.ones(2))), iter=3)
    own, *names = _FOLDER
    whole = [(folder / 'own' / name).read_bytes() for name in names]
    manifest = json.loads((folder / 'own' / own).read_bytes())
    sealed = packed((folder / 'own' / own).read_bytes(), *whole)
    del manifest['seal']  # changes are met by more than the seal
    return [sealed, packed(json.dumps(manifest), *whole)]


def plain_pickle_seeds(folder: Path) -> list[bytes]:
    content = dict(metainfo=dict(classes=('a', 'b')), data_list=[dict(
        img_path='a.jpg', gt_label=1, box=np.ones(4, np.float32), size=np.int64(3))])
    return [pickle.dumps(content, protocol=protocol) for protocol in (0, 2, 4)]


def python_seeds(folder: Path) -> list[bytes]:
    (folder / 'base.py').write_text('model = dict(type="A", size=dict(a=1, b=[2, 3]))\n')
    return [b'_base_ = ["base.py"]\nmodel = dict(size=dict(_delete_=True, c=(1, -2.5)), f=x())\n'
            b'optim_wrapper = {"type": "X", **dict(lr=1e-3)}\n_note = 1\nx: int = _base_.model\n']


def classifier_seeds(folder: Path) -> list[bytes]:
    """Pictures to the means of their channels, with and without what our export writes."""
    import onnx
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = h.make_graph(
        [h.make_node('GlobalAveragePool', ['x'], ['mean']),
         h.make_node('Flatten', ['mean'], ['y'])], 'g',
        [h.make_tensor_value_info('x', kind, [1, 3, 8, 8])],
        [h.make_tensor_value_info('y', kind, [1, 3])])
    seeds = []
    for ours in ({}, dict(preparation='[{"type": "Resize", "scale": [8, 8]}]', gives='logits',
                          unknown_logit='0.5')):
        model = h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8)
        h.set_model_props(model, dict(names="['a', 'b', 'c']") | ours)
        seeds.append(model.SerializeToString())
    return seeds


def convolution_seeds(folder: Path) -> list[bytes]:
    """One convolution with its Swish."""
    import onnx
    h, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = h.make_graph(
        [h.make_node('Conv', ['x', 'w', 'b'], ['c'], kernel_shape=[3, 3], pads=[1] * 4),
         h.make_node('Sigmoid', ['c'], ['s']), h.make_node('Mul', ['c', 's'], ['y'])], 'g',
        [h.make_tensor_value_info('x', kind, [1, 3, 8, 8])],
        [h.make_tensor_value_info('y', kind, [1, 2, 8, 8])],
        [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
         for name, shape in (('w', (2, 3, 3, 3)), ('b', (2,)))])
    return [h.make_model(graph, opset_imports=[h.make_opsetid('', 17)]).SerializeToString()]


def zip_seeds(folder: Path) -> list[bytes]:
    target = io.BytesIO()
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in ('train/a/1.txt', 'train/a/2.txt', 'b/3.txt'):
            archive.writestr(name, name * 20)
    return [target.getvalue()]


def tar_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for mode in ('w', 'w:gz'):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode=mode) as archive:
            for name in ('a/1.txt', 'a/2.txt'):
                entry = tarfile.TarInfo(name)
                entry.size = 200
                archive.addfile(entry, io.BytesIO(b'x' * 200))
        seeds.append(target.getvalue())
    return seeds


# Readers ----------------------------------------------------------------------------------------
read_gallery = calls('vision.faces.core.gallery.gallery.load_gallery')
read_config = calls('vision.common.core.data_configs.read_data_config')
read_zoo = calls('vision.zoo.index.load_index')
read_image = calls('vision.common.nn.images.read_image')
read_convolutions = calls('vision.lattice.mm.yolox_import.read_convolutions')


def read_index(path: Path) -> None:
    from vision.faces.core.data.recordio import FaceRecords
    _read_records(FaceRecords(path.parent / 'own.rec', path))


def read_records(path: Path) -> None:
    from vision.faces.core.data.recordio import FaceRecords
    _read_records(FaceRecords(path, path.parent / 'own.idx'))


def _read_records(records) -> None:
    records.labels()
    for position in range(len(records)):
        records.read(position)


def read_checkpoint(path: Path) -> None:
    from vision.common.nn.checkpoint import class_names, load_checkpoint
    class_names(load_checkpoint(path))


def read_class_index(path: Path) -> None:
    import torch

    from vision.common.nn.checkpoint import load_checkpoint
    from vision.faces.nn.index.faiss_index import make_spec, restore_index
    state = load_checkpoint(path).get('index')
    if isinstance(state, dict):
        restore_index(make_spec('ivf', 4, num_lists=2), state,
                      torch.arange(40.).reshape(10, 4).cos())


def read_glyphs(path: Path) -> None:
    from vision.faces.core.data.glyphs import IMAGES, MANIFEST, PreparedGlyphs
    (folder := path.with_name('glyphs')).mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(path.read_bytes())
    (folder / IMAGES).write_bytes(bytes(5 * 4 * 4))
    glyphs = PreparedGlyphs(folder)
    for split in ('train', 'val'):
        for label, style in glyphs.samples(split):
            glyphs(int(label), int(style))


def read_rows(path: Path) -> None:
    from vision.faces.core.data.embeddings import read_embeddings
    is_packed = path.read_bytes()[:2] == b'PK'
    path = path.rename(path.with_suffix('.npz')) if is_packed else path
    read_embeddings(path, list('abcd'))


def read_bin(path: Path) -> None:
    from vision.faces.core.data.insightface_bin import read_bin
    read_bin(path).pairs() if path.stat().st_size > 2000 else read_bin(path)


def read_video(path: Path) -> None:
    from vision.stream.io.sources import VideoFile
    for count, _ in enumerate(VideoFile(path)):
        if count > 200:  # a spoiled clock may repeat frames for hours
            break


def read_onnx(path: Path) -> None:
    from vision.lattice.runtime.onnx_detector import OnnxDetector
    OnnxDetector(path, decoding='yolov8', threads=1).detect(np.zeros((48, 64, 3), np.uint8))


def read_classifier(path: Path) -> None:
    from vision.classify.runtime.onnx_classifier import OnnxClassifier
    OnnxClassifier(path)([np.zeros((48, 64, 3), np.uint8)])


def read_embedder(path: Path) -> None:
    from vision.faces.runtime.onnx_embedder import OnnxEmbedder
    embedder = OnnxEmbedder(path)
    embedder([np.zeros((embedder.size, embedder.size, 3), np.uint8)])


def read_partial_fc(path: Path) -> None:
    from vision.faces.nn.store.class_store import build_store
    from vision.faces.nn.store.partial_fc import read_partial_fc
    shutil.rmtree(folder := path.with_name('run'), ignore_errors=True)
    name = 'checkpoint_gpu_0' if b'state_' in path.read_bytes() else 'rank_0_softmax_weight'
    first, = states = read_partial_fc(unpacked(path, folder, [f'{name}.pt']))[0]
    store = build_store(first['num_classes'], first['dim'], optimizer=first['optimizer'])
    store.load_ranges(states)


def read_folder(path: Path) -> None:
    from vision.common.nn.checkpoint import load_checkpoint
    from vision.common.nn.checkpoint_folder import load_folder
    folder = unpacked(path, path.with_name('checkpoint'), _FOLDER)
    load_folder(folder)  # also what a manifest speaks for is not believed
    load_checkpoint(folder)


def read_plain(path: Path) -> None:
    """MMEngine's ``load`` of annotation files, as ours leaves it."""
    import mmengine

    from vision.common.mm.safe_files import read_plain_files_everywhere
    read_plain_files_everywhere()
    mmengine.load(path)


def read_python(path: Path) -> None:
    from vision.common.core.config_files import model_type, unread_variables
    model_type(path)
    unread_variables(path, frozenset(['model']))


def read_upload(path: Path) -> None:
    from vision.web.limits import Limits, read_picture
    read_picture(path, Limits())


def read_clip(path: Path) -> None:
    from vision.web.limits import Limits, check_clip, first_frame
    check_clip(path, Limits())
    first_frame(path)


def read_archive(path: Path) -> None:
    from vision.common.core.archives import unpack
    out = path.parent / 'unpacked'
    shutil.rmtree(out, ignore_errors=True)
    unpack(path, out)


_FOLDER = ('manifest.json', 'run.pth', 'rng-0-of-1.pt',
           'shard-00001-model-00001-of-00001.safetensors')
_LINES = (line,)
_PICKLES = (inside_zip(opcode, '.pkl'), opcode, inside_zip(plain_inside, ''))
FILES = {
    'glyphs': Reader(glyph_seeds, read_glyphs, '.json', structured=(json_node,)),
    'embeddings': Reader(embedding_seeds, read_rows, '.npy'),
    'record-index': Reader(index_seeds, read_index, '.idx', True, _LINES),
    'records': Reader(record_seeds, read_records, '.rec', words=(b'\x0a\x23\xd7\xce',)),
    'checkpoint': Reader(checkpoint_seeds, read_checkpoint, '.pth', structured=_PICKLES,
                         words=OPCODES, needs='torch'),
    'class-index': Reader(checkpoint_seeds, read_class_index, '.pth', structured=_PICKLES[:1],
                          needs='torch'),
    'safetensors': Reader(safetensors_seeds, read_checkpoint, '.safetensors',
                          structured=(header,), needs='torch'),
    'checkpoint-folder': Reader(folder_seeds, read_folder, '.folder',
                                structured=(in_one_file(json_node, *_PICKLES, header),),
                                needs='torch'),
    'partial-fc': Reader(partial_fc_seeds, read_partial_fc, '.pt', structured=_PICKLES,
                         words=OPCODES, needs='torch'),
    'pickle': Reader(plain_pickle_seeds, read_plain, '.pkl', structured=(opcode,), words=OPCODES,
                     needs='mmengine.runner'),
    'yaml': Reader(yaml_seeds, read_plain, '.yaml', structured=_LINES, words=YAML_WORDS,
                   needs='mmengine.runner'),
    'insightface-bin': Reader(bin_seeds, read_bin, '.bin', structured=(opcode,), words=OPCODES),
    'gallery': Reader(gallery_seeds, read_gallery, '.npz',
                      structured=(inside_zip(plain_inside, '.npy'),)),
    'config-yaml': Reader(yaml_seeds, read_config, '.yaml', structured=_LINES, words=YAML_WORDS),
    'config-json': Reader(json_config_seeds, read_config, '.json', structured=(json_node,)),
    'config-python': Reader(python_seeds, read_python, '.py', structured=_LINES, words=(
        b'{{ fileDirname }}', b'model = ', b'_base_ = ', b'_base_ = "input.py"\n', b'**',
        b'-' * 9000, b'dict(')),
    'zoo-index': Reader(zoo_seeds, read_zoo, '.yml', structured=_LINES),
    'image': Reader(image_seeds, read_image, '.img'),
    'video': Reader(video_seeds, read_video, '.video', words=(b'ffconcat version 1.0\n',)),
    'upload': Reader(image_seeds, read_upload, '.img'),
    'clip': Reader(video_seeds, read_clip, '.video'),
    'classifier': Reader(classifier_seeds, read_classifier, '.onnx'),
    'embedder': Reader(classifier_seeds, read_embedder, '.onnx'),
    'convolutions': Reader(convolution_seeds, read_convolutions, '.onnx', needs='mmengine.runner'),
    'onnx': Reader(onnx_seeds, read_onnx, '.onnx'),
    'zip': Reader(zip_seeds, read_archive, '.zip', structured=(archive_name,)),
    'tar': Reader(tar_seeds, read_archive, '.tar', words=(b'2', b'../x'))}
