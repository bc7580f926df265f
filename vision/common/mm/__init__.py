"""What every room's configs use: the runner, its hooks and optimizer wrapper."""

from vision.common.mm import flexible, hooks, optim, predictions, runner, strategies

__all__ = ['flexible', 'hooks', 'optim', 'predictions', 'runner', 'strategies']
