"""What several forked ranks do together for the tests; each case writes a JSON file.

  python tests/common/rank_cases.py CASE FOLDER
  python tests/common/rank_cases.py report FOLDER docs/results/resume_points_ranks.json --record
"""

import datetime
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
import resume_points
import runs
from rank_faults import TIMEOUT_S, fork_ranks, work_until

from vision.common.core.report import write_report
from vision.common.mm.flexible import ExactFlexibleRunner
from vision.common.mm.launch import resume_after_restart
from vision.common.nn.watchdog import ends_together


def build(strategy, **options):
    """From a config to a runner of this strategy."""
    def built(cfg):
        cfg.strategy = dict(type=strategy, **options)
        cfg.launcher = 'pytorch'
        cfg.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=60))
        # MMEngine asks compilers and drivers for their versions at every start: two seconds.
        with mock.patch('mmengine._strategy.base.collect_env', dict):
            return ExactFlexibleRunner.from_cfg(cfg)
    return built


def local(outcome):
    """Shards as they lie on this rank. The losses of the steps before are those of rank 0 on every
    rank that has resumed."""
    if os.environ['RANK'] != '0':
        outcome['/losses'] = outcome['/losses'][-1:]
    return {name: value.to_local() if hasattr(value, 'to_local') else value
            for name, value in outcome.items()}


def points(folder, strategy, numbers):
    """Rows of ``resume_points`` on this rank."""
    resume_points.outcome = lambda runner: local(runs.outcome(runner))
    chosen = [resume_points.POINTS[number] for number in numbers]
    with ends_together(60):
        rows = list(resume_points.check(chosen, folder / strategy, build(strategy)))
    (folder / f'{strategy}-{os.environ["RANK"]}.json').write_text(json.dumps(rows))


def play(folder, ranks, work, *args):
    """Fork ranks that do ``work``; what they print and raise stands in the test's report."""
    ended = fork_ranks(work, ranks, folder, *args, wait_s=900)
    for rank, end in enumerate(ended):
        if end.code != 0:
            print(f'--- rank {rank} ended with {end.code}:\n{end.text[-4000:]}', file=sys.stderr)
    assert all(end.code == 0 for end in ended), work.__name__


def rows_of(folder, strategy, numbers, num_ranks=2):
    """A row for each resume point; ``differs`` has the names that differ on any rank."""
    play(folder, num_ranks, points, strategy, numbers)
    found = [json.loads((folder / f'{strategy}-{rank}.json').read_text())
             for rank in range(num_ranks)]
    return [dict(rows[0], strategy=strategy, ranks=num_ranks,
                 differs=sorted(set().union(*(row['differs'] for row in rows))))
            for rows in zip(*found, strict=True)]


def leg(folder, strategy, name, end, options):
    """Train a run of 6 steps up to step ``end`` with these ranks; leave what it has then."""
    world = int(os.environ['WORLD_SIZE'])
    cfg = runs.config(folder / name, steps=6, interval=2, is_plain=True,
                      crash=None if end == 6 else end, **options)
    cfg.model.is_plain = True  # nothing is drawn by rank, so that the number may change
    cfg.train_dataloader.batch_size = 4 // world
    cfg.resume, cfg.experiment_name = True, f'{name}-{end}'
    with ends_together(60):
        runner = build(strategy, wrap=['Sequential'])(cfg) if strategy == 'FSDP2Strategy' else \
            build(strategy)(cfg)
        try:
            runner.train()
        except RuntimeError as error:
            assert str(error) == 'crash', error
        found = {key: value.full_tensor() if hasattr(value, 'full_tensor') else value
                 for key, value in runs.outcome(runner).items()}
        if dist.get_rank() == 0:
            torch.save(found, folder / f'{name}-{end}.pt')
        dist.barrier()


def other_ranks(folder):
    """Runs of 1, 2, 4 ranks in turn, of 4 throughout, and from FSDP2 to DDP and back.

    All within the first epoch: its last step is filled up when ranks do not divide the samples.
    """
    options = dict(accumulation=2, ema=True)
    for world, end in ((1, 2), (2, 4), (4, 6)):
        play(folder, world, leg, 'FSDP2Strategy', 'mixed', end, options)
    play(folder, 4, leg, 'FSDP2Strategy', 'four', 6, options)
    for strategy, end in (('FSDP2Strategy', 2), ('DDPStrategy', 4), ('FSDP2Strategy', 6)):
        play(folder, 2, leg, strategy, 'kinds', end, options)


def one_dies(folder, name, victim):
    """A run of FSDP2 whose rank ``victim`` gets SIGKILL after step 11; -1: none."""
    crash = 11 if int(os.environ['RANK']) == victim else None
    cfg = runs.config(folder / name, crash=crash)
    for hook in cfg.custom_hooks:
        hook.kill = True
    cfg.experiment_name = f'{name}-{victim}'
    cfg.launcher = 'pytorch'
    resume_after_restart(cfg)
    with ends_together(20):
        runner = build('FSDP2Strategy')(cfg)
        runner.train()
    found = local(runs.outcome(runner))
    torch.save(found, folder / f'{name}-{os.environ["RANK"]}.pt')


def restart(folder):
    """As torchrun: a rank dies, all end, all are started again, and go on by themselves."""
    play(folder, 2, one_dies, 'straight', -1)
    ended = fork_ranks(one_dies, 2, folder, 'killed', 1, wait_s=60)
    os.environ['TORCHELASTIC_RESTART_COUNT'] = '1'
    play(folder, 2, one_dies, 'killed', -1)
    names = [runs.differences(*(torch.load(folder / f'{name}-{rank}.pt', weights_only=True)
                                for name in ('straight', 'killed'))) for rank in range(2)]
    (folder / 'restart.json').write_text(json.dumps(dict(
        codes=[end.code for end in ended], text=ended[0].text, differs=names)))


def stages(kind, rank):
    """A chain that passes tensors on, as the stages of a pipeline do."""
    with ends_together(TIMEOUT_S):
        dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=TIMEOUT_S))
        own, world, box = dist.get_rank(), dist.get_world_size(), torch.ones(3)
        for number in range(20):
            if own > 0:
                dist.recv(box, own - 1)
            if own == rank and number == 10:
                if kind == 'stage-raises':
                    raise ValueError(f'stage {own}')
                dist.recv(box, own + 1)
            if own < world - 1:
                dist.send(box, own + 1)
        dist.barrier()


def lingering(folder):
    """The last ranks have work left when rank 0, which holds the store, has none."""
    with ends_together(TIMEOUT_S):
        dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=TIMEOUT_S))
        dist.barrier()
        time.sleep(0.7 * (1 + dist.get_rank()))


def late(folder):
    play(folder, 3, lingering)


def raising():
    """Every rank raises the same error at the same time, as after a decision of rank 0."""
    with ends_together(TIMEOUT_S):
        dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=TIMEOUT_S))
        dist.barrier()
        raise ValueError('what rank 0 has found')


def together(folder):
    (folder / 'together.json').write_text(json.dumps(
        [[(end.code, end.text) for end in fork_ranks(raising, 3, ends_rest=trial % 2 == 0)]
         for trial in range(6)]))


def faults(folder):
    """What the ranks of each fault ended with: code, seconds, text. Three faults at once: their
    time is that of waiting."""
    wanted = list(enumerate(json.loads((folder / 'faults.json').read_text())))
    players = [fork_player(folder, wanted[start::3]) for start in range(3)]
    assert not any(os.waitpid(player, 0)[1] for player in players)
    (folder / 'played.json').write_text(json.dumps(
        [json.loads((folder / f'played-{number}.json').read_text()) for number, _ in wanted]))


def fork_player(folder, wanted):
    if player := os.fork():
        return player
    for number, (kind, world, rank) in wanted:
        work, *args = (stages, kind, rank) if kind.startswith('stage') else \
            (work_until, kind, rank, 10, True)
        ended = fork_ranks(work, world, *args, wait_s=TIMEOUT_S + 11)
        (folder / f'played-{number}.json').write_text(json.dumps(
            [(end.code, end.after_s, end.text) for end in ended]))
    os._exit(0)


def rows(folder, *numbers):
    found = rows_of(folder, 'DDPStrategy', [int(n) for n in numbers]) + \
        rows_of(folder, 'FSDP2Strategy', [int(n) for n in numbers])
    (folder / 'rows.json').write_text(json.dumps(found))


def report(folder, path, *options):
    """24 resume points by DDP and by FSDP2, on two ranks."""
    numbers = [number for number, point in enumerate(resume_points.POINTS)
               if point.workers == 0 or point.kind == 'all']
    found = [row for strategy in ('DDPStrategy', 'FSDP2Strategy')
             for row in rows_of(folder, strategy, numbers)]
    num_equal = sum(not row['differs'] for row in found)
    print(f'{num_equal} of {len(found)} resume points end bit-identical')
    write_report(Path(path), found, seed=0, is_recorded='--record' in options)


if __name__ == '__main__':
    torch.set_num_threads(1)
    if sys.argv[1] not in ('faults', 'late', 'together'):  # their ranks run nothing of MMEngine
        runs.import_all()
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
