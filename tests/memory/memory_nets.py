"""Small nets with what breaks naive recomputation, and a training of a few steps as evidence."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """BatchNorm's statistics, ReLU and a sum in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.layers = nn.ModuleList([nn.Conv2d(channels, inner, 1, bias=False),
                                     nn.Conv2d(inner, inner, 3, padding=1, bias=False),
                                     nn.Conv2d(inner, channels, 1, bias=False)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(inner),
                                    nn.BatchNorm2d(channels)])

    def forward(self, x):
        out = x
        for conv, norm in zip(self.layers[:2], self.norms[:2], strict=True):
            out = functional.relu(norm(conv(out)), inplace=True)
        out = self.norms[2](self.layers[2](out))
        out += x
        return functional.relu_(out)


class ResNet(nn.Module):
    def __init__(self, width: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Bottleneck(width) for _ in range(depth)))
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


class Pyramid(nn.Module):
    """Branches, upsampling, concatenation and views; each call with the size that comes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(6))
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1)
                                  for _ in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(3))
        self.head = nn.Conv2d(2 * width, 8, 1)

    def forward(self, x):
        x = functional.silu(self.stem(x))
        for conv in self.deep:
            x = x + functional.silu(conv(x))
        levels = [x]
        for conv, norm in zip(self.down, self.norms, strict=True):
            levels.append(functional.silu(norm(conv(levels[-1]))))
        top, scores = levels[-1], []
        for level in reversed(levels[:-1]):
            top = functional.interpolate(top, size=level.shape[-2:]) + level
            both = torch.cat([top, functional.max_pool2d(level, 3, 1, 1)], 1)
            scores.append(self.head(both).flatten(2).transpose(1, 2).sigmoid())
        return torch.cat(scores, 1).mean((0, 1))


class Transformer(nn.Module):
    """Attention and dropout: masks that are drawn, softmax, many views."""

    def __init__(self, dim: int = 64, depth: int = 3) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.fc = nn.Linear(dim, 10)

    def forward(self, x):
        return self.fc(self.layers(x).mean(1))


class Views(nn.Module):
    """Writes through views, splits, an index that writes, a mask, a norm by hand."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        out = self.fc[0](x)
        left, right = out.tanh().chunk(2, -1)
        out = torch.cat([right, left * right], -1)
        wide = self.fc[1](out) * 1.0
        wide[:, :8] = 0.5
        wide[:, 8:16].mul_(2)
        gate = torch.where(wide > 0, wide, wide.exp())
        padded = gate.new_zeros(len(x), gate.shape[1] + 2)
        padded[:, 1:-1] = self.fc[2](gate)
        out = padded[:, 1:-1] / padded.norm(dim=1, keepdim=True)
        return self.fc[3](out).square().t()


NETS = dict(resnet=(ResNet, (8, 3, 32, 32)), pyramid=(Pyramid, (2, 3, 48, 48)),
            transformer=(Transformer, (8, 64, 64)), views=(Views, (2048, 64)))


def train(name: str, manager=None, *, num_steps: int = 4, sizes=(1.0,), accumulate: int = 1,
          dtype: torch.dtype | None = None, channels_last: bool = False, num_backwards: int = 1,
          device: str = 'cpu', on_step=None) -> dict[str, list[torch.Tensor]]:
    """Everything that a training leaves: losses, gradients of each step, weights, buffers, the
    scale of float16's gradients, the generators' states.

    Args:
        sizes: factors of the last two axes of an image batch, in turn.
        accumulate: steps a weight update.
        num_backwards: passes over one graph.
        on_step: called with the manager after each step.
    """
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build().to(device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2,
                                  enabled=dtype == torch.float16)
    found = dict(losses=[], gradients=[])
    for number in range(num_steps):
        factor = sizes[number % len(sizes)]
        x = torch.randn(*shape[:-2], *(int(size * factor) for size in shape[-2:])) \
            if factor != 1.0 else torch.randn(shape)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        x = x.to(device)
        with manager or nullcontext():
            with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = model(x).float().square().mean()
            for left in reversed(range(num_backwards)):
                scaler.scale(loss).backward(retain_graph=left > 0)
            found['gradients'] += [parameter.grad.clone() for parameter in model.parameters()]
            if (number + 1) % accumulate == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        found['losses'].append(loss.detach())
        if on_step is not None:
            on_step(manager)
    found['weights'] = [parameter.detach().clone() for parameter in model.parameters()]
    found['buffers'] = [buffer.clone() for buffer in model.buffers()]
    found['scale'] = [torch.tensor(scaler.get_scale())]
    found['generator'] = [torch.get_rng_state()]
    if device == 'cuda':
        found['generator'].append(torch.cuda.get_rng_state())
    return found


def differences(one: dict[str, list[torch.Tensor]], other: dict[str, list[torch.Tensor]]
                ) -> list[str]:
    """Names of what is not equal bit by bit."""
    return [f'{name} {index}' for name in one
            for index, (a, b) in enumerate(zip(one[name], other[name], strict=True))
            if not torch.equal(a, b)]
