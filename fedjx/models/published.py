"""The networks of published federated experiments, each with exactly the number of parameters that is published.

They begin as TensorFlow Federated has them begin, with Keras's initializers: kernels Glorot uniform and biases zero,
unless something else is said. Logistic regression is `fedjx.models.linear`; the factorisation of MovieLens is
`fedjx.models.matrix_factorization`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from flax import nnx

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import DType
from fedjx.models import metrics
from fedjx.models.layers import GLOROT_UNIFORM, Classifier, Layer, Metrics, flatten, max_pool, of_arrays
from fedjx.models.losses import cross_entropy, sigmoid_cross_entropy, softmax_cross_entropy
from fedjx.models.mobilenet import mobilenet
from fedjx.models.model import Model
from fedjx.models.networks import autoencoder, cnn, linear, lstm, mlp
from fedjx.models.residual import resnet
from fedjx.models.transformer import transformer

# --- images ---------------------------------------------------------------------------------------


def fedavg_2nn(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (28, 28, 1),
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the 2NN of McMahan et al. (arXiv 1602.05629): two layers of 200, 199,210 parameters for ten classes.

    Args:
      num_classes: As in `mlp`, as the other arguments.
      input_shape: As in `mlp`.
      scale: As in `mlp`; 1/255 for bytes.
      compute_dtype: As in `from_flax`.

    >>> params = jax.eval_shape(fedavg_2nn(62).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    209662
    """
    return mlp(
        num_classes,
        input_shape=input_shape,
        hidden=(200, 200),
        scale=scale,
        kernel_init=GLOROT_UNIFORM,
        compute_dtype=compute_dtype,
    )


def fedavg_cnn(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (28, 28, 1),
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the CNN of McMahan et al. (arXiv 1602.05629), 5 x 5 kernels: 1,663,370 parameters for ten classes.

    Args:
      num_classes: As in `cnn`, as the other arguments.
      input_shape: As in `cnn`.
      scale: As in `cnn`; 1/255 for bytes.
      compute_dtype: As in `from_flax`.
    """
    return cnn(
        num_classes,
        input_shape=input_shape,
        channels=(32, 64),
        kernel_size=5,
        hidden=(512,),
        scale=scale,
        kernel_init=GLOROT_UNIFORM,
        compute_dtype=compute_dtype,
    )


def emnist_cnn(
    num_classes: int = 62,
    *,
    input_shape: Sequence[int] = (28, 28, 1),
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the network of Reddi et al. (arXiv 2003.00295) for EMNIST's characters: 1,206,590 parameters.

    Two 3 x 3 convolutions without padding, of 32 and 64 channels, 2 x 2 maxima, dropout of 1/4, 128 units, dropout of
    1/2. For ten classes it has 1,199,882 parameters.

    Args:
      num_classes: Number of labels; ``batch["y"]`` is int ``[B]`` in ``0 .. num_classes - 1``.
      input_shape: ``(height, width, channels)`` of one image; ``batch["x"]`` is ``[B, *input_shape]``.
      scale: Factor on ``batch["x"]`` after its cast to float32; 1/255 for bytes.
      compute_dtype: As in `from_flax`.

    Raises:
      ValueError: If the images are smaller than 6 x 6.
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 6:
        raise ValueError(
            f"images must be (height, width, channels) with sides of at least 6; got {input_shape=}. "
            "Enlarge them, or add the channels axis."
        )
    height, width, depth = input_shape
    num_features = 64 * ((height - 4) // 2) * ((width - 4) // 2)

    def network(rngs: nnx.Rngs) -> nnx.Module:
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), padding="VALID", kernel_init=GLOROT_UNIFORM, rngs=rngs)
        layers: list[Layer] = [conv(depth, 32), nnx.relu, conv(32, 64), nnx.relu, max_pool]
        layers += [nnx.Dropout(0.25, rngs=rngs), flatten]
        layers += [nnx.Linear(num_features, 128, kernel_init=GLOROT_UNIFORM, rngs=rngs), nnx.relu]
        layers += [nnx.Dropout(0.5, rngs=rngs)]
        return Classifier(layers, 128, num_classes, head_init=GLOROT_UNIFORM, rngs=rngs)

    return of_arrays(network, num_classes, input_shape, scale=scale, loss=cross_entropy, compute_dtype=compute_dtype)


def cifar_cnn(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the "simple CNN" of pfl-research (arXiv 2404.06430): 1,626,442 parameters for ten classes.

    It is `emnist_cnn` of larger images, which are standardised beforehand.

    Args:
      num_classes: As in `emnist_cnn`, as the other arguments.
      input_shape: As in `emnist_cnn`.
      scale: As in `emnist_cnn`.
      compute_dtype: As in `from_flax`.
    """
    return emnist_cnn(num_classes, input_shape=input_shape, scale=scale, compute_dtype=compute_dtype)


def emnist_autoencoder(*, compute_dtype: DType = None) -> Model:
    """Assembles the autoencoder of Reddi et al. (arXiv 2003.00295) of 784 pixels: 2,837,314 parameters.

    Its ``x`` and ``y`` are those of `fedjx.data.published.emnist_autoencoder`, and published is ``mean_squared_error``.

    Args:
      compute_dtype: As in `from_flax`.
    """
    return autoencoder(784, hidden=(1000, 500, 250, 30), compute_dtype=compute_dtype)


def resnet18(
    num_classes: int = 100,
    *,
    input_shape: Sequence[int] = (24, 24, 3),
    stage_stride: int = 1,
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the ResNet-18 of Reddi et al. (arXiv 2003.00295) for CIFAR-100: 11,227,812 parameters.

    For ten classes it has 11,181,642. Published results are from a network none of whose stages makes images smaller:
    a crop of 24 x 24 is 6 x 6 from the first maximum to the end. There, kernels have an L2 term of .0001 in the loss;
    here that is the optimizer's affair, as `optax.add_decayed_weights` of .0002. Kernels begin He normal.

    Args:
      num_classes: As in `resnet`, as the other arguments.
      input_shape: As in `resnet`.
      stage_stride: 1 as in published federated experiments, or 2 as in He et al.; both have as many parameters.
      scale: As in `resnet`.
      compute_dtype: As in `from_flax`.
    """
    return resnet(
        num_classes,
        input_shape=input_shape,
        channels=(64, 128, 256, 512),
        num_blocks=(2, 2, 2, 2),
        stage_stride=stage_stride,
        num_groups=32,
        scale=scale,
        compute_dtype=compute_dtype,
    )


def mobilenet_v2(
    num_classes: int = 2028,
    *,
    input_shape: Sequence[int] = (128, 128, 3),
    scale: float = 1.0,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the MobileNetV2 of Hsu et al. (arXiv 2003.08082) for photographs: 4,821,740 parameters for Landmarks.

    For Landmarks-23k, of 203 classes, it has 2,483,915, and 3,764,915 for iNaturalist's 1,203.

    Args:
      num_classes: As in `mobilenet`, as the other arguments.
      input_shape: As in `mobilenet`.
      scale: As in `mobilenet`.
      compute_dtype: As in `from_flax`.
    """
    return mobilenet(num_classes, input_shape=input_shape, num_groups=8, scale=scale, compute_dtype=compute_dtype)


# --- text -----------------------------------------------------------------------------------------


def shakespeare_lstm(num_tokens: int = 90, *, compute_dtype: DType = None) -> Model:
    """Assembles the character model of McMahan et al. (1602.05629) and Reddi et al. (2003.00295): 820,522 parameters.

    Args:
      num_tokens: Number of tokens: 86 characters, padding, which is 0 and counts nowhere, unknown, begin and end.
      compute_dtype: As in `from_flax`.
    """
    return lstm(num_tokens, embedding=8, hidden=(256, 256), ignored=0, compute_dtype=compute_dtype)


def stack_overflow_lstm(
    num_tokens: int = 10_004,
    *,
    out_of_vocabulary: int | None = None,
    end_of_sentence: int | None = None,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the next-word model of Reddi et al. (arXiv 2003.00295): 4,050,748 parameters.

    Loss and metrics are over words that are no padding, 0. ``accuracy`` counts all of them;
    ``accuracy_in_vocabulary`` leaves out unknown words; ``accuracy_without_special_tokens``, which is the published
    one, ends of sentences as well. No target is the beginning of a sentence.

    Args:
      num_tokens: Number of tokens K: 10,000 words, padding, unknown, begin and end.
      out_of_vocabulary: The token of unknown words; ``K - 3`` if not given, as by TFF's convention.
      end_of_sentence: The token that ends a sentence; ``K - 1`` if not given. What a convention has, says
        `fedjx.data.published.token_ids`.
      compute_dtype: As in `from_flax`.

    Raises:
      ValueError: If a special token is none of ``1 .. K - 1``.
    """
    return lstm(
        num_tokens,
        embedding=96,
        hidden=(670,),
        projection=96,
        ignored=0,
        metrics=word_metrics(num_tokens, out_of_vocabulary, end_of_sentence),
        compute_dtype=compute_dtype,
    )


def stack_overflow_transformer(
    num_tokens: int = 10_004,
    *,
    out_of_vocabulary: int | None = None,
    end_of_sentence: int | None = None,
    compute_dtype: DType = None,
) -> Model:
    """Assembles the next-word Transformer of pfl-research (2404.06430): 1,962,912 parameters, 96 of each token.

    Three layers of width 96 with 8 heads and 1,536 units, after Wang et al., "A Field Guide to Federated
    Optimization" (arXiv 2107.06917). It begins as in PyTorch, see `transformer`.

    Args:
      num_tokens: As in `stack_overflow_lstm`, as the other arguments and the metrics.
      out_of_vocabulary: As in `stack_overflow_lstm`.
      end_of_sentence: As in `stack_overflow_lstm`.
      compute_dtype: As in `from_flax`.
    """
    return transformer(
        num_tokens,
        width=96,
        num_heads=8,
        feed_forward=1536,
        num_layers=3,
        dropout=0.1,
        ignored=0,
        metrics=word_metrics(num_tokens, out_of_vocabulary, end_of_sentence),
        compute_dtype=compute_dtype,
    )


def word_metrics(num_tokens: int, out_of_vocabulary: int | None = None, end_of_sentence: int | None = None) -> Metrics:
    """Makes the metrics of a next-word model, see `stack_overflow_lstm`, for `from_flax`.

    Args:
      num_tokens: Number of tokens K; 0 is padding.
      out_of_vocabulary: The token of unknown words; ``K - 3`` if not given.
      end_of_sentence: The token that ends a sentence; ``K - 1`` if not given.

    >>> sorted(word_metrics(10_004))
    ['accuracy', 'accuracy_in_vocabulary', 'accuracy_without_special_tokens', 'perplexity']
    """
    unknown = num_tokens - 3 if out_of_vocabulary is None else out_of_vocabulary
    end = num_tokens - 1 if end_of_sentence is None else end_of_sentence
    check_integer(f"[1, {num_tokens - 1}]", out_of_vocabulary=unknown, end_of_sentence=end)
    return {
        "accuracy": metrics.accuracy_without(0),
        "accuracy_in_vocabulary": metrics.accuracy_without(0, unknown),
        "accuracy_without_special_tokens": metrics.accuracy_without(0, unknown, end),
        "perplexity": metrics.perplexity(softmax_cross_entropy(ignored=0)),
    }


def stack_overflow_tagger(num_words: int = 10_000, num_tags: int = 500, *, compute_dtype: DType = None) -> Model:
    """Assembles the logistic regressions of Reddi et al. (2003.00295), one for each tag: 5,000,500 parameters.

    Its ``x``, ``[B, num_words]``, and ``y``, ``[B, num_tags]``, are those of `fedjx.data.published.bag_of_words`. The
    loss of an example is the mean over its tags. There, losses of a batch are added, not averaged: a published rate of
    100 with batches of 100 is 10,000 here.

    Args:
      num_words: Number of known words.
      num_tags: Number of tags.
      compute_dtype: As in `from_flax`.

    Returns:
      A model with the metrics ``recall_at_5``, the published one, and ``precision``, over all tags of all examples.
    """
    return linear(
        num_tags,
        input_shape=(num_words,),
        loss=sigmoid_cross_entropy,
        metrics={"recall_at_5": metrics.label_recall(5), "precision": metrics.label_precision},
        kernel_init=GLOROT_UNIFORM,
        compute_dtype=compute_dtype,
    )
