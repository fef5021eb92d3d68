"""``xla_cpu.kernels``: what is compiled how, and that it stays the same function."""

import jax
import numpy as np
import pytest

from jaxmargin.xla_cpu import kernels


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arrays() -> tuple[jax.Array, jax.Array]:
    key_images, key_kernel = jax.random.split(jax.random.key(0))
    return jax.random.normal(key_images, (2, 8, 8, 32)), jax.random.normal(key_kernel, (3, 3, 32, 32))


@pytest.fixture
def compiled(monkeypatch) -> list[dict[str, str] | None]:
    """The compiler options of each function that ``jax.jit`` was asked for."""
    seen: list[dict[str, str] | None] = []
    original = jax.jit

    def recording(function, **options):
        seen.append(options.get("compiler_options"))
        return original(function, **options)

    monkeypatch.setattr(jax, "jit", recording)
    return seen


def test_what_convolves_is_compiled_without_the_slow_kernels(compiled):
    options, inputs = kernels.without_slow_kernels(), arrays()
    compiled.clear()
    run = kernels.jit(convolve)
    np.testing.assert_allclose(run(*inputs), convolve(*inputs), atol=1e-4)
    assert compiled == ([None, options] if options else [None])


def test_what_does_not_convolve_is_compiled_as_ever(compiled):
    _, images = kernels.without_slow_kernels(), arrays()[0]
    compiled.clear()
    run = kernels.jit(lambda x: 2 * x)
    np.testing.assert_array_equal(run(images), 2 * images)
    assert compiled == [None]


def test_it_is_traced_once_for_all_calls():
    traced = []

    def count(x, kernel):
        traced.append(1)
        return convolve(x, kernel)

    run = kernels.jit(count)
    for _ in range(3):
        run(*arrays())
    assert len(traced) == 1


def test_inside_of_another_jit_it_is_a_part_of_that():
    run = jax.jit(lambda x, kernel: 2 * kernels.jit(convolve)(x, kernel))
    np.testing.assert_allclose(run(*arrays()), 2 * convolve(*arrays()), atol=1e-4)


def test_donated_arguments_are_gone():
    run = kernels.jit(lambda x, kernel: x + convolve(x, kernel), donate_argnums=0)
    x, kernel = arrays()
    run(x, kernel)
    assert x.is_deleted() and not kernel.is_deleted()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have no such kernels")
def test_the_option_is_known_to_this_version_and_gone_on_accelerators(monkeypatch):
    found = kernels.without_slow_kernels.__wrapped__()
    assert all(name.startswith("xla_cpu") for name in found)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kernels.without_slow_kernels.__wrapped__() == {}
