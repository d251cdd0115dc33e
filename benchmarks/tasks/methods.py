"""Algorithms as the settings say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from benchmarks.tasks.settings import Setting
from fedjx.aggregation.weights import by_examples, uniform
from fedjx.algorithms import fed_avg, fed_prox, server_adagrad, server_adam, server_yogi
from fedjx.core.execution.process import Algorithm
from fedjx.models import Model
from fedjx.training.method import ServerState

# Those of Reddi et al., and those of a library for deep learning: with bias correction, and another place for tau.
SERVERS: Mapping[str, Callable[[Setting, Any], optax.GradientTransformation]] = {
    "sgd": lambda setting, rate: optax.sgd(rate),
    "momentum": lambda setting, rate: optax.sgd(rate, momentum=0.9),
    "adagrad": lambda setting, rate: server_adagrad(rate, tau=setting.tau),
    "adam": lambda setting, rate: server_adam(rate, b2=setting.b2, tau=setting.tau),
    "yogi": lambda setting, rate: server_yogi(rate, b2=setting.b2, tau=setting.tau),
    "optax_adagrad": lambda setting, rate: optax.adagrad(rate, eps=setting.tau),
    "optax_adam": lambda setting, rate: optax.adam(rate, b2=setting.b2, eps=setting.tau),
    "optax_yogi": lambda setting, rate: optax.yogi(rate, b2=setting.b2, eps=setting.tau),
}


def algorithm_of(setting: Setting, model: Model) -> Algorithm[ServerState]:
    """Builds the algorithm of a setting."""
    rate = setting.server_rate
    if setting.warm_up_rounds:
        rate = optax.linear_schedule(0.0, rate, setting.warm_up_rounds)
    arguments: dict[str, Any] = {
        "client_optimizer": client_optimizer(setting),
        "server_optimizer": SERVERS[setting.server](setting, rate),
        "client_weight": by_examples if setting.weighs_examples else uniform,
    }
    if setting.algorithm == "fed_prox":
        return fed_prox(model, proximal_strength=setting.proximal_strength, **arguments)
    return fed_avg(model, **arguments)


def client_optimizer(setting: Setting) -> optax.GradientTransformation:
    """Builds the clients' SGD."""
    plain = optax.sgd(setting.client_rate)
    if not setting.weight_decay:
        return plain
    return optax.chain(optax.add_decayed_weights(setting.weight_decay, mask=_kernels), plain)


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
