"""Adapters from Flax Linen and Flax NNX modules to `Model`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.types import ArrayType
from fedjx.core.language.values import MASK
from fedjx.models.inputs import AnySpec, InputSpec, check_batch
from fedjx.models.losses import Loss, cross_entropy
from fedjx.models.model import Batch, LossWithStats, Metric, Model, PerExample, Variables

# What an adapter gives: ``init(key) -> params`` and ``apply(params, x, key, mask) -> (outputs, batch_stats)``, in
# training mode with a key and in evaluation mode with None. The statistics are None if they do not change.
Init = Callable[[jax.Array], PyTree]
Apply = Callable[[PyTree, PyTree, jax.Array | None, jax.Array | None], tuple[PyTree, PyTree]]


def feature_x(batch: Batch) -> jax.Array:
    """Selects the feature ``"x"`` of a batch, as it is."""
    if "x" not in batch:
        got = sorted(batch.keys() - {MASK})
        raise ValueError(f"the model takes the feature 'x'; got {got}. Rename one, or say from_flax(inputs=...).")
    return batch["x"]


def from_flax(
    module: nn.Module | Callable[..., nnx.Module],
    *,
    sample_input: PyTree = None,
    inputs: Callable[[Batch], PyTree] = feature_x,
    loss: Callable[[PyTree, Batch], PerExample] = cross_entropy,
    metrics: Mapping[str, Callable[[PyTree, Batch], Metric]] | None = None,
    input_spec: AnySpec | None = None,
    compute_dtype: DType = None,
    frozen_batch_stats: PyTree = None,
) -> Model:
    """Adapts a Flax module to a `Model`.

    Parameters are nested dicts of arrays. Dropout is on in `Model.loss`, drawn from its key,
    and off in `Model.metrics`; a ``__call__`` that takes ``train``, ``training`` or
    ``deterministic`` (in NNX also ``rngs``) is given it.

    A module with batch statistics (`nnx.BatchNorm`, `nn.BatchNorm`) makes a model of `Variables`. It is trained with
    the statistics of each batch and evaluated with the running ones. Padding must not count in them: ``__call__``
    takes ``mask``, bool ``[B]``, and hands it to every such layer as ``norm(x, mask=mask[:, None])``, with as many
    axes as ``x``.

    Args:
      module: A Flax Linen module, or a function ``rngs -> nnx.Module`` that is called as
        ``module(rngs=...)``: an NNX class, or ``functools.partial(MLP, ...)`` of one.
      sample_input: For Linen: what `inputs` returns for some batch, ``[B, ...]``, or its
        ``jax.ShapeDtypeStruct``. Only shape and dtype matter.
      inputs: Selects, casts and scales the module's argument, inside the jitted step.
      loss: ``(outputs, batch) -> [B]`` or ``Ratio([B], [B])``: one of `fedjx.models.losses`, or a function of yours.
      metrics: By name, ``(outputs, batch) -> [B]``, ``Ratio([B], [B])`` or `Sums` of ``[B, ...]``, as in
        `fedjx.models.metrics`; those that fit the loss if not given, and none if it is a function of yours. The
        metric ``"loss"`` is always added.
      input_spec: As `Model.input_spec`. If it is not given, the labels are those that go with the loss and the outputs,
        and the rest is whatever the module can be applied to.
      compute_dtype: The floating dtype of the module's arithmetic, such as ``jnp.bfloat16``; that of its
        parameters if not given. Parameters, their gradients and updates, and what is computed
        from the outputs (losses, metrics, their sums) stay in float32; matrix products
        accumulate in float32 where the hardware does. Not with batch statistics: give the layers their dtype.
      frozen_batch_stats: Batch statistics to be kept as they are, `Variables.batch_stats` of pretrained variables. They
        are constants of the model, also in training, and its parameters are the trained ones alone, as of any other
        module. A Linen module then trains as it is evaluated, without dropout.

    Raises:
      TypeError: If `module` is neither of the two, or `compute_dtype` is not floating.
      ValueError: If the module has state other than its parameters and batch statistics, or has the latter and
        does not take ``mask``.

    >>> model = from_flax(nn.Dense(3), sample_input=jnp.zeros((1, 5)))
    >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
    {'bias': (3,), 'kernel': (5, 3)}
    """
    if metrics is None:
        metrics = loss.metrics if isinstance(loss, Loss) else {}
    if "loss" in metrics:
        raise ValueError(f"the metric 'loss' is the model's loss; got {sorted(metrics)=}. Use another name.")
    frozen = frozen_batch_stats
    init, apply = _linen(module, sample_input, frozen) if isinstance(module, nn.Module) else _nnx(module, frozen)
    if compute_dtype is not None:
        apply = _computing_in(compute_dtype, apply)

    def outputs_of(params: PyTree, batch: Batch, key: jax.Array | None = None) -> tuple[PyTree, PyTree]:
        if isinstance(input_spec, Mapping):
            check_batch({name: feature for name, feature in input_spec.items() if name in batch}, batch)
        return apply(params, inputs(batch), key, batch.get(MASK))

    def example_losses(params: PyTree, batch: Batch, key: jax.Array) -> PerExample | LossWithStats:
        outputs, batch_stats = outputs_of(params, batch, key)
        values = loss(outputs, batch)
        return values if batch_stats is None else LossWithStats(values, batch_stats)

    def example_metrics(params: PyTree, batch: Batch) -> dict[str, Metric]:
        outputs, _ = outputs_of(params, batch)
        return {name: fn(outputs, batch) for name, fn in {"loss": loss, **metrics}.items()}

    def apply_alone(params: PyTree, batch: Batch) -> PyTree:
        return outputs_of(params, batch)[0]

    spec = functools.partial(_derived_spec, init, apply_alone, loss)
    if input_spec is not None:
        given = input_spec  # a function, so that a model can be hashed
        spec = given if callable(given) else lambda schema: given
    return Model(init, example_losses, example_metrics, apply_alone, spec)


def _derived_spec(
    init: Init, apply: Callable[[PyTree, Batch], PyTree], loss: object, schema: Mapping[str, ArrayType]
) -> InputSpec:
    """Finds the labels that go with a loss and with the outputs for examples of some types."""
    if not isinstance(loss, Loss):
        return {}
    batch = {
        name: jax.ShapeDtypeStruct((1, *x.shape), jax.dtypes.canonicalize_dtype(x.dtype)) for name, x in schema.items()
    }
    try:
        outputs = jax.eval_shape(lambda key, batch: apply(init(key), batch), jax.random.key(0), batch)
    except (TypeError, ValueError, KeyError) as error:
        shown = ", ".join(f"{name}: {x.dtype}{list(x.shape)}" for name, x in schema.items())
        raise type(error)(
            f"the model must take the features of the data; got examples of {shown}, for which its network says: "
            f"{error} Convert the data with preprocess, or select and reshape in from_flax(inputs=...)."
        ) from error
    return {"y": loss.labels(outputs.shape[1:])} if hasattr(outputs, "shape") else {}


def _computing_in(dtype: DType, apply: Apply) -> Apply:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"a module computes in a floating dtype; got compute_dtype={dtype!r}. Give jnp.bfloat16.")

    def cast(tree: PyTree, to: DType) -> PyTree:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)

    def computing(params: PyTree, x: PyTree, key: jax.Array | None, mask: jax.Array | None) -> tuple[PyTree, PyTree]:
        if isinstance(params, Variables):
            raise ValueError(
                f"running statistics need their precision; got compute_dtype={dtype!r} for a module with batch "
                "statistics. Give its layers a dtype instead."
            )
        outputs, _ = apply(cast(params, dtype), cast(x, dtype), key, mask)
        return cast(outputs, jnp.float32), None

    return computing


def _linen(module: nn.Module, sample_input: PyTree, frozen: PyTree) -> tuple[Init, Apply]:
    if sample_input is None:
        raise ValueError(
            "a Linen module needs a sample_input, from which its parameters get their shapes; got "
            f"{sample_input=}. Pass one batched input, or its jax.ShapeDtypeStruct."
        )
    constant = {} if frozen is None else {"batch_stats": frozen}

    def variables(key: jax.Array) -> Mapping[str, PyTree]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample_input)
        mask = _masked(zeros, None) if _takes(module, "mask", required=True) else {}
        return module.init(key, zeros, **_mode(module, training=False), **mask)

    collections = set(jax.eval_shape(variables, jax.random.key(0))) - {"params"}
    has_stats = "batch_stats" in collections
    carried = has_stats and frozen is None
    takes_mask = has_stats and _takes(module, "mask")
    _check_state(sorted(collections - {"batch_stats"}), carried and not takes_mask)

    def init(key: jax.Array) -> PyTree:
        made = variables(key)
        params = made.get("params", {})
        return Variables(params, made["batch_stats"]) if carried else params

    def apply(params: PyTree, x: PyTree, key: jax.Array | None, mask: jax.Array | None) -> tuple[PyTree, PyTree]:
        rngs = None if key is None else {"dropout": key}
        training = key is not None and carried == has_stats
        given = _mode(module, training) | (_masked(x, mask) if takes_mask else {})
        if not carried:
            return module.apply({"params": params, **constant}, x, rngs=rngs, **given), None
        mutable = ["batch_stats"] if training else []
        outputs, changed = module.apply(params._asdict(), x, rngs=rngs, mutable=mutable, **given)
        return outputs, changed.get("batch_stats")

    return init, apply


def _nnx(module: Callable[..., nnx.Module], frozen: PyTree) -> tuple[Init, Apply]:
    built = _built(module)
    has_stats = bool(nnx.to_flat_state(nnx.state(built, nnx.BatchStat)))
    carried = has_stats and frozen is None
    takes_rngs, takes_mask = _takes(built, "rngs"), has_stats and _takes(built, "mask")
    _check_state(_other_state(built), carried and not takes_mask)
    graphs = {
        training: nnx.graphdef(
            nnx.with_attributes(
                built,
                deterministic=not training,
                use_running_average=not (training and carried),
                raise_if_not_found=False,
            )
        )
        for training in (True, False)
    }
    evaluation_rngs = nnx.to_pure_dict(nnx.state(built, nnx.RngState))
    modes = {training: _mode(built, training) for training in graphs}

    def init(key: jax.Array) -> PyTree:
        made = module(rngs=nnx.Rngs(key))
        params = nnx.to_pure_dict(nnx.state(made, nnx.Param))
        return Variables(params, nnx.to_pure_dict(nnx.state(made, nnx.BatchStat))) if carried else params

    def apply(params: PyTree, x: PyTree, key: jax.Array | None, mask: jax.Array | None) -> tuple[PyTree, PyTree]:
        training = key is not None
        rngs = nnx.Rngs(key) if training else None
        streams = _reseeded(evaluation_rngs, rngs) if rngs else evaluation_rngs
        states = (*params, streams) if carried else (params, streams, *([frozen] if has_stats else []))
        call = nnx.merge(graphs[training], *states)
        given = {"rngs": rngs} if takes_rngs else {}
        outputs = call(x, **modes[training], **given, **(_masked(x, mask) if takes_mask else {}))
        return outputs, nnx.to_pure_dict(nnx.state(call, nnx.BatchStat)) if carried and training else None

    return init, apply


def _built(module: Callable[..., nnx.Module]) -> nnx.Module:
    """Builds an NNX module once, for its structure; it may have types in the place of parameters."""
    if isinstance(module, nnx.Module) or not callable(module) or _is_linen_class(module):
        raise TypeError(
            "a model comes from a flax.linen.Module instance or a function rngs -> nnx.Module; got "
            f"{type(module)=}. In NNX pass the class or functools.partial(MLP, ...), not a built module, so that "
            "init(key) is a pure function of the key; in Linen pass an instance, not the class."
        )
    try:
        built = _built_abstractly(module)
    except Exception:  # whatever a constructor does that cannot be traced; what is wrong with it, it says below
        # A plain array that is kept outside of variables would be a tracer, which nobody could use later.
        with jax.ensure_compile_time_eval():
            built = module(rngs=nnx.Rngs(0))
    if not isinstance(built, nnx.Module):
        raise TypeError(
            f"the function must return an nnx.Module; got {type(built)=}. Pass a function rngs -> nnx.Module."
        )
    return built


def _built_abstractly(module: Callable[..., nnx.Module]) -> nnx.Module:
    """Builds the structure of an NNX module, with types for parameters: each shape of those would be a program."""
    found: list[nnx.GraphDef] = []

    def structure() -> PyTree:
        graph, state = nnx.split(module(rngs=nnx.Rngs(0)))
        found.append(graph)
        return state

    def random_state() -> PyTree:
        return nnx.state(module(rngs=nnx.Rngs(0)), nnx.RngState)

    with jax.checking_leaks():
        state = jax.eval_shape(structure)
    built = nnx.merge(*found, state)
    if jax.tree.leaves(nnx.state(built, nnx.RngState)):
        nnx.update(built, jax.jit(random_state).lower().compile()())  # not a call, which would be part of a trace
    return built


def _is_linen_class(module: object) -> bool:
    return inspect.isclass(module) and issubclass(module, nn.Module)


def _other_state(module: nnx.Module) -> dict[str, str]:
    state = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.BatchStat)))
    return {".".join(map(str, path)): type(leaf).__name__ for path, leaf in nnx.to_flat_state(state)}


def _check_state(collections: Collection[str], lacks_mask: bool) -> None:
    """Refuses state that nobody would carry, and batch statistics in which padding would count."""
    if collections:
        raise ValueError(
            f"a module's only variables must be its parameters and batch statistics; got {collections=}. "
            "Compute constant arrays in __call__."
        )
    if lacks_mask:
        raise ValueError(
            "a module with batch statistics must leave padding out of them; got a __call__ that takes no mask. "
            "Take mask, bool [B], and call norm(x, mask=mask[:, None]), or use GroupNorm or LayerNorm."
        )


def _takes(module: nn.Module | nnx.Module, name: str, *, required: bool = False) -> bool:
    parameter = inspect.signature(module.__call__).parameters.get(name)
    return parameter is not None and not (required and parameter.default is not inspect.Parameter.empty)


def _masked(x: PyTree, mask: jax.Array | None) -> dict[str, Any]:
    """Returns the keyword that tells a module which examples are real: all, if nothing is said."""
    return {"mask": jnp.ones(jax.tree.leaves(x)[0].shape[0], bool) if mask is None else mask}


def _reseeded(streams: PyTree, rngs: nnx.Rngs) -> PyTree:
    """Gives every stream in the module its own new key, and sets its counter to zero."""

    def fresh(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.split(rngs(), leaf.shape) if is_key else jnp.zeros_like(leaf)

    return jax.tree.map(fresh, streams)


def _mode(module: nn.Module | nnx.Module, training: bool) -> dict[str, Any]:
    """Selects the keywords by which the module's ``__call__`` is told whether it is training."""
    flags = {"train": training, "training": training, "deterministic": not training}
    return {name: flag for name, flag in flags.items() if _takes(module, name)}
