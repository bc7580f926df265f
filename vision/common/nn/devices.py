"""The device that a network runs on, tried before anything large is read for it."""

import torch

from vision.common.core.errors import VisionError


def find_device(name: str | torch.device) -> torch.device:
    """``torch.device(name)``, tried with one number.

    Args:
        name: as PyTorch writes devices: ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        VisionError: VIS-ENV-515, no device, or one that this machine or this build of PyTorch
            does not have.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise VisionError('VIS-ENV-515', f'the device {name} cannot be used', where='device',
                          why=str(error).splitlines()[0],
                          do='vision doctor lists the devices; cpu always works') from error
    return device
