"""CIFAR-10 and CIFAR-100: small photographs, cropped at random and mirrored in training."""

from __future__ import annotations

from benchmarks.tasks.settings import Setting
from benchmarks.tasks.task import Place, Task, opened, reading
from fedjx.data import published
from fedjx.models import linear
from fedjx.models.published import cifar_cnn, resnet18


def cifar100(place: Place, setting: Setting) -> Task:
    """Recognises 100 things on crops of 24 x 24, distorted, without which FedAdam ends near 45 % right."""
    data = opened(place, published.cifar100())
    model = reading(resnet18(100), published.cifar_standardised, is_distorted=True)
    return Task(data["train"], data["test"], model)


def cifar100_logistic(place: Place, setting: Setting) -> Task:
    """Recognises 100 things by a logistic regression."""
    data = opened(place, published.cifar100())
    network = linear(100, input_shape=(32, 32, 3))
    return Task(data["train"], data["test"], reading(network, published.cifar_normalised, is_distorted=True))


def cifar10(place: Place, setting: Setting) -> Task:
    """Recognises ten things.

    Reddi et al. divide them among 500 clients of few labels each; pfl-research among 1,000 alike, without distortion.
    """
    if setting.source == "pfl":
        data = opened(place, published.cifar10(num_clients=1000))
        return Task(data["train"], data["test"], reading(cifar_cnn(10), published.cifar_normalised))
    data = opened(place, published.cifar10(num_clients=500, alpha=0.1))
    model = reading(resnet18(10), published.cifar_standardised, is_distorted=True)
    return Task(data["train"], data["test"], model)
