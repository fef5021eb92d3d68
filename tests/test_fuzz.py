"""Any input to any public function: a result that is true, or a ValueError that says what was wrong; nothing between.

Fixed cases in the suite; ``python -m pytest tests/test_fuzz.py --hypothesis-profile=long`` draws 5,000 of its own.
"""

import functools
import inspect

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_mistakes
from hypothesis import event, given, settings

import jaxmargin as jm
from jaxmargin import flags

pytestmark = pytest.mark.hurried

LONG = settings.default.max_examples >= 5000
NORMS = {"l2": jm.l2, "linf": jm.linf, "l1": jm.l1}
ORDERS = {"l2": 2, "linf": np.inf, "l1": 1}  # in numpy
MEASURES = {
    "linear_margin": {}, "lipschitz_margin": dict(num_samples=64, radius=1.0), "radial_margin": dict(num_samples=64),
    "block_maxima": dict(num_blocks=2, block_size=64), "certified_margin": {},
    "bracket": dict(num_samples=64, num_steps=3), "pgd": dict(epsilon=0.5, num_steps=3, step_size=0.3),
    "apgd": dict(epsilon=0.5, num_steps=4), "worst_case": dict(epsilon=0.5, num_steps=3),
    "square": dict(epsilon=0.5, num_queries=5), "ddn": dict(num_steps=3), "fmn": dict(num_steps=3), "deepfool": {},
    "minimum_norm": dict(num_steps=3),
}  # fmt: skip
# One compiled program each: a measure, a norm, numbers of inputs and classes, a dtype. The values are what is drawn.
SHAPES = [(1, 2), (3, 3), (5, 10), (2, 1000)]
DTYPES = ["float32", "float16", "bfloat16"]


def programs():
    found = []
    for number, name in enumerate(MEASURES):
        for repeat in range(3 if LONG else 1):
            norm, shape = [*NORMS][(number + repeat) % 3], SHAPES[(number // 2 + repeat) % 4]
            dtype, kind = DTYPES[(repeat + number // 3) % 3], [*KINDS][(number + repeat // 2) % 2]
            found.append((name, norm, *shape, dtype, kind))
    return found


def share(part):
    """So much of the cases that the profile asks for."""
    return settings(max_examples=int(part * settings.default.max_examples))


# What entries of an array are: name -> (rng, shape) -> float64 values.
VALUES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "pixels": lambda rng, shape: rng.uniform(size=shape),
    "zero": lambda rng, shape: np.zeros(shape),
    "alike": lambda rng, shape: np.broadcast_to(rng.normal(size=shape[-1:]), shape),
    "huge": lambda rng, shape: 1e30 * rng.normal(size=shape),
    "largest": lambda rng, shape: 3e38 * np.sign(rng.normal(size=shape)),
    "tiny": lambda rng, shape: 1e-30 * rng.normal(size=shape),
    "denormal": lambda rng, shape: 1e-41 * rng.normal(size=shape),
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.uniform(size=shape) < 0.3),
    "nan": lambda rng, shape: np.where(rng.uniform(size=shape) < 0.3, np.nan, 1.0),
    "infinite": lambda rng, shape: np.where(rng.uniform(size=shape) < 0.3, np.inf, 1.0),
}
values = st.sampled_from([*VALUES])
usual = st.sampled_from(["normal", "pixels", "sparse"] * 5 + [*VALUES])
seeds = st.integers(0, 2**32 - 1)


def drawn(kind, seed, shape, dtype="float32"):
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(VALUES[kind](np.random.default_rng(seed), shape)).astype(jnp.dtype(dtype))


def affine(params, x):
    return params["w"] @ x.astype(jnp.float32) + params["b"]


def relu(params, x):
    return params["w"] @ jax.nn.relu(params["v"] @ x.astype(jnp.float32)) + params["b"]


KINDS = {"affine": affine, "relu": relu}


@functools.lru_cache(maxsize=512)
def lifted(name, norm, kind, boxed):
    options = dict(MEASURES[name], norm=NORMS[norm], batch_size=2)
    if boxed:
        options["box"] = (0.0, 1.0)
    return jm.over_batch(getattr(jm, name), KINDS[kind], **options)


def said(error):
    """The words of a refusal, which are ours: one line, with a remedy."""
    words = str(error)
    assert words and "\n" not in words and "Tracer" not in words, words
    return words


@share(0.5)
@given(
    program=st.sampled_from(programs()), xs=usual, weights=usual, n=st.sampled_from([2, 5, 1, 0]), seed=seeds,
    labels=st.sampled_from(["valid"] * 9 + ["negative", "large", "float", "few"]), key=seeds, boxed=st.booleans(),
)  # fmt: skip
def test_measures(program, xs, weights, n, seed, labels, key, boxed):
    name, norm, d, c, dtype, kind = program
    boxed = boxed and "box" in inspect.signature(getattr(jm, name)).parameters and name in ("pgd", "minimum_norm")
    rng = np.random.default_rng(seed)
    params = {"w": drawn(weights, seed, (c, 4 if kind == "relu" else d)), "b": drawn(weights, seed + 1, (c,))}
    if kind == "relu":
        params["v"] = drawn("normal", seed + 2, (4, d))
    images, ys = drawn(xs, seed + 3, (n, d), dtype), rng.integers(0, c, n)
    ys = {"negative": ys - c, "large": ys + c, "float": ys * 1.0, "few": ys[1:]}.get(labels, ys)
    with np.errstate(all="ignore"):
        try:
            result = lifted(name, norm, kind, boxed)(params, jax.random.key(key), images, ys)
        except ValueError as error:
            said(error)
            event("refused")
            return
    event("measured")
    assert n and labels == "valid" and np.isfinite(np.float64(images)).all()
    truths(result, params, KINDS[kind], images, ys, norm, name, boxed)


def truths(result, params, apply_fn, xs, ys, norm, name, boxed):
    """What must hold of any result."""
    for field, value in zip(result._fields, result, strict=True):
        value = np.asarray(value)
        assert len(value) == len(xs), field
        if value.dtype != bool and jnp.issubdtype(value.dtype, jnp.inexact):
            assert not np.isnan(np.float64(value)).any(), f"{field} is NaN"
    logits = np.asarray(jax.jit(jax.vmap(apply_fn, (None, 0)))(params, xs))
    predicted = logits.argmax(1)
    for field in ("margin", "certified", "estimated", "attacked", "distance"):
        value = getattr(result, field, None)
        if value is not None and field != "margin":
            assert (np.float64(value) >= 0).all() or field == "distance" and name == "pgd", field
    if (margin := getattr(result, "margin", None)) is not None:
        right = predicted == ys
        assert (np.float64(margin)[right] >= 0).all() and (np.float64(margin)[~right] <= 0).all()
    if (x_adv := getattr(result, "x_adv", None)) is not None:
        x_adv = np.asarray(x_adv)
        assert np.isfinite(np.float64(x_adv)).all()
        found = np.asarray(result.found) if hasattr(result, "found") else np.zeros(len(xs), bool)
        seen = np.asarray(jax.jit(jax.vmap(apply_fn, (None, 0)))(params, x_adv)).argmax(1)
        assert (seen[found] != ys[found]).all()
        if boxed:
            assert (np.float64(x_adv) >= np.minimum(0, np.float64(xs))).all() and (np.float64(x_adv) <= 1).all()
        epsilon = MEASURES[name].get("epsilon")
        if epsilon is not None:
            moved = np.float64(x_adv) - np.float64(xs)
            step = float(jnp.finfo(xs.dtype).eps)
            size = [np.linalg.norm(row, ORDERS[norm]) for row in moved]
            allowed = epsilon * (1 + 8 * step) + 2 * step * np.abs(np.float64(xs)).sum(1)
            assert (np.asarray(size) <= allowed).all()
    if hasattr(result, "certified") and hasattr(result, "attacked"):
        attacked = np.float64(result.attacked)
        assert (np.float64(result.certified) <= attacked * (1 + 1e-3) + 1e-6).all() or xs.dtype != np.float32


LOSSES = ("cross_entropy", "logit_margin", "soft_logit_margin")


@share(0.2)
@given(
    kind=values,
    seed=seeds,
    c=st.sampled_from([1, 2, 3, 10, 1000]),
    y=st.integers(-3, 1002),
    name=st.sampled_from(LOSSES),
)
def test_losses(kind, seed, c, y, name):
    loss, logits = getattr(jm.losses, name), drawn(kind, seed, (c,))
    try:
        value = np.asarray(loss(jnp.asarray(logits), y))
    except ValueError as error:
        said(error)
        return
    assert value.shape == ()
    if np.isfinite(logits).all() and np.abs(logits).max() < 1e37 and 0 <= y < c > 1:
        assert np.isfinite(value)


@share(0.2)
@given(
    name=st.sampled_from([*NORMS]), kind=values, seed=seeds, shape=st.sampled_from([(1,), (3,), (2, 2), (4, 1, 2)]),
    radius=st.sampled_from([0.0, 1e-30, 0.3, 1.0, 1e30]), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_norms(name, kind, seed, shape, radius, dtype):
    norm, x = NORMS[name], drawn(kind, seed, shape, dtype)
    inside = norm.project(jnp.asarray(x), radius)
    assert inside.shape == x.shape and inside.dtype == x.dtype
    if not np.isfinite(np.float64(x)).all():
        return
    exact = np.linalg.norm(np.float64(x).ravel(), ORDERS[name])
    step = float(jnp.finfo(dtype).eps)
    assert not np.isnan(np.float64(inside)).any()
    size = np.linalg.norm(np.float64(inside).ravel(), ORDERS[name])
    if exact < 1e18 and (exact > 1e-18 or not exact):
        assert size <= radius * (1 + 4 * step * x.size) + float(jnp.finfo(dtype).smallest_subnormal) * x.size
        np.testing.assert_allclose(np.float64(norm.size(jnp.asarray(x))), exact, rtol=x.size * step, atol=1e-30)


@share(0.05)
@given(kind=values, seed=seeds, n=st.sampled_from([0, 1, 2, 50]), bins=st.sampled_from([-1, 0, 1, 7, 10**10, 2.5]))
def test_summaries(kind, seed, n, bins):
    margin = drawn(kind, seed, (n,))
    margins = jm.Margins(jnp.asarray(margin), jnp.zeros(n, int), jnp.zeros(n, bool), jnp.zeros((n, 2)))
    for function in (lambda: jm.summarize(margins), lambda: jm.histogram(margins, bins=bins)):
        try:
            found = jax.tree.leaves(function())
        except ValueError as error:
            said(error)
            continue
        assert n and not np.isnan(margin).any() and not any(np.isnan(np.float64(one)).any() for one in found)


shares = st.sampled_from([0.0, 1e-9, 0.3, 0.5, 1.0])


@share(0.05)
@given(accuracies=st.lists(shares, min_size=1, max_size=4), clean=shares, n=st.sampled_from([1, 2, 6, 10_000]))
def test_flags(accuracies, clean, n):
    epsilons = [float(i + 1) for i in range(len(accuracies))]
    raised = [
        flags.plateau(epsilons, clean, accuracies, n=n), flags.rises(epsilons, accuracies, n=n),
        flags.weak_loss(accuracies, accuracies[::-1], n=n),
    ]  # fmt: skip
    for flag in raised:
        assert isinstance(flag.raised, bool) and not np.isnan(flag.value) and flag.remedy and flag.n == n
    assert not (n == 1 and (raised[0].raised or raised[2].raised))  # one point shows no share


def test_every_measure_is_drawn():
    assert {program[0] for program in programs()} == set(test_mistakes.MEASURES)  # which are all public ones
