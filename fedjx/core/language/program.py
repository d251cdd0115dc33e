"""From a traced graph to passes over the cohort.

The level of a node is the highest level of its inputs, plus one for a reduce or a collect. What
ends at level k ends in pass k, which makes the fewest passes. Between passes the server
computes; a client value that two passes need is computed in both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from collections.abc import Sequence as PySequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from fedjx.core.language import fingerprint
from fedjx.core.language.names import PyTree
from fedjx.core.language.passes import Pass, Reduction
from fedjx.core.language.placed import Node, function_name
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType, Placement, notation
from fedjx.core.language.values import Sequence, gathered, strongly_typed
from fedjx.core.rewriting.dependence import depends_on

Environment = dict[int, PyTree]  # the server's values, by position of their node


class Message(NamedTuple):
    """One line of the communication bill.

    Attributes:
      round_trip: The pass over the cohort that the message belongs to, from 0.
      direction: "down" to each client or "up" from each client.
      type: What travels.
      bits: Of one client's message; None where the size is known only at run time.
      secure: Whether the server sees only the sum.
    """

    round_trip: int
    direction: str
    type: FederatedType
    bits: int | None
    secure: bool = False


class Program:
    """A computation, cut into passes.

    Attributes:
      arguments: The argument nodes in order.
      result: The traced result, a pytree of `FederatedValue`.
      num_passes: How often the cohort is read.
    """

    def __init__(self, arguments: list[Node], result: PyTree):
        self.result = result
        results = [value._node for value in jax.tree.leaves(result)]
        order, canonical = _merge([*arguments, *results])
        self._nodes = order
        self._position = {node: i for i, node in enumerate(order)}
        self._inputs = [tuple(self._position[canonical[x]] for x in node.inputs) for node in order]
        self.arguments = [self._position[canonical[a]] for a in arguments]
        self._results = [self._position[canonical[r]] for r in results]
        self._level = self._levels()
        ends = [self._level[i] for i, node in enumerate(order) if node.kind in ("reduce", "collect")]
        ends += [self._level[i] + 1 for i in self.client_results()]
        self.num_passes = max(ends, default=0)

    def _levels(self) -> list[int]:
        levels: list[int] = []
        for node, inputs in zip(self._nodes, self._inputs, strict=True):
            levels.append(max((levels[i] for i in inputs), default=0) + (node.kind in ("reduce", "collect")))
        return levels

    def _placed(self, i: int) -> Placement:
        return self._nodes[i].type.placement

    def _select(self, kinds: tuple[str, ...], level: int) -> list[int]:
        return [i for i, node in enumerate(self._nodes) if node.kind in kinds and self._level[i] == level]

    # --- the server's side ---

    def server_stage(self, level: int, environment: Environment) -> Environment:
        """Computes the server's values between two passes, and keeps those still needed."""
        environment = dict(environment)
        for i in self._select(("constant", "map"), level):
            node = self._nodes[i]
            if self._placed(i) == SERVER:
                is_map = node.kind == "map"
                environment[i] = node.fn(*[environment[x] for x in self._inputs[i]]) if is_map else node.fn
        needed = self.needed_after(level)
        return {i: value for i, value in environment.items() if i in needed}

    def needed_after(self, level: int) -> set[int]:
        """Returns what a stage of the server leaves: results, and what later passes and stages read."""
        needed = set(self._results)
        if level == self.num_passes:
            return needed
        for i, node in enumerate(self._nodes):
            if node.kind == "broadcast" or (node.kind == "map" and self._level[i] > level):
                needed.update(self._inputs[i])
        return needed

    def server_arguments(self, values: PySequence[PyTree]) -> Environment:
        """Returns the arguments that are at the server."""
        pairs = zip(self.arguments, values, strict=True)
        return {i: strongly_typed(value) for i, value in pairs if self._placed(i) == SERVER}

    def after_pass(
        self, level: int, environment: Environment, reduced: PyTree, members: list[PyTree], mask: PyTree
    ) -> Environment:
        """Computes the server's values from what a pass has reduced and collected."""
        sequences = [collected(x, mask) for x in members]
        ends = zip([*self.reductions(level), *self.collections(level)], [*reduced, *sequences], strict=True)
        return self.server_stage(level + 1, {**environment, **dict(ends)})

    # --- the clients' side ---

    def reductions(self, level: int) -> list[int]:
        """Lists the reduce nodes that end in a pass."""
        return self._select(("reduce",), level + 1)

    def collections(self, level: int) -> list[int]:
        """Lists the collect nodes that end in a pass."""
        return self._select(("collect",), level + 1)

    def outputs(self, level: int) -> list[int]:
        """Lists the results at CLIENTS that end in a pass."""
        return sorted({i for i in self.client_results() if self._level[i] == level})

    def client_results(self) -> list[int]:
        """Lists all results at CLIENTS."""
        return [i for i in self._results if self._placed(i) == CLIENTS]

    def result_bytes(self) -> int | None:
        """Returns the size of one client's results at CLIENTS, at most; None where a sequence's length is unknown."""
        bits = _bits([self._nodes[i].type.member for i in self.client_results()])
        return None if bits is None else -(-bits // 8)

    def client_arguments(self) -> list[int]:
        """Lists the arguments at CLIENTS, in order."""
        return [i for i in self.arguments if self._placed(i) == CLIENTS]

    def client_pass(self, level: int) -> Pass:
        """Returns what one client computes in a pass.

        Its member is the tuple of its part of each argument at CLIENTS; its outputs are the
        members to collect and the results at CLIENTS.
        """
        reduce_inputs = [self._inputs[i][0] for i in self.reductions(level)]
        collect_inputs = [self._inputs[i][0] for i in self.collections(level)]
        outputs = self.outputs(level)
        needed = self._client_ancestors([*reduce_inputs, *collect_inputs, *outputs])

        def fn(
            environment: Environment, member: tuple[PyTree, ...], client_id: jax.Array
        ) -> tuple[tuple[PyTree, ...], PyTree]:
            values = dict(zip(self.client_arguments(), member, strict=True))
            for i in needed:
                values[i] = self._client_value(i, values, environment, client_id)
            # A data set that is handed on is handed on whole: its pool stays behind.
            kept = gathered(([values[i] for i in collect_inputs], [values[i] for i in outputs]))
            return tuple(values[i] for i in reduce_inputs), kept

        return Pass(fn, tuple(self._nodes[i].fn for i in self.reductions(level)))

    def _client_value(self, i: int, values: Environment, environment: Environment, client_id: jax.Array) -> PyTree:
        node = self._nodes[i]
        match node.kind:
            case "argument":
                return values[i]
            case "constant":
                return node.fn
            case "client_id":
                return client_id
            case "broadcast":
                return environment[self._inputs[i][0]]
        return node.fn(*[values[x] for x in self._inputs[i]])

    def _client_ancestors(self, targets: Iterable[int]) -> list[int]:
        needed, stack = set(), list(targets)
        while stack:
            i = stack.pop()
            if i not in needed:
                needed.add(i)
                if self._nodes[i].kind == "map":
                    stack.extend(self._inputs[i])
        return sorted(needed)

    # --- identity ---

    def fingerprint(self) -> str:
        """Returns a hash of all that is computed, the same in every process that has traced the same computation."""
        return fingerprint.of_texts([part for i in range(len(self._nodes)) for part in self._described(i)])

    def _described(self, i: int) -> list[str]:
        node = self._nodes[i]
        members = [self._nodes[x].type.member for x in self._inputs[i]]
        holds = ""
        if node.kind == "map":
            holds = fingerprint.of_function(node.fn, *members)
        elif node.kind == "reduce":
            holds = fingerprint.of_reduction(node.fn, *members)
        elif node.kind == "constant":
            holds = fingerprint.of_values(node.fn)
        return [node.kind, node.name, str(node.type), str(self._inputs[i]), holds]

    # --- results and bill ---

    def assemble(self, environment: Environment) -> PyTree:
        """Puts results, by node, in place of the placed values of the traced result."""
        treedef = jax.tree.structure(self.result)
        return treedef.unflatten([environment[i] for i in self._results])

    def communication(self) -> list[Message]:
        """Lists the messages between the server and one client."""
        messages, travels, arrived = [], self._travels(), set()
        for level in range(self.num_passes):
            ends = [*self.reductions(level), *self.collections(level)]
            sent = [travels[self._inputs[i][0]] for i in ends]
            needed = self._client_ancestors([*(x for group in sent for x in group), *self.outputs(level)])
            down = [i for i in needed if self._nodes[i].kind == "broadcast"]
            messages += [self._message(level, "down", self._nodes[i].sent) for i in down]
            for i, group in zip(ends, sent, strict=True):
                node = self._nodes[i]
                if group == self._inputs[i]:
                    messages.append(self._message(level, "up", node.sent, _is_secure(node)))
                elif new := [x for x in group if x not in arrived]:
                    members = tuple(self._nodes[x].type.member for x in new)
                    messages.append(self._message(level, "up", members[0] if len(new) == 1 else members))
                    arrived.update(new)
        return messages

    def _travels(self) -> list[tuple[int, ...]]:
        """Lists, for each node, what a client sends of it: itself, or what the server decodes and knows it from."""
        travels: list[tuple[int, ...]] = []
        for i, (node, inputs) in enumerate(zip(self._nodes, self._inputs, strict=True)):
            parts = [travels[x] for x in inputs]
            if node.kind != "map" or (node.sent is None and parts == [(x,) for x in inputs]):
                # An ordinary map, of what is sent as it is: the client applies it, and sends the result.
                travels.append((i,))
            elif node.sent is not None:
                # What `federated_decode` makes: the client sends its inputs, and the server applies it.
                travels.append(inputs)
            else:
                # A map of something decoded: the server applies it too, to whatever was sent of each input; what came
                # from the server, or what it knows anyway, is not sent back.
                known = ("broadcast", "constant", "client_id")
                parts = [x for part in parts for x in part if self._nodes[x].kind not in known]
                travels.append(tuple(dict.fromkeys(parts)))  # each once, in order
        return travels

    def exposed(self) -> list[str]:
        """Describes all that shows the server more of the clients' values than secure sums do.

        What depends on no argument at CLIENTS and no client's id is public, such as a constant. A secure sum of what
        depends on the id shows single values by their place; an effect in a client's function shows what it is given.
        """
        own: set[int] = set()
        for i, node in enumerate(self._nodes):
            source = node.kind in ("argument", "client_id")
            if self._placed(i) == CLIENTS and (source or own.intersection(self._inputs[i])):
                own.add(i)
        # What is shown is a reduction's only input, and a selection's last: the keys.
        ends = [i for i, node in enumerate(self._nodes) if node.name and not _is_secure(node)]
        by_id, effects = self._looked_into()
        sums = [i for i, node in enumerate(self._nodes) if _is_secure(node) and any(by_id[self._inputs[i][0]])]
        exposed = [self._exposure(i) for i in ends if self._inputs[i][-1] in own]
        return exposed + [self._exposure(i, ", which depends on the client's id,") for i in sums] + effects

    def _looked_into(self) -> tuple[list[list[bool]], list[str]]:
        """Tells whether the client's id decides the leaves of each node, and describes effects in client functions."""
        by_id: list[list[bool]] = []
        effects: list[str] = []
        for i, (node, inputs) in enumerate(zip(self._nodes, self._inputs, strict=True)):
            flags = [node.kind == "client_id"] * len(jax.tree.leaves(node.type.member))
            if node.kind == "map" and self._placed(i) == CLIENTS:
                members = [self._nodes[x].type.member for x in inputs]
                flags, found = depends_on(node.fn, members, [flag for x in inputs for flag in by_id[x]])
                effects += [f"{name} in {function_name(node.fn)}, a function of clients" for name in sorted(found)]
            by_id.append(flags)
        return by_id, effects

    def _exposure(self, i: int, because: str = "") -> str:
        reached = {i}
        for j in range(i, len(self._nodes)):
            if reached.intersection(self._inputs[j]):
                reached.add(j)
        paths = jax.tree_util.tree_leaves_with_path(self.result)
        results = [keystr(path) for (path, _), j in zip(paths, self._results, strict=True) if j in reached]
        node, shown = self._nodes[i], self._nodes[self._inputs[i][-1]]
        return f"{node.name} of {shown.type}{because} for {', '.join('result' + path for path in results)}"

    def _message(self, level: int, direction: str, member: PyTree, secure: bool = False) -> Message:
        type_ = FederatedType(member, CLIENTS, all_equal=direction == "down")
        return Message(level, direction, type_, _bits(member), secure)


def _is_secure(node: Node) -> bool:
    return isinstance(node.fn, Reduction) and node.fn.secure


def _bits(member: PyTree) -> int | None:
    if any(isinstance(x, Sequence) for x in jax.tree.leaves(member, is_leaf=lambda x: isinstance(x, Sequence))):
        return None
    return sum(leaf.size * _element_bits(leaf) for leaf in jax.tree.leaves(member))


def _element_bits(leaf: jax.ShapeDtypeStruct) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), leaf.dtype))
        return data.size * data.dtype.itemsize * 8
    if leaf.dtype == jnp.bool_:
        return 1
    return jax.dtypes.itemsize_bits(leaf.dtype)


def _merge(roots: list[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """Orders the nodes inputs first, and maps each to the first that computes the same.

    An expression written twice is one node: one message, one computation. No recursion: graphs
    may be thousands of maps deep.
    """
    order: list[Node] = []
    canonical: dict[Node, Node] = {}
    known: dict[Hashable, Node] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in canonical:
            continue
        if not ready:
            stack.append((node, True))
            stack.extend((x, False) for x in reversed(node.inputs))
            continue
        same = known.setdefault(_identity(node, canonical), node)
        canonical[node] = same
        if same is node:
            order.append(node)
    return order, canonical


def _identity(node: Node, canonical: dict[Node, Node]) -> Hashable:
    if node.kind == "argument":
        return node
    sent = None if node.sent is None else notation(node.sent)
    key = (node.kind, node.key, node.type, sent, tuple(canonical[x] for x in node.inputs))
    try:
        hash(key)
    except TypeError:
        return node
    return key


def collected(values: PyTree, mask: jax.Array) -> Sequence:
    """Makes the sequence of the real members ``[C, ...]``, in the cohort's order."""
    order = jnp.argsort(~mask, stable=True)
    return Sequence(jax.tree.map(lambda x: jnp.asarray(x)[order], values), mask.sum(dtype=jnp.int32))
