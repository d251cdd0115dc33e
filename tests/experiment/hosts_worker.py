"""A run on as many processes as it is started in: ``python -m tests.experiment.hosts_worker PATH NUM_ROUNDS [TOLD]``.

The first process is told to end when the row of round TOLD is written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import jax
import optax

import fedjx
from fedjx.algorithms import fed_avg
from fedjx.data import digits, uniform_sampler
from fedjx.experiment import Best, Result, Sink, central_evaluation, client_evaluation, run, target
from fedjx.experiment.rows import Row
from fedjx.models import linear

SECONDS_TO_LIVE = 220  # whatever becomes of the tests, no process stays behind


def trained(path: Path, num_rounds: int, told: int = -1) -> Result:
    def write(row: Row) -> None:
        if row["round"] == told:
            os.kill(os.getpid(), signal.SIGTERM)

    train, test = digits(num_clients=10)
    model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    evaluate = {"test": central_evaluation(model, test), "clients": client_evaluation(model, train, lanes=1)}
    return run(
        fed_avg(model, client_optimizer=optax.sgd(0.1), server_optimizer=optax.adam(0.03)),
        train,
        uniform_sampler(10, 6, seed=0),
        batch_size=20,
        num_rounds=num_rounds,
        key=jax.random.key(0),
        path=path,
        start="auto",
        lanes=1,
        evaluate=evaluate,
        evaluate_every=2,
        checkpoint_every=2,
        best=Best("test/accuracy"),
        stop=[target("test/accuracy", 0.999)],
        sinks=[Sink(write)],
        progress=False,
    )


if __name__ == "__main__":
    import faulthandler

    faulthandler.dump_traceback_later(SECONDS_TO_LIVE, exit=True)
    jax.config.update("jax_num_cpu_devices", 2)
    assert fedjx.initialize_distributed()
    print(trained(Path(sys.argv[1]), *map(int, sys.argv[2:])).reason)
