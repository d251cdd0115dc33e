"""The federated computation behind every question: bounded entries of each client, summed in the way trust allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.analytics.digits import Digits, encode
from fedjx.analytics.question import Entry, Question
from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.names import Array, Key, PyTree
from fedjx.core.language.operators import (
    federated_bin_sum,
    federated_broadcast,
    federated_keys,
    federated_secure_sum,
    federated_sum,
    federated_value,
)
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.types import CLIENTS, SERVER
from fedjx.core.language.values import Sequence
from fedjx.privacy.distributed import distributed_dp_mean
from fedjx.privacy.local import Randomizer, local_mean

_NEVER = 20.0  # of a rounding to be too long: what is rounded again makes the sum of many clients too small


class Entries(NamedTuple):
    """What one client adds.

    Attributes:
      bins: int32 ``[n, m]``, -1 for none.
      values: float32 ``[n, d]`` or None.
    """

    bins: jax.Array
    values: jax.Array | None

    @property
    def number(self) -> jax.Array:
        """How many of its records take part."""
        return jnp.sum(self.bins[:, 0] >= 0, dtype=jnp.int32)

    def table(self, num_bins: int) -> Sums:
        """Returns the client's own sums."""
        rows = jnp.where(self.bins < 0, num_bins, self.bins)

        def add(x: jax.Array) -> jax.Array:
            each = jnp.broadcast_to(x[:, None], (*rows.shape, *x.shape[1:]))
            return jnp.zeros((num_bins, *x.shape[1:]), x.dtype).at[rows].add(each, mode="drop")

        values = None if self.values is None else add(self.values)
        return Sums(values, add(jnp.ones(len(rows), jnp.int32)))


class Sums(NamedTuple):
    """A table: of one client, or of all.

    Attributes:
      values: float32 ``[num_bins, d]``, or integers, or the digits ``[num_bins, d, number]``; None for counts alone.
      counts: int32 ``[num_bins]``; None if records are not counted.
    """

    values: Any
    counts: Any


class Asking(NamedTuple):
    """A question, and how much of each client goes into the answer. It is one of those that `computation` remembers.

    Attributes:
      entry: See `Question`, as are the next ones.
      num_bins: See there.
      bounds: See there; what values are divided by.
      counts: See there.
      distinct: See there.
      max_records: The most entries of a client, drawn at random by its key; None for all.
      divides: Whether values are divided by their bounds.
      modular: See there.
      most_bins: The most bins of a record, by what the question says of its sensitivity.
    """

    entry: Callable[..., Entry]
    num_bins: int
    bounds: tuple[float, ...]
    counts: bool
    distinct: bool
    max_records: int | None
    divides: bool
    modular: bool
    most_bins: float

    @property
    def num_values(self) -> int:
        """Numbers in an entry."""
        return len(self.bounds)


def asking(question: Question, max_records: int | None, *, divides: bool) -> Asking:
    """Returns the part of a question that is computed."""
    of, divides = question, divides and not question.modular
    most_bins = max(round(of.sensitivity(1, False).l1 / of.shape[1], 6), 1) if divides else math.inf
    return Asking(of.entry, of.num_bins, of.bounds, of.counts, of.distinct, max_records, divides, of.modular, most_bins)


def entries(asked: Asking, told: PyTree, key: Key, records: Sequence) -> Entries:
    """Returns what one client adds: of its records that take part at most so many, by priority or at random."""
    found = jax.vmap(lambda record: asked.entry(_Named(record), told))(records.elements)
    bins = found.bins.astype(jnp.int32).reshape(records.mask.shape[0], -1)
    if bins.shape[1] > asked.most_bins:
        raise ValueError(
            f"a record adds to at most {asked.most_bins:g} bins, by the question's sensitivity; got {bins.shape[1]} of "
            f"{asked.entry}. Ask about columns of one value a record, or say what more of them change."
        )
    is_some = records.mask & (bins[:, 0] >= 0) & (bins[:, 0] < asked.num_bins)
    bins = jnp.where(is_some[:, None], bins, -1)
    if asked.distinct:
        bins = _distinct(bins, bins[:, 0] if found.identity is None else found.identity)
    dtype = jnp.uint32 if asked.modular else jnp.float32
    values = None if found.values is None else found.values.reshape(len(bins), -1).astype(dtype)
    most = len(bins) if asked.max_records is None else asked.max_records
    if len(bins) > most:
        chosen = _chosen(key, bins[:, 0] >= 0, most, found.priority)
        bins, values = bins[chosen], None if values is None else values[chosen]
    if asked.distinct and values is None and asked.max_records is not None and found.identity is not None:
        bins = jax.vmap(lambda column: _distinct(column[:, None], column)[:, 0], 1, 1)(bins)
    if values is not None:
        values = jnp.where((bins[:, :1] >= 0) & ~jnp.isnan(values), values, 0)
        if asked.divides:
            # Whatever a question computes, nobody adds more than noise is made for.
            values = jnp.clip(values / jnp.asarray(asked.bounds, jnp.float32)[None], -1, 1)
    return Entries(bins, values)


class _Named(dict[str, Any]):
    """A record, which says which columns it has when it is asked for another one."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"a question names all columns that it reads, {sorted(self)}; got {name!r}. Name it too.")


def _distinct(bins: jax.Array, identity: Array) -> jax.Array:
    """Leaves, of the rows that have the same identity, one; it takes part if one of them does."""
    order = jnp.lexsort((bins[:, 0] < 0, identity))
    ordered = identity[order]
    again = jnp.zeros(len(bins), bool).at[order[1:]].set(ordered[1:] == ordered[:-1])
    return jnp.where(again[:, None], -1, bins)


def _chosen(key: Key, real: jax.Array, number: int, priority: Array | None) -> jax.Array:
    """Returns so many places of those that are real, the same however many follow them; at random without priority."""
    if priority is not None:
        return jnp.lexsort((-priority, ~real))[:number]
    words = jax.vmap(lambda place: jax.random.bits(jax.random.fold_in(key, place)))(jnp.arange(len(real)))
    priority = jnp.where(real, words >> 1, jnp.uint32(2**32 - 1)).astype(jnp.uint32)
    if number == 1:
        return jnp.argmin(priority)[None]
    return jax.lax.top_k(~priority, number)[1]


# --- sums in the clear, and secure ones -----------------------------------------------------------


class Shown(NamedTuple):
    """What the server has in the end.

    Attributes:
      sums: The table of all clients, `Sums`, with noise where there is any.
      answered: int32 ``[]``; clients with a record that takes part; None where that is not for the server to see.
      moments: float32 ``[num_bins * (d + 1), num_bins * (d + 1)]``, sums of products of clients' tables; or None.
    """

    sums: Any
    answered: Any
    moments: Any = None


@functools.lru_cache(maxsize=128)
def plain(asked: Asking, with_moments: bool) -> Computation[..., Shown]:
    """Returns ``(key, told, records) -> Shown``, of sums in the clear."""

    @federated_computation
    def ask(key: FederatedValue, told: FederatedValue, records: FederatedValue) -> Shown:
        of_client = _at_clients(asked, key, told, records)
        answered = federated_sum(federated_map(_has_answered, of_client))
        moments = federated_sum(federated_map(functools.partial(_moments, asked), of_client)) if with_moments else None
        return Shown(_summed(asked, _sent(asked, of_client), secure=False), answered, moments)

    return ask


@functools.lru_cache(maxsize=128)
def noisy(asked: Asking, laplace: bool) -> Computation[..., Shown]:
    """Returns ``(key, told, scale, records) -> Shown``: with noise of a scale on each element of the table."""

    @federated_computation
    def ask(key: FederatedValue, told: FederatedValue, scale: FederatedValue, records: FederatedValue) -> Shown:
        sums = _summed(asked, _sent(asked, _at_clients(asked, key, told, records)), secure=False)

        def with_noise(key: Key, scale: jax.Array, sums: Sums) -> Sums:
            leaves, treedef = jax.tree.flatten(sums)
            draw = jax.random.laplace if laplace else jax.random.normal
            keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
            return treedef.unflatten(
                [x + scale * draw(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=True)]
            )

        return Shown(federated_map(with_noise, key, scale, sums), None)

    return ask


@functools.lru_cache(maxsize=128)
def secure(asked: Asking, digits: Digits | None) -> Computation[..., Shown]:
    """Returns ``(key, told, records) -> Shown``, of sums of integers of which the server sees the totals alone.

    Values are rounded at random, without bias, and written with digits if there are such: of what each client adds to
    one bin once, of several bins entry by entry.
    """

    @federated_computation
    def ask(key: FederatedValue, told: FederatedValue, records: FederatedValue) -> Shown:
        of_client = _at_clients(asked, key, told, records)
        keys = federated_keys(federated_map(functools.partial(_folded, 2), key))
        sent = _sent(asked, of_client)
        if digits is not None:
            sent = federated_map(functools.partial(_encoded, digits), keys, sent)
        return Shown(_summed(asked, sent, secure=True), federated_secure_sum(federated_map(_has_answered, of_client)))

    return ask


def _encoded(digits: Digits, key: Key, sent: Any) -> Any:
    return sent._replace(values=encode(digits, sent.values, key))


def _folded(number: int, key: Key) -> Key:
    return jax.random.fold_in(key, number)


def _at_clients(asked: Asking, key: FederatedValue, told: PyTree, records: FederatedValue) -> FederatedValue:
    keys = federated_keys(federated_map(functools.partial(_folded, 0), key))
    return federated_map(functools.partial(entries, asked), federated_broadcast(told), keys, records)


def _has_answered(of_client: Entries) -> jax.Array:
    return (of_client.number > 0).astype(jnp.int32)


def _moments(asked: Asking, of_client: Entries) -> jax.Array:
    flat = _flat(asked, of_client)
    return flat[:, None] * flat[None, :]


def _flat(asked: Asking, of_client: Entries) -> jax.Array:
    """Returns a client's table as a vector, float32 ``[num_bins * (d + 1)]``."""
    table = of_client.table(asked.num_bins)
    counts = [table.counts.astype(jnp.float32)[:, None]] if asked.counts else []
    return jnp.concatenate([*([] if table.values is None else [table.values]), *counts], axis=1).reshape(-1)


def _sent(asked: Asking, of_client: FederatedValue) -> FederatedValue:
    """Returns what clients send: of one bin its sums, of several the entries, which stand for a table."""

    def summed(of_client: Entries) -> Sums:
        values = None if of_client.values is None else jnp.sum(of_client.values, axis=0, keepdims=True)
        return Sums(values, of_client.number[None] if asked.counts else None)

    return federated_map(summed, of_client) if asked.num_bins == 1 else of_client


def _summed(asked: Asking, sent: FederatedValue, *, secure: bool) -> Any:
    """Returns the table of all clients, `Sums` at SERVER."""
    if asked.num_bins == 1:
        return federated_secure_sum(sent) if secure else federated_sum(sent)
    values = counts = None
    if asked.num_values:
        each = federated_map(_for_each_bin, sent)
        values = federated_bin_sum(sent.bins, each, asked.num_bins, secure=secure)
    if asked.counts:
        ones = federated_map(jnp.ones_like, sent.bins)
        counts = federated_bin_sum(sent.bins, ones, asked.num_bins, secure=secure)
    return Sums(values, counts)


def _for_each_bin(sent: Entries) -> jax.Array:
    assert sent.values is not None
    return jnp.broadcast_to(sent.values[:, None], (*sent.bins.shape, *sent.values.shape[1:]))


# --- private by what clients themselves add -------------------------------------------------------


@functools.lru_cache(maxsize=128)
def distributed(asked: Asking, noise: Shared) -> Computation[..., Shown]:
    """Returns ``(key, told, records) -> Shown``, of secure sums of tables, each with a share of the noise."""
    aggregator = noise.aggregator(asked)

    @federated_computation
    def ask(key: FederatedValue, told: FederatedValue, records: FederatedValue) -> Shown:
        of_client = _at_clients(asked, key, told, records)
        table = federated_map(functools.partial(_flat, asked), of_client)
        everybody = federated_value(np.float32(1), CLIENTS)
        noise_key = federated_map(functools.partial(_folded, 3), key)
        _, total, _ = aggregator.next(noise_key, federated_value((), SERVER), table, everybody)
        return Shown(federated_map(functools.partial(_unflattened, asked), total), None)

    return ask


class Shared(NamedTuple):
    """Noise of which each client adds a share: arguments of `distributed_dp_mean`, which describes them.

    Attributes:
      clip: See there, as are the next ones.
      noise_multiplier: See there.
      min_clients: See there.
      max_clients: See there.
      num_bits: See there.
    """

    clip: float
    noise_multiplier: float
    min_clients: int
    max_clients: int
    num_bits: int

    def aggregator(self, asked: Asking) -> Aggregator:
        """Returns the aggregator of the sum of clients' tables."""
        num_elements = asked.num_bins * (asked.num_values + int(asked.counts))
        return distributed_dp_mean(
            expected_clients=1.0, num_elements=num_elements, log_inverse_beta=_NEVER, **self._asdict()
        )


@functools.lru_cache(maxsize=128)
def local(asked: Asking, make: Callable[..., Randomizer], epsilon: float) -> Computation[..., Shown]:
    """Returns ``(key, told, records) -> Shown``, of one record of each client, which reports it at random.

    Args:
      asked: Of a question that counts records in bins, one each, or has values in one bin.
      make: ``(epsilon, size) -> Randomizer``, of a category of so many or of so many numbers in ``[-1, 1]``.
      epsilon: Of a report.
    """
    of_bins, reports = asked.num_values == 0, local_mean(make(epsilon, report_size(asked)))

    @federated_computation
    def ask(key: FederatedValue, told: FederatedValue, records: FederatedValue) -> Shown:
        of_client = _at_clients(asked._replace(max_records=1), key, told, records)
        value = federated_map(functools.partial(_one_bin, asked) if of_bins else _one_value, of_client)
        # Who reports must not say what: of bins everybody does, of numbers who has a record, whatever is in it.
        weight = federated_map(functools.partial(_reports, of_bins), records)
        noise_key = federated_map(functools.partial(_folded, 3), key)
        _, mean, measured = reports.next(noise_key, federated_value((), SERVER), value, weight)

        def total(mean: jax.Array, number: jax.Array) -> tuple[Sums, jax.Array]:
            sums = mean * number
            found = Sums(None, sums[:-1]) if of_bins else Sums(sums[None], number[None] if asked.counts else None)
            return found, number.astype(jnp.int32)

        return Shown(*federated_map(total, mean, measured["num_clients"]))

    return ask


def report_size(asked: Asking) -> int:
    """Returns of how many categories, or numbers, a report is: of bins there is one for what is in none."""
    return asked.num_values or asked.num_bins + 1


def _reports(of_bins: bool, records: Sequence) -> jax.Array:
    return jnp.float32(1) if of_bins else (records.length > 0).astype(jnp.float32)


def _one_bin(asked: Asking, of_client: Entries) -> jax.Array:
    if of_client.bins.shape[1] > 1:
        raise ValueError(
            f"a client reports one bin; got {of_client.bins.shape[1]} of a record. Trust less, or ask less."
        )
    return jnp.where(of_client.bins[0, 0] < 0, asked.num_bins, of_client.bins[0, 0])


def _one_value(of_client: Entries) -> jax.Array:
    assert of_client.values is not None
    return of_client.values[0]


def _unflattened(asked: Asking, flat: jax.Array) -> Sums:
    table = flat.reshape(asked.num_bins, -1)
    values = table[:, : asked.num_values] if asked.num_values else None
    return Sums(values, table[:, -1] if asked.counts else None)
