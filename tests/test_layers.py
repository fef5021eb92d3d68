"""The picture of the package, held against its imports: the core is pure, the lab has the effects, runs stay on top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxmargin"
RUNS = PACKAGE.parent / "runs"

# What each file may import from its own layer; a package is the files in it. Every file of the lab may import the core.
CORE = {
    "adapters": set(),
    "attacks": {"checks", "chunks", "losses", "norms", "together"},
    "augmentation": {"checks"},
    "audit": {"attacks", "certificates", "chunks", "margins", "norms", "together"},
    "batching": {"checks", "chunks", "compiling", "rewriting", "together"},
    "certificates": {"checks", "chunks", "layers", "norms", "relaxation", "rivals", "rounding", "spectral", "together"},
    "checks": set(),
    "chunks": set(),
    "compiling": {"checks"},
    "convolution": set(),
    "endpoints": {"checks", "estimates", "rivals"},
    "estimates": {"checks", "lipschitz", "margins", "norms", "slopes", "together"},
    "extremes": set(),
    "health": {"attacks", "batching", "checks", "losses", "margins", "norms"},
    "layers": set(),
    "lipschitz": {"checks", "norms", "rivals", "slopes"},
    "losses": set(),
    "margins": {"checks", "lipschitz", "norms", "rivals", "together"},
    "models": {"checks", "convolution", "layers"},
    "norms": set(),
    "objectives": {"attacks", "checks", "losses", "norms", "regularizers"},
    "regularizers": set(),
    "relaxation": {"layers", "norms", "rounding"},
    "rewriting": {"convolution"},
    "rivals": {"extremes", "slopes"},
    "rounding": set(),
    "slopes": {"layers", "norms"},
    "spectral": {"layers", "rounding"},
    "together": {"checks"},
}
LAB = {
    "active_set": set(),
    "builders": set(),
    "case_study": {"hyperplanes", "svm"},
    "checkpoints": {"training"},
    "compilation": set(),
    "data": {"builders"},
    "evaluation": {"tracking"},
    "experiments": {"*"},
    "drawing": set(),
    "findings": {"case_study", "hyperplanes"},
    "hyperplanes": {"data", "svm"},
    "mma_plots": {"drawing", "one_dimension"},
    "one_dimension": set(),
    "parameters": {"evaluation", "tracking"},
    "plots": {"drawing", "tracking"},
    "publishing": {"evaluation", "experiments", "plots", "reports", "tables", "tracking"},
    "reports": {"tracking"},
    "resuming": {"checkpoints", "tracking", "training"},
    "robust_cell": {"data", "robustness"},
    "robust_evaluation": {
        *("data", "evaluation", "resuming", "robust_cell", "robustness", "tracking", "training"),
    },
    "robust_report": {
        *("evaluation", "mma_plots", "one_dimension", "plots", "reports", "robust_cell", "robust_tables", "tables"),
        "tracking",
    },
    "robust_tables": {"evaluation", "robust_cell", "tables"},
    "robust_training": {"*"},
    "robustness": {"evaluation"},
    "svm": {"active_set"},
    "tables": set(),
    "tracking": set(),
    "training": set(),
}
# Who may know a heavy library, as paths below the package.
OWNERS = {
    "array_record": {"lab/data", "lab/builders"},
    "flax": {"models/residual", "models/sequential", "adapters"},
    "matplotlib": {"lab/drawing", "lab/mma_plots", "lab/plots"},
    "orbax": {"lab/checkpoints"},
    "pickle": set(),
    "scipy": {"endpoints"},
    "sklearn": {"lab/data", "lab/hyperplanes"},
    "tensorflow": set(),
    "tensorflow_datasets": {"lab/data", "lab/builders"},
}
CORE_LIBRARIES = {"flax", "jax", "jaxmargin", "numpy", "optax", "scipy"} | set(sys.stdlib_module_names)
# Effects that the core does without.
EFFECTS = {"logging", "os", "pathlib", "shutil", "signal", "subprocess", "tempfile", "threading", "time", "urllib"}


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


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


def own(path, prefix):
    """First names below a package of our own, such as {"checks"} for ``from jaxmargin import checks``."""
    return {name.removeprefix(prefix).split(".")[0] for name in imports(path) if name.startswith(prefix)}


ALL_FILES = sorted(PACKAGE.rglob("*.py"))
LAB_FILES = [path for path in ALL_FILES if path.parent.name == "lab" and path.stem != "__init__"]
CORE_FILES = [path for path in ALL_FILES if path.parent.name != "lab"]
RUN_FILES = sorted(RUNS.rglob("*.py"))
every_file = pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
core_file = pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
lab_file = pytest.mark.parametrize("path", LAB_FILES, ids=name_of)


def test_the_walk_finds_core_and_lab():
    assert {"checks", "batching", "models/sequential", "attacks/nearest"} <= {name_of(path) for path in CORE_FILES}
    assert {"data", "plots"} <= {path.stem for path in LAB_FILES}
    assert "checks" in own(PACKAGE / "batching.py", "jaxmargin.")


@core_file
def test_the_core_imports_only_downwards(path):
    used = own(path, "jaxmargin.")
    assert "lab" not in used
    if path != PACKAGE / "__init__.py":
        name = name_of(path).split("/")[0]
        assert name in CORE, "a new file of the core: draw its edges in CORE"
        assert used <= CORE[name] | {name}


def test_the_edges_of_the_core_have_no_cycle():
    below = {name: set(edges) for name, edges in CORE.items()}
    for _ in below:
        below = {name: edges.union(*(below[edge] for edge in edges)) for name, edges in below.items()}
    assert all(name not in edges for name, edges in below.items())


@lab_file
def test_the_lab_imports_only_along_its_edges(path):
    assert path.stem in LAB, "a new file of the lab: draw its edges in LAB"
    used = own(path, "jaxmargin.lab.")
    assert LAB[path.stem] == {"*"} or used <= LAB[path.stem]


@every_file
def test_the_package_knows_nothing_of_runs_and_tests(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"runs", "tests", "benchmarks"}


@every_file
def test_each_heavy_library_has_its_own_file(path):
    for library in {name.split(".")[0] for name in imports(path)} & set(OWNERS):
        if not (library == "flax" and path.parent.name == "lab"):
            assert name_of(path) in OWNERS[library], f"{library} belongs to {sorted(OWNERS[library])}"


@core_file
def test_the_core_needs_only_the_installed_libraries_and_has_no_effects(path):
    used = {name.split(".")[0] for name in imports(path)}
    assert used <= CORE_LIBRARIES
    assert not used & EFFECTS


@pytest.mark.parametrize("path", [*ALL_FILES, *RUN_FILES], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_only_public_interfaces_are_used(path):
    for name in imports(path):
        assert not any(part.startswith("_") for part in name.split(".") if part != "__version__"), name
    chains = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    libraries = ("jax.", "jnp.", "flax.", "nn.", "nnx.", "optax.", "np.", "tfds.", "ocp.", "plt.")
    private = {chain for chain in chains if chain.startswith(libraries) and any(p[:1] == "_" for p in chain.split("."))}
    assert not private


@core_file
def test_the_core_neither_prints_nor_opens_files(path):
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"print", "open", "input", "exec", "eval"}


@core_file
def test_the_core_keeps_no_state_between_calls(path):
    assert not [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Global)]


@core_file
def test_the_core_changes_no_global_setting_of_jax(path):
    chains = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert not {chain for chain in chains if chain.startswith("jax.config")}


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "sklearn", "jaxmargin.lab")
    code = f"import sys, jaxmargin; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
