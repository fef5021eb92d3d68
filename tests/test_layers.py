"""The picture of the package, held against its imports: the core is pure, the lab has the effects, runs stay on top."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The words that every room of the core may use, and what else each room may. A room is a folder or a file.
WORDS = {"checks", "losses", "norms", "types", "varying"}
CORE = {
    **dict.fromkeys(sorted(WORDS), set()),
    "adapters": set(),
    "attacks": {"batching", "margins", "xla_cpu"},
    "batching": {"xla_cpu"},
    "brackets": {"attacks", "batching", "certificates", "lipschitz", "xla_cpu"},
    "certificates": {"batching", "layers", "margins"},
    "flags": set(),
    "health": {"attacks", "batching", "flags", "margins"},
    "layers": set(),
    "lipschitz": {"batching", "layers", "margins", "xla_cpu"},
    "margins": set(),
    "models": {"layers", "xla_cpu"},
    "objectives": {"attacks"},
    "xla_cpu": set(),
}
# What each room of the lab may import from the lab; all of them may import the core.
LAB = {
    "cards": {"files", "provenance"},
    "cells": {"cards", "data", "files", "manifests", "parameters", "resuming", "settings", "workspace"},
    "checkpoints": {"files", "manifests", "training"},
    "command_line": {"cells", "data", "interruptions", "publishing", "settings", "training"},
    "compilation": {"manifests"},
    "data": {"manifests"},
    "figures": {"files"},
    "files": {"manifests"},
    "interruptions": set(),
    "manifests": set(),
    "measuring": {"files", "manifests"},
    "parameters": {"files"},
    "provenance": set(),
    "publishing": {"cards", "files", "report", "tables"},
    "report": {"files"},
    "resuming": {"checkpoints", "files", "training", "workspace"},
    "robustness": {"cells", "files", "measuring"},
    "settings": {"cards", "files"},
    "tables": {"cards"},
    "training": {"data"},
    "workspace": {"cards", "files", "manifests", "measuring", "provenance"},
}
# Who may know a heavy library: rooms, as paths below the repository.
OWNERS = {
    "array_record": {"jaxmargin/lab/data"},
    "daqp": {"runs/case_study"},
    "flax": {"jaxmargin/adapters", "jaxmargin/lab", "jaxmargin/models"},
    "jinja2": {"jaxmargin/lab/report"},
    "matplotlib": {"jaxmargin/lab/figures", "runs"},
    "orbax": {"jaxmargin/lab/checkpoints"},
    "pickle": set(),
    "scipy": {"jaxmargin/flags", "jaxmargin/lipschitz"},
    "sklearn": {"jaxmargin/lab/data", "runs/case_study"},
    "tensorflow": set(),
    "tensorflow_datasets": {"jaxmargin/lab/data"},
}
CORE_LIBRARIES = {"flax", "jax", "jaxmargin", "numpy", "optax", "scipy"} | set(sys.stdlib_module_names)
# Effects that the core does without.
EFFECTS = {"logging", "os", "pathlib", "shutil", "signal", "subprocess", "tempfile", "threading", "time", "urllib"}


def name_of(path):
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path):
    """Dotted names of everything that a file imports, at its top or inside of a function."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path, package):
    """The rooms of a package that a file imports, such as {"checks"} for ``from jaxmargin import checks``."""
    prefix = f"{package}."
    return {name.removeprefix(prefix).split(".")[0] for name in imports(path) if name.startswith(prefix)}


def libraries(path):
    return {name.split(".")[0] for name in imports(path)}


def chains(path):
    """Everything of the form a.b.c in a file."""
    return {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}


def files_of(folder):
    return sorted((ROOT / folder).rglob("*.py"))


LAB_FILES = [path for path in files_of("jaxmargin/lab") if path.parent.name != "lab" or path.stem != "__init__"]
CORE_FILES = sorted({*files_of("jaxmargin")} - {*files_of("jaxmargin/lab"), ROOT / "jaxmargin/__init__.py"})
RUN_FILES = files_of("runs")
STUDIES = sorted({path.parent.name for path in RUN_FILES if path.parent.name != "runs"} - {"results"})


def test_the_walk_finds_core_lab_and_studies():
    assert {"jaxmargin/checks", "jaxmargin/batching", "jaxmargin/models/sequential"} <= {*map(name_of, CORE_FILES)}
    assert {"jaxmargin/lab/data", "jaxmargin/lab/training"} <= {*map(name_of, LAB_FILES)}
    assert {"paper", "mma", "case_study"} <= {*STUDIES}
    assert "checks" in rooms(ROOT / "jaxmargin/batching/measurement.py", "jaxmargin")


def test_every_room_is_drawn():
    assert {name_of(path).split("/")[1] for path in CORE_FILES} <= CORE.keys()
    assert {name_of(path).split("/")[2] for path in LAB_FILES} <= LAB.keys()


@pytest.mark.parametrize("room", CORE)
def test_the_core_imports_only_along_its_edges(room):
    for path in CORE_FILES:
        if name_of(path).split("/")[1] == room:
            assert rooms(path, "jaxmargin") <= CORE[room] | WORDS | {room}, name_of(path)


@pytest.mark.parametrize("room", LAB)
def test_the_lab_imports_only_along_its_edges(room):
    for path in LAB_FILES:
        if name_of(path).split("/")[2] == room:
            assert rooms(path, "jaxmargin.lab") <= LAB[room] | {room}, name_of(path)


@pytest.mark.parametrize("edges", [CORE, LAB], ids=["core", "lab"])
def test_the_edges_have_no_cycle(edges):
    below = {name: set(down) for name, down in edges.items()}
    for _ in below:
        below = {name: down.union(*(below[edge] for edge in down)) for name, down in below.items()}
    assert all(name not in down for name, down in below.items())


def test_imports_point_down_only():
    for path in [*CORE_FILES, *LAB_FILES]:
        assert not libraries(path) & {"runs", "tests", "benchmarks"}, name_of(path)
    for path in CORE_FILES:
        assert "lab" not in rooms(path, "jaxmargin"), name_of(path)
    for path in RUN_FILES:
        assert not libraries(path) & {"tests", "benchmarks"}, name_of(path)


@pytest.mark.parametrize("study", [*STUDIES, "results"])
def test_studies_know_nothing_of_one_another(study):
    for path in files_of(f"runs/{study}"):
        assert rooms(path, "runs") <= {study}, name_of(path)


@pytest.mark.parametrize("study", STUDIES)
def test_each_study_has_its_comparison_and_no_other_place_names_it(study):
    comparison = importlib.import_module(f"runs.{study}.comparison")
    assert {"NOTE", "section", "settings", "summary"} <= {*comparison.__all__}
    for path in [*LAB_FILES, *files_of("runs/results")]:
        assert f"runs.{study}." not in "".join(sorted(imports(path))), name_of(path)


@pytest.mark.parametrize("library", OWNERS)
def test_each_heavy_library_has_its_own_rooms(library):
    knowing = [name_of(path) for path in [*CORE_FILES, *LAB_FILES, *RUN_FILES] if library in libraries(path)]
    assert not [name for name in knowing if not any(f"{name}/".startswith(f"{room}/") for room in OWNERS[library])]


def test_the_core_needs_only_the_installed_libraries_and_has_no_effects():
    for path in CORE_FILES:
        assert libraries(path) <= CORE_LIBRARIES, name_of(path)
        assert not libraries(path) & EFFECTS, name_of(path)


def test_only_public_interfaces_are_used():
    others = ("jax.", "jnp.", "flax.", "nn.", "nnx.", "optax.", "np.", "tfds.", "ocp.", "plt.")
    allowed = {"__version__", "__main__"}

    def private(name):
        return [part for part in name.split(".") if part[:1] == "_" and part not in allowed]

    for path in [*CORE_FILES, *LAB_FILES, *RUN_FILES, *files_of("benchmarks")]:
        reached = [chain for chain in chains(path) if chain.startswith(others)]
        assert not [name for name in [*imports(path), *reached] if private(name)], name_of(path)


def test_the_core_neither_prints_nor_opens_files_nor_keeps_state():
    for path in CORE_FILES:
        nodes = list(ast.walk(tree_of(path)))
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert not called & {"print", "open", "input", "exec", "eval"}, name_of(path)
        assert not [node for node in nodes if isinstance(node, ast.Global)], name_of(path)
        assert not [chain for chain in chains(path) if chain.startswith("jax.config")], name_of(path)


def test_no_module_bears_the_name_of_a_function_that_its_package_shows():
    for package in [path for path in [*CORE_FILES, ROOT / "jaxmargin/__init__.py"] if path.stem == "__init__"]:
        modules = {path.stem for path in package.parent.iterdir()}
        shown = importlib.import_module(name_of(package).replace("/", "."))
        functions = [name for name in shown.__all__ if inspect.isfunction(getattr(shown, name))]
        assert not modules & {*functions}, name_of(package)


def test_every_path_that_the_contributor_is_sent_to_exists():
    sent = re.findall(r"`((?:jaxmargin|runs|tests|benchmarks)/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(sent) > 15
    assert not [path for path in sent if not (ROOT / path).exists()]


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "sklearn", "jaxmargin.lab")
    code = f"import sys, jaxmargin; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
