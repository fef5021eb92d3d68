"""A finished workdir as a section of Markdown: what was measured, beside what the paper says, and why they differ."""

import math
import urllib.parse
from pathlib import Path
from typing import Any

from jaxmargin.lab import files, tables
from jaxmargin.lab.report.page import markdown_table
from jaxmargin.lab.tables import Card
from runs.mma import presets as mma_presets
from runs.mma import publish as robust_report
from runs.mma import tables as robust_tables
from runs.paper import presets
from runs.paper import publish as publishing

__all__ = ["CLEAN", "MARGIN", "ROBUST", "deviations", "kind", "section", "summary"]

# How far a number may lie from the paper's: percentage points of accuracy, and a share of the average margin.
CLEAN = {"mnist": 1.0, "cifar10": 2.5}
ROBUST, MARGIN = 4.0, 0.1

# What decides how complete a cell is, and what to call it.
_SIZES = {"epochs": "epochs", "num_samples": "samples a point", "points": "points", "attack_steps": "attack steps"}

# Sizes that may explain a difference in a number, by its first word.
_WHY = {
    "clean": ("epochs",),
    "published": ("epochs", "attack_steps"),
    "average": ("epochs", "points", "num_samples"),
}

# What the paper says of each figure, in our words.
_CLAIMS = {
    "margins": "The paper, Figures 2a to 2c (CIFAR-10) and 6 (MNIST): the minimum margin rises and the average one"
    " falls; only on the MNIST CNN the average does not fall.",
    "average": "The paper, Figures 2d to 2f (CIFAR-10): with AMR the average margin ends above that of standard"
    " training.",
    "robust": "The paper, Table 1 (MLP and CNN): AMR is the most robust of the three, most of all at large epsilons."
    " The worst case, dashed, is not in the paper.",
    "training": "The paper, Figure 4: loss and errors fall as usual; nothing in them tells of the margins.",
    "brackets": "Not in the paper: what is proven and what was found, around the estimate.",
    "points": "The paper, Figures 5 and 7: the mass of the margins moves towards the boundary while the left tail gets"
    " shorter.",
}
_MMA = {
    "robust": "The paper, Tables 1 and 2: MMA is robust over a range of epsilons, PGD about its own.",
    "spread": "The paper, Figure 4: distances pile up near a fixed epsilon, and spread to the right under MMA.",
    "line": "The paper, Figure 2: lowering the loss at the boundary raises the margin, elsewhere it may lower it.",
    "landscape": "The paper, Figure 3: the loss around a point.",
}
_CASE_STUDY = {
    "figure1": "The paper, Figures 1a and 1b: the minimum margin rises to the SVM's while the average margin falls.",
    "figure1c": "The paper, Figure 1c: the histogram of the margins moves left, towards the boundary, to the SVM's.",
    "figure3": "The paper, Figure 3: loss and errors fall all the while.",
    "pareto": "Not in the paper: the exact front of minimum against average margin.",
    "direction": "Not in the paper: how far the weights' direction is from that of either SVM.",
}


def kind(folder: Path) -> str | None:
    """What a folder holds: "paper" (cells of Table 1), "mma", "study", "question", or None for nothing finished."""
    if any("norm" in files.read_json(path) for path in folder.glob("cards/*.json")):
        return "mma"
    for name, pattern in (("paper", "cards/*.json"), ("study", "result.json"), ("question", "ranking.md")):
        if any(folder.glob(pattern)):
            return name
    return None


def summary(folder: Path) -> dict[str, str]:
    """One row of the table of contents: what a folder holds, and how much of it is within what is allowed."""
    cards = [files.read_json(path) for path in sorted(folder.glob("**/cards/*.json"))]
    study = folder / "result.json"
    nothing: Card = {"dataset": "", "methods": (), "seconds": {}}  # a question whose variants all diverged
    first = cards[0] if cards else files.read_json(study) if study.exists() else nothing
    said = {"paper": "Table 1, Figures 2 and 4 to 7", "mma": "both papers on one network", "study": "Figures 1 and 3"}
    compared = deviations(cards) if kind(folder) == "paper" else []
    epochs = sorted({card["epochs"] for card in cards if "epochs" in card})
    near = sum(row["within"].endswith("yes") for row in compared)
    return {
        "folder": f"[{folder.name}](#{folder.name})",
        "what": said.get(kind(folder) or "", "a setting that the paper leaves open"),
        "data": first["dataset"],
        "networks": ", ".join(sorted({card["model"] for card in cards})),
        "trainings": str(len(cards) or len(first["methods"])),
        "each of": f"{first['steps']:,} steps" if "steps" in first else " or ".join(f"{n:,} epochs" for n in epochs),
        "numbers within what is allowed": f"{near} of {len(compared)}" if compared else "",
        "hours": _hours(cards or [first]),
    }


def section(folder: Path) -> str:
    """One folder of results as Markdown under a heading with its name; draws the figures of a table's cells."""
    parts = {"study": _study, "question": _question, "mma": _mma}.get(kind(folder) or "", _paper)(folder)
    return "\n\n".join(part.strip() for part in [f"## {folder.name}", *parts]) + "\n"


def _paper(folder: Path) -> list[str]:
    published = publishing.publish(folder)
    cards = published.cards
    parts = [_conditions(cards), published.table]
    if found := deviations(cards):
        parts += ["### Beside the paper, with what may explain a difference", markdown_table(found)]
    moved = tables.trade_off(cards, published.records)
    parts += ["### Trade-off, from the epoch of the largest average", markdown_table(moved)]
    parts += ["### Certified, estimated, attacked", markdown_table(tables.brackets(cards))]
    for name, figures in published.figures.items():
        parts += [f"### {name.capitalize()}", "" if cards[0]["dataset"] == "digits" else _CLAIMS[name]]
        parts += [_image(folder, path, caption) for path, caption in figures]
    return [*parts, "### Sizes and seconds", markdown_table(tables.costs(cards))]


def _mma(folder: Path) -> list[str]:
    study = robust_report.publish_study(folder)
    first = study.cards[0]
    devices = ", ".join(sorted({card["device"] for card in study.cards}))
    whole = mma_presets.cell(first["dataset"], first["norm"], "std")
    (_, rate), *_ = first["learning_rates"]
    (_, preset_rate), *_ = whole.learning_rates
    parts = [
        f"{first['dataset']}, {first['norm']}, {first['model']} (preset {whole.model}), {first['steps']:,} of"
        f" {whole.steps:,} steps, first rate {rate:g} (preset {preset_rate:g}), inner attacks of"
        f" {first['attack_steps']} of {whole.attack_steps} steps, {first['n_attack']:,} of {first['n_test']:,} test"
        f" images under attack. {devices}; {_versions(study.cards)}; {_hours(study.cards)} hours in all.",
        study.table, *(["### Image by image", markdown_table(study.gains)] if study.gains else []),
        "### Both papers: certified, estimated, attacked", markdown_table(tables.brackets(study.cards)),
    ]  # fmt: skip
    for name, (path, caption) in study.figures.items():
        parts += [_MMA[name], _image(folder, path, caption)]
    return [*parts, "### Seconds", markdown_table(robust_tables.costs(study.cards))]


def _study(folder: Path) -> list[str]:
    card = files.read_json(folder / "result.json")
    parts = [
        f"{card['dataset']}, {card['classes'][0]} against {card['classes'][1]}: {card['n_train']:,} training and"
        f" {card['n_test']:,} test images. {card['device']}; {_versions([card])};"
        f" {card['seconds']['total']:.0f} seconds.",
        markdown_table(card["rows"]), "### Claims", markdown_table(card["claims"]),
    ]  # fmt: skip
    for name, said in _CASE_STUDY.items():
        parts += [said, _image(folder, folder / f"{name}.png", name)]
    return parts


def _question(folder: Path) -> list[str]:
    cards = {path.parent.parent.name: files.read_json(path) for path in sorted(folder.glob("*/cards/*.json"))}
    if not cards:  # all diverged
        return [(folder / "ranking.md").read_text()]
    costs = tables.costs(list(cards.values()))
    rows = [{"variant": name} | row for name, row in zip(cards, costs, strict=True)]
    return [_conditions(list(cards.values())), (folder / "ranking.md").read_text(), markdown_table(rows)]


def _image(folder: Path, path: Path, caption: str) -> str:
    return f"![{caption}]({urllib.parse.quote(path.relative_to(folder.parent).as_posix())})"


def _conditions(cards: list[Card]) -> str:
    """Where the cards were measured and on how much data."""
    first = cards[0]
    devices = ", ".join(sorted({card["device"] for card in cards}))
    return (
        f"{first['dataset']}, preset {first['preset']}, {first['n_train']:,} training and {first['n_test']:,} test"
        f" images. {devices}; {_versions(cards)}; {_hours(cards)} hours in all."
    )


def _hours(cards: list[Card]) -> str:
    """The hours of all stages; a case study has their total beside them."""
    seconds = sum(card["seconds"].get("total") or sum(card["seconds"].values()) for card in cards)
    return f"{seconds / 3600:.1f}"


def _versions(cards: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for card in cards for name in card["versions"])
    seen = {name: sorted({card["versions"][name] for card in cards if name in card["versions"]}) for name in names}
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in seen.items())


def deviations(cards: list[Card]) -> list[dict[str, str]]:
    """One row for each number that the paper has too.

    Args:
      cards: result cards.

    Returns:
      Rows of formatted cells: the number here and there, whether it is within what is allowed, and if not, in what the
      run was smaller than the paper's, or "open".
    """
    rows = []
    for card in cards:
        if not (paper := card["paper"]):
            continue
        compared = [("clean %", 100 * card["clean_accuracy"], 100 * paper["clean_accuracy"], CLEAN[card["dataset"]])]
        if paper["epsilons"] == card["epsilons"]:
            pairs = zip(card["epsilons"], card["robust_accuracy"], paper["robust_accuracy"], strict=True)
            compared += [(f"published {epsilon:g} %", 100 * a, 100 * b, ROBUST) for epsilon, a, b in pairs]
        published_margin = paper["average_margin"]
        compared.append(("average margin", card["average_margin"], published_margin, MARGIN * published_margin))
        for name, here, there, allowed in compared:
            near = abs(here - there) <= allowed
            rows.append({
                "model": card["model"], "method": card["method"], "seed": str(card["seed"]), "number": name,
                "here": f"{here:.2f}", "paper": f"{there:.2f}", "difference": f"{here - there:+.2f}",
                "within": f"{allowed:.2g}: {'yes' if near else 'NO'}",
                "why": "" if near else _cut(card, name.split()[0], here, there, allowed) or "open",
            })  # fmt: skip
    return rows


def _cut(card: Card, number: str, here: float, there: float, allowed: float) -> str:
    """In what a card is smaller than the preset that may explain a difference; empty where there is nothing."""
    whole: Any = presets.cell(card["dataset"], card["model"], card["method"], preset=card["preset"])
    smaller = [
        f"{card[name]:,} of {getattr(whole, name):,} {_SIZES[name]}"
        for name in _WHY[number]
        if card[name] < getattr(whole, name) and (name != "num_samples" or here > there)  # more of them lower it
    ]
    images = {"published": card["n_attack"], "clean": card["n_test"]}.get(number, 10_000)
    error = math.sqrt(there * (100 - there) / images * (1 - images / 10_000))
    if abs(here - there) - allowed <= 2 * error:
        smaller.append(f"{images:,} of 10,000 images (standard error {error:.1f})")
    return f"cut to {', '.join(smaller)}" if smaller else ""
