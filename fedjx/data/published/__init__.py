"""Published federated data sets by name, their preprocessing, and synthetic twins of them."""

from collections.abc import Callable, Mapping

from fedjx.data.published.counts import tag_counts, word_counts
from fedjx.data.published.images import (
    as_bytes,
    central_crop,
    cifar_normalised,
    cifar_standardised,
    emnist_autoencoder,
    emnist_domain,
    emnist_inverted,
    emnist_recognition,
    photographs,
    random_crop,
    random_flip,
    standardised,
)
from fedjx.data.published.language import reddit, shakespeare, stack_overflow, stack_overflow_tags
from fedjx.data.published.leaf_sets import leaf_celeba, leaf_femnist, leaf_sent140, leaf_shakespeare
from fedjx.data.published.photo_sets import flair, inaturalist, landmarks
from fedjx.data.published.plays import shakespeare_plays
from fedjx.data.published.raw_twins import raw_twin_source, twin_vocabulary
from fedjx.data.published.stores import DataSet, open
from fedjx.data.published.text import (
    bag_of_words,
    next_token,
    next_word,
    renumbering,
    shakespeare_tokens,
    tag_prediction,
    token_ids,
)
from fedjx.data.published.twins import synthetic_twin, twin_names, twin_source
from fedjx.data.published.vision import CELEBA_ATTRIBUTES, celeba, cifar10, cifar100, emnist, mnist

DATA_SETS: Mapping[str, Callable[..., DataSet]] = {
    "celeba": celeba,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "emnist": emnist,
    "flair": flair,
    "inaturalist": inaturalist,
    "landmarks": landmarks,
    "leaf_celeba": leaf_celeba,
    "leaf_femnist": leaf_femnist,
    "leaf_sent140": leaf_sent140,
    "leaf_shakespeare": leaf_shakespeare,
    "reddit": reddit,
    "shakespeare": shakespeare,
    "shakespeare_plays": shakespeare_plays,
    "stack_overflow": stack_overflow,
    "stack_overflow_tags": stack_overflow_tags,
}

__all__ = [
    "CELEBA_ATTRIBUTES",
    "DATA_SETS",
    "DataSet",
    "as_bytes",
    "bag_of_words",
    "celeba",
    "central_crop",
    "cifar10",
    "cifar100",
    "cifar_normalised",
    "cifar_standardised",
    "emnist",
    "emnist_autoencoder",
    "emnist_domain",
    "emnist_inverted",
    "emnist_recognition",
    "flair",
    "inaturalist",
    "landmarks",
    "leaf_celeba",
    "leaf_femnist",
    "leaf_sent140",
    "leaf_shakespeare",
    "mnist",
    "next_token",
    "next_word",
    "open",
    "photographs",
    "random_crop",
    "random_flip",
    "raw_twin_source",
    "reddit",
    "renumbering",
    "shakespeare",
    "shakespeare_plays",
    "shakespeare_tokens",
    "stack_overflow",
    "stack_overflow_tags",
    "standardised",
    "synthetic_twin",
    "tag_counts",
    "tag_prediction",
    "token_ids",
    "twin_names",
    "twin_source",
    "twin_vocabulary",
    "word_counts",
]
