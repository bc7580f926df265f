"""Values that cannot work are refused with path, value and what belongs there."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from vision.common.core.argument_types import misfit
from vision.common.core.config_values import (
    check_amounts,
    check_class_names,
    check_types,
    missing_names,
)
from vision.common.core.errors import VisionError


class Tensor:
    pass


class Base:
    def __init__(self, base_width: int = 3, *, momentum=0.9, bias=True, note=None):
        pass


class Net(Base):
    def __init__(self, depth: int, rate: float = 0.1, name: str = 'a', flag: bool = False,
                 sizes: Sequence[int] = (1,), pair: tuple[float, float] | None = None,
                 options: dict | None = None, path: Path | str = '', kind: Literal['x', 'y'] = 'x',
                 anything: Any = 1, tensor: Tensor | None = None, either: int | str = 1,
                 unknown: 'NoSuchName' = 3, **kwargs):  # noqa: F821
        super().__init__(**kwargs)


Net.__module__ = Base.__module__ = 'vision.made_up'  # of ours: all kinds are looked at


class Sure(Base):
    """As ``Net``, with annotations that all can be read."""

    def __init__(self, depth: int, rate: float = 0.1, name: str = 'a', flag: bool = False,
                 sizes: Sequence[int] = (1,), pair: tuple[float, float] | None = None,
                 options: dict | None = None, path: Path | str = '', kind: Literal['x', 'y'] = 'x',
                 anything: Any = 1, tensor: Tensor | None = None, either: int | str = 1, **kwargs):
        super().__init__(**kwargs)


Sure.__module__ = 'vision.made_up'


class Foreign:
    def __init__(self, size: int, sizes: Sequence[int] = (), plain=0.5):
        pass


@pytest.mark.parametrize(('name', 'value'), [
    ('depth', 'two'), ('depth', 2.5), ('depth', True), ('depth', None), ('depth', [1]),
    ('rate', 'fast'), ('rate', False), ('name', 3), ('flag', 'yes'), ('flag', 2),
    ('sizes', 3), ('sizes', 'abc'), ('sizes', ['a']), ('sizes', None), ('pair', 0.5),
    ('options', [1]), ('options', 'a'), ('path', 3), ('kind', 'z'), ('either', 1.5),
    ('base_width', 'wide'), ('momentum', 'much'), ('bias', 'no')])
def test_another_kind_is_a_misfit(name, value):
    assert misfit(Sure, name, value)


@pytest.mark.parametrize(('name', 'value'), [
    ('depth', 2), ('depth', 2.0), ('rate', 1), ('rate', 1e-3), ('name', 'b'), ('flag', True),
    ('flag', 1), ('sizes', [1, 2]), ('sizes', (1,)), ('sizes', range(3)), ('pair', None),
    ('pair', [0, 1.5]), ('options', dict(a=1)), ('options', None), ('path', 'x'),
    ('path', Path('x')), ('kind', 'y'), ('anything', 'z'), ('anything', None), ('tensor', 'abc'),
    ('either', 'a'), ('base_width', 4), ('momentum', 1), ('momentum', None), ('bias', 0),
    ('note', 'any'), ('nobody', 3)])
def test_the_kind_that_is_annotated_fits(name, value):
    assert not misfit(Sure, name, value)


def test_annotations_that_cannot_be_read_allow_anything():
    assert not misfit(Net, 'depth', 'two') and misfit(Net, 'momentum', 'much')


def test_of_other_libraries_only_a_text_is_refused():
    assert not misfit(Foreign, 'size', 1.7) and not misfit(Foreign, 'sizes', 512)
    assert misfit(Foreign, 'size', 'two') == 'a whole number'
    assert misfit(Foreign, 'plain', 'much') == 'a number, as its default 0.5'


def find(name, scope):
    return dict(Sure=[Sure], Two=[Sure, dict]).get(name, [])


@pytest.mark.parametrize('config', [
    dict(model=dict(type='Sure', depth='two')),
    dict(custom_hooks=[dict(type='Sure', depth=1), dict(type='Sure', depth='two')])])
def test_a_wrong_kind_is_refused_with_its_path(config):
    with pytest.raises(VisionError, match="VIS-CONFIG-1802[^$]*depth is 'two', a text"
                                          '[^$]*Sure takes a whole number'):
        check_types(config, find)


def test_one_of_several_classes_that_takes_the_value_is_enough():
    check_types(dict(model=dict(type='Two', depth='two'), other=dict(type='Sure', depth='x')),
                find)  # 'other' is no key that a run reads


AMOUNTS = dict(train_dataloader=dict(batch_size=4, num_workers=0),
               train_cfg=dict(max_epochs=1, val_interval=1), model=dict(batch_size=0),
               optim_wrapper=dict(optimizer=dict(lr=0.1, weight_decay=0.0)))


def test_possible_amounts_pass():
    check_amounts(AMOUNTS)


@pytest.mark.parametrize(('path', 'value'), [
    ('train_dataloader.batch_size', 0), ('train_dataloader.batch_size', 'four'),
    ('train_dataloader.batch_size', 1.5), ('train_dataloader.num_workers', -1),
    ('train_cfg.max_epochs', 0), ('train_cfg.val_interval', 0), ('train_cfg.max_iters', True),
    ('optim_wrapper.optimizer.lr', -1), ('optim_wrapper.optimizer.lr', 'fast'),
    ('optim_wrapper.optimizer.lr', float('nan')), ('optim_wrapper.optimizer.weight_decay', -0.1)])
def test_impossible_amounts_are_refused(path, value):
    config = {key: dict(part) for key, part in AMOUNTS.items()}
    node, *rest = path.split('.')
    part = config[node]
    for key in rest[:-1]:
        part[key] = part = dict(part[key])
    part[rest[-1]] = value
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1803[^$]*{path} is'):
        check_amounts(config)


@pytest.mark.parametrize(('metainfo', 'what'), [
    ('disc', "metainfo is 'disc'"), (dict(classes='disc'), "classes is 'disc'"),
    (dict(classes=[1, 2]), 'classes is'), (dict(classes=['a', 'b', 'a']), "'a' twice")])
def test_class_names_that_are_no_list_are_refused(metainfo, what):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-1804[^$]*{what}'):
        check_class_names(dict(train_dataloader=dict(dataset=dict(metainfo=metainfo))))


def test_a_million_class_names_are_looked_at_in_seconds():
    names = [str(number) for number in range(1_000_000)]
    begin = time.monotonic()
    check_class_names(dict(train_dataloader=dict(dataset=dict(metainfo=dict(classes=names)))))
    with pytest.raises(VisionError, match="'7' twice"):
        check_class_names(dict(train_dataloader=dict(dataset=dict(metainfo=dict(
            classes=[*names, '7'])))))
    assert time.monotonic() - begin < 60  # each beside each other would take hours


def test_class_names_in_a_file_pass(tmp_path):
    (tmp_path / 'names.txt').write_text('a\nb\n')
    check_class_names(dict(train_dataloader=dict(dataset=dict(
        metainfo=dict(classes=str(tmp_path / 'names.txt'))))))


def test_class_names_pass():
    check_class_names(dict(train_dataloader=dict(dataset=dict(metainfo=dict(classes=('a', 'b'))))))
    check_class_names(dict(test_dataloader=dict(dataset=dict(metainfo=None))))


def test_names_that_are_missing_come_with_the_nearest():
    assert missing_names(['disk', 'ring', 'zzz'], ['disc', 'ring']) == \
        ["'disk' -> disc", "'zzz' -> nothing near"]
