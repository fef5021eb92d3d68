"""Where a number comes from: the device, the versions and the commit of the code that made it."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

__all__ = ["commit", "device_name", "versions"]


def device_name() -> str:
    """The device results come from, such as "cpu (x86_64, 2 cores)" or "NVIDIA H100 80GB HBM3"."""
    device = jax.devices()[0]
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)" if device.platform == "cpu" else device.device_kind


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    packages = ("jaxmargin", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in packages}}


@functools.cache
def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The git commit of the code, as it was when first asked.

    Args:
      folder: of the code.

    Returns:
      Its hash, with "+changes" where tracked files differ from it; None where there is no git, or where the code lies
      in no checkout of its own, as when it is installed.
    """
    if _git(folder, "ls-files", ".") is None:
        return None
    return _git(folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None for nothing or an error."""
    try:
        said = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
