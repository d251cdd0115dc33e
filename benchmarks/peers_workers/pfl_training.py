"""Federated averaging with pfl-research.

Importing pfl joins the processes, so this is imported when their environment is set.
"""

from __future__ import annotations

import itertools
import types
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch_net
from pfl.aggregate.simulate import SimulatedBackend  # pyright: ignore[reportMissingImports]
from pfl.aggregate.weighting import WeightByDatapoints  # pyright: ignore[reportMissingImports]
from pfl.algorithm.base import NNAlgorithmParams  # pyright: ignore[reportMissingImports]
from pfl.algorithm.federated_averaging import FederatedAveraging  # pyright: ignore[reportMissingImports]
from pfl.callback.base import TrainingProcessCallback  # pyright: ignore[reportMissingImports]
from pfl.data.dataset import Dataset  # pyright: ignore[reportMissingImports]
from pfl.data.federated_dataset import FederatedDataset  # pyright: ignore[reportMissingImports]
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # pyright: ignore[reportMissingImports]
from pfl.metrics import Metrics, Weighted  # pyright: ignore[reportMissingImports]
from pfl.model.pytorch import PyTorchModel  # pyright: ignore[reportMissingImports]
from protocol import Problem


def federated_averaging(problem: Problem, net: Any, cohorts: list[list[int]], turns: Any) -> None:
    """Runs pfl over some cohorts, the first at once, each other when it is its turn."""
    module, sums = user_model(problem, net)

    class Turn(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            is_last = central_iteration + 1 == len(cohorts)
            turns.done(float(sums), torch_net.weights_of(module, problem) if is_last else None)
            sums.zero_()
            if not is_last:
                turns.wait()
            return is_last, Metrics()

    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    # Iteration 0, a warm-up, evaluates all users, whatever the frequency.
    rounds: Any = NNAlgorithmParams(
        central_num_iterations=len(cohorts),
        evaluation_frequency=10**9,
        train_cohort_size=len(cohorts[0]),
        val_cohort_size=None,
    )
    local: Any = NNTrainHyperParams(
        local_learning_rate=problem.rate, local_num_epochs=1, local_batch_size=problem.batch_size
    )
    users = federated_dataset(problem, cohorts)
    backend = SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(
        rounds, backend, model, local, NNEvalHyperParams(None), callbacks=[Turn()], send_metrics_to_platform=False
    )


def user_model(problem: Problem, net: Any) -> tuple[Any, Any]:
    """Returns the network with what pfl asks of it, and a running sum of the losses of all examples."""
    module, sums = torch_net.network(net), torch.zeros((), device=torch_net.device())
    torch_net.load_weights(module, problem)

    def loss(self: Any, x: Any, y: Any) -> Any:
        value = torch_net.loss_of(self(x), y)
        sums.add_(value.detach() * len(y))
        return value

    module.loss = types.MethodType(loss, module)
    module.metrics = lambda x, y: {"number of batches": Weighted(1, 1)}
    return module, sums


def federated_dataset(problem: Problem, cohorts: list[list[int]]) -> Any:
    """Returns all users, of whom pfl draws the given cohorts one after another."""
    data = torch_net.examples(problem, range(problem.num_clients), device=torch_net.device())
    # pfl draws users ahead of time; whom it draws after the last cohort never trains.
    stream = itertools.chain.from_iterable(itertools.chain(cohorts, itertools.repeat(cohorts[0])))
    return FederatedDataset(
        lambda k: Dataset(data[k], user_id=str(k)),
        lambda: next(stream),
        user_id_to_weight={k: problem.size(k) for k in range(problem.num_clients)},
    )
