"""Published files hold the tensors, names and config, and nothing of the training."""

import pytest
import torch
from safetensors import safe_open

from vision.common.core.files import sha256_of
from vision.common.nn.checkpoint import class_names, load_checkpoint, save_checkpoint
from vision.common.nn.publish import publish


@pytest.fixture
def checkpoint(tmp_path):
    shared = torch.arange(6.0)
    save_checkpoint(dict(
        state_dict={'a': shared, 'tied': shared, 'b.c': torch.ones(2, 3, dtype=torch.float16)},
        ema_state_dict=dict(a=torch.zeros(6)), optimizer=dict(state={0: torch.ones(10_000)}),
        message_hub=dict(secret='/home/somebody'),
        meta=dict(cfg='model = 1', seed=3, dataset_meta=dict(classes=('cat', 'dog')))),
        tmp_path / 'iter_1.pth')
    return tmp_path / 'iter_1.pth'


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_what_is_kept(checkpoint, tmp_path, suffix):
    path = publish(checkpoint, tmp_path / 'out' / f'small{suffix}')
    assert path.name == f'small-{sha256_of(path)[:8]}{suffix}'
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    content, before = load_checkpoint(path), load_checkpoint(checkpoint)
    assert class_names(content) == ('cat', 'dog')
    assert set(content) == {'state_dict', 'meta'}
    torch.testing.assert_close(content['state_dict'], before['state_dict'], rtol=0, atol=0)
    assert path.stat().st_size < 10_000 and b'somebody' not in path.read_bytes()


def test_the_config_travels_as_text(checkpoint, tmp_path):
    path = publish(checkpoint, tmp_path / 'x.safetensors')
    with safe_open(path, 'pt') as file:
        assert file.metadata()['config'] == 'model = 1'
    assert load_checkpoint(publish(checkpoint, tmp_path / 'x.pth'))['meta']['cfg'] == 'model = 1'


def test_the_same_content_gets_the_same_name(checkpoint, tmp_path):
    assert publish(checkpoint, tmp_path / 'x.safetensors') == publish(
        checkpoint, tmp_path / 'x.safetensors')
