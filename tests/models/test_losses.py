"""Ready losses: their values against formulas, the labels that they take and refuse, and metrics that fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.models import Ratio, finalize_metrics, from_flax, linear, sum_metrics
from fedjx.models.losses import (
    absolute_error,
    cross_entropy,
    hinge,
    huber,
    one_hot_cross_entropy,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    squared_error,
)

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 3)).astype(np.float32)
SCORES = LOGITS[:, 0]
CLASSES = np.array([0, 2, 1, 1, 0, 2], np.int32)
SIGNS = np.array([-1, 1, 1, -1, -1, 1], np.int8)
NUMBERS = RANDOM.normal(size=6).astype(np.float32)
SEVERAL = RANDOM.integers(0, 2, (6, 3)).astype(np.uint8)
WEIGHTS = np.array([1.0, 0.25, 3.0])

log_softmax = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))
of_classes = -log_softmax[np.arange(6), CLASSES]
off = SCORES - NUMBERS
# name: (loss, outputs, labels, expected [6], a metric and its value)
CASES = {
    "classes": (cross_entropy, LOGITS, CLASSES, of_classes, "accuracy", (LOGITS.argmax(1) == CLASSES).mean()),
    "classes of another dtype": (cross_entropy, LOGITS, CLASSES.astype(np.uint8), of_classes, "accuracy", None),
    "bools": (cross_entropy, LOGITS[:, :2], CLASSES > 0, None, "accuracy", None),
    "one-hot": (one_hot_cross_entropy, LOGITS, np.eye(3)[CLASSES], of_classes, "accuracy", None),
    "several labels": (
        sigmoid_cross_entropy,
        LOGITS,
        SEVERAL,
        np.log1p(np.exp(np.where(SEVERAL, -LOGITS, LOGITS))).mean(axis=1),
        "accuracy",
        ((LOGITS > 0) == SEVERAL).mean(),
    ),
    "two classes": (sigmoid_cross_entropy, SCORES[:, None], SEVERAL[:, 0], None, "accuracy", None),
    "signs": (
        hinge,
        SCORES,
        SIGNS,
        np.maximum(1 - SIGNS * SCORES, 0),
        "accuracy",
        ((SCORES > 0) == (SIGNS > 0)).mean(),
    ),
    "signs, one output": (hinge, SCORES[:, None], SIGNS, np.maximum(1 - SIGNS * SCORES, 0), "accuracy", None),
    "squared": (squared_error, SCORES, NUMBERS, off**2, "mean_absolute_error", np.abs(off).mean()),
    "squared, one output": (squared_error, SCORES[:, None], NUMBERS, off**2, "mean_squared_error", (off**2).mean()),
    "absolute": (absolute_error, SCORES, NUMBERS, np.abs(off), "mean_squared_error", (off**2).mean()),
    "whole numbers": (absolute_error, SCORES, CLASSES, np.abs(SCORES - CLASSES), "mean_absolute_error", None),
    "huber": (
        huber(delta=0.5),
        SCORES,
        NUMBERS,
        np.where(np.abs(off) < 0.5, off**2 / 2, 0.5 * (np.abs(off) - 0.25)),
        "mean_absolute_error",
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_metrics(name):
    loss, outputs, labels, expected, metric, value = CASES[name]
    batch, outputs = {"y": jnp.asarray(labels)}, jnp.asarray(outputs)
    _got, gradient = jax.value_and_grad(lambda outputs: loss(outputs, batch).sum())(outputs)
    assert loss(outputs, batch).shape == (6,)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    if expected is not None:
        np.testing.assert_allclose(loss(outputs, batch), expected, rtol=1e-4, atol=1e-6)
    assert metric in loss.metrics
    sums = {name: fn(outputs, batch) for name, fn in loss.metrics.items()}
    found = finalize_metrics(sum_metrics(sums, jnp.ones(6, bool)))[metric]
    assert found.shape == ()
    if value is not None:
        np.testing.assert_allclose(found, value, rtol=1e-5)


def mean(values, mask=np.ones(6, bool)):
    return finalize_metrics(sum_metrics({"loss": values}, jnp.asarray(mask)))["loss"]


def test_class_weights_are_a_weighted_mean_and_an_ignored_label_is_nobody():
    weighted = softmax_cross_entropy(class_weights=WEIGHTS)(LOGITS, {"y": CLASSES})
    np.testing.assert_allclose(mean(weighted), np.average(of_classes, weights=WEIGHTS[CLASSES]), rtol=1e-5)
    some = np.array([True, False, True, True, False, True])
    for label in (-100, 255, 1):
        given = np.where(some, np.where(CLASSES == 1, 0, CLASSES) if label == 1 else CLASSES, label)
        loss = softmax_cross_entropy(ignored=label)
        expected = (-log_softmax[np.arange(6), np.where(some, given, 0)])[some].mean()
        np.testing.assert_allclose(mean(loss(LOGITS, {"y": given})), expected, rtol=1e-5)
        accuracy = sum_metrics({"accuracy": loss.metrics["accuracy"](LOGITS, {"y": given})}, np.ones(6, bool))
        assert accuracy["accuracy"] == Ratio(int((LOGITS.argmax(1) == given)[some].sum()), 4)
        nobody = loss(jnp.asarray(LOGITS), {"y": np.full(6, label)})
        assert np.isnan(mean(nobody))
    both = softmax_cross_entropy(ignored=-100, class_weights=WEIGHTS)(LOGITS, {"y": np.where(some, CLASSES, -100)})
    np.testing.assert_allclose(mean(both), np.average(of_classes[some], weights=WEIGHTS[CLASSES][some]), rtol=1e-5)
    with pytest.raises(ValueError, match="class_weights need one number for each of 3 classes; got 2"):
        softmax_cross_entropy(class_weights=[1.0, 2.0])(LOGITS, {"y": CLASSES})


def test_sequences_are_means_over_positions():
    logits, labels = np.stack([LOGITS, -LOGITS]), np.stack([CLASSES, CLASSES])
    sums = sum_metrics({"loss": cross_entropy(logits, {"y": labels})}, np.ones(2, bool))["loss"]
    backwards = -(-LOGITS - np.log(np.exp(-LOGITS).sum(1, keepdims=True)))[np.arange(6), CLASSES]
    assert sums.denominator == 12
    np.testing.assert_allclose(sums.numerator / 12, np.mean([of_classes, backwards]), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (cross_entropy, -1),
        (cross_entropy, 3),
        (cross_entropy, -100),
        (one_hot_cross_entropy, 2.0),
        (sigmoid_cross_entropy, -1),
        (hinge, 0),
        (softmax_cross_entropy(ignored=-100), -1),
        (softmax_cross_entropy(class_weights=WEIGHTS), 3),
    ],
)
def test_a_label_out_of_range_is_no_number_and_under_the_mask_nothing(loss, wrong):
    """Where nobody could look at the labels, as in a `jit` of one's own, the client is left out and counted."""
    is_classes = "integer" in str(loss.labels((3,))) or len(loss.labels((3,)).shape) == 0
    labels = np.ones(6, np.int32) if is_classes else np.ones((6, 3), np.float32)
    labels[2] = wrong
    values = loss(jnp.asarray(LOGITS), {"y": labels})
    assert np.isnan(mean(values))
    assert np.isfinite(mean(values, np.arange(6) != 2))


@pytest.mark.parametrize(
    ("loss", "outputs", "labels", "message"),
    [
        (
            cross_entropy,
            LOGITS,
            CLASSES.astype(np.float32),
            r"'y' as integers from 0 to 2; got float32.*Cast class labels",
        ),
        (cross_entropy, LOGITS, CLASSES[:, None], r"got int32\[1\] in each example. Drop the last axis"),
        (cross_entropy, LOGITS, np.eye(3)[CLASSES], r"got float64\[3\].*argmax"),
        (cross_entropy, SCORES, CLASSES, r"logits need an axis of classes, \[B, K\]; got \[B\]"),
        (cross_entropy, (LOGITS, LOGITS), CLASSES, r"takes one array of outputs; got \(\(6, 3\), \(6, 3\)\)"),
        (squared_error, SCORES, NUMBERS[:, None], r"'y' as numbers; got float32\[1\] in each example. Drop the last"),
        (squared_error, LOGITS, NUMBERS, r"'y' as numbers \[3\]; got float32 in each example"),
        (one_hot_cross_entropy, LOGITS, CLASSES, r"'y' as numbers \[3\] from 0 to 1; got int32 in each example"),
        (hinge, LOGITS[:, :2], SIGNS, r"'y' as numbers \[2\], -1 or 1; got int8"),
    ],
)
def test_labels_of_another_form_are_refused_with_what_to_do(loss, outputs, labels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        loss(outputs, {"y": labels})


def test_a_models_metrics_fit_its_loss():
    regression = linear(1, input_shape=(2,), loss=squared_error)
    batch = {"x": jnp.ones((4, 2)), "y": jnp.arange(4.0)}
    params = {"head": {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}}
    assert set(regression.metrics(params, batch)) == {"loss", "mean_absolute_error", "mean_squared_error"}
    np.testing.assert_array_equal(regression.apply(params, {"x": batch["x"]}), np.full((4, 1), 2.0))
    own = from_flax(
        lambda rngs: __import__("flax").nnx.Linear(2, 1, rngs=rngs), loss=lambda outputs, batch: outputs[:, 0]
    )
    assert set(jax.eval_shape(own.metrics, jax.eval_shape(own.init, jax.random.key(0)), batch)) == {"loss"}
