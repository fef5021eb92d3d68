"""Checks: what they let pass, what they refuse, and that a refusal names the argument, its value and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin import checks

REFUSED = {
    "zero": (checks.positive, ("radius", 0.0), "radius=0.0 must be finite and greater than 0"),
    "negative": (checks.positive, ("radius", -1), "radius=-1 must be"),
    "NaN": (checks.positive, ("radius", float("nan")), "radius=nan must be"),
    "infinite": (checks.positive, ("radius", jnp.inf), "radius=inf must be"),
    "text": (checks.positive, ("radius", "5m"), "radius='5m' is not a number"),
    "vector": (checks.positive, ("radius", np.ones(2)), "radius=.*one positive number"),
    "none": (checks.positive, ("radius", None), "radius=None is not a number"),
    "fraction": (checks.whole, ("num_steps", 1.5), "num_steps=1.5 must be a whole number of at least 1"),
    "bool": (checks.whole, ("num_steps", True), "num_steps=True must be a whole number"),
    "too few": (checks.whole, ("num_classes", 1, 2), "num_classes=1 must be a whole number of at least 2"),
    "name": (checks.one_of, ("loss", "ce", ["dlr", "margin"]), "loss='ce' is unknown: choose from dlr, margin"),
    "remainder": (checks.divisible, ("n", 100, "m", 64), "n=100 is not a multiple of m=64"),
    "option": (checks.options, (max, ["kye", "size"], ["key", "size"]), "max has no option kye: it takes key, size"),
    "integer input": (checks.example, (np.zeros(3, np.uint8),), "x has dtype uint8: scale the input.*x / 255"),
    "complex input": (checks.example, (np.zeros(3, complex),), "x has dtype complex"),
    "float label": (checks.label, (1.0,), "y has shape .* dtype float"),
    "label vector": (checks.label, (np.array([1, 2]),), r"y has shape \(2,\)"),
}


@pytest.mark.parametrize(("check", "arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_argument_the_value_and_the_remedy(check, arguments, message):
    with pytest.raises(ValueError, match=message):
        check(*arguments)


def test_good_values_pass():
    checks.positive("radius", 5)
    checks.positive("radius", np.float32(0.1))
    checks.positive("radius", jnp.asarray(1e-3))
    checks.whole("num_steps", 1)
    checks.one_of("loss", "dlr", ["cross_entropy", "dlr"])
    checks.divisible("n", 128, "m", 64)
    checks.options(max, ["key"], ["key", "default"])
    checks.example(np.zeros(3, np.float32))
    checks.example(jnp.zeros(3, jnp.bfloat16))
    checks.label(np.uint8(3))
    checks.box(None)
    checks.box((0, 1))


def test_traced_values_are_not_concrete_and_pass_the_checks_of_values():
    seen = []

    @jax.jit
    def run(radius, y):
        seen.append(checks.concrete(radius, y))
        checks.positive("radius", radius)
        checks.label(y)
        return radius

    assert run(-1.0, 3) == -1
    assert seen == [False]
    assert checks.concrete({"w": jnp.ones(2)}, 3, np.ones(2))


def test_what_is_wrong_with_a_traced_label_is_still_seen_in_its_type():
    with pytest.raises(ValueError, match="y has shape .* dtype float32"):
        jax.jit(checks.label)(1.0)


def test_the_number_of_classes_is_read_without_running_the_classifier():
    def logits_fn(x):
        assert isinstance(x, jax.core.Tracer)
        return jnp.zeros(7)

    assert checks.logits(logits_fn, np.ones(3, np.float32)) == 7


def test_a_whole_number_of_numpy_is_a_whole_number():
    checks.whole("num_samples", np.int64(64))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1.0, 0.0), r"box=\(1.0, 0.0\) is empty"),
        ((1, 1), r"box=\(1, 1\) is empty"),
        ((0.0, float("nan")), "box=.*is empty"),
        ((0, 1, 2), r"box=\(0, 1, 2\) is not a pair of numbers"),
        (3.0, "box=3.0 is not a pair"),
    ],
)
def test_a_box_without_room_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        checks.box(box)
