"""The public face: names that are a contract, conventions that all functions keep, and the uses they were made for."""

import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmargin as jm

pytestmark = pytest.mark.hurried

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(jm.__path__, "jaxmargin.")
    if not module.name.startswith("jaxmargin.lab")
]

CONTRACT = [
    *("from_batched", "from_linen", "from_nnx", "ensemble", "over_batch"),
    *("lipschitz_margin", "linear_margin", "local_lipschitz", "pgd", "summarize", "histogram"),
    *("certified_margin", "lipschitz_bound", "Certificate"),
    *("block_maxima", "clever", "radial_margin", "BlockMaxima", "Clever"),
    *("l2", "linf", "l1", "Norm", "Margins", "Summary", "Attack"),
    *("minimum_norm", "worst_case", "bracket", "health_check", "certified_margin", "square", "ddn", "fmn", "deepfool"),
    *("objectives.standard", "objectives.lcr", "objectives.amr", "objectives.margin_term"),
    *("objectives.adversarial", "objectives.trades", "objectives.mma", "attacks.an_pgd"),
    *("models.linear", "models.mlp", "models.cnn", "models.lenet", "models.wide_resnet"),
    "augmentation.crop_and_flip",
    *("losses.logit_margin", "losses.soft_logit_margin", "losses.cross_entropy", "losses.dlr"),
    *("regularizers.orthogonality", "regularizers.parseval_retraction", "regularizers.ramp"),
]

MEASURES = [
    *("lipschitz.lipschitz_margin", "margins.linear_margin", "certificates.certified_margin", "brackets.bracket"),
    *(f"attacks.{name}" for name in ("pgd", "apgd", "square", "ddn", "fmn", "deepfool", "minimum_norm", "worst_case")),
    *("lipschitz.block_maxima", "lipschitz.radial_margin"),
]

# Positional defaults are the exception: counts and weights that read well without their names.
POSITIONAL_DEFAULTS = {
    "checks.whole": {"least"},
    "margins.histogram": {"bins", "bounds"},
    **{
        f"{module}.{name}": {"num_classes"}
        for module in ("models", "models.sequential")
        for name in ("cnn", "lenet", "linear", "mlp")
    },
    **{f"models{module}.wide_resnet": {"num_classes"} for module in ("", ".residual")},
    **{f"objectives{module}.amr": {"lam", "beta", "tau"} for module in ("", ".regularised")},
    **{f"objectives{module}.lcr": {"beta"} for module in ("", ".regularised")},
    "certificates.crown.intervals": {"reaches", "at_x"},
}


def public(kind):
    """{"module.name": object} of everything that the modules of the core list in __all__."""
    found = {}
    for module in MODULES:
        for name in module.__all__:
            if kind(getattr(module, name)):
                found[f"{module.__name__.removeprefix('jaxmargin.')}.{name}"] = getattr(module, name)
    return found


FUNCTIONS = public(inspect.isfunction)
CLASSES = {name: found for name, found in public(inspect.isclass).items() if not getattr(found, "_is_protocol", False)}
functions = pytest.mark.parametrize("name", FUNCTIONS)
# One sentence each is enough for the checks, whose arguments are those of the message.
documented = pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("checks.")])


def parameters(function):
    return inspect.signature(function).parameters.values()


def section(text, title):
    """The lines of one section of a docstring."""
    match = re.search(rf"^{title}:\n((?:  .*\n?|\n(?=  ))+)", inspect.cleandoc(text), re.MULTILINE)
    return match.group(1) if match else ""


def test_the_walk_finds_the_core():
    assert len(FUNCTIONS) > 25
    assert len(MODULES) >= 12


@pytest.mark.parametrize("name", CONTRACT)
def test_the_names_of_the_contract_exist(name):
    found = jm
    for part in name.split("."):
        assert part in found.__all__
        found = getattr(found, part)


@pytest.mark.parametrize("module", [jm, *MODULES], ids=lambda module: module.__name__)
def test_all_is_sorted_and_complete(module):
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    own = {
        name
        for name, found in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(found) or inspect.isclass(found))
        and found.__module__ == module.__name__
    }
    assert own <= set(module.__all__)


@functions
def test_random_keys_are_called_key(name):
    for parameter in parameters(FUNCTIONS[name]):
        assert parameter.name not in {"rng", "rngs", "seed", "prng", "prng_key", "random_key", "k"}
        assert not (parameter.name.endswith("_key") or parameter.name.endswith("_rng"))


@functions
def test_defaults_are_given_by_keyword(name):
    defaults = [p for p in parameters(FUNCTIONS[name]) if p.default is not p.empty]
    positional = {p.name for p in defaults if p.kind is not p.KEYWORD_ONLY}
    assert positional == POSITIONAL_DEFAULTS.get(name, set())


def test_no_exception_is_stale():
    assert set(POSITIONAL_DEFAULTS) <= set(FUNCTIONS)


@functions
def test_every_function_starts_its_docstring_with_a_sentence(name):
    first = inspect.getdoc(FUNCTIONS[name]).split("\n\n")[0]
    assert first.endswith(".")
    assert len(first) > 10


@documented
def test_docstrings_describe_every_argument_and_the_result(name):
    text = inspect.getdoc(FUNCTIONS[name])
    described = re.findall(r"^  (\*{0,2}\w+):", section(text, "Args"), re.MULTILINE)
    prefix = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    assert described == [prefix.get(p.kind, "") + p.name for p in parameters(FUNCTIONS[name])]
    assert section(text, "Returns")


@pytest.mark.parametrize("name", CLASSES)
def test_classes_describe_every_field(name):
    described = re.findall(r"^  (\w+):", section(inspect.getdoc(CLASSES[name]), "Attributes"), re.MULTILINE)
    assert described == list(getattr(CLASSES[name], "_fields", described))
    assert described


@functions
def test_functions_are_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not signature.empty
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_all_called_alike(name):
    first, rest = list(parameters(FUNCTIONS[name]))[:4], list(parameters(FUNCTIONS[name]))[4:]
    assert [parameter.name for parameter in first] == ["logits_fn", "key", "x", "y"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)


def test_the_version_is_one_of_a_release():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jm.__version__)


# The uses -------------------------------------------------------------------------------------------------------------


def test_a_batched_classifier_is_estimated_and_summarised(tiny):
    apply_fn = jm.from_batched(jax.vmap(tiny.model.apply, (None, 0)))
    estimate = jm.over_batch(
        jm.lipschitz_margin, apply_fn, norm=jm.l2, radius=5.0, num_samples=512, chunk_size=256, batch_size=8
    )
    margins = estimate(tiny.params, jax.random.key(0), tiny.xs, tiny.ys)
    logits = np.asarray(jax.vmap(tiny.model.apply, (None, 0))(tiny.params, tiny.xs))
    n, c = logits.shape
    assert {name: leaf.shape for name, leaf in margins._asdict().items()} == {
        **dict.fromkeys(margins._fields, (n,)), "lipschitz": (n, c),
    }  # fmt: skip
    np.testing.assert_array_equal(margins.predicted, logits.argmax(1))
    np.testing.assert_array_equal(margins.margin > 0, margins.predicted == tiny.ys)
    assert margins.capped.dtype == bool
    assert (margins.lipschitz[np.arange(n), margins.predicted] == 0).all()
    summary = jm.summarize(margins)
    assert summary._fields == ("minimum", "average", "average_unsigned", "accuracy", "capped_fraction")
    assert summary.minimum <= summary.average <= summary.average_unsigned <= 5
    np.testing.assert_allclose(summary.accuracy, np.mean(logits.argmax(1) == tiny.ys), rtol=1e-6)


def test_an_exact_margin_and_an_attack_bracket_a_linear_classifier(linear):
    xs = jnp.asarray(linear.xs, jnp.float32)
    exact = jm.over_batch(jm.linear_margin, linear.apply, norm=jm.l2)(linear.params, jax.random.key(0), xs, linear.ys)
    attack = jm.over_batch(
        jm.pgd, linear.apply, norm=jm.l2, epsilon=1.0, step_size=0.02, num_steps=200, loss="cross_entropy"
    )(linear.params, jax.random.key(0), xs, linear.ys)
    right = exact.margin > 0
    assert (attack.distance[right] >= exact.margin[right] * (1 - 1e-5)).all()
    assert np.isfinite(attack.distance[right]).any()
    np.testing.assert_array_equal(attack.found, np.isfinite(attack.distance))


def test_a_function_of_ones_own_with_closed_over_structure_is_a_classifier(key):
    static = {"activation": jnp.tanh}
    params = {"w": jnp.array([[1.0, 2.0], [0.0, -1.0]])}
    apply_fn = lambda params, x: static["activation"](params["w"] @ x)  # noqa: E731
    run = jm.over_batch(jm.linear_margin, apply_fn)
    assert np.isfinite(run(params, key, jnp.ones((3, 2)), jnp.array([0, 1, 0])).margin).all()


def test_an_objective_is_a_value_with_a_loss_that_can_be_differentiated(tiny):
    objective = jm.objectives.amr(lam=0.1, beta=1e-3, tau=5.0)

    def loss(params):
        def one(key, x, y):
            return objective.example_loss(lambda x: tiny.model.apply(params, x), key, x, y, jnp.zeros(()))

        keys = jax.random.split(jax.random.key(0), len(tiny.xs))
        return jnp.mean(jax.vmap(one)(keys, tiny.xs, tiny.ys)) + objective.penalty(params)

    value, gradient = jax.jit(jax.value_and_grad(loss))(tiny.params)
    moved = objective.retract(jax.tree.map(lambda leaf, slope: leaf - 0.01 * slope, tiny.params, gradient))
    assert loss(moved) < value
