"""Work of another thread beside that of the device, and answers that are read later."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_stream(stream: torch.cuda.Stream, work: Callable) -> Callable:
    """The work, for another thread: on ``stream``, after all that the caller has asked of the
    device until now; when it returns, the device has done it.

    What the work reads has to live until then. What it gives is memory of ``stream``, and may be
    freed any time if the next work there is asked for with this function, too: that waits for
    whatever still reads it.
    """
    asked = torch.cuda.current_stream(stream.device).record_event()

    def done():
        with torch.cuda.stream(stream):
            stream.wait_event(asked)
            result = work()
            stream.synchronize()
        return result
    return done


class LaterAnswer:
    """A truth value on its way from a device to the host; asked for it, it waits for this copy
    only, not for what the device was given since.

    Args:
        answer: scalar bool.
    """

    def __init__(self, answer: Tensor) -> None:
        self._answer, self._event = answer, None
        if answer.device.type == 'cuda':
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._answer.copy_(answer, non_blocking=True)
            self._event = torch.cuda.current_stream(answer.device).record_event()

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._answer)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host, of any shape, on ``device``; nothing waits until it is there."""
    if torch.device(device).type != 'cuda' or tensor.device.type != 'cpu':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
