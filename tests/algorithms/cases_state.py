"""Batch statistics, aggregated and local, and clients that fail."""

import optax

from fedjx.algorithms import fed_avg, fed_bn
from fedjx.training import Failures
from tests.algorithms.case import Case
from tests.algorithms.problems import normed_model

FAILURES = Failures(dropped=0.2, non_finite=0.2, partial=0.4)

CASES = {
    "failing_with_batch_norm": Case(
        fed_avg(
            normed_model(),
            client_optimizer=optax.sgd(0.05, momentum=0.9),
            server_optimizer=optax.sgd(0.7, momentum=0.9),
            num_epochs=2,
            failures=FAILURES,
        )
    ),
    "fed_bn": Case(fed_bn(normed_model(), client_optimizer=optax.sgd(0.05, momentum=0.9))),
}
