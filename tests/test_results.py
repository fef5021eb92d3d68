"""Results: workdirs are taken over whole, stand beside the paper with what was cut, and are not mixed with others."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from jaxmargin.lab import cards, files
from jaxmargin.lab.cells import run_cell
from jaxmargin.lab.data.loading import Dataset, Split, load
from runs.case_study import __main__ as case_study
from runs.paper import comparison, presets
from runs.paper.cell import Cell
from runs.paper.stages import STUDY
from runs.results import __main__ as results
from runs.results.convert import convert

pytestmark = pytest.mark.hurried

CELL = Cell(
    dataset="digits", model="mlp", method="amr", preset="released", seed=0, epochs=2, learning_rate=0.02, batch_size=32,
    lam=0.1, beta=1e-3, tau=5.0, form="ramp", dropout=0.0, points=4, num_samples=64, radius=1.5,
    epsilons=(0.5, 1.0, 1.5, 2.0), attack_points=20, attack_steps=5, attack_step_size=0.2, worst_case_steps=5,
    nearest_steps=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished workdir of one cell, dressed as MNIST's."""
    whole, workdir = load("digits"), tmp_path_factory.mktemp("made") / "paper-mnist"
    train, test = (Split(split.images[:n], split.labels[:n]) for split, n in ((whole.train, 64), (whole.test, 20)))
    card = run_cell(STUDY, CELL, Dataset("digits", train, test, 10, whole.scale), workdir)
    paper = presets.published("mnist", "mlp", "amr") | {"clean_accuracy": card["clean_accuracy"]}
    path = workdir / "cards" / f"{CELL.name}.json"
    files.write_json(path, card | {"dataset": "mnist", "paper": paper, "n_test": 10_000})
    return workdir


@pytest.fixture
def workdir(made, tmp_path):
    return shutil.copytree(made, tmp_path / "paper-mnist")


def collect(capsys, folder, *workdirs):
    code = results.main([*map(str, workdirs), "--results", str(folder)])
    return code, capsys.readouterr().err


@pytest.mark.slow
def test_results_stand_beside_the_paper_and_say_what_was_cut(workdir, tmp_path, capsys):
    folder = tmp_path / "results"
    assert collect(capsys, folder, workdir) == (0, "")
    text = (folder / "README.md").read_text()
    for path in (workdir / "cards").iterdir():
        assert (folder / "paper-mnist" / "cards" / path.name).read_bytes() == path.read_bytes()
    table = text.split("what may explain a difference")[1].splitlines()
    clean, margin = (next(line for line in table if f"| {name} |" in line) for name in ("clean %", "average distance"))
    assert "| 1: yes |" in clean
    contents = next(line for line in text.splitlines() if line.startswith("| [paper-mnist](#paper-mnist) |"))
    assert "| 2 epochs |" in contents and f"| {sum(': yes' in line for line in table)} of " in contents
    assert "NO" in margin and "cut to 2 of 200 epochs, 4 of 500 points |" in margin  # more samples would lower it
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) >= 5
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert collect(capsys, folder) == (0, "")  # from what is there
    assert (folder / "README.md").read_text() == text


def test_a_complete_cell_that_is_far_from_the_paper_is_open():
    whole = presets.cell("mnist", "mlp", "std", preset="released")
    card = dataclasses.asdict(whole) | {
        "paper": presets.published("mnist", "mlp", "std"), "n_attack": 10_000, "n_test": 10_000,
        "clean_accuracy": 0.9, "epsilons": list(whole.epsilons), "robust_accuracy_published": [0.8, 0.45, 0.16, 0.05],
        "average_distance": 0.81,
    }  # fmt: skip
    why = {row["number"]: (row["within"], row["why"]) for row in comparison.deviations([card])}
    assert why["clean %"] == ("1: NO", "open") and why["published 0.5 %"] == ("4: NO", "open")
    assert why["published 1 %"] == ("4: NO", "open") and why["published 1.5 %"] == ("4: yes", "")
    assert why["average distance"] == ("0.08: yes", "")
    for average, cut in ((0.95, "cut to 1,024 of 51,200 samples a point"), (0.65, "open")):  # more of them lower it
        few = card | {"average_distance": average, "num_samples": 1024}
        assert comparison.deviations([few])[-1]["why"] == cut


def test_few_images_explain_no_more_than_their_sampling_error():
    whole = presets.cell("mnist", "cnn", "std", preset="released")
    card = dataclasses.asdict(whole) | {
        "paper": presets.published("mnist", "cnn", "std"), "n_attack": 200, "n_test": 10_000, "clean_accuracy": 0.99,
        "epsilons": list(whole.epsilons), "robust_accuracy_published": [0.96, 0.85, 0.3, 0.8], "average_distance": 1.01,
    }  # fmt: skip
    why = {row["number"]: row["why"] for row in comparison.deviations([card])}
    assert why["published 1 %"] == "cut to 200 of 10,000 images (standard error 2.1)"  # 5.5 away, 4 allowed
    assert why["published 1.5 %"] == "open"
    (row,) = [row for row in comparison.deviations([card | {"epochs": 12}]) if row["number"] == "published 1.5 %"]
    assert row["why"] == "cut to 12 of 200 epochs"


@pytest.mark.slow
def test_a_case_study_and_a_question_have_their_sections(workdir, tmp_path, capsys):
    study, question, folder = tmp_path / "case-study-digits", tmp_path / "question-beta", tmp_path / "results"
    arguments = ["--epochs", "20", "--normalised-epochs", "20", "--front-points", "3", "--workdir", str(study)]
    assert case_study.main(arguments) == 0
    shutil.copytree(workdir, question / "beta-0.001")
    files.write_bytes(question / "ranking.md", b"| variant |\n|---|\n| beta 0.001 |\n")
    files.write_json(question / "result.json", cards.origin("paper", {}) | {"dataset": "mnist"})
    capsys.readouterr()
    assert collect(capsys, folder, study, question) == (0, "")
    text = (folder / "README.md").read_text()
    assert "| [case-study-digits](#case-study-digits) | Figures 1 and 3 | digits |  | 3 |" in text
    assert text.index("## case-study-digits") < text.index("## question-beta") < text.index("| beta 0.001 |")
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    assert [name for name, _ in pictures] == ["figure1", "figure1c", "figure3", "pareto", "direction"]
    for _, picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert collect(capsys, folder, study, question) == (0, "")  # the same again
    result = files.read_json(study / "result.json")
    result["methods"]["plain"]["step"] *= 1 + 1e-15  # as another processor rounds
    files.write_json(study / "result.json", result)
    assert collect(capsys, folder, study) == (0, "")
    files.write_json(study / "result.json", files.read_json(study / "result.json") | {"classes": [3, 4]})
    code, said = collect(capsys, folder, study)
    assert code == 2 and "the case study has another classes" in said


@pytest.mark.slow
def test_other_settings_empty_folders_and_equal_names_are_refused(workdir, tmp_path, capsys):
    folder = tmp_path / "results"
    assert collect(capsys, folder, workdir)[0] == 0
    (card,) = (folder / "paper-mnist" / "cards").glob("*.json")
    files.write_json(card, json.loads(card.read_text()) | {"epochs": 7})
    code, said = collect(capsys, folder, workdir)
    assert code == 2 and "mlp-amr has another epochs" in said and "rename" in said
    code, said = collect(capsys, folder, tmp_path)
    assert code == 2 and "holds no finished result" in said
    code, said = collect(capsys, folder, workdir, tmp_path / "elsewhere" / "paper-mnist")
    assert code == 2 and "same name" in said
    code, said = collect(capsys, folder, folder / "paper-mnist/")
    assert code == 2 and "in the results already" in said
    code, said = collect(capsys, tmp_path / "nothing")
    assert code == 2 and "holds no results" in said


@pytest.mark.slow
def test_only_finished_cells_come_along_and_several_seeds_share_a_row(workdir, tmp_path, capsys):
    (card,) = (workdir / "cards").glob("*.json")
    other = card.name.replace("seed0", "seed1")
    files.write_json(card.with_name(other), files.read_json(card) | {"seed": 1, "clean_accuracy": 0.5})
    for path in (card.with_suffix(".npz"), workdir / "cells" / card.stem / "metrics.jsonl"):
        place = Path(str(path).replace("seed0", "seed1"))
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    files.write_bytes(workdir / "cells" / "digits-cnn-std-seed0" / "metrics.jsonl", b"{}\n")  # not finished
    folder = tmp_path / "results"
    assert collect(capsys, folder, workdir)[0] == 0
    assert not (folder / "paper-mnist" / "cells" / "digits-cnn-std-seed0").exists()
    text = (folder / "README.md").read_text()
    assert "±" in text and "| mlp | amr | 1 |" in text


def test_a_question_whose_variants_all_diverged_has_its_ranking(tmp_path, capsys):
    question = tmp_path / "question-beta"
    files.write_bytes(question / "ranking.md", b"| beta 0.001: diverged |\n")
    files.write_json(question / "result.json", cards.origin("paper", {}) | {"dataset": "mnist"})
    assert collect(capsys, tmp_path / "results", question) == (0, "")
    text = (tmp_path / "results" / "README.md").read_text()
    assert "a setting that the paper leaves open | mnist |" in text and "beta 0.001: diverged" in text


def test_results_of_a_study_that_is_not_there_are_refused_by_name(tmp_path, capsys):
    files.write_json(tmp_path / "other" / "result.json", cards.origin("os", {}))
    code, said = collect(capsys, tmp_path / "results", tmp_path / "other")
    assert code == 2 and "is of the study 'os': there is case_study, mma, paper" in said


def test_converting_changes_names_only_and_only_once(made, tmp_path):
    """The names of schema 1, put back by hand into a finished workdir."""
    old = shutil.copytree(made, tmp_path / "old")
    (path,) = (old / "cards").glob("*.json")
    card, points = files.read_json(path), files.read_arrays(path.with_suffix(".npz"))
    former = {name: value for name, value in card.items() if name not in ("study", "schema", "commit", "stages")}
    for now, then in (
        ("robust_accuracy_published", "robust_accuracy"), ("robust_accuracy_worst", "worst_case_accuracy"),
        ("average_margin", "average_margin_signed"), ("average_distance", "average_margin"),
        ("train_average_margin", "train_average_margin_signed"), ("train_average_distance", "train_average_margin"),
    ):  # fmt: skip
        former[then] = former.pop(now)
    paper = former["paper"]
    former["paper"] = paper | {"average_margin": paper["average_distance"], "robust_accuracy": [0.5]}
    del former["paper"]["average_distance"], former["paper"]["robust_accuracy_published"]
    files.write_json(path, former | {"seconds": {"attack": 1.5, "train": 2.0}})
    renamed = {"certified": "test_certified", "attacked": "test_attacked"}
    files.write_arrays(path.with_suffix(".npz"), {renamed.get(name, name): array for name, array in points.items()})
    (cell,) = (old / "cells").iterdir()
    text = (cell / "metrics.jsonl").read_text()
    (cell / "metrics.jsonl").write_text(text.replace("average_distance", "average_margin_unsigned"))
    for name in ("stages.json", "published.npz", "worst_case.npz", "logits.npz", "margins.npz", "bounds.npz"):
        (cell / name).unlink()
    shutil.move(cell / "measures", cell / "before")
    for file in (cell / "before").iterdir():
        shutil.move(file, cell / file.name.replace("published", "attack").replace("worst_case", "worst"))
    files.write_json(cell / "seconds.json", {"attack": 1.5})
    files.write_json(old / "settings.json", {"epochs": 2})
    question = shutil.copytree(old, tmp_path / "question" / "beta-0.001").parent
    files.write_bytes(question / "ranking.md", b"| variant | average margin |\n")

    assert (convert(old), convert(old)) == (1, 0)
    now = files.read_json(path)
    where = {"device": None, "versions": None}
    assert now.pop("stages") == {"published": {"seconds": 1.5} | where, "train": {"seconds": 2.0} | where}
    assert now["commit"] is None and now["paper"].pop("robust_accuracy_published") == [0.5]
    expected = {name: value for name, value in card.items() if name != "stages"} | {"commit": None}
    expected["paper"] = {name: value for name, value in paper.items() if name != "robust_accuracy_published"}
    assert now == expected
    assert (cell / "metrics.jsonl").read_text() == text
    for name, array in files.read_arrays(path.with_suffix(".npz")).items():
        assert array.tobytes() == points[name].tobytes()
    assert (convert(question), convert(question)) == (1, 0)
    assert (question / "ranking.md").read_text() == "| variant | average distance |\n"
    result = files.read_json(question / "result.json")
    assert (result["study"], result["dataset"], result["commit"]) == ("paper", "mnist", None)
    kept = {file.name for file in (made / "cells" / cell.name / "measures").iterdir()}
    assert kept == {file.name for file in (cell / "measures").iterdir()}
    assert files.read_json(old / "settings.json") == {"schema": 2, "epochs": 2}


def test_several_versions_are_all_named():
    assert cards.said([{"jax": version} for version in ("0.10.2", "0.11.0")]) == "jax 0.10.2 and 0.11.0"
