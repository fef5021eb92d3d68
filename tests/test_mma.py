"""The MMA study: settings as published, cells of every method from start to report, cut and gone on with."""

import dataclasses
import re
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmargin import models, objectives
from jaxmargin.lab import cards, files
from jaxmargin.lab.data.loading import load
from jaxmargin.lab.publishing import Published
from jaxmargin.lab.workspace import Workspace
from runs.mma import __main__ as mma
from runs.mma import ensemble
from runs.mma import presets as mma_presets
from runs.mma import tables as robust_tables
from runs.mma.cell import ENSEMBLE, Cell, kind_of
from runs.mma.stages import MmaCard
from runs.results import __main__ as results

pytestmark = pytest.mark.hurried

TINY = [
    *("--steps", "20", "--attack-steps", "3", "--attack-points", "40", "--worst-case-steps", "5"),
    *("--nearest-steps", "10", "--points", "6", "--num-samples", "64"),
]
METHODS = ["--methods", "mma-1", "pgd-ens", "pgd-0.5", "pgd-0.25"]


LINEAR = models.linear((8, 8, 1))


@pytest.fixture(autouse=True)
def linear(monkeypatch):
    """A network that compiles quickly in place of the study's."""
    monkeypatch.setattr(Cell, "build_model", lambda self, shape, classes: LINEAR)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cell, "build_model", lambda self, shape, classes: LINEAR)
        assert mma.main([*TINY, *METHODS, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture
def unpublished(monkeypatch):
    """Leaves out the report, whose figures take longer than what some tests are about."""
    study = Published("", Path("report.html"), {}, [])
    monkeypatch.setattr(mma.publish, "publish", create_autospec(mma.publish.publish, return_value=study))


@pytest.mark.slow
def test_every_method_has_its_row_and_its_card(straight):
    rows = (straight / "table.md").read_text().strip().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["pgd-0.25", "pgd-0.5", "pgd-ens", "mma-1"]
    for path in (straight / "cards").glob("*.json"):
        card = files.read_json(path)
        robust = card["robust_accuracy_worst"]
        assert robust == sorted(robust, reverse=True) and robust[0] <= 1
        np.testing.assert_allclose(card["average_robust_accuracy_worst"], np.mean(robust))
        np.testing.assert_allclose(card["average_accuracy"], np.mean([card["clean_accuracy"], *robust]))
        assert card["method"] == ENSEMBLE or card["average_certified"] <= card["average_attacked"]
        assert card["n_train"] == 1437 - 200 and card["n_attack"] == 40 and card["study"] == "mma"
        settings = {field.name for field in dataclasses.fields(Cell)}
        members = set() if card["method"] == ENSEMBLE else {"members"}
        assert set(card) == (settings | set(MmaCard.__annotations__)) - members


@pytest.mark.slow
def test_the_points_agree_with_the_card(straight):
    card = files.read_json(straight / "cards" / "digits-l2-mma-1-seed0.json")
    with np.load(straight / "cards" / "digits-l2-mma-1-seed0.npz") as arrays:
        assert arrays["nearest"].shape == (4, 40) and arrays["moments"].tolist() == [0.1, 0.4, 0.7, 1.0]
        np.testing.assert_allclose(card["average_nearest"], arrays["nearest"][-1].mean(), rtol=1e-6)
        within = [(arrays["nearest"][-1] <= epsilon).mean() for epsilon in card["epsilons"]]
        assert (1 - np.array(card["robust_accuracy_worst"]) >= np.array(within) - 1e-9).all()
        np.testing.assert_allclose(card["robust_accuracy_worst"], 1 - arrays["found_worst"].mean(0), rtol=1e-6)
        np.testing.assert_allclose(card["average_margin"], arrays["margin"].mean(), rtol=1e-6)
        np.testing.assert_allclose(card["average_distance"], np.abs(arrays["margin"]).mean(), rtol=1e-6)
        assert arrays["plane_loss"].shape == arrays["plane_margin"].shape == (41, 41)
        assert (arrays["plane_loss"] >= -arrays["plane_margin"]).all()  # soft


@pytest.mark.slow
def test_the_report_has_all_the_figures_and_both_papers_in_one_table(straight):
    page = (straight / "report.html").read_text()
    for heading in ("Both papers on one network", "Margins spread", "Lower the loss where?", "Loss landscapes"):
        assert heading in page
    assert page.count("data:image/png") == 4
    assert {path.stem for path in (straight / "figures").glob("*.png")} == {"robust", "spread", "line", "landscape"}


@pytest.mark.slow
def test_a_cut_run_ends_with_the_same_bytes(straight, unpublished, tmp_path, monkeypatch, capsys):
    append, calls = files.append_record, []

    def cut(path, record):
        calls.append(record)
        if len(calls) in (3, 7):
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(files, "append_record", cut)
    arguments = [*TINY, "--methods", "mma-1", "--workdir", str(tmp_path)]
    assert [mma.main(arguments) for _ in range(3)] == [130, 130, 0]
    assert "the same command continues" in capsys.readouterr().err
    for name in ("cells/digits-l2-mma-1-seed0/params.npz", "cells/digits-l2-mma-1-seed0/metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()
    for name in ("nearest", "found_worst", "margin"):
        with (
            np.load(tmp_path / "cards/digits-l2-mma-1-seed0.npz") as here,
            np.load(straight / "cards/digits-l2-mma-1-seed0.npz") as there,
        ):
            np.testing.assert_array_equal(here[name], there[name])


@pytest.mark.slow
def test_an_ensemble_votes_over_its_members(straight):
    paths = [straight / f"cells/digits-l2-pgd-{size}-seed0/params.npz" for size in (0.25, 0.5)]
    members = [dict(np.load(path)) for path in paths]
    digits = load("digits")
    xs = digits.test.images.reshape(360, -1) / 16.0
    votes = [jax.nn.softmax(xs @ m["Dense_0/kernel"] + m["Dense_0/bias"]) for m in members]
    accuracy = np.mean(np.argmax(sum(votes), 1) == digits.test.labels)
    card = files.read_json(straight / "cards" / f"digits-l2-{ENSEMBLE}-seed0.json")
    np.testing.assert_allclose(card["clean_accuracy"], accuracy, atol=1e-6)
    assert card["members"] == ["pgd-0.5", "pgd-0.25"] and card["average_certified"] is None


@pytest.mark.slow
def test_an_ensemble_of_others_is_another_one(straight, unpublished, tmp_path, monkeypatch):
    workdir, measured = shutil.copytree(straight, tmp_path / "study"), []

    def run(study, cell, data, workdir):
        setup = study.set_up(cell, data, Workspace(workdir / "cells" / cell.name, cell.name))
        measured.append((cell.method, len(study.train(setup)), cards.path_of(workdir, cell.name).exists()))

    monkeypatch.setattr(ensemble, "run_cell", create_autospec(ensemble.run_cell, side_effect=run))
    assert mma.main([*TINY, "--methods", "pgd-0.5", "pgd-0.25", "pgd-ens", "--workdir", str(workdir)]) == 0
    assert mma.main([*TINY, "--methods", "pgd-0.5", "pgd-ens", "--workdir", str(workdir)]) == 0
    assert measured == [(ENSEMBLE, 2, True), (ENSEMBLE, 1, False)]  # what the two voted is gone
    assert not list((workdir / "cells" / f"digits-l2-{ENSEMBLE}-seed0").glob("*.npz"))


@pytest.mark.slow
def test_a_cell_that_diverges_does_not_keep_the_others_from_their_cards(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Cell, "build_optimizer", lambda self: optax.sgd(0.1 if self.method == "amr" else 1e38))
    arguments = [*TINY, "--workdir", str(tmp_path), "--methods", "pgd-0.5", "pgd-ens"]
    assert mma.main([*arguments, "amr"]) == 1  # and there is no ensemble without all of its members
    said = capsys.readouterr()
    assert "digits-l2-pgd-0.5-seed0: the loss is not finite" in said.err and "| amr |" in said.out
    assert "pgd-ens" not in said.out and "pgd-ens-seed0: left out, since pgd-0.5 diverged" in said.err
    assert mma.main([*TINY, "--methods", "std", "--workdir", str(tmp_path / "other")]) == 1
    said = capsys.readouterr()
    assert "digits-l2-std-seed0: the loss is not finite" in said.err and not said.out


@pytest.mark.slow
def test_results_take_a_study_over_and_refuse_another_configuration(straight, tmp_path, capsys):
    assert results.main([str(straight), "--results", str(tmp_path / "results")]) == 0
    text = (tmp_path / "results" / "README.md").read_text()
    assert (straight / "table.md").read_text().strip() in text
    assert "20 of 1,500 steps, first rate 0.001 (preset 0.001), inner attacks of 3 of 10 steps, 40 of 360 test" in text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / "results" / picture).read_bytes().startswith(b"\x89PNG")
    other = shutil.copytree(straight, tmp_path / straight.name)
    path = next((other / "cards").glob("*mma-1*.json"))
    files.write_json(path.with_name("mma-6.json"), files.read_json(path) | {"steps": 30, "method": "mma-6"})
    assert results.main([str(other), "--results", str(tmp_path / "results")]) == 2
    assert "has another steps than in" in capsys.readouterr().err


@pytest.mark.slow
def test_another_configuration_in_the_same_workdir_is_refused(straight, capsys):
    assert mma.main([*TINY, "--methods", "std", "--workdir", str(straight), "--steps", "30"]) == 2
    assert "steps=30 (there: 20)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--dataset", "svhn"], ["dataset='svhn'", "choose from digits, mnist, cifar10"]),
        (["--norm", "l3"], ["norm='l3'", "choose from l2, linf"]),
        (["--model", "vgg"], ["model='vgg'", "choose from lenet, small-lenet, wrn-28-4"]),
        (["--methods", "pgd"], ["method 'pgd' is unknown", "pgd-SIZE"]),
        (["--methods", "mma-1.0"], ["method 'mma-1.0' is unknown", "sizes like 0.5 or 2"]),
        (["--bfloat16"], ["bfloat16 is for wrn-28-4, not for small-lenet"]),
        (["--num-samples", "1021"], ["num_samples=1021"]),
        (["--methods", "mma-0"], ["method 'mma-0' is unknown"]),
        (["--methods", "std-2"], ["method 'std-2' is unknown"]),
        (["--methods", "std", "pgd-ens"], ["pgd-ens without a member"]),
        (["--steps", "7"], ["steps=7", "at least 10"]),
        (["--points", "1000"], ["points=1000 is more than the 360 test images"]),
        (["--attack-points", "361"], ["attack_points=361 is more than the 360 test images"]),
        (["--seeds", "-1"], ["seeds=-1"]),
        (["--learning-rate", "0"], ["learning_rate=0.0 must be finite and greater than 0"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, parts, tmp_path, capsys):
    assert mma.main([*arguments, "--workdir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not (tmp_path / "out").exists()


def test_the_presets_are_the_papers():
    mnist, cifar = mma_presets.cell("mnist", "l2", "mma-2"), mma_presets.cell("cifar10", "linf", "pgd-0.031373")
    assert (mnist.steps, mnist.batch_size, mnist.optimizer, mnist.learning_rates) == (100_000, 50, "adam", ((0, 1e-4),))
    assert (mnist.attack_steps, mnist.min_epsilon, mnist.validation) == (40, 0.5, 5000)
    assert (cifar.steps, cifar.batch_size, cifar.attack_steps, cifar.min_epsilon) == (50_000, 128, 10, 0.005)
    assert cifar.augment and cifar.epsilons[1] == pytest.approx(8 / 255)
    optimizer, params = cifar.build_optimizer(), {"w": jnp.ones(1)}
    updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.3 * (1 + 2e-4), rtol=1e-6)  # with weight decay
    trades = [mma_presets.cell(dataset, "linf", "trades-0.3") for dataset in ("mnist", "cifar10")]
    assert [cell.trades_beta for cell in trades] == [1.0, 6.0] and trades[0].trades_step_size == 0.01
    linf = mma_presets.published("mnist", "linf", "mma-0.45")
    assert linf["robust_accuracy_published"] == (0.979, 0.96, 0.926, 0.852)
    assert mma_presets.published("mnist", "l2", "mma-6") == {"average_nearest": 2.76}
    assert mma_presets.methods("mnist", "l2") == (
        *("std", "lcr", "amr", "pgd-1", "pgd-2", "pgd-3", "pgd-ens", "trades-2", "mma-2", "mma-4", "mma-6"),
    )


def test_a_shorter_training_falls_as_much_earlier():
    assert mma_presets.cell("cifar10", "l2", "std", steps=5000).learning_rates == (
        (0, 0.3), (2000, 0.09), (3000, 0.03), (4000, 0.009),
    )  # fmt: skip


def test_another_rate_falls_at_the_same_steps_by_the_same_factors():
    rates = mma_presets.cell("cifar10", "l2", "std", learning_rate=0.1).learning_rates
    assert [step for step, _ in rates] == [0, 20_000, 30_000, 40_000]
    np.testing.assert_allclose([rate for _, rate in rates], [0.1, 0.03, 0.01, 0.003])


def test_rates_of_ones_own_stay_as_they_are():
    rates = ((0, 0.1), (2000, 0.05))
    assert mma_presets.cell("cifar10", "l2", "std", steps=5000, learning_rates=rates).learning_rates == rates


def test_the_rates_of_cifar_fall_at_the_papers_steps():
    optimizer = dataclasses.replace(
        mma_presets.cell("cifar10", "l2", "std"), learning_rates=((0, 0.3), (2, 0.09))
    ).build_optimizer()
    params = {"w": jnp.zeros(1)}
    state, lengths = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update({"w": jnp.zeros(1).at[0].set(1.0)}, state, params)
        lengths.append(-float(updates["w"][0]))
    np.testing.assert_allclose(lengths, [0.3 * 1.0, 0.3 * 1.9, 0.09 * 2.71, 0.09 * 3.439], rtol=1e-5)  # momentum 0.9


@pytest.mark.parametrize("method", ["std", "lcr", "amr", "pgd-1", "trades-1", "mma-1"])
def test_each_method_has_its_objective(method):
    objective = mma_presets.cell("digits", "linf", method).build_objective()
    assert isinstance(objective, objectives.Objective)
    assert (objective.inner_maximization is None) == (method in ("std", "lcr", "amr"))


def test_the_least_radius_does_not_exceed_a_small_d_max():
    assert mma_presets.cell("mnist", "l2", "mma-0.3").build_objective()


def test_methods_sort_by_kind_and_size():
    names = ["mma-2", "pgd-ens", "pgd-10", "pgd-2", "std", "trades-1", "amr"]
    cards = sorted(({"method": name, "seed": 0} for name in names), key=robust_tables.place)
    assert [card["method"] for card in cards] == ["std", "amr", "pgd-2", "pgd-10", "pgd-ens", "trades-1", "mma-2"]


def study_of(distances):
    """Cards and arrays of {(method, seed): distances at the end}."""
    cards = [{"method": method, "seed": seed} for method, seed in distances]
    return cards, [{"nearest": np.array([[9.0] * len(last), last])} for last in distances.values()]


def test_the_largest_mma_is_held_against_every_other_training_image_by_image():
    before = {("std", 0): [1.0, 2.0, 3.0, 4.0], ("mma-1", 0): [1.0, 2.0, 3.0, 4.0], ("mma-2", 0): [2.0, 2.0, 5.0, 3.0]}
    rows = robust_tables.gains(*study_of(before))
    expected = {"gain of mma-2": "+0.500", "standard error": "0.645", "farther %": "50.0", "images": "4"}  # 1, 0, 2, -1
    assert rows == [{"against": "std"} | expected, {"against": "mma-1"} | expected]


def test_gains_are_means_over_the_seeds_that_both_have_and_images_that_all_found():
    rows = robust_tables.gains(
        *study_of({
            ("pgd-1", 0): [1.0, 1.0, np.inf], ("pgd-1", 1): [1.0, 2.0, 1.0], ("pgd-2", 7): [1.0, 1.0, 1.0],
            ("std", 0): [1.0, np.inf, np.inf], ("std", 1): [1.0, 1.0, 1.0],
            ("mma-3", 0): [2.0, 4.0, np.inf], ("mma-3", 1): [2.0, 2.0, 1.0], ("mma-3", 2): [9.0, 9.0, 9.0],
        })
    )  # fmt: skip
    expected = {"against": "pgd-1", "gain of mma-3": "+1.250", "standard error": "0.250", "farther %": "100.0"}
    assert rows == [expected | {"images": "2", "seeds": "2", "deviation over seeds": "1.061"}]  # of 2 and 0.5


def test_without_mma_there_is_nothing_to_gain():
    assert robust_tables.gains(*study_of({("std", 0): [1.0, 2.0], ("pgd-1", 0): [1.0, 2.0]})) == []


@pytest.mark.slow
def test_seeds_share_a_row(straight):
    card = files.read_json(straight / "cards" / "digits-l2-mma-1-seed0.json")
    other = card | {"seed": 1, "clean_accuracy": card["clean_accuracy"] - 0.02, "average_nearest": None}
    other |= {"nearest_quartiles": [0.0, 1.0, None], "not_found": 40}
    (alone,), (row,) = robust_tables.table([card]), robust_tables.table([card, other])
    assert row["clean %"] == f"{100 * card['clean_accuracy'] - 1:.2f} ± 1.41" and row["seeds"] == "2"
    assert row["nearest"] == alone["nearest"] and "seeds" not in alone and "±" not in alone["clean %"]
    assert row["not found"] == str(40 + card["not_found"]) and row["quartiles"].endswith("infinite")


def test_a_size_is_read_with_its_fraction():
    assert kind_of("mma-0.45") == ("mma", 0.45)
