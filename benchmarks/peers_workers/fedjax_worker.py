"""FedJAX: its federated averaging with its default back end, which compiles a step and loops over the clients.

Plain networks are in Haiku, as FedJAX's own models are; the others are those of Flax, in a version for FedJAX's JAX. A
short last batch is filled up with the client's first examples, so that parameters differ where there is one.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import fedjax  # pyright: ignore[reportMissingImports]
import haiku as hk  # pyright: ignore[reportMissingImports]
import jax
import numpy as np
from flax import nnx
from protocol import Problem, Weights, conversation, load_problem, num_layers, without_dropout


def model(net: Any, sample: Any) -> fedjax.Model:
    """Builds the network in Haiku, as FedJAX's own models are."""

    def forward(batch: Any) -> Any:
        x = batch["x"]
        for width in net["convs"]:
            x = jax.nn.relu(hk.Conv2D(width, (3, 3), padding="VALID")(x))
        if net["convs"]:
            x = hk.MaxPool((1, 2, 2, 1), (1, 2, 2, 1), "VALID")(x)
            x = dropout(x, net["dropout"][0])
        x = hk.Flatten()(x)
        for width in net["hidden"]:
            x = dropout(jax.nn.relu(hk.Linear(width)(x)), net["dropout"][1])
        return hk.Linear(net["classes"])(x)

    return fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(forward),
        sample_batch=sample,
        train_loss=lambda batch, scores: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], scores),
    )


def dropout(x: Any, rate: float) -> Any:
    """Drops entries, if any are to be dropped."""
    return hk.dropout(hk.next_rng_key(), rate, x) if rate else x


def haiku_start(problem: Problem, net: Any) -> tuple[list[str], Any, Any]:
    """Returns the layers' names, their initial parameters and the gradient of a plain network."""
    built = model(net, {"x": problem.x[:1], "y": problem.y[:1]})
    # Haiku numbers its layers, so that their names are in order; its layouts are the problem's.
    names = sorted(built.init(jax.random.PRNGKey(0)))
    params = {name: {"w": problem.weights[f"w{i}"], "b": problem.weights[f"b{i}"]} for i, name in enumerate(names)}
    assert len(names) == num_layers(net)
    return names, params, fedjax.model_grad(built)


def flax_gradient(net: Any) -> Any:
    """Returns the gradient of a network of Flax: ``(params, batch, key) -> gradient``."""
    if not hasattr(nnx, "List"):
        nnx.List = list  # what modules are kept in since Flax 0.12, and were before
    import flax_net

    def gradient(params: Any, batch: Any, key: Any) -> Any:
        x, y, key = batch["x"], batch["y"], jax.random.wrap_key_data(key)
        return jax.grad(flax_net.masked_loss)(params, x, y, np.ones(len(y), bool), net, key)

    return gradient


class FedAvg:
    """Federated averaging from the initial parameters of the problem."""

    def __init__(self, problem: Problem, net: Any):
        if "name" in net:
            self.names, params, gradient = None, problem.weights, flax_gradient(net)
        else:
            self.names, params, gradient = haiku_start(problem, net)
        self.fed = fedjax.algorithms.fed_avg.federated_averaging(
            gradient,
            fedjax.optimizers.sgd(problem.rate),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(batch_size=problem.batch_size, num_epochs=1, skip_shuffle=True),
        )
        self.state, self.round = self.fed.init(jax.device_put(params)), 0

    def run(self, data: list[Any], ids: list[int]) -> None:
        """Runs one round."""
        self.round += 1
        keys = jax.random.split(jax.random.PRNGKey(self.round), len(ids))
        clients = [(k, data[k], key) for k, key in zip(ids, keys, strict=True)]
        self.state, _ = self.fed.apply(self.state, clients)
        jax.block_until_ready(self.state.params)

    def weights(self) -> Weights:
        """Returns the parameters under the problem's names."""
        if self.names is None:
            return {name: np.asarray(weight) for name, weight in self.state.params.items()}
        layers = [self.state.params[name] for name in self.names]
        return {f"{part}{i}": np.asarray(layer[part]) for i, layer in enumerate(layers) for part in "wb"}


def main() -> None:
    serve = conversation()
    problem = load_problem(sys.argv[1])
    columns = [problem.client(k) for k in range(problem.num_clients)]
    data = [fedjax.ClientDataset({"x": np.array(x), "y": np.array(y)}) for x, y in columns]
    training = FedAvg(problem, problem.net)

    def run_round(ids: list[int]) -> None:
        training.run(data, ids)

    def run_check(ids: list[int]) -> Weights:
        check = FedAvg(problem, without_dropout(problem.net))
        check.run(data, ids)
        return check.weights()

    version = f"fedjax {importlib.metadata.version('fedjax')}, jax {jax.__version__}"
    serve(version=version, run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
