import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx.core.execution import chunks
from fedjx.core.execution.chunks import Level, arranged, levelled
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import federated_map
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.shares import Share
from fedjx.core.language.values import Clients, Sequence
from fedjx.data import Cohort, FederatedData

SIZES = np.random.default_rng(0).geometric(0.05, 37)
DATA = FederatedData({"x": np.arange(SIZES.sum(), dtype=np.float32)}, np.cumsum([0, *SIZES]))
IDS = np.random.default_rng(1).permutation(37)[:23]


def one_device():
    return jax.make_mesh((1,), ("clients",), devices=jax.devices()[:1])


def batch_sum(batch):
    return jnp.sum(jnp.where(batch["mask"], batch["x"], 0))


def add(total, batch):
    return total + batch_sum(batch)


@federated_computation
def weighted_total(data, factor):
    def client(data, factor):
        return factor * sequence_reduce(add, 0.0, data)

    return federated_sum(federated_map(client, data, factor))


FACTOR = Clients.of(np.arange(37, dtype=np.float32))
EXPECTED = sum(float(k) * float(DATA.client(k)["x"].sum()) for k in IDS)


@pytest.mark.parametrize("lanes", [1, 3, 8, 50])
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_every_client_is_arranged_once_with_its_like(lanes, devices, groups):
    order = arranged(SIZES, lanes, devices, groups)
    assert sorted(order[order >= 0].tolist()) == list(range(37))
    assert order.shape[1] == lanes * devices * groups
    rows = order.reshape(-1, devices, groups, lanes).swapaxes(1, 2).reshape(-1, devices * lanes)
    smallest, largest = [[f(SIZES[r[r >= 0]], initial=start) for r in rows] for f, start in ((np.min, 99), (np.max, 0))]
    assert all(small >= large for small, large in zip(smallest, largest[1:], strict=False))


def test_no_device_always_gets_the_larger_clients():
    sizes = np.arange(64)
    work = sizes[arranged(sizes, 1, 2, 16).reshape(-1, 2, 16)].sum(axis=(0, 2))
    assert abs(work[0] - work[1]) <= 2


@pytest.mark.parametrize("num_clients", [10, 100])
def test_padded_work_of_emnist_like_cohorts(num_clients):
    """A device runs one client at a time on two cores: what it waits for is the other device, at the end only."""
    sizes = np.clip(np.round(np.random.default_rng(2).lognormal(np.log(180), 0.4, num_clients)), 20, 418)
    steps = -(-sizes.astype(int) // 20)
    for lanes, limit in ((1, 1.1), (4, 1.1 if num_clients == 100 else 2)):
        groups = np.append(steps, 0)[arranged(steps, lanes, 2, 16)].reshape(-1, 2, 16, lanes)
        executed = groups.max(axis=3).sum(axis=(0, 2)).max() * lanes * 2
        assert steps.sum() <= executed < limit * steps.sum()


def test_padded_work_of_a_heavy_tail():
    steps = np.ceil(np.random.default_rng(3).pareto(1.1, 1000) + 1).astype(int)

    def executed(levels):
        groups = [
            np.append(steps[members], 0)[arranged(steps[members], lanes, 1, 16)].reshape(-1, lanes)
            for lanes, members in levelled(steps, levels)
        ]
        return sum(g.shape[1] * g.max(axis=1).sum() for g in groups)

    floor = steps.sum()
    assert floor == executed([Level(1, 1.0)])
    assert executed([Level(16, 1.0), Level(4, 1.05), Level(1, 1.1)]) < 1.15 * floor < 1.3 * floor
    assert 1.3 * floor < executed([Level(16, 1.0)]) < steps.max() * 1000 / 10


@pytest.mark.parametrize("levels", [[Level(4, 1.0)], [Level(8, 1.0), Level(2, 1.5), Level(1, 1.6)]])
def test_levels_hold_every_client_once(levels):
    parts = dict(levelled(SIZES, levels))
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(37))
    assert set(parts) <= {level.lanes for level in levels}


@pytest.mark.parametrize("lanes", [1, 2, "auto"])
@pytest.mark.parametrize("mesh", [None, one_device])
def test_whole_clients_beside_a_cohort_are_found_by_their_ids(lanes, mesh):
    run = weighted_total.streamed(mesh=mesh and mesh())
    cohort = Cohort(DATA, IDS, batch_size=4, lanes=lanes)
    np.testing.assert_allclose(run(cohort, FACTOR), EXPECTED, rtol=1e-6)
    garbage = Clients.of(np.where(np.arange(60) < 37, np.arange(60), np.nan)[::-1], ids=np.arange(60)[::-1])
    np.testing.assert_allclose(run(cohort, garbage), EXPECTED, rtol=1e-6)


def test_a_client_that_one_argument_lacks():
    with pytest.raises(ValueError, match=r"need the same clients; got none of id \[36\] in one"):
        weighted_total(Cohort(DATA, [3, 36], batch_size=4), Clients.of(np.ones(36, np.float32)))


@pytest.mark.parametrize("ids", [IDS, [7, 2, 9, 7, 7, 2]], ids=["once", "again"])
@pytest.mark.parametrize(("devices", "lanes"), [(1, 1), (1, 3), (4, 2)])
def test_results_come_in_the_order_of_the_cohort(ids, devices, lanes):
    totals = federated_computation(lambda data: federated_map(lambda d: sequence_reduce(add, 0.0, d), data))
    expected, handed = totals(Cohort(DATA, ids, batch_size=4).whole()), []
    mesh = jax.make_mesh((devices,), ("clients",), devices=jax.devices()[:devices])
    chunked = Cohort(DATA, ids, batch_size=4, lanes=lanes)
    result = totals.streamed(mesh=mesh)(chunked)
    assert result.id.tolist() == expected.id.tolist() == list(ids)
    np.testing.assert_allclose(result.value, expected.value, rtol=1e-6)
    totals.streamed(mesh=mesh, sink=handed.append)(chunked)
    ran = np.concatenate([chunk.id[chunk.mask] for chunk in handed])
    assert ran.tolist() != list(ids)  # the largest first
    assert sorted(ran) == sorted(ids)
    plain = totals.streamed(mesh=mesh, lanes=lanes)(Cohort(DATA, ids, batch_size=4).whole())
    assert plain.id.tolist() == list(ids)


# --- loops that stop early ------------------------------------------------------------------------


def counting():
    """A computation whose every executed step is counted on the host."""
    executed = []

    def step(total, batch):
        jax.debug.callback(lambda: executed.append(1))
        return total + batch_sum(batch)

    @federated_computation
    def total(data):
        return federated_sum(federated_map(lambda data: sequence_reduce(step, 0.0, data), data))

    return total, executed


def test_a_streamed_loop_ends_with_its_client_and_padding_clients_have_none():
    total, executed = counting()
    run = total.streamed(mesh=one_device())
    run(Cohort(DATA, IDS, batch_size=4, lanes=1))
    jax.effects_barrier()
    assert len(executed) == sum(-(-SIZES[IDS] // 4))


def test_an_in_graph_loop_runs_over_the_padding():
    """The negative control of the test above: the count sees every step."""
    total, executed = counting()
    clients = next(iter(Cohort(DATA, IDS[:1], batch_size=4, lanes=1)))
    total.in_graph()(clients)
    jax.effects_barrier()
    assert len(executed) == clients.value.elements.index.shape[1] > -(-SIZES[IDS[0]] // 4)


def test_stopping_early_changes_nothing_under_momentum():
    @federated_computation
    def momenta(data):
        def step(state, batch):
            value, momentum = state
            momentum = 0.9 * momentum + batch_sum(batch)
            return value + momentum, momentum

        return federated_sum(federated_map(lambda d: sequence_reduce(step, (1.0, 0.5), d), data))

    chunk = next(iter(Cohort(DATA, IDS, batch_size=4, lanes=23)))
    for streamed, whole in zip(momenta.streamed()(chunk), momenta.in_graph()(chunk), strict=True):
        np.testing.assert_allclose(streamed, whole, rtol=1e-6)


# --- what bounds a chunk --------------------------------------------------------------------------


@pytest.mark.parametrize(("result", "expected"), [(5, 16), (10, 8), (41, 2), (200, 1), (None, 1)])
def test_what_stays_with_the_clients_bounds_a_chunk(monkeypatch, result, expected):
    monkeypatch.setattr(chunks, "_RESULT_BYTES", 4 * 100)

    @federated_computation
    def results(data):
        return federated_map(lambda d: d if result is None else jnp.zeros(result) + sequence_reduce(add, 0.0, d), data)

    handed = []
    results.streamed(mesh=one_device(), sink=handed.append)(Cohort(DATA, IDS, batch_size=4, lanes=1))
    assert {chunk.num_clients for chunk in handed} == {expected}
    assert sorted(np.concatenate([chunk.id[chunk.mask] for chunk in handed]).tolist()) == sorted(IDS.tolist())


def test_a_gradient_of_a_fold_inside_the_client_function():
    """Its backward scan bears the same name, and is none that may stop early."""

    @federated_computation
    def slope(data, p):
        def client(data):
            return jax.grad(lambda p: sequence_reduce(lambda t, b: t + p * p * batch_sum(b), 0.0, data))(3.0)

        return federated_sum(federated_map(client, data))

    total = sum(float(DATA.client(k)["x"].sum()) for k in IDS)
    np.testing.assert_allclose(slope.streamed()(Cohort(DATA, IDS, batch_size=4, lanes=2), 1.0), 6 * total, rtol=1e-5)


def test_sequences_that_the_client_function_maps_itself():
    @federated_computation
    def total(data):
        def client(x):
            def one(x, n):
                return sequence_reduce(jnp.add, jnp.float32(0), Sequence(x, n))

            return jax.vmap(one)(x, jnp.array([1, 3, 2])).sum()

        return federated_sum(federated_map(client, data))

    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    expected = sum(x[:, g, :n].sum() for g, n in enumerate((1, 3, 2)))
    np.testing.assert_allclose(total.streamed(lanes=2)(Clients.of(x)), expected)


def test_padding_clients_are_short():
    sizes = [4, 36, 36, 36, 400]
    data = FederatedData({"x": np.ones(sum(sizes), np.float32)}, np.cumsum([0, *sizes]))
    (chunk,) = [c for c in Cohort(data, range(5), batch_size=4, lanes=4) if not c.mask.all()]
    assert chunk.value.length.tolist() == [1, 1, 1, 1]
    total, executed = counting()
    total.streamed(mesh=one_device())(Cohort(data, range(5), batch_size=4, lanes=4))
    jax.effects_barrier()
    assert len(executed) == 100 + 1


def test_evaluation_ends_with_the_client_too():
    executed = []

    def metrics(params, batch):
        jax.debug.callback(lambda: executed.append(1))
        return {"loss": batch["x"]}

    evaluation = fedjx.federated_evaluation(fedjx.models.Model(lambda key: 0.0, lambda p, b, k: b["x"], metrics))
    evaluation.streamed(mesh=one_device())(0.0, Cohort(DATA, IDS, batch_size=4, lanes=1))
    jax.effects_barrier()
    assert len(executed) == sum(-(-SIZES[IDS] // 4))


class Follower:
    """A planned argument that leaves it to others who runs together, as states on disk do."""

    ids, sizes, lanes = IDS, None, "auto"

    def members(self, ids, mask, share=Share()):
        return Clients(np.asarray(ids), mask, np.where(mask, ids, -1).astype(np.int32))


def test_what_has_sizes_leads_wherever_it_stands():
    data, levels = Cohort(DATA, IDS, batch_size=4, lanes=2), [Level(2, 1.0)]
    both = [
        chunks.Chunks(arguments, Share(), result_bytes=0)
        for arguments in ([Follower(), data], [data, Follower()], [data])
    ]
    assert [cohort.asked_lanes for cohort in both] == [2, 2, 2]
    orders = [[ids.tolist() for _, ids, _ in cohort.order(levels)] for cohort in both]
    assert orders[0] == orders[1] == orders[2]
    ((_, chunk),) = both[0].cut(levels)
    np.testing.assert_array_equal(chunk.value[0][chunk.mask], chunk.id[chunk.mask])
    alone = chunks.Chunks([Follower()], Share(), result_bytes=0).order(levels)
    assert sorted(np.concatenate([ids[mask] for _, ids, mask in alone])) == sorted(IDS)
