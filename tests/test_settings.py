"""Settings of a workdir: damaged ones are said, a finished workdir that cannot be written can be read, drafts go."""

import os

import pytest
import third_study

from jaxmargin.lab import cards, files, manifests, settings

pytestmark = pytest.mark.hurried


def test_settings_that_differ_are_named(tmp_path):
    settings.hold(tmp_path, {"tau": 5.0})
    settings.hold(tmp_path, {"tau": 5.0, "beta": 1e-3})  # more may come
    with pytest.raises(ValueError, match=r"other settings: tau=1.0 \(there: 5.0\); repeat its options"):
        settings.hold(tmp_path, {"tau": 1.0, "beta": 1e-3})


def test_damaged_settings_are_said_with_the_remedy(tmp_path):
    settings.hold(tmp_path, {"tau": 5.0})
    path = tmp_path / settings.SETTINGS
    path.write_text(path.read_text().replace("5", "1"))
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*: remove it"):
        settings.hold(tmp_path, {"tau": 1.0})
    manifests.forget(path)
    settings.hold(tmp_path, {"tau": 1.0})


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "cells").mkdir()
    for name in (".card.json.4711.tmp", ".hidden.tmp", "notes.4711.tmp"):
        (tmp_path / "cells" / name).touch()
    with settings.claimed(tmp_path, {}):
        assert {path.name for path in (tmp_path / "cells").iterdir()} == {".hidden.tmp", "notes.4711.tmp"}


@pytest.fixture
def read_only(monkeypatch):
    """A file system of which nothing can be changed, for a user whom nothing is forbidden too."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system", "somewhere")

    def forbid():
        monkeypatch.setattr(manifests.os, "replace", refuse)
        monkeypatch.setattr(manifests.Path, "write_bytes", refuse)
        monkeypatch.setattr(settings.FileLock, "acquire", refuse)

    return forbid


def test_a_finished_workdir_that_cannot_be_written_can_be_read(tmp_path, read_only, capsys):
    command = ["--workdir", str(tmp_path / "out")]
    assert third_study.main(command) == 0
    said = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    read_only()
    assert third_study.main(command) == 0
    assert capsys.readouterr().out == said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert third_study.main([*command, "--seeds", "0", "1"]) == 2  # one is not finished
    assert "Read-only file system" in capsys.readouterr().err
    assert third_study.main([*command, "--strength", "3"]) == 2
    assert "strength=3.0 (there: 6.0)" in capsys.readouterr().err


def test_a_workdir_without_its_settings_does_not_mix_two_runs(tmp_path, capsys):
    command = ["--workdir", str(tmp_path)]
    assert third_study.main(command) == 0
    os.unlink(tmp_path / settings.SETTINGS)
    manifests.forget(tmp_path / settings.SETTINGS)
    assert third_study.main([*command, "--strength", "3"]) == 2
    assert "strength=3.0 (there: 6.0)" in capsys.readouterr().err
    assert files.read_json(cards.path_of(tmp_path, "digits-linear-std-seed0"))["strength"] == 6.0
