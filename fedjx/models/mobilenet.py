"""Networks of depthwise and pointwise convolutions with group normalisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from flax import nnx

from fedjx.core.language.names import DType
from fedjx.models.layers import GLOROT_UNIFORM, Classifier, Layer, Metrics, Residual, group_norm, mean_pool, of_arrays
from fedjx.models.losses import Loss, cross_entropy
from fedjx.models.model import Model

# Table 2 of the paper: expansion, channels, number and stride of blocks.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet(
    num_classes: int,
    *,
    input_shape: Sequence[int],
    blocks: Sequence[tuple[int, int, int, int]] = MOBILENET_V2,
    first: int = 32,
    last: int = 1280,
    num_groups: int = 8,
    scale: float = 1.0,
    loss: Loss = cross_entropy,
    metrics: Metrics = None,
    compute_dtype: DType = None,
) -> Model:
    """Assembles MobileNetV2: Sandler et al., "Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381).

    Normalised are groups of channels of one example (Wu and He, "Group Normalization", arXiv 1803.08494), as Hsu et al.
    train it, "Federated Visual Classification with Real-World Data Distribution" (arXiv 2003.08082); with batches
    normalised it has as many parameters. Kernels begin Glorot uniform.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: ``(height, width, channels)`` of one image; ``batch["x"]`` is ``[B, *input_shape]``.
      blocks: Rows of the paper's table 2: how many times as wide a block is inside, its output channels, how many
        such blocks follow each other, and the stride of the first.
      first: Channels of the convolution before the blocks, which has a stride of 2.
      last: Channels of the convolution after them.
      num_groups: Of channels that are normalised together; a divisor of all numbers of channels.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      loss: As in `linear`.
      metrics: As in `from_flax`.
      compute_dtype: As in `from_flax`.

    Raises:
      ValueError: If the channels cannot be divided among the groups.

    >>> model = mobilenet(10, input_shape=(32, 32, 3), blocks=((1, 16, 1, 1), (6, 24, 1, 2)), last=64)
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    9274
    """
    widths = (first, *(channels for _, channels, _, _ in blocks), last)
    if any(width % num_groups for width in widths):
        raise ValueError(
            f"num_groups must divide all channels; got {num_groups=} and {widths}. Normalise fewer groups."
        )

    def network(rngs: nnx.Rngs) -> nnx.Module:
        norm = functools.partial(group_norm, num_groups=num_groups, rngs=rngs)
        conv = functools.partial(nnx.Conv, use_bias=False, kernel_init=GLOROT_UNIFORM, rngs=rngs)
        layers: list[Layer] = [conv(input_shape[-1], first, (3, 3), strides=(2, 2)), norm(first), nnx.relu6]
        before = first
        for expansion, channels, number, stride in blocks:
            for block in range(number):
                layers.append(_block(before, expansion * before, channels, 1 if block else stride, conv, norm))
                before = channels
        layers += [conv(before, last, (1, 1)), norm(last), nnx.relu6, mean_pool]
        return Classifier(layers, last, num_classes, head_init=GLOROT_UNIFORM, rngs=rngs)

    return of_arrays(
        network, num_classes, input_shape, scale=scale, loss=loss, metrics=metrics, compute_dtype=compute_dtype
    )


def _block(
    before: int,
    inside: int,
    after: int,
    stride: int,
    conv: Callable[..., nnx.Conv],
    norm: Callable[[int], nnx.GroupNorm],
) -> nnx.Module:
    widened = [conv(before, inside, (1, 1)), norm(inside), nnx.relu6] if inside != before else []
    branch = [
        *widened,
        conv(inside, inside, (3, 3), strides=(stride, stride), feature_group_count=inside),
        norm(inside),
        nnx.relu6,
        conv(inside, after, (1, 1)),
        norm(after),
    ]
    return Residual(branch) if stride == 1 and before == after else nnx.Sequential(*branch)
