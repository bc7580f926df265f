"""Glyphs from fonts built here: the choice of characters, the prepared folder, the data set."""

import json
import pickle

import numpy as np
import pytest
import torch
from scripts import load_script

from vision.common.core.errors import VisionError
from vision.faces.core.data.glyphs import PreparedGlyphs, warp_matrix
from vision.faces.mm.datasets import GlyphDataset

SPANS = {'one': 'ABCDEFGH', 'two': 'ABCDEFG', 'three': 'ABCDEF', 'out': 'ABCDEF'}


@pytest.fixture(scope='module')
def tool():
    return load_script('datasets/glyphs/prepare.py')


def build_font(path, characters, blank='', width=400):
    """A TrueType font: each character is a box of its own height, or has no outline."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    names = ['.notdef', *(f'u{ord(letter)}' for letter in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f'u{ord(letter)}' for letter in characters}
                              | {ord('~'): '.notdef'})
    glyphs = {}
    for number, name in enumerate(names):
        pen = TTGlyphPen(None)
        if name not in {f'u{ord(letter)}' for letter in blank}:
            pen.moveTo((0, 0))
            for point in ((0, 300 + 40 * number), (width, 300 + 40 * number), (width, 0)):
                pen.lineTo(point)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(dict(familyName=path.stem, styleName='Regular'))
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def families(tool, tmp_path, monkeypatch):
    """Four families: A-F in all, G in the first two, H in the first."""
    monkeypatch.setenv('VISION_FONT_DIR', str(tmp_path))
    for number, (name, letters) in enumerate(SPANS.items()):
        build_font(tmp_path / f'{name}.ttf', letters, width=300 + 100 * number)
    return [tool.FontFamily(name, f'fonts-{name}', (f'{name}.ttf',)) for name in SPANS]


def plan(tool, families, **options):
    options = dict(num_classes=4, num_unseen=2, min_families=3, ranges=[(0, 126)]) | options
    return tool.plan_glyphs(families[:3], families[3:], **options)


def test_blanks_and_the_glyph_of_unknown_characters_do_not_count(tool, tmp_path):
    build_font(tmp_path / 'x.ttf', 'ABC\U00020000', blank='B')
    assert tool.read_characters(tmp_path / 'x.ttf').tolist() == [65, 67, 0x20000]


@pytest.mark.parametrize('content', [b'', b'not a font at all', b'ttcf' + bytes(8)])
def test_what_is_no_font_is_refused(tool, tmp_path, content):
    (tmp_path / 'a.ttf').write_bytes(content)
    with pytest.raises(VisionError, match='VIS-DATA-1076'):
        tool.read_characters(tmp_path / 'a.ttf')


def test_classes_are_in_enough_families_and_in_all_held_out(tool, families):
    found = plan(tool, families)
    assert sorted(found.characters) == list(range(65, 71)) and found.covered.all()
    assert plan(tool, families, num_classes=5, num_unseen=1, min_families=1).covered.all()
    others = {tuple(plan(tool, families, seed=seed).characters) for seed in range(9)}
    assert len(others) > 1
    assert plan(tool, families, seed=3).characters.tolist() == \
        plan(tool, families, seed=3).characters.tolist()


def test_what_cannot_be_chosen_is_refused(tool, families, tmp_path):
    with pytest.raises(VisionError, match='7 characters wanted, 6 are'):
        plan(tool, families, num_classes=5)
    with pytest.raises(VisionError, match='VIS-CONFIG-1128'):
        plan(tool, [*families[:3], families[0]])
    (tmp_path / 'two.ttf').unlink()
    with pytest.raises(VisionError, match=r'VIS-ENV-1074(.|\n)*apt install fonts-two'):
        plan(tool, families)


@pytest.fixture
def prepared(tool, families, tmp_path, monkeypatch, capsys):
    """The folder that the command makes of these families."""
    monkeypatch.setattr(tool, 'FAMILIES', {family.name: family for family in families})
    monkeypatch.setattr(tool, 'IDEOGRAPHS', ((0, 126),))
    monkeypatch.setattr(tool.plan_glyphs, '__kwdefaults__',
                        tool.plan_glyphs.__kwdefaults__ | dict(ranges=((0, 126),)))
    tool.main(['--out', str(tmp_path / 'glyphs'), '--num-classes', '4', '--num-unseen', '2',
               '--min-families', '2', '--held-out', 'out'])
    assert '24 pictures of 6 characters in 4 styles' in capsys.readouterr().out
    return tmp_path / 'glyphs'


def build(split, root, **options):
    return GlyphDataset(split, data_root=str(root), **options)


def test_the_data_set_shows_the_characters_in_the_styles_of_the_split(prepared):
    train, val = build('train', prepared), build('val', prepared)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert train.styles.tolist() == [0, 1, 2] * 4 and train.num_classes == 4
    assert val.labels.tolist() == list(range(6)) and set(val.styles) == {3}
    assert [val.is_gallery(position) for position in range(6)] == [True] * 4 + [False] * 2
    assert not any(train.is_gallery(position) for position in range(12))
    copy = pickle.loads(pickle.dumps(train))
    for position in range(12):
        image = train.read(position)
        assert (copy.read(position) == image).all() and image.shape == (32, 32, 1)
        # em 27 px: boxes of 300 + 40 n thousandths of it, 300 + 100 style wide, in the middle
        number = 'ABCDEFGH'.index(chr(train.source.characters[train.labels[position]])) + 1
        rows, columns = (np.flatnonzero((image[:, :, 0] > 127).any(axis)) for axis in (1, 0))
        assert len(rows) == pytest.approx(27 * (0.3 + 0.04 * number), abs=1)
        assert len(columns) == pytest.approx(27 * (0.3 + 0.1 * train.styles[position]), abs=1)
        assert rows[0] + rows[-1] == pytest.approx(31, abs=1)
    part = build('train', prepared, every=3)
    assert part.labels.tolist() == [0, 0, 0, 3, 3, 3]
    assert (part.read(5) == train.read(11)).all()


def test_a_folder_that_cannot_be_used_names_the_command(prepared, tmp_path):
    with pytest.raises(VisionError, match=r'VIS-DATA-1080(.|\n)*prepare.py --out .*nowhere'):
        build('train', tmp_path / 'nowhere')
    with pytest.raises(VisionError, match='VIS-CONFIG-1077'):
        build('test', prepared)
    whole = json.loads((prepared / 'glyphs.json').read_text())
    for change, what in ((dict(covered=None), 'covered'), (dict(covered=[1] * 5), 'add up'),
                         (dict(num_classes=7), 'add up'), (dict(size=31), '24576 bytes'),
                         (dict(characters='x'), 'int')):
        (prepared / 'glyphs.json').write_text(json.dumps(
            {key: value for key, value in (whole | change).items() if value is not None}))
        with pytest.raises(VisionError, match=f'VIS-DATA-1080.*{what}'):
            PreparedGlyphs(prepared)


def test_warped_glyphs_follow_the_seed(prepared):
    dataset = build('train', prepared, pipeline=[dict(type='GlyphWarp'),
                                                 dict(type='PackFaceInputs')])

    def draw(seed):
        np.random.seed(seed)
        return dataset[7]['inputs']

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (1, 32, 32)


def test_warps_keep_the_middle_and_the_limits():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = warp_matrix(rng, 33, degrees=10, scale=0.1, shear=0.0, shift=0.0)
        assert matrix @ [16, 16, 1] == pytest.approx([16, 16])
        assert 0.9 <= np.linalg.det(matrix[:, :2])**0.5 <= 1.1


def test_the_installed_cjk_fonts_give_20000_classes(tool):
    try:
        for family in tool.FAMILIES.values():
            tool.find_font_files(family)
    except VisionError as error:
        pytest.skip(f'no CJK fonts: {error.what}')
    train = [family for name, family in tool.FAMILIES.items() if name not in tool.HELD_OUT]
    found = tool.plan_glyphs(train, [tool.FAMILIES[name] for name in tool.HELD_OUT],
                             num_classes=20_000, num_unseen=2_000)
    assert found.covered.sum() > 250_000
    draw = tool.GlyphRenderer(found, 32)
    assert all(draw(label, 0).max() > 128 for label in range(0, 22_000, 1_000)
               if found.covered[label, 0])
