"""One cell's folder: a stage is made once and timed over its pieces; cards say where each number comes from."""

import dataclasses
import subprocess

import numpy as np
import pytest

from jaxmargin.lab import cards, command_line, files, provenance, settings
from jaxmargin.lab.cells import Cell
from jaxmargin.lab.workspace import Workspace


def halves(setup, params):
    setup.append(params)
    return {"half": np.asarray(params / 2)}


def test_a_stage_is_made_once_and_only_read_from_then_on(tmp_path):
    made = []
    for _ in range(2):
        assert Workspace(tmp_path, "cell").run(halves, made, 3.0)["half"] == 1.5
    assert made == [3.0] and (tmp_path / "halves.npz").exists()
    assert Workspace(tmp_path, "cell").stages().keys() == {"halves"}


def test_a_stage_that_fails_is_timed_but_not_kept(tmp_path):
    work = Workspace(tmp_path, "cell")
    with pytest.raises(AttributeError):
        work.run(halves, None, 3.0)
    assert work.stages()["halves"]["seconds"] >= 0 and not (tmp_path / "halves.npz").exists()


def test_a_stage_cut_into_pieces_says_all_of_its_devices_and_versions(tmp_path, monkeypatch):
    for device, version, commit in (("one", "1", "a"), ("one", "1", "a"), ("two", "2", None), ("one", "1", "b")):
        monkeypatch.setattr(provenance, "device_name", lambda device=device: device)
        monkeypatch.setattr(provenance, "versions", lambda version=version: {"jax": version})
        monkeypatch.setattr(provenance, "commit", lambda commit=commit: commit)
        with Workspace(tmp_path, "cell").timed("train"):
            pass
    (stage,) = Workspace(tmp_path, "cell").stages().values()
    assert stage["device"] == "one, then two" and stage["versions"] == {"jax": "1, then 2"}
    assert stage["commit"] == "a, then b"
    card = {"device": "two", "versions": {"jax": "2"}, "stages": {"train": stage}}
    assert cards.said(cards.versions([card])) == "jax 1 and 2" and cards.devices([card]) == "one, two"


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    with Workspace(tmp_path, "cell").timed("train"):
        pass
    assert Workspace(tmp_path, "cell").moved() == []
    now = provenance.versions()
    monkeypatch.setattr(provenance, "device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(provenance, "versions", lambda: now | {"jax": "9.9"})
    device, jax = Workspace(tmp_path, "cell").moved()
    assert device.startswith("device cpu") and device.endswith("(now NVIDIA H100)")
    assert jax == f"jax {now['jax']} (now 9.9)"


def git(folder, *words):
    said = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder), *words]
    return subprocess.run(said, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_code_and_says_whether_files_differ_from_it(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    assert provenance.commit.__wrapped__(tmp_path) is None  # a checkout, but not of this code
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.commit.__wrapped__(tmp_path) == head
    (tmp_path / "code.py").write_text("2")
    assert provenance.commit.__wrapped__(tmp_path) == f"{head}+changes"


def test_without_a_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    assert provenance.commit.__wrapped__(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit.__wrapped__() is None


def test_cards_and_workdirs_of_older_names_are_refused_with_the_remedy(tmp_path):
    path = files.write_json(tmp_path / "card.json", {"robust_accuracy": [0.5]})
    with pytest.raises(ValueError, match="schema 1, not 2: python -m runs.results.convert"):
        cards.read(path)
    files.write_json(tmp_path / settings.SETTINGS, {"steps": 3})
    with (
        pytest.raises(ValueError, match="older version: python -m runs.results.convert"),
        settings.claimed(tmp_path, {}),
    ):
        pass


@dataclasses.dataclass(frozen=True)
class Options(command_line.RunOptions):
    points: int | None = None
    radius: float | None = None
    epsilons: tuple[float, ...] | None = None
    unrelated: int = -1


def test_options_set_the_settings_of_the_same_name():
    assert command_line.overrides(Options(), Cell) == {}
    asked = Options(points=3, radius=0.5, epsilons=(1.0,))
    assert command_line.overrides(asked, Cell) == {"points": 3, "radius": 0.5, "epsilons": (1.0,)}
    for wrong, said in ((Options(points=0), "points=0"), (Options(epsilons=()), "epsilons is empty")):
        with pytest.raises(ValueError, match=said):
            command_line.overrides(wrong, Cell)
