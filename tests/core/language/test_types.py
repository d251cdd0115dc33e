"""Tests of the type language: what prints parses back, and a type is what it prints."""

import random
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx import CLIENTS, SERVER, Batches, Clients, FederatedType, FunctionType, Sequence, parse_type
from fedjx.core.language.types import Placement, Struct, children, member_type, notation, sequence_type, type_of

PRINTED = [
    # arrays
    "int32",
    "int32[10]",
    "float32[10,5]",
    "uint8[2,0]",
    "bool",
    "bfloat16[3]",
    "complex64",
    "key<fry>",
    "key<rbg>[4]",
    "float32[?]",
    "float32[?,3]",
    # structures
    "<int32,int32>",
    "<X=float32,Y=float32>",
    "<weights=float32[10,5],bias=float32[5]>",
    "<int32,Y=float32,bool>",
    "<a=<b=int32,<c=bool[2]>>,float32>",
    "<>",
    "<a=<>,b=int32>",
    "<encoder.layer-0.w=int32>",
    "<'two words'=int32,'it\\'s'=bool,'back\\\\slash'=int8,'a=b'=int8,'<,>'=int8>",
    "<0=int32,1=int32>",
    # sequences
    "int32*",
    "float32[2]*",
    "<X=float32,Y=float32>*",
    "int32**",
    "<int32*,label=float32[3]>*",
    "key<fry>*",
    # placed values
    "{int32}@CLIENTS",
    "{float32}@CLIENTS",
    "float32@CLIENTS",
    "float32@SERVER",
    "{float32}@SERVER",
    "<weights=float32[10,5],bias=float32[5]>@SERVER",
    "{<X=float32,Y=float32>*}@CLIENTS",
    "{<x=float32[20,28,28,1],y=int32[20],mask=bool[20]>*}@CLIENTS",
    # functions
    "( -> int32)",
    "(int32* -> int32)",
    "({float32}@CLIENTS -> float32@SERVER)",
    "(<state=float32@SERVER,data={int32*}@CLIENTS> -> <float32@SERVER,{int32}@CLIENTS>)",
    "(<x=int32,(int32 -> bool)> -> ( -> bool))",
]


@pytest.mark.parametrize("text", PRINTED)
def test_notation_parses_and_prints_exactly(text):
    assert notation(parse_type(text)) == text


def test_a_sequence_of_elements_of_unknown_size():
    assert notation(parse_type("float32[?]*")) == "float32[?]*"


def test_white_space_means_nothing():
    text = " ( < a=int32 , b= float32 [2,3] * > ->{ int32 } @ CLIENTS )"
    assert notation(parse_type(text)) == "(<a=int32,b=float32[2,3]*> -> {int32}@CLIENTS)"


def test_trailing_white_space_means_nothing():
    assert notation(parse_type("int32 ")) == "int32"


def test_a_parsed_type_holds_what_it_says():
    type_ = parse_type("({<X=float32[2,3],key<fry>>*}@CLIENTS -> <int8@SERVER,bool@CLIENTS>)")
    assert isinstance(type_, FunctionType)
    parameter, (first, second) = type_.parameter, type_.result
    assert (parameter.placement, parameter.all_equal) == (CLIENTS, False)
    assert (first.placement, first.all_equal) == (SERVER, True)
    assert (second.placement, second.all_equal) == (CLIENTS, True)
    assert (first.member.shape, first.member.dtype) == ((), jnp.int8)
    assert isinstance(parameter.member, Sequence)
    elements = parameter.member.elements
    assert (elements.X.shape[1:], elements.X.dtype) == ((2, 3), jnp.float32)
    assert elements[1].dtype == jax.random.key(0).dtype


def random_type(rng: random.Random, depth: int) -> Any:
    """A random member type."""
    kind = rng.choice(["array", "array", "structure", "structure", "sequence"]) if depth else "array"
    if kind == "sequence":
        return sequence_type(random_type(rng, depth - 1))
    if kind == "structure":
        parts = tuple(random_type(rng, depth - 1) for _ in range(rng.randrange(4)))
        pool = ["x", "Y_1", "two words", "it's", "\\", "a.b", "-", "<", "mask", "éa", "0"]
        names = tuple(rng.choice([None, name]) for name in rng.sample(pool, len(parts)))
        return Struct(names, parts) if any(names) else parts
    dtype = rng.choice([jnp.float32, jnp.bfloat16, jnp.int8, jnp.uint32, jnp.bool_, jax.random.key(0).dtype])
    return jax.ShapeDtypeStruct(tuple(rng.randrange(12) for _ in range(rng.randrange(3))), dtype)


def random_signature(rng: random.Random) -> FunctionType:
    def placed():
        return FederatedType(random_type(rng, 3), rng.choice([SERVER, CLIENTS]), rng.random() < 0.5)

    parameter = rng.choice([None, placed(), Struct(("a", None), (placed(), placed()))])
    return FunctionType(parameter, rng.choice([placed(), (placed(), placed()), random_type(rng, 2)]))


def same(a: Any, b: Any) -> bool:
    """Compares two types part by part, without their notation."""
    if isinstance(a, FunctionType) or isinstance(b, FunctionType):
        return type(a) is type(b) and same(a.parameter, b.parameter) and same(a.result, b.result)
    if isinstance(a, FederatedType) or isinstance(b, FederatedType):
        return (
            type(a) is type(b) and (a.placement, a.all_equal) == (b.placement, b.all_equal) and same(a.member, b.member)
        )
    if isinstance(a, jax.ShapeDtypeStruct) or isinstance(b, jax.ShapeDtypeStruct):
        return a == b
    left, right = children(a), children(b)
    if left is None or right is None:
        return a is b
    return [n for n, _ in left] == [n for n, _ in right] and all(
        same(x, y) for (_, x), (_, y) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("seed", range(100))
def test_random_types_round_trip(seed):
    type_ = random_signature(random.Random(seed))
    parsed = parse_type(str(type_))
    assert same(parsed, type_)
    assert str(parsed) == str(type_)
    assert parsed == type_
    assert hash(parsed) == hash(type_)


def test_the_comparison_of_the_round_trip_can_fail():
    for a, b in [("int32", "int8"), ("<a=int32>", "<b=int32>"), ("<a=int32>", "<int32>"), ("int32*", "int32")]:
        assert not same(parse_type(a), parse_type(b))
    assert not same(parse_type("{int32}@CLIENTS"), parse_type("int32@CLIENTS"))


@pytest.mark.parametrize(
    ("text", "position", "needed"),
    [
        ("", 0, "an array type, '<', '{' or '('"),
        ("int33", 0, "a known dtype"),
        ("<int32,flaot32>", 7, "a known dtype"),
        ("<int32", 6, "',' or '>'"),
        ("<int32 int32>", 6, "',' or '>'"),
        ("<a=>", 3, "an array type, '<', '{' or '('"),
        ("<'a=int32>", 1, "an array type, '<', '{' or '('"),
        ("{int32", 6, "'}'"),
        ("{int32}", 7, "'@' and a placement"),
        ("int32@", 6, "SERVER or CLIENTS"),
        ("int32@WORKERS", 6, "SERVER or CLIENTS"),
        ("{int32}@CLIENTS*", 15, "the end of the type"),
        ("(int32", 6, "'->'"),
        ("(int32 -> int32", 15, "')'"),
        ("int32]", 5, "the end of the type"),
        ("int32[-1]", 5, "the end of the type"),
        ("int32 int32", 6, "the end of the type"),
    ],
)
def test_malformed_notation_is_located(text, position, needed):
    message = f"a type needs {needed} at position {position}; got {text!r}. Examples: float32[10,5]"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_type(text)


@pytest.mark.parametrize(
    "text",
    [
        "float32[3?]",
        "float32[,]",
        "float32[3,]",
        "float32[]",
        "key<nonsense>",
        "object",
        "str",
        "float",
        "int",
        "<(int32 -> int32)>*",
        "<{int32}@CLIENTS>*",
        "{{int32}@CLIENTS}@CLIENTS",
        "<{int32}@CLIENTS>@SERVER",
    ],
)
def test_nonsense_notation_is_located(text):
    with pytest.raises(ValueError, match=r"^a type needs .* at position \d+; got "):
        parse_type(text)


@pytest.mark.parametrize(
    ("declared", "given", "accepted"),
    [
        ("{int32}@CLIENTS", "{int32}@CLIENTS", True),
        ("{int32}@CLIENTS", "int32@CLIENTS", True),
        ("int32@CLIENTS", "int32@CLIENTS", True),
        ("int32@CLIENTS", "{int32}@CLIENTS", False),
        ("{int32}@CLIENTS", "{int32}@SERVER", False),
        ("int32@SERVER", "int32@CLIENTS", False),
        ("{int32}@CLIENTS", "{int8}@CLIENTS", False),
        ("{int32[3]}@CLIENTS", "{int32}@CLIENTS", False),
        ("{int32[?]}@CLIENTS", "{int32[17]}@CLIENTS", True),
        ("{int32[?,2]}@CLIENTS", "{int32[17,2]}@CLIENTS", True),
        ("{int32[?,2]}@CLIENTS", "{int32[17,3]}@CLIENTS", False),
        ("{int32[?]}@CLIENTS", "{int32[1,2]}@CLIENTS", False),
        ("{int32[?]}@CLIENTS", "{int32}@CLIENTS", False),
        ("{int32[3]}@CLIENTS", "{int32[?]}@CLIENTS", False),
        ("{int32[?]}@CLIENTS", "{int32[?]}@CLIENTS", True),
        ("<a=int32[?],b=bool>@SERVER", "<a=int32[5],b=bool>@SERVER", True),
        ("<a=int32,b=bool>@SERVER", "<b=bool,a=int32>@SERVER", False),
        ("<a=int32>@SERVER", "<int32>@SERVER", False),
        ("{int32*}@CLIENTS", "{int32*}@CLIENTS", True),
        ("{int32*}@CLIENTS", "{int32}@CLIENTS", False),
        ("{<'a.b'=int32>}@CLIENTS", "{<axb=int32>}@CLIENTS", False),
    ],
)
def test_accepts(declared, given, accepted):
    assert parse_type(declared).accepts(parse_type(given)) is accepted


def test_accepts_only_placed_types():
    assert not FederatedType(jnp.int32, SERVER).accepts(member_type(jnp.int32))
    assert not FederatedType(jnp.int32, SERVER).accepts(parse_type("(int32 -> int32)"))


class Point(NamedTuple):
    y: Any
    x: Any


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.float32, "float32"),
        (np.int8, "int8"),
        (np.dtype("uint16"), "uint16"),
        (jnp.bfloat16, "bfloat16"),
        (bool, "bool"),
        ("float32[2,3]", "float32[2,3]"),
        ("<b=int32,int8*>", "<b=int32,int8*>"),
        (jax.ShapeDtypeStruct((2,), np.int16), "int16[2]"),
        (3, "int32"),
        (2.5, "float32"),
        (True, "bool"),
        (np.float32(1), "float32"),
        (np.zeros((2, 0), np.int64), "int32[2,0]"),
        (jnp.ones(4, jnp.bfloat16), "bfloat16[4]"),
        (jax.eval_shape(lambda: jax.random.key(0)), "key<fry>"),
        (None, "<>"),
        ((), "<>"),
        ([jnp.int32, (2.0,)], "<int32,<float32>>"),
        ({"b": 1, "a": np.zeros(3)}, "<a=float32[3],b=int32>"),
        ({"a": None, "b": 1}, "<a=<>,b=int32>"),
        ({1: 2.0, 0: True}, "<0=bool,1=float32>"),
        (Point(y=1, x={"w": 2.0}), "<y=int32,x=<w=float32>>"),
        (Sequence(np.zeros((7, 2), np.int8), 3), "int8[2]*"),
        (Sequence({"b": np.zeros((7, 2)), "a": np.zeros(7)}, 3), "<a=float32,b=float32[2]>*"),
        (
            Sequence(Batches({"y": np.zeros((9, 4), np.uint8)}, np.zeros((5, 2), np.int32)), 3),
            "<mask=bool[2],y=uint8[2,4]>*",
        ),
        (optax.EmptyState(), "<>"),
    ],
)
def test_member_type(value, text):
    assert notation(member_type(value)) == text
    assert str(FederatedType(value, CLIENTS)) == f"{{{text}}}@CLIENTS"
    assert notation(parse_type(text)) == text


def test_member_type_of_optax_states_round_trips():
    state = jax.eval_shape(
        optax.sgd(optax.constant_schedule(0.1), momentum=0.9).init, {"w": jnp.zeros((2, 3)), "b": 0.0}
    )
    text = notation(member_type(state))
    assert text == "<<trace=<b=float32,w=float32[2,3]>>,<count=int32>>"
    assert notation(parse_type(text)) == text
    adam = notation(member_type(optax.adam(0.1).init({"w": jnp.zeros(2)})))
    assert adam == "<<count=int32,mu=<w=float32[2]>,nu=<w=float32[2]>>,<>>"
    assert notation(parse_type(adam)) == adam


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            object,
            TypeError,
            "members are arrays, numbers and pytrees of these; got <class 'object'>. Keep other objects",
        ),
        ({"f": len}, TypeError, "members are arrays, numbers and pytrees of these; got <built-in function len>."),
        (
            FederatedType(jnp.int32, SERVER),
            TypeError,
            "a member must be unplaced; got int32@SERVER. Place the structure",
        ),
        ({"x": "no type"}, ValueError, "at position"),
    ],
)
def test_what_has_no_member_type(value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        member_type(value)


def test_placements_are_checked():
    with pytest.raises(
        TypeError, match=r"a placement must be SERVER or CLIENTS; got 'SERVER'\. Import them from fedjx\."
    ):
        FederatedType(jnp.int32, "SERVER")
    assert repr(SERVER) == "SERVER"
    assert Placement("CLIENTS") == CLIENTS


def test_all_equal_is_the_default_at_the_server_only():
    assert FederatedType(jnp.int32, SERVER).all_equal
    assert not FederatedType(jnp.int32, CLIENTS).all_equal


def test_types_compare_by_notation():
    assert FederatedType({"a": 1}, SERVER) == parse_type("<a=int32>@SERVER")
    assert FederatedType({"a": 1}, SERVER) != parse_type("<a=int32>@CLIENTS")
    assert FederatedType(jnp.int32, SERVER) != "int32@SERVER"
    assert repr(FederatedType(jnp.int32, SERVER)) == "parse_type('int32@SERVER')"
    assert len({parse_type("int32@SERVER"), FederatedType(jnp.int32, SERVER)}) == 1


def test_type_of_tells_clients_from_the_server():
    cohort = Clients.of({"b": np.zeros((7, 2)), "a": np.zeros(7, np.int8)})
    assert str(type_of(cohort)) == "{<a=int8,b=float32[2]>}@CLIENTS"
    assert str(type_of(np.zeros((7, 2)))) == "float32[7,2]@SERVER"
    assert str(type_of(parse_type("{int32}@CLIENTS"))) == "{int32}@CLIENTS"


def test_the_capacity_of_a_sequence_is_no_part_of_its_type():
    def cohort(capacity):
        return Clients.of(Sequence(np.zeros((2, capacity, 3), np.int8), np.zeros(2, np.int32)))

    assert type_of(cohort(4)) == type_of(cohort(9)) == parse_type("{int8[3]*}@CLIENTS")


def test_a_pool_is_no_part_of_the_type():
    index = np.zeros((2, 5, 4), np.int32)
    cohort = Clients.of(Sequence(Batches({"x": np.zeros((100, 3), np.uint8)}, index), np.ones(2, np.int32)))
    assert str(type_of(cohort)) == "{<mask=bool[4],x=uint8[4,3]>*}@CLIENTS"


def test_elements_of_a_parsed_structure():
    struct = parse_type("<a=int32,float32,'two words'=bool>")
    assert struct.a.dtype == struct[0].dtype == struct["a"].dtype == jnp.int32
    assert struct[1].dtype == jnp.float32
    assert struct["two words"].dtype == bool
    assert [leaf.dtype for leaf in struct] == [jnp.int32, jnp.float32, bool]
    with pytest.raises(AttributeError, match="no element 'b' in <a="):
        _ = struct.b
    mapped = jax.tree.map(lambda leaf: leaf.dtype.itemsize, struct)
    assert repr(mapped) == "<a=4, 4, two words=1>"
