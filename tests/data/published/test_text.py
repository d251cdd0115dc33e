"""Tests of the conventions of text: hand-made oracles of both, and how they agree."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.data.published import (
    bag_of_words,
    next_token,
    next_word,
    renumbering,
    shakespeare_tokens,
    tag_prediction,
    token_ids,
)
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY, stack_overflow_domain

A, B, C, D, E = (SHAKESPEARE_VOCABULARY.index(letter) + 1 for letter in b"ABCDE")


def column(*values):
    result = np.empty(len(values), object)
    result[:] = values
    return result


def xy(tokens, **options):
    batch = next_token({"tokens": jnp.asarray(tokens)}, **options)
    return batch["x"].tolist(), batch["y"].tolist()


def test_the_vocabulary_of_shakespeare():
    digest = "34342387f04f531e05c3ec15fda3a961f697b61391e3deec8dd3b87f3e0c99e0"
    assert hashlib.sha256(SHAKESPEARE_VOCABULARY).hexdigest() == digest
    assert len(set(SHAKESPEARE_VOCABULARY)) == 86
    assert [SHAKESPEARE_VOCABULARY.index(letter) for letter in b"a \n\r"] == [63, 13, 62, 85]


def test_shakespeare_by_tff():
    transform = shakespeare_tokens(sequence_length=3)
    tokens = transform({"snippets": column(b"ABCD", b"E")})["tokens"]
    assert tokens.dtype == np.uint8
    bos, eos = 88, 89
    assert xy(tokens) == (
        [[bos, A, B], [D, eos, 0], [bos, E, eos]],
        [[A, B, C], [eos, 0, 0], [E, eos, 0]],
    )
    assert transform({"snippets": column("\x00")})["tokens"].tolist() == [[bos, 87, eos, 0]]
    assert transform({"snippets": column()})["tokens"].shape == (0, 4)


def test_shakespeare_by_fedjax():
    transform = shakespeare_tokens(convention="fedjax", sequence_length=3)
    tokens = transform({"snippets": column(b"ABCD", b"E")})["tokens"]
    bos, eos = 1, 2
    a, b, c, d, e = (letter + 2 for letter in (A, B, C, D, E))
    assert xy(tokens, pad_inputs=True) == (
        [[bos, a, b], [c, d, eos], [bos, e, 0]],
        [[a, b, c], [d, eos, bos], [e, eos, 0]],
    )
    assert transform({"snippets": column(b"\xff9\r")})["tokens"][0].tolist() == [bos, 89, 87, 88]
    assert transform({"snippets": column()})["tokens"].shape == (0, 4)


def test_next_words_by_tff():
    transform = next_word([b"a", b"b"], sequence_length=3)
    tokens = transform({"tokens": column(b"a b c", b"a", "b  a", b"a a a a")})["tokens"]
    assert tokens.dtype == np.uint16
    x, y = xy(tokens)
    assert x[:2] == [[4, 1, 2], [4, 1, 5]]
    assert y[:2] == [[1, 2, 3], [1, 5, 0]]
    assert y[2:] == [[2, 3, 1], [1, 1, 1]]  # Between two spaces is an empty, unknown word.


def test_the_three_conventions_have_the_same_targets_up_to_renumbering():
    random = np.random.default_rng(0)
    vocabulary = [b"w%d" % k for k in range(50)]
    words = [b"w%d" % k for k in range(60)]
    sentences = column(*[b" ".join(random.choice(words, size)) for size in random.integers(1, 30, 200)])
    tokens = {
        convention: next_word(vocabulary, convention=convention)({"tokens": sentences})["tokens"]
        for convention in ("tff", "fedjax", "pfl")
    }
    x, y = {}, {}
    for convention, found in tokens.items():
        batch = next_token({"tokens": jnp.asarray(found)}, pad_inputs=convention == "fedjax")
        x[convention], y[convention] = np.asarray(batch["x"]), np.asarray(batch["y"])
    table = renumbering(50, "tff", "fedjax")
    np.testing.assert_array_equal(y["fedjax"], table[y["tff"]])
    np.testing.assert_array_equal(y["pfl"], y["tff"])
    assert (y["tff"] == token_ids(50).oov).any()
    assert (y["fedjax"] != y["tff"]).any()
    # Inputs differ after the end of a sentence only, where there is no target.
    different = x["fedjax"] != table[x["tff"]]
    assert different.any()
    assert (x["tff"][different] == token_ids(50).eos).all()
    assert (y["tff"][different] == 0).all()
    # A table there and back is the identity, and no two ids become one.
    np.testing.assert_array_equal(renumbering(50, "fedjax", "pfl")[table], np.arange(54))


def test_bags_of_words_and_tags():
    transform = tag_prediction([b"a", b"b", b"c"], [b"x", b"y"], max_words=4)
    columns = transform(
        {
            "tokens": column(b"a a\t z", b"zz", b"a a a"),
            "title": column(b"b", b"", b"b c"),
            "tags": column(b"y|unknown|x|y", b"", b"x"),
        }
    )
    assert columns["words"].tolist() == [[0, 0, 1, 3], [3, 3, 3, 3], [0, 0, 0, 1]]
    assert columns["num_words"].tolist() == [3, 0, 5]  # Of the last post a word is cut.
    assert columns["tags"].tolist() == [[0, 1, 2, 2, 2], [2] * 5, [0, 2, 2, 2, 2]]
    batch = bag_of_words({**columns, "mask": jnp.ones(3)}, vocabulary_size=3, num_tags=2)
    np.testing.assert_allclose(batch["x"], [[2 / 3, 1 / 3, 0], [0, 0, 0], [3 / 5, 1 / 5, 0]], rtol=1e-6)
    assert batch["y"].tolist() == [[1, 1], [0, 0], [1, 0]]
    assert set(batch) == {"x", "y", "mask"}
    with pytest.raises(ValueError, match="at most 5 tags; got 6"):
        tag_prediction([b"a"], [b"%d" % k for k in range(9)])(
            {"tokens": column(b""), "title": column(b""), "tags": column(b"1|2|3|4|5|6")}
        )


def test_domains():
    assert stack_overflow_domain({"type": column(b"answer", "question", b"answer")}).tolist() == [1, 0, 1]


def test_what_is_not_supported():
    with pytest.raises(ValueError, match=r"FarmHash, which fedjx does not have; got num_oov_buckets=2\. Use 1"):
        next_word([b"a"], num_oov_buckets=2)
    with pytest.raises(ValueError, match="one of 'tff', 'fedjax', 'pfl'; got convention='TFF'"):
        token_ids(10, "TFF")
    with pytest.raises(ValueError, match="different entries; got 2, 1 of them"):
        next_word([b"a", b"a"])
    with pytest.raises(ValueError, match="different entries; got 0"):
        next_word([])
    with pytest.raises(ValueError, match="sequence_length must be an integer of at least 1; got sequence_length=0"):
        next_word([b"a"], sequence_length=0)
    with pytest.raises(ValueError, match="one of 'tff', 'fedjax'; got convention='pfl'"):
        shakespeare_tokens(convention="pfl")
