"""EMNIST: characters and digits of many writers, and their compression to 30 numbers."""

from __future__ import annotations

from benchmarks.tasks.settings import Setting
from benchmarks.tasks.task import Place, Task, opened, reading, summed
from fedjx.data import published
from fedjx.models import linear
from fedjx.models.published import emnist_autoencoder, emnist_cnn, fedavg_cnn


def characters(place: Place, setting: Setting) -> Task:
    """Recognises 62 characters; FedJAX has black and white the other way round than TFF."""
    batch_of = published.emnist_inverted if setting.source.startswith("fedjax") else published.emnist_recognition
    data = opened(place, published.emnist())
    return Task(data["train"], data["test"], reading(emnist_cnn(62), batch_of))


def logistic(place: Place, setting: Setting) -> Task:
    """Recognises 62 characters by a logistic regression."""
    data = opened(place, published.emnist())
    model = reading(linear(62, input_shape=(28, 28, 1)), published.emnist_inverted)
    return Task(data["train"], data["test"], model)


def digits(place: Place, setting: Setting) -> Task:
    """Recognises ten digits, by the network of McMahan et al."""
    data = opened(place, published.emnist(digits_only=True))
    return Task(data["train"], data["test"], reading(fedavg_cnn(10), published.emnist_recognition))


def autoencoder(place: Place, setting: Setting) -> Task:
    """Compresses images to 30 numbers and back."""
    data = opened(place, published.emnist())
    return Task(data["train"], data["test"], reading(summed(emnist_autoencoder()), published.emnist_autoencoder))
