"""An .onnx file, opened the same way everywhere."""

from __future__ import annotations

import os

import onnxruntime

from vision.common.core.errors import VisionError


def open_session(path: str | os.PathLike, options: onnxruntime.SessionOptions | None = None
                 ) -> onnxruntime.InferenceSession:
    """A session on the CPU that is silent: what matters is raised, in exceptions of its own kinds.

    Args:
        options: further ones; None: the library's.
    """
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its warnings about unused parts help nobody
    # It would print that it falls back from the CPU to the CPU.
    return onnxruntime.InferenceSession(os.fspath(path), options, enable_fallback=0,
                                        providers=['CPUExecutionProvider'])


def require_cpu(device: str) -> None:
    """Refuse another device for what runs in onnxruntime.

    Raises:
        VisionError: ``device`` is not 'cpu'.
    """
    if device != 'cpu':
        raise VisionError('VIS-CONFIG-1721', f'device={device!r} with a network in onnxruntime',
                          where='device', why='it runs on the CPU', do='leave device out')
