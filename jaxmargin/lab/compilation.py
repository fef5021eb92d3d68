"""Compiled programs kept on disk, so that the second start of a run compiles nothing."""

import os
from pathlib import Path

import jax

__all__ = ["keep_compiled"]


def keep_compiled() -> Path | None:
    """Turns JAX's compilation cache on for this process, before anything is compiled.

    The programs lie in ``$JAX_COMPILATION_CACHE_DIR``, else in ``$XDG_CACHE_HOME/jaxmargin`` (``~/.cache/jaxmargin``),
    and can be deleted at any time. JAX runs what it finds there: keep the folder to yourself.

    Returns:
      The folder; None where it cannot be made, so that everything is compiled as ever.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxmargin"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
