"""Published tasks: data, model, preprocessing and hyper-parameters of results that are to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.tasks import cifar, emnist, photographs, shakespeare, stack_overflow
from benchmarks.tasks.settings import Setting
from benchmarks.tasks.task import Place, Task

TASKS: Mapping[str, Callable[[Place, Setting], Task]] = {
    "emnist_characters": emnist.characters,
    "emnist_digits": emnist.digits,
    "emnist_logistic": emnist.logistic,
    "emnist_autoencoder": emnist.autoencoder,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "cifar100_logistic": cifar.cifar100_logistic,
    "shakespeare": shakespeare.shakespeare,
    "shakespeare_plays": shakespeare.plays,
    "stack_overflow_words": stack_overflow.words,
    "stack_overflow_tags": stack_overflow.tags,
    "landmarks": photographs.landmarks,
    "celeba": photographs.celeba,
    "inaturalist": photographs.inaturalist,
}

__all__ = ["TASKS", "Place", "Setting", "Task"]
