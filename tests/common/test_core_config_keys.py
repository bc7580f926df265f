import pytest

from vision.common.core.config_keys import check_options, check_top_level
from vision.common.core.errors import VisionError


class Net:
    def __init__(self, depth, width=3):
        pass


CONFIG = dict(model=dict(type='Net', depth=1), train_cfg=dict(max_iters=3),
              steps=[dict(type='Net'), 4], num_classes=3)


def find_class(name):
    return Net if name == 'Net' else None


@pytest.mark.parametrize('path', ['model.depth', 'model.width', 'train_cfg.max_iters', 'resume',
                                  'steps.0.depth', 'steps.1', 'num_classes'])
def test_options_that_somebody_reads_pass(path):
    check_options(CONFIG, {path: 1}, find_class)


@pytest.mark.parametrize(('path', 'near'), [
    ('modle.depth', 'model'), ('bath_size', ''), ('model.dept', 'depth'), ('model.widht', 'width'),
    ('train_cfg.max_iter', 'max_iters'), ('steps.7.depth', '0')])
def test_options_that_nobody_reads_are_refused(path, near):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-311[^$]*{path}[^$]*{near}'):
        check_options(CONFIG, {path: 1}, find_class)


def test_a_class_that_cannot_be_seen_may_take_anything():
    check_options(dict(model=dict(type='Unseen')), {'model.x': 1}, find_class)


@pytest.mark.parametrize(('slip', 'key'), [('modle', 'model'), ('optim_wraper', 'optim_wrapper'),
                                           ('train_dataloder', 'train_dataloader')])
def test_slips_at_the_top_are_refused(slip, key):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-312[^$]*{key}'):
        check_top_level({slip: 1})


def test_helper_variables_are_no_slips():
    check_top_level(dict(train_pipeline=[], test_pipeline=[], num_classes=3, data_root='x',
                         max_iters=3, image_scale=1, metainfo={}, model={}))
