"""``over_batch``: the one place that maps a measure of one example over many, in batches, compiled once."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmargin import checks
from jaxmargin.batching.facts import confirmed
from jaxmargin.batching.rules import Batch, BatchRule, rule_of
from jaxmargin.norms import Norm, l2
from jaxmargin.types import ApplyFn, Array, Measure, Result
from jaxmargin.xla_cpu import loopable, on_cpu
from jaxmargin.xla_cpu.equations import convolves
from jaxmargin.xla_cpu.kernels import without_slow_kernels
from jaxmargin.xla_cpu.rows import CONVOLVING_ROWS, ROWS, by_rows

__all__ = ["Measurement", "over_batch"]


_CONFIRMED = 128  # examples whose predictions are looked at together


def over_batch(
    measure: Measure[Result],
    apply_fn: ApplyFn,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> "Measurement[Result]":
    """Lifts a measure of one example to n examples: ``run(params, key, xs, ys)``, jitted, in batches of fixed shape.

    Nothing is traced again for other parameters or another n. Example i has ``fold_in(key, i)``, except in measures
    that share their samples between examples (``lipschitz_margin``), which use the key itself. On a CPU neither
    batch_size nor chunk_size nor mesh changes a bit of the result, with one exception: a mesh of several CPU devices
    may move the last bits of the minimum-norm attacks and of ``bracket``.

    Args:
      measure: a function (logits_fn, key, x, y, *, options) -> NamedTuple, such as ``lipschitz_margin`` or ``pgd``.
      apply_fn: (params, x [*d]) -> logits [c], the classifier of one example, deterministic.
      batch_size: examples that one device takes in one call; None takes as many as keep it busy. Where a
        CPU takes examples side by side it is rounded up to a multiple of so many.
      mesh: devices that share the work: examples are divided among its axis "points", and the samples of each example
        among its axis "samples"; either may be missing. None uses one device. On several hosts
        (``jax.distributed.initialize``) every host makes the same call with the same arguments and gets the whole
        result.
      **options: keyword options of the measure, fixed for all examples.

    Returns:
      A Measurement, called as ``run(params, key, xs [n, *d], ys [n])``, which gives the measure's NamedTuple with
      fields of length n. Numbers may be left open until then, ``run(..., epsilon=0.5)``: a sweep compiles once.

    Raises:
      ValueError: an option the measure does not have, batch_size < 1, a mesh with other axes; when called, whatever
        is wrong with the examples, and a result that is NaN.

    >>> import jax, jax.numpy as jnp, jaxmargin as jm
    >>> run = jm.over_batch(jm.linear_margin, lambda w, x: w @ x, norm=jm.l2)
    >>> w, xs = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, 0.5], [-2.0, 0.0]])
    >>> run(w, jax.random.key(0), xs, jnp.array([0, 1])).margin
    Array([1. , 1.2], dtype=float32)
    """
    plan = _planned(measure, batch_size, mesh, options)
    return Measurement(plan, _built(plan, apply_fn, mesh), mesh)


# What is measured, and how -------------------------------------------------------------------------------------------


class _Plan(NamedTuple, Generic[Result]):
    """A measure and what was chosen for it."""

    measure: Measure[Result]
    rule: BatchRule[Result] | None  # None where each example is measured by itself
    known: frozenset[str]  # options of the measure
    needed: frozenset[str]  # of them, those still to be given with the examples
    fixed: frozenset[str]  # and those that cannot be given with the examples
    options: dict[str, Any]
    norm: Norm  # that it measures with, if any
    batch_size: int


def _planned(
    measure: Measure[Result], batch_size: int | None, mesh: Mesh | None, options: dict[str, Any]
) -> _Plan[Result]:
    """Refuses what the measure does not take, and chooses what was left open."""
    checks.measure(measure)
    keywords = [p for p in inspect.signature(measure).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known, rule = frozenset(p.name for p in keywords), rule_of(measure)
    checks.options(measure, options, known)
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    if rule is not None:  # it has no defaults of its own
        options = {p.name: p.default for p in keywords if p.default is not p.empty} | options
    if _axes(mesh, rule is not None and rule.divides_samples).get("samples", 1) > 1:
        options = options | {"axis_name": "samples"}
    checks.box(options.get("box"))
    if "norm" in options:
        checks.norm(options["norm"])
    fixed = frozenset(p.name for p in keywords if _fixed(p))
    needed = frozenset(p.name for p in keywords if p.default is p.empty) - options.keys()
    defaults = {p.name: p.default for p in keywords}
    norm = (defaults | options).get("norm", l2)
    return _Plan(measure, rule, known, needed, fixed, options, norm, _examples(rule, batch_size))


def _fixed(option: inspect.Parameter) -> bool:
    """Whether an option is said to be no number that may be traced."""
    return option.annotation is not option.empty and jax.Array not in get_args(option.annotation)


def _examples(rule: BatchRule[Any] | None, batch_size: int | None) -> int:
    """Examples that one device takes in one call: on a CPU a multiple of those that it takes side by side."""
    if batch_size is None:
        alone = ROWS if on_cpu() else 8192
        batch_size = alone if rule is None else rule.batch_size()
    rows = ROWS if rule is None else rule.rows
    return -(-batch_size // rows) * rows if on_cpu() else batch_size


def _axes(mesh: Mesh | None, shares_samples: bool) -> dict[str, int]:
    """Devices along each axis of a mesh."""
    if mesh is None:
        return {}
    known = ["points", "samples"] if shares_samples else ["points"]
    if unknown := [name for name in mesh.axis_names if name not in known]:
        raise ValueError(
            f"mesh has the axis {unknown[0]!r}, which this measure cannot be divided along: name its axes"
            f" {' and '.join(known)}, as in jax.make_mesh((jax.device_count(),), ('points',))"
        )
    return dict(mesh.shape)


# What is compiled -----------------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """What is the same for all examples of a call."""

    params: Any
    key: jax.Array
    values: dict[str, jax.Array]


class _Steps(NamedTuple, Generic[Result]):
    """Compiled functions, the last two (given, n, indices, xs, ys) -> (results, whether the logits are finite)."""

    probe: Any  # (params, xs [k, *d]) -> [k, c] logits of a few examples
    classes: Callable[[Any, Array], jax.Array]  # (params, xs [b, *d]) -> [b] predictions of the classifier as given
    plain: Callable[..., tuple[Result, jax.Array]]
    convolving: Callable[..., tuple[Result, jax.Array]]  # for networks that convolve; not inside of another jit


def _built(plan: _Plan[Result], apply_fn: ApplyFn, mesh: Mesh | None) -> _Steps[Result]:
    fast: ApplyFn = loopable(apply_fn)

    @jax.jit
    def probe(params: Any, xs: jax.Array) -> jax.Array:
        logits: jax.Array = jax.lax.map(functools.partial(fast, params), xs)
        return logits

    @jax.jit
    def classes(params: Any, xs: jax.Array) -> jax.Array:
        logits: jax.Array = jax.lax.map(functools.partial(apply_fn, params), xs, batch_size=_CONFIRMED)
        return jnp.argmax(logits, 1)

    step, convolving_step = (functools.partial(_step, plan, fast, rows) for rows in (ROWS, CONVOLVING_ROWS))
    return _Steps(probe, classes, _divided(step, mesh), _divided(convolving_step, mesh, without_slow_kernels()))


def _step(
    plan: _Plan[Result],
    apply_fn: ApplyFn,
    rows: int,
    given: _Given,
    n: jax.Array,
    indices: jax.Array,
    xs: jax.Array,
    ys: jax.Array,
) -> tuple[Result, jax.Array]:
    """The results of one batch, those of the first n examples, and whether their logits are finite."""
    logits_fn, options = functools.partial(apply_fn, given.params), plan.options | given.values

    def finite(x: jax.Array) -> jax.Array:
        return jnp.isfinite(logits_fn(x)).all()

    def one(index: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Result, jax.Array]:
        key = jax.random.fold_in(given.key, index)
        return plan.measure(logits_fn, key, x, y, **options), finite(x)

    with jax.default_matmul_precision("float32"):
        if plan.rule is None:
            measured: tuple[Result, jax.Array] = by_rows(jax.vmap(one), (indices, xs, ys), n - indices[0], rows)
            return measured
        sound: jax.Array = jax.lax.map(finite, xs)
        return plan.rule.run(logits_fn, given.key, Batch(indices, xs, ys, indices < n), **options), sound


def _divided(step: Callable[..., Any], mesh: Mesh | None, compiler_options: dict[str, str] | None = None) -> Any:
    """``step`` compiled, its examples divided among the devices of a mesh and its result whole on each of them."""
    if mesh is None:
        return jax.jit(step, compiler_options=compiler_options)
    mesh = Mesh(mesh.devices, mesh.axis_names)  # its axes as JAX divides them, whatever types the caller's have
    mine = PartitionSpec("points") if "points" in mesh.axis_names else PartitionSpec()
    whole = PartitionSpec()
    given = whole, whole, mine, mine, mine
    shared = jax.shard_map(step, mesh=mesh, in_specs=given, out_specs=mine, check_vma=False)
    return jax.jit(shared, out_shardings=NamedSharding(mesh, whole), compiler_options=compiler_options)


# What is called -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Measurement(Generic[Result]):
    """A measure lifted to many examples by ``over_batch``; calling it measures them all.

    Attributes:
      plan: the measure and what was chosen for it.
      steps: what was compiled, or will be when it is called.
      mesh: the devices that share the work; None for one.
      batch_size: examples that one device takes in one call.
    """

    plan: _Plan[Result]
    steps: _Steps[Result]
    mesh: Mesh | None

    @property
    def batch_size(self) -> int:
        """Examples that one device takes in one call."""
        return self.plan.batch_size

    def __call__(self, params: Any, key: jax.Array, xs: Array, ys: Array, **values: float | jax.Array) -> Result:
        """Measures n examples.

        Args:
          params: parameters of the classifier.
          key: a PRNG key; example i uses ``fold_in(key, i)``.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.
          **values: positive numbers for options of the measure, such as epsilon, that need no compilation of their own.

        Returns:
          The measure's NamedTuple with fields of length n.

        Raises:
          ValueError: see ``over_batch``.
        """
        if checks.concrete(params, key, xs, ys, values):
            parts = list(self.batches(params, key, xs, ys, 0, **values))
            return parts[0] if len(parts) == 1 else _joined(*parts)
        # Inside somebody else's transformation: a loop over the batches instead of calls from the host.
        given = self._given(params, key, values)
        size, n = self._checked(params, xs, ys), len(xs)
        indices = np.arange(-(-n // size) * size).reshape(-1, size)  # [batches, size]
        rows = np.minimum(indices, n - 1)
        parts = jax.lax.map(lambda batch: self.steps.plain(given, n, *batch)[0], (indices, xs[rows], ys[rows]))
        result: Result = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], parts)
        return result

    def batches(
        self, params: Any, key: jax.Array, xs: Array, ys: Array, first: int = 0, **values: float | jax.Array
    ) -> Iterator[Result]:
        """Measures n examples batch by batch, for callers that show progress or save what they have.

        Args:
          params: parameters of the classifier.
          key: a PRNG key.
          xs: [n, *d] floating-point inputs.
          ys: [n] integer classes.
          first: index of the first example still to measure; results do not depend on where a run was cut.
          **values: as when called.

        Yields:
          The measure's NamedTuple for the examples of one batch, in order.
        """
        given = self._given(params, key, values)
        size, n = self._checked(params, xs, ys), len(xs)
        slow = convolves(self.steps.probe.trace(params, _few(xs)).jaxpr)
        step = self.steps.convolving if slow else self.steps.plain
        box, xs = self.plan.options.get("box"), np.asarray(xs)
        xs = xs if box is None else np.clip(xs, *box)  # what rounding moved out of it
        given, xs, ys = self._everywhere(given, xs, np.asarray(ys))
        for start in range(first, n, size):
            indices = start + np.arange(size)
            rows = np.minimum(indices, n - 1)  # the last example fills its batch up
            batch = xs[rows], ys[rows]
            result, finite = step(given, n, indices, *batch)
            result = self._confirmed(given, result, *batch)
            result, finite = (result, finite) if start + size <= n else _first((result, finite), n - start)
            _refuse_nan(result, finite, start)
            yield result

    def _confirmed(self, given: _Given, result: Result, xs: Array, ys: Array) -> Result:
        """The result; where it claims that inputs are misclassified, as the classifier itself sees them."""
        if not hasattr(result, "claimed"):
            return result
        options = self.plan.options | given.values

        def classes(inputs: np.ndarray) -> np.ndarray:
            (everywhere,) = self._everywhere(inputs)
            return np.asarray(self.steps.classes(given.params, everywhere))

        limits = self.plan.norm, float(options.get("epsilon", np.inf)), options.get("box")
        found: Result = confirmed(result, np.asarray(xs), np.asarray(ys), classes, *limits)  # type: ignore[type-var]
        return found

    def _given(self, params: Any, key: jax.Array, values: dict[str, Any]) -> _Given:
        """Refuses options of a call that the measure does not have, misses those it needs, and wants them positive."""
        checks.options(self.plan.measure, values, self.plan.known)
        checks.key(key)
        if fixed := ", ".join(sorted(self.plan.fixed & values.keys())):
            raise ValueError(f"{fixed} is compiled into the measure: pass it to over_batch, not with the examples")
        if needed := ", ".join(sorted(self.plan.needed - values.keys())):
            name = getattr(self.plan.measure, "__name__", repr(self.plan.measure))
            raise ValueError(f"{name} needs the option {needed}: pass it to over_batch or with the examples")
        for name, value in values.items():
            checks.positive(name, value)
        return _Given(params, key, {name: jnp.asarray(value, jnp.float32) for name, value in values.items()})

    def _checked(self, params: Any, xs: Array, ys: Array) -> int:
        """Refuses what is wrong with the examples or the logits of the first of them; returns the size of a batch."""
        checks.examples(xs, ys)
        checks.in_box("xs", xs, self.plan.options.get("box"))
        few = _few(xs)
        try:
            out = jax.eval_shape(self.steps.probe, params, few)
        except (TypeError, ValueError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"apply_fn fails on one example of shape {jnp.shape(xs)[1:]}: {said} (a classifier of batches: wrap it"
                " in jaxmargin.from_batched; one in training mode: call net.eval() or pass train=False)"
            ) from error
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), out)
        checks.labels(ys, checks.logits_like(one, jnp.shape(xs)[1:]))
        if checks.concrete(params, xs, ys):
            checks.scores(self.steps.probe(params, few), ys)
        return self.batch_size * (1 if self.mesh is None else self.mesh.shape.get("points", 1))

    def _everywhere(self, *trees: Any) -> tuple[Any, ...]:
        """Arrays as every host of a mesh of several hosts may use them: whole, and the same on all devices."""
        if self.mesh is None or not self.mesh.is_multi_process:
            return trees
        whole = NamedSharding(self.mesh, PartitionSpec())

        def put(leaf: Any) -> Any:
            return jax.device_put(np.asarray(leaf), whole)

        def place(leaf: Any) -> Any:
            if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                return put(leaf)
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))

        placed: tuple[Any, ...] = jax.tree.map(place, trees)
        return placed


def _few(xs: Array) -> Array:
    """The first examples, always as many, to look at before any work."""
    xs = np.asarray(xs) if checks.concrete(xs) else xs
    return xs[np.minimum(np.arange(8), len(xs) - 1)]


@functools.partial(jax.jit, static_argnums=1)
def _first(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:n], tree)


@jax.jit
def _joined(*parts: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _refuse_nan(result: Any, finite: jax.Array, start: int) -> None:
    """Names the first example whose logits are not finite or whose result holds NaN."""
    floats = [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    bad = ~np.asarray(finite)  # [b]
    for leaf in floats:
        bad |= np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1)
    if bad.any():
        index = start + int(np.argmax(bad))
        raise ValueError(f"the result of example {index} is NaN: apply_fn or its gradient is not finite there")
