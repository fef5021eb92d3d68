"""SHA-256 digests of what a folder's files hold, as ``sha256sum -c SHA256SUMS`` reads them: a flipped bit is noticed.

What replaces a file is entered before, and the file that it replaces stays entered until it is gone. So whenever a
process is killed, each file is as one of its lines says. What has no line is believed, as a new file is until it is
entered: no flip takes a line away and changes its file too.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = [
    "NAME", "DamagedError", "audit", "brief", "check_folder", "enter_new", "forget", "read", "seal", "write",
    "write_bytes",
]  # fmt: skip

NAME = "SHA256SUMS"

_REMEDY = "start the run again, which makes it anew, or copy it again from where it came"
_LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]+)")


class DamagedError(ValueError):
    """A file does not hold what was written into it.

    Args:
      path: the file.
      why: what is wrong with it, in a few words.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged ({why}): {_REMEDY}")
        self.path, self.why = path, why


def write(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all, and enters it in the manifest of its folder.

    Args:
      path: where; its folder is made if missing.
      content: the bytes.

    Returns:
      path.

    Raises:
      OSError: it cannot be written; the error names the file.
    """
    entered, new = _entered(path.parent) or {}, _digest(content)
    there = _digest_of(path) if path.is_file() else None
    known = {one for one in entered.pop(path.name, ()) if one == there} - {new}
    if there is not None:
        _write_manifest(path.parent, entered | {path.name: [*known, new]})
    write_bytes(path, content)
    if known or there is None:
        _write_manifest(path.parent, entered | {path.name: [new]})
    return path


def forget(path: Path) -> None:
    """Removes a file, if it is there, and its line in the manifest."""
    path.unlink(missing_ok=True)
    entered = _entered(path.parent) or {}
    if entered.pop(path.name, None):
        _write_manifest(path.parent, entered)


def read(path: Path, largest: int = 2**30, part: Callable[[bytes], bytes] = bytes) -> bytes:
    """The bytes of a file, if they are what the manifest of its folder says.

    Args:
      path: the file.
      largest: how many bytes it may have.
      part: of its bytes, the ones that are meant.

    Returns:
      That part.

    Raises:
      DamagedError: it holds something else, is larger, is entered and missing, or is a link that leaves its folder.
      FileNotFoundError: it is missing and was never entered.
    """
    before = None
    while True:
        content = part(_content(path, largest))
        entered = (_entered(path.parent) or {}).get(path.name)
        if not entered or _digest(content) in entered:
            return content
        if content == before:
            raise DamagedError(path, f"its SHA-256 is not the one in {NAME}")
        before = content  # once more: a run that is under way may have written it between the two


def seal(folder: Path) -> None:
    """Enters everything below a folder in its manifest, which is written last: without one it is not finished."""
    found = {path.relative_to(folder).as_posix(): [_digest_of(path)] for path in _files(folder)}
    _write_manifest(folder, found)


def check_folder(folder: Path) -> None:
    """Refuses a sealed folder unless everything below it, and nothing else, is as it was.

    Args:
      folder: the folder.

    Raises:
      DamagedError: a file is missing, new, changed or a link, or there is no manifest; the error names the folder.
    """
    entered = _entered(folder)
    if entered is None:
        raise DamagedError(folder, f"it has no {NAME}")
    if folder.is_symlink() or any(path.is_symlink() for path in folder.rglob("*")):
        raise DamagedError(folder, "there is a link in it")
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if odd := sorted(found.keys() ^ entered.keys()):
        raise DamagedError(folder, f"{odd[0]} is {'not in ' + NAME if odd[0] in found else 'missing'}")
    for name, path in found.items():
        if _digest_of(path) not in entered[name]:
            raise DamagedError(folder, f"the SHA-256 of {name} is not the one in {NAME}")


def audit(folder: Path, pattern: str) -> list[Path]:
    """Removes the files of a folder that are not as they were entered, and enters those that have no line.

    Args:
      folder: the folder.
      pattern: of the names of its files, as in ``Path.glob``.

    Returns:
      What was removed.
    """
    before = _entered(folder) or {}
    known = [path for path in sorted(folder.glob(pattern)) if path.name in before]
    removed = [path for path in known if _digest_of(path) not in before[path.name]]
    for path in removed:
        path.unlink(missing_ok=True)
    kept = {path.name: before[path.name] for path in known if path not in removed}
    if kept != before:
        _write_manifest(folder, kept)
    enter_new(folder, pattern)
    return removed


def enter_new(folder: Path, pattern: str) -> None:
    """Enters the files of a folder that have no line in its manifest; see ``audit``."""
    before = _entered(folder) or {}
    new = {path.name: [_digest_of(path)] for path in folder.glob(pattern) if path.name not in before}
    if new:
        _write_manifest(folder, before | new)


def brief(error: Exception) -> str:
    """An exception of any library on one short line."""
    why = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {why}" if why else type(error).__name__


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)


def _content(path: Path, largest: int) -> bytes:
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise DamagedError(path, "a link that leaves its folder")
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        if path.name not in (_entered(path.parent) or {}):
            raise
        if path.exists():  # by now
            return _content(path, largest)
        raise DamagedError(path, "it is missing") from None
    if len(content) > largest:
        raise DamagedError(path, f"it has more than {largest:,} bytes")
    return content


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all.

    Args:
      path: where; its folder is made if missing.
      content: the bytes.

    Returns:
      path.

    Raises:
      OSError: it cannot be written; the error names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _entered(folder: Path) -> dict[str, list[str]] | None:
    """The digests by name, None where there is no manifest; what is no line of one is passed over."""
    try:
        content = (folder / NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    found: dict[str, list[str]] = {}
    for line in content.splitlines():
        if match := _LINE.fullmatch(line):
            found.setdefault(os.fsdecode(match[2]), []).append(match[1].decode())
    return found


def _write_manifest(folder: Path, entered: Mapping[str, list[str]]) -> None:
    lines = [f"{known}  {name}\n" for name in sorted(entered) for known in entered[name]]
    write_bytes(folder / NAME, os.fsencode("".join(lines)))
