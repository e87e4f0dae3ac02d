"""A lease on a run: only the command that holds it writes to the run folder, where locks do not reach all machines.

The lease is a file in the run folder: an object on S3 (`conditional.py`), or numbered versions on a network file system
(`versions.py`). It names the command that holds it, and rank 0's process, which writes as well. One of them renews it
every `SECONDS_BETWEEN_RENEWALS`, which changes its ETag. Each write of it is conditional on the ETag that the writer
knows, so two commands cannot both obtain it.

No clocks of different machines are compared. A command that finds a lease watches its ETag: if it does not change for
`LEASE_SECONDS`, the holder has stopped, and the lease can be taken over. A holder writes files only within
`SECONDS_TO_WRITE` after it asked for its last renewal, which leaves the rest of that time for the write itself. Later,
for example when its process was frozen, it first renews the lease. This fails if another command has taken it over.

A request to S3 that is under way when its process is frozen, or that pyarrow still repeats when the rest of the 30
seconds is over, cannot be withdrawn: it may still write that one file. Checkpoints have unique names, and the manifest
that makes one complete is a request of its own. On a file system, a file appears at once, right after a check.
"""

import json
import logging
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, NoReturn

from vgg_ddp.machine.process import is_dead, own_identity
from vgg_ddp.run.conditional import ConflictError, Stored, UnsupportedError
from vgg_ddp.run.notes import print_note_once

logger = logging.getLogger(__name__)

# On S3; on a disk, a folder.
LEASE_FILE, LEASE_FOLDER = "lease.json", "lease"
LEASE_SECONDS = 30.0
SECONDS_BETWEEN_RENEWALS = 8.0
SECONDS_TO_WRITE = 16.0
SECONDS_BETWEEN_LOOKS = 1.0
# Both processes of a run may write the lease at the same time.
ATTEMPTS = 5
# What happens while a machine sleeps counts: CLOCK_MONOTONIC stops meanwhile.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class HeldError(Exception):
    """Another command holds the lease, and renews it."""


class LeaseLostError(OSError):
    """Another command has taken the lease over: this process must not write to the run folder again."""


class Lease:
    """One command's lease on a run, as its driver or as rank 0, to which it is sent. Threads may share it.

    Attributes:
        lost: why this process may not write to the run folder anymore; None while it may.
    """

    def __init__(self, stored: Stored, run: str, owner: str = "") -> None:
        self.lost: str | None = None
        self._object, self._run, self._owner = stored, run, owner or uuid.uuid4().hex
        self._identity, self._role, self._has_joined = own_identity(), "", False
        self._content: dict[str, str] = {}
        self._etag: str | None = None
        self._renewed_at = self._answered_at = float("-inf")
        self._ended, self._lock = threading.Event(), threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lease, (self._object, self._run, self._owner)

    def acquire(self) -> None:
        """Obtain the lease as the driver, and keep it until `release`. Waits if it may have been abandoned.

        Raises:
            HeldError: if another command holds it.
            UnsupportedError: if it is not possible here.
            OSError: if the storage cannot be read or written.
        """
        self._role, known = "driver", ""
        for _ in range(ATTEMPTS):
            etag = self._wait_until_free(known)
            try:
                self._put({"writer": ""}, etag)
            except ConflictError:
                # Another command was faster, what was read was out of date, or an earlier attempt of this command
                # succeeded without an answer.
                known = etag or ""
                time.sleep(SECONDS_BETWEEN_LOOKS)
                continue
            self._object.require_conditions()
            self._keep()
            return
        raise OSError(f"{self._object.path} keeps changing")

    def _wait_until_free(self, seen: str) -> str | None:
        """The ETag of the lease that can be replaced now; None if there is none.

        Args:
            seen: the ETag of the lease that was found earlier; empty if none was.
        """
        since = started = _now()
        while True:
            found = self._object.read()
            content, etag = (_parse(found[0]), found[1]) if found else ({}, None)
            if etag is None or _is_free(content, self._owner):
                return etag
            if etag == seen and _now() - since >= LEASE_SECONDS:
                return etag
            if etag != seen:
                # Rank 0 outlives a driver that was killed by a few seconds.
                is_ending = is_dead(content.get("driver", "")) and _now() - started < LEASE_SECONDS
                if seen and not is_ending:
                    raise HeldError
                if not seen:
                    print(
                        f"Waiting:   up to {LEASE_SECONDS:.0f} s, because run {self._run} may still be running",
                        flush=True,
                    )
                seen, since = etag, _now()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def join(self) -> None:
        """Keep the lease as rank 0, too, until `leave`; an earlier rank 0 of the same command loses it.

        The driver in the same process keeps it anyway.

        Raises:
            LeaseLostError: if another command has it.
        """
        if self._role:
            return
        self._role = "writer"
        try:
            self._look()
            self._update()
        except UnsupportedError as error:
            print_note_once(
                f"rank 0 will not notice if another command takes over run {self._run}: {error} on its machine."
            )
            self._role = ""
            return
        except LeaseLostError:
            raise
        except OSError as error:
            # It is renewed before the first write, at the latest.
            logger.debug("The lease on run %s could not be renewed: %s", self._run, error)
        self._keep()

    def leave(self) -> None:
        """End rank 0's part: it has written everything."""
        if self._role == "writer":
            self._end(writer="")

    def release(self) -> None:
        """Give the lease back, as the driver, unless rank 0 may still be writing: then it expires."""
        self._end(owner="")

    def require(self) -> None:
        """Make sure that this process may write to the run folder now.

        Raises:
            LeaseLostError: if it may not anymore.
            OSError: if that cannot be found out, because the storage does not answer.
        """
        if self._role and not self._is_fresh():
            with self._lock:
                self._refresh()
        if self.lost:
            raise LeaseLostError(self.lost)

    def _refresh(self) -> None:
        for _ in range(ATTEMPTS):
            if self._is_fresh():
                return
            # If this process is frozen meanwhile, the answer is out of date, and another command may have the lease.
            self._update()
        raise OSError(f"{self._object.path} takes too long to renew")

    def _is_fresh(self) -> bool:
        return _now() - self._renewed_at < SECONDS_TO_WRITE

    def _keep(self) -> None:
        threading.Thread(target=self._renew_regularly, name="lease", daemon=True).start()

    def _renew_regularly(self) -> None:
        pause = SECONDS_BETWEEN_RENEWALS
        while not (self._ended.wait(pause) or self.lost):
            try:
                self._renew_if_needed()
                pause = SECONDS_BETWEEN_RENEWALS
            except OSError as error:
                logger.debug("The lease on run %s could not be renewed: %s", self._run, error)
                pause = SECONDS_BETWEEN_LOOKS

    def _renew_if_needed(self) -> None:
        with self._lock:
            if self._ended.is_set():
                # It was given back in the meantime.
                return
            known = self._etag
            if self._role == "driver":
                # If rank 0 has renewed it, the driver need not: each renewal costs more than a look, and a bucket with
                # versioning keeps them all.
                self._look()
            if self._etag == known:
                self._update()

    def _end(self, **changes: str) -> None:
        self._ended.set()
        with self._lock:
            if self.lost or _now() - self._answered_at > SECONDS_TO_WRITE:
                # The storage may not answer, and must not hold up the end of the command.
                return
            try:
                self._give_back(changes)
            except OSError as error:
                logger.debug("The lease on run %s could not be given back: %s", self._run, error)

    def _give_back(self, changes: dict[str, str]) -> None:
        for _ in range(ATTEMPTS):
            self._look()
            writer = self._content["writer"]
            if self._role == "driver" and writer and not is_dead(writer):
                return
            with suppress(ConflictError):
                self._put(changes, self._etag)
                return

    def _update(self) -> None:
        """Renew the lease.

        Raises:
            LeaseLostError: if another process has it.
            OSError: if the storage cannot be read or written.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                if self.lost:
                    raise LeaseLostError(self.lost)
                if self._etag is None:
                    self._look()
                try:
                    self._put({}, self._etag)
                    return
                except ConflictError:
                    self._look()
            raise OSError(f"{self._object.path} keeps changing")

    def _put(self, changes: dict[str, str], etag: str | None) -> None:
        asked_at = _now()
        content = self._content | {"owner": self._owner, self._role: self._identity} | changes
        # Equal contents would have equal ETags.
        content["renewal"] = uuid.uuid4().hex
        self._etag = self._object.replace(json.dumps(content).encode(), etag)
        self._content, self._has_joined = content, self._role == "writer"
        self._renewed_at, self._answered_at = asked_at, _now()

    def _look(self) -> None:
        """Read the lease, which must be this command's."""
        found = self._object.read()
        if not found:
            self._lose(f"the lease on run {self._run}, {self._object.path}, was deleted")
        content = _parse(found[0])
        if content.get("owner") != self._owner:
            self._lose(
                f"another command has taken over run {self._run}, because this one had stopped renewing its lease"
            )
        if self._has_joined and content.get("writer") != self._identity:
            self._lose(f"another worker of run {self._run} has taken the place of this one")
        self._content, self._etag, self._answered_at = content, found[1], _now()

    def _lose(self, reason: str) -> NoReturn:
        self.lost = reason
        raise LeaseLostError(reason)


def _now() -> float:
    return time.clock_gettime(CLOCK)


def _parse(content: bytes) -> dict[str, str]:
    """The content of a lease; if it is not one, that of an unknown holder."""
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    is_lease = isinstance(parsed, dict) and all(isinstance(value, str) for value in parsed.values())
    return parsed if is_lease else {"owner": "unknown"}


def _is_free(content: dict[str, str], owner: str) -> bool:
    """Whether nobody else holds the lease, as far as its content shows."""
    driver, writer = content.get("driver", ""), content.get("writer", "")
    have_ended = is_dead(driver) and (not writer or is_dead(writer))
    return content.get("owner", "") in ("", owner) or have_ended
