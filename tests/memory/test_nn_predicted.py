"""What a plan says of a step is what the step does, byte for byte."""

import pytest
import torch
from torch import nn

from vision.memory.core.plan import Link
from vision.memory.nn.manager import MemoryBudget


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.norm(self.conv(self.relu(self.norm(self.conv(x))))) + x)


class TwoHeads(nn.Module):
    """Branches, one of which is short: its values die early in backward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.long, self.short = nn.Sequential(*[Block(8) for _ in range(6)]), Block(8)

    def forward(self, x):
        x = self.stem(x)
        return self.long(x).square().mean() + self.short(x).sigmoid().mean()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.inner, self.stem = nn.TransformerEncoder(layer, 4), nn.Linear(27, 32)

    def forward(self, x):
        return self.inner(self.stem(x.reshape(8, 192, 27))).square().mean()


@pytest.mark.parametrize('actions', ['recompute', 'swap', 'both'])
@pytest.mark.parametrize('model', [TwoHeads, Attention])
def test_peak_and_replays_are_those_that_were_predicted(model, actions):
    torch.manual_seed(0)
    net, x = model(), torch.randn(8, 3, 48, 48)
    for ratio in (0.7, 0.45):
        manager = MemoryBudget(ratio=ratio, actions=actions, min_bytes=1024,
                               link=Link(2e9, 2e9, overlaps=False), log=lambda line: None)
        for _ in range(3):
            with manager:
                net(x if model is TwoHeads else x[..., :36]).backward()
            net.zero_grad()
        report, plan = manager.report(), manager._scripts[0].plan
        assert report.mode == 'planned' and plan.actions
        assert report.peak_bytes == plan.peak_bytes
        kinds = list(plan.actions.values())
        assert report.drops == {kind: kinds.count(kind) for kind in ('drop', 'swap')}
        manager.close()
