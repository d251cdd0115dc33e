"""The protocol of secure sums: the plain modular sum however clients drop out, and masks that hide."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from fedjx.aggregation import secure_protocol
from fedjx.aggregation.fixed_point import encode, fixed_point
from fedjx.aggregation.secure_protocol import PHASES, protocol_cost, run_secure_sum
from fedjx.aggregation.shamir import PRIME, recover, share
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.operators import federated_secure_sum
from fedjx.core.language.values import Clients

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.integers(0, 2**23, size=(5, 3), dtype=np.uint32)
NEVER = "never"


def plain(values, clients, num_bits):
    """The sum in Python's integers."""
    return [sum(int(values[i, k]) for i in clients) % 2**num_bits for k in range(values.shape[1])]


@pytest.mark.parametrize("first", [*PHASES, NEVER])
def test_every_pattern_of_dropouts_gives_the_plain_sum_or_an_error(first):
    """Five clients, each to drop out in any phase or not at all: 5^5 patterns in all."""
    num_refused = num_summed = 0
    for rest in itertools.product([*PHASES, NEVER], repeat=4):
        dropouts = {i: phase for i, phase in enumerate((first, *rest)) if phase != NEVER}
        left = 5 - len(dropouts)
        if left < 3:
            with pytest.raises(ValueError, match=r"needs threshold=3 clients in every phase; got [012] to"):
                run_secure_sum(VALUES, threshold=3, num_bits=23, dropouts=dropouts)
            num_refused += 1
            continue
        outcome = run_secure_sum(VALUES, threshold=3, num_bits=23, dropouts=dropouts)
        summed = [i for i in range(5) if dropouts.get(i, NEVER) in (NEVER, "unmask")]
        assert outcome.summed == tuple(summed)
        assert outcome.total.tolist() == plain(VALUES, summed, 23)
        num_summed += 1
    most = 0 if first == NEVER else 1
    assert num_summed == sum(math.comb(4, k) * 4**k for k in range(3 - most))
    assert num_refused == 5**4 - num_summed


@pytest.mark.parametrize(("threshold", "num_left"), [(2, 2), (3, 3), (5, 5), (2, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize("phase", PHASES)
def test_the_threshold_is_sharp_in_every_phase(threshold, num_left, phase):
    dropouts = dict.fromkeys(range(5 - num_left), phase)
    if num_left < threshold:
        with pytest.raises(ValueError, match=f"needs threshold={threshold} clients .* got {num_left} to {phase}"):
            run_secure_sum(VALUES, threshold=threshold, dropouts=dropouts)
        return
    outcome = run_secure_sum(VALUES, threshold=threshold, dropouts=dropouts)
    assert outcome.total.tolist() == plain(VALUES, outcome.summed, 32)


@pytest.mark.parametrize("num_bits", [1, 8, 23, 31, 32])
def test_the_total_is_that_of_the_operator(num_bits):
    values = RANDOM.integers(0, 2**32, size=(4, 50), dtype=np.uint32)
    total = federated_computation(lambda x: federated_secure_sum(x, num_bits=num_bits))(Clients.of(values))
    outcome = run_secure_sum(values, threshold=3, num_bits=num_bits, dropouts={2: "unmask"})
    np.testing.assert_array_equal(outcome.total, total)


def test_signed_codes_sum_in_the_ring():
    codes = np.asarray(encode(fixed_point(bound=1.0, max_clients=3, num_bits=12), RANDOM.normal(size=(3, 9))))
    total = run_secure_sum(codes, threshold=2, num_bits=12).total.astype(int)
    assert ((total + 2**11) % 2**12 - 2**11).tolist() == codes.sum(axis=0).tolist()


# --- what the server sees -------------------------------------------------------------------------


def p_value(words: np.ndarray, num_bits: int) -> float:
    """Of Pearson's test that numbers of so many bits are uniform."""
    return scipy.stats.chisquare(np.bincount(words, minlength=2**num_bits)).pvalue


@pytest.mark.parametrize("num_bits", [4, 8, 32])
def test_masked_inputs_are_uniform_and_the_inputs_are_not(num_bits):
    values = np.zeros((3, 50_000), np.uint32)
    masked = run_secure_sum(values, threshold=2, num_bits=num_bits).masked
    for shift in range(0, num_bits, 4):
        nibbles = masked >> shift & 15
        assert all(p_value(client, 4) > 1e-6 for client in nibbles)
        # Of two clients together: neither tells anything of the other.
        assert all(p_value(a * 16 + b, 8) > 1e-6 for a, b in itertools.combinations(nibbles, 2))
    assert p_value(values[0], 4) < 1e-6


def test_a_mask_that_only_cancels_would_be_seen():
    """The negative control: each half of a pair's mask is uniform, both together are not."""
    mask = secure_protocol._mask(7, 50_000)
    a, b = mask & 15, -mask & np.uint32(15)
    assert p_value(a, 4) > 1e-6
    assert p_value(a * 16 + b, 8) < 1e-6


def test_masks_differ_between_rounds():
    zeros = np.zeros((3, 1000), np.uint32)
    first, again, second = (run_secure_sum(zeros, threshold=2, seed=s).masked for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert p_value((first[0] - second[0]) & 15, 4) > 1e-6


def test_the_server_gets_masked_inputs_and_one_kind_of_share_of_each_client(monkeypatch):
    seen = []
    real = secure_protocol.unmasked
    monkeypatch.setattr(secure_protocol, "unmasked", lambda *args: seen.append(args) or real(*args))
    run_secure_sum(VALUES, threshold=2, dropouts={0: "send masked input", 3: "unmask", 4: "share keys"})
    ((masked, revealed, keys, num_bits),) = seen
    assert (sorted(masked), sorted(revealed), sorted(keys), num_bits) == ([1, 2, 3], [1, 2], [0, 1, 2, 3, 4], 32)
    assert not any((masked[i] == VALUES[i]).any() for i in masked)
    secrets = {(i, what): secure_protocol._secret(0, i, what) for i in range(5) for what in ("mask", "self")}
    for i in range(4):  # of a client whose input arrived the self seed, of the other the mask key
        shares = {j + 1: x[i] for j, x in revealed.items()}
        assert recover(shares) == secrets[i, "self" if i in masked else "mask"]


@pytest.mark.parametrize("num_missing", [1, 2])
def test_fewer_revealed_shares_than_the_threshold_give_another_total(monkeypatch, num_missing):
    real = secure_protocol.unmasked

    def fewer(masked, revealed, keys, num_bits):
        return real(masked, dict(list(revealed.items())[num_missing:]), keys, num_bits)

    monkeypatch.setattr(secure_protocol, "unmasked", fewer)
    total = run_secure_sum(VALUES, threshold=4, num_bits=23).total
    assert (total.tolist() == plain(VALUES, range(5), 23)) == (num_missing == 1)


# --- secret sharing -------------------------------------------------------------------------------


@pytest.mark.parametrize("prime", [7, 257, 2**61 - 1, PRIME])
@pytest.mark.parametrize("threshold", [1, 2, 3, 5])
def test_any_so_many_shares_recover_the_secret(prime, threshold):
    for draw in range(5):
        numbers = [int.from_bytes(np.random.default_rng([draw, k]).bytes(40)) % prime for k in range(threshold)]
        shares = share(numbers[0], numbers[1:], range(1, 7), prime=prime)
        for size in range(threshold, 7):
            for points in itertools.combinations(shares, size):
                assert recover({x: shares[x] for x in points}, prime=prime) == numbers[0]


def test_fewer_shares_fit_every_secret_alike():
    """All polynomials over a small field: two shares of three come from each secret equally often."""
    prime = 7
    for points in itertools.combinations(range(1, 7), 2):
        seen = [
            (secret, *share(secret, coefficients, points, prime=prime).values())
            for secret in range(prime)
            for coefficients in itertools.product(range(prime), repeat=2)
        ]
        assert len(set(seen)) == prime**3  # each secret with each pair of shares exactly once


@pytest.mark.parametrize("points", [[0, 1], [1, 1], [1, 8], [7, 2]])
def test_points_differ_and_are_not_zero(points):
    with pytest.raises(ValueError, match="points must differ and not be 0"):
        share(3, [1], points, prime=7)


@pytest.mark.parametrize("secret", [-1, 7])
def test_secrets_are_in_the_field(secret):
    with pytest.raises(ValueError, match="a secret must be in"):
        share(secret, [1], [1, 2], prime=7)


# --- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_clients", "num_elements", "num_bits", "bits", "expansion"),
    [
        (2**10, 2**20, 26, 29_096_960, 1.734),
        (2**14, 2**24, 30, 532_675_584, 1.984),
        (100, 1_663_370, 23, 38_435_686, 1.444),
        (100, 1_206_590, 23, 27_929_746, 1.447),
    ],
)
def test_the_bill_is_the_published_one(num_clients, num_elements, num_bits, bits, expansion):
    assert num_bits == math.ceil(math.log2(num_clients * (2**16 - 1) + 1))
    bill = protocol_cost(num_clients=num_clients, num_elements=num_elements, num_bits=num_bits)
    total = sum(phase.bits_up + phase.bits_down for phase in bill)
    assert (total, round(total / (16 * num_elements), 3)) == (bits, expansion)


def test_the_bill_is_what_the_clients_send():
    outcome = run_secure_sum(VALUES, threshold=3, num_bits=23)
    bill = protocol_cost(num_clients=5, num_elements=3, num_bits=23)
    assert outcome.bits_up == {phase.phase: 5 * phase.bits_up for phase in bill}


def test_the_bill_is_what_the_clients_compute(monkeypatch):
    drawn = []
    real = secure_protocol._masked_input
    mask = secure_protocol._mask
    monkeypatch.setattr(secure_protocol, "_mask", lambda key, size: drawn.append(size) or mask(key, size))
    client, *others = (secure_protocol._Client(i, i + 3, i + 5, i + 7) for i in range(5))
    real(client, VALUES[0], {c.id: c.public() for c in (client, *others)}, 23)
    bill = {phase.phase: phase for phase in protocol_cost(num_clients=5, num_elements=3, num_bits=23)}
    assert sum(drawn) == bill["send masked input"].mask_elements
    assert len(drawn) - 1 == bill["send masked input"].key_agreements


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1}, r"threshold must be an integer in \[2, 5\]; got threshold=1"),
        ({"threshold": 6}, r"threshold must be an integer in \[2, 5\]; got threshold=6"),
        ({"threshold": 2, "num_bits": 33}, r"num_bits must be an integer in \[1, 32\]; got num_bits=33"),
        ({"threshold": 2, "dropouts": {1: "lunch"}}, "dropouts name clients and phases; got 1: 'lunch'"),
        ({"threshold": 2, "dropouts": {5: "unmask"}}, "dropouts name clients and phases; got 5: 'unmask'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run_secure_sum(VALUES, **options)


@pytest.mark.parametrize("values", [np.ones((3, 2)), np.arange(3)])
def test_values_are_matrices_of_integers(values):
    with pytest.raises(TypeError, match=r"values are integers \[clients, elements\]; got"):
        run_secure_sum(values, threshold=2)


def test_nobody_is_below_every_threshold():
    with pytest.raises(ValueError, match="needs threshold=2 clients in every phase; got 0 to advertise keys"):
        run_secure_sum(np.zeros((0, 3), np.uint32), threshold=2)
