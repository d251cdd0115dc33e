"""What clients keep between rounds, on disk: control variates, personal parameters, errors to feed back."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree
from fedjx.core.language.narrow import narrowed
from fedjx.core.language.shares import Share
from fedjx.core.language.values import Clients
from fedjx.data.federated_data import places_of
from fedjx.data.state_journal import ENTRY, ROWS, Journal, close, create, locked, read_head
from fedjx.data.state_rows import RowFile, blocks, check_schema, checksums, for_blocks, layout, spoken


class ClientStates:
    """A state for each of millions of clients, on disk, changed round by round and never in part.

    A state is a pytree of arrays, the same shapes for all clients. A round takes states of some clients and puts new
    ones, chunk by chunk; `commit` makes them count, all at once. A process that is killed at any moment leaves the
    states of the last round that was committed durably, and so does one that ends without `close`. Until the commit
    `take` reads the states of the round before.

    Earlier rounds can be returned to, as a run does that resumes from a checkpoint: `rollback` goes to any
    round since the pinned one, which is at first round 0. `pin` a round when no checkpoint before it will be used;
    until then every state put takes room. Room that became free is used again.

    A client that was never put has the initial state, which takes nothing on disk. Memory holds 4 bytes a client, 4
    bytes a state on disk, and the chunk in hand.

    One process at a time writes, and one thread of it; any number may read, and see the round that was the last on disk
    when they opened. What a writer frees by `pin` may vanish under them, which is an error, never a wrong state.

    Args:
      path: The directory. If there is nothing, it is created, atomically.
      initial: The state of an untouched client: a pytree of arrays, or of `jax.ShapeDtypeStruct` for zeros.
      num_clients: Number of clients K, which are numbered from 0, as in a `Store`; less than 2^31.
      writable: Whether to write. If not, the directory must exist.

    Attributes:
      path: The directory, absolute.
      num_clients: Number of clients K.

    Raises:
      FileNotFoundError: If a file is missing, there is nothing at the path and `writable` is False, or no parent.
      ValueError: If the path holds states of other shapes, another number of clients or another initial state, if they
        are corrupt, or `initial` holds nothing.
      TypeError: If a leaf is not numeric; of random keys, keep `jax.random.key_data`.
      BlockingIOError: If another process, or another object of this one, writes.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/states"
    >>> states = ClientStates(path, {"control": np.zeros(2, np.float32), "visits": np.int32(0)}, num_clients=1_000_000)
    >>> states.put([7, 3], {"control": np.array([[1, 2], [3, 4]], np.float32), "visits": np.array([1, 1], np.int32)})
    >>> states.commit(1)
    >>> states.take([3, 4])["control"].tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    >>> states.put([3], states.take([7]))
    >>> states.commit(2)
    >>> states.rollback(1)
    >>> states
    ClientStates(num_clients=1000000, state=<control=float32[2],visits=int32>, round=1)
    """

    def __init__(self, path: str | Path, initial: PyTree, *, num_clients: int, writable: bool = True):
        check_integer("[1, 2^31)", "Ids are int32.", num_clients=num_clients)
        self.path, self.num_clients = Path(os.path.abspath(path)), num_clients
        self._layout = layout(initial)
        self._rows = RowFile(self.path / ROWS, self._layout.row_bytes)
        if writable and not os.path.lexists(self.path):
            schema = {"num_clients": num_clients, "leaves": self._layout.schema()}
            create(self.path, schema, self._rows.header, self._layout.initial.tobytes())
        read_head(self.path)  # What is none is left alone.
        self._rows.check_size(0)
        self._file, lock = locked(self.path) if writable else (None, None)
        self._close, self._process = weakref.finalize(self, close, self._file, lock), os.getpid()
        with self._closed_by_errors():
            self._journal = Journal(self.path)
            check_schema(self._journal.head, self._layout, num_clients, self.path)
            self._rows.check_size(self._journal.num_slots)
            if writable:
                self._journal.clean()
        self._forget()

    @property
    def round(self) -> int:
        """The last committed round; 0 if there is none."""
        return self._journal.last.number

    @property
    def rounds(self) -> list[int]:
        """The rounds that can be returned to: the pinned one, and all committed since."""
        return [found.number for found in self._journal.kept()]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of all that was put, by whom and in which round: two runs that agree in it have equal states."""
        return self._journal.last.fingerprint.hex()

    @property
    def num_touched(self) -> int:
        """Number of clients that have a state of their own."""
        return int(np.count_nonzero(self._journal.slots))

    def take(self, ids: ArrayLike) -> PyTree:
        """Reads the committed states of some clients and checks that they are as they were written.

        Args:
          ids: Integers ``[C]``, the clients, in any order; one may be named again.

        Returns:
          The pytree with leaves ``[C, ...]`` in NumPy, new but for a common buffer.

        Raises:
          ValueError: If there is no client, an id does not exist, or a state is corrupt.
        """
        self._check_open()
        slots = self._journal.slots[places_of(range(self.num_clients), ids)]
        rows, wrong = np.empty((len(slots), self._layout.row_bytes), np.uint8), np.empty(len(slots), bool)

        def read(part: slice) -> None:
            rows[part][slots[part] == 0] = self._layout.initial
            touched = np.flatnonzero(slots[part])
            self._rows.read(slots[part][touched], rows[part], touched)
            wrong[part] = checksums(rows[part]) != self._journal.crc32[slots[part]]

        for_blocks(read, len(slots), self._layout.row_bytes)
        self._check_intact(ids, wrong)
        return self._layout.unpacked(rows)

    def put(self, ids: ArrayLike, states: PyTree) -> None:
        """Writes new states of some clients, which count from the next `commit` on.

        Args:
          ids: Integers ``[C]``, the clients, each at most once a round.
          states: The pytree with leaves ``[C, ...]``, in the dtypes of the initial state.

        Raises:
          ValueError: If a client was put since the last commit, does not exist, or the states are of other shapes.
          TypeError: If the states have other dtypes.
        """
        file = self._writable()
        ids = places_of(range(self.num_clients), ids)
        leaves = self._layout.checked(states, len(ids))
        clients = set(ids.tolist())
        if len(clients) < len(ids) or not self._clients.isdisjoint(clients):
            again = sorted(self._clients & clients)[:5] or "one twice"
            raise ValueError(
                f"a client is put once a round; got {again} again. Name each once in a cohort, and commit a round "
                "before the next, or discard what was put."
            )
        entries = np.empty(len(ids), ENTRY)
        entries["client"], entries["slot"] = ids, self._allocated(len(ids))

        def write(part: slice) -> None:
            rows = self._layout.packed([leaf[part] for leaf in leaves], len(ids[part]))
            self._rows.write(file, entries["slot"][part], rows)
            entries["crc32"][part] = checksums(rows)

        for_blocks(write, len(ids), self._layout.row_bytes)
        self._pending.append(entries)
        self._clients |= clients

    def commit(self, round: int, *, durable: bool = True) -> None:
        """Makes what was put since the last commit count.

        A commit that fails, as on a full disk, closes the states; open them again to see the round that they are in.

        Args:
          round: Of which number, greater than that of the last one. A round without states may be committed too.
          durable: Whether to wait until it is on disk. If not, it counts there with the next one that is, `sync` or
            `close`; a crash before that, or an end without `close`, leaves the last one that was. A run needs the
            rounds of its checkpoints.

        Raises:
          ValueError: If the round is not greater.
        """
        self._writable()
        if not self.round < (round := operator.index(round)) < 2**63:
            raise ValueError(f"rounds need to increase; got {round=} after {self.round}. Number them from 1.")
        with self._closed_by_errors():
            self._journal.append(round, np.concatenate([np.empty(0, ENTRY), *self._pending]))
        self._forget()
        if durable:
            self.sync()

    def sync(self) -> None:
        """Waits until all committed rounds are on disk."""
        file = self._writable()
        with self._closed_by_errors():
            if self._journal.waiting:
                os.fsync(file)
                self._journal.write()

    def discard(self) -> None:
        """Gives up what was put since the last commit."""
        self._writable()
        self._forget()

    def rollback(self, round: int, *, fingerprint: str | None = None) -> None:
        """Returns to an earlier committed round, for good, and gives up what was put since the last commit.

        Args:
          round: Which, one of `rounds`.
          fingerprint: What `fingerprint` was in that round, if the states must be those of that very run.

        Raises:
          ValueError: If there is no such round, or its fingerprint is another.
        """
        self._writable()
        round = operator.index(round)
        found = self._journal.find(round).fingerprint.hex()
        if fingerprint not in (None, found):
            raise ValueError(
                f"a run resumes with its own states; got {fingerprint=} for round {round} and {found} in {self.path}. "
                "Give the path of the run that was checkpointed."
            )
        with self._closed_by_errors():
            if round < self.round:
                self.sync()
                self._journal.rollback(round)
        self._forget()

    def pin(self, round: int) -> None:
        """Gives up the rounds before this one, of which no checkpoint is left, and frees the room that they take.

        Args:
          round: Which, one of `rounds`.

        Raises:
          ValueError: If there is no such round, or states were put since the last commit.
        """
        self._writable()
        if self._pending:
            raise ValueError(
                f"a round is pinned between rounds; got {len(self._clients)} states put. Commit them first."
            )
        round = self._journal.find(operator.index(round)).number
        with self._closed_by_errors():
            if round > self.rounds[0]:
                self.sync()
                self._journal.pin(round)
        self._forget()

    def cohort(self, ids: ArrayLike) -> StateCohort:
        """Returns a cohort's states as an argument of a computation; one that streams takes them chunk by chunk."""
        ids = np.asarray(ids)
        return StateCohort(self, places_of(range(self.num_clients), ids) if ids.size else ids.astype(np.int64))

    def sink(self, clients: Clients) -> None:
        """Puts a chunk of new states: the `sink` of a streamed computation whose only result at CLIENTS they are.

        Args:
          clients: What a sink is called with; what its mask leaves out is left out.
        """
        (states,) = clients.value
        rows = np.flatnonzero(np.asarray(clients.mask))
        if len(rows):
            self.put(np.asarray(clients.id)[rows], jax.tree.map(lambda x: np.asarray(x)[rows], states))

    def verify(self) -> None:
        """Reads all that counts on disk, also of earlier rounds, and compares it with its checksums.

        Of rounds that were not committed durably it sees nothing before `sync`; `take` checks what it reads of them.

        Raises:
          FileNotFoundError: If a file is missing.
          ValueError: If a file is not as it was written, saying which and where.
        """
        journal = Journal(self.path)
        self._rows.check_size(journal.num_slots)
        slots = np.setdiff1d(np.arange(journal.num_slots), journal.free)
        corrupt: list[int] = []
        for block in blocks(len(slots), self._layout.row_bytes):
            part = slots[block]
            rows = np.empty((len(part), self._layout.row_bytes), np.uint8)
            self._rows.read(part, rows, np.arange(len(part)))
            corrupt += part[checksums(rows) != journal.crc32[part]].tolist()
        if corrupt:
            raise ValueError(
                f"client states need to be as they were written; {self._rows.path} is corrupt in slots "
                f"{str(corrupt[:5])[1:-1]} ({len(corrupt)} in all). Take a copy of the directory, or begin anew."
            )

    def close(self) -> None:
        """Lets others write; what was put since the last commit is given up."""
        if self._close.alive and self._file is not None and self._process == os.getpid():
            self.sync()
        self._close()

    def __enter__(self) -> ClientStates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        raise TypeError("client states have one writer; got a copy asked for. Open them by path, writable=False.")

    def __repr__(self) -> str:
        return (
            f"ClientStates(num_clients={self.num_clients}, state={spoken(self._layout.schema())}, round={self.round})"
        )

    # --- private ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._close.alive:
            raise ValueError(f"client states need to be open; those of {self.path} are closed. Open them again.")

    def _writable(self) -> int:
        """Returns the file of rows, to write to."""
        self._check_open()
        if self._file is None or self._process != os.getpid():
            raise ValueError(
                f"only the process that opened client states to write changes them; got {self.path} opened to read, or "
                "before a fork. Open them in one process, writable=True."
            )
        return self._file

    def _forget(self) -> None:
        self._pending: list[np.ndarray] = []
        self._clients: set[int] = set()
        self._free, self._num_slots = self._journal.free, self._journal.num_slots

    def _allocated(self, number: int) -> np.ndarray:
        """Returns slots in which there is nothing that counts: free ones first, then new ones at the end."""
        free, self._free = self._free[:number], self._free[number:]
        new = np.arange(self._num_slots, self._num_slots + number - len(free))
        self._num_slots += len(new)
        if self._num_slots > 2**31:
            raise ValueError(f"there are 2^31 slots for states; got more in {self.path}. Pin a later round.")
        return np.concatenate([free, new])

    def _check_intact(self, ids: ArrayLike, wrong: np.ndarray) -> None:
        """Raises ValueError, which says why, if states are not those that were committed."""
        if not wrong.any():
            return
        last = self._journal.head["round"], self._journal.head["fingerprint"]
        if last not in [(found.number, found.fingerprint.hex()) for found in Journal(self.path).kept()]:
            raise ValueError(
                f"states are read as they were when they were opened, while these are kept; round {last[0]} of "
                f"{self.path} is given up. Open them again."
            )
        raise ValueError(
            f"states need to be as they were written; {self.path / ROWS} is corrupt for client "
            f"{np.asarray(ids)[wrong][0]} ({wrong.sum()} of those asked for). Take a copy of the directory, or begin "
            "the run anew."
        )

    @contextlib.contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        """Closes the states if an error leaves open whether what is in memory is what is on disk."""
        try:
            yield
        except BaseException:
            self._close()
            raise


@dataclasses.dataclass(frozen=True, eq=False)
class StateCohort:
    """The states of a cohort, which a streamed computation takes chunk by chunk, as the data beside them says.

    Attributes:
      states: What they are taken from.
      ids: Integers, the members of the cohort.
      sizes: None: the data says who runs together.
    """

    states: ClientStates
    ids: np.ndarray
    lanes: int | Literal["auto"] = "auto"
    sizes: None = None

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Share = Share()) -> Clients:
        """Takes the committed states of the named clients; where the mask is False it is padding."""
        if share.positions is not None:
            raise ValueError("client states are written by one process; got several. Run on the devices of one.")
        states = self.states.take(np.maximum(ids, 0))  # of nobody, -1, the first client's as padding
        states = jax.tree.map(lambda x: narrowed(x, "a client's state"), states)
        return Clients(states, mask, np.where(mask, ids, -1).astype(np.int32))
