from dataclasses import replace
from pathlib import Path

import pytest

from vision.simulator.core.cluster import Device, Link, Overheads, read_cluster
from vision.simulator.core.graph import Op
from vision.simulator.core.priced import ClusterPricing
from vision.simulator.core.pricing import (
    CONSTANTS,
    Group,
    Prices,
    along,
    issued,
    with_constants,
)

CLUSTERS = Path(__file__).resolve().parents[2] / 'configs' / 'clusters'


@pytest.fixture
def cluster():
    """Round figures: 100 FLOP/s, 10 bytes/s of memory, links of 8 and 1 bytes/s, no overheads."""
    device = Device('round', {'fp32': 100.0, 'fp16': 400.0}, 1000.0, 10.0, {'': 1.0},
                    half_size=0.0, memory_share=1.0, conv_share={'': 0.5}, attention_share=0.25)
    links = dict(intra=Link(0.5, 8.0, share=1.0), inter=Link(2.0, 4.0, shared_by=4, share=1.0),
                 host=Link(0.0, 2.0, share=1.0))
    preset = read_cluster(CLUSTERS / 'a100-dgx.yaml')
    return replace(preset, num_nodes=4, gpus_per_node=4, device=device, links=links,
                   overheads=Overheads(launch=0.0, host=0.0, collective=0.0, jitter=0.0))


def op(**fields):
    return Op(**{**dict(name='x', module='', kind='gemm', flops=0.0, bytes_moved=0.0), **fields})


def test_an_operator_takes_the_longer_of_arithmetic_and_memory(cluster):
    prices = Prices(cluster)
    assert prices.device_seconds(op(flops=1000.0, bytes_moved=10.0)) == 10.0
    assert prices.device_seconds(op(flops=1000.0, bytes_moved=200.0)) == 20.0
    assert prices.device_seconds(op(flops=1000.0, dtype='float16')) == 2.5
    assert prices.device_seconds(op(flops=1000.0, kind='conv')) == 20.0
    assert prices.device_seconds(op(flops=1000.0, kind='attention')) == 40.0


def test_a_short_side_costs_a_matrix_product(cluster):
    device = replace(cluster.device, half_size=10.0)
    prices = Prices(replace(cluster, device=device))
    large = prices.device_seconds(op(flops=1000.0, m=10**6, n=10**6, k=10**6))
    assert large == pytest.approx(10.0, rel=1e-4)
    assert prices.device_seconds(op(flops=1000.0, m=10**6, n=10**6, k=10)) == pytest.approx(
        20.0, rel=1e-4)


def test_a_measured_curve_takes_the_place_of_constants(cluster):
    device = replace(cluster.device, curves={'gemm': ((1.0, 0.1), (1e4, 0.5))})
    assert Prices(replace(cluster, device=device)).device_seconds(op(flops=1e4)) == 200.0


def test_an_operator_nobody_priced_is_listed_and_never_free(cluster):
    prices = Prices(cluster)
    assert prices.device_seconds(op(kind='other', bytes_moved=50.0, is_priced=False)) == 5.0
    assert prices.notes.to_dict()['unpriced'] == {'x': 1}


def test_many_small_operators_are_bound_by_the_host(cluster):
    prices = Prices(replace(cluster, overheads=replace(cluster.overheads, host=3.0)))
    small = [op(bytes_moved=10.0)] * 5
    assert prices.seconds(small) == pytest.approx(15.0, rel=0.02)  # the device would need 5
    assert prices.seconds([op(bytes_moved=1000.0), *small]) == pytest.approx(105.0, rel=0.002)


def test_a_host_that_is_nearly_as_long_as_the_device_costs_most():
    assert issued(8.0, 8.0) == pytest.approx(8.0 * 2**(1 / 3))
    assert issued(3.0, 5.0) == issued(5.0, 3.0) == pytest.approx((27 + 125)**(1 / 3))
    assert issued(7.0, 0.0) == 7.0 and issued(0.0, 0.0) == 0.0
    ratios = [issued(1.0, share) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert ratios == sorted(ratios) and ratios[-1] < 1.27


def test_tf32_is_a_switch():
    prices = [Prices(read_cluster(CLUSTERS / 'a100-dgx.yaml'), tf32=tf32) for tf32 in (0, 1)]
    slow, fast = (each.device_seconds(op(flops=1e13)) for each in prices)
    assert slow == pytest.approx(8 * fast, rel=1e-3)
    assert prices[1].dtype_of(op(kind='norm')) == 'fp32'


def test_collectives_by_hand(cluster):
    prices = Prices(cluster)
    node, across, flat = Group(4, 4), Group(4, 1), Group(16, 4)
    # Inside: 2 x 3/4 x 16 bytes / 8 + 6 steps of 0.5 s.
    assert prices.all_reduce(16.0, node) == pytest.approx(3.0 + 3.0)
    assert prices.all_gather(16.0, node) == pytest.approx(1.5 + 1.5)
    # One device a node, adapter shared by four: 2 x 3/4 x 16 / 1, a tree of 2 x 2 steps of 2 s.
    assert prices.all_reduce(16.0, across) == pytest.approx(24.0 + 8.0)
    # Hierarchical: inside as above, between the nodes a quarter of the bytes for each device.
    assert prices.all_reduce(16.0, flat) == pytest.approx(6.0 + 6.0 + 8.0)
    assert prices.p2p(8.0, is_crossing=False) == 1.5
    assert prices.p2p(8.0, is_crossing=True) == 10.0
    assert prices.host_copy(4.0) == pytest.approx(2.0, abs=1e-3)
    assert prices.all_to_all(16.0, node) == pytest.approx(12 / 8 + 1.5)
    for call in (prices.all_reduce, prices.all_gather, prices.all_to_all, prices.broadcasts):
        assert call(16.0, Group(1, 1)) == 0.0


def test_more_ranks_or_bytes_never_cost_less(cluster):
    prices = Prices(cluster)
    for call in (prices.all_reduce, prices.all_gather, prices.broadcasts):
        times = [call(1e3, Group(size, 4)) for size in (4, 8, 16, 64)]
        assert times == sorted(times)
        assert call(2e3, Group(8, 4)) > call(1e3, Group(8, 4))


def test_measured_collectives_are_used_in_their_group(cluster):
    table = {'all_reduce': ((10.0, 1.0), (20.0, 2.0))}
    links = {**cluster.links, 'intra': replace(cluster.links['intra'], table=table)}
    prices = Prices(replace(cluster, links=links))
    assert prices.all_reduce(15.0, Group(4, 4)) == 1.5
    assert 'extrapolated' not in str(prices.notes.to_dict())
    assert prices.all_reduce(40.0, Group(4, 4)) == 4.0
    assert 'extrapolated' in str(prices.notes.to_dict())
    assert prices.all_reduce(15.0, Group(2, 2)) != 1.5


def test_along():
    assert along(((1.0, 5.0),), 9.0) == 5.0
    assert along(((1.0, 5.0), (2.0, 6.0)), 0.1) == 5.0


def test_groups_of_strided_ranks():
    assert Group.strided(8, 1, 8) == Group(8, 8)
    assert Group.strided(8, 8, 8) == Group(8, 1)
    assert Group.strided(16, 2, 8) == Group(16, 4) and Group.strided(16, 2, 8).num_nodes == 4


def test_the_slowest_of_many_ranks_is_waited_for(cluster):
    prices = Prices(replace(cluster, overheads=replace(cluster.overheads, jitter=0.01)))
    assert prices.waiting(1) == 1.0
    # The expected largest of 8 and of 512 normal deviations is 1.42 and 3.04 (tables).
    assert prices.waiting(8) == pytest.approx(1.0142, abs=2e-4)
    assert prices.waiting(512) == pytest.approx(1.0304, abs=3e-4)


@pytest.mark.parametrize('name', CONSTANTS)
def test_each_constant_changes_some_price(name):
    values = {name: CONSTANTS[name][1] + 0.37 * CONSTANTS[name][2]}
    preset = read_cluster(CLUSTERS / ('h100.yaml' if 'hopper' in name else 'a100-dgx.yaml'))
    fitted = with_constants(preset, values)
    assert fitted != replace(preset, provenance=fitted.provenance)
    assert name in str(Prices(fitted).notes.to_dict()['fitted'])
    assert set(Prices(preset).notes.to_dict()) == {'assumed', 'datasheet', 'unpriced'}


def test_a_scatter_leaves_over_one_link_and_a_gather_comes_in_over_one(cluster):
    """Of 64 bytes each of 8 ranks has 8: three to neighbours (a second and a half each), four to
    the other node at a byte a second and two to begin; the root keeps its own."""
    prices = Prices(cluster)
    assert prices.scatter(64, Group(8, 4)) == prices.gather(64, Group(8, 4)) == 3 * 1.5 + 4 * 10
    assert prices.scatter(64, Group(4, 4)) == 3 * (16 / 8 + 0.5)
    assert prices.scatter(64, Group(1, 1)) == 0.0


def test_a_quote_is_the_price_and_counts_nothing(cluster):
    pricing = ClusterPricing(Prices(cluster))
    for kind in ('all_reduce', 'all_to_all', 'scatter', 'p2p'):
        ranks = (0, 4) if kind == 'p2p' else range(8)
        quoted = pricing.quote(kind, 64, ranks)
        assert not pricing.costs[('', kind)]
        assert pricing.communicate(kind, 64, ranks) == quoted == pricing.costs[('', kind)] > 0
