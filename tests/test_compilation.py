"""The compilation cache of the entry points: where it lies, and what happens where it cannot."""

import atexit

import jax
import pytest

from jaxmargin.lab import compilation
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
    atexit.unregister(compilation._enter_new)


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


def test_a_compiled_program_with_a_flipped_bit_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "jaxmargin"
    folder.mkdir()
    for name in ("jit_f-12-cache", "jit_g-34-cache", "mnist-5"):
        (folder / name).write_bytes(b"compiled")
    keep_compiled()  # enters them
    (folder / "jit_g-34-cache").write_bytes(b"compiled"[:-1] + b"e")
    (folder / "jit_h-56-cache").write_bytes(b"new")
    jax.config.update("jax_compilation_cache_dir", None)  # as in a new process
    with pytest.warns(UserWarning, match="jaxmargin: 1 compiled programs were damaged"):
        keep_compiled()
    assert {path.name for path in folder.iterdir()} == {"SHA256SUMS", "jit_f-12-cache", "jit_h-56-cache", "mnist-5"}
