"""The descents against plain numpy and their limit, the claims against numbers, and the command line end to end."""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmargin as jm
from jaxmargin.lab import data
from runs.case_study import __main__ as run
from runs.case_study import claims, hyperplanes, study
from runs.case_study.svm import Direction, linear_margins

pytestmark = pytest.mark.hurried

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def digits():
    return hyperplanes.two_classes(data.load("digits"), (0, 1))


@pytest.fixture(scope="module")
def result(digits):
    epochs = {"plain": 300, "normalised": 3000, "momentum": 3000}
    return study.run(digits, epochs=epochs, steps=dict.fromkeys(epochs), front_points=8)


def small_task(seed=0, n=12, p=3):
    rng = np.random.default_rng(seed)
    ys = np.where(np.arange(n) < n // 3, 1.0, -1.0)
    xs = rng.normal(size=(n, p)) + 2 * ys[:, None]
    return hyperplanes.Task(xs, ys, xs[::2] + 0.1, ys[::2])


def test_two_classes_scales_and_signs():
    source = data.load("digits")
    task = hyperplanes.two_classes(source, (7, 3))
    assert task.train_xs.shape == (np.isin(source.train.labels, (3, 7)).sum(), 64)
    assert task.train_xs.max() == 1.0 and task.train_xs.min() == 0.0
    assert (task.test_ys == 1).sum() == (source.test.labels == 3).sum()


@pytest.mark.parametrize("logits_fn", [hyperplanes.apply_fn, lambda v, x: jnp.stack([0.0 * v[1], x @ v[0] + v[1]])])
def test_linear_margin_of_the_package_is_the_closed_form(logits_fn, digits, key):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=64), 0.4
    b -= w @ digits.test_xs.mean(axis=0)
    params = jnp.asarray(w, jnp.float32), jnp.float32(b)
    classes = jnp.asarray(digits.test_ys > 0, jnp.int32)
    measured = jm.over_batch(jm.linear_margin, logits_fn, norm=jm.l2)(
        params, key, jnp.asarray(digits.test_xs, jnp.float32), classes
    )
    exact = linear_margins(w, b, digits.test_xs, digits.test_ys)
    assert (exact < 0).any() and (exact > 0).any()
    np.testing.assert_allclose(measured.margin, exact, atol=2e-6)
    summary = jm.summarize(measured)
    assert float(summary.minimum) == pytest.approx(exact.min(), abs=2e-6)
    assert float(summary.average) == pytest.approx(exact.mean(), abs=2e-6)


@pytest.mark.parametrize("name", study.METHODS)
def test_weights_are_the_gradient_of_the_loss_or_of_its_logarithm(name):
    zs = jnp.asarray(hyperplanes.signed_rows(*small_task()[:2]), jnp.float32)
    v = jnp.array([0.3, -0.2, 0.5, 0.1])

    def objective(v):
        loss = jnp.mean(jax.nn.softplus(-(zs @ v)))
        return loss if name == "plain" else jnp.log(loss)

    np.testing.assert_allclose(study.METHODS[name].weigh(zs @ v) @ zs, -jax.grad(objective)(v), rtol=1e-5, atol=1e-6)


def by_hand(task, name, step, epochs):
    """The rule of each method from its formula, in double precision."""
    zs, v, g = hyperplanes.signed_rows(*task[:2]), np.zeros(task.train_xs.shape[1] + 1), 0.0
    for t in range(epochs):
        s = zs @ v
        d = zs.T @ (1 / (1 + np.exp(s))) / len(s)
        if name != "plain":
            d = d / np.mean(np.log1p(np.exp(-s)))
        g = t / (t + 1) * (g + d) if name == "momentum" else 0.0
        v = v + step * (g + d)
    return v


@pytest.mark.parametrize("name", study.METHODS)
def test_descent_follows_its_rule_and_measures_exactly(name):
    task = small_task()
    trace = study.descend(task, study.METHODS[name], step=0.05, epochs=40, marks=[7, 40], targets=[np.arange(1.0, 4.0)])
    for v, epoch in zip(trace.v, (7, 40), strict=True):
        expected = by_hand(task, name, 0.05, epoch)
        np.testing.assert_allclose(v, expected, rtol=1e-4, atol=1e-5)
        margins = linear_margins(expected[:-1], expected[-1], *task[:2])
        loss = np.mean(np.log1p(np.exp(-hyperplanes.signed_rows(*task[:2]) @ expected)))
        at = epoch - 1
        assert trace.minimum[at] == pytest.approx(margins.min(), abs=1e-4)
        assert trace.average[at] == pytest.approx(margins.mean(), abs=1e-4)
        assert trace.log_loss[at] == pytest.approx(np.log(loss), abs=1e-4)
        assert trace.train_error[at] == np.mean(margins <= 0)
        assert trace.test_error[at] == np.mean(linear_margins(expected[:-1], expected[-1], *task[2:]) <= 0)
        unit, aim = expected[:-1] / np.linalg.norm(expected[:-1]), np.arange(1.0, 4.0) / np.sqrt(14.0)
        assert trace.distance[at, 0] == pytest.approx(np.linalg.norm(unit - aim), abs=1e-4)


def test_descent_goes_on_where_the_loss_is_too_small_for_a_float(digits):
    trace = study.descend(digits, study.METHODS["momentum"], step=0.03, epochs=2000)
    assert trace.log_loss[-1] < -1000 and np.isfinite(trace.log_loss).all()
    assert np.isfinite(trace.minimum).all() and trace.minimum[-1] > 0.59


def test_plain_descent_stops_short_and_normalised_descent_arrives(result):
    svm = result.rows["penalised"].train
    distance = {name: trace.distance[-1] for name, trace in result.traces.items()}
    assert result.rows["plain"].train.min() < 0.6 * svm.min() and distance["plain"][0] > 0.3
    assert distance["normalised"][0] < 0.03 and distance["momentum"][0] < 0.003
    for name in ("normalised", "momentum"):
        assert result.rows[name].train.min() > 0.99 * svm.min()
        assert result.rows[name].train.mean() < 1.02 * svm.mean()
        assert distance[name][1] > 0.15  # the other convention is another direction


def test_rows_of_the_result_fit_together(result):
    rows = {row["classifier"]: row for row in claims.table(result)}
    free, penalised = rows["SVM, bias free"], rows["SVM, bias penalised"]
    assert free["minimum"] == max(row["minimum"] for row in rows.values())
    assert free["best average at that minimum"] == pytest.approx(free["average"], rel=1e-9)
    assert all(row["average"] <= row["best average at that minimum"] + 1e-9 for row in rows.values())
    assert penalised["distance to free SVM"] == free["distance to penalised SVM"] > 0.1
    assert result.residuals["front_gap_relative"] < 1e-6
    assert result.residuals["scikit_learn_distance"] < 1e-5
    assert result.residuals["linear_margin_difference"] < 1e-5
    assert all(
        value < 1e-10 for name, value in result.residuals.items() if re.match("svm.*(feas|slack|stat|bal)", name)
    )


def test_claims_follow_the_numbers(result):
    def decided(changed):
        return {row["claim"]: row["holds"] for row in claims.claims(changed)}

    rises, falls = (f"loss-normalised descent: the {part}" for part in ("minimum margin rises", "average margin falls"))
    reaches = "loss-normalised descent: it reaches the penalised SVM's within 1%"
    trace = result.traces["normalised"]
    backwards = trace._replace(minimum=trace.minimum[::-1], average=trace.average[::-1])
    reversed_ = decided(result._replace(traces=result.traces | {"normalised": backwards}))
    assert [decided(result)[claim] for claim in (rises, falls, reaches)] == ["yes"] * 3
    assert [reversed_[claim] for claim in (rises, falls, reaches)] == ["no"] * 3
    assert decided(result)["gradient descent: it reaches the penalised SVM's within 1%"] == "no"


def test_front_passes_through_what_classifiers_can_have(digits, result):
    rows = {"free": result.rows["free"], "odd": hyperplanes.classifier("odd", Direction(np.ones(64), -20.0), digits)}
    front, ceilings = hyperplanes.front_of(digits, rows, 5)
    assert ceilings["odd"] > rows["odd"].train.mean()
    assert ceilings["free"] == pytest.approx(front.average[-1])


# The command line.


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("case study")
    arguments = ["--epochs", "20", "--normalised-epochs", "30", "--front-points", "6", "--workdir", str(workdir)]
    assert run.main(arguments) == 0
    return workdir


def test_run_writes_everything_and_no_drafts(outcome):
    expected = {"figure1.png", "figure1c.png", "figure3.png", "pareto.png", "direction.png", "table.md", "table.csv"}
    expected |= {"metrics.jsonl", "margins.npz", "report.html", "result.json", "SHA256SUMS"}
    assert {path.name for path in outcome.iterdir()} == expected


def test_metrics_are_one_flat_line_for_each_method_and_epoch(outcome):
    lines = [json.loads(line) for line in (outcome / "metrics.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["plain"] * 20 + ["normalised"] * 30 + ["momentum"] * 30
    assert [line["epoch"] for line in lines[:20]] == list(range(1, 21))
    assert all(isinstance(value, str | int | float) for line in lines for value in line.values())
    assert {"train_loss", "train_error", "test_error", "distance_free"} <= set(lines[0])
    assert {"minimum_margin", "average_margin"} <= set(lines[0])


def test_margins_and_card_agree(outcome):
    card = json.loads((outcome / "result.json").read_text())
    arrays = np.load(outcome / "margins.npz", allow_pickle=False)
    assert (card["n_train"], card["n_test"]) == (len(arrays["train_plain"]), len(arrays["test_plain"]))
    for name, row in zip(("plain", "normalised", "momentum", "penalised", "free", "mean"), card["rows"], strict=True):
        assert row["minimum"] == arrays[f"train_{name}"].min()
        assert row["test average"] == arrays[f"test_{name}"].mean()
    assert card["methods"]["plain"]["epochs"] == 20 and card["versions"]["jax"] == jax.__version__
    assert card["study"] == "case_study" and {"plain", "front"} <= card["stages"].keys()
    assert card["seconds"] >= sum(stage["seconds"] for stage in card["stages"].values())


def test_report_says_what_was_measured(outcome):
    page = (outcome / "report.html").read_text()
    card = json.loads((outcome / "result.json").read_text())
    svm = next(row for row in card["rows"] if row["classifier"] == "SVM, bias penalised")
    assert f"{svm['minimum']:.4f}" in page and "stops short of it" in page
    assert page.count("data:image/png;base64,") == 5
    assert str(outcome) not in page and os.getcwd() not in page


def test_table_and_place_are_printed(tmp_path, capsys):
    arguments = ["--epochs", "2", "--normalised-epochs", "2", "--front-points", "2", "--workdir", str(tmp_path)]
    assert run.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| classifier |") and printed.endswith(f"report: {tmp_path / 'report.html'}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "iris"], ["dataset='iris'", "digits, mnist"]),
        (["--epochs", "0"], ["epochs=0", "at least 1"]),
        (["--normalised-epochs", "-5"], ["normalised_epochs=-5", "at least 1"]),
        (["--step", "0"], ["step=0", "greater than 0"]),
        (["--momentum-step", "nan"], ["momentum_step=nan", "finite"]),
        (["--front-points", "1"], ["front_points=1", "at least 2"]),
        (["--classes", "4", "4"], ["classes=4 4", "pass two that differ"]),
        (["--classes", "0", "11"], ["classes=0 11", "0 to 9"]),
        (["--workdir", "{file}/below"], ["workdir=", "pass another"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run.main([argument.format(file=tmp_path / "file") for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert all(word in captured.err for word in words)


def test_inseparable_classes_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    points, labels = np.random.default_rng(0).integers(0, 17, (120, 2, 2, 1)), np.arange(120) % 2
    split = data.Split(points.astype(np.uint8), labels.astype(np.int32))
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Dataset("digits", split, split, 10, 16.0))
    assert run.main(["--workdir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "classes=0 1" in captured.err and "no hyperplane separates" in captured.err and captured.err.count("\n") == 1


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no prepared MNIST in ../shared/data/tfds")
def test_mnist_has_the_papers_points_and_margins(tmp_path):
    task = hyperplanes.two_classes(data.load("mnist", data_dir=SHARED, cache_dir=tmp_path), (0, 1))
    assert len(task.train_ys) == 12_665 and (task.train_ys > 0).sum() == 6_742 and len(task.test_ys) == 2_115
    rows, residuals = hyperplanes.references(task)
    assert rows["free"].train.min() == pytest.approx(0.42452, abs=1e-5)
    assert rows["penalised"].train.min() == pytest.approx(0.40942, abs=1e-5)
    assert rows["mean"].train.min() < -2 and rows["mean"].train.mean() > 2 * rows["free"].train.mean()
    assert all(value < 1e-10 for name, value in residuals.items() if not name.endswith("support"))
