"""What one client does: train and evaluate on its own data. Pure functions, of use on their own.

A model gives one loss per example; `fedjx.models.batch_loss` and `sum_metrics` take the means and sums over them
with the batch's mask. What padding shows is a copy of a real example (`own_padding`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn, TypedDict, Unpack

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.aggregation.weights import by_examples
from fedjx.core.language.checks import check_integer
from fedjx.core.language.debugging import check_finite
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.padding import own_padding
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.trees import all_finite, map_keeping
from fedjx.core.language.values import MASK, Batches, Sequence
from fedjx.models.model import Batch, MetricSums, Model, Ratio, batch_loss, sum_metrics, with_batch_stats

# Folded into keys that have other uses: `jax.random.split` in two is folding in 0 and 1, and rounds count from 0.
OWN = 2  # Into a client's key of the round, for what it trains besides the shared parameters.
FIRST = 2**32 - 1  # Into the key of the run, for the clients' first states.

# An optimizer, or a function that makes it of the number of the round, int32 []: a schedule over rounds.
ClientOptimizer = optax.GradientTransformation | Callable[[jax.Array], optax.GradientTransformation]


class LocalAmount(TypedDict, total=False):
    """How much a client trains, and in which order: arguments of `local_train`."""

    num_epochs: int | None
    num_steps: int | None
    shuffle: bool
    drop_remainder: bool


class _Progress(NamedTuple):
    """How far local training has come."""

    params: PyTree
    optimizer: PyTree
    metrics: dict[str, Ratio]
    step: jax.Array


class LocalResult(NamedTuple):
    """What local training returns.

    Attributes:
      params: The trained parameters.
      metrics: Summed over all steps, as `finalize_metrics` takes them.
      num_examples: int32 ``[]``; how many examples the client has, but for dropped remainders, or got to.
      optimizer: The optimizer's last state.
    """

    params: PyTree
    metrics: dict[str, Ratio]
    num_examples: jax.Array
    optimizer: PyTree


class ClientUpdate(NamedTuple):
    """What a client reports.

    Attributes:
      delta: Initial minus trained parameters, the server's pseudo-gradient.
      weight: float32 ``[]``.
      metrics: Sums by name.
    """

    delta: PyTree
    weight: jax.Array
    metrics: Metrics


def local_train(
    model: Model,
    params: PyTree,
    data: Sequence,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
    completed: jax.Array | None = None,
) -> LocalResult:
    """Trains a model on one client's data by mini-batch gradient steps.

    The batch statistics of `Variables` go from step to step as the model returns them, whatever the optimizer does.

    Args:
      model: Its per-example loss is averaged over the real examples of a batch.
      params: The initial parameters.
      data: A sequence of batches: dicts of features ``[B, ...]``, with ``mask`` bool ``[B]``
        where some are padding.
      key: Makes the order of the examples, epoch by epoch, and the model's dropout.
      optimizer: Starts from its initial state.
      num_epochs: Passes over the data; one if neither this nor ``num_steps`` is given.
      num_steps: Number of batches instead; wraps around into further epochs.
      shuffle: Whether to draw a new order for every epoch.
      drop_remainder: Whether to leave out an epoch's last batch when it is not full. ``num_examples`` is then that of
        an epoch without it: who has less than a batch takes no step, and weighs nothing.
      completed: float32 ``[]`` in [0, 1], which may be traced; with which part of its steps, rounded up, the client
        gets done: 2 of 5 epochs are ``2 / 5``. Then ``num_examples`` are those that it got to. All steps if not given.

    Guarantees: Every example is used once per epoch (but for dropped remainders). The result
    depends neither on how far the data is padded nor on what the padding holds.

    Raises:
      ValueError: If both or a non-positive number of epochs or steps is asked for.
      TypeError: If the optimizer is a function of the round.

    >>> model = fedjx.models.linear(2, input_shape=(3,))
    >>> data = fedjx.data.central({"x": np.ones((4, 3), np.float32), "y": np.zeros(4, np.int32)}, batch_size=2)
    >>> key = jax.random.key(0)
    >>> result = local_train(model, model.init(key), data, key, optimizer=optax.sgd(0.1))
    >>> int(result.num_examples)
    4
    """
    optimizer = no_schedule(optimizer)
    key_order, key_loss = jax.random.split(key)
    batches = as_batches(data)
    plan = _plan(batches.index, key_order, num_epochs, num_steps, shuffle, drop_remainder)
    num_examples = jnp.sum(batches.index >= 0, dtype=jnp.int32)
    if drop_remainder:
        num_examples -= num_examples % batches.index.shape[1]
    if completed is not None:
        # A share such as 2 / 5 is rounded, and may be a little more than what it stands for.
        steps = jnp.ceil(completed * plan.length * (1 - 2**-20)).astype(jnp.int32)
        done = Sequence(plan.elements, steps)
        got_to = jnp.minimum(num_examples, jnp.sum((done.elements >= 0) & done.mask[:, None], dtype=jnp.int32))
        num_examples, plan = jnp.where(done.length < plan.length, got_to, num_examples), done

    gradient = jax.grad(batch_loss(model, carries_stats=True), has_aux=True)

    def step(before: _Progress, batch: Batch) -> _Progress:
        params, state, sums, t = before
        grads, (metrics, stats) = gradient(params, batch, jax.random.fold_in(key_loss, t))
        updates, state = optimizer.update(grads, state, params)
        params = with_batch_stats(optax.apply_updates(params, updates), stats)
        return _Progress(params, state, map_keeping(jnp.add, sums, metrics), t + 1)

    zero = no_loss(model, params, batches, key_loss)
    start = _Progress(params, optimizer.init(params), zero, jnp.int32(0))
    rows = Sequence(Batches(batches.pool, plan.elements), plan.length)
    params, state, metrics, _ = sequence_reduce(step, start, rows)
    return LocalResult(params, metrics, num_examples, state)


def no_loss(model: Model, params: PyTree, batches: Batches, key: jax.Array) -> dict[str, Ratio]:
    """Returns the loss summed over no example, in the dtypes of a model's: weights of classes are floats."""

    def sums() -> dict[str, Ratio]:
        batch = Batches(batches.pool, batches.index[0]).gather()
        return batch_loss(model, carries_stats=True)(params, batch, key)[1].sums

    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums))


class Local(NamedTuple):
    """How a client trains in a run: what the arguments of the run say, for a method to call. `local_training` makes it.

    Attributes:
      optimizer: The client's; that of the round, if it is a schedule over rounds.
      train: `local_train` with the run's amount of training, of which a client that fails gets a part done. A method
        gives clients amounts of their own by ``completed``, the part of the run's steps that this one takes.
      report: ``(params, result) -> ClientUpdate``, `report_update` with the run's client weight.
      weight: From a number of examples, int32 ``[]``, to the client's weight, float32 ``[]``.
    """

    optimizer: optax.GradientTransformation
    train: Callable[..., LocalResult]
    report: Callable[[PyTree, LocalResult], ClientUpdate]
    weight: Callable[[jax.Array], jax.Array]


def _no_optimizer() -> optax.GradientTransformation:
    def refused(*args: PyTree, **named: PyTree) -> NoReturn:
        raise TypeError(
            "a method trains by local.optimizer; got no client_optimizer. Pass one, such as optax.sgd(0.1)."
        )

    return optax.GradientTransformation(refused, refused)


def local_training(
    optimizer: optax.GradientTransformation | None,
    weight: Callable[[jax.Array], jax.Array] = by_examples,
    *,
    fails_after: jax.Array | None = None,
    **amount: Unpack[LocalAmount],
) -> Local:
    """Binds how a client trains; `compose` does, from the arguments of a run.

    Args:
      optimizer: The client's.
      weight: From a client's number of examples to its weight.
      fails_after: float32 ``[]``; the part of its steps after which the client fails, of all that it would take.
      **amount: As for `local_train`.

    >>> model = fedjx.models.linear(2, input_shape=(3,))
    >>> data = fedjx.data.central({"x": np.ones((4, 3), np.float32), "y": np.zeros(4, np.int32)}, batch_size=2)
    >>> local = local_training(optax.sgd(0.1), num_epochs=2)
    >>> update = local_update(model)(model.init(jax.random.key(0)), data, jax.random.key(1), local=local)
    >>> float(update.weight)
    4.0
    """
    check_amount(**amount)

    def train(*arguments: PyTree, completed: jax.Array | float | None = None, **named: PyTree) -> LocalResult:
        shares = [jnp.asarray(x, jnp.float32) for x in (completed, fails_after) if x is not None]
        return local_train(*arguments, **{**amount, "completed": math.prod(shares) if shares else None, **named})

    report = functools.partial(report_update, weight=weight)
    optimizer = _no_optimizer() if optimizer is None else optimizer
    return Local(optimizer, train, report, weight)


def local_update(model: Model) -> Callable[..., ClientUpdate]:
    """Returns the client update of federated averaging: local training, reported by `report_update`."""
    if not isinstance(model, Model):
        raise TypeError(f"a model is a Model; got {model!r}. Pass one of fedjx.models, called, or from_flax(...).")

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        return local.report(params, local.train(model, params, data, key, optimizer=local.optimizer))

    return client_update


def no_schedule(optimizer: ClientOptimizer) -> optax.GradientTransformation:
    """Returns an optimizer, and refuses a function that makes it of the round."""
    if callable(optimizer):
        raise TypeError(
            "only client_optimizer may be a schedule over rounds; got a function. Pass an optax.GradientTransformation."
        )
    return optimizer


def report_update(params: PyTree, trained: LocalResult, weight: Callable[[jax.Array], jax.Array]) -> ClientUpdate:
    """Returns what a client sends after training from ``params``, unless it is not finite (`drop_non_finite`)."""
    delta = jax.tree.map(jnp.subtract, params, trained.params)
    metrics = {**trained.metrics, "num_examples": trained.num_examples}
    return drop_non_finite(ClientUpdate(delta, weight(trained.num_examples), metrics))


def local_evaluate(model: Model, params: PyTree, data: Sequence) -> dict[str, MetricSums]:
    """Sums a model's metrics over one client's data, in evaluation mode.

    Guarantees: The sums of several clients add up to those of the union of their examples.
    """
    batches = as_batches(data)

    def sums(batch: Batch) -> dict[str, MetricSums]:
        return sum_metrics(model.metrics(params, batch), batch[MASK])

    one = jax.eval_shape(lambda: sums(Batches(batches.pool, batches.index[0]).gather()))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
    real = Sequence(batches, data.length)
    return sequence_reduce(lambda total, batch: jax.tree.map(jnp.add, total, sums(batch)), zero, real)


def has_examples(data: PyTree) -> jax.Array:
    """Tells whether a client's data set has an example; data of another form than `as_batches` takes always do."""
    return jnp.any(as_batches(data).index >= 0) if isinstance(data, Sequence) else jnp.bool_(True)


def as_batches(data: Sequence) -> Batches:
    """Returns a client's data set as batches of indices, ``[S, B]``, negative for every padded example."""
    num_steps = _num_steps(data)
    real = jnp.arange(num_steps, dtype=jnp.int32)[:, None] < data.length
    if isinstance(data.elements, Batches):
        return own_padding(Batches(data.elements.pool, jnp.where(real, data.elements.index, -1)))
    features = {name: x for name, x in data.elements.items() if name != MASK}
    shape = jnp.shape(next(iter(features.values())))[:2]
    mask = data.elements.get(MASK, jnp.ones(shape, bool)) & real
    rows = jnp.arange(shape[0] * shape[1], dtype=jnp.int32).reshape(shape)
    pool = {name: x.reshape(-1, *x.shape[2:]) for name, x in features.items()}
    return own_padding(Batches(pool, jnp.where(mask, rows, -1)))


def _num_steps(data: Sequence) -> int:
    elements = data.elements if isinstance(data, Sequence) else data
    leaves = jax.tree.leaves(elements.index if isinstance(elements, Batches) else elements)
    batched = isinstance(elements, (Batches, Mapping)) and all(jnp.ndim(x) > 1 for x in leaves)
    if not (isinstance(data, Sequence) and batched):
        raise TypeError(
            "a client's data set is a sequence of batches, dicts of features [B, ...]; "
            f"got elements {jax.tree.map(jnp.shape, elements)}. Make it with fedjx.data.Cohort."
        )
    return leaves[0].shape[0]


def _plan(
    index: jax.Array,
    key: jax.Array,
    num_epochs: int | None,
    num_steps: int | None,
    shuffle: bool,
    drop_remainder: bool,
) -> Sequence:
    """Plans which examples each step trains on: a sequence of index rows ``[B]``."""
    check_amount(num_epochs, num_steps)
    capacity, batch_size = index.shape
    num_examples = jnp.sum(index >= 0, dtype=jnp.int32)
    per_epoch = num_examples // batch_size if drop_remainder else -(-num_examples // batch_size)
    if num_steps is None:
        epochs = num_epochs or 1
        most, total = capacity * epochs, per_epoch * epochs
    else:
        epochs = -(-num_steps // jnp.maximum(per_epoch, 1))
        most, total = num_steps, jnp.where(per_epoch > 0, num_steps, 0)

    def add_epoch(epoch: jax.Array, rows: jax.Array) -> jax.Array:
        order = _order(index, jax.random.fold_in(key, epoch)) if shuffle else _order(index, None)
        # The padding at an epoch's end is overwritten by the next one.
        return lax.dynamic_update_slice(rows, order, (epoch * per_epoch, jnp.int32(0)))

    rows = lax.fori_loop(jnp.int32(0), epochs, add_epoch, jnp.full((most + capacity, batch_size), -1, jnp.int32))
    return Sequence(rows[:most], total)


def check_amount(num_epochs: int | None = None, num_steps: int | None = None, **order: object) -> None:
    """Refuses an amount of local training that is not a number of epochs or a number of steps."""
    del order
    given = {name: n for name, n in (("num_epochs", num_epochs), ("num_steps", num_steps)) if n is not None}
    advice = "It is how much a client trains at most; how much of it this one does is local.train(..., completed=)."
    traced = any(isinstance(n, jax.core.Tracer) for n in given.values())
    check_integer("[1, inf)", advice if traced else "", **given)
    if len(given) > 1:
        raise ValueError(
            f"local training takes a number of epochs or of steps; got {num_epochs=}, {num_steps=}. Give one."
        )


def _order(index: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns the indices ``[S, B]`` in the order that a key draws, or as they are; padding last."""
    flat = index.reshape(-1)
    # Position i of the stream does not depend on how many follow, so neither on the padding.
    noise = jnp.zeros(flat.shape, jnp.uint32) if key is None else jax.random.bits(key, flat.shape, jnp.uint32) >> 1
    last = jnp.uint32(2**32 - 1)
    return flat[jnp.argsort(jnp.where(flat < 0, last, noise), stable=True)].reshape(index.shape)


def drop_non_finite(update: ClientUpdate) -> ClientUpdate:
    """Removes an update with a number that is not finite, in its delta, weight or metrics.

    It is zeroed, weighs nothing and is counted.

    Adds the counts ``num_clients`` (that contribute) and ``num_non_finite_clients``. May be applied again to what was
    made of its result.
    """
    check_finite(update, "in what it sends")
    return zeroed_if_non_finite(update)


def zeroed_if_non_finite(update: ClientUpdate) -> ClientUpdate:
    """Does what `drop_non_finite` does, in debug mode too: where it is no mistake that a number is not finite."""
    finite = all_finite(tuple(update))
    delta, weight, metrics = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), tuple(update))
    counts = {
        "num_clients": (weight > 0).astype(jnp.int32),
        "num_non_finite_clients": (~finite).astype(jnp.int32) + metrics.get("num_non_finite_clients", 0),
    }
    return ClientUpdate(delta, weight, {**metrics, **counts})
