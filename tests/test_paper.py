"""The main job from the command line: bad input, interruption by kill -9, what it compiles, the published settings."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from unittest.mock import create_autospec

import pytest

from jaxmargin.lab import command_line, files, settings
from jaxmargin.lab.publishing import Published
from jaxmargin.lab.training import DivergedError
from runs.paper import __main__ as paper
from runs.paper import presets
from runs.paper import publish as publishing

pytestmark = pytest.mark.hurried

ROOT = Path(__file__).parents[1]
QUICK = ["--models", "mlp", "--methods", "std", "--epochs", "40", "--num-samples", "64", "--points", "4"]
QUICK += ["--attack-steps", "3", "--attack-points", "40", "--worst-case-steps", "3", "--epsilons", "0.5"]
NAME = "digits-mlp-std-seed0"


def start(workdir, cache):
    """The job in a process of its own, which keeps what it compiles in a cache."""
    command = [sys.executable, "-m", "runs.paper", *QUICK, "--workdir", str(workdir)]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **piped)


def compiled(cache):
    return {path.name for path in (cache / "jaxmargin").glob("*-cache")}


class Straight(NamedTuple):
    """A job that nothing interrupted: what it wrote, said and compiled."""

    workdir: Path
    output: str
    cache: Path
    compiled: set[str]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    process = start(folder / "out", folder / "cache")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return Straight(folder / "out", output, folder / "cache", compiled(folder / "cache"))


def results(workdir):
    card = files.read_json(workdir / "cards" / f"{NAME}.json")
    card.pop("stages")
    kept = [f"cells/{NAME}/params.npz", f"cells/{NAME}/metrics.jsonl", f"cards/{NAME}.npz", "metrics.jsonl", "table.md"]
    return [(workdir / path).read_bytes() for path in kept] + [json.dumps(card)]


@pytest.mark.slow
def test_killed_in_the_middle_of_training_it_continues_to_the_same_bytes_and_compiles_nothing_again(straight, tmp_path):
    assert "report: " in straight.output and "| mlp | std |" in straight.output
    killed = start(tmp_path, straight.cache)
    metrics = tmp_path / "cells" / NAME / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while len(files.read_records(metrics)) < 12 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 12 <= len(files.read_records(metrics)) < 40  # it was in the middle
    resumed = start(tmp_path, straight.cache)
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and "error" not in errors.lower(), errors[-3000:]
    assert results(tmp_path) == results(straight.workdir)
    assert len(straight.compiled) > 10
    assert compiled(straight.cache) - straight.compiled == set()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--dataset", "imagenet"], ["dataset='imagenet'", "digits, mnist, cifar10"]),
        (["--models", "mlp", "vit"], ["models='vit'", "linear, mlp, cnn"]),
        (["--methods", "mixup"], ["methods='mixup'", "std, lcr, amr"]),
        (["--preset", "original"], ["preset='original'", "text, released"]),
        (["--epochs", "0"], ["epochs=0", "at least 1"]),
        (["--num-samples", "-5"], ["num_samples=-5", "at least 1"]),
        (["--points", "0"], ["points=0"]),
        (["--seeds", "0", "-1"], ["seeds=-1"]),
        (["--minutes", "0"], ["minutes=0.0", "greater than 0"]),
        (["--minutes", "-1"], ["minutes=-1.0", "greater than 0"]),
        (["--epsilons", "0.5", "0"], ["epsilons=0.0", "greater than 0"]),
        (["--epsilons", "nan"], ["epsilons=nan", "finite"]),
        (["--workdir", "/proc/nowhere"], ["workdir='/proc/nowhere'", "--workdir"]),
        (["--dataset", "mnist", "--data-dir", "/nowhere"], ["mnist", "data"]),
        (["--points", "361"], ["points=361", "360 test images"]),
        (["--num-samples", "1021"], ["num_samples=1021", "pass num_samples=1024"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXMARGIN_CACHE", str(tmp_path / "cache"))
    assert paper.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not list(tmp_path.glob(f"out/*/{settings.SETTINGS}"))  # nothing is claimed by a command that failed


@pytest.mark.parametrize("arguments", [["--epochs", "many"], ["--epoch", "3"]])
def test_words_that_cannot_be_read_are_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        paper.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and "--epochs" in error


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        paper.main(["--help"])
    said = capsys.readouterr().out
    assert not stop.value.code
    for option in (
        "dataset",
        "models",
        "methods",
        "epochs",
        "num-samples",
        "points",
        "epsilons",
        "seeds",
        "minutes",
        "preset",
    ):
        assert f"--{option}" in said


def test_a_changed_configuration_in_the_same_workdir_is_refused_with_the_difference(tmp_path, capsys):
    options = paper.Options(workdir=str(tmp_path), epochs=5)
    for more in ({}, {}, dict(models=("cnn",)), dict(seeds=(1, 2))):  # more cells may come
        more_options = dataclasses.replace(options, **more)
        with settings.claimed(tmp_path, paper.settings(more_options)):
            pass
    assert paper.main(["--workdir", str(tmp_path), "--epochs", "7"]) == 2
    error = capsys.readouterr().err
    assert "epochs=7 (there: 5)" in error and "another --workdir" in error


def test_a_workdir_is_one_run_s_at_a_time(tmp_path, capsys):
    arguments = ["--models", "linear", "--methods", "std", "--workdir", str(tmp_path)]
    with settings.claimed(tmp_path, {}):
        assert paper.main(arguments) == 2
    error = capsys.readouterr().err
    assert "is that of a run under way" in error and "another --workdir" in error
    assert not list(tmp_path.glob("c*"))  # neither cells nor cards
    with settings.claimed(tmp_path, {}):  # as soon as it has ended
        pass


def test_a_slice_ends_after_its_minutes_and_says_how_to_go_on(capsys):
    def endless():
        while True:
            time.sleep(0.01)

    assert command_line.exit_code(endless, minutes=0.003) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert command_line.exit_code(lambda: None, minutes=0.001) == 0
    time.sleep(0.1)  # the alarm of a job that has ended is off


def test_a_cell_that_diverges_does_not_keep_the_others_from_the_table(tmp_path, monkeypatch, capsys):
    def run(study, cell, images, workdir, published):
        if cell.method == "std":
            raise DivergedError(3, 1)
        files.write_json(workdir / "cards" / f"{cell.name}.json", {"method": cell.method})

    def publish(workdir):
        methods = [files.read_json(path)["method"] for path in (workdir / "cards").glob("*.json")]
        return Published(f"a table of {methods}", workdir / "report.html", {}, [])

    monkeypatch.setattr(paper, "run_cell", create_autospec(paper.run_cell, side_effect=run))
    monkeypatch.setattr(publishing, "publish", create_autospec(publishing.publish, side_effect=publish))
    assert paper.main(["--models", "mlp", "--workdir", str(tmp_path), "--methods", "std", "lcr"]) == 1
    said = capsys.readouterr()
    assert "the loss is not finite at step 3" in said.err and "a table of ['lcr']" in said.out
    assert paper.main(["--models", "mlp", "--workdir", str(tmp_path / "other"), "--methods", "std"]) == 1
    assert not capsys.readouterr().out  # nothing to publish


def test_the_released_preset_is_the_configuration_behind_the_published_numbers():
    def cell(dataset, model, method, preset="released"):
        return presets.cell(dataset, model, method, preset=preset)

    assert cell("mnist", "mlp", "std").learning_rate == 0.01 and cell("mnist", "linear", "std").epochs == 1000
    assert cell("cifar10", "cnn", "std").learning_rate == 0.005 and cell("cifar10", "cnn", "amr").dropout == 0.5
    assert cell("mnist", "cnn", "amr").learning_rate == 0.002 and cell("mnist", "cnn", "amr").tau == 40
    assert cell("mnist", "cnn", "amr", "text").tau == 10 and cell("mnist", "mlp", "lcr", "text").beta == 1e-3
    assert cell("mnist", "mlp", "lcr").beta == 2e-3 and cell("cifar10", "mlp", "amr").tau == 10
    for dataset in ("mnist", "cifar10"):
        assert cell(dataset, "mlp", "std").num_samples == 51_200 and cell(dataset, "mlp", "std").points == 500
        assert cell(dataset, "cnn", "std").epochs == 200 and cell(dataset, "cnn", "std").batch_size == 128


def test_published_numbers_are_the_papers_and_only_where_it_has_them():
    row = presets.published("mnist", "cnn", "amr")
    assert row["clean_accuracy"] == 0.9925 and row["average_distance"] == 1.40
    assert row["robust_accuracy_published"][3] == 0.9733
    assert presets.published("digits", "mlp", "std") is None and presets.published("mnist", "linear", "std") is None


@pytest.mark.slow
def test_mnist_runs_from_a_prepared_folder(tmp_path, capsys):
    prepared = ROOT.parent / "shared" / "data" / "tfds"
    if not (prepared / "mnist").exists():
        pytest.skip("no prepared MNIST beside the repository")
    arguments = ["--dataset", "mnist", "--data-dir", str(prepared), "--workdir", str(tmp_path), "--models", "linear"]
    arguments += ["--methods", "std", "--epochs", "1", "--points", "10", "--attack-points", "100"]
    arguments += ["--attack-steps", "2", "--worst-case-steps", "5", "--nearest-steps", "20"]
    assert paper.main(arguments) == 0
    card = files.read_json(tmp_path / "cards" / "mnist-linear-std-seed0.json")
    assert (card["n_train"], card["n_test"]) == (60_000, 10_000) and card["clean_accuracy"] > 0.85
    assert "| linear | std |" in capsys.readouterr().out
