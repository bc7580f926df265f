import textwrap

import pytest

from vision.common.core.arguments import accepted_arguments
from vision.common.core.config_files import unread_variables
from vision.common.core.config_keys import (
    TOP_LEVEL,
    check_arguments,
    check_options,
    check_top_level,
)
from vision.common.core.errors import VisionError


class Net:
    def __init__(self, depth, width=3):
        pass


class Wider(Net):
    def __init__(self, *, stride=1, **kwargs):
        super().__init__(**kwargs)


class Anything(Net):
    def __init__(self, **kwargs):
        kwargs.pop('secret', None)
        super().__init__(**kwargs)


class Open:
    def __init__(self, **kwargs):
        self.options = kwargs


CLASSES = dict(Net=Net, Wider=Wider, Anything=Anything, Open=Open)
CONFIG = dict(model=dict(type='Net', depth=1), train_cfg=dict(max_iters=3),
              steps=[1], custom_hooks=[dict(type='Net', depth=7), 4],
              data_root='data/a/', val_dataloader=dict(dataset=dict(data_root='data/a/')))


def find(name, scope):
    return [CLASSES[name]] if name in CLASSES else []


@pytest.mark.parametrize('path', ['model.depth', 'model.width', 'train_cfg.max_iters', 'resume',
                                  'custom_hooks.0.depth', 'custom_hooks.1'])
def test_options_that_somebody_reads_pass(path):
    check_options(CONFIG, {path: 1}, find)


@pytest.mark.parametrize(('path', 'near'), [
    ('modle.depth', 'model'), ('bath_size', ''), ('model.dept', 'depth'), ('model.widht', 'width'),
    ('train_cfg.max_iter', 'max_iters'), ('custom_hooks.7.depth', '0'), ('zzz.depth', 'model')])
def test_options_that_nobody_reads_are_refused(path, near):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-311[^$]*{path}[^$]*{near}'):
        check_options(CONFIG, {path: 1}, find)


def test_an_option_for_a_used_variable_names_the_places_that_are_read():
    with pytest.raises(VisionError) as caught:
        check_options(CONFIG, {'data_root': 'data/b/'}, find)
    assert caught.value.code == 'VIS-CONFIG-320'
    assert caught.value.do == 'set val_dataloader.dataset.data_root instead'
    with pytest.raises(VisionError, match='VIS-CONFIG-320[^$]*custom_hooks.0.depth'):
        check_options(dict(CONFIG, seven=7), {'seven': 8}, find)


def test_a_class_that_cannot_be_seen_may_take_anything():
    check_options(dict(model=dict(type='Unseen')), {'model.x': 1}, find)


@pytest.mark.parametrize(('cls', 'expected'), [
    (Net, {'depth', 'width'}), (Wider, {'stride', 'depth', 'width'}), (Anything, None),
    (Open, None), (dict, None)])
def test_arguments_are_followed_only_where_the_source_is_certain(cls, expected):
    assert accepted_arguments(cls) == expected


def test_a_class_of_a_library_is_followed_to_its_bases():
    from mmengine.dataset import BaseDataset

    class Own(BaseDataset):
        def __init__(self, extra=1, **kwargs):
            super().__init__(**kwargs)

    assert {'extra', 'ann_file', 'pipeline', 'max_refetch'} <= accepted_arguments(Own)


@pytest.mark.parametrize(('change', 'path', 'near'), [
    (dict(model=dict(type='Net', dept=1)), 'model.dept', 'depth'),
    (dict(model=dict(type='Unseen', x=[dict(type='Wider', widht=1)])), 'model.x.0.widht', 'width'),
    (dict(val_dataloader=dict(dataset=dict(type='Net', q=1))), 'val_dataloader.dataset.q', 'it ta')
])
def test_an_unknown_argument_is_named_by_its_path(change, path, near):
    with pytest.raises(VisionError) as caught:
        check_arguments(dict(CONFIG, **change), find, 'c.py')
    assert caught.value.code == 'VIS-CONFIG-319' and caught.value.where == 'c.py'
    assert path in caught.value.what and near in caught.value.do


def test_what_other_builders_take_is_passed():
    check_arguments(dict(
        _scope_='vision', helper=dict(type='Net', q=1),
        model=dict(type='Net', _scope_='x', depth=dict(
            type='Open', any=1, init_cfg=dict(type='Net', q=1))),
        custom_hooks=[dict(type='Net', depth=1, priority=3), dict(type='Anything', secret=1)]),
        lambda name, scope: find(name, scope))


def test_the_scope_of_a_dict_holds_below_it():
    seen = []
    check_arguments(dict(_scope_='a', model=dict(type='A', inner=dict(
        _scope_='b', type='B', low=dict(type='C')))), lambda *key: seen.append(key) or [])
    assert seen == [('A', 'a'), ('B', 'b'), ('C', 'b')]


def write(folder, **files):
    for name, text in files.items():
        (folder / f'{name}.py').write_text(textwrap.dedent(text))
    return folder / f'{name}.py'


def unread(path):
    return unread_variables(path, frozenset(TOP_LEVEL))


def test_variables_that_are_used_pass(tmp_path):
    path = write(tmp_path, base='''
        """Title."""
        from math import pi
        num_classes, root = 3, 'x'
        unused_here = 1
        model = dict(type='Net', depth=num_classes, width=root)
        ''', top='''
        _base_ = ['./base.py']
        _note = 'kept'
        steps = [1, 2]
        train_cfg = dict(max_iters=steps[-1] + _base_.unused_here)
        val_cfg = test_cfg = None
        if steps:
            resume = True
        ''')
    assert unread(path) == []


def test_a_slip_is_named_with_its_line_and_the_nearest_key(tmp_path):
    path = write(tmp_path, base='optim_wraper = 1\n', top="_base_ = 'base.py'\nmodel = 1\n")
    with pytest.raises(VisionError) as caught:
        check_top_level(unread(path))
    assert caught.value.code == 'VIS-CONFIG-312' and caught.value.where.endswith('base.py:1')
    assert caught.value.do == 'did you mean optim_wrapper?'


def test_a_key_far_from_all_others_is_refused_too(tmp_path):
    path = write(tmp_path, top='gradient_clipping_of_mine = 3\n')
    with pytest.raises(VisionError, match='VIS-CONFIG-312[^$]*call it _gradient'):
        check_top_level(unread(path))


def test_setting_a_variable_of_the_base_again_changes_nothing_and_says_so(tmp_path):
    path = write(tmp_path, base="data_root = 'a'\nval_cfg = dict(root=data_root)\n",
                 top="_base_ = 'base.py'\ndata_root = 'b'\n")
    with pytest.raises(VisionError, match='VIS-CONFIG-312[^$]*read with its own data_root'):
        check_top_level(unread(path))


def test_files_that_are_no_plain_python_are_left_alone(tmp_path):
    path = write(tmp_path, top='x = {{ fileDirname }\n')
    (tmp_path / 'c.yaml').write_text('foo: 1\n')
    assert unread(path) == unread(tmp_path / 'c.yaml') == []


def test_the_configs_of_this_project_hold_nothing_unread(repository):
    paths = sorted((repository / 'configs').rglob('*.py'))
    assert len(paths) > 8 and [entry for path in paths for entry in unread(path)] == []
