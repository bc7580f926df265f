"""Training runs through runner, head and hook in several gloo processes.

Run as: head_ranks.py NUM FOLDER. Four processes play all cases: whole runs by 2 and by 4
of them, and one run by 4, then 2, then 3, each resumed from the checkpoint of the one before. A
step has twelve samples in each of them.
"""

import copy
import datetime
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.hooks import Hook

sys.path.insert(0, str(Path(__file__).parent))
import toy_faces
from rank_processes import fork_ranks

from vision.common.core.errors import VisionError
from vision.common.mm.runner import ExactRunner
from vision.registry import import_rooms

SGD = dict(type='sgd', momentum=0.9, weight_decay=1e-4)
HEADS = dict(
    full=dict(selector=dict(type='full')),
    random=dict(selector=dict(type='random', num_active=12),
                store=dict(backend='host', optimizer=SGD)),  # rows are fetched ahead
    # 2, 3 or 4 do not divide 25: the rows of a class stay together all the same.
    centres=dict(selector=dict(type='random', num_active=30), num_classes=25, spare_classes=True,
                 num_subcentres=3),
    ivf=dict(selector=dict(type='ivf', num_active=12, num_lists=2, nprobe=1,
                           upkeep=dict(interval=3, swap_lag=1))))
SAMPLES, STEPS = 12, 12
LEGS = ((4, 4), (2, 8), (3, 12))  # processes, and the step that they go on to


class Recorder(Hook):
    """The loss of each step, and the rows of all ranks as the run begins with them."""

    priority = 'LOW'  # after ActiveClassHook, which reads the checkpoint

    def __init__(self):
        self.losses, self.start = [], None

    def before_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        self.start = copy.deepcopy(model.head.rows_state(is_exact=False)['stores'])
        if dist.is_initialized():
            stores = [None] * dist.get_world_size()
            dist.all_gather_object(stores, self.start)
            self.start = sum(stores, [])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


def play(work_dir, selector, *, world=1, end=STEPS, dataset=None):
    """Train to step ``end``, going on from what lies in ``work_dir``; its Recorder."""
    head = toy_faces.head_config(**HEADS[selector])
    options = dict(max_iters=end, interval=4, batch_size=SAMPLES // world, resume=True,
                   dataset=dataset,
                   launcher='none' if world == 1 else 'pytorch',
                   experiment_name=f'{Path(work_dir).name}-{end}')
    # MMEngine asks compilers and drivers for their versions at every start: two seconds.
    with mock.patch('mmengine.runner.runner.collect_env', dict):
        runner = ExactRunner.from_cfg(toy_faces.config(work_dir, head=head, **options))
        recorder = Recorder()
        runner.register_hook(recorder)
        runner.train()
    return recorder


class Meetings:
    """Process groups of the first so many ranks, one after the other in the same processes."""

    def __init__(self, rank, folder):
        self.rank, self.folder, self.count = rank, folder, 0
        self.groups = []  # a group that is freed cuts off ranks that still read

    def hold(self, num, play_it, *args, **options):
        """What ``play_it`` gives, on the first ``num`` ranks; the others go on at once."""
        self.count += 1
        if self.rank >= num:
            return None
        dist.init_process_group('gloo', init_method=f'file://{self.folder}/meeting{self.count}',
                                rank=self.rank, world_size=num,
                                timeout=datetime.timedelta(seconds=60))
        result = play_it(*args, **options)
        dist.barrier()
        self.groups.append(dist.group.WORLD)
        dist.destroy_process_group()
        return result


def refusal(work_dir, **dataset):
    """What a run says to data that is not that of the other rank."""
    try:
        play(work_dir, 'full', world=2, dataset=dataset)
    except VisionError as error:
        return [error.code, error.what]


def main(rank, num, folder):
    meetings, result = Meetings(rank, folder), {}
    result['other_list'] = meetings.hold(2, refusal, f'{folder}/a', num_classes=23 + rank)
    result['other_length'] = meetings.hold(2, refusal, f'{folder}/b', num_images=4 + rank)
    for selector in HEADS:
        for world in (2, 4) if selector in ('full', 'random') else ():
            recorder = meetings.hold(world, play, f'{folder}/{selector}{world}', selector,
                                     world=world)
            if recorder:
                result[f'{selector}{world}'] = recorder.losses
        mixed = result[f'{selector}-mixed'] = []
        for world, end in LEGS:
            recorder = meetings.hold(world, play, f'{folder}/{selector}-mixed', selector,
                                     world=world, end=end)
            if recorder:
                mixed += recorder.losses
                if rank == 0:
                    torch.save(recorder.start, f'{folder}/{selector}-start{end}.pt')
    Path(folder, f'{rank}.json').write_text(json.dumps(result))
    meetings.hold(4, dist.barrier)


if __name__ == '__main__':
    torch.set_num_threads(1)
    import_rooms()  # what a run imports when it begins: once, not in each fork
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    fork_ranks(main)
