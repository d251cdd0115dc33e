"""Residual networks with pre-activation and group normalisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import DType
from fedjx.models.layers import Classifier, Layer, Metrics, Residual, group_norm, mean_pool, of_arrays
from fedjx.models.losses import Loss, cross_entropy
from fedjx.models.model import Model


def resnet(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    channels: Sequence[int] = (64, 128, 256, 512),
    num_blocks: Sequence[int] = (2, 2, 2, 2),
    stage_stride: int = 2,
    num_groups: int = 32,
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    metrics: Metrics = None,
    compute_dtype: DType = None,
) -> Model:
    """Assembles a residual network of images: He et al., "Identity Mappings in Deep Residual Networks" (1603.05027).

    A 7 x 7 convolution and a 3 x 3 maximum, each of stride 2; then stages of blocks, as in their figure 4 (e): twice
    normalisation, ReLU and a 3 x 3 convolution, to which the block's input is added. Where the shape changes, the input
    goes through a 1 x 1 convolution and normalisation. Normalised are groups of channels of one example (Wu and He,
    "Group Normalization", arXiv 1803.08494), so a client has no statistics. Kernels begin He normal, those of the
    head with a deviation of .01.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: ``(height, width, channels)`` of one image; ``batch["x"]`` is ``[B, *input_shape]``.
      channels: Of each stage.
      num_blocks: Of each stage.
      stage_stride: By how much each stage but the first makes height and width smaller.
      num_groups: Of channels that are normalised together; a divisor of all `channels`.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      loss: As in `linear`.
      metrics: As in `from_flax`.
      compute_dtype: As in `from_flax`.

    Raises:
      ValueError: If the channels cannot be divided among the groups, or stages have no number of blocks.

    >>> model = resnet(10, input_shape=(24, 24, 3), channels=(8, 16), num_blocks=(1, 1), num_groups=4)
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    6226
    """
    check_integer("[1, inf)", stage_stride=stage_stride)
    if len(channels) != len(num_blocks) or any(width % num_groups for width in channels):
        raise ValueError(
            "each stage needs a number of blocks and channels that num_groups divides; got "
            f"{channels=}, {num_blocks=} and {num_groups=}. Give as many of both, or fewer groups."
        )

    def network(rngs: nnx.Rngs) -> nnx.Module:
        norm = functools.partial(group_norm, num_groups=num_groups, rngs=rngs)
        conv = functools.partial(nnx.Conv, use_bias=False, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        before = channels[0]
        stem = conv(input_shape[-1], before, (7, 7), strides=(2, 2))
        layers: list[Layer] = [stem, norm(before), nnx.relu, _pool]
        for stage, (width, number) in enumerate(zip(channels, num_blocks, strict=True)):
            for block in range(number):
                stride = stage_stride if stage and not block else 1
                # The stem has normalised what the very first block is given.
                first = [] if stage == block == 0 else [norm(before), nnx.relu]
                layers.append(_block(first, before, width, stride, conv, norm))
                before = width
        layers += [norm(before), nnx.relu, mean_pool]
        return Classifier(layers, before, num_classes, head_init=nnx.initializers.normal(0.01), rngs=rngs)

    return of_arrays(
        network, num_classes, input_shape, scale=scale, loss=loss, metrics=metrics, compute_dtype=compute_dtype
    )


def _block(
    first: list[Layer],
    before: int,
    after: int,
    stride: int,
    conv: Callable[..., nnx.Conv],
    norm: Callable[[int], nnx.GroupNorm],
) -> Residual:
    strides = (stride, stride)
    branch = [
        *first,
        conv(before, after, (3, 3), strides=strides),
        norm(after),
        nnx.relu,
        conv(after, after, (3, 3)),
    ]
    if stride == 1 and before == after:
        return Residual(branch)
    return Residual(branch, [conv(before, after, (1, 1), strides=strides), norm(after)])


def _pool(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
