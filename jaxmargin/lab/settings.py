"""The settings of a run, kept beside its results, so that a folder never holds those of two."""

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jaxmargin.lab import files
from jaxmargin.lab.cards import SCHEMA

__all__ = ["READ_ONLY", "SETTINGS", "claimed", "hold"]

SETTINGS = "settings.json"
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # errors of a place that cannot be written, but read

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def hold(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings into a folder, or refuses the folder of a run that has others; equal ones are only read.

    Args:
      folder: made if missing.
      settings: by name, those of several cells by the cell's name; ones that the folder does not have yet are added.

    Raises:
      ValueError: what differs, or a file that is damaged or of another version.
    """
    path = folder / SETTINGS
    try:
        before = files.read_json(path) if path.exists() else {}
    except files.DamagedError as error:
        raise ValueError(f"{path} is damaged ({error.why}): remove it, the settings of each cell are kept") from None
    if before and before.get("schema") != SCHEMA:
        raise ValueError(
            f"workdir={str(folder)!r} holds a run of an older version: python -m runs.results.convert {folder}, or pass"
            " another --workdir"
        )
    now = files.plain({"schema": SCHEMA, **settings})
    if changes := sorted(set(_changes(now, before))):
        raise ValueError(
            f"workdir={str(folder)!r} holds a run with other settings: {', '.join(changes)}; repeat its options or pass"
            " another --workdir"
        )
    if now != before:
        files.write_json(path, now)


@contextlib.contextmanager
def claimed(workdir: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Holds a workdir for a run; what a killed run left half written is removed.

    Args:
      workdir: made if missing; one that cannot be written, but has these settings, can be read.
      settings: see ``hold``.

    Raises:
      ValueError: the workdir cannot be written, another process is at work in it, or see ``hold``.
    """
    with _alone(workdir):
        for path in workdir.rglob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        try:
            hold(workdir, settings)
        except OSError as error:
            raise _unusable(workdir, error) from None
        yield


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes out of it, where the file system has locks."""
    lock = FileLock(workdir / ".lock")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"workdir={str(workdir)!r} is that of a run under way: wait for its end or pass another --workdir"
        ) from None
    except NotImplementedError:
        pass
    except OSError as error:
        if not ((workdir / SETTINGS).exists() and error.errno in READ_ONLY):
            raise _unusable(workdir, error) from None
    try:
        yield
    finally:
        lock.release()


def _unusable(workdir: Path, error: Exception) -> ValueError:
    return ValueError(f"workdir={str(workdir)!r} cannot be used ({error}): pass another --workdir")


def _changes(now: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    """What of the settings there is other now, in words."""
    for name, value in there.items():
        if isinstance(value, Mapping):
            yield from _changes(now.get(name, {}), value)
        elif now.get(name) != value:
            yield f"{name}={now.get(name)} (there: {value})"
