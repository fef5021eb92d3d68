import base64
import configparser
import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxmargin.lab.report import Section, csv_table, markdown_table, page, write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Reads a page, insisting that every tag is closed in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def figure(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(PNG)
    return path


def read(path, sections, title="Title", introduction=""):
    written = write_report(path, title=title, introduction=introduction, sections=sections)
    assert written == path
    return Reader(path.read_text(encoding="utf-8"))


def test_columns_are_the_union_in_first_seen_order():
    rows = [{"b": 1, "a": 2}, {"c": 3, "a": 4}]
    assert csv_table(rows) == "b,a,c\n1,2,\n,4,3\n"
    assert markdown_table(rows).splitlines()[0] == "| b | a | c |"


def test_csv_reads_back_exactly():
    values = [0.1 + 0.2, 1e-300, -math.inf, float(np.float32(0.1)), 98.24]
    text = csv_table([{"name": 'a "b", c\nd', "value": value} for value in values])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [float(row["value"]) for row in rows] == values
    assert {row["name"] for row in rows} == {'a "b", c\nd'}


def test_numpy_numbers_are_written_as_numbers():
    rows = [{"n": np.int64(3), "x": np.float64(0.5)}]
    assert csv_table(rows) == "n,x\n3,0.5\n"
    assert markdown_table(rows) == "| n | x |\n| ---: | ---: |\n| 3 | 0.5 |\n"


def test_markdown_shows_four_digits_and_escapes():
    rows = [{"a|b": "x|y\nz", "value": 49.23456, "none": None}, {"a|b": "", "value": 12345, "none": "–"}]
    assert markdown_table(rows).splitlines() == [
        r"| a\|b | value | none |",
        "| --- | ---: | --- |",
        r"| x\|y z | 49.23 | – |",
        "|  | 12345 | – |",
    ]


def test_strings_are_shown_as_given():
    assert "| 0.80 |" in markdown_table([{"published": "0.80"}])
    assert csv_table([{"published": "0.80"}]) == "published\n0.80\n"


def test_no_rows_make_no_table():
    assert markdown_table([]) == csv_table([]) == ""


def test_report_holds_everything_and_fetches_nothing(tmp_path, figure):
    rows = [{"method": "std", "clean": 98.2431}, {"method": None, "clean": 1}]
    section = Section("Results", "First.\n\nSecond\nline.", rows, ((figure, "A caption"),))
    page = read(tmp_path / "deep" / "report.html", [section], introduction="One.\n \nTwo.")
    assert page.texts["p"] == ["One.", "Two.", "First.", "Second\nline."]
    assert page.texts["h2"] == ["Results"]
    assert page.texts["td"] == ["std", "98.24", "–", "1"]
    assert page.texts["figcaption"] == ["A caption"]
    (image,) = page.attributes("img")
    assert image["alt"] == "A caption"
    assert (image["width"], image["height"]) == ("1", "1")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == PNG
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    text = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace(image["src"], ""))


def test_report_works_on_a_phone_and_in_the_dark(tmp_path):
    page = read(tmp_path / "report.html", [Section("A", table=[{"a": 1}])])
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")
    (style,) = page.texts["style"]
    assert "prefers-color-scheme: dark" in style
    assert style.count("{") == style.count("}")
    assert [attrs.get("class") for attrs in page.attributes("div")] == ["scroll"]  # the table's own box


def test_everything_is_escaped(tmp_path, figure):
    section = Section(HOSTILE, HOSTILE, [{HOSTILE: HOSTILE}], ((figure, HOSTILE),))
    page = read(tmp_path / "report.html", [section] * 4, title=HOSTILE, introduction=HOSTILE)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.attributes("img")[0]["alt"] == HOSTILE
    for tag in ("title", "h1", "h2", "th", "td", "figcaption", "a"):
        assert "".join(page.texts[tag]).startswith(HOSTILE), tag


@pytest.mark.parametrize("size", [0, 1, 3, 4])
def test_contents_from_four_sections_on(tmp_path, size):
    page = read(tmp_path / "report.html", [Section(f"Part {i}") for i in range(size)])
    targets = [attrs["id"] for attrs in page.attributes("h2")]
    links = [attrs["href"] for attrs in page.attributes("a")]
    assert len(set(targets)) == size
    assert links == ([f"#{target}" for target in targets] if size > 3 else [])


def test_same_input_same_bytes(tmp_path, figure):
    sections = [Section("A", "text", [{"a": 0.5}], ((figure, "caption"),))]
    one, two = (
        write_report(tmp_path / name, title="T", introduction="I", sections=sections).read_bytes() for name in "ab"
    )
    assert one == two


def test_missing_figure_is_named_and_the_old_report_stays(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read(path, [Section("A", figures=((tmp_path / "absent.png", "caption"),))])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_only_png_figures(tmp_path):
    drawing = tmp_path / "figure.png"
    drawing.write_text("<svg/>")
    with pytest.raises(ValueError, match="figure.png.*not a PNG"):
        read(tmp_path / "report.html", [Section("A", figures=((drawing, "caption"),))])


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(path, title="T", introduction="", sections=[])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_templates_are_installed_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    pattern = setup["options.package_data"][page.__package__]
    folder = Path(page.__file__).parent
    assert {*(folder / "templates").iterdir()} == {*folder.glob(pattern)}
