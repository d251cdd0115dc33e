"""A run with all that a run may have to remember: client states, an adaptive clip, noise, Poisson cohorts."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import optax

from fedjx.algorithms.scaffold import scaffold
from fedjx.data import digits, poisson_sampler
from fedjx.experiment import Best, Result, central_evaluation, run
from fedjx.models import linear
from fedjx.privacy import dp_mean_adaptive

NUM_CLIENTS, PARTICIPATION = 20, 0.2


def trained(path: Path | None, num_rounds: int, **more) -> Result:
    train, test = digits(num_clients=NUM_CLIENTS)
    model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    private = dp_mean_adaptive(noise_multiplier=1.0, expected_clients=NUM_CLIENTS * PARTICIPATION, count_stddev=1.0)
    sampler = poisson_sampler(NUM_CLIENTS, probability=PARTICIPATION, seed=0)
    algorithm = scaffold(
        model,
        num_clients=NUM_CLIENTS,
        participation=PARTICIPATION,
        client_optimizer=optax.sgd(0.1),
        server_optimizer=optax.adam(0.01),
        aggregator=private,
    )
    return run(
        algorithm,
        train,
        sampler,
        batch_size=20,
        num_rounds=num_rounds,
        key=jax.random.key(0),
        path=path,
        lanes=1,
        evaluate={"test": central_evaluation(model, test)},
        evaluate_every=4,
        checkpoint_every=3,
        best=Best("test/accuracy"),
        progress=False,
        **more,
    )


if __name__ == "__main__":
    print(trained(Path(sys.argv[1]), int(sys.argv[2]), start="auto").reason)
