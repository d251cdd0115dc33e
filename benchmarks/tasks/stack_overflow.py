"""Stack Overflow: the next word of a post, and its tags."""

from __future__ import annotations

import functools

from benchmarks.tasks.settings import Setting
from benchmarks.tasks.task import Place, Task, at_most, opened, reading, sampled, summed
from fedjx.data import published
from fedjx.models.published import stack_overflow_lstm, stack_overflow_tagger, stack_overflow_transformer

NUM_TEST_EXAMPLES = 10_000
NUM_WORDS = 10_000
NUM_TAGS = 500


def words(place: Place, setting: Setting) -> Task:
    """Predicts the next word, by an LSTM, or by the Transformer of pfl-research."""
    data = opened(place, published.stack_overflow())
    network = stack_overflow_transformer() if setting.source == "pfl" else stack_overflow_lstm()
    train, test = at_most(data["train"], setting.max_examples), sampled(data["test"], NUM_TEST_EXAMPLES)
    return Task(train, test, reading(network, published.next_token))


def tags(place: Place, setting: Setting) -> Task:
    """Predicts which of 500 tags a post has, from its bag of words."""
    data = opened(place, published.stack_overflow_tags(), twin="stack_overflow_tags")
    batch_of = functools.partial(published.bag_of_words, vocabulary_size=NUM_WORDS, num_tags=NUM_TAGS)
    train, test = at_most(data["train"], setting.max_examples), sampled(data["test"], NUM_TEST_EXAMPLES)
    return Task(train, test, reading(summed(stack_overflow_tagger()), batch_of))
