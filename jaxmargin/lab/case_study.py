"""Two classes, one hyperplane: gradient descent on the logistic loss against the SVM and the front of margins.

Everything is linear in v = (w, b), so the margins are exact at every epoch: with rows z_i = y_i (x_i, 1), the signed
logits are ``s_i = z_i.v``, the loss is ``L(v) = mean_i softplus(-s_i)`` and the margins are ``s_i / |w|``.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxmargin as jm
from jaxmargin.lab.data import Dataset, Split
from jaxmargin.lab.svm import Direction, Front, hard_margin_svm, linear_margins, mean_difference, pareto_front

__all__ = [
    "METHODS",
    "Classifier",
    "Method",
    "Result",
    "Task",
    "Trace",
    "apply_fn",
    "at",
    "claims",
    "classifier",
    "default_step",
    "descend",
    "findings",
    "front_of",
    "metrics",
    "nearest",
    "package_difference",
    "references",
    "run",
    "scikit_learn_distance",
    "signed_rows",
    "table",
    "two_classes",
]

Array = NDArray[np.float64]
REACHED = 0.01  # a minimum margin counts as the SVM's when it is within this part of it


class Task(NamedTuple):
    """Two classes of a data set: points in [0, 1] and labels -1 (the first class) or +1 (the second)."""

    train_xs: Array  # [n, p]
    train_ys: Array  # [n]
    test_xs: Array  # [m, p]
    test_ys: Array  # [m]


class Method(NamedTuple):
    """A way to descend: ``v <- v + step (g + d)`` with ``d = sum_i weigh(s)_i z_i`` and ``g <- momentum(t) (g + d)``.

    Attributes:
      label: Its name in tables and figures.
      weigh: Logits [n] to the weights [n] of the rows.
      momentum: Epochs so far to the factor on what was accumulated.
      rule: The update in words, with its source.
    """

    label: str
    weigh: Callable[[jax.Array], jax.Array]
    momentum: Callable[[jax.Array], jax.Array]
    rule: str


class Trace(NamedTuple):
    """What is measured after each of t epochs, on the training points unless it says test; marks are chosen epochs.

    Attributes:
      log_loss: ln L [t], finite where L itself is too small for a float.
      train_error: Share of points [t] with a margin of 0 or less.
      test_error: The same on the test points [t].
      minimum: Minimum margin [t].
      average: Average signed margin [t].
      distance: |w/|w| - r/|r|| [t, r] to each of the reference weights.
      v: (w, b) at the marked epochs [k, p + 1].
    """

    log_loss: NDArray
    train_error: NDArray
    test_error: NDArray
    minimum: NDArray
    average: NDArray
    distance: NDArray
    v: NDArray


class Classifier(NamedTuple):
    """A row of the study: a label, the classifier (w, b), and its exact margins on both splits."""

    label: str
    direction: Direction
    train: Array
    test: Array


def two_classes(dataset: Dataset, classes: tuple[int, int]) -> Task:
    """Picks two classes and scales their pixels to [0, 1].

    Args:
      dataset: From ``jaxmargin.lab.data.load``.
      classes: The class called -1 and the class called +1.

    Returns:
      The ``Task``, with images flattened to p numbers in double precision.

    Raises:
      ValueError: For the same class twice, or one that the data set does not have.
    """
    first, second = classes
    if first == second:
        raise ValueError(f"classes={first} {second} are the same: pass two that differ, such as --classes 0 1")
    if not all(0 <= label < dataset.num_classes for label in classes):
        raise ValueError(f"classes={first} {second}: {dataset.name} has the classes 0 to {dataset.num_classes - 1}")

    def part(split: Split) -> tuple[Array, Array]:
        chosen = np.isin(split.labels, classes)
        xs = np.asarray(split.images[chosen], np.float64).reshape(int(chosen.sum()), -1) / dataset.scale
        return xs, np.where(split.labels[chosen] == second, 1.0, -1.0)

    return Task(*part(dataset.train), *part(dataset.test))


def signed_rows(xs: Array, ys: Array) -> Array:
    """The rows z = y (x, 1) [n, p + 1]."""
    return ys[:, None] * np.hstack([xs, np.ones((len(xs), 1))])


def apply_fn(params: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """The two logits (-s/2, s/2) of the classifier s = w.x + b, for the measurements of the package."""
    w, b = params
    logit = x @ w + b
    return jnp.stack([-logit, logit]) / 2


# The descent.


def _log_softplus(s: jax.Array) -> jax.Array:
    """ln softplus(-s), the logarithm of one example's loss; from s = 15 on it is -s in single precision."""
    return jnp.where(s > 15, -s, jnp.log(jax.nn.softplus(-jnp.minimum(s, 15.0))))


def _by_mean(s: jax.Array) -> jax.Array:
    """sigmoid(-s) / n, which makes d = -grad L."""
    return jax.nn.sigmoid(-s) / len(s)


def _by_loss(s: jax.Array) -> jax.Array:
    """sigmoid(-s) / sum softplus(-s), which makes d = -grad L / L; in logarithms, because L soon underflows."""
    return jnp.exp(-jax.nn.softplus(s) - jax.nn.logsumexp(_log_softplus(s)))


METHODS: Mapping[str, Method] = {
    "plain": Method(
        "gradient descent",
        _by_mean,
        lambda t: 0.0 * t,
        "v <- v - step grad L, as in the paper; the step is 1 over the loss's smoothness, 4 / lambda_max(mean z z').",
    ),
    "normalised": Method(
        "loss-normalised descent",
        _by_loss,
        lambda t: 0.0 * t,
        "v <- v - step grad L / L, the step divided by the loss (Nacson et al. 2019, Convergence of gradient descent "
        "on separable data, who also let it shrink with the square root of t; constant, as here, in Ji and Telgarsky "
        "2021, Characterizing the implicit bias via a primal-dual analysis). The step is the plain one, above the "
        "1 / max |z|^2 of the theory, so early epochs oscillate.",
    ),
    "momentum": Method(
        "normalised descent, momentum",
        _by_loss,
        lambda t: t / (t + 1),
        "the same direction d = -grad L / L with momentum, g <- t/(t + 1) (g + d), v <- v + step (g + d) (Ji, Srebro "
        "and Telgarsky 2021, Fast margin maximization via dual acceleration). The step is 1 / max |z|^2.",
    ),
}


def default_step(method: str, zs: Array) -> float:
    """The step of a method's rule, from the rows z [n, p + 1].

    Args:
      method: A key of ``METHODS``.
      zs: The rows y (x, 1).

    Returns:
      ``1 / max_i |z_i|^2`` with momentum, else ``4 / lambda_max(mean z z')``.
    """
    if method == "momentum":
        return 1 / float(np.einsum("np,np->n", zs, zs).max())
    return 4 / float(np.linalg.eigvalsh(zs.T @ zs / len(zs))[-1])


def descend(
    task: Task, method: Method, *, step: float, epochs: int, marks: Iterable[int] = (), targets: Iterable[Array] = ()
) -> Trace:
    """Full-batch descent on the logistic loss from v = 0, one ``lax.scan``, with exact margins after every epoch.

    Args:
      task: The points.
      method: A value of ``METHODS``.
      step: The step size.
      epochs: How many steps.
      marks: Epochs, counted from 1, whose (w, b) to keep.
      targets: Weights [p] whose directions are measured against.

    Returns:
      A ``Trace``.

    Example:
      >>> points, labels = np.array([[0.0], [1.0]]), np.array([-1.0, 1.0])
      >>> trace = descend(Task(points, labels, points, labels), METHODS["plain"], step=1.0, epochs=200)
      >>> round(float(trace.minimum[-1]), 3), float(trace.train_error[-1])
      (0.471, 0.0)
    """
    zs, test = (jnp.asarray(signed_rows(*part), jnp.float32) for part in (task[:2], task[2:]))
    units = [target / np.linalg.norm(target) for target in targets]
    aims = jnp.asarray(units, jnp.float32).reshape(-1, zs.shape[1] - 1)  # [r, p]
    kept = jnp.asarray(list(marks), jnp.int32)  # [k]

    def epoch(state: tuple, t: jax.Array) -> tuple[tuple, tuple]:
        v, g, s, marked = state
        slope = method.weigh(s) @ zs  # [p + 1]
        g = method.momentum(t.astype(jnp.float32)) * (g + slope)
        v = v + step * (g + slope)
        s, size = zs @ v, jnp.linalg.norm(v[:-1])
        marked = jnp.where((kept == t + 1)[:, None], v[None], marked)
        log_loss = jax.nn.logsumexp(_log_softplus(s)) - jnp.log(len(s))
        distance = jnp.linalg.norm((v[:-1] / size)[None] - aims, axis=1)  # [r]
        measured = (log_loss, jnp.mean(s <= 0), jnp.mean(test @ v <= 0), s.min() / size, s.mean() / size, distance)
        return (v, g, s, marked), measured

    @jax.jit
    def run() -> tuple:
        v = jnp.zeros(zs.shape[1])
        start = (v, v, jnp.zeros(len(zs)), jnp.zeros((len(kept), len(v))))
        return jax.lax.scan(epoch, start, jnp.arange(epochs))

    with jax.default_matmul_precision("float32"):
        (*_, marked), measured = jax.block_until_ready(run())
    return Trace(*map(np.asarray, (*measured, marked)))


# What descent is held against.


def classifier(label: str, direction: Direction, task: Task) -> Classifier:
    """A row of the study, with its margins from the closed form in double precision."""
    train, test = linear_margins(*direction, *task[:2]), linear_margins(*direction, *task[2:])
    return Classifier(label, direction, train, test)


def references(task: Task) -> tuple[dict[str, Classifier], dict[str, Any]]:
    """The two SVMs and the mean difference.

    Args:
      task: The points.

    Returns:
      Rows by name ("penalised", "free", "mean"), and the ``KKT`` residuals and support sizes of the SVMs, flat.

    Raises:
      NotSeparableError: For classes that no hyperplane separates.
    """
    rows: dict[str, Classifier] = {}
    checks: dict[str, Any] = {}
    biases: tuple[Literal["penalised", "free"], ...] = ("penalised", "free")
    for bias in biases:
        svm = hard_margin_svm(*task[:2], bias=bias)
        rows[bias] = classifier(f"SVM, bias {bias}", Direction(svm.w, svm.b), task)
        checks |= {f"svm_{bias}_{name}": value for name, value in svm.kkt._asdict().items()}
        checks[f"svm_{bias}_support"] = len(svm.support)
    rows["mean"] = classifier("mean difference", mean_difference(*task[:2]), task)
    return rows, checks


def scikit_learn_distance(task: Task, svm: Classifier) -> float:
    """The distance between the directions of a free-bias SVM and of scikit-learn's, |w/|w| - w'/|w'||."""
    from sklearn.svm import SVC

    return _apart(svm.direction.w, SVC(kernel="linear", C=1e6, tol=1e-7).fit(*task[:2]).coef_[0])


def package_difference(task: Task, rows: Iterable[Classifier]) -> float:
    """The largest difference on the test points between the closed form and the package's ``linear_margin``."""
    measure = jm.over_batch(jm.linear_margin, apply_fn, norm=jm.l2)
    xs, ys = jnp.asarray(task.test_xs, jnp.float32), jnp.asarray(task.test_ys > 0, jnp.int32)
    largest = 0.0
    for row in rows:
        size = np.linalg.norm(row.direction.w)  # lengths near 1 suit single precision
        params = jnp.asarray(row.direction.w / size, jnp.float32), jnp.float32(row.direction.b / size)
        margins = np.asarray(measure(params, jax.random.key(0), xs, ys).margin)
        largest = max(largest, float(np.abs(margins - row.test).max()))
    return largest


def front_of(task: Task, rows: Mapping[str, Classifier], num_points: int) -> tuple[Front, dict[str, float]]:
    """The exact front over the range of the rows' minimum margins, and its average at each of them.

    Args:
      task: The points.
      rows: Classifiers, one of them ``"free"``, the free-bias SVM.
      num_points: Points of the front beside those of the rows.

    Returns:
      The ``Front``, and for each row the largest average that a classifier with its minimum margin can have.
    """
    largest = rows["free"].train.min()
    minimums = {name: min(float(row.train.min()), largest) for name, row in rows.items()}
    spaced = largest - (largest - min(minimums.values())) * np.linspace(1.0, 0.0, num_points) ** 3
    wanted = np.union1d(spaced, list(minimums.values()))
    front = pareto_front(*task[:2], minimums=wanted)
    return front, {name: float(front.average[np.searchsorted(wanted, m)]) for name, m in minimums.items()}


# The whole of it.


class Result(NamedTuple):
    """All that was measured.

    Attributes:
      task: The points.
      steps: Step size by method.
      marks: Epochs by method, the last one the end, whose (w, b) its trace keeps.
      traces: What each method did.
      rows: The classifiers: each method's end, the two SVMs, the mean difference.
      front: The exact front.
      ceilings: By row, the front's average at the row's minimum margin.
      residuals: KKT residuals, the front's largest relative gap, and the differences to scikit-learn and the package.
      seconds: By stage.
    """

    task: Task
    steps: dict[str, float]
    marks: dict[str, list[int]]
    traces: dict[str, Trace]
    rows: dict[str, Classifier]
    front: Front
    ceilings: dict[str, float]
    residuals: dict[str, Any]
    seconds: dict[str, float]


def run(task: Task, *, epochs: Mapping[str, int], steps: Mapping[str, float | None], front_points: int = 40) -> Result:
    """Trains with each method, solves for the SVMs and the front, and checks them.

    Args:
      task: From ``two_classes``.
      epochs: By key of ``METHODS``.
      steps: By key of ``METHODS``; None for ``default_step``.
      front_points: Points of the front beside those at the rows' minimum margins.

    Returns:
      A ``Result``.

    Raises:
      NotSeparableError: For classes that no hyperplane separates.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "references"):
        found, residuals = references(task)
    zs, targets = signed_rows(task.train_xs, task.train_ys), [found[name].direction.w for name in ("penalised", "free")]
    sizes = {name: steps[name] or default_step(name, zs) for name in METHODS}
    marks = {name: sorted({*(10**k for k in range(7) if 10**k < epochs[name]), epochs[name]}) for name in METHODS}
    traces, rows = {}, {}
    for name, method in METHODS.items():
        with _timed(seconds, name):
            traces[name] = descend(
                task, method, step=sizes[name], epochs=epochs[name], marks=marks[name], targets=targets
            )
        rows[name] = at(method.label, traces[name].v[-1], task)
    rows |= found
    with _timed(seconds, "front"):
        front, ceilings = front_of(task, rows, front_points)
    with _timed(seconds, "cross_checks"):
        residuals["front_gap_relative"] = float(np.max(np.abs(front.gap / front.average)))
        residuals["scikit_learn_distance"] = scikit_learn_distance(task, rows["free"])
        residuals["linear_margin_difference"] = package_difference(task, rows.values())
    return Result(task, sizes, marks, traces, rows, front, ceilings, residuals, seconds)


def at(label: str, v: NDArray, task: Task) -> Classifier:
    """The row of a descent at v = (w, b)."""
    return classifier(label, Direction(v[:-1].astype(np.float64), float(v[-1])), task)


def metrics(result: Result) -> Iterator[dict[str, Any]]:
    """One flat record for each method and epoch of a ``Result``."""
    for method, trace in result.traces.items():
        columns = {name: np.asarray(getattr(trace, name), np.float64) for name in trace._fields[:5]}
        columns |= {"train_loss": np.exp(columns["log_loss"])}
        columns |= {f"distance_{bias}": trace.distance[:, i] for i, bias in enumerate(("penalised", "free"))}
        for i in range(len(trace.minimum)):
            yield {"method": method, "epoch": i + 1} | {name: float(values[i]) for name, values in columns.items()}


def nearest(result: Result) -> str:
    """The method that ends nearest to the penalised-bias SVM."""
    return min(result.traces, key=lambda name: result.traces[name].distance[-1, 0])


def table(result: Result) -> list[dict[str, Any]]:
    """One row for each classifier of a ``Result``, flat; margins are in units of a pixel's range."""
    penalised, free = (result.rows[name].direction.w for name in ("penalised", "free"))
    return [
        {
            "classifier": row.label,
            "epochs": result.marks[name][-1] if name in result.marks else None,
            "minimum": float(row.train.min()),
            "average": float(row.train.mean()),
            "best average at that minimum": result.ceilings[name],
            "train error": float(np.mean(row.train <= 0)),
            "test minimum": float(row.test.min()),
            "test average": float(row.test.mean()),
            "test error": float(np.mean(row.test <= 0)),
            "distance to penalised SVM": _apart(row.direction.w, penalised),
            "distance to free SVM": _apart(row.direction.w, free),
        }
        for name, row in result.rows.items()
    ]


def claims(result: Result) -> list[dict[str, Any]]:
    """The paper's claims, each decided by the numbers of a ``Result``: claim, holds (yes or no), measured."""
    svm, mean = result.rows["penalised"].train, result.rows["mean"].train
    ceiling, found = result.ceilings["penalised"], []
    for name, trace in result.traces.items():
        found += _claims_of(METHODS[name].label, trace, svm.min())
    found += [
        ("the penalised SVM's average margin is below the mean difference's", svm.mean() < mean.mean(),
         f"{svm.mean():.4f} and {mean.mean():.4f}"),
        ("the mean difference has a negative minimum margin", mean.min() < 0, f"{mean.min():.4f}"),
        ("the SVM that descent converges to lies below the front", svm.mean() < ceiling - 1e-6,
         f"average {svm.mean():.4f}; {ceiling:.4f} is possible at its minimum margin"),
    ]  # fmt: skip
    return [{"claim": text, "holds": "yes" if holds else "no", "measured": measured} for text, holds, measured in found]


def _claims_of(label: str, trace: Trace, largest: float) -> list[tuple[str, bool, str]]:
    last, (low, average), (penalised, free) = len(trace.minimum), (trace.minimum, trace.average), trace.distance[-1]
    return [
        (f"{label}: the minimum margin rises", low[-1] > low[0], f"{low[0]:.4f} to {low[-1]:.4f} in {last} epochs"),
        (f"{label}: it reaches the penalised SVM's within {REACHED:.0%}", low[-1] >= (1 - REACHED) * largest,
         f"{low[-1]:.4f} of {largest:.4f}"),
        (f"{label}: the average margin falls", average[-1] < average[0], f"{average[0]:.4f} to {average[-1]:.4f}"),
        (f"{label}: ends nearer to the SVM with a penalised bias than with a free one", penalised < free,
         f"distances {penalised:.4f} and {free:.4f}"),
    ]  # fmt: skip


def findings(result: Result) -> str:
    """Two paragraphs that say what a ``Result`` shows, with its numbers."""
    name, svm = nearest(result), result.rows["penalised"].train
    best, ceiling = result.rows[name], result.ceilings[name]
    plain, last = result.rows["plain"].train, result.marks["plain"][-1]
    stops = "reaches" if plain.min() >= (1 - REACHED) * svm.min() else "stops short of"
    return (
        f"Logistic regression on {len(svm)} training and {len(result.task.test_ys)} test points, with exact margins in "
        f"units of a pixel's range. The SVM with a penalised bias, the limit of gradient descent on (w, b), has the "
        f"minimum margin {svm.min():.4f} and the average margin {svm.mean():.4f}.\n\n"
        f"After {last} epochs plain gradient descent {stops} it: minimum {plain.min():.4f}, average "
        f"{plain.mean():.4f}. {best.label.capitalize()} comes nearest: minimum {best.train.min():.4f}, average "
        f"{best.train.mean():.4f}. At that minimum margin a linear classifier can have the average {ceiling:.4f}."
    )


def _apart(w: Array, other: Array) -> float:
    """|w/|w| - o/|o||."""
    return float(np.linalg.norm(w / np.linalg.norm(w) - other / np.linalg.norm(other)))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
