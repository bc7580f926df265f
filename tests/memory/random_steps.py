"""Random small training steps as traces, and the slow, obvious judge of ``predict``."""

import numpy as np

from vision.memory.core.graph import Call, Trace, Value


def random_step(seed, *, num_calls=6, shuffled=True, p_replayable=0.9):
    """Forward of ``num_calls`` calls, then one operator per call in backward, each reading what
    its call saved. ``shuffled``: backward in any order, so that ancestors die early."""
    rng = np.random.default_rng(seed)
    calls, values, saved = [], [], []
    usable = []  # versions that were not overwritten
    for moment in range(num_calls):
        inputs = [] if not usable else list(
            rng.choice(usable, size=min(len(usable), int(rng.integers(1, 4))), replace=False))
        inputs = [int(w) for w in inputs]
        outputs, pairs = [], []
        for number in range(1 + (rng.random() < 0.2)):
            index = len(values)
            num_bytes = int(rng.integers(1, 9))
            fair = [w for w in inputs if w in usable and not values[w]['reads_by']]
            if number == 0 and fair and rng.random() < 0.35:
                old = fair[0]
                usable.remove(old)
                pairs.append((old, index))
                num_bytes = values[old]['num_bytes']
                values[old]['over'] = moment
            values.append(dict(num_bytes=num_bytes, call=moment, born=moment, uses=[moment],
                               reads_by=[], over=None))
            outputs.append(index)
            usable.append(index)
        for w in inputs:
            values[w]['uses'].append(moment)
        own = [w for w in (*inputs, *outputs) if w in usable and rng.random() < 0.6]
        for w in own:
            values[w]['reads_by'].append(moment)
        saved.append(own)
        calls.append(Call(f'op{moment}', moment, float(rng.integers(1, 6)), tuple(inputs),
                          tuple(outputs), bool(rng.random() < p_replayable), tuple(pairs)))
    order = list(range(num_calls))[::-1]
    if shuffled:
        order = [int(call) for call in rng.permutation(num_calls)]
    reads = [(num_calls + step, w) for step, call in enumerate(order) for w in saved[call]]
    num_ops = 2 * num_calls
    live, made = rng.integers(0, 4, num_ops), np.zeros(num_ops, int)
    made[num_calls:] = live[num_calls:]
    done = []
    for index, value in enumerate(values):
        last_use = max(value['uses'])
        death = max([last_use, *(moment for moment, w in reads if w == index)])
        if value['over'] is not None:
            death = value['over']
        elif rng.random() < 0.2:
            death = min(death + int(rng.integers(0, 4)), num_ops - 1)
        packed = min(value['reads_by'], default=None)
        idle = None if packed is None else max(last_use, packed) + int(rng.random() < 0.1)
        end = death if value['over'] is not None else death + 1
        live[value['born']:end] += value['num_bytes']
        if not any(new == index for _, new in calls[value['call']].inplace):
            made[value['born']] += value['num_bytes']
        done.append(Value(value['num_bytes'], value['call'], value['born'], death, packed, idle,
                          packed is not None and rng.random() < 0.9))
    seconds = np.array([call.seconds for call in calls] * 2)
    return Trace(tuple(calls), tuple(done), live, made, seconds, tuple(reads))


class Stuck(Exception):
    pass


def judge(trace, actions, link):
    """(live_bytes, seconds) of a link without overlap, moment by moment. Locks are found by
    running again: whatever a chain missed is held from the start of the next run."""
    held = {}  # value -> number of the read whose replay needs it last
    while True:
        missed, live, seconds = _live_through(trace, actions, link, held)
        if missed == held:
            return live, seconds
        held = missed


def _live_through(trace, actions, link, held):
    values, calls = trace.values, trace.calls
    overwritten = {old for call in calls for old, _ in call.inplace}
    off, missed = set(), {}
    seconds = sum(values[v].num_bytes / link.out_bytes_per_s
                  for v, action in actions.items() if action == 'swap')
    result = []

    def level(moment, base, number):
        """``base`` of the unmanaged step, less what is off, plus what is locked."""
        away = sum(values[v].num_bytes for v in off if values[v].death >= moment)
        kept = sum(values[w].num_bytes for w, last in held.items()
                   if values[w].death < moment and number <= last)
        return base - away + kept

    for moment in range(len(trace.live_bytes)):
        before = int(trace.live_bytes[moment] - trace.made_bytes[moment])
        highest = 0
        number = -1
        for number, (when, v) in enumerate(trace.reads):
            if when != moment or v not in off:
                continue
            later = {w for _, w in trace.reads[number + 1:]} | {v}
            steps, locked = [], set()

            def need(w, since, moment=moment, steps=steps, locked=locked):
                """Append what has to happen until w is there."""
                value = values[w]
                if w not in off and value.born < moment <= value.death:
                    return
                if any(w in made for _, made in steps) or w in locked:
                    return
                if w not in off:
                    if (value.packed is not None and w not in overwritten
                            and since < value.death < moment):
                        locked.add(w)
                        return
                if w in off and actions[w] == 'swap':
                    steps.append((None, (w,)))
                    return
                call = calls[value.call]
                for x in call.inputs:
                    need(x, min(since, value.idle) if w in off else since)
                if not call.replayable:
                    raise Stuck
                steps.append((call, call.outputs))

            need(v, 10**9)
            missed.update(dict.fromkeys(locked, number))
            temporary = {}
            copied = {made[0] for call, made in steps if call is None}
            for index, (call, made) in enumerate(steps):
                wanted = {x for after, _ in steps[index + 1:] if after for x in after.inputs}
                twice = []  # copies of what is at hand, while the call runs
                if call is None:
                    temporary[made[0]] = values[made[0]].num_bytes
                    seconds += values[made[0]].num_bytes / link.in_bytes_per_s
                else:
                    seconds += call.seconds
                    for w in made:
                        is_there = w not in off and values[w].born < moment <= values[w].death
                        is_twice = is_there or w in locked or (w in copied and w in temporary)
                        if is_twice:
                            twice.append(values[w].num_bytes)
                        for old, new in call.inplace:
                            stays = old in wanted or (old in off and old in later)
                            if new == w and old in temporary and not stays:
                                del temporary[old]
                        if not is_twice:
                            temporary[w] = values[w].num_bytes
                highest = max(highest, level(moment, before, number) + sum(temporary.values())
                              + sum(twice))
                for w in list(temporary):
                    if w not in wanted and not (w in off and w in later):
                        del temporary[w]
            for w in temporary:
                off.discard(w)
        last = max([number for number, (when, _) in enumerate(trace.reads) if when <= moment],
                   default=-1)
        result.append(max(highest, level(moment, int(trace.live_bytes[moment]), last + 1)))
        off.update(v for v in actions if values[v].idle == moment < values[v].death)
    return missed, result, seconds
