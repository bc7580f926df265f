"""Character maps made by hand, plans of classes, drawn glyphs on any machine's fonts."""

import struct

import numpy as np
import pytest

from vision.common.core.errors import VisionError
from vision.faces.core.data.font_files import (
    FAMILIES,
    FontFamily,
    find_font_files,
    read_characters,
)
from vision.faces.core.data.glyphs import HELD_OUT, plan_glyphs, warp_matrix


def font(cmap, **tables):
    """Bytes of an OpenType file that has only these tables."""
    tables = dict(cmap=cmap, **tables)
    head = struct.pack('>IHHHH', 0x00010000, len(tables), 0, 0, 0)
    offset, directory, body = 12 + 16 * len(tables), b'', b''
    for name, content in tables.items():
        directory += struct.pack('>4sIII', name.encode(), 0, offset + len(body), len(content))
        body += content
    return head + directory + body


def cmap(kind, content):
    return struct.pack('>HHHHI', 0, 1, 3, 10 if kind == 12 else 1, 12) + content


def format_12(*groups):
    rows = b''.join(struct.pack('>III', *group) for group in groups)
    return cmap(12, struct.pack('>HHIII', 12, 0, 16 + len(rows), 0, len(groups)) + rows)


def format_4(segments, glyph_ids=()):
    count = len(segments)
    ends, starts, deltas, places = zip(*segments, strict=True)
    words = (*ends, 0, *starts, *deltas, *places, *glyph_ids)
    return cmap(4, struct.pack(f'>7H{len(words)}H', 4, 0, 0, 2 * count, 0, 0, 0, *words))


def test_ranges_without_glyph_zero(tmp_path):
    (tmp_path / 'a.ttf').write_bytes(font(format_12((65, 67, 0), (0x20000, 0x20001, 9))))
    assert read_characters(tmp_path / 'a.ttf').tolist() == [66, 67, 0x20000, 0x20001]


def test_segments_with_and_without_a_table(tmp_path):
    # A..C by delta (glyph = code - 64); a..c through the table: c has glyph 0.
    table = format_4([(67, 65, 65472, 0), (99, 97, 0, 4), (0xFFFF, 0xFFFF, 1, 0)], (5, 6, 0))
    (tmp_path / 'a.ttf').write_bytes(font(table))
    assert read_characters(tmp_path / 'a.ttf').tolist() == [65, 66, 67, 97, 98]


def test_a_glyph_without_outline_does_not_count(tmp_path):
    tables = dict(maxp=struct.pack('>IH', 0, 3), head=bytes(50) + struct.pack('>h', 0),
                  loca=struct.pack('>4H', 0, 10, 10, 20))  # glyph 1 is empty
    (tmp_path / 'a.ttf').write_bytes(font(format_12((65, 66, 1)), **tables))
    assert read_characters(tmp_path / 'a.ttf').tolist() == [66]


@pytest.mark.parametrize('content', [b'', b'not a font at all', font(b'')[:20],
                                     font(format_12((9, 3, 1))), b'ttcf' + bytes(8)])
def test_what_is_no_font_is_refused(tmp_path, content):
    (tmp_path / 'a.ttf').write_bytes(content)
    with pytest.raises(VisionError, match='VIS-DATA-1076'):
        read_characters(tmp_path / 'a.ttf')


@pytest.fixture
def families(tmp_path):
    """Four families: A-F in all, G in the first two, H in the first."""
    spans = {'one': 72, 'two': 71, 'three': 70, 'out': 70}
    for name, last in spans.items():
        (tmp_path / f'{name}.ttf').write_bytes(font(format_12((65, last, 1))))
    return [FontFamily(name, f'fonts-{name}', (f'{name}.ttf',), 'test') for name in spans]


def plan(families, folder, **options):
    options = dict(dict(num_classes=4, num_unseen=2, min_families=3, ranges=[(0, 128)]), **options)
    return plan_glyphs(families[:3], families[3:], folders=[str(folder)], **options)


def test_classes_are_in_enough_families_and_in_all_held_out(families, tmp_path):
    found = plan(families, tmp_path)
    assert sorted(found.characters) == list(range(65, 71)) and found.covered.all()
    train, val = found.samples('train'), found.samples('val')
    assert len(train) == 4 * 3 and set(train[:, 1]) == {0, 1, 2}
    assert set(train[:, 0]) == {*range(4)}
    assert len(val) == 6 and set(val[:, 1]) == {3} and set(val[:, 0]) == {*range(6)}


def test_the_same_seed_chooses_the_same_characters(families, tmp_path):
    one, two = (plan(families, tmp_path, seed=3) for _ in range(2))
    assert one.characters.tolist() == two.characters.tolist()
    others = {tuple(plan(families, tmp_path, seed=seed).characters) for seed in range(9)}
    assert len(others) > 1


def test_too_few_characters_and_a_family_on_both_sides(families, tmp_path):
    with pytest.raises(VisionError, match='7 characters wanted, 6 are'):
        plan(families, tmp_path, num_classes=5)
    with pytest.raises(VisionError, match='VIS-CONFIG-1077'):
        plan([*families[:3], families[0]], tmp_path)


def test_a_missing_family_names_its_package(families, tmp_path):
    (tmp_path / 'two.ttf').unlink()
    with pytest.raises(VisionError, match=r'VIS-ENV-1074(.|\n)*apt install fonts-two'):
        plan(families, tmp_path)


def test_warps_keep_the_middle_and_the_limits():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = warp_matrix(rng, 33, degrees=10, scale=0.1, shear=0.0, shift=0.0)
        assert matrix @ [16, 16, 1] == pytest.approx([16, 16])
        assert 0.9 <= np.linalg.det(matrix[:, :2])**0.5 <= 1.1


def test_the_installed_cjk_fonts_give_20000_classes():
    try:
        for name in FAMILIES:
            find_font_files(FAMILIES[name])
    except VisionError as error:
        pytest.skip(f'no CJK fonts: {error.what}')
    train = [family for name, family in FAMILIES.items() if name not in HELD_OUT]
    found = plan_glyphs(train, [FAMILIES[name] for name in HELD_OUT], num_classes=20_000,
                        num_unseen=2_000)
    assert len(found.samples('train')) > 160_000 and len(found.samples('val')) == 22_000 * 4
