"""Readers of annotations, lists and protocols, and whole files, for ``fuzz_readers.py``."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
from fuzz_mutators import Reader, calls, element, json_node, line, packed, unpacked


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


def track_seeds(folder: Path) -> list[bytes]:
    return [*mot_seeds(folder),
            b'1,1,10,20,30,40,1,2,1\n1,2,11,20,30,40,1,1,0.5\n5,1,1,2,3,4,1,2,0\n']


def cfp_seeds(folder: Path) -> list[bytes]:
    """Two lists of pictures and the first fold's pairs; the other folds stand in the folder."""
    pictures = [''.join(f'{number} ../Data/Images/{number:03d}/{kind}/01.jpg\n'
                        for number in range(1, 5)) for kind in ('frontal', 'profile')]
    pairs = '1,1\n2,2\n', '1,2\n3,4\n'
    for fold in range(2, 11):
        unpacked(_written(folder / 'own.cfp', packed(*pairs)), folder / 'cfp',
                 _cfp_pairs(f'{fold:02d}'))
    return [packed(*pictures, *pairs)]


def ijb_seeds(folder: Path) -> list[bytes]:
    points = ' '.join(f'{number}.5' for number in range(10))
    return [packed(''.join(f'{row}.jpg {row // 2} {row}\n' for row in range(6)),
                   ''.join(f'{row}.jpg {points} 0.9\n' for row in range(6)),
                   '0 1 0\n1 2 1\n0 2 0\n')]


def vid_list_seeds(folder: Path) -> list[bytes]:
    return [b'train/VID_train_0000/a 1 10 300\ntrain/VID_train_0000/a 1 25 300\nval/b 2 1 20\n']


def det_list_seeds(folder: Path) -> list[bytes]:
    return [b'train/ILSVRC2013_train/n01/n01_1 1\ntrain/n02/n02_7 1\n\ntrain/n02/n02_9 1\n']


# Readers ----------------------------------------------------------------------------------------
read_voc = calls('vision.lattice.core.track_files.read_voc_xml')
read_cvat = calls('vision.lattice.core.track_files.read_cvat_xml')
read_mot = calls('vision.lattice.core.track_files.read_mot_text')
read_pairs = calls('vision.faces.core.data.pairs.read_pairs')
read_subjects = calls('vision.faces.core.evaluate.protocols.read_ijb_subjects')
read_templates = calls('vision.faces.core.evaluate.protocols.read_triples')


def read_cocovid(path: Path) -> None:
    from vision.lattice.core.cocovid import load_cocovid
    from vision.lattice.core.cocovid_stats import statistics
    statistics(load_cocovid(path, bad_boxes='drop'))


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


def read_tracks(path: Path) -> None:
    from vision.stream.io.video_dataset import read_tracks
    with contextlib.redirect_stdout(None):  # it tells of rows that it leaves out
        read_tracks(path, ['a', 'b'])


def read_cfp(path: Path) -> None:
    from vision.faces.core.evaluate.protocols import read_cfp
    read_cfp(unpacked(path, path.with_name('cfp'),
                      ['Pair_list_F.txt', 'Pair_list_P.txt', *_cfp_pairs('01')]))


def _cfp_pairs(fold: str) -> list[str]:
    return [f'Split/FP/{fold}/{name}.txt' for name in ('same', 'diff')]


def read_ijb(path: Path) -> None:
    from vision.faces.core.evaluate.protocols import pool_templates, read_ijb
    found = read_ijb(unpacked(path, path.with_name('ijb'), [
        f'ijbc_{name}.txt' for name in ('face_tid_mid', 'name_5pts_score',
                                        'template_pair_label')]), 'ijbc')
    pool_templates(np.ones((len(found.paths), 2), np.float32), found.templates, found.media)


def read_vid_list(path: Path) -> None:
    from vision.lattice.core.ilsvrc_vid import read_list
    read_list(path, 'train')


def read_det_list(path: Path) -> None:
    from vision.lattice.core.ilsvrc_det import find_images
    find_images(path.parent, 'train', unpacked(path, path.with_name('lists'),
                                               ['DET_train_30classes.txt']))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


_LINES = (line,)
ANNOTATIONS = {
    'cocovid': Reader(cocovid_seeds, read_cocovid, '.json', True, (json_node,)),
    'voc': Reader(voc_seeds, read_voc, '.xml', True, (element,)),
    'cvat': Reader(cvat_seeds, read_cvat, '.xml', True, (element,)),
    'mot': Reader(mot_seeds, read_mot, '.txt', True, _LINES),
    'tracks': Reader(track_seeds, read_tracks, '.txt', True, _LINES),
    'seqinfo': Reader(seqinfo_seeds, read_seqinfo, '.ini', True, _LINES, (b'%(imdir)s', b'[x]')),
    'vid-list': Reader(vid_list_seeds, read_vid_list, '.txt', True, _LINES),
    'det-list': Reader(det_list_seeds, read_det_list, '.txt', True, _LINES),
    'labels': Reader(label_seeds, read_labels, '.txt', True, _LINES),
    'classes': Reader(class_seeds, read_classes, '.txt', True, _LINES),
    'pairs': Reader(pair_seeds, read_pairs, '.txt', True, _LINES),
    'subjects': Reader(subject_seeds, read_subjects, '.csv', True, _LINES),
    'template-pairs': Reader(template_seeds, read_templates, '.txt', True, _LINES),
    'cfp': Reader(cfp_seeds, read_cfp, '.cfp', True, _LINES),
    'ijb': Reader(ijb_seeds, read_ijb, '.ijb', True, _LINES)}
