"""What every room's configs use: the runner, its hooks and optimizer wrapper."""

from vision.common.mm import hooks, optim, runner

__all__ = ['hooks', 'optim', 'runner']
