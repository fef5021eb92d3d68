"""Open questions: every variant runs as asked, ranked by its distance from the paper, and not mixed with others."""

from unittest.mock import create_autospec

import numpy as np
import pytest

from jaxmargin.lab.cells import run_cell
from jaxmargin.lab.data.loading import Dataset, Split
from jaxmargin.lab.files import read_json
from jaxmargin.lab.training import DivergedError
from runs.paper import ablations, presets

PAPER = presets.published("mnist", "mlp", "amr")


def card(clean, robust):
    return {
        "clean_accuracy": clean, "robust_accuracy_published": robust, "epsilons": PAPER["epsilons"],
        "average_distance": 1.0, "robust_accuracy_worst": [0.5, 0.4, 0.3, 0.2], "paper": PAPER,
    }  # fmt: skip


@pytest.fixture
def cells(monkeypatch):
    """Cells are noted instead of trained; each gives the paper's row, less a point of clean accuracy per 0.001."""
    ran = []

    def noted(study, cell, images, workdir, paper):
        ran.append(cell)
        assert paper == PAPER
        return card(PAPER["clean_accuracy"] - 10 * cell.beta, PAPER["robust_accuracy_published"])

    monkeypatch.setattr(ablations, "run_cell", create_autospec(run_cell, side_effect=noted))
    split = Split(np.zeros((200, 28, 28, 1), np.uint8), np.zeros(200, np.int32))
    images = Dataset("mnist", split, split, 10, 255.0)
    monkeypatch.setattr(ablations.data, "load", lambda name, data_dir: images)
    return ran


def test_variants_run_as_asked_and_the_nearest_to_the_paper_comes_first(cells, tmp_path, capsys):
    arguments = ["--question", "beta", "--epochs", "3", "--attack-points", "100", "--workdir", str(tmp_path)]
    assert ablations.main(arguments) == 0
    assert [(cell.model, cell.method, cell.beta, cell.epochs) for cell in cells] == [
        ("mlp", "amr", 1e-3, 3),
        ("mlp", "amr", 2e-3, 3),
    ]
    table = capsys.readouterr().out
    assert (tmp_path / "ranking.md").read_text() in table
    first, second, paper, _, note = table.strip().splitlines()[2:]
    assert "3 epochs, one seed, margins of 100 points" in note and "100 images has a standard error of up to 5." in note
    assert "beta 0.001" in first and "| 20.00 |" in first and "0.20 |" in first  # one point of five numbers
    assert "beta 0.002" in second and "0.40 |" in second and "paper" in paper
    assert ablations.main(arguments) == 0 and len(cells) == 4


def test_a_variant_of_other_settings_is_refused(cells, tmp_path, capsys):
    folder = ["--question", "beta", "--attack-points", "100", "--workdir", str(tmp_path)]
    assert ablations.main([*folder, "--points", "201"]) == 2 and not cells and not list(tmp_path.iterdir())
    assert "points=201" in capsys.readouterr().err
    assert ablations.main(folder) == 0
    assert ablations.main([*folder, "--points", "7"]) == 2
    error = capsys.readouterr().err
    assert "points=7 (there: 100)" in error and "another --workdir" in error
    assert read_json(tmp_path / "settings.json")["beta-0.001"]["points"] == 100


def test_a_variant_that_diverges_is_ranked_last_and_stops_no_other(cells, tmp_path, capsys, monkeypatch):
    def diverging(study, cell, *arguments):
        if cell.beta == 1e-3:
            raise DivergedError(step=3, epoch=1)
        return card(PAPER["clean_accuracy"], PAPER["robust_accuracy_published"])

    monkeypatch.setattr(ablations, "run_cell", diverging)
    assert ablations.main(["--question", "beta", "--attack-points", "100", "--workdir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    first, second, *_ = said.out.splitlines()[2:]
    assert "beta 0.002" in first and "beta 0.001: diverged" in second and "step 3" in said.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--question", "colour"], "question='colour' is unknown: choose from form, beta, tau, dropout"),
        (["--question", "beta", "--epochs", "0"], "epochs=0"),
        (["--question", "beta", "--seed", "-1"], "seed=-1"),
        (["--question", "beta", "--minutes", "0"], "minutes=0.0"),
    ],
)
def test_bad_input_is_one_line(arguments, part, capsys):
    assert ablations.main(arguments) == 2
    assert part in capsys.readouterr().err


def test_every_variant_is_a_cell_of_its_own():
    for question in ablations.QUESTIONS.values():
        place = question.dataset, question.model, question.method
        variants = [presets.cell(*place, preset="released", **changes) for changes in question.variants.values()]
        assert len(set(variants)) == len(variants) and presets.published(*place)
        assert len(set(map(ablations.folder_of, question.variants))) == len(variants)
