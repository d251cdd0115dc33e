"""Which client's state is in which slot: a journal of the rounds on disk, and the file that says how far it counts."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjx.data.manifest import checked_text, partial_path, sync_directory

HEAD, ROWS = "head.json", "rows.npy"
FORMAT, VERSION = "fedjx client states", 1

# A state that a round put: whose it is, which slot it is in, and the crc32 of the slot.
ENTRY = np.dtype([("client", "<i4"), ("slot", "<i4"), ("crc32", "<u4")])
# A record begins with its round, the number of its entries, the fingerprint, and the crc32 of these and of the entries.
_RECORD = struct.Struct("<qq32sI")
_CHECKED = _RECORD.size - 4
# Fewer bytes of rounds that nobody returns to are not worth another journal.
_WORTH = 1 << 16
_ADVICE = "Take a copy of the directory, or begin the run anew."


class Round(NamedTuple):
    """A committed round.

    Attributes:
      number: Of the round.
      fingerprint: Of all that was committed until then.
      end: Where its record ends in the journal.
    """

    number: int
    fingerprint: bytes
    end: int


class Journal:
    """The slot of every client in the committed round, in memory as on disk.

    On disk it is a record for each round, of what it put; the first one holds the result of all rounds before. What
    counts is decided by `head.json` alone, which is replaced atomically and names the journal's file, how many of its
    bytes count and the round. To return to an earlier round is to let fewer bytes count.

    Attributes:
      head: What `head.json` says.
      slots: int32 ``[K]``, where each client's state is; 0, the slot of the initial state, for untouched ones.
      crc32: uint32 ``[S]``, of every slot.
      rounds: The rounds in the journal's file, of which those before the pinned one are given up.
      free: int32, slots that hold nothing of these rounds, in increasing order.
      num_slots: Number of slots S.
      waiting: Records of the last rounds that are not on disk yet.

    Raises:
      FileNotFoundError: If there is no journal, or a file is missing.
      ValueError: If a file is corrupt or of another version.
    """

    head: dict[str, Any]
    slots: np.ndarray
    crc32: np.ndarray
    rounds: list[Round]
    free: np.ndarray
    num_slots: int
    waiting: list[bytes]

    def __init__(self, directory: Path):
        self.directory = directory
        self._load()

    @property
    def last(self) -> Round:
        """The last committed round."""
        return self.rounds[-1]

    def kept(self) -> list[Round]:
        """Returns the rounds that can be returned to."""
        return [found for found in self.rounds if found.number >= self.head["pinned"]]

    def find(self, number: int) -> Round:
        """Returns a committed round that can be returned to.

        Raises:
          ValueError: If it is none.
        """
        for found in self.kept():
            if found.number == number:
                return found
        raise ValueError(
            f"a round needs to be committed, and not before the pinned one; got round {number}, and {self.directory} "
            f"is pinned at {self.head['pinned']} and ends with {self.last.number}. Choose one between, or begin anew."
        )

    def append(self, number: int, entries: np.ndarray) -> None:
        """Commits a round, in memory."""
        entries = entries[np.argsort(entries["client"])]
        fingerprint = _fingerprint(self.last.fingerprint, number, entries)
        self.waiting.append(_packed(number, fingerprint, entries))
        self.rounds.append(Round(number, fingerprint, self.last.end + len(self.waiting[-1])))
        self.num_slots = max(self.num_slots, int(entries["slot"].max(initial=0)) + 1)
        if self.num_slots > len(self.crc32):
            self.crc32 = np.concatenate([self.crc32, np.zeros(self.num_slots, np.uint32)])
        self.slots[entries["client"]] = entries["slot"]
        self.crc32[entries["slot"]] = entries["crc32"]
        self.free = self.free[~np.isin(self.free, entries["slot"])]

    def write(self) -> None:
        """Commits on disk all rounds that were appended, whose states are there already."""
        path = self.directory / self.head["journal"]
        write_all(path, b"".join(self.waiting), self.head["journal_bytes"])
        self._write_head(self.last)
        self.waiting = []

    def rollback(self, number: int) -> None:
        """Makes an earlier round the last one, of those on disk."""
        self._write_head(self.find(number))
        self._load()

    def pin(self, number: int) -> None:
        """Gives up the rounds before this one, and so frees the slots of what they only hold."""
        pinned, name = self.find(number), self.head["journal"]
        base, last = self.rounds[0].end, self.last
        if pinned.end - base > max(base, _WORTH):
            name = f"journal-{int(name[8:-4]) + 1:05d}.bin"
            last = self._rewritten(name, pinned)
        self._write_head(last, journal=name, pinned=number)
        self.clean()
        self._load()

    def clean(self) -> None:
        """Removes what interrupted writers left behind."""
        for path in (*self.directory.glob("journal-*.bin"), self.directory / f"{HEAD}.new"):
            if path.name != self.head["journal"]:
                path.unlink(missing_ok=True)

    def _load(self) -> None:
        """Reads the journal; begins again where a writer has gone on meanwhile."""
        while True:
            head = read_head(self.directory)
            try:
                self._replay(head)
                return
            except (ValueError, OSError):
                if read_head(self.directory) == head:
                    raise

    def _replay(self, head: dict[str, Any]) -> None:
        slots, rounds, pinned = np.zeros(head["num_clients"], np.int32), [], head["pinned"]
        records = list(_records(self._bytes(head), self.directory / head["journal"]))
        most = max(int(entries["slot"].max(initial=0)) for _, entries in records)
        crc32, is_used = np.zeros(most + 1, np.uint32), np.zeros(most + 1, bool)
        crc32[0] = head["initial_crc32"]
        for found, entries in records:
            if found.number > pinned:
                is_used[slots[entries["client"]]] = True
            slots[entries["client"]] = entries["slot"]
            crc32[entries["slot"]] = entries["crc32"]
            rounds.append(found)
        is_used[slots] = True
        if (rounds[-1].number, rounds[-1].fingerprint.hex()) != (head["round"], head["fingerprint"]):
            raise ValueError(
                f"a journal needs to end with the last round; {self.directory / head['journal']} ends with round "
                f"{rounds[-1].number} instead of {head['round']}. {_ADVICE}"
            )
        is_used[0] = True
        self.head, self.slots, self.crc32, self.rounds, self.num_slots = head, slots, crc32, rounds, most + 1
        self.free, self.waiting = np.flatnonzero(~is_used).astype(np.int32), []

    def _bytes(self, head: Mapping[str, Any]) -> bytes:
        """Reads what counts of the journal."""
        path = self.directory / head["journal"]
        try:
            with open(path, "rb") as file:
                data = file.read(head["journal_bytes"])
        except FileNotFoundError:
            raise FileNotFoundError(f"client states need all their files; {path} is missing. {_ADVICE}") from None
        if len(data) < head["journal_bytes"]:
            raise ValueError(
                f"a journal needs the bytes that were committed; {path} is truncated: got {len(data)} bytes, expected "
                f"{head['journal_bytes']}. {_ADVICE}"
            )
        return data

    def _rewritten(self, name: str, pinned: Round) -> Round:
        """Writes a journal that begins with the pinned round, and returns the last one as it is there."""
        data = self._bytes(self.head)
        slots = np.zeros(len(self.slots), np.int32)
        for found, entries in _records(data[: pinned.end], self.directory / self.head["journal"]):
            del found
            slots[entries["client"]] = entries["slot"]
        clients = np.flatnonzero(slots)
        entries = np.empty(len(clients), ENTRY)
        entries["client"], entries["slot"], entries["crc32"] = clients, slots[clients], self.crc32[slots[clients]]
        data = _packed(pinned.number, pinned.fingerprint, entries) + data[pinned.end :]
        path = self.directory / name
        path.unlink(missing_ok=True)
        end = write_all(path, data, 0)
        # Or the head might be on disk before the name of the file that it needs.
        sync_directory(self.directory)
        return self.last._replace(end=end)

    def _write_head(self, last: Round, **changes: Any) -> None:
        changes |= {"round": last.number, "journal_bytes": last.end, "fingerprint": last.fingerprint.hex()}
        self.head = {**self.head, **changes}
        _write_head(self.directory, self.head)


def create(path: Path, schema: Mapping[str, Any], header: bytes, row: bytes) -> None:
    """Creates the directory of states that nobody has touched; it appears when all is on disk.

    Args:
      path: The directory.
      schema: What does not change, for `head.json`: at least "num_clients".
      header: What the file of rows begins with.
      row: The initial state as bytes.

    Raises:
      FileNotFoundError: If there is no directory to create it in.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"client states need a directory to be in; got {path.parent}. Create it first.")
    directory = partial_path(path, secrets.token_hex(4))
    directory.mkdir()
    schema = {**schema, "initial_crc32": zlib.crc32(row)}
    fingerprint = hashlib.sha256(json.dumps(schema).encode()).digest()
    try:
        write_all(directory / ROWS, header + row, 0)
        end = write_all(directory / "journal-00000.bin", _packed(0, fingerprint, np.empty(0, ENTRY)), 0)
        changing = {"journal": "journal-00000.bin", "journal_bytes": end, "round": 0, "pinned": 0}
        body = {"format": FORMAT, "version": VERSION, **schema, **changing, "fingerprint": fingerprint.hex()}
        _write_head(directory, body)
        os.rename(directory, path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def delete(path: Path) -> None:
    """Deletes the files of client states, and their directory unless others have put something there."""
    names = (HEAD, f"{HEAD}.new", ROWS, "lock")  # without a head nothing else counts
    for file in (*(path / name for name in names), *path.glob("journal-*.bin")):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def locked(path: Path) -> tuple[int, int]:
    """Opens the rows to write them, and locks all against other writers.

    Returns:
      The two opened files; the lock is held until its file is closed.

    Raises:
      BlockingIOError: If there is another writer.
    """
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.open(path / ROWS, os.O_WRONLY | os.O_CLOEXEC), lock
    except BlockingIOError:
        os.close(lock)
        raise BlockingIOError(
            f"client states have one writer; got a second one for {path}. End the first, or open with writable=False."
        ) from None
    except BaseException:
        os.close(lock)
        raise


def close(*files: int | None) -> None:
    """Closes the opened ones of some files."""
    for file in files:
        if file is not None:
            os.close(file)


def read_head(directory: Path) -> dict[str, Any]:
    """Reads `head.json`.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: If it is corrupt or of another version.
    """
    path = directory / HEAD
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"client states are a directory with a {HEAD}; got {directory} without. Check the path."
        ) from None
    body = None
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(text)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"a head needs to be that of client states; {path} is not, or it is corrupt. {_ADVICE}")
    if body.get("version") != VERSION:
        raise ValueError(
            f"client states need to be of version {VERSION}; got version {body.get('version')!r} in {path}. "
            "Use another release of fedjx."
        )
    found = body.pop("sha256", None)
    if checked_text(body) != text:
        raise ValueError(f"a head needs its own checksum; {path} is corrupt, for it says {found}. {_ADVICE}")
    return body


def write_all(path: Path, data: bytes, offset: int) -> int:
    """Writes to a file, which is created where there is none, waits until it is on disk, and returns where it ends."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        write_at(file, memoryview(data), offset)
        os.fsync(file)
    finally:
        os.close(file)
    return offset + len(data)


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Writes all of the bytes; a call may write fewer than it is given."""
    while len(data):
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _write_head(directory: Path, body: Mapping[str, Any]) -> None:
    path = directory / f"{HEAD}.new"
    path.unlink(missing_ok=True)
    write_all(path, checked_text(body), 0)
    os.replace(path, directory / HEAD)
    sync_directory(directory)


def _packed(number: int, fingerprint: bytes, entries: np.ndarray) -> bytes:
    data = entries.tobytes()
    begin = _RECORD.pack(number, len(entries), fingerprint, 0)[:_CHECKED]
    return begin + zlib.crc32(data, zlib.crc32(begin)).to_bytes(4, "little") + data


def _records(data: bytes, path: Path) -> Iterator[tuple[Round, np.ndarray]]:
    """Yields the rounds of a journal and their entries."""
    begin, view = 0, memoryview(data)
    while begin < len(data):
        start = begin + _RECORD.size
        number, count, fingerprint, crc32 = _RECORD.unpack(data[begin:start].ljust(_RECORD.size))
        end = start + count * ENTRY.itemsize
        if not start <= end <= len(data) or zlib.crc32(view[start:end], zlib.crc32(view[begin:][:_CHECKED])) != crc32:
            raise ValueError(
                f"a journal needs to be as it was written; {path} is corrupt after byte {begin}. {_ADVICE}"
            )
        yield Round(number, fingerprint, end), np.frombuffer(view[start:end], ENTRY)
        begin = end


def _fingerprint(before: bytes, number: int, entries: np.ndarray) -> bytes:
    """Continues a fingerprint by what a round put; where it put it does not matter."""
    parts = (before, number.to_bytes(8, "little"), entries["client"].tobytes(), entries["crc32"].tobytes())
    return hashlib.sha256(b"".join(parts)).digest()
