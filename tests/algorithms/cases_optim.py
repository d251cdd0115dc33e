"""Optimisation: client rules, fairness, and servers that adapt; with momentum, or a schedule over rounds."""

import optax

import fedjx
from fedjx.algorithms.agnostic_fed_avg import agnostic_fed_avg
from fedjx.algorithms.delta_sgd import delta_sgd
from fedjx.algorithms.ema import ema
from fedjx.algorithms.fed_exp import fed_exp
from fedjx.algorithms.fed_nova import fed_nova
from fedjx.algorithms.fed_opt import fed_adagrad, fed_adam, fed_avgm, fed_yogi
from fedjx.algorithms.fed_prox import fed_prox
from fedjx.algorithms.fed_sgd import fed_sgd
from fedjx.algorithms.q_fed_avg import q_fed_avg
from fedjx.core.execution.process import Algorithm
from tests.algorithms.case import Case
from tests.algorithms.problems import federated_data, with_domains
from tests.algorithms.test_fed_avg import softmax_regression

MODEL = softmax_regression()
MOMENTUM = optax.sgd(0.2, momentum=0.5)


def decayed(round):
    return optax.sgd(0.2 / (1 + round), momentum=0.5)


def together(**algorithms):
    """Several algorithms as one, on the same cohorts, since each program takes seconds to compile."""

    @fedjx.federated_computation
    def next(state, data):
        after = {name: algorithm.next(state[name], data) for name, algorithm in algorithms.items()}
        return {name: new for name, (new, _) in after.items()}, {name: metrics for name, (_, metrics) in after.items()}

    return Algorithm(lambda key: {name: algorithm.init(key) for name, algorithm in algorithms.items()}, next)


CASES = {
    "servers": Case(
        together(
            fed_sgd=fed_sgd(MODEL, learning_rate=optax.exponential_decay(0.5, 1, 0.9)),
            fed_avgm=fed_avgm(MODEL, client_optimizer=MOMENTUM),
            fed_adagrad=fed_adagrad(MODEL, client_optimizer=MOMENTUM),
            fed_adam=ema(fed_adam(MODEL, client_optimizer=decayed), 0.5),
            fed_yogi=fed_yogi(MODEL, client_optimizer=delta_sgd(), num_epochs=2),
        )
    ),
    "clients": Case(
        together(
            fed_prox=fed_prox(MODEL, proximal_strength=0.1, adaptive=True, client_optimizer=MOMENTUM),
            fed_nova=fed_nova(MODEL, client_optimizer=MOMENTUM, num_epochs=2),
            fed_exp=fed_exp(MODEL, client_optimizer=MOMENTUM, epsilon=1e-4),
            q_fed_avg=q_fed_avg(MODEL, q=2.0, lipschitz=5.0, client_optimizer=MOMENTUM),
            agnostic_fed_avg=agnostic_fed_avg(
                MODEL, domain_weights=[0.2, 0.3, 0.5], domain_learning_rate=0.8, window=2, client_optimizer=MOMENTUM
            ),
        ),
        data=with_domains(federated_data()),
    ),
}
