"""Activation memory on a GPU: the same bits, within the budget in bytes that the allocator gives
out, and no waiting of the host.

Where bits are compared, torch's deterministic algorithms are on; two trainings without a budget
must then agree before one with a budget is judged. Nothing here has a tolerance in values: what
comes back is copied, or made by the same kernel from the same bytes.
"""

import gc
import random
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / 'memory'))
from memory_nets import NETS, differences, train

from vision.common.core.errors import VisionError
from vision.memory.core.plan import Link
from vision.memory.nn.manager import CHECKED_STEPS, TIMED_STEPS, MemoryBudget
from vision.memory.nn.transfer import CudaTransfer, Transfer, as_bytes

pytestmark = pytest.mark.gpu
SMALL = 1024  # of what may leave: the nets are small
SLOW_LINK = Link(1e9, 1e9, overlaps=True)  # plans mix both actions
FAST_LINK = Link(1e13, 1e13, overlaps=True)  # plans swap, whether the real link keeps up or not
MB = 2**20
SPARE = 48 * MB  # what kernels take inside; cuBLASLt's workspace on Hopper is 32 MiB
# The first steps under a plan are checked and timed, and one more is made again with the times.
SETTLED = 1 + max(CHECKED_STEPS, TIMED_STEPS) + 2
# float32 attention is deterministic only where nothing else is allowed; the pyramid's pooling has
# no such kernel for its backward pass in torch's list, and is deterministic as it is used here.
WARNS_ONLY = {'pyramid'}


def needs_streams(device):
    if device.type != 'cuda':
        pytest.skip('streams, events and the allocator of a GPU')


@contextmanager
def deterministic(*, warn_only=False):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# Copies

def fill(value, size, device):
    return torch.full((size,), value, dtype=torch.uint8, device=device).untyped_storage()


@pytest.mark.parametrize('host_bytes', [None, 40 * MB])
def test_storages_go_out_and_back_beside_computation(device, host_bytes):
    """In any order, while kernels write new memory and what is back: bytes equal, nothing leaks,
    the cap of the host holds."""
    moves = (CudaTransfer if device.type == 'cuda' else Transfer)(device, host_bytes, None)
    rng, there, away, wrong, refused = random.Random(0), {}, {}, [], 0
    noise = torch.randn(512, 512, device=device)
    noise @ noise  # cuBLAS takes its workspace
    before = allocated(device)
    for number in range(1500):
        action = rng.choice(['make', 'make', 'out', 'out', 'out', 'back', 'back', 'write',
                             'forget', 'settle'])
        if action == 'make' and len(there) < 60:
            size = rng.choice([4096, MB + 100, 4 * MB, 9 * MB + 7])
            noise @ noise  # the copy finds the compute stream busy
            there[number] = fill(number % 251, size, device), number % 251
        elif action == 'out' and there:
            key = rng.choice(sorted(there))
            storage, value = there[key]
            block = moves.out(storage)
            refused += block is None
            if block is not None:
                del there[key]
                away[key] = block, value
            del storage
        elif action in ('back', 'forget') and away:
            block, value = away.pop(rng.choice(sorted(away)))
            if action == 'forget':
                moves.release(block)
                continue
            storage, arrival = moves.back(block, block.num_bytes)
            if arrival is not None:
                moves.wait(arrival)
            there[number] = storage, value
            wrong.append((as_bytes(storage) != value).any())
            del storage
        elif action == 'write' and there:
            key = rng.choice(sorted(there))
            storage, value = there[key]
            as_bytes(storage).fill_((value + 7) % 251)
            there[key] = storage, (value + 7) % 251
            del storage
        elif action == 'settle':
            moves.settle(must_free=rng.choice([0, 10 * MB, 10**12]))
        if host_bytes is not None:
            assert moves.pool.used_bytes <= host_bytes
            assert sum(arena.nbytes for arena in moves.arenas) <= host_bytes
    for storage, value in there.values():
        wrong.append((as_bytes(storage) != value).any())
    assert len(wrong) > 200 and not torch.stack(wrong).any()
    assert (refused > 0) == (host_bytes is not None)
    for block, _ in away.values():
        moves.release(block)
    there.clear()
    wrong.clear()
    storage = None
    synchronize(device)
    moves.settle(must_free=10**12)
    assert moves.pool.used_bytes == 0 and moves.leaving_bytes == 0
    assert allocated(device) == before
    moves.close()
    assert not moves.arenas


@pytest.mark.parametrize('fault', [None, 'no wait for compute', 'no stash',
                                   'no wait for arrival'])
def test_the_copies_show_the_faults_of_others(device, fault):
    """The judge judges, on this GPU: its streams do overlap, and each wait is needed."""
    needs_streams(device)
    torch.cuda.empty_cache()
    moves, size = CudaTransfer(device, None, SLOW_LINK), 64 * MB
    for _ in range(2):  # pins the host's memory, and leaves the allocator a free block
        moves.release(moves.out(fill(0, size, device)))
        torch.cuda.synchronize()
        moves.settle(must_free=10**12)
    compute = torch.cuda.current_stream()
    if fault == 'no wait for compute':
        moves.to_host.wait_event = lambda event: None
    else:
        with torch.cuda.stream(moves.to_host):
            torch.cuda._sleep(50_000_000)  # the copy out is late
    storage = torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()
    as_bytes(storage).zero_()
    if fault == 'no wait for compute':
        torch.cuda._sleep(50_000_000)
    as_bytes(storage).fill_(77)
    block = moves.out(storage)
    if fault == 'no stash':
        moves.stash.clear()
    else:
        moves.settle(must_free=size)
    del storage
    other = fill(5, size, device)  # into the memory that left, if that is free
    fill(9, size, device)  # and into what comes next
    with torch.cuda.stream(moves.to_device):
        torch.cuda._sleep(200_000_000)  # the copy back is late
    back, arrival = moves.back(block, size)
    if fault != 'no wait for arrival':
        moves.wait(arrival)
    is_right = (as_bytes(back) == 77).all()
    compute.synchronize()
    assert bool(is_right) == (fault is None)
    torch.cuda.synchronize()
    del other
    moves.close()


def test_the_link_is_measured_and_the_stream_is_as_it_was(device):
    needs_streams(device)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        moves = CudaTransfer(device, None, None)
        link = moves.link
        moves.release(moves.out(fill(3, 4 * MB, device)))
        assert torch.cuda.current_stream() == side
    assert torch.cuda.current_device() == 0
    assert link.overlaps and 0 < link.host_seconds < 0.01
    assert 1e9 < link.out_bytes_per_s < 1e12 and 1e9 < link.in_bytes_per_s < 1e12
    moves.close()


# Bits

@pytest.fixture(scope='module')
def free():
    """Trainings without a budget, made once each, in two runs that agree."""
    made = {}

    def get(name, device, **options):
        key = name, str(sorted(options.items()))
        if key not in made:
            made[key] = train(name, device=device.type, **options)
            again = train(name, device=device.type, **options)
            assert differences(made[key], again) == [], 'not deterministic without a budget'
        return made[key]
    return get


@pytest.mark.parametrize('options', [
    dict(actions='both', link=SLOW_LINK), dict(actions='recompute'), dict(actions='swap'),
    dict(actions='both', link=SLOW_LINK, mode='reactive'),
    dict(actions='recompute', mode='reactive'), dict(actions='swap', mode='reactive')],
    ids=lambda options: f'{options["actions"]}-{options.get("mode", "planned")}')
@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16],
                         ids=['float32', 'bfloat16', 'float16-scaled'])
@pytest.mark.parametrize('name', NETS)
def test_a_budget_changes_no_bit(name, dtype, options, device, free):
    """Convolutions with BatchNorm, dropout, attention, views: losses, gradients, weights, buffers,
    the loss's scale and the states of both generators after seven steps."""
    lines = []
    manager = MemoryBudget(ratio=0.5, min_bytes=SMALL, device=device, log=lines.append, **options)
    with deterministic(warn_only=name in WARNS_ONLY):
        expected = free(name, device, dtype=dtype, num_steps=7)
        found = train(name, manager, device=device.type, dtype=dtype, num_steps=7)
    assert differences(expected, found) == [], lines
    assert sum(manager.report().drops.values()) > 0, lines
    print([line for line in lines if 'other bytes' in line])  # allowed, and worth to know
    manager.close()


@pytest.mark.parametrize('name', ['resnet', 'pyramid'])
def test_channels_last_changes_no_bit(name, device, free):
    """cuDNN has other kernels for it, of BatchNorm too."""
    manager = MemoryBudget(ratio=0.5, min_bytes=SMALL, device=device, actions='recompute')
    options = dict(channels_last=True, dtype=torch.bfloat16)
    with deterministic(warn_only=True):
        expected = free(name, device, **options)
        assert differences(expected, train(name, manager, device=device.type, **options)) == []
    assert manager.report().replayed_calls > 0
    manager.close()


def test_sizes_that_change_have_a_plan_each(device, free):
    """A step whose shapes are new is timed by events too, however old the other plans are."""
    options, modes = dict(sizes=(1.0, 1.0, 1.0, 1.0, 1.0, 1.5), num_steps=24), []
    manager = MemoryBudget(ratio=0.6, min_bytes=SMALL, device=device, actions='recompute')
    with deterministic():
        expected = free('resnet', device, **options)
        found = train('resnet', manager, device=device.type, **options,
                      on_step=lambda manager: modes.append(manager.report().mode))
    assert differences(expected, found) == []
    assert modes[0] == 'unmanaged' and modes[-1] == 'planned' and modes[-6:].count('planned') == 6
    manager.close()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attention_may_run_again(device, dtype):
    """Its kernels return the generator's state, in types of their own."""
    layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.1, batch_first=True).to(device)
    manager = MemoryBudget(ratio=1.0, min_bytes=SMALL, device=device)
    x = torch.randn(8, 64, 64, device=device)
    with manager, torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
        layer(x).float().sum().backward()
    calls = [call for call in manager.trace().calls if 'attention' in call.name
             or 'softmax' in call.name]
    assert calls and all(call.replayable for call in calls), calls
    manager.close()


# Bytes

class Tower(nn.Module):
    """Saved values are nearly all that a step holds; sizes of a few layers' output each."""

    def __init__(self, width, depth):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x).square().mean()


def tower(device, width=1024, depth=16):
    """(network, batch): 16 KiB x width for each of the 3 x depth values that it saves."""
    torch.manual_seed(0)
    model = Tower(width, depth).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model, torch.randn(4096, width, device=device)


def step(model, x, manager=None):
    """Forward and backward; the gradients are there before, so that they are no activations."""
    torch._foreach_zero_([parameter.grad for parameter in model.parameters()])
    with manager or nullcontext():
        model(x).backward()


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def allocated(device):
    return torch.cuda.memory_allocated() if device.type == 'cuda' else 0


def synchronize(device):
    if device.type == 'cuda':
        torch.cuda.synchronize()


def allocated_peak(work):
    """Bytes above what was there before, as the allocator counts them."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize('ratio', [0.7, 0.5, 0.4])
@pytest.mark.parametrize('actions', ['both', 'recompute', 'swap'])
def test_the_allocator_agrees_that_the_budget_holds(device, actions, ratio):
    """Named overheads: 2 % for rounding, 5 % that a budget may be passed by, and SPARE. What is on
    its way to the host counts."""
    needs_streams(device)
    model, x = tower(device)
    step(model, x)
    step(model, x)
    free_peak = allocated_peak(lambda: step(model, x))
    expected = gradients(model)
    manager = MemoryBudget(bytes=int(ratio * free_peak), device=device, actions=actions)
    for number in range(SETTLED + 2):
        peak = allocated_peak(lambda: step(model, x, manager))
        report = manager.report()
        assert peak <= 1.02 * report.peak_bytes + SPARE, (number, report)
        if number:
            assert peak <= 1.07 * report.budget_bytes + SPARE, (number, report)
        for one, other in zip(expected, gradients(model), strict=True):
            assert torch.equal(one, other)
    if actions != 'swap':  # a step may be too short for a plan of copies: then scores await them
        assert report.mode == 'planned' and not report.is_over
    manager.close()


def test_a_second_step_starts_where_the_first_did(device):
    """Nothing of a step is left in the device's memory, and the host's stops growing."""
    needs_streams(device)
    model, x = tower(device)
    step(model, x)
    manager = MemoryBudget(ratio=0.4, device=device, actions='swap')
    held, pinned = [], []
    for _ in range(SETTLED + 6):
        step(model, x, manager)
        torch.cuda.synchronize()
        gc.collect()
        held.append(torch.cuda.memory_allocated())
        pinned.append(sum(manager._transfer.pool.arena_sizes))
    assert len(set(held[SETTLED:])) == 1, held
    assert len(set(pinned[SETTLED:])) == 1, pinned
    manager.close()


@contextmanager
def at_most(num_bytes):
    """This process gets no more memory than so many bytes beyond what it holds."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + num_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize(('actions', 'share'), [
    ('both', 0.4), ('recompute', 0.4), ('swap', 0.4),
    # A budget that the device does not have: an operator fails, makes room and runs again.
    ('both', 1.0), ('recompute', 1.0), ('swap', 1.0)])
def test_a_step_that_does_not_fit_fits_with_a_budget(device, actions, share):
    """The process may take 0.7 of what the free step holds; its gradients are the same bits."""
    needs_streams(device)
    model, x = tower(device)
    step(model, x)
    free_peak = allocated_peak(lambda: step(model, x))
    expected, lines = gradients(model), []
    with at_most(int(0.7 * free_peak)):
        assert not fits(lambda: step(model, x))
        manager = MemoryBudget(bytes=int(share * free_peak), device=device, actions=actions,
                               log=lines.append, link=SLOW_LINK)
        for _ in range(4):
            step(model, x, manager)
            for one, other in zip(expected, gradients(model), strict=True):
                assert torch.equal(one, other)
        manager.close()
    assert any('found no memory' in line for line in lines) == (share == 1.0), lines


def fits(work):
    try:
        work()
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return True


def test_more_than_the_device_has_is_refused(device):
    needs_streams(device)
    with pytest.raises(VisionError) as caught:
        MemoryBudget(gib=10_000)
    assert caught.value.code == 'VIS-CONFIG-1414'


# Waiting

@pytest.mark.parametrize('options', [
    dict(actions='swap', link=FAST_LINK), dict(actions='both', link=SLOW_LINK),
    dict(actions='recompute')], ids=lambda options: options['actions'])
def test_the_host_does_not_wait_in_a_planned_step(device, options):
    """The host waits by design where replays are compared (the first step of a shape), where what
    leaves is summed (the two steps after it), when a timed step has ended (the three after it),
    and while a new piece of host memory is pinned. From then on it may be a whole step ahead: here
    the device is kept busy while the step is queued."""
    needs_streams(device)
    model, x = tower(device)
    manager = MemoryBudget(ratio=0.5, device=device, **options)
    for _ in range(SETTLED + 3):
        step(model, x, manager)
    done = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        start = time.perf_counter()
        torch.cuda._sleep(4_000_000_000)  # two seconds
        done.record()
        step(model, x, manager)
        took, was_busy = time.perf_counter() - start, not done.query()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    report = manager.report()
    assert report.mode == 'planned' and sum(report.drops.values()) > 0
    assert was_busy, f'the step was queued in {took:.2f} s, after what stood before it'
    torch.cuda.synchronize()
    manager.close()


def test_copies_run_beside_computation(device):
    """A product takes twice as long as the copy of its result: most copies have a kernel beside
    them, by the profiler's times."""
    needs_streams(device)
    model, x = tower(device, width=4096, depth=8)
    for _ in range(3):
        step(model, x)
    manager = MemoryBudget(ratio=0.6, device=device, actions='swap')
    for _ in range(SETTLED + 3):
        step(model, x, manager)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(model, x, manager)
        torch.cuda.synchronize()
    assert manager.report().drops['swap'] > 0
    spans = [(event.time_range.start, event.time_range.end, event.name)
             for event in profile.events() if event.device_type.name == 'CUDA']
    if not spans:
        pytest.skip('the profiler sees no kernels on this machine')
    copies = [span for span in spans if 'HtoD' in span[2] or 'DtoH' in span[2]]
    kernels = [span for span in spans if 'Mem' not in span[2]]
    beside = sum(any(start < ends and starts < end for starts, ends, _ in kernels)
                 for start, end, _ in copies)
    assert copies and beside > 0.5 * len(copies), f'{beside} of {len(copies)}: {manager.report()}'
    manager.close()


# Runs

@pytest.mark.parametrize(('memory', 'amp'), [
    (dict(budget=0.4), False), (dict(budget=0.4), True),
    (dict(budget=0.4, actions='recompute'), True), (dict(budget=0.4, actions='swap'), True)],
    ids=['both', 'both-amp', 'recompute-amp', 'swap-amp'])
def test_a_run_under_a_budget_ends_as_one_without(device, tmp_path, memory, amp):
    """A Runner's, with MMEngine's mixed precision (on a GPU float16 and a scaled loss)."""
    pytest.importorskip('mmengine')
    import runs_memory
    with deterministic():
        _, expected = runs_memory.train(runs_memory.config(tmp_path / 'free', amp=amp))
        runner, found = runs_memory.train(
            runs_memory.config(tmp_path / 'held', memory, amp=amp))
    runs_memory.runs.assert_equal(expected, found)
    assert runs_memory.watch(runner).num_dropped > 0
    assert next(runner.model.parameters()).device.type == device.type
