"""Compiled programs kept on disk, so that the second start of a run compiles nothing."""

import atexit
import contextlib
import os
import warnings
from pathlib import Path

import jax

from jaxmargin.lab import manifests

__all__ = ["keep_compiled"]

_PROGRAMS = "*-cache"  # as JAX names them


def keep_compiled() -> Path | None:
    """Turns JAX's compilation cache on for this process, before anything is compiled.

    The programs lie in ``$JAX_COMPILATION_CACHE_DIR``, else in ``$XDG_CACHE_HOME/jaxmargin`` (``~/.cache/jaxmargin``),
    and can be deleted at any time. JAX runs what it finds there: keep the folder to yourself. A flipped bit in one of
    them gave other numbers or killed the process, so the programs in our own folder are held against its manifest.

    Returns:
      The folder; None where it cannot be made, so that everything is compiled as ever.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxmargin"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not chosen:
            _audit(folder)
            atexit.register(_enter_new, folder)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _audit(folder: Path) -> None:
    """Removes the programs that are damaged, and enters those of processes that were killed."""
    with contextlib.suppress(FileNotFoundError):  # another process may be at it too
        if removed := manifests.audit(folder, _PROGRAMS):
            warnings.warn(f"{folder}: {len(removed)} compiled programs were damaged and are made again", stacklevel=2)


def _enter_new(folder: Path) -> None:
    """Enters what this process has compiled."""
    with contextlib.suppress(OSError):
        manifests.enter_new(folder, _PROGRAMS)
