"""Adapters from Flax Linen and Flax NNX modules to `Model`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fedjx.models.model import Batch, Model, PyTree

# What an adapter gives: ``init(key) -> params`` and ``apply(params, x, key) -> outputs``,
# in training mode with a key and in evaluation mode with None.
Init = Callable[[jax.Array], PyTree]
Apply = Callable[[PyTree, Any, "jax.Array | None"], Any]


def feature_x(batch: Batch) -> Any:
    """Selects the feature ``"x"`` of a batch, as it is."""
    return batch["x"]


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Computes the softmax cross entropy ``[B]`` of logits ``[B, K]`` with integer labels ``batch["y"]``."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Tells per example, bool ``[B]``, whether the largest of the logits ``[B, K]`` is at ``batch["y"]``."""
    return jnp.argmax(logits, axis=-1) == batch["y"]


def from_flax(
    module: Any,
    *,
    sample_input: Any = None,
    inputs: Callable[[Batch], Any] = feature_x,
    loss: Callable[[Any, Batch], Any] = cross_entropy,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] = MappingProxyType({"accuracy": accuracy}),
    compute_dtype: Any = None,
) -> Model:
    """Adapts a Flax module to a `Model`.

    Parameters are nested dicts of arrays. Dropout is on in `Model.loss`, drawn from its key,
    and off in `Model.metrics`; a ``__call__`` that takes ``train``, ``training`` or
    ``deterministic`` (in NNX also ``rngs``) is given it.

    Args:
      module: A Flax Linen module, or a function ``rngs -> nnx.Module`` that is called as
        ``module(rngs=...)``: an NNX class, or ``functools.partial(MLP, ...)`` of one.
      sample_input: For Linen: what `inputs` returns for some batch, ``[B, ...]``, or its
        ``jax.ShapeDtypeStruct``. Only shape and dtype matter.
      inputs: Selects, casts and scales the module's argument, inside the jitted step.
      loss: ``(outputs, batch) -> [B]``.
      metrics: By name, ``(outputs, batch) -> [B]`` or ``Ratio([B], [B])``. The metric
        ``"loss"`` is always added.
      compute_dtype: The floating dtype of the module's arithmetic, such as ``jnp.bfloat16``; that of its
        parameters if not given. Parameters, their gradients and updates, and what is computed
        from the outputs (losses, metrics, their sums) stay in float32; matrix products
        accumulate in float32 where the hardware does.

    Raises:
      TypeError: If `module` is neither of the two, or `compute_dtype` is not floating.
      ValueError: If the module has state other than its parameters, such as batch statistics.

    >>> model = from_flax(nn.Dense(3), sample_input=jnp.zeros((1, 5)))
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'bias': (3,), 'kernel': (5, 3)}
    """
    if "loss" in metrics:
        raise ValueError(f"the metric 'loss' is the model's loss; got {sorted(metrics)=}. Use another name.")
    init, apply = _linen(module, sample_input) if isinstance(module, nn.Module) else _nnx(module)
    if compute_dtype is not None:
        apply = _computing_in(compute_dtype, apply)

    def example_losses(params: PyTree, batch: Batch, key: jax.Array) -> Any:
        return loss(apply(params, inputs(batch), key), batch)

    def example_metrics(params: PyTree, batch: Batch) -> dict[str, Any]:
        outputs = apply(params, inputs(batch), None)
        return {name: fn(outputs, batch) for name, fn in {"loss": loss, **metrics}.items()}

    return Model(init, example_losses, example_metrics)


def _computing_in(dtype: Any, apply: Apply) -> Apply:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"a module computes in a floating dtype; got compute_dtype={dtype!r}. Give jnp.bfloat16.")

    def cast(tree: PyTree, to: Any) -> PyTree:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)

    return lambda params, x, key: cast(apply(cast(params, dtype), cast(x, dtype), key), jnp.float32)


def _linen(module: nn.Module, sample_input: Any) -> tuple[Init, Apply]:
    if sample_input is None:
        raise ValueError(
            "a Linen module needs a sample_input, from which its parameters get their shapes; got "
            f"{sample_input=}. Pass one batched input, or its jax.ShapeDtypeStruct."
        )

    def variables(key: jax.Array) -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample_input)
        return module.init(key, zeros, **_mode(module, training=False))

    collections = sorted(set(jax.eval_shape(variables, jax.random.key(0))) - {"params"})
    if collections:
        raise ValueError(
            f"a module's only variables must be its parameters; got {collections=}. Non-trainable state is not "
            "supported yet: use GroupNorm or LayerNorm in place of BatchNorm."
        )

    def init(key: jax.Array) -> PyTree:
        return variables(key).get("params", {})

    def apply(params: PyTree, x: Any, key: jax.Array | None) -> Any:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, rngs=rngs, **_mode(module, training=key is not None))

    return init, apply


def _nnx(module: Any) -> tuple[Init, Apply]:
    built = _built(module)
    _refuse_state(built)
    graphs = {
        training: nnx.graphdef(nnx.with_attributes(built, deterministic=not training, raise_if_not_found=False))
        for training in (True, False)
    }
    evaluation_rngs = nnx.to_pure_dict(nnx.state(built, nnx.RngState))
    takes_rngs = "rngs" in inspect.signature(built.__call__).parameters
    modes = {training: _mode(built, training) for training in graphs}

    def init(key: jax.Array) -> PyTree:
        return nnx.to_pure_dict(nnx.state(module(rngs=nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, x: Any, key: jax.Array | None) -> Any:
        training = key is not None
        rngs = nnx.Rngs(key) if training else None
        streams = _reseeded(evaluation_rngs, rngs) if rngs else evaluation_rngs
        call = nnx.merge(graphs[training], params, streams)
        return call(x, **modes[training], **({"rngs": rngs} if takes_rngs else {}))

    return init, apply


def _built(module: Any) -> Any:
    """Builds an NNX module once, for its structure; its parameters are dropped."""
    if isinstance(module, nnx.Module) or not callable(module) or _is_linen_class(module):
        raise TypeError(
            "a model comes from a flax.linen.Module instance or a function rngs -> nnx.Module; got "
            f"{type(module)=}. In NNX pass the class or functools.partial(MLP, ...), not a built module, so that "
            "init(key) is a pure function of the key; in Linen pass an instance, not the class."
        )
    # Not under `eval_shape`: there a plain array attribute becomes a tracer inside the
    # graph's static part, and is neither seen by `_refuse_state` nor valid later.
    with jax.ensure_compile_time_eval():
        built = module(rngs=nnx.Rngs(0))
    if not isinstance(built, nnx.Module):
        raise TypeError(
            f"the function must return an nnx.Module; got {type(built)=}. Pass a function rngs -> nnx.Module."
        )
    return built


def _is_linen_class(module: Any) -> bool:
    return inspect.isclass(module) and issubclass(module, nn.Module)


def _refuse_state(module: nnx.Module) -> None:
    state = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
    collections = {".".join(map(str, path)): type(leaf).__name__ for path, leaf in nnx.to_flat_state(state)}
    if collections:
        raise ValueError(
            f"a module's only variables must be nnx.Param; got {collections=}. Non-trainable state is not "
            "supported yet: use GroupNorm or LayerNorm in place of BatchNorm, and compute constant arrays in __call__."
        )


def _reseeded(streams: PyTree, rngs: nnx.Rngs) -> PyTree:
    """Gives every stream in the module its own new key, and sets its counter to zero."""

    def fresh(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.split(rngs(), leaf.shape) if is_key else jnp.zeros_like(leaf)

    return jax.tree.map(fresh, streams)


def _mode(module: Any, training: bool) -> dict[str, Any]:
    """Selects the keywords by which the module's ``__call__`` is told whether it is training."""
    flags = {"train": training, "training": training, "deterministic": not training}
    names = inspect.signature(module.__call__).parameters
    return {name: flag for name, flag in flags.items() if name in names}
