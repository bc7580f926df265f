"""Frugal Vision: research code that spends computation only where it pays.

    import vision
    for frame in vision.load('lattice_yolox-nano').video('clip.mp4'):
        print(frame.frame_id, frame.names, frame.boxes_xyxy)

``vision.models()`` lists what ``load`` takes.
"""

import os

from vision.version import __version__

# onnxruntime sends what runs to its maker: a data base under ~/.cache/Microsoft, two threads and
# connections, from its import on. It reads this once, so it must stand before that import. Nothing
# here reports anything; who wants it sets the variable to 0.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')

__all__ = ['ModelCard', 'ModelTable', '__version__', 'load', 'models']


def __getattr__(name: str):
    """Names of ``vision.loading``, which is imported at the first use of one."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from vision import loading
    return getattr(loading, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
