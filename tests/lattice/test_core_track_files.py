"""Annotations of other forms: what is out of proportion is refused at once."""

import time
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.track_files import read_cvat_xml, read_mot_text, read_voc_xml

CORNERS = 'xtl="1" ytl="2" xbr="30" ybr="40"'


def cvat(*frames, corners=CORNERS, outside=0, label='cat', number='0') -> str:
    boxes = ''.join(f'<box frame="{frame}" outside="{outside}" occluded="0" {corners}/>'
                    for frame in frames)
    return f'<annotations><track id="{number}" label="{label}">{boxes}</track></annotations>'


def voc(box=(1, 2, 30, 40), size=(64, 48), track='1', before='') -> str:
    corners = ''.join(f'<{key}>{value}</{key}>' for key, value in
                      zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
    return (f'{before}<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>'
            f'<object><trackid>{track}</trackid><name>a</name><bndbox>{corners}</bndbox></object>'
            '</annotation>')


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha">' + ''.join(
    f'<!ENTITY {chr(c + 1)} "{f"&{chr(c)};" * 10}">' for c in range(97, 108)) + ']>'
HOSTILE = [
    (read_cvat_xml, cvat(0, 2_000_000_000)), (read_cvat_xml, cvat(0, 10**18)),
    (read_cvat_xml, cvat(-5, 3)), (read_cvat_xml, cvat('9' * 5000)), (read_cvat_xml, cvat('nan')),
    (read_cvat_xml, cvat(0, 0)), (read_cvat_xml, cvat(0, 5, corners=CORNERS.replace('30', 'nan'))),
    (read_cvat_xml, cvat(0, 5, corners=CORNERS.replace('30', '1e400'))),
    (read_cvat_xml, cvat(0, 5, corners='')), (read_cvat_xml, cvat(0, number='9' * 30)),
    (read_cvat_xml, '<annotations>' + cvat(0, 5_000_000)[13:-14] * 5 + '</annotations>'),
    (read_cvat_xml, LAUGHS + cvat(0, label='&l;')), (read_cvat_xml, cvat(0)[:60]),
    (read_cvat_xml, '<?xml version="1.0" encoding="nonsense"?>' + cvat(0)),
    (read_cvat_xml, '<a>' * 100_000), (read_voc_xml, voc(box=('nan', 1, 2, 3))),
    (read_voc_xml, voc(box=('inf', 1, 2, 3))), (read_voc_xml, voc(size=(0, 48))),
    (read_voc_xml, voc(size=(10**12, 48))), (read_voc_xml, voc(size=('9' * 5000, 48))),
    (read_voc_xml, voc(track='-7')), (read_voc_xml, voc(track='x')),
    (read_voc_xml, voc(before='<!DOCTYPE a SYSTEM "file:///etc/passwd">')),
    (read_voc_xml, LAUGHS + voc()), (read_voc_xml, '<annotation/>'), (read_voc_xml, ''),
    (read_mot_text, '2000000000,1,1,2,3,4,1'), (read_mot_text, '1e300,1,1,2,3,4,1'),
    (read_mot_text, '1,1e300,1,2,3,4,1'), (read_mot_text, '1,1,nan,2,3,4,1'),
    (read_mot_text, '1,1,1,2,3,inf,1'), (read_mot_text, '1,1,1,2,3,4,nan'),
    (read_mot_text, '0,1,1,2,3,4,1'), (read_mot_text, '1.5,1,1,2,3,4,1'), (read_mot_text, '1,1,1'),
    (read_mot_text, '9' * 5000 + ',1,1,2,3,4,1'), (read_mot_text, '1,1,1,2,3,4,\0')]


@pytest.mark.fault('R19')
@pytest.mark.parametrize('case', range(len(HOSTILE)))
def test_hostile_annotations_are_refused_at_once(tmp_path, case):
    read, text = HOSTILE[case]
    (tmp_path / 'x').write_text(text)
    start = time.perf_counter()
    with pytest.raises(VisionError, match='VIS-DATA-239'):
        read(tmp_path / 'x')
    assert time.perf_counter() - start < 10


def test_what_is_in_order_is_read(tmp_path):
    def written(text: str) -> Path:
        (tmp_path / 'x').write_text(text)
        return tmp_path / 'x'

    track, = read_cvat_xml(written('<!-- by hand -->' + cvat(0, 4)))
    assert sorted(track.boxes) == [0, 1, 2, 3, 4] and track.boxes[2] == (1, 2, 30, 40)
    assert read_voc_xml(written(voc(track='-1'))).rows[0][:3] == ('a', -1, (1, 2, 30, 40))
    assert read_mot_text(written('1,-1,1,2,3,4,0.5,-1,-1,-1')).shape == (1, 9)
