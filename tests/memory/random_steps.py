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
    """(live_bytes, seconds) of a link without overlap, moment by moment."""
    values, calls = trace.values, trace.calls
    overwritten = {old for call in calls for old, _ in call.inplace}
    off, locked_by = set(), {}  # dropped value -> what it locks
    seconds = sum(values[v].num_bytes / link.out_bytes_per_s
                  for v, action in actions.items() if action == 'swap')

    def locked():
        return set().union(*locked_by.values())

    def is_there(w, moment):
        if values[w].death < moment:
            return w in locked() and w not in overwritten
        return values[w].born < moment and w not in off

    def level(moment, base):
        """``base`` of the unmanaged step, less what is off, plus what is locked."""
        away = sum(values[v].num_bytes for v in off)
        return base - away + sum(values[w].num_bytes for w in locked()
                                 if values[w].death < moment and w not in overwritten)

    def plan_chain(v, moment):
        """Calls in order, copies, and what they read as it is."""
        order, copies, roots = [], [], []

        def need(call):
            for w in call.inputs:
                if is_there(w, moment):
                    roots.append(w)
                elif w in off and actions[w] == 'swap':
                    if w not in copies and not any(w in done.outputs for done in order):
                        copies.append(w)
                elif calls[values[w].call] not in order:
                    need(calls[values[w].call])
            if not call.replayable:
                raise Stuck
            order.append(call)

        need(calls[values[v].call])
        return order, copies, roots

    def come_back(v, moment, before):
        """Bytes at the highest, and seconds."""
        highest, spent, temporary = 0, 0.0, {}
        order, copies, roots = ([], [v], []) if actions[v] == 'swap' else plan_chain(v, moment)
        for w in copies:
            temporary[w] = values[w].num_bytes
            spent += values[w].num_bytes / link.in_bytes_per_s
        highest = level(moment, before) + sum(temporary.values())
        for index, call in enumerate(order):
            spent += call.seconds
            wanted = {w for after in order[index + 1:] for w in after.inputs}
            twice = 0  # copies of what is at hand, while the call runs
            for w in call.outputs:
                for old, new in call.inplace:
                    if new == w and old in temporary and old not in wanted and old not in off:
                        del temporary[old]
                if is_there(w, moment) or w in copies:
                    twice += values[w].num_bytes
                else:
                    temporary[w] = values[w].num_bytes
            highest = max(highest, level(moment, before) + sum(temporary.values()) + twice)
            for w in list(temporary):
                if w not in wanted and w not in off and w != v:
                    del temporary[w]
        for w in temporary:
            off.discard(w)
            locked_by.pop(w, None)
        return highest, spent

    result = []
    for moment in range(len(trace.live_bytes)):
        for v in list(off):
            if values[v].death < moment:  # autograd let go of it
                off.remove(v)
                locked_by.pop(v, None)
        before = int(trace.live_bytes[moment] - trace.made_bytes[moment])
        highest = 0
        for when, v in trace.reads:
            if when == moment and v in off:
                peak, spent = come_back(v, moment, before)
                highest, seconds = max(highest, peak), seconds + spent
        result.append(max(highest, level(moment, int(trace.live_bytes[moment]))))
        going = [v for v in sorted(actions) if values[v].idle == moment < values[v].death]
        off.update(going)
        for v in going:
            if v in locked() and v not in overwritten:
                off.remove(v)
            elif actions[v] == 'drop':
                _, _, roots = plan_chain(v, moment + 1)
                locked_by[v] = {w for w in roots if not calls[values[w].call].replayable}
    return result, seconds
