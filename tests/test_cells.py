"""The one way of all studies, shown on a third one that is not in runs: short, resumable, reported."""

from pathlib import Path

import numpy as np
import pytest
import third_study

from jaxmargin.lab import cards, files, provenance, workspace

pytestmark = pytest.mark.hurried


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("third")
    assert third_study.main(["--workdir", str(folder)]) == 0
    return folder


def test_a_third_study_is_short():
    assert len(Path(third_study.__file__).read_text().splitlines()) < 200


def test_its_cells_have_cards_points_and_a_report(workdir):
    for method in third_study.METHODS:
        path = cards.path_of(workdir, f"digits-linear-{method}-seed0")
        card, points = cards.read(path), files.read_arrays(path.with_suffix(".npz"))
        assert card["study"] == "third_study" and card["strength"] == 6.0
        assert card["stages"].keys() == {"train", "evaluate", "margins", "worst_case", "bounds"}
        np.testing.assert_allclose(card["average_margin"], points["margin"].mean(), rtol=1e-6)
        np.testing.assert_allclose(np.abs(points["margin"]), points["attacked"], rtol=1e-3)  # a linear network
    page = (workdir / "report.html").read_text()
    assert "Between bounds" in page and page.count("<table") == 3
    assert [line["epoch"] for line in files.read_records(workdir / "metrics.jsonl")] == [1, 2, 1, 2]


def test_it_goes_on_where_it_was_cut_and_refuses_other_settings(workdir, tmp_path, monkeypatch, capsys):
    original = workspace.measure

    def cut(*arguments, label, **options):
        if label.endswith("attacked"):
            raise KeyboardInterrupt
        return original(*arguments, label=label, **options)

    monkeypatch.setattr(workspace, "measure", cut)
    assert third_study.main(["--workdir", str(tmp_path)]) == 130
    monkeypatch.undo()
    now = provenance.versions()
    words = rf"digits-linear-std-seed0 was begun elsewhere: jax {now['jax']} \(now 9.9\); its card names both"
    with monkeypatch.context() as elsewhere, pytest.warns(UserWarning, match=words):
        elsewhere.setattr(provenance, "versions", lambda: now | {"jax": "9.9"})
        assert third_study.main(["--workdir", str(tmp_path)]) == 0
    stages = cards.read(cards.path_of(tmp_path, "digits-linear-std-seed0"))["stages"]
    assert stages["train"]["versions"]["jax"] == now["jax"]
    assert stages["bounds"]["versions"]["jax"] == f"{now['jax']}, then 9.9"
    for path in (workdir / "cards").glob("*.npz"):
        assert path.read_bytes() == (tmp_path / "cards" / path.name).read_bytes()
    assert third_study.main(["--workdir", str(tmp_path), "--strength", "3"]) == 2
    assert "strength=3.0 (there: 6.0)" in capsys.readouterr().err
    assert third_study.main(["--workdir", str(tmp_path / "other"), "--points", "0"]) == 2
