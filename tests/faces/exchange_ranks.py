"""A head of many classes in several gloo processes; run as: exchange_ranks.py NUM FOLDER.

Four processes play all cases: runs with 4, 2 and 3 of them, a run that is cut anew twice on the
way, unequal batches of which some are empty, and ranks that disagree.
"""

import copy
import datetime
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from rank_processes import fork_ranks

from vision.common.core.errors import VisionError
from vision.faces.nn.head.gather import gather_batch
from vision.faces.nn.head.margins import ArcFace
from vision.faces.nn.head.selective import selective_loss
from vision.faces.nn.select.build import build_selector
from vision.faces.nn.store.class_store import build_store, class_rows

NUM_CLASSES, DIM, NUM_INPUTS, BATCH, STEPS = 203, 8, 10, 24, 45
SGD = dict(type='sgd', momentum=0.9, weight_decay=1e-3)


class Run:
    """A linear backbone, the same on all ranks of a group, and the head's parts."""

    def __init__(self, group=None, num_classes=NUM_CLASSES, optimizer=SGD):
        self.group = group
        self.rank = dist.get_rank(group) if group else 0
        self.world = dist.get_world_size(group) if group else 1
        self.store = build_store(num_classes, DIM, optimizer=optimizer, group=group, seed=1)
        self.selector = build_selector('random', self.store, num_active=60, seed=2)
        generator = torch.Generator().manual_seed(5)
        start = torch.randn(NUM_INPUTS, DIM, generator=generator) / 3
        self.backbone = torch.nn.Parameter(start)
        self.optimizer = torch.optim.SGD([self.backbone], lr=1.0, momentum=0.9)

    def train(self, first, end):
        return [self.step(step) for step in range(first, end)]

    def step(self, step):
        inputs, labels = self.share(step)
        features, labels = gather_batch(inputs @ self.backbone, labels, self.group)
        chosen = self.selector.select(features.detach(), labels, step)
        rows = self.store.pull(chosen.rows)
        loss = selective_loss(features, rows, chosen.columns, ArcFace(16.0, 0.2),
                              group=self.group).loss
        self.optimizer.zero_grad()
        loss.backward()
        if self.group:
            dist.all_reduce(self.backbone.grad, group=self.group)
        lr = self.optimizer.param_groups[0]['lr'] = 0.1 if step < 30 else 0.02
        self.optimizer.step()
        self.store.push(chosen.rows, rows.grad, lr=lr)
        return loss.item()

    def share(self, step):
        """Inputs (B_r, 10) and labels (B_r,) of this rank; cuts differ in every step."""
        generator = torch.Generator().manual_seed(1000 + step)
        labels = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
        classes = torch.randn(NUM_CLASSES, NUM_INPUTS,
                              generator=torch.Generator().manual_seed(7))
        inputs = classes[labels] + 0.1 * torch.randn(BATCH, NUM_INPUTS, generator=generator)
        cuts = torch.randint(BATCH + 1, (self.world - 1,), generator=generator).sort()[0].tolist()
        if step % 5 == 0 and cuts:
            cuts[-1] = BATCH  # the last rank has no sample
        low, high = ([0, *cuts, BATCH][self.rank + i] for i in (0, 1))
        return inputs[low:high], labels[low:high]

    def state(self):
        """State of all ranks, on all ranks."""
        state = copy.deepcopy(self.store.state_dict())
        states = [state]
        if self.group:
            states = [None] * self.world
            dist.all_gather_object(states, state, group=self.group)
        return states

    def go_on_from(self, states, other):
        self.store.load_ranges(states)
        self.backbone.data.copy_(other['backbone'])
        self.optimizer.load_state_dict(other['optimizer'])


def refusals(group):
    """What each rank says to ranks that differ; then that the group is still usable."""
    faults = []
    rank = dist.get_rank(group)
    for options in (dict(num_classes=NUM_CLASSES + (rank == 2)),
                    dict(optimizer=dict(SGD, momentum=0.9 if rank else 0.8))):
        try:
            Run(group, **options)
        except VisionError as error:
            faults.append(error.code)
    done = torch.ones(1)
    dist.all_reduce(done, group=group)
    return faults + [int(done)]


def main(rank, world, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank,
                            world_size=world, timeout=datetime.timedelta(seconds=60))
    groups = {num: dist.new_group(list(range(num))) for num in (2, 3, 4)}
    result = dict(refusals=refusals(groups[4]))
    store = build_store(30, DIM, group=groups[4], rows_per_class=3)
    result['three_rows_a_class'] = [store.row_start, store.row_end]
    for num in (2, 4):
        if rank < num:
            run = Run(groups[num])
            result[f'curve{num}'] = run.train(0, STEPS)
            result[f'rows{num}'] = class_rows(run.state()).tolist()
    mixed, stores, others = [], None, None
    for index, num in enumerate((4, 2, 3)):
        if rank < num:
            run = Run(groups[num])
            if stores:
                run.go_on_from(stores, others)
            mixed += run.train(15 * index, 15 * index + 15)
            stores = run.state()
            others = dict(backbone=run.backbone.data, optimizer=run.optimizer.state_dict())
        # As from a checkpoint: ranks that were not there read what the others wrote.
        passed = [stores, others]
        dist.broadcast_object_list(passed, src=0)
        stores, others = passed
    result.update(mixed=mixed, mixed_rows=class_rows(stores).tolist())
    Path(folder, f'{rank}.json').write_text(json.dumps(result))
    dist.barrier()  # a rank that leaves while another still reads aborts it
    dist.destroy_process_group()


if __name__ == '__main__':
    fork_ranks(main)
