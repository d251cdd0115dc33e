"""Batch statistics, aggregated and local, and clients that fail."""

import optax

from fedjx.algorithms.fed_bn import fed_bn
from fedjx.training.client import local_update
from fedjx.training.compose import compose
from fedjx.training.failures import Failures, with_failures
from tests.algorithms.case import Case
from tests.algorithms.problems import normed_model

FAILURES = Failures(dropped=0.2, non_finite=0.2, partial=0.4)

CASES = {
    "failing_with_batch_norm": Case(
        compose(
            with_failures(
                local_update(normed_model(), optimizer=optax.sgd(0.05, momentum=0.9), num_epochs=2), FAILURES
            ),
            optax.sgd(0.7, momentum=0.9),
            init=normed_model().init,
        )
    ),
    "fed_bn": Case(fed_bn(normed_model(), client_optimizer=optax.sgd(0.05, momentum=0.9))),
}
