"""Tests of the messages: what must hold, what came, what to do; raised where the mistake is made."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx import (
    CLIENTS,
    Clients,
    FederatedType,
    Sequence,
    federated_aggregate,
    federated_broadcast,
    federated_collect,
    federated_computation,
    federated_keys,
    federated_map,
    federated_max,
    federated_mean,
    federated_min,
    federated_reduce,
    federated_secure_sum,
    federated_select,
    federated_sum,
    federated_value,
    federated_zip,
    parse_type,
    sequence_map,
    sequence_reduce,
)
from fedjx.data import Cohort, FederatedData

CLIENT_FLOAT, SERVER_FLOAT = "{float32}@CLIENTS", "float32@SERVER"
X = Clients.of(np.array([1.0, 2.0, 3.0], np.float32))

NOT_AT_HAND = (
    "its members are not at hand while tracing; got {float32}@CLIENTS. "
    "Act on members with federated_map, combine them with federated_sum or federated_mean."
)
NO_NUMBER = "a placed value cannot be turned into a number or an array: " + NOT_AT_HAND


@federated_computation
def summed(x):
    return federated_sum(x)


def larger(a, b):
    return jnp.maximum(a, b)


def check(error, message, fn, *types):
    """Tracing ``fn`` on arguments of the types must raise the error with exactly this message (or its end left out)."""
    with pytest.raises(error, match="^" + re.escape(message)) as info:
        federated_computation(fn).type_signature(*map(parse_type, types))
    return info.value


@pytest.mark.parametrize(
    ("fn", "types", "message"),
    [
        (
            lambda s: federated_sum(s),
            [SERVER_FLOAT],
            "federated_sum takes a value at CLIENTS; got float32@SERVER. "
            "Only arguments that are Clients are at CLIENTS: make them with Clients.of or fedjx.data.Cohort.",
        ),
        (lambda s: federated_mean(s), [SERVER_FLOAT], "federated_mean takes a value at CLIENTS; got float32@SERVER. "),
        (lambda s: federated_min(s), [SERVER_FLOAT], "federated_min takes a value at CLIENTS; got float32@SERVER. "),
        (lambda s: federated_max(s), [SERVER_FLOAT], "federated_max takes a value at CLIENTS; got float32@SERVER. "),
        (
            lambda s: federated_collect(s),
            [SERVER_FLOAT],
            "federated_collect takes a value at CLIENTS; got float32@SERVER. ",
        ),
        (
            lambda s: federated_secure_sum(s),
            ["int8@SERVER"],
            "federated_secure_sum takes a value at CLIENTS; got int8@SERVER.",
        ),
        (
            lambda s: federated_reduce(s, 0.0, jnp.add),
            [SERVER_FLOAT],
            "federated_reduce takes a value at CLIENTS; got float32@SERVER. ",
        ),
        (
            lambda s: federated_aggregate(s, 0.0, jnp.add, jnp.add),
            [SERVER_FLOAT],
            "federated_aggregate takes a value at CLIENTS; got float32@SERVER. ",
        ),
        (
            lambda x, w: federated_mean(x, w),
            [CLIENT_FLOAT, SERVER_FLOAT],
            "federated_mean takes a value at CLIENTS; got float32@SERVER. ",
        ),
        (
            lambda x: federated_broadcast(x),
            [CLIENT_FLOAT],
            "federated_broadcast takes a value at SERVER; got {float32}@CLIENTS. It is at the clients already: "
            "use it there as it is.",
        ),
        (  # DrJAX broadcast twice
            lambda s: federated_broadcast(federated_broadcast(s)),
            [SERVER_FLOAT],
            "federated_broadcast takes a value at SERVER; got float32@CLIENTS. It is at the clients already: ",
        ),
        (
            lambda k: federated_keys(k),
            ["{key<fry>}@CLIENTS"],
            "federated_keys takes a value at SERVER; got {key<fry>}@CLIENTS. Keep one key in the server's state",
        ),
        (
            lambda t, k: federated_select(k, t, lambda t, i: t[i]),
            ["float32[9]@SERVER", "int32[3]@SERVER"],
            "federated_select takes a value at CLIENTS; got int32[3]@SERVER. Every client chooses its keys.",
        ),
        (
            lambda t, k: federated_select(k, t, lambda t, i: t[i]),
            ["{float32[9]}@CLIENTS", "{int32[3]}@CLIENTS"],
            "federated_select takes a value at SERVER; got {float32[9]}@CLIENTS. "
            "Clients select from what the server has.",
        ),
        (  # DrJAX reduced axis 0 of an unplaced value
            lambda x: federated_sum(np.zeros(8)),
            [CLIENT_FLOAT],
            "federated_sum takes placed values; got the unplaced float32[8]. Pass it as an argument of the "
            "computation, place it with federated_value, or let the mapped function hold it.",
        ),
        (
            lambda x: federated_map(jnp.add, x, 2.0),
            [CLIENT_FLOAT],
            "federated_map takes placed values; got the unplaced float32. Pass it as an argument",
        ),
        (
            lambda x: federated_map(jnp.add, x, len),
            [CLIENT_FLOAT],
            "federated_map takes placed values; got <built-in function len>. Pass it as an argument",
        ),
        (
            lambda x: federated_broadcast({"a": jnp.zeros(2)}),
            [CLIENT_FLOAT],
            "federated_broadcast takes placed values; got the unplaced float32[2]. ",
        ),
        (
            lambda x, s: federated_map(jnp.add, x, s),
            [CLIENT_FLOAT, SERVER_FLOAT],
            "federated_map takes values of one placement; got {float32}@CLIENTS, float32@SERVER. Bring server "
            "values to the clients with federated_broadcast, client values to the server by a reduction;",
        ),
        (
            lambda x, s: x * s,
            [CLIENT_FLOAT, SERVER_FLOAT],
            "federated_map takes values of one placement; got {float32}@CLIENTS, float32@SERVER. Bring",
        ),
        (
            lambda x, s: federated_zip((x, s)),
            [CLIENT_FLOAT, SERVER_FLOAT],
            "federated_zip takes values of one placement; got {float32}@CLIENTS, float32@SERVER. Bring",
        ),
        (
            lambda x: federated_zip(()),
            [CLIENT_FLOAT],
            "federated_zip takes values of one placement; got nothing. Bring",
        ),
        (  # DrJAX gave 3.5 eagerly and failed in the MLIR verifier under jit
            lambda x: federated_mean(x),
            ["{int32}@CLIENTS"],
            "federated_mean needs floating-point members; got {int32}@CLIENTS. Use federated_sum, or map the "
            "members to float32 first.",
        ),
        (
            lambda x: federated_mean(x),
            ["{<a=float32,b=bool>}@CLIENTS"],
            "federated_mean needs floating-point members; got {<a=float32,b=bool>}@CLIENTS. ",
        ),
        (
            lambda x: federated_sum(x),
            ["{key<fry>}@CLIENTS"],
            "federated_sum needs numeric members; got {key<fry>}@CLIENTS. Map keys and the like to numbers first.",
        ),
        (
            lambda x: federated_min(x),
            ["{complex64}@CLIENTS"],
            "federated_min needs ordered members; got {complex64}@CLIENTS. Map the members to real numbers first.",
        ),
        (
            lambda x: federated_secure_sum(x),
            [CLIENT_FLOAT],
            "federated_secure_sum needs integer members; got {float32}@CLIENTS. Encode floats in fixed point first.",
        ),
        (
            lambda x: federated_mean(x, x),
            ["{float32[2]}@CLIENTS"],
            "a weight is one real number per client; got {float32[2]}@CLIENTS. Map it to a scalar first.",
        ),
        (
            lambda x: federated_reduce(x, np.int32(0), jnp.add),
            [CLIENT_FLOAT],
            "federated_reduce needs a zero of the member's type; got int32 for {float32}@CLIENTS. "
            "Use federated_aggregate, which merges accumulators of their own type.",
        ),
        (
            lambda x: federated_aggregate(x, np.int32(0), larger, larger),
            [CLIENT_FLOAT],
            "an accumulator keeps its type; got float32 from larger for a zero of int32. "
            "Give zero the dtype and shape of the result.",
        ),
        (
            lambda x: (federated_sum(x), 3),
            [CLIENT_FLOAT],
            "a federated computation returns placed values; got 3. Place it with federated_value(x, ",
        ),
        (lambda x: 0 if x else 1, [CLIENT_FLOAT], "a placed value cannot be used as a truth value: " + NOT_AT_HAND),
        (lambda x: [m for m in x], [CLIENT_FLOAT], "a placed value cannot be iterated over: " + NOT_AT_HAND),
        (lambda x: len(x), [CLIENT_FLOAT], "a placed value cannot be measured with len: " + NOT_AT_HAND),
        (lambda x: x > 0, [CLIENT_FLOAT], "a placed value cannot be compared: " + NOT_AT_HAND),
        (lambda x: x == x, [CLIENT_FLOAT], "a placed value cannot be compared: " + NOT_AT_HAND),
        (lambda x: float(x), [CLIENT_FLOAT], NO_NUMBER),
        (lambda x: range(x), [CLIENT_FLOAT], NO_NUMBER),
        (lambda x: np.asarray(x), [CLIENT_FLOAT], NO_NUMBER),
        (lambda x: jnp.asarray(x), [CLIENT_FLOAT], NO_NUMBER),
        (
            lambda x: x[0],
            [CLIENT_FLOAT],
            "members of a placed value cannot be accessed, so [0] selects a field of a structure; "
            "got {float32}@CLIENTS. Act on members with federated_map.",
        ),
        (
            lambda x: x["c"],
            ["{<a=int8,b=int8>}@CLIENTS"],
            "a selection names a field of the structure; got 'c' for {<a=int8,b=int8>}@CLIENTS. "
            "Choose one of ['a', 'b'].",
        ),
        (
            lambda x: x[2],
            ["{<a=int8,int8>}@CLIENTS"],
            "a selection names a field of the structure; got 2 for {<a=int8,int8>}",
        ),
        (
            lambda x: x + np.ones(3, np.float32),
            [CLIENT_FLOAT],
            "arithmetic on placed values takes another of the same placement, or a number; got array([1., 1., 1.], "
            "dtype=float32) with {float32}@CLIENTS. Use federated_map with a function that holds the array.",
        ),
        (
            lambda x: setattr(x, "a", 1),
            [CLIENT_FLOAT],
            "placed values are immutable; got an assignment to 'a'. Use federated_map.",
        ),
        (
            lambda x: federated_value(1.0, "SERVER"),
            [CLIENT_FLOAT],
            "a placement must be SERVER or CLIENTS; got 'SERVER'. Import them from fedjx.",
        ),
    ],
)
def test_mistakes_of_tracing(fn, types, message):
    check(TypeError, message, fn, *types)


def test_a_missing_attribute_lists_the_fields():
    message = (
        "a selection names a field of the structure; got 'c' for {<a=int8,b=int8>}@CLIENTS. Choose one of ['a', 'b']."
    )
    check(AttributeError, message, lambda x: x.c, "{<a=int8,b=int8>}@CLIENTS")


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda x: jnp.sum(x), id="jnp.sum"),
        pytest.param(lambda x: jnp.add(x, 1), id="jnp.add"),
        pytest.param(lambda x: jnp.ones(3) + x, id="array+x"),
        pytest.param(lambda x: np.sum(x), id="np.sum"),
        pytest.param(lambda x: x**2, id="power"),
        pytest.param(lambda x: x @ x, id="matmul"),
        pytest.param(lambda x: abs(x), id="abs"),
        pytest.param(lambda x: x // 2, id="floordiv"),
        pytest.param(lambda x: x + "a", id="str"),
        pytest.param(lambda x: x + None, id="None"),
        pytest.param(lambda x: x + np.array([None]).tolist(), id="list"),
    ],
)
def test_what_only_a_map_can_do_says_so(fn):
    with pytest.raises(TypeError) as info:
        federated_computation(fn).type_signature(parse_type(CLIENT_FLOAT))
    assert "federated_map" in "\n".join([str(info.value), *getattr(info.value, "__notes__", [])])


def test_an_error_in_a_mapped_function_keeps_its_message_and_names_the_map():
    def wrong_product(x, n):
        return jnp.dot(x, jnp.zeros(3)) + n

    error = check(
        TypeError,
        "dot_general requires contracting dimensions to have the same shape, got (2,) and (3,).",
        lambda x, n: federated_map(wrong_product, x, {"n": n}),
        "{float32[2]}@CLIENTS",
        "{int32}@CLIENTS",
    )
    (note,) = [note for note in error.__notes__ if note.startswith("fedjx")]
    assert "in federated_map of test_an_error_in_a_mapped_function" in note
    assert note.endswith("wrong_product over one member of type (float32[2], int32)")


def test_any_error_in_a_mapped_function_names_the_map():
    def lookup(x):
        return {}["missing"]

    summed_lookup = federated_computation(lambda x: federated_sum(federated_map(lookup, x)))
    with pytest.raises(KeyError, match="missing") as info:
        summed_lookup(X)
    assert any("lookup over one member of type (float32)" in note for note in info.value.__notes__)


# --- declared types -----------------------------------------------------------------------------


def declared(*types):
    if len(types) == 1:
        return federated_computation(*types)(lambda x: federated_map(lambda v: v, x))
    return federated_computation(*types)(lambda x, y: (federated_map(lambda v: v, x), federated_map(lambda v: v, y)))


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (
            CLIENT_FLOAT,
            Clients.of(np.zeros((3, 2))),
            "declares 'x' as {float32}@CLIENTS; got {float32[2]}@CLIENTS. Pass a value",
        ),
        (CLIENT_FLOAT, Clients.of(np.zeros(3, np.int32)), "declares 'x' as {float32}@CLIENTS; got {int32}@CLIENTS. "),
        (CLIENT_FLOAT, [np.zeros(2), np.zeros(2)], "declares 'x' as {float32}@CLIENTS; got {float32[2]}@CLIENTS. "),
        (CLIENT_FLOAT, 3.0, "declares 'x' as {float32}@CLIENTS; got 3.0. Pass one member per client."),
        (CLIENT_FLOAT, {"a": 1}, "declares 'x' as {float32}@CLIENTS; got {'a': 1}. Pass one member per client."),
        (SERVER_FLOAT, X, "declares 'x' as float32@SERVER; got {float32}@CLIENTS. Pass a value of the declared type."),
        (SERVER_FLOAT, np.int32(3), "declares 'x' as float32@SERVER; got int32@SERVER. "),
        ("int32@SERVER", 2.5, "declares 'x' as int32@SERVER; got float32@SERVER. "),
    ],
)
def test_a_value_of_another_type_is_refused(type_, value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        declared(type_)(value)


def test_a_nested_call_is_checked():
    inner = declared(CLIENT_FLOAT)
    check(
        TypeError,
        "<lambda> declares 'x' as {float32}@CLIENTS; got {int8}@CLIENTS. Pass a value of the declared type.",
        lambda y: inner(y),
        "{int8}@CLIENTS",
    )


def test_placed_and_unplaced_parameters_do_not_mix():
    message = (
        "parameters must be all placed or all unplaced; got float32[2] for 'y'. Write FederatedType(member, SERVER)."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        declared(CLIENT_FLOAT, "float32[2]")


def test_a_missing_argument_is_named():
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        declared(CLIENT_FLOAT, SERVER_FLOAT)(X)


def test_options_are_no_parameters():
    with pytest.raises(TypeError, match=r"a federated computation has positional parameters; got \*values in <lambda>"):
        federated_computation(lambda *values: values)


def test_a_local_computation_checks_its_arguments():
    add_up = federated_computation("int32*")(lambda xs: xs.elements.sum())
    with pytest.raises(TypeError, match=r"declares 'xs' as int32\*; got float32\*"):
        add_up([1.5, 2.5])


# --- cohorts ------------------------------------------------------------------------------------


def test_different_numbers_of_clients():
    @federated_computation
    def added(x, y):
        return federated_sum(x + y)

    two = Clients.of(np.zeros(2, np.float32))
    message = re.escape("all arguments at CLIENTS need the same clients; got [3, 2] of them. Sample them together.")
    with pytest.raises(ValueError, match=message):
        added(X, two)
    with pytest.raises(ValueError, match=message):
        added.streamed(lanes=1)(X, two)


def test_streams_of_different_clients():
    @federated_computation
    def added(x, y):
        return federated_sum(x + y)

    others = Clients.of(np.zeros(3, np.float32), ids=[0, 1, 7])
    with pytest.raises(
        ValueError, match=r"all arguments at CLIENTS need the same clients in the same order; got \[0, 1, 2\]"
    ):
        added([X], [others])


def test_streams_of_different_length():
    @federated_computation
    def added(x, y):
        return federated_sum(x + y)

    with pytest.raises(ValueError, match="all arguments at CLIENTS need the same"):
        added([X], [X, X])


def test_cohorts_of_different_clients():
    @federated_computation
    def added(x, y):
        return federated_sum(x + y)

    with pytest.raises(ValueError, match="the same clients in the same order"):
        added(X, Clients.of(np.zeros(3, np.float32), ids=[0, 1, 7]))


@pytest.mark.parametrize("call", [lambda c: c([]), lambda c: c.streamed()([])], ids=["call", "streamed"])
def test_an_empty_list_of_clients(call):
    message = re.escape("a cohort needs at least one client; got 0. Sample again, or skip the round.")
    with pytest.raises(ValueError, match=message):
        call(declared(CLIENT_FLOAT))


class Empty:
    """A stream without a chunk."""

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("stream", [[], Empty()], ids=["list", "object"])
def test_an_empty_stream(stream):
    with pytest.raises(ValueError, match="a cohort needs at least one client; got "):
        summed.streamed()(stream)


def test_a_computation_without_clients():
    @federated_computation
    def counted(s):
        return federated_sum(federated_broadcast(s))

    with pytest.raises(ValueError, match=r"got no argument at CLIENTS\. Pass Clients\."):
        counted(1.0)
    message = r"a cohort needs at least one client; got no argument at CLIENTS\. Pass Clients\."
    with pytest.raises(ValueError, match=message):
        counted.streamed()(1.0)


@pytest.mark.parametrize("make", [lambda: iter([X]), lambda: (chunk for chunk in [X])], ids=["iterator", "generator"])
@pytest.mark.parametrize("call", [lambda c: c, lambda c: c.streamed()], ids=["call", "streamed"])
def test_a_stream_that_can_be_read_once(make, call):
    message = (
        r"a stream is read once per pass, so it must be iterable again; got \w+\. Pass a list of chunks, or an object"
    )
    with pytest.raises(TypeError, match=message):
        call(summed)(make())


@pytest.mark.parametrize("chunks", [lambda x: x, lambda x: [x, x]], ids=["whole", "list"])
def test_a_stream_cannot_be_traced(chunks):
    with pytest.raises(TypeError, match=r"a streamed computation is a host loop.*Use in_graph under jit\."):
        jax.jit(lambda x: summed.streamed()(chunks(x)))(X)


@pytest.mark.parametrize("lanes", [0, -3])
@pytest.mark.parametrize("executor", ["in_graph", "streamed"])
def test_no_lanes(lanes, executor):
    message = rf"at least one client runs at once; got lanes={lanes}\. Leave it out for all at once\."
    with pytest.raises(ValueError, match=message):
        getattr(summed, executor)(lanes=lanes)


def test_a_mesh_without_an_axis_for_clients():
    mesh = jax.make_mesh((4,), ("data",))
    message = re.escape(
        "a mesh needs an axis named 'clients'; got ('data',). "
        "Make one with jax.make_mesh((jax.device_count(),), ('clients',))."
    )
    with pytest.raises(ValueError, match=message):
        summed.in_graph(mesh=mesh)(X)
    with pytest.raises(ValueError, match=message):
        summed.streamed(mesh=mesh)(X)


# --- what depends on the padded length ------------------------------------------------------------


def sequences(capacity):
    return Clients.of(Sequence(np.ones((2, capacity), np.float32), np.ones(2, np.int32)))


@pytest.mark.parametrize("capacities", [(1, 3), (2, 3)])
def test_a_sum_that_depends_on_the_padded_length_is_refused(capacities):
    @federated_computation
    def padded_sum(data):
        return federated_sum(federated_map(lambda s: s.elements, data))

    message = "needs one shape in every chunk, so it cannot depend on the padded length of a sequence; "
    with pytest.raises(ValueError, match=message):
        padded_sum([sequences(capacity) for capacity in capacities])


def test_results_of_clients_that_depend_on_the_padded_length():
    doubled = federated_computation(lambda d: federated_map(lambda s: sequence_map(lambda e: 2 * e, s), d))
    with pytest.raises(ValueError, match="padded length"):
        doubled([sequences(2), sequences(3)])


def test_an_unknown_dimension_cannot_be_reduced():
    with pytest.raises(TypeError, match=r"got {float32\[\?\]}@CLIENTS"):
        federated_computation(lambda x: federated_sum(x)).type_signature(parse_type("{float32[?]}@CLIENTS"))


def test_a_sum_of_sequences_is_refused():
    with pytest.raises(TypeError, match="federated_sum needs numeric members"):
        federated_computation(lambda d: federated_sum(d)).type_signature(FederatedType("int32*", CLIENTS))


def test_communication_needs_types():
    assert [m.bits for m in summed.communication(X)] == [32]
    assert [m.bits for m in declared(CLIENT_FLOAT).communication()] == []
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        summed.communication()


@pytest.mark.parametrize("value", [len, "text", {"data": object}])
def test_what_is_no_array_is_refused_before_it_reaches_jax(value):
    with pytest.raises(TypeError, match=r"summed takes arrays, Clients and cohorts; got .* in 'x'. Say who takes part"):
        summed(value)


def test_an_argument_too_many_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(TypeError, match=r"summed takes \(x\); got a call with too many positional arguments."):
        summed(X, X)


@pytest.mark.parametrize("way", ["streamed", "in one program", "types"])
def test_data_that_change_into_what_the_functions_do_not_take(way):
    """In round 5 a feature has another shape, dtype or name: the message has what it is, and what it was."""

    @federated_computation
    def score(params, data):
        def of_one(params, batches):
            step = lambda total, batch: total + jnp.sum(batch["x"] @ params)  # noqa: E731
            return sequence_reduce(step, jnp.zeros((), params.dtype), batches)

        return federated_sum(federated_map(of_one, federated_broadcast(params), data))

    ways = {"streamed": score.streamed(), "in one program": score.in_graph(), "types": score.program}
    params = np.ones((4, 2), np.float32)

    def run(shape=(4,), dtype=np.float32, name="x", params=params):
        data = FederatedData({name: np.ones((6, *shape), dtype)}, np.array([0, 2, 4, 6]))
        return ways[way](params, Cohort(data, [0, 2], batch_size=2, lanes=2))

    with pytest.raises(TypeError, match=r"^dot_general requires"):
        run(shape=(5,))  # nothing was before
    for _ in range(2):
        run()
    begin = r"^score needs data that its functions take, as those of the calls before; got "
    other_shape = r"data\['x'\] float32\[2,5\], before float32\[2,4\]\. Bring them .* say: dot_general requires"
    with pytest.raises(TypeError, match=begin + other_shape):  # what the functions raise is a TypeError
        run(shape=(5,))
    other_name = r"data\['x'\] missing, before float32\[2,4\]; data\['z'\] float32\[2,4\], before missing"
    with pytest.raises(ValueError, match=begin + other_name):  # what the functions raise is a KeyError
        run(name="z")
    with pytest.raises(TypeError, match=r"^dot_general requires"):
        run(params=np.ones((3, 2), np.float32))  # it is not the data that changed
    with pytest.raises(TypeError, match=r"^dot_general requires"):
        run(params=np.ones((3, 2), np.float32), shape=(5,))  # another use
    run(shape=(2, 4))  # what the functions take may change
