"""The published hyper-parameters of the tasks, and what was reached with them: whose they are, and how certain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

SOURCES = {
    "reddi": "Reddi et al., arXiv 2003.00295, with the rates of google-research/federated, optimization/docs",
    "pfl": "apple/pfl-research, benchmarks/*/configs",
    "fedjax": "google/fedjax, experiments/fed_avg/*.flags",
    "fedjax_example": "google/fedjax, examples/emnist_fed_avg.py",
    "tff": "google-parfait/tensorflow-federated, examples/simple_fedavg",
    "leaf": "TalwalkarLab/leaf, models: CelebA of medium length",
    "guide": "google-research/federated, fedopt_guide/gld23k_mobilenet; the rates, which are not there, are ours",
    "fedjx": "ours: as for Landmarks, since none is published with its rates",
}

Certainty = Literal["checked", "unchecked", "none"]


class Measure(NamedTuple):
    """What is reported of a task.

    Attributes:
      metric: One of the model's metrics.
      factor: What it is multiplied by, to be in the unit.
      unit: That of the published numbers.
    """

    metric: str
    factor: float
    unit: str


ACCURACY = Measure("accuracy", 100, "% right")
MEASURES = {
    "emnist_autoencoder": Measure("mean_squared_error", 1000, "mean squared error, times 1000"),
    "stack_overflow_words": Measure("accuracy_without_special_tokens", 100, "% right, of known words"),
    "stack_overflow_tags": Measure("recall_at_5", 100, "% of the tags among five"),
}


class Setting(NamedTuple):
    """How a task is trained, and what came of it.

    Attributes:
      task: Its name.
      algorithm: What it is called: fed_avg, fed_avgm, fed_adagrad, fed_adam, fed_yogi or fed_prox.
      source: Where the setting is from, one of `SOURCES`.
      server: The server's optimizer, one of `benchmarks.tasks.methods.SERVERS`.
      client_rate: Learning rate of the clients' SGD.
      server_rate: Learning rate of the server.
      cohort_size: Clients in a round.
      batch_size: Examples in a local batch; there is one local epoch.
      num_rounds: Rounds in all.
      tau: What the server adds to the root of the second moment, which libraries call epsilon.
      b2: Decay of the second moment; that of the first is 0.9.
      warm_up_rounds: Rounds in which the server's rate grows from zero.
      proximal_strength: Of FedProx.
      weighs_examples: Whether a client counts by its examples; else all count alike.
      max_examples: Most examples of a client that are used, the first.
      weight_decay: Of the clients, on what has more than one axis: twice the factor of an L2 term in the loss.
      expected: The published result, in the unit of the task; a mean of the last 100 rounds where it is Reddi's.
      certainty: "checked" where the number was read in files of its publishers, or of those who repeated the
        experiment; "unchecked" where it is quoted at second hand.
    """

    task: str
    algorithm: str
    source: str
    server: str
    client_rate: float
    server_rate: float
    cohort_size: int
    batch_size: int
    num_rounds: int
    tau: float = 1e-3
    b2: float = 0.99
    warm_up_rounds: int = 0
    proximal_strength: float = 0.0
    weighs_examples: bool = True
    max_examples: int | None = None
    weight_decay: float = 0.0
    expected: float | None = None
    certainty: Certainty = "none"


class Reddi(NamedTuple):
    """A row of Reddi et al.: rates and tau as powers of ten, in the order Adagrad, Adam, Yogi, momentum, plain."""

    cohort_size: int
    batch_size: int
    num_rounds: int
    client: tuple[float, ...]
    server: tuple[float, ...]
    tau: tuple[float, float, float]
    expected: tuple[float | None, ...]
    certainty: Certainty
    max_examples: int | None = None
    weight_decay: float = 0.0


# The paper's order.
_SERVERS = {
    "fed_adagrad": "adagrad",
    "fed_adam": "adam",
    "fed_yogi": "yogi",
    "fed_avgm": "momentum",
    "fed_avg": "sgd",
}

# fmt: off
REDDI = {
    "cifar100": Reddi(
        10, 20, 4000, (-1, -1.5, -1.5, -1.5, -1), (-1, 0, 0, 0, 0.5), (-2, -1, -1),
        (47.9, 52.5, 52.4, 52.4, 44.7), "checked", weight_decay=2e-4,
    ),
    "cifar10": Reddi(
        10, 20, 4000, (-1.5, -1.5, -1.5, -1.5, -0.5), (-1, -2, -2, -0.5, 0), (-2, -3, -3),
        (73.1, 77.4, 78.0, 77.4, 72.8), "checked", weight_decay=2e-4,
    ),
    "emnist_characters": Reddi(
        10, 20, 1500, (-1.5, -1.5, -1.5, -1.5, -1), (-1, -2.5, -2.5, -0.5, 0), (-2, -4, -4),
        (85.1, 85.6, 85.5, 85.2, 84.9), "unchecked",
    ),
    "emnist_autoencoder": Reddi(
        10, 20, 3000, (1.5, 1, 1, 0.5, 1), (-1.5, -1.5, -1.5, 0, 0), (-3, -3, -3),
        (4.20, 1.01, 0.98, 1.65, 6.47), "unchecked",
    ),
    "shakespeare": Reddi(
        10, 4, 1200, (0, 0, 0, 0, 0), (-0.5, -2, -2, -0.5, 0), (-1, -3, -3),
        (57.5, 57.0, 57.2, 57.3, 56.9), "unchecked",
    ),
    # The rates of "shakespeare", on roles of another edition.
    "shakespeare_plays": Reddi(
        10, 4, 1200, (0, 0, 0, 0, 0), (-0.5, -2, -2, -0.5, 0), (-1, -3, -3),
        (None, None, None, None, None), "none",
    ),
    "stack_overflow_words": Reddi(
        50, 16, 1500, (-0.5, -0.5, -0.5, -0.5, -0.5), (-1.5, -2, -2, 0, 0), (-4, -5, -5),
        (23.8, 25.2, 25.2, 23.8, 19.5), "unchecked", max_examples=1000,
    ),
    "stack_overflow_tags": Reddi(
        10, 100, 1500, (2, 2, 2, 2, 2), (1, -0.5, -0.5, 0, 0), (-2, -5, -5),
        (67.1, 65.8, 65.9, 36.9, 30.0), "unchecked", max_examples=1000,
    ),
}

OTHERS = (
    Setting("cifar10", "fed_avg", "pfl", "sgd", 0.1, 1.0, 50, 10, 1500, weighs_examples=False),
    Setting("cifar10", "fed_prox", "pfl", "sgd", 0.1, 1.0, 50, 10, 1500, weighs_examples=False, proximal_strength=0.01),
    Setting(
        "stack_overflow_words", "fed_adam", "pfl", "optax_adam", 0.3, 0.1, 400, 16, 2000, tau=0.01,
        warm_up_rounds=50, weighs_examples=False, max_examples=64,
    ),
    Setting(
        "stack_overflow_words", "fed_prox", "pfl", "optax_adam", 0.3, 0.1, 400, 16, 2000, tau=0.01,
        warm_up_rounds=50, weighs_examples=False, max_examples=64, proximal_strength=0.001,
    ),
    Setting(
        "emnist_characters", "fed_adam", "fedjax_example", "optax_adam", 10**-1.5, 10**-2.5, 10, 20, 1500, tau=1e-4,
        b2=0.999, expected=85.0, certainty="unchecked",
    ),
    Setting("emnist_characters", "fed_adam", "fedjax", "optax_adam", 0.001, 1.0, 10, 10, 1500, tau=0.01),
    Setting("emnist_logistic", "fed_adagrad", "fedjax", "optax_adagrad", 0.3162, 1.0, 10, 10, 1500, tau=1e-7),
    Setting("shakespeare", "fed_avg", "fedjax", "sgd", 0.0316, 1.0, 10, 10, 1500),
    Setting(
        "stack_overflow_words", "fed_adam", "fedjax", "optax_adam", 0.5, 0.02, 50, 16, 1500, tau=1e-8, b2=0.999,
        max_examples=500 * 16,
    ),
    Setting(
        "cifar100_logistic", "fed_yogi", "fedjax", "optax_yogi", 0.01, 0.1, 10, 20, 4000, tau=0.01, b2=0.999,
        expected=11.49, certainty="checked",
    ),
    Setting("emnist_digits", "fed_avg", "tff", "sgd", 0.1, 1.0, 2, 16, 256),
    Setting("celeba", "fed_avg", "leaf", "sgd", 0.1, 1.0, 2, 10, 100),
    Setting("landmarks", "fed_avg", "guide", "sgd", 0.1, 1.0, 10, 16, 3000, max_examples=64),
    Setting("inaturalist", "fed_avg", "fedjx", "sgd", 0.1, 1.0, 10, 16, 3000, max_examples=64),
)
# fmt: on


def _of_reddi(task: str, row: Reddi) -> Iterator[Setting]:
    taus = (*row.tau, -3, -3)  # of which the last two make no use
    columns = zip(_SERVERS.items(), row.client, row.server, taus, row.expected, strict=True)
    for (algorithm, server), client_rate, server_rate, tau, expected in columns:
        yield Setting(
            task,
            algorithm,
            "reddi",
            server,
            10.0**client_rate,
            10.0**server_rate,
            row.cohort_size,
            row.batch_size,
            row.num_rounds,
            tau=10.0**tau,
            max_examples=row.max_examples,
            weight_decay=row.weight_decay,
            expected=expected,
            certainty=row.certainty,
        )


SETTINGS = (*(setting for task, row in REDDI.items() for setting in _of_reddi(task, row)), *OTHERS)


def measure_of(task: str) -> Measure:
    """Returns what is reported of a task."""
    return MEASURES.get(task, ACCURACY)


def setting_of(task: str, algorithm: str | None = None, source: str | None = None) -> Setting:
    """Finds the first setting of a task, of an algorithm and of a source if these are given.

    Raises:
      ValueError: If there is none.
    """
    of_task = [setting for setting in SETTINGS if setting.task == task]
    for setting in of_task:
        if algorithm in (None, setting.algorithm) and source in (None, setting.source):
            return setting
    choices = ", ".join(f"{setting.algorithm} of {setting.source}" for setting in of_task)
    raise ValueError(f"{task} needs a setting of the table; got {algorithm=}, {source=}. Choose one of {choices}.")
