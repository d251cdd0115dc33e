"""Personalisation. pFedMe and Per-FedAvg are `fed_avg` of another model: here of both."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjx.algorithms.apfl import apfl
from fedjx.algorithms.ditto import ditto
from fedjx.algorithms.fed_per import fed_per
from fedjx.algorithms.fed_rep import fed_rep
from fedjx.algorithms.p_fed_me import p_fed_me
from fedjx.algorithms.per_fed_avg import meta_model, per_fed_avg
from fedjx.algorithms.reconstruction import reconstruction
from fedjx.algorithms.reptile import reptile
from fedjx.models import Model
from fedjx.training.splits import random_split
from tests.algorithms.case import Case
from tests.algorithms.problems import NUM_FEATURES

SGD = optax.sgd(0.05)


def noisy_regression() -> Model:
    """A linear regression, quick to compile, whose loss is random: the key of every client and step matters."""

    def init(key: Any) -> Any:
        return {"body": 0.1 * jax.random.normal(key, (NUM_FEATURES,)), "head": jnp.float32(0)}

    def loss(params: Any, batch: Any, key: Any) -> Any:
        noise = 0.1 * jax.random.normal(key, batch["y"].shape)
        return (batch["x"] @ params["body"] + params["head"] - batch["y"] + noise) ** 2

    return Model(init, loss, lambda params, batch: {"loss": loss(params, batch, jax.random.key(0))})


def is_head(name: str) -> bool:
    return name == "head"


MODEL = noisy_regression()
CASES = {
    "apfl": Case(apfl(MODEL, client_optimizer=optax.sgd(0.05, momentum=0.5), mixing_optimizer=SGD, num_epochs=2)),
    "ditto": Case(ditto(MODEL, client_optimizer=SGD, proximal_strength=0.3)),
    "fed_per": Case(fed_per(MODEL, is_local=is_head, client_optimizer=SGD, num_epochs=2)),
    "per_fed_avg": Case(per_fed_avg(MODEL, client_optimizer=SGD, inner_learning_rate=0.1, variant="exact")),
    "reptile": Case(reptile(MODEL, client_optimizer=SGD, num_steps=3)),
    "fed_rep": Case(fed_rep(MODEL, is_local=is_head, client_optimizer=SGD, num_local_steps=3)),
    "p_fed_me_of_per_fed_avg": Case(
        p_fed_me(
            meta_model(MODEL, learning_rate=0.1, variant="hessian_free", difference=0.01),
            client_optimizer=SGD,
            proximal_strength=5.0,
            inner_optimizer=SGD,
            num_inner_steps=2,
        )
    ),
    "reconstruction": Case(
        reconstruction(
            MODEL,
            is_local=is_head,
            client_optimizer=SGD,
            reconstruction_optimizer=SGD,
            split=random_split(0.5),
        )
    ),
}
