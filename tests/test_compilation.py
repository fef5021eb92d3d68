"""The compilation cache of the entry points: a second start of the same run finds everything compiled."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxmargin.lab.compilation import keep_compiled


@pytest.fixture(autouse=True)
def unchanged():
    """Leaves the configuration of this process as it was."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_second_start_of_a_run_compiles_nothing(tmp_path):
    def start(workdir):
        sizes = dict(epochs=2, num_samples=512, points=4, attack_points=20, attack_steps=3, worst_case_steps=2)
        options = [word for name, size in sizes.items() for word in (f"--{name.replace('_', '-')}", str(size))]
        options += ["--models", "linear", "--methods", "std"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # what is compiled does not matter
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-m", "runs.paper", *options, "--workdir", str(tmp_path / workdir)]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        kept = (tmp_path / "cache" / "jaxmargin").glob("*-cache")
        return {path.name for path in kept}, done

    first, _ = start("first")
    second, done = start("second")
    assert len(first) > 10
    assert second == first
    assert "error" not in done.stderr.lower()


def test_a_folder_chosen_for_jax_is_kept(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
    assert keep_compiled() == tmp_path / "chosen"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "chosen")


def test_a_new_folder_is_its_owners_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_compiled() == tmp_path / "jaxmargin"
    assert (tmp_path / "jaxmargin").stat().st_mode & 0o077 == 0


def test_without_a_place_to_write_everything_is_compiled_as_ever(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None
