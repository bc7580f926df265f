"""What `vision doctor` runs in processes of their own, because a broken package may crash.

Not a command for people: `python vision/doctor/probes.py NAME` prints one JSON line. Every probe
imports what it needs and nothing else; an exception is the finding.
"""

import io
import json
import sys
import warnings


def torch_devices() -> dict:
    """Versions of torch and CUDA, names of the GPUs, threads; a small product on each device."""
    import torch
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    for device in ('cpu', *(f'cuda:{i}' for i in range(count))):
        ones = torch.ones(4, 4, device=device)
        assert float((ones @ ones).sum()) == 64, f'a product on {device} is wrong'
    return dict(version=torch.__version__, cuda_build=torch.version.cuda, gpus=names,
                threads=torch.get_num_threads())


def mmcv_ops() -> dict:
    """Runs the compiled NMS and RoIAlign on hand-made input, on each device."""
    import torch
    from mmcv.ops import nms, roi_align
    devices = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
    for device in devices:
        boxes = torch.tensor([[0., 0., 10., 10.], [1., 0., 10., 10.], [20., 20., 30., 30.]])
        scores = torch.tensor([0.9, 0.8, 0.7])
        kept = nms(boxes.to(device), scores.to(device), 0.5)[1].tolist()
        assert kept == [0, 2], f'nms on {device} kept {kept}, expected [0, 2]'
        ramp = torch.arange(8.).repeat(8, 1)[None, None]
        whole = torch.tensor([[0., 0., 0., 8., 8.]])
        mean = float(roi_align(ramp.to(device), whole.to(device), 1, 1.0, 0, 'avg', True))
        assert abs(mean - 3.5) < 1e-5, f'roi_align on {device} gave {mean}, expected 3.5'
    return dict(devices=devices)


def mmdet() -> dict:
    """Its version, once its data sets and models are imported."""
    import mmdet
    import mmdet.datasets
    import mmdet.models
    return dict(version=mmdet.__version__)


def cv2() -> dict:
    """Its version, once a JPEG was written and read back."""
    import cv2
    import numpy as np
    image = np.full((32, 48, 3), 90, np.uint8)
    is_written, data = cv2.imencode('.jpg', image)
    assert is_written and cv2.imdecode(data, cv2.IMREAD_COLOR).shape == image.shape
    assert callable(cv2.imread)
    return dict(version=cv2.__version__)


def torchvision() -> dict:
    """Beside a torch of another build its import raises RuntimeError, and with it every Runner."""
    import importlib.util
    if importlib.util.find_spec('torchvision') is None:
        return dict(version=None)
    import torchvision
    return dict(version=torchvision.__version__)


def h264() -> dict:
    """Encodes and decodes ten frames in memory."""
    import av
    import numpy as np
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as container:
        stream = container.add_stream('libx264', rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for value in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value * 20, np.uint8), 'bgr24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert count == 10, f'10 frames were encoded, {count} decoded'
    return dict(version=av.__version__)


def faiss() -> dict:
    """A search after torch has started its threads, compared with numpy."""
    import faiss
    import numpy as np
    import torch
    torch.ones(64, 64) @ torch.ones(64, 64)
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    index = faiss.IndexFlatIP(16)
    index.add(vectors)
    found = index.search(vectors[:20], 1)[1][:, 0].tolist()
    expected = (vectors[:20] @ vectors.T).argmax(1).tolist()
    assert found == expected, f'faiss found {found[:3]}, expected {expected[:3]}'
    return dict(version=faiss.__version__)


def vision() -> dict:
    """The registries need mmengine, whose absence is a finding of its own, and none of the light
    environment; what runs detectors needs to be there in both."""
    import importlib.util

    import vision
    import vision.lattice.runtime.methods
    import vision.version
    if importlib.util.find_spec('mmengine') is not None:
        import vision.registry
    return dict(version=vision.version.__version__, folder=vision.__path__[0])


def zoo() -> dict:
    """Settings, and where each model of the index would come from."""
    from vision.zoo import Settings, load_index
    from vision.zoo.index import PACKAGE_WEIGHTS
    settings = Settings.from_environment()
    places = {}
    for entry in load_index().values():
        folders = dict(package=PACKAGE_WEIGHTS / entry.file_name if entry.is_packaged else None,
                       cache=settings.cache / f'{entry.sha256[:12]}-{entry.file_name}',
                       mirror=settings.mirror and settings.mirror / entry.file_name)
        places[entry.name] = next((name for name, path in folders.items()
                                   if path and path.is_file()), 'not here')
    return dict(cache=str(settings.cache), mirror=str(settings.mirror or ''),
                is_offline=settings.is_offline, places=places)


PROBES = {probe.__name__: probe for probe in (torch_devices, mmcv_ops, mmdet, cv2, torchvision,
                                              h264, vision, zoo, faiss)}

if __name__ == '__main__':
    warnings.simplefilter('ignore')
    try:
        answer = dict(ok=True, **PROBES[sys.argv[1]]())
    except Exception as error:
        lines = str(error).strip().splitlines() or ['']
        answer = dict(ok=False, reason=f'{type(error).__name__}: {lines[0]}')
    # A package may have printed: the answer is the last line.
    print('\n' + json.dumps(answer))
