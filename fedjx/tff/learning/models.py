"""Models under the names of TensorFlow Federated."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.models.flax_models import from_flax
from fedjx.models.losses import cross_entropy
from fedjx.models.model import Batch, Metric, Model, PerExample
from fedjx.tff.simulation.data import features


def from_keras_model(
    keras_model: PyTree,
    sample_batch: PyTree = None,
    loss: Callable[[PyTree, Batch], PerExample] = cross_entropy,
    *,
    input_spec: PyTree = None,
    metrics: Iterable[Callable[[PyTree, Batch], Metric]] = (),
) -> Model:
    """Makes a model of a Flax module, which takes the place of Keras': `fedjx.models.from_flax`.

    Args:
      keras_model: A Linen module, or a function ``rngs -> nnx.Module``. Its outputs are logits, without a last softmax.
      sample_batch: A batch, a dict with the features ``"x"`` and ``"y"`` or a pair of them, or its shapes and dtypes.
      loss: ``(outputs, batch) -> [B]``.
      input_spec: The same as ``sample_batch``, such as the ``element_spec`` of a data set of batches.
      metrics: Functions ``(outputs, batch) -> [B]``, or as `from_flax` takes them, each under its name.
    """
    spec = sample_batch if input_spec is None else input_spec
    if spec is None:
        raise ValueError("a model needs to know its batches; got no sample_batch and no input_spec. Pass either.")
    x = features(spec)["x"]
    named = {fn.__name__: fn for fn in metrics}
    sample = jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))
    return from_flax(keras_model, sample_input=sample, loss=loss, metrics=named)
