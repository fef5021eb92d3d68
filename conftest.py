"""How programs are compiled under pytest, which is what takes most of its time."""

import functools
import gc
import os

import jax
import pytest

try:  # the one private module, to compile sooner: where it is gone, or its function, tests only take longer
    from jax._src import compiler
except ImportError:
    compiler = None

# A test looks at numbers a few times and compiles all the while, so that most of what it leaves is traces.
gc.set_threshold(100_000, 20, 20)
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads the source lines in compiled programs

HURRIED = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs that several tests of a run compile, also in other workers, are compiled once."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.devices()  # XLA reads its flags now, before any of these tests sets them for others


@pytest.fixture(scope="module", autouse=True)
def forgotten(request, compiled_once):
    """What a file's tests have compiled leaves the memory with them; the hurried ones compile in a third of the time.

    The marker ``hurried`` stands in files that look at decisions, or at numbers far above rounding; documentation is
    like them, and short enough to be remembered. What rests on bits, rounding or memory is compiled as for users.
    """
    documentation = not request.path.name.startswith("test_")
    hurried = documentation or request.node.get_closest_marker("hurried") is not None
    if not documentation:
        jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", hurried)
    with pytest.MonkeyPatch.context() as patch:
        if hurried:
            hurry(patch)
        yield
    if not documentation:
        jax.clear_caches()
        gc.collect()


def hurry(patch):
    """Compiles fused loops by XLA's older and shorter way, in one piece, in the processes that a test starts too."""
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if not known():
        return
    patch.setenv("XLA_FLAGS", " ".join(f"--{name}={str(value).lower()}" for name, value in HURRIED.items()))
    if original := getattr(compiler, "get_compile_options", None):

        def get_compile_options(*args, env_options_overrides=None, **options):
            return original(*args, env_options_overrides=HURRIED | dict(env_options_overrides or {}), **options)

        patch.setattr(compiler, "get_compile_options", get_compile_options)


@functools.cache
def known():
    """Whether this version of XLA, on this backend, has the shorter way."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda x: x + 1, compiler_options=HURRIED).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
