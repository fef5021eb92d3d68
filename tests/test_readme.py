"""The README: its commands stand there word for word, its code runs, its pictures exist."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmargin.lab.files import read_json

pytestmark = pytest.mark.hurried

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(
    "command",
    ['pip install -e ".[lab]" && python -m runs.paper', 'pip install -e ".[lab,test]" && python -m pytest'],
)
def test_the_two_commands_stand_alone_on_a_line(command):
    assert TEXT.splitlines().count(command) == 1


def test_there_are_two_blocks_of_code():
    assert len(BLOCKS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_runs(block):
    names = {}
    with jax.numpy_rank_promotion("allow"):  # a user's own arithmetic may broadcast
        exec("\n".join(line for line in block.splitlines() if not line.startswith("%")), names)
    assert "estimate" in names


def test_the_pictures_exist():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def rows_of(pattern):
    """The cells of all rows of tables in the piece of text that a pattern marks."""
    block = re.search(pattern, TEXT, re.DOTALL).group(1)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("|")]


def test_the_table_of_all_trainings_is_that_of_the_cards():
    rows = rows_of("<!-- mma -->(.*?)<!-- /mma -->")
    for row in rows[2:]:
        card = read_json(ROOT / "runs" / "results" / "mma-digits-l2" / "cards" / f"digits-l2-{row[0]}-seed0.json")
        shares = [card["clean_accuracy"], *card["robust_accuracy_worst"], card["average_robust_accuracy_worst"]]
        lengths = [card[f"average_{name}"] for name in ("nearest", "certified", "distance", "attacked")]
        said = [f"{100 * share:.2f}" for share in shares]
        assert row[1:] == said + ["–" if length is None else f"{length:.3f}" for length in lengths]
    assert len(rows) == 13


def test_the_table_of_trainings_on_mnist_is_that_of_the_cards():
    folder = ROOT / "runs" / "results" / "mma-mnist-l2" / "cards"

    def of(method):
        with np.load(folder / f"mnist-l2-{method}-seed0.npz") as arrays:
            return read_json(folder / f"mnist-l2-{method}-seed0.json"), arrays["nearest"][-1]

    rows = rows_of("<!-- mma-mnist -->(.*?)<!-- /mma-mnist -->")
    _, farthest = of("mma-4")
    for method, *said in rows[2:]:
        card, distance = of(method)
        shares = [card["clean_accuracy"], *card["robust_accuracy_worst"], card["average_robust_accuracy_worst"]]
        published = f" ({card['paper']['average_nearest']:.2f})" if card["paper"] else ""
        gains = farthest - distance
        error = np.std(gains, ddof=1) / np.sqrt(len(gains))
        gain = f"{gains.mean():+.3f} ± {error:.3f}" if method != "mma-4" else ""
        expected = [f"{100 * share:.2f}" for share in shares] + [f"{card['average_nearest']:.3f}{published}", gain]
        assert said == [*expected, f"{card['stages']['train']['seconds']:.0f}"]
        assert card["steps"] == 5000 and card["n_attack"] == 500
    assert len(rows) == 8


def test_the_tables_of_the_digits_are_those_of_the_cards():
    found = rows_of("<!-- digits -->(.*?)\\*\\*A published number")
    rows = [row for row in found if row[0] in ("linear", "mlp", "cnn")]
    for number, (model, method, *said) in enumerate(rows):
        path = ROOT / "runs" / "results" / "paper-digits" / "cards" / f"digits-{model}-{method}-seed0.json"
        card = read_json(path)
        if number < 9:
            shares = [card["clean_accuracy"], *card["robust_accuracy_published"]]
            margins = [f"{card[name]:.2f}" for name in ("average_distance", "average_margin")]
            rest = [f"{card['logit_margin_quartiles'][1]:.1f}", *margins, f"{card['minimum_margin']:.3f}"]
            rest.append(f"{card['num_samples']:,}" if card["num_samples"] else "exact")
        else:
            shares = card["robust_accuracy_worst"]
            rest = [f"{card[f'average_{name}']:.3f}" for name in ("certified", "distance", "attacked")]
            rest.append(f"{100 * card['contradicted_fraction']:.1f}")
        assert said == [f"{100 * share:.2f}" for share in shares] + rest
    assert len(rows) == 18


def test_the_table_of_the_mnist_mlp_is_that_of_the_cards():
    rows = rows_of("<!-- mnist-mlp -->(.*?)<!-- /mnist-mlp -->")
    for method, clean, *robust, worst, margin, attacked in rows[2:]:
        card = read_json(ROOT / "runs" / "results" / "paper-mnist-mlp" / "cards" / f"mnist-mlp-{method}-seed0.json")
        paper = card["paper"]
        assert clean == f"{100 * card['clean_accuracy']:.2f} ({100 * paper['clean_accuracy']:.2f})"
        pairs = zip(card["robust_accuracy_published"], paper["robust_accuracy_published"], strict=True)
        assert robust == [f"{100 * here:.1f} ({100 * there:.2f})" for here, there in pairs]
        assert margin == f"{card['average_distance']:.2f} ({paper['average_distance']:.2f})"
        assert worst == f"{100 * card['robust_accuracy_worst'][-1]:.1f}"
        assert attacked == f"{card['average_attacked']:.2f}" and card["epochs"] == 200
    assert len(rows) == 5


def test_the_table_of_the_mnist_cnn_is_that_of_the_cards():
    rows = rows_of("<!-- mnist-cnn -->(.*?)<!-- /mnist-cnn -->")[2:]
    for (method, *said), worst in zip(rows[::2], rows[1::2], strict=True):
        card = read_json(ROOT / "runs" / "results" / "paper-mnist-cnn" / "cards" / f"mnist-cnn-{method}-seed0.json")
        paper = card["paper"]
        pairs = zip(card["robust_accuracy_published"], paper["robust_accuracy_published"], strict=True)
        assert said == [
            f"{100 * card['clean_accuracy']:.2f} ({100 * paper['clean_accuracy']:.2f})", "published",
            *(f"{100 * here:.1f} ({100 * there:.2f})" for here, there in pairs),
            f"{card['logit_margin_quartiles'][1]:.1f}",
            f"{card['average_distance']:.2f} ({paper['average_distance']:.2f})", f"{card['average_attacked']:.2f}",
        ]  # fmt: skip
        lowest = [f"{100 * share:.1f}" for share in card["robust_accuracy_worst"]]
        assert worst == ["", "", "worst case", *lowest, "", "", ""]
        assert card["epochs"] == 12 and card["n_attack"] == 200
    assert len(rows) == 6


def test_no_placeholder_is_left():
    assert not re.search(r"TODO|FIXME|XXX", TEXT)
    for name in ("digits", "estimator", "canary"):
        assert len(re.search(f"<!-- {name} -->(.*?)<!-- /{name} -->", TEXT, re.DOTALL).group(1).strip()) > 100
