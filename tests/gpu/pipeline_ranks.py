"""One rank of a pipeline on the device, for test_pipeline.py; several may share one GPU.

  python tests/gpu/pipeline_ranks.py CASE FOLDER    (with RANK, WORLD_SIZE and MASTER_PORT)
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

sys.path.insert(0, str(Path(__file__).parents[1] / 'pipeline'))
import run_cases

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
PLACES = {  # as one process, and cut in several ways
    'one': None, 'zeropp': dict(chunks=2), 'zbv': dict(chunks=2, schedule='zbv', unit='auto'),
    '1f1b': dict(schedule='1f1b', unit='auto'), 'profiled': dict(chunks=4, unit='auto',
                                                                 profile_steps=2)}


class Staged:
    """A receive into host memory that is copied to the device when it is waited for."""

    def __init__(self, work, host, tensor):
        self.work, self.host, self.tensor = work, host, tensor

    def wait(self, *args):
        self.work.wait(*args)
        self.tensor.detach().copy_(self.host)

    def is_completed(self):
        return False  # whoever asks waits


class Kept:
    """A send, and the host memory that it reads."""

    def __init__(self, work, host):
        self.work, self.host = work, host

    def wait(self, *args):
        return self.work.wait(*args)

    def is_completed(self):
        return self.work.is_completed()


def send_through_the_host():
    """NCCL wants a GPU for each rank, and gloo sends what lies on the host alone: transfers
    between ranks that share a GPU go through it."""
    isend, irecv = c10d.isend, c10d.irecv

    def staged_isend(tensor, *args, **kwargs):
        if not tensor.is_cuda:
            return isend(tensor, *args, **kwargs)
        host = tensor.detach().cpu()
        return Kept(isend(host, *args, **kwargs), host)

    def staged_irecv(tensor, *args, **kwargs):
        if not tensor.is_cuda:
            return irecv(tensor, *args, **kwargs)
        host = torch.empty(tensor.shape, dtype=tensor.dtype)
        return Staged(irecv(host, *args, **kwargs), host, tensor)

    made = dict(isend=staged_isend, irecv=staged_irecv,
                send=lambda *args, **kwargs: staged_isend(*args, **kwargs).wait(),
                recv=lambda *args, **kwargs: staged_irecv(*args, **kwargs).wait())
    for name, function in made.items():
        setattr(c10d, name, function)
        setattr(dist, name, function)


def train(folder, name, *, amp=False, backend='nccl', **options):
    """A run of 6 steps with clipping; what it ends with goes to FOLDER/NAME-RANK.json."""
    place = options.pop('place')
    strategy = place and run_cases.zeropp(checkpoint='full', **place)
    config = run_cases.config(folder / name, strategy=strategy, amp=amp, **options)
    if strategy:
        config.env_cfg.dist_cfg.backend = backend if DEVICE == 'cuda' else 'gloo'
    if amp and DEVICE == 'cuda':
        config.optim_wrapper.loss_scale = dict(init_scale=options.get('scale', 2.0**10))
    runner = run_cases.build(config)
    runner.train()
    found = dict(losses=[float(x) for x in runner.message_hub.get_scalar('train/loss').data[0]],
                 skipped=runner.optim_wrapper.num_skipped,
                 devices=sorted({p.device.type for p in runner.model.parameters()}))
    if strategy:
        runtime = runner.model.runtime
        found.update(spans=[[str(action), *times] for action, *times in runtime.spans.seconds()],
                     kept=[stage.activation_bytes for stage in runtime.stages],
                     peak_in_flight=runtime.spans.peak_in_flight,
                     stages=runner.model.table.num_stages)
    (folder / f'{name}-{os.environ["RANK"]}.json').write_text(json.dumps(found))


def alone(folder):
    """All stages on one rank."""
    for name, place in PLACES.items():
        train(folder, name, place=place and dict(place, pp=1))


def narrow(folder):
    """In float16 on a GPU, where the first scale of the last run overflows."""
    train(folder, 'one', place=None, amp=True)
    train(folder, 'cut', place=dict(pp=1, chunks=2), amp=True)
    train(folder, 'overflows', place=dict(pp=1, chunks=2), amp=True, scale=2.0**40)


def two(folder):
    """Two ranks on one device; the first also trains alone."""
    send_through_the_host()
    train(folder, 'two', place=dict(pp=2, chunks=2), backend='gloo', val=True)
    if os.environ['RANK'] == '0':
        dist.destroy_process_group()
        train(folder, 'one', place=None)


if __name__ == '__main__':
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
