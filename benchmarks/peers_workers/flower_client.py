"""What a Flower client does; a module of its own, because Ray's actors import it."""

from __future__ import annotations

import functools
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch_net
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]
from protocol import Problem, load_problem, without_dropout


@functools.cache
def actor_state(folder: str) -> tuple[Problem, list[Any], dict]:
    """Returns what an actor keeps between clients: the problem, models with and without dropout, and tensors."""
    torch.set_num_threads(1)
    problem = load_problem(folder)
    models = [torch_net.network(net).to(torch_net.device()) for net in (problem.net, without_dropout(problem.net))]
    data = torch_net.examples(problem, range(problem.num_clients), device=torch_net.device())
    return problem, models, data


def client_app(folder: str) -> ClientApp:
    """Returns the client: one epoch on the data of whom the message names."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _: Any) -> Message:
        problem, models, data = actor_state(folder)
        config = message.content["config"]
        model, (x, y) = models[config["check"]], data[config["client"]]
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loss = torch_net.train(model, x, y, batch_size=problem.batch_size, rate=problem.rate)
        metrics = MetricRecord({"num-examples": len(y), "loss": float(loss) / len(y)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app
