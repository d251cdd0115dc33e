"""Times private rounds in the setting of TensorFlow Federated's tutorial on differential privacy, beside plain ones.

Its network, 784-200-200-10, its rates, its Poisson samples of 120 of 3,383 writers and its adaptive clip with a noise
multiplier of 1.2, on a synthetic twin of its data: EMNIST's digits have not to be there, and accuracies are of the
twin. Private and plain rounds have the same cohorts, in turns. The last line it prints is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.aggregation_cost import PLAIN, in_turns, show, summary
from benchmarks.measuring import client_mesh, environment, finish, flag_parser, start
from benchmarks.round_time import lanes
from fedjx import privacy
from fedjx.aggregation.weights import uniform
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData, Store, central, poisson_sampler
from fedjx.data.published import synthetic_twin
from fedjx.models import finalize_metrics, mlp
from fedjx.training import local_evaluate

PRIVATE = "DP-FedAvg, adaptive clip"


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--num-clients", type=int, default=3383, help="writers")
    flag("--cohort", type=int, default=120, help="of them in a round, expected")
    flag("--num-rounds", type=int, default=100, help="rounds of training")
    flag("--noise-multiplier", type=float, default=1.2, help="of values and count together")
    flag("--delta", type=float, default=1e-5, help="at which epsilon is meant")
    flag("--lanes", type=lanes, default=4, help="clients that a device trains at the same time, or auto")
    return parser.parse_args(args)


def twin(num_clients: int, seed: int) -> tuple[FederatedData, ...]:
    """Makes up the writers' images, those of training and of the test."""
    with tempfile.TemporaryDirectory() as directory:
        stores = synthetic_twin("emnist_digits", directory, seed=seed, num_clients=num_clients, progress=False)
        return tuple(_images(stores[split]) for split in ("train", "test"))


def _images(store: Store) -> FederatedData:
    read = store.read(store.ids)
    return FederatedData({"x": read["pixels"][..., None], "y": read["label"]}, np.asarray(store.offsets))


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Trains both ways, and reports."""
    mesh, (train, test) = client_mesh(flags.devices), twin(flags.num_clients, flags.seed)
    model = mlp(10, input_shape=(28, 28, 1), hidden=(200, 200), scale=1 / 255)
    sample = poisson_sampler(flags.num_clients, probability=flags.cohort / flags.num_clients, seed=flags.seed)
    private = privacy.dp_mean_adaptive(noise_multiplier=flags.noise_multiplier, expected_clients=flags.cohort)

    def algorithm(**aggregation: Any) -> Any:
        server = optax.sgd(1.0, momentum=0.9)
        return fed_avg(model, client_optimizer=optax.sgd(0.01), server_optimizer=server, **aggregation)

    timed = in_turns(
        {PLAIN: algorithm(client_weight=uniform), PRIVATE: algorithm(aggregator=private)},
        lambda number: Cohort(train, sample(number), batch_size=32, lanes=flags.lanes),
        num_rounds=flags.num_rounds - 1,
        seed=flags.seed,
        mesh=mesh,
    )
    spent, results, examples = privacy.account(private, sample), summary(timed), central(test, batch_size=1000)
    epsilon = {kind: spent.epsilon(flags.num_rounds, flags.delta, kind) for kind in ("pld", "rdp")}
    evaluate = jax.jit(lambda params: finalize_metrics(local_evaluate(model, params, examples))["accuracy"])
    for name, state in timed.states.items():
        results[name]["accuracy"] = float(evaluate(state.params))
    clip = float(np.asarray(timed.states[PRIVATE].aggregator.clip))
    print(show(results))
    print(f"epsilon {epsilon['pld']:.4g} (PLD), {epsilon['rdp']:.4g} (RDP) at delta {flags.delta:g}; clip {clip:.3g}")
    settings = {k: v for k, v in vars(flags).items() if k not in ("output", "devices")}
    about = {"benchmark": "privacy_tutorial", **settings, **environment(mesh)}
    return finish({**about, "epsilon": epsilon, "clip": clip, "results": results}, flags.output)


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
