"""Readers, and whole files of each kind, for ``fuzz_readers.py``."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_mutators import (
    OPCODES,
    archive_name,
    element,
    header,
    inside_zip,
    json_node,
    line,
    mutated,
    opcode,
    plain_inside,
)


@dataclass(frozen=True)
class Reader:
    """``seeds(folder)``: whole files; ``read(path)``: raises VisionError or nothing else;
    ``structured``: mutators that know the form, bytes -> bytes (None: not this file)."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    suffix: str
    is_annotation: bool = False
    structured: tuple[Callable[[bytes, random.Random], bytes | None], ...] = ()
    words: tuple[bytes, ...] = ()

    def mutated(self, seeds: Sequence[bytes], generator: random.Random) -> bytes:
        return mutated(seeds, generator, structured=self.structured, words=self.words)


# Whole files of each kind -----------------------------------------------------------------------
def cocovid_seeds(folder: Path) -> list[bytes]:
    from vision.lattice.core.cocovid import CocoVidWriter
    writer = CocoVidWriter(('cat', 'dog'), encode_names=('n1', 'n2'))
    for video in range(2):
        writer.add_video(f'v{video}', width=64, height=48, fps=25)
        for t in range(3):
            writer.add_frame(f'v{video}/{t:06d}.jpg', boxes_xyxy=[[1 + t, 2, 20, 30]] * (t < 2),
                             labels=[video] * (t < 2), instance_ids=[1] * (t < 2))
    return [json.dumps(writer.to_dict()).encode()]


def voc_seeds(folder: Path) -> list[bytes]:
    box = ''.join(f'<{key}>{value}</{key}>' for key, value in
                  dict(xmin=1, ymin=2, xmax=30, ymax=40).items())
    item = f'<object><trackid>1</trackid><name>n02084071</name><bndbox>{box}</bndbox>' \
           '<occluded>1</occluded><generated>0</generated></object>'
    return [f'<annotation><folder>f</folder><size><width>64</width><height>48</height></size>'
            f'{item * 2}</annotation>'.encode()]


def cvat_seeds(folder: Path) -> list[bytes]:
    boxes = ''.join(f'<box frame="{t}" outside="{int(t == 9)}" occluded="0" xtl="{t}" ytl="2" '
                    'xbr="30.5" ybr="40"></box>' for t in (0, 4, 9))
    return [f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
            f'<track id="0" label="cat">{boxes}</track></annotations>'.encode()]


def mot_seeds(folder: Path) -> list[bytes]:
    return [b'1,1,10,20,30,40,1,1,1\n2,1,11,20,30,40,1,1,0.5\n2,2,1.5,2,3,4,0,7,1\n',
            b'1,-1,10,20,30,40,0.9,-1,-1,-1\n']


def seqinfo_seeds(folder: Path) -> list[bytes]:
    return [b'[Sequence]\nname=a\nimDir=img1\nframeRate=25\nseqLength=3\nimWidth=64\n'
            b'imHeight=48\nimExt=.jpg\n']


def label_seeds(folder: Path) -> list[bytes]:
    return [b'a/1.jpg 0\na/2.jpg 0\nb/1.jpg 1\n', b'a b/1.jpg\t0\nc/2.jpg\t1\n']


def class_seeds(folder: Path) -> list[bytes]:
    return [b'a/1.jpg 0\na 2.jpg 0\nb/1.jpg 1\n']


def pair_seeds(folder: Path) -> list[bytes]:
    lines = ''.join(f'a/{i}.jpg b/{i}.jpg {i % 2}\n' for i in range(24))
    lfw = '2\t2\n' + ('Ann\t1\t2\nBob\t1\t3\nAnn\t1\tBob\t2\nBob\t1\tAnn\t4\n') * 2
    return [lines.encode(), lfw.encode()]


def subject_seeds(folder: Path) -> list[bytes]:
    return [b'TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,10,a.jpg\n2,11,"b, c.jpg"\n1,10,d.jpg\n']


def template_seeds(folder: Path) -> list[bytes]:
    return [b''.join(b'%d %d %d\n' % (row, row % 7, row % 2) for row in range(30)),
            b'1\t2\t0\r\n\r\n2147483647\t0\t1']


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
def read_cocovid(path: Path) -> None:
    from vision.lattice.core.cocovid import load_cocovid
    from vision.lattice.core.cocovid_stats import statistics
    statistics(load_cocovid(path, bad_boxes='drop'))


def read_voc(path: Path) -> None:
    from vision.lattice.core.track_files import read_voc_xml
    read_voc_xml(path)


def read_cvat(path: Path) -> None:
    from vision.lattice.core.track_files import read_cvat_xml
    read_cvat_xml(path)


def read_mot(path: Path) -> None:
    from vision.lattice.core.track_files import read_mot_text
    read_mot_text(path)


def read_seqinfo(path: Path) -> None:
    from vision.lattice.core.mot import read_seqinfo
    folder = path.with_suffix('')
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / 'seqinfo.ini')
    read_seqinfo(folder)


def read_labels(path: Path) -> None:
    from vision.faces.core.data.image_lists import read_label_list
    read_label_list(path, path.parent)


def read_classes(path: Path) -> None:
    from vision.classify.core.folders import read_image_list
    read_image_list(path, num_classes=2)


def read_pairs(path: Path) -> None:
    from vision.faces.core.data.pairs import read_pairs
    read_pairs(path)


def read_subjects(path: Path) -> None:
    from vision.faces.core.evaluate.protocols import read_ijb_subjects
    read_ijb_subjects(path)


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


def read_templates(path: Path) -> None:
    from vision.faces.core.evaluate.protocols import read_triples
    read_triples(path)


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


def read_gallery(path: Path) -> None:
    from vision.faces.core.gallery.gallery import load_gallery
    load_gallery(path)


def read_config(path: Path) -> None:
    from vision.common.core.data_configs import read_data_config
    read_data_config(path)


def read_zoo(path: Path) -> None:
    from vision.zoo.index import load_index
    load_index(path)


def read_image(path: Path) -> None:
    from vision.common.nn.images import read_image
    read_image(path)


def read_video(path: Path) -> None:
    from vision.stream.io.sources import VideoFile
    for count, _ in enumerate(VideoFile(path)):
        if count > 200:  # a spoiled clock may repeat frames for hours
            break


def read_onnx(path: Path) -> None:
    from vision.lattice.runtime.onnx_detector import OnnxDetector
    OnnxDetector(path, decoding='yolov8', threads=1).detect(np.zeros((48, 64, 3), np.uint8))


def read_archive(path: Path) -> None:
    from vision.common.core.archives import unpack
    out = path.parent / 'unpacked'
    shutil.rmtree(out, ignore_errors=True)
    unpack(path, out)


_LINES = (line,)
_PICKLES = (inside_zip(opcode, '.pkl'), opcode, inside_zip(plain_inside, ''))
READERS = {
    'cocovid': Reader(cocovid_seeds, read_cocovid, '.json', True, (json_node,)),
    'voc': Reader(voc_seeds, read_voc, '.xml', True, (element,)),
    'cvat': Reader(cvat_seeds, read_cvat, '.xml', True, (element,)),
    'mot': Reader(mot_seeds, read_mot, '.txt', True, _LINES),
    'seqinfo': Reader(seqinfo_seeds, read_seqinfo, '.ini', True, _LINES, (b'%(imdir)s', b'[x]')),
    'labels': Reader(label_seeds, read_labels, '.txt', True, _LINES),
    'classes': Reader(class_seeds, read_classes, '.txt', True, _LINES),
    'pairs': Reader(pair_seeds, read_pairs, '.txt', True, _LINES),
    'subjects': Reader(subject_seeds, read_subjects, '.csv', True, _LINES),
    'template-pairs': Reader(template_seeds, read_templates, '.txt', True, _LINES),
    'glyphs': Reader(glyph_seeds, read_glyphs, '.json', structured=(json_node,)),
    'embeddings': Reader(embedding_seeds, read_rows, '.npy'),
    'record-index': Reader(index_seeds, read_index, '.idx', True, _LINES),
    'records': Reader(record_seeds, read_records, '.rec', words=(b'\x0a\x23\xd7\xce',)),
    'checkpoint': Reader(checkpoint_seeds, read_checkpoint, '.pth', structured=_PICKLES,
                         words=OPCODES),
    'class-index': Reader(checkpoint_seeds, read_class_index, '.pth', structured=_PICKLES[:1]),
    'safetensors': Reader(safetensors_seeds, read_checkpoint, '.safetensors',
                          structured=(header,)),
    'insightface-bin': Reader(bin_seeds, read_bin, '.bin', structured=(opcode,), words=OPCODES),
    'gallery': Reader(gallery_seeds, read_gallery, '.npz',
                      structured=(inside_zip(plain_inside, '.npy'),)),
    'config-yaml': Reader(yaml_seeds, read_config, '.yaml', structured=_LINES, words=(
        b'!!python/object/apply:os.system [x]', b'&a [*a]', b'_base_: x.yaml', b'<<: ', b'!!set',
        b'custom_imports: {}', b'? ', b': ', b'2001-01-01')),
    'config-json': Reader(json_config_seeds, read_config, '.json', structured=(json_node,)),
    'zoo-index': Reader(zoo_seeds, read_zoo, '.yml', structured=_LINES),
    'image': Reader(image_seeds, read_image, '.img'),
    'video': Reader(video_seeds, read_video, '.video', words=(b'ffconcat version 1.0\n',)),
    'onnx': Reader(onnx_seeds, read_onnx, '.onnx'),
    'zip': Reader(zip_seeds, read_archive, '.zip', structured=(archive_name,)),
    'tar': Reader(tar_seeds, read_archive, '.tar', words=(b'2', b'../x'))}
