"""Asking a question: who is asked, how much of each goes in, whom they trust, and what it costs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjx.analytics.answer import Answer
from fedjx.analytics.dialogue import Dialogue, Progress, begun, save
from fedjx.analytics.ledger import Ledger
from fedjx.analytics.question import Question, Total
from fedjx.analytics.records import Records
from fedjx.analytics.sums import Shown
from fedjx.analytics.trust import SEES, TRUSTS, Prepared, Terms, Trust, prepared
from fedjx.analytics.who import Everybody, Reports, drawn
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.core.language.fingerprint import of_values
from fedjx.core.language.names import Key
from fedjx.core.language.traffic import traffic
from fedjx.data.federated_data import ClientData
from fedjx.data.fingerprint import fingerprint
from fedjx.data.sampling import Sampler
from fedjx.privacy.local import Randomizer
from fedjx.privacy.loss import Relation

_MOST_MOMENTS = 64  # elements of a table of whose clients all products are summed


class AskArguments(TypedDict, total=False):
    """How a question is asked, for functions to pass on to `ask`, which describes it."""

    trust: Trust
    epsilon: float | None
    delta: float
    relation: Relation | None
    max_records: int | None
    clients: ArrayLike | None
    sampler: Sampler | None
    round: int
    min_clients: int | None
    num_bits: int | None
    randomizer: Callable[..., Randomizer] | None
    key: Key | None
    ledger: Ledger | None
    path: str | Path | None


class TooFewAnswers(RuntimeError):
    """Raised in place of an answer that too few clients have given."""


def ask(question: Question | Dialogue, data: ClientData, **how: Unpack[AskArguments]) -> Answer:
    """Asks clients a question, or several that follow from one another; nobody sees more than the model of trust says.

    Args:
      question: Such as `mean` or `histogram` makes. Noise on the answers to a `Dialogue` is for all its rounds
        together; of reports that are private by themselves each client makes one, in a round drawn at random.
      data: The clients' records: `FederatedData` in memory or a `Store` on disk, whose columns are streamed.
      **how: As follows.

        - ``trust``: "plain", the server sees what each client sends; "secure", it sees exact sums alone; "central_dp",
          it is trusted to add noise, of Gauss with a delta and of Laplace without; "distributed_dp", clients add noise
          and it sees the sum; "local_dp", the report of each client that has a record is private by itself;
          "shuffled_dp", somebody shuffles such reports. `fedjx.analytics.SEES` says what the server sees.
        - ``epsilon``, ``delta``: The most that the answer may cost.
        - ``relation``: Which two data sets are to look alike, as in `fedjx.privacy.Account`: those that differ in *all*
          records of one client. That of the mechanism's theorem if not given.
        - ``max_records``: The most records of a client that go in, drawn at random; all of them if not given, which
          noise does not allow. Local reports are on one record.
        - ``clients``: Integers ``[C]``, of those who are asked, if they are not all: the answer is about them.
        - ``sampler``: Draws a sample, ``round`` says which; the answer is an estimate for all clients, and its
          standard deviation has the sampling in it. Drawn by `poisson_sampler`, a sample costs less.
        - ``min_clients``: The fewest of which anything is shown, 2 if not given; of shuffled reports, and of shares of
          noise, which hide the less the fewer there are, all who are asked.
        - ``num_bits``: Of the ring in which noisy tables are summed, with shares of noise; 24 or, of few clients, less
          if not given. Clients round to a grid that is the finer the more there are.
        - ``randomizer``: How clients report, in place of what has the least variance: of counts a function of
          ``(epsilon, num_categories)`` such as `fedjx.privacy.hadamard_response`, of one number of ``(epsilon, bound)``
          such as `piecewise_response`, of several of ``(epsilon, bounds)``.
        - ``key``: A `jax.random.key`, of all that is drawn; ``jax.random.key(0)`` if not given, but for private
          answers, whose noise nobody may know. Each question takes one of its own: of two answers with the same noise
          the difference has none.
        - ``ledger``: Pays for the question, or refuses it.
        - ``path``: A file in which a dialogue keeps, after each round, how far it has come. It goes on from there, to
          the same answer; what was paid is not paid again.

    Returns:
      An `Answer`.

    Guarantees: It does not depend on the order of clients, on chunks and devices, up to rounding of floats; counts and
    secure sums do not at all. Memory does not grow with the number of clients.

    Raises:
      ValueError: If the question cannot be asked so.
      BudgetSpent: If the ledger does not pay.
      TooFewAnswers: If fewer than ``min_clients`` had a record for the answer.

    >>> from fedjx.analytics import ask, mean
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 64]}])
    >>> answer = ask(mean("age", low=0, high=100), ages)
    >>> round(float(answer.value), 4), answer.num_answered, answer.sees
    (42.8, 3, "every client's entries")
    """
    unknown = sorted(set(how) - set(AskArguments.__annotations__))
    if unknown:
        raise TypeError(f"arguments are those of AskArguments; got {unknown[0]!r}. Name one that is there.")
    if isinstance(question, Dialogue):
        return _conversed(question, data, how)
    if how.get("path") is not None:
        raise ValueError("what goes on after a crash is a Dialogue; got path= for one question. Leave it out.")
    asked = _asked(question, data, how)
    way = prepared(question, asked.terms, with_moments=asked.samples and _has_moments(question))
    bits = _bits(question, way, asked)
    _pay(question, way, how, 1)
    total, answered = _total(question, way, asked)
    return _answer(question.estimate(total), way, asked, answered, bits)


def _conversed(dialogue: Dialogue, data: ClientData, how: AskArguments) -> Answer:
    """Asks question after question, and keeps how far that has come."""
    question, path = dialogue.question(dialogue.first, 0), how.get("path")
    question = question._replace(refuses={**question.refuses, **dialogue.refuses})
    splits = how.get("trust") in ("local_dp", "shuffled_dp")
    if splits and how.get("sampler") is not None:
        raise ValueError(
            "of local reports each client makes one, in a round that is drawn at random; got a sampler besides. Leave "
            "it out, or name clients=."
        )
    asked = _asked(question, data, how, num_rounds=1 if splits else dialogue.num_rounds)
    number, groups = asked.terms.num_clients, _split(asked, dialogue.num_rounds) if splits else None
    whole = asked.population if asked.samples else number
    if groups is not None:  # on the terms of the smallest, in which reports hide the least
        asked = _asked(question, data, {**how, "clients": groups[-1]})
    way = prepared(question, asked.terms, with_moments=asked.samples and _has_moments(question))
    path = None if path is None else Path(path)
    identity = _identity(dialogue, question, way, asked, how)
    bits = _bits(question, way, asked) * asked.terms.num_rounds
    progress = begun(dialogue, identity, path)
    _pay(question, way, how, asked.terms.num_rounds, progress.token)
    for round in range(progress.round, dialogue.num_rounds):
        question = dialogue.question(progress.state, round)
        total, answered = _total(question, way, _of_round(asked, data, how, round, groups))
        if groups is not None:  # of records in bins, one of a client: its square is its count
            total = _scaled(total, len(groups[round]) / whole, np.maximum(total.table, 0.0))
        state = dialogue.update(progress.state, round, total)
        if answered is not None:  # in groups these are others in every round
            answered = (sum if splits else max)((answered, progress.num_answered or 0))
        progress = Progress(round + 1, state, answered, progress.token)
        save(progress, identity, path)
    found = _answer(dialogue.estimate(progress.state), way, asked, progress.num_answered, bits)
    return found._replace(num_clients=found.num_clients and number, num_rounds=asked.terms.num_rounds)


def _pay(question: Question, way: Prepared, how: AskArguments, rounds: int, token: str = "") -> None:
    ledger = how.get("ledger")
    if ledger is None:
        return
    name, key = f"a question about {', '.join(question.columns) or 'clients'}", how.get("key")
    if way.spent is None or key is None:
        raise ValueError(
            f"no budget is enough for an answer without noise; got a ledger and trust={how.get('trust', 'plain')!r}. "
            "Leave the ledger out, or trust less."
        )
    ledger.pay(name, way.spent, rounds, token=token, drawn=digest(key))


def digest(key: Key) -> str:
    """Names a key, and does not tell it: who knows it knows the noise."""
    return hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes()).hexdigest()[:16]


def _answer(value: tuple[Any, Any], way: Prepared, asked: _Asked, answered: int | None, bits: int) -> Answer:
    terms, number = asked.terms, asked.terms.num_clients
    # Who is drawn by himself is hidden by that: not even how many they are is said.
    is_hidden = terms.trust == "central_dp" and terms.sampler.description["kind"] == "poisson"
    return Answer(*value, None if is_hidden else number, answered, bits, SEES[terms.trust], terms.trust, way.spent)


class _Asked(NamedTuple):
    """Who is asked, on which terms."""

    terms: Terms
    records: Records
    key: Key
    population: int
    samples: bool


def _asked(question: Question, data: ClientData, how: AskArguments, *, num_rounds: int = 1) -> _Asked:
    """Resolves and checks how a question is asked."""
    if not isinstance(question, Question) or not hasattr(data, "schema"):
        raise TypeError(
            "ask takes a question, or a Dialogue, and then client data, FederatedData or a Store; got "
            f"{type(question).__name__} and {type(data).__name__}. Import other data with fedjx.data first."
        )
    trust, sampler, ledger = how.get("trust", "plain"), how.get("sampler"), how.get("ledger")
    check_choice(TRUSTS, trust=trust)
    _check_numbers(how)
    key, records = _key(trust, how), Records(data, question.columns, _ids(trust, data, how))
    number = records.num_clients
    # Of a sample it is not said how many they are.
    fewest, most = how.get("min_clients"), max(data.num_clients if sampler is not None else number, 1)
    fewest = (most if trust in ("shuffled_dp", "distributed_dp") else min(2, most)) if fewest is None else fewest
    check_integer(f"[1, {most}]", "It is at most the number of clients that are asked.", min_clients=fewest)
    described_by = Everybody(number) if sampler is None else sampler
    if trust == "shuffled_dp":  # reports hide among the fewest of which anything is shown, however they were drawn
        described_by = Reports(described_by, fewest)
    relation: Relation | None = how.get("relation") or (ledger.relation if ledger is not None else None)
    terms = Terms(
        trust,
        how.get("epsilon"),
        how.get("delta", 0.0),
        relation,
        how.get("max_records"),
        described_by,
        fewest,
        number,
        how.get("num_bits") or min(24, 19 + (most.bit_length() - 1) // 2),  # finer steps, and noise could not be drawn
        num_rounds,
        data.largest,
        data.num_examples,
        how.get("randomizer"),
    )
    return _Asked(terms, records, key, data.num_clients, sampler is not None)


def _ids(trust: Trust, data: ClientData, how: AskArguments) -> np.ndarray | None:
    """Returns the clients that are asked, if they are not all."""
    sampler, clients = how.get("sampler"), how.get("clients")
    if sampler is not None and clients is not None:
        raise ValueError("clients are named, or drawn by a sampler; got both. Leave one out.")
    if sampler is not None and trust == "distributed_dp":
        raise ValueError(
            "shares of noise are for a number of clients that is known before; got a sampler. Leave it out, name "
            'clients=, or take trust="central_dp".'
        )
    if sampler is not None:
        return drawn(sampler, data, how.get("round", 0))
    ids = None if clients is None else np.asarray(clients)
    if ids is not None and not ids.size:
        raise ValueError("a question is to somebody; got clients=[]. Name some, or leave it out to ask all.")
    return ids


def _key(trust: Trust, how: AskArguments) -> Key:
    key = how.get("key")
    if key is None and trust not in ("plain", "secure"):
        raise ValueError(f"trust={trust!r} draws noise that nobody may know; got no key. Pass jax.random.key(seed).")
    if key is None:
        return jax.random.key(0)
    if not jnp.issubdtype(getattr(key, "dtype", int), jax.dtypes.prng_key):
        raise TypeError(f"a key is a random key of JAX; got {key!r}. Pass jax.random.key(42).")
    return key


def _check_numbers(how: AskArguments) -> None:
    if how.get("epsilon") is not None:
        check_number("(0, inf)", epsilon=how.get("epsilon"))
    check_number("[0, 1)", "Take less than one over the number of clients.", delta=how.get("delta", 0.0))
    if how.get("max_records") is not None:
        check_integer("[1, inf)", max_records=how.get("max_records"))


def _arguments(question: Question, way: Prepared, asked: _Asked) -> tuple[Any, ...]:
    return asked.key, question.told, *way.extra, asked.records


def _bits(question: Question, way: Prepared, asked: _Asked) -> int:
    """Returns how much a client sends, and raises what the question's own code raises, before anybody is asked."""
    return traffic(way.computation, *_arguments(question, way, asked)).up


def _total(question: Question, way: Prepared, asked: _Asked) -> tuple[Total, int | None]:
    """Asks; returns the table, with what is known of its error, and how many have answered."""
    shown = jax.tree.map(np.asarray, way.computation(*_arguments(question, way, asked)))
    terms = asked.terms
    answered = None if shown.answered is None else int(shown.answered)
    if answered is not None and answered < terms.min_clients and terms.trust != "plain":
        raise TooFewAnswers(
            f"an answer is shown of at least min_clients={terms.min_clients} clients; got {answered} that have a "
            "record for it. Ask more, or about something more common."
        )
    counts = None if shown.sums.counts is None else np.asarray(shown.sums.counts, np.float64)
    of_values, of_counts = way.noise(terms.num_clients if answered is None else answered, counts)
    columns, variances = [], []
    unit = np.array(question.bounds) if way.divides else np.ones(len(question.bounds))
    values = None if shown.sums.values is None else way.read(shown.sums.values)
    for part, variance, scale in ((values, of_values, unit), (counts, of_counts, np.ones(1))):
        if part is not None:
            columns.append(np.asarray(part, np.float64).reshape(question.num_bins, -1) * scale)
            variances.append(np.broadcast_to(np.reshape(variance, (-1, 1)), columns[-1].shape) * scale**2)
    total = Total(np.concatenate(columns, axis=1), np.concatenate(variances, axis=1))
    return (_for_all(question, asked, shown, total) if asked.samples else total), answered


def _has_moments(question: Question) -> bool:
    return int(np.prod(question.shape)) <= _MOST_MOMENTS


def _for_all(question: Question, asked: _Asked, shown: Shown, total: Total) -> Total:
    """Returns the estimate for the whole population: of Horvitz and Thompson, with its covariance."""
    description, number, population = asked.terms.sampler.description, asked.terms.num_clients, asked.population
    share = description["probability"] if description["kind"] == "poisson" else number / population
    if shown.moments is not None:
        moments = np.asarray(shown.moments, np.float64)
        if description["kind"] == "uniform":
            flat = total.table.reshape(-1)
            moments = (moments - np.outer(flat, flat) / number) * number / max(number - 1, 1)
        covariance = moments * (1 - share) / share**2 + np.diag(total.variance.reshape(-1)) / share**2
        return Total(total.table / share, np.diag(covariance).reshape(total.table.shape), covariance)
    # Of n records in a bin, within bounds b, a client's sum is t^2 <= n^2 b^2, and n at most the most that it has.
    is_one = question.distinct or asked.terms.trust in ("local_dp", "shuffled_dp")
    most = 1 if is_one else (asked.terms.max_records or asked.terms.largest)
    counts = np.maximum(total.table[:, -1:], 0.0) if question.counts else population * share * most
    return _scaled(total, share, most * np.array([*question.bounds, *[1.0] * question.counts]) ** 2 * counts)


def _scaled(total: Total, share: float, squares: np.ndarray) -> Total:
    """Returns the estimate for all clients by a share of them, the squares of whose tables sum up to that at most."""
    return Total(total.table / share, (squares * (1 - share) + total.variance) / share**2)


def _split(asked: _Asked, num_rounds: int) -> list[np.ndarray]:
    """Divides the clients among rounds at random, each by its own key, as evenly as it goes."""
    records = asked.records
    ids = np.asarray(records.data.ids[:] if records.ids is None else records.ids)
    if len(ids) < num_rounds:
        raise ValueError(
            f"each client reports in one round; got {len(ids)} clients for {num_rounds}. Ask more of them."
        )
    own = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(asked.key, 4)))(ids.astype(np.int32))
    order = np.argsort(np.asarray(jax.vmap(jax.random.bits)(own)), kind="stable")
    return np.array_split(ids[order], num_rounds)


def _of_round(
    asked: _Asked, data: ClientData, how: AskArguments, round: int, groups: list[np.ndarray] | None
) -> _Asked:
    """Returns who is asked in a round, with the round's key."""
    # Folded twice, so that no question has it whose key is folded out of the dialogue's.
    key = jax.random.fold_in(jax.random.fold_in(asked.key, 5), round)
    sampler = how.get("sampler")
    if groups is not None:
        records = Records(data, asked.records.columns, groups[round])
    elif sampler is not None:
        records = Records(data, asked.records.columns, drawn(sampler, data, how.get("round", 0) + round))
    else:
        return asked._replace(key=key)
    return asked._replace(key=key, records=records, terms=asked.terms._replace(num_clients=records.num_clients))


def _identity(
    dialogue: Dialogue, question: Question, way: Prepared, asked: _Asked, how: AskArguments
) -> dict[str, Any]:
    """Returns what must be the same for a dialogue to go on, as JSON holds it."""
    terms, data = asked.terms, asked.records.data
    clients = how.get("clients")
    ids = None if clients is None else np.asarray(clients, np.int64)
    return {
        "clients": None if ids is None else hashlib.sha256(np.sort(ids).tobytes()).hexdigest(),
        "round": how.get("round", 0),
        "first": of_values(dict(dialogue.first)),
        "columns": list(question.columns),
        "shape": list(question.shape),
        "num_rounds": dialogue.num_rounds,
        "terms": [terms.trust, terms.epsilon, terms.delta, terms.max_records, terms.min_clients],
        "relation": None if way.spent is None else way.spent.relation,
        "key": digest(asked.key),
        "num_bits": terms.num_bits,
        "sampler": dict(terms.sampler.description),
        "data": fingerprint(data),
    }
