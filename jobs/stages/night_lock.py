"""The hold on a night: one process at a time audits it, on whatever machine."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.platform import storage
from jobs.platform.command import message
from jobs.platform.uris import join
from schemas.errors import GateError, InputError

logger = logging.getLogger(__name__)

_NOBODY = dict.fromkeys(("run_id", "host", "boot", "since", "token"), "unknown") | {"pid": 0, "beats": None}
"""Who holds the night by a lock that a power cut emptied: whoever is alive writes it whole with the next heartbeat."""
_GENERATION = re.compile(r"\d{6}\.json")
HEARTBEAT_SECONDS, LOOK_SECONDS, EXPIRY_SECONDS = 10.0, 1.0, 45.0


@contextmanager
def hold_night(output_uri: str, audit_date: str, run_id: str) -> Iterator[NightLock]:
    """Holds the night for one process, by a conditional PUT. Raises GateError naming the holder while one is alive.

    The lock is a series of generations: whoever creates the next one has it, so that two that find an expired lock
    can't both take it. A holder is alive while its heartbeat moves; it is judged by change, not by clocks.
    """
    lock = NightLock(join(output_uri, "locks", f"audit_date={audit_date}"), run_id)
    lock.acquire()
    try:
        yield lock
    finally:
        try:
            lock.release()
        except (GateError, InputError) as error:
            # a hold whose heart has stopped is as good as one let go, and how the night ended must not be hidden by this
            logger.warning("the hold on the night was not let go: %s", message(error))


class NightLock:
    """One process's hold on a night; see hold_night."""

    def __init__(self, folder_uri: str, run_id: str) -> None:
        self._folder, self._generation = folder_uri, -1
        self._holder = {
            "run_id": run_id,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "token": uuid.uuid4().hex,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="night-lock", daemon=True)

    def acquire(self) -> None:
        while True:
            generation, holder = self._latest()
            if holder is not None and not holder.get("released") and not self._is_dead(generation, holder):
                raise GateError(
                    f"the night is held by run {holder['run_id']} on {holder['host']} (pid {holder['pid']}, since "
                    f"{holder['since']}); wait for it to end, or stop it"
                )
            uri = self._uri(generation + 1)
            if storage.create_bytes(uri, self._content()):
                if storage.create_bytes(uri, self._content()):
                    if self._latest()[0] > generation + 1:
                        continue  # paused for so long that another run took the night and cleared this away
                    raise InputError(
                        f"{uri}: this storage writes an object that is there already where it was asked not to "
                        "(If-None-Match), so that two audits could hold one night; use one with conditional writes"
                    )
                self._generation = generation + 1
                self._thread.start()
                return

    def check(self) -> None:
        """Raises GateError where another process has taken the night (this one was paused for too long)."""
        if not self.is_held():
            raise GateError("another run has taken the night since this one was last heard of; nothing was committed")

    def is_held(self) -> bool:
        generation, holder = self._latest()
        return generation == self._generation and holder is not None and holder["token"] == self._holder["token"]

    def release(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=60)
        self._holder["released"] = True
        storage.write_bytes(self._uri(self._generation), self._content())
        storage.delete(self._uri(earlier) for earlier in range(self._generation))

    def _uri(self, generation: int) -> str:
        return join(self._folder, f"{generation:06d}.json")

    def _content(self) -> bytes:
        return storage.json_bytes({**self._holder, "beats": self._beats})

    def _latest(self) -> tuple[int, dict[str, Any] | None]:
        names = (entry.uri.removeprefix(f"{self._folder}/") for entry in storage.list_objects(self._folder))
        generations = [int(name.removesuffix(".json")) for name in names if _GENERATION.fullmatch(name)]
        if not generations:
            return -1, None
        uri = self._uri(max(generations))
        holder = storage.read_json(uri)
        return max(generations), _NOBODY if holder is None else holder

    def _is_dead(self, generation: int, holder: dict[str, Any]) -> bool:
        # one that knows no boot (macOS) may be another machine of the same name
        here = holder["boot"].strip() and all(holder[name] == self._holder[name] for name in ("host", "boot"))
        if here and not _is_running(holder["pid"]):
            return True
        silent_for = 0.0
        while silent_for < EXPIRY_SECONDS:
            before = time.monotonic()
            time.sleep(LOOK_SECONDS)
            latest, found = self._latest()
            if latest != generation or found is None or found.get("released"):
                return True  # look again: it changed hands or was let go
            if found["beats"] != holder["beats"]:
                return False
            # storage that was away for this look was away for the holder's heartbeat too
            elapsed = time.monotonic() - before
            silent_for = silent_for + elapsed if elapsed < LOOK_SECONDS + HEARTBEAT_SECONDS else 0.0
        return True

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._beats += 1
            try:
                storage.write_bytes(self._uri(self._generation), self._content())
            except (GateError, InputError) as error:
                # storage may come back; whoever took the night meanwhile is found by check() before the commit
                logger.warning("the hold on the night was not renewed: %s", error)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks only
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _boot_id() -> str:
    """Of this machine's start and, as containers on one machine number their processes apart, of the numbering."""
    boot, numbering = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return " ".join(
        [boot.read_text().strip() if boot.exists() else "", str(numbering.readlink()) if numbering.is_symlink() else ""]
    )
