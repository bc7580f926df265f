"""A plain tensor of rows behind the interface of a class store, and rows with structure."""

import torch
from torch.nn import functional

DIM = 16


class TensorStore:
    """Rows start..end of ``weights``; ``push`` is plain gradient descent."""

    def __init__(self, weights, start=0, end=None, group=None):
        self.group = group
        self.num_classes, self.dim = weights.shape
        self.row_start, self.row_end = start, len(weights) if end is None else end
        self.weights = weights[self.row_start:self.row_end].clone()
        self.device = self.weights.device

    def pull(self, rows):
        return self.weights.index_select(0, rows).requires_grad_()

    def peek(self, rows):
        return self.weights[rows]

    def push(self, rows, grad, *, lr):
        self.weights[rows] -= lr * grad

    def snapshot(self, dtype=torch.float16):
        return self.weights.to(dtype)


def clustered_rows(num=2000, dim=DIM, per_cluster=20, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num // per_cluster, dim, generator=generator)
    spread = torch.randn(num, dim, generator=generator)
    return functional.normalize(centres.repeat_interleave(per_cluster, 0) + noise * spread)


def batch_near(weights, num=32, noise=0.15, seed=1):
    """(features (num, d), labels (num,)): noisy copies of random rows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(weights), (num,), generator=generator)
    spread = torch.randn(num, weights.shape[1], generator=generator)
    return functional.normalize(weights[labels] + noise * spread), labels


def selections(selector, store, batches):
    """Rows (M,) of each step of a run on rows that really move."""
    chosen = []
    for step, (features, labels) in enumerate(batches):
        rows = selector.select(features, labels, step).rows
        weights = store.pull(rows)
        logits = 16 * features @ functional.normalize(weights).T
        functional.cross_entropy(logits, torch.searchsorted(rows, labels)).backward()
        store.push(rows, weights.grad, lr=0.5)
        selector.after_update(rows, step)
        chosen.append(rows)
    selector.upkeep.finish()
    return chosen
