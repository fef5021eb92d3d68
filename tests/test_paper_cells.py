"""A cell from start to card, cut at awkward moments: the same bytes come out, and a finished cell is not run twice."""

import contextlib
import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import flip

from jaxmargin.lab import cells, tables, workspace
from jaxmargin.lab import files as tracking
from jaxmargin.lab.cards import SCHEMA
from jaxmargin.lab.data.loading import Dataset, Split, load
from jaxmargin.lab.training import DivergedError
from jaxmargin.lab.workspace import Workspace
from runs.paper import publish as publishing
from runs.paper import tables as paper_tables
from runs.paper.cell import Cell, schedule
from runs.paper.stages import STUDY, PaperCard

pytestmark = pytest.mark.hurried

CELL = Cell(
    dataset="digits", model="mlp", method="amr", preset="text", seed=3, epochs=11, learning_rate=0.02, batch_size=32,
    lam=0.1, beta=1e-3, tau=5.0, form="ramp", dropout=0.0, points=6, num_samples=64, radius=1.5, epsilons=(0.25, 1.0),
    attack_points=40, attack_steps=5, attack_step_size=0.2, worst_case_steps=5, nearest_steps=20,
)  # fmt: skip
STAGES = {"train", "evaluate", "margins", "published", "worst_case", "logits", "bounds"}


def run_cell(cell, data, workdir):
    return cells.run_cell(STUDY, cell, data, workdir)


@pytest.fixture(scope="module")
def data():
    whole = load("digits")
    train, test = (Split(split.images[:n], split.labels[:n]) for split, n in ((whole.train, 200), (whole.test, 50)))
    return Dataset("digits", train, test, 10, whole.scale)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return run_cell(CELL, data, workdir), workdir


def files(workdir):
    """Everything that must not depend on where a run was cut; seconds are measured, not computed."""
    folder = workdir / "cells" / CELL.name
    card = tracking.read_json(workdir / "cards" / f"{CELL.name}.json")
    assert set(card.pop("stages")) == STAGES
    kept = [folder / "params.npz", folder / "metrics.jsonl", workdir / "cards" / f"{CELL.name}.npz"]
    return [path.read_bytes() for path in kept] + [json.dumps(card)]


def test_the_card_has_every_key_and_agrees_with_its_points(straight):
    card, workdir = straight
    settings = {field.name for field in dataclasses.fields(Cell)}
    assert set(card) == settings | set(PaperCard.__annotations__) and card["n_attack"] == 40
    assert (card["study"], card["schema"]) == ("paper", SCHEMA)
    for stage in card["stages"].values():
        assert stage["seconds"] >= 0 and stage["device"] == card["device"] and stage["versions"] == card["versions"]
    with np.load(workdir / "cards" / f"{CELL.name}.npz") as arrays:
        margin = arrays["test_margin"][-1]
        assert arrays["attack_index"][:8].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]  # 40 of 50
        assert arrays["epochs"].tolist() == [1, 10, 11] == schedule(11)
        assert arrays["train_margin"].shape == (3, 6)
        certified, attacked = arrays["certified"], arrays["attacked"]
        for name in ("published", "worst"):
            robust = 1 - arrays[f"found_{name}"].mean(0)
            np.testing.assert_allclose(card[f"robust_accuracy_{name}"], robust, rtol=1e-6)
    np.testing.assert_allclose(card["average_distance"], np.abs(margin).mean(), rtol=1e-6)
    np.testing.assert_allclose(card["average_margin"], margin.mean(), rtol=1e-6)
    np.testing.assert_allclose(card["minimum_margin"], margin.min(), rtol=1e-6)
    published = card["robust_accuracy_published"]
    assert 0 <= published[1] <= published[0] <= 1
    assert (np.asarray(card["robust_accuracy_worst"]) <= published).all()
    assert (certified > 0).all() and (certified <= attacked).all() and np.isfinite(attacked).all()
    np.testing.assert_allclose(card["contradicted_fraction"], np.mean(np.abs(margin) > attacked * 1.0001))
    assert [flag["name"] for flag in card["flags"]] == [
        "saturated loss", "zero gradients", "plateau over epsilon", "accuracy rises with epsilon",
        "one loss far weaker", "layer cake",
    ]  # fmt: skip
    assert card["logit_margin_quartiles"] == sorted(card["logit_margin_quartiles"])


def test_metrics_have_a_line_an_epoch_and_margins_when_due(straight):
    lines = tracking.read_records(straight[1] / "cells" / CELL.name / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, 12))
    assert [line["epoch"] for line in lines if "test_minimum_margin" in line] == [1, 10, 11]


def test_a_name_means_the_same_in_metrics_card_and_csv(straight):
    card, workdir = straight
    *_, last = lines = tracking.read_records(workdir / "cells" / CELL.name / "metrics.jsonl")
    for name in ("average_margin", "average_distance", "minimum_margin"):
        assert (card[name], card[f"train_{name}"]) == (last[f"test_{name}"], last[f"train_{name}"])
    (row,) = tables.numbers([card])
    assert all(row[name] == card[name] for name in ("average_margin", "average_distance", "clean_accuracy"))
    assert row["robust_accuracy_worst_1"] == card["robust_accuracy_worst"][-1]
    for line in (lines[0], lines[9], last):
        assert -line["train_average_distance"] <= line["train_average_margin"] <= line["train_average_distance"]
        signs = line["train_average_margin"] < line["train_average_distance"]
        assert signs == (line["train_margin_accuracy"] < 1)


@pytest.mark.slow
def test_linear_margins_are_exact_and_followed_every_epoch(data, tmp_path):
    cell = dataclasses.replace(CELL, model="linear", epochs=3)
    card = run_cell(cell, data, tmp_path)
    lines = tracking.read_records(tmp_path / "cells" / cell.name / "metrics.jsonl")
    assert all("train_minimum_margin" in line for line in lines) and card["num_samples"] == 0
    params = np.load(tmp_path / "cells" / cell.name / "params.npz")
    arrays = np.load(tmp_path / "cards" / f"{cell.name}.npz")
    index = arrays["test_index"]
    xs = data.test.images[index].reshape(len(index), -1).astype(np.float64) / data.scale
    w, b = params["Dense_0/kernel"].astype(np.float64), params["Dense_0/bias"].astype(np.float64)
    for x, y, margin in zip(xs, data.test.labels[index], arrays["test_margin"][-1], strict=True):
        logits = x @ w + b
        p = logits.argmax()
        distance = min((logits[p] - logits[k]) / np.linalg.norm(w[:, p] - w[:, k]) for k in range(10) if k != p)
        np.testing.assert_allclose(margin, distance if p == y else -distance, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["train margins at epoch 10", "test margins at epoch 11", "published attack", "certified"]
)
def test_a_cut_run_ends_with_the_same_bytes(straight, data, tmp_path, monkeypatch, moment):
    original = workspace.measure

    def cut(*arguments, label, **options):
        if label.endswith(moment):
            raise KeyboardInterrupt
        return original(*arguments, label=label, **options)

    monkeypatch.setattr(workspace, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        run_cell(CELL, data, tmp_path)
    monkeypatch.undo()
    run_cell(CELL, data, tmp_path)
    assert files(tmp_path) == files(straight[1])


def test_a_finished_cell_is_only_read(straight, data, monkeypatch):
    monkeypatch.setattr(Cell, "check", None)
    monkeypatch.setattr(Workspace, "run", None)
    assert run_cell(CELL, data, straight[1]) == tracking.read_json(straight[1] / "cards" / f"{CELL.name}.json")


DAMAGED = [
    f"cards/{CELL.name}.json", f"cards/{CELL.name}.npz", f"cells/{CELL.name}/metrics.jsonl",
    f"cells/{CELL.name}/params.npz", f"cells/{CELL.name}/published.npz",
]  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_finished_cell_that_is_damaged_is_finished_again_to_the_same_bytes(straight, data, tmp_path, name, harm):
    workdir = shutil.copytree(straight[1], tmp_path / "copy")
    harm(workdir / name)
    if name.endswith("published.npz"):  # which nothing needs any more
        run_cell(CELL, data, workdir)
        (workdir / DAMAGED[0]).unlink()
    with warned() as said:
        run_cell(CELL, data, workdir)
    assert any(f"{Path(name).name} is damaged" in one for one in said) or (workdir / name).suffix == ".json"
    assert files(workdir) == files(straight[1])


@contextlib.contextmanager
def warned():
    """The warnings of a block, in words; this suite makes errors of them."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught]


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_margins_of_an_earlier_epoch_are_measured_again_where_the_network_was_as_it_was_then(
    straight, data, tmp_path, harm
):
    workdir = shutil.copytree(straight[1], tmp_path / "copy")
    folder = workdir / "cells" / CELL.name
    harm(folder / "measures" / "margins-train-0001.npz")
    for name in ("margins.npz", "bounds.npz"):
        (folder / name).unlink()
    (workdir / DAMAGED[0]).unlink()
    with warned() as said:
        run_cell(CELL, data, workdir)
    assert any("margins-train-0001.npz is damaged" in one and "is trained again from before it" in one for one in said)
    assert files(workdir) == files(straight[1])


def test_a_cell_knows_its_settings_whatever_those_of_the_workdir_say(straight, data, tmp_path):
    workdir = shutil.copytree(straight[1], tmp_path / "copy")
    with pytest.raises(ValueError, match=r"other settings: tau=1.0 \(there: 5.0\)"):
        run_cell(dataclasses.replace(CELL, tau=1.0), data, workdir)


def test_a_diverging_loss_names_the_step_and_the_last_good_checkpoint(data, tmp_path):
    cell = dataclasses.replace(CELL, method="lcr", learning_rate=1e6, epochs=3)
    with pytest.raises(DivergedError, match=r"not finite at step \d+ \(epoch \d\); .*checkpoint"):
        run_cell(cell, data, tmp_path)
    assert not list(tmp_path.glob("cards/*"))


def test_more_points_than_images_is_refused_with_a_remedy(data, tmp_path):
    with pytest.raises(ValueError, match="points=51 is more than the 50 test images"):
        run_cell(dataclasses.replace(CELL, points=51), data, tmp_path)


def test_unknown_names_are_refused():
    for change, match in (({"model": "vit"}, "model='vit'"), ({"method": "mixup"}, "method='mixup'")):
        cell = dataclasses.replace(CELL, **change)
        with pytest.raises(ValueError, match=match):
            cell.build_model((8, 8, 1), 10) if "model" in change else cell.build_objective()


def test_dropout_reaches_the_cnn_alone():
    for model, count in (("mlp", 0), ("cnn", 2)):
        network = dataclasses.replace(CELL, model=model, dropout=0.5).build_model((8, 8, 1), 10)
        kinds = [layer.kind for layer in network.layers(network.init(jax.random.key(0)))]
        assert kinds.count("dropout") == count


def test_publishing_writes_tables_figures_and_one_page(straight):
    workdir = straight[1]
    published = publishing.publish(workdir)
    assert published.table.splitlines()[2].startswith("| mlp | amr |")
    text = published.report.read_text()
    assert text.count("<figure") == 7 and "http" not in text.replace("http-equiv", "")
    columns = (workdir / "table.csv").read_text().splitlines()[0]
    assert columns.startswith("study,schema,commit,device,dataset,model,method")
    assert len(tracking.read_records(workdir / "metrics.jsonl")) == 11
    assert (workdir / "figures" / "histograms-mlp-test.png").read_bytes().startswith(b"\x89PNG")


def test_published_numbers_stand_beside_ours_at_the_same_budgets_only(straight):
    paper = {"clean_accuracy": 0.9824, "epsilons": [0.25, 1.0], "average_distance": 0.8}
    paper["robust_accuracy_published"] = [0.5, 0.1]
    row = paper_tables.table([straight[0] | {"paper": paper}])[0]
    assert row["clean %"].endswith("(98.24)") and row["published 1 %"].endswith("(10.00)")
    row = paper_tables.table([straight[0] | {"paper": paper | {"epsilons": [0.5, 1.0]}}])[0]
    assert "(" not in row["published 1 %"] and row["average distance"].endswith("(0.80)")


def test_a_point_whose_attack_found_nothing_makes_the_average_infinite(straight):
    (row,) = tables.brackets([straight[0] | {"average_attacked": None}])  # as JSON keeps infinity
    assert row["average attacked"] == "infinite" and tables.brackets([straight[0]])[0]["average attacked"] != "infinite"


def test_seeds_share_a_row_of_means_and_deviations_and_have_rows_of_their_own_elsewhere(straight):
    one = straight[0]
    other = one | {"seed": 4, "clean_accuracy": one["clean_accuracy"] - 0.02}
    (row,) = paper_tables.table([one, other])
    assert row["seeds"] == "2" and row["clean %"] == f"{100 * one['clean_accuracy'] - 1:.2f} ± {2 / np.sqrt(2):.2f}"
    assert [row["seed"] for row in tables.brackets([one, other])] == ["3", "4"]
    assert "seed" not in tables.brackets([one])[0] and "seeds" not in paper_tables.table([one])[0]


def test_the_trade_off_needs_a_falling_average_and_a_rising_minimum():
    card = {"model": "mlp", "method": "std", "seed": 0, "n_margin": 60}

    def lines(minimum, average, right):
        return [
            {"epoch": i + 1, "train_minimum_margin": m, "train_average_margin": a, "train_margin_accuracy": right}
            for i, (m, a) in enumerate(zip(minimum, average, strict=True))
        ]

    def row(minimum, average, right=0.9):
        other = {"test_minimum_margin": 0.0, "test_average_margin": 0.0, "test_margin_accuracy": 0.1}
        return paper_tables.trade_off([card], [[line | other for line in lines(minimum, average, right)]])[0]

    def held(minimum, average):
        return row(minimum, average)["trade-off"]

    assert held([-1, 0.1, 0.2], [0.1, 0.5, 0.4]) == "yes"
    assert held([-1, 0.1, 0.0], [0.1, 0.5, 0.4]) == "no"
    assert held([-1, 0.1, 0.2], [0.1, 0.4, 0.5]) == "no"
    assert held([-1, 0.1, 0.2], [0.1, 0.5, 0.4951]) == held([-1, 0.1, 0.1049], [0.1, 0.5, 0.4]) == "no"
    noise = 0.1 * np.random.default_rng(0).uniform(-1, 1, (2, 1000))
    assert held(noise[0], 1 + noise[1]) == "no"  # neither moves
    assert held(np.linspace(-1, 0, 1000) + noise[0], np.linspace(2, 1, 1000) + noise[1]) == "yes"


def test_margins_begin_where_most_points_are_right():
    records = [
        {"epoch": epoch, "test_minimum_margin": low, "test_average_margin": mean, "test_margin_accuracy": right}
        for epoch, low, mean, right in ((1, -5.0, -3.0, 0.1), (2, -1.0, 0.5, 0.6), (3, -2.0, 0.1, 0.4))
    ]
    assert paper_tables.curve([*records, {"epoch": 4}], "test") == ([2, 3], [-1.0, -2.0], [0.5, 0.1])
    assert paper_tables.curve(records[:1], "test") == ([1], [-5.0], [-3.0])
