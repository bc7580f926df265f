"""What is counted and what is not, and that a fused network is the same network."""

import itertools
import time

import pytest
import torch
from mmengine.config import Config
from torch import nn

from vision.common.core.errors import VisionError
from vision.common.mm import throughput
from vision.common.mm.throughput import fused, network_speed, num_samples, speed


def test_only_the_steps_after_the_warm_up_count_and_loading_does_not():
    waits = [50, 50, 10, 20, 10, 10]  # ms

    def batches():
        while True:
            time.sleep(0.03)  # loading
            yield dict(inputs=[0] * 4)

    waiting = iter(waits)
    found = speed(lambda batch: time.sleep(next(waiting) / 1000), batches(), num_warmup=2,
                  max_iter=4)
    assert found['num_iters'] == 4
    assert 12.5 <= found['mean_ms'] < 25 and 10 <= found['p50_ms'] < 20
    assert 15 < found['p99_ms'] < 45
    assert found['images_per_s'] == pytest.approx(4 * 1000 / found['mean_ms'])


def test_samples_of_batches():
    assert num_samples(dict(inputs=torch.zeros(6, 3, 2, 2), data_samples=[0, 1, 2])) == 3
    assert num_samples(dict(inputs=torch.zeros(6, 3, 2, 2))) == 6
    assert num_samples(dict(inputs=dict(frames=[1, 2]))) == 2


def test_a_loader_is_counted_by_what_it_gives():
    rows = iter(itertools.repeat(dict(inputs=[1, 2, 3])))
    found = speed(lambda number: next(rows), itertools.count(), num_warmup=0, max_iter=5)
    assert found['images_per_s'] * found['mean_ms'] == pytest.approx(3000)


class Network(nn.Module):
    """Convolution, norm; twice the same convolution when it is ``tied``."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.again, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        if is_tied:
            self.again = self.conv
        for norm in (self.norm, self.second):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
        self.num_seen = 0

    def data_preprocessor(self, batch, training):
        return dict(inputs=torch.stack(batch['inputs']).float() / 255)

    def extract_feat(self, x):
        return self.second(self.again(self.norm(self.conv(x)).relu()))

    def test_step(self, batch):
        self.num_seen += len(batch['inputs'])
        return self.extract_feat(self.data_preprocessor(batch, False)['inputs'])


CONFIG = Config(dict(model=dict(type='vision.ImageClassifier'), default_scope='vision'))


def test_a_fused_network_has_no_norms_and_the_same_maps():
    network = Network(False).eval()
    result = fused(CONFIG, network, (16, 24))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    x = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(result.extract_feat(x), network.extract_feat(x), rtol=1e-4,
                               atol=1e-5)


def test_norms_that_cannot_be_folded_are_refused():
    with pytest.raises(VisionError, match='VIS-CONFIG-1787'):
        fused(CONFIG, Network(True).eval(), (16, 24))


def test_every_step_sees_a_whole_batch():
    network = Network(False).eval()
    found = network_speed(CONFIG, network, batch_size=3, num_warmup=2, max_iter=4, shape=(16, 24))
    assert network.num_seen == 18 and found['batch_size'] == 3 and found['num_iters'] == 4
    assert found['peak_bytes'] > 1 << 20 and found['device'] == 'cpu'
    assert throughput.NOISE_TASKS == ('detect', 'classify')
