"""Random programs, and an engine that is slow and easy to read."""

import random
from fractions import Fraction

from vision.simulator.core.program import (
    COMPUTE,
    FEATURE,
    GRADIENT,
    TRANSFER,
    Buffer,
    Flow,
    Node,
    Program,
)


def fair_rates(flows, capacities):
    """Judge of sharing: raise all together in steps until one more would overflow a link."""
    rates, fixed = [Fraction(0)] * len(flows), [False] * len(flows)
    while not all(fixed):
        rises = []
        for link, capacity in capacities.items():
            growing = sum(flow.count(link) for flow, done in zip(flows, fixed, strict=True)
                          if not done)
            used = sum(rate * flow.count(link) for rate, flow in zip(rates, flows, strict=True))
            if growing:
                rises.append((Fraction(capacity) - used) / growing)
        rates = [rate if done else rate + min(rises)
                 for rate, done in zip(rates, fixed, strict=True)]
        for link, capacity in capacities.items():
            if sum(rate * flow.count(link) for rate, flow in zip(rates, flows, strict=True)) \
                    == Fraction(capacity):
                fixed = [done or link in flow for flow, done in zip(flows, fixed, strict=True)]
    return rates


def slow_run(program):
    """Judge of the engine, in fractions: (starts, ends). At each moment all is worked out anew."""
    nodes, now = program.nodes, Fraction(0)
    starts, ends, latency, left = {}, {}, {}, {}
    while len(ends) < len(nodes):
        is_moving = True
        while is_moving:
            is_moving = False
            for number, node in enumerate(nodes):
                if number not in starts and may_begin(program, number, ends):
                    starts[number], latency[number] = now, Fraction(node.latency)
                    left[number] = [Fraction(node.seconds),
                                    *(Fraction(flow.num_bytes) for flow in node.flows)]
                    is_moving = True
                if number in starts and number not in ends and not latency[number] and \
                        not any(left[number]):
                    ends[number] = now
                    is_moving = True
        running = [number for number in starts if number not in ends]
        if not running:
            break
        rates = rates_of(program, running, latency, left)
        step = min([latency[number] for number in running if latency[number]]
                   + [left[number][k] / rate for (number, k), rate in rates.items()])
        for number in running:
            if latency[number]:
                latency[number] -= step
        for (number, k), rate in rates.items():
            left[number][k] -= rate * step
        now += step
    return starts, ends


def may_begin(program, number, ends):
    node = program.nodes[number]
    if any(before not in ends for before in node.after):
        return False
    if node.stream == TRANSFER:
        return True
    return all(before in ends for before, other in enumerate(program.nodes[:number])
               if other.stream == node.stream and set(other.ranks) & set(node.ranks))


def rates_of(program, running, latency, left):
    nodes = program.nodes
    keys = [(number, k) for number in running if not latency[number]
            for k, amount in enumerate(left[number]) if amount]
    flows = [(number, k) for number, k in keys if k]
    shares = fair_rates([nodes[number].flows[k - 1].links for number, k in flows], program.links)
    rates = dict.fromkeys(keys, Fraction(1)) | dict(zip(flows, shares, strict=True))
    for number, k in keys:
        node, most = nodes[number], Fraction(0)
        for rank in node.ranks:
            beside = {nodes[other].stream for other in running
                      if other != number and rank in nodes[other].ranks}
            most = max(most, sum(Fraction(program.slowdowns.get((node.stream, stream), 0))
                                 for stream in beside))
        rates[number, k] /= 1 + most
    return rates


def random_program(seed, *, num_ranks=3, num_nodes=25, is_slowed=True, has_flows=True):
    """Numbers are eighths, so that moments that are equal on paper are equal."""
    rng = random.Random(seed)
    links = {name: rng.choice((1, 2, 4)) for name in 'abcd'}
    nodes = []
    for number in range(num_nodes):
        stream = rng.choice((COMPUTE, COMPUTE, FEATURE, GRADIENT, TRANSFER))
        ranks = (rng.randrange(num_ranks),) if stream == COMPUTE else \
            tuple(sorted(rng.sample(range(num_ranks), rng.randint(1, num_ranks))))
        flows = tuple(Flow(tuple(rng.choices('abcd', k=rng.randint(1, 3))), rng.randint(0, 8))
                      for _ in range(rng.choice((0, 1, 2)))) \
            if has_flows and stream != COMPUTE else ()
        after = tuple(rng.sample(range(number), min(number, rng.choice((0, 0, 1, 2)))))
        nodes.append(Node(f'n{number}', stream, ranks, stream, rng.randint(0, 16) / 8,
                          rng.choice((0, 0, 0.125)), flows, after))
    slowdowns = {(COMPUTE, GRADIENT): 0.5, (GRADIENT, COMPUTE): 0.25, (COMPUTE, FEATURE): 0.25,
                 (TRANSFER, TRANSFER): 1.0} if is_slowed else {}
    return Program(num_ranks, tuple(nodes), links=links, slowdowns=slowdowns)


def copies(program, num_copies, *, uplink=3.0):
    """The same step on so many groups of ranks; their gradients meet over one shared uplink."""
    nodes, buffers, links = [], {}, {'uplink': uplink}
    num, ranks = len(program.nodes), program.num_ranks
    for copy in range(num_copies):
        links |= {f'{name}{copy}': capacity for name, capacity in program.links.items()}
        for node in program.nodes:
            crossing = ('uplink',) if node.stream == GRADIENT else ()
            flows = tuple(Flow((*(f'{link}{copy}' for link in flow.links), *crossing),
                               flow.num_bytes) for flow in node.flows)
            nodes.append(Node(
                f'{node.name} of {copy}', node.kind,
                tuple(rank + copy * ranks for rank in node.ranks), node.stream, node.seconds,
                node.latency, flows, tuple(each + copy * num for each in node.after),
                tuple(f'{name} of {copy}' for name in node.begins),
                tuple(f'{name} of {copy}' for name in node.ends)))
        for name, buffer in program.buffers.items():
            buffers[f'{name} of {copy}'] = Buffer(buffer.rank + copy * ranks, buffer.num_bytes,
                                                  buffer.category)
    for rank in range(ranks):
        everyone = tuple(rank + copy * ranks for copy in range(num_copies))
        nodes.append(Node(f'reduce {rank}', 'all_reduce', everyone, GRADIENT, latency=0.125,
                          flows=(Flow(('uplink',), 5),)))
    return Program(ranks * num_copies, tuple(nodes), buffers, links, program.slowdowns)
