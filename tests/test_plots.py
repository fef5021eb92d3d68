import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from jaxmargin.lab.figures import drawing, plots, style
from runs.case_study import figures as case_study
from runs.paper import plots as paper

EPOCHS = [1, 2, 4, 60]
MINIMUM = [-0.2, 0.0, 0.1, 0.3]
AVERAGE = [1.4, 1.3, 1.0, 0.8]
CURVE = (EPOCHS, MINIMUM, AVERAGE)
ERRORS = {"train_error": [0.4, 0.2, 0.1, 0.0], "test_error": [0.5, 0.3, 0.2, 0.1]}
TRAINING = {"epoch": EPOCHS, "train_loss": AVERAGE, **ERRORS}


def pareto(points, *, title):
    return case_study.pareto_front((MINIMUM, AVERAGE), points, title=title)


# Each figure with a valid value of the dict that it draws.
DRAW = {
    "margin_curves": (plots.margin_curves, {"train": CURVE}),
    "average_margin_by_method": (paper.average_margin_by_method, {"std": {"test": (EPOCHS, AVERAGE)}}),
    "margin_histograms": (plots.margin_histograms, {"epoch 1": AVERAGE}),
    "training_curves": (plots.training_curves, {"std": TRAINING}),
    "brackets": (paper.brackets, {"std": {"certified": MINIMUM, "estimated": [0.5] * 4, "attacked": AVERAGE}}),
    "robust_accuracy_curves": (plots.robust_accuracy_curves, {"std": ([0, 1], [0.9, 0.1])}),
    "pareto_front": (pareto, {"SVM": (0.3, 0.8)}),
    "direction_convergence": (case_study.direction_convergence, {"gd": ([1, 10], [1.0, 0.1])}),
}


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def notes(figure):
    return [axes.get_title(loc="right") for axes in figure.axes]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def counts(axes):
    return np.array([bar.get_height() for bar in axes.patches])


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_draws_and_names_its_empty_argument(name):
    draw, valid = DRAW[name]
    figure = draw(valid, title="t")
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "t"
    figure.draw_without_rendering()
    argument = {"brackets": "points", "margin_histograms": "margins", "pareto_front": "points"}.get(name, "curves")
    with pytest.raises(ValueError, match=f"^{argument} is empty"):
        draw({}, title="t")


def test_every_figure_is_tested_above():
    assert set(DRAW) | {"draw", "save"} == {*plots.__all__, *paper.__all__, *case_study.__all__}


@pytest.mark.parametrize("name", DRAW)
def test_text_stays_inside_the_figure(name):
    draw, valid = DRAW[name]
    curves = {f"{label} with a rather long name, number {i}": value for i in range(7) for label, value in valid.items()}
    figure = draw(curves, title="A long title in many words. " * 8)
    figure.draw_without_rendering()
    whole = figure.bbox
    for artist in (*figure.legends, figure._suptitle):
        box = artist.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, artist


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.margin_curves({"broken": (EPOCHS, MINIMUM[:-1], AVERAGE)}, title="t"),
        lambda: paper.average_margin_by_method({"std": {"broken": (EPOCHS, AVERAGE[:-1])}}, title="t"),
        lambda: plots.training_curves({"broken": TRAINING | {"epoch": [1]}}, title="t"),
        lambda: plots.robust_accuracy_curves({"broken": ([0], [0.1, 0.2])}, title="t"),
        lambda: case_study.direction_convergence({"broken": ([1], [0.1, 0.2])}, title="t"),
        lambda: case_study.pareto_front(([1], [1]), {"SVM": (1, 1)}, title="t", path=([1], [1, 2])),
        lambda: plots.margin_histograms({"broken": [[1.0, 2.0]]}, title="t"),
        lambda: plots.robust_accuracy_curves({"broken": ([0, 1], [98.2, 5.1])}, title="t"),
        lambda: plots.training_curves({"broken": {"epoch": [1]}}, title="t"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw):
    with pytest.raises(ValueError, match="broken|path"):
        draw()


def test_margin_curves_hold_the_data_and_the_references():
    references = {"hard-margin SVM": (0.5, 0.7)}
    figure = plots.margin_curves({"train": CURVE, "test": CURVE}, title="LR", references=references)
    assert titles(figure) == ["Minimum margin", "Average margin"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    for axes, expected, reference in zip(figure.axes, (MINIMUM, AVERAGE), references["hard-margin SVM"], strict=True):
        for label in ("train", "test"):
            assert_array_equal(lines(axes)[label].get_xdata(), EPOCHS)
            assert_array_equal(lines(axes)[label].get_ydata(), expected)
        assert_array_equal(lines(axes)["hard-margin SVM"].get_ydata(), [reference, reference])
        low, high = axes.get_ylim()
        assert low < reference < high
    assert legend(figure) == ["train", "test", "hard-margin SVM"]


@pytest.mark.parametrize("first", [0, 1])
def test_log_axis_shows_every_epoch(first):
    epochs = [first, 10, 100]
    figure = plots.margin_curves({"train": (epochs, [0, 1, 2], [2, 1, 0])}, title="t", log_x=True)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_xscale() == ("log" if first else "symlog")
        low, high = axes.get_xlim()
        assert low < first and high > 100
        places = axes.transData.transform([(epoch, 1.0) for epoch in epochs])[:, 0]
        assert np.all(np.diff(places) > 20)
        assert all(label.get_text() not in ("-1", "−1") for label in axes.get_xticklabels())


def test_few_points_have_markers_and_many_do_not():
    many = np.arange(1.0, 201.0)
    figure = plots.margin_curves({"train": CURVE, "test": (many, many, many)}, title="t")
    assert lines(figure.axes[0])["train"].get_marker() == "o"
    assert lines(figure.axes[0])["test"].get_marker() == "none"


def test_infinite_values_are_masked_and_counted():
    curve = (EPOCHS, [np.inf, 0.0, -np.inf, 0.3], AVERAGE)
    figure = plots.margin_curves({"train": curve, "test": curve}, title="t", references={"SVM": (0.1, np.inf)})
    assert notes(figure) == ["4 not finite", "1 not finite"]
    assert_array_equal(lines(figure.axes[0])["train"].get_ydata(), [np.nan, 0.0, np.nan, 0.3])
    figure.draw_without_rendering()


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("value", [0.5, np.inf])
def test_a_single_point_draws(log_x, value, tmp_path):
    figure = plots.margin_curves({"train": ([1], [value], [value])}, title="t", log_x=log_x)
    plots.save(figure, tmp_path / "figure.png")
    assert figure.axes[0].get_xlim()[0] < 1 < figure.axes[0].get_xlim()[1]


def test_average_margin_tells_methods_by_colour_and_splits_by_dash():
    splits = {"test": (EPOCHS, AVERAGE), "train": (EPOCHS, MINIMUM)}
    figure = paper.average_margin_by_method({"std": splits, "amr": splits}, title="t")
    drawn = lines(figure.axes[0])
    assert set(drawn) == {"std, test", "std, train", "amr, test", "amr, train"}
    assert_array_equal(drawn["amr, train"].get_ydata(), MINIMUM)
    assert drawn["std, test"].get_color() == drawn["std, train"].get_color() != drawn["amr, test"].get_color()
    assert [drawn[f"std, {split}"].get_linestyle() for split in splits] == ["-", "--"]
    assert legend(figure) == ["std", "amr", "test", "train"]


def test_a_method_has_one_colour_in_all_figures():
    method = paper.average_margin_by_method({"lcr": {"test": (EPOCHS, AVERAGE)}}, title="t")
    training = plots.training_curves({"std": TRAINING, "lcr": TRAINING}, title="t")
    robust = plots.robust_accuracy_curves({"mnist-mlp lcr": ([0], [0.5])}, title="t")
    colours = {
        lines(method.axes[0])["lcr, test"].get_color(),
        lines(training.axes[1])["lcr"].get_color(),
        lines(robust.axes[0])["mnist-mlp lcr"].get_color(),
    }
    assert len(colours) == 1


def test_labels_of_one_figure_never_look_alike():
    labels = ["mlp std", "cnn std", "std", "a", "b", "train", "adversarial", "svm", "c"]
    looks = style.looks(labels)
    assert list(looks) == labels
    assert len(set(looks.values())) == len(labels)
    assert looks["mlp std"] == style.LOOKS["std"]
    assert len(style.looks(map(str, range(50)))) == 50  # more labels than looks: they repeat


def test_histograms_count_every_point_on_common_bins_with_an_edge_at_zero():
    rng = np.random.default_rng(0)
    margins = {f"epoch {i}": rng.normal(0.4 * i, 1.0, 100 + i) for i in range(7)}
    figure = plots.margin_histograms(margins, title="t", bins=20)
    assert titles(figure) == list(margins)
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    edges = np.array([bar.get_x() for bar in figure.axes[0].patches])
    assert 0.0 in edges
    assert 18 <= len(edges) <= 20
    for axes, values in zip(figure.axes, margins.values(), strict=True):
        assert counts(axes).sum() == len(values)
        assert_array_equal([bar.get_x() for bar in axes.patches], edges)
        assert counts(axes)[edges < 0].sum() == np.sum(values < 0)
        zero, mean = (line.get_xdata()[0] for line in axes.get_lines())
        assert zero == 0.0
        assert_allclose(mean, values.mean())
        assert axes.get_title(loc="right") == f"mean {values.mean():#.3g}"


@pytest.mark.parametrize("size, shape", [(1, (1, 1)), (5, (1, 5)), (6, (2, 3)), (10, (2, 5)), (11, (3, 4))])
def test_histograms_stand_in_rows_of_at_most_five(size, shape):
    figure = plots.margin_histograms({f"epoch {i}": [1.0, 2.0] for i in range(size)}, title="t")
    assert len(figure.axes) == size
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


@pytest.mark.parametrize("bins", [1, 2, 50])
@pytest.mark.parametrize(
    "values", [[0.7] * 9, [0.0] * 9, [-2.0] * 9, [-1.0, 2.0], [1.0, 2.0], [-1e-9, 3.0], [0.3], [1e7, -1e-7, 0.1]]
)
def test_histograms_lose_no_point(values, bins):
    figure = plots.margin_histograms({"epoch 1": values}, title="t", bins=bins)
    assert counts(figure.axes[0]).sum() == len(values)
    figure.draw_without_rendering()


def test_histograms_count_what_is_not_finite():
    margins = {"epoch 1": [np.inf, 0.5, -np.inf, 1.5], "SVM": [np.inf], "epoch 2": []}
    figure = plots.margin_histograms(margins, title="t")
    assert notes(figure) == ["mean 1.00\n2 not finite", "1 not finite", ""]
    assert [counts(axes).sum() for axes in figure.axes] == [2, 0, 0]
    figure.draw_without_rendering()


def test_titles_of_a_histogram_never_overlap():
    margins = {label: [-0.5, 1.0, np.inf] for label in ("epoch 1", "epoch 100", "hard-margin SVM", "a", "b")}
    figure = plots.margin_histograms(margins, title="t")
    figure.draw_without_rendering()
    for axes in figure.axes:
        left, right = (getattr(axes, name).get_window_extent() for name in ("_left_title", "_right_title"))
        beside = left.x1 < right.x0
        assert beside or axes.get_title(loc="left").endswith("\n\n")


def test_histograms_need_a_bin():
    with pytest.raises(ValueError, match="bins=0"):
        plots.margin_histograms({"epoch 1": [1.0]}, title="t", bins=0)


def test_training_curves_show_errors_in_percent():
    figure = plots.training_curves({"std": TRAINING}, title="t")
    assert titles(figure) == ["Training loss", "Training error", "Test error"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "error (%)", "error (%)"]
    for axes, expected in zip(figure.axes, (AVERAGE, [40, 20, 10, 0], [50, 30, 20, 10]), strict=True):
        assert_allclose(lines(axes)["std"].get_ydata(), expected)


def test_robust_accuracy_shows_the_whole_scale():
    figure = plots.robust_accuracy_curves({"std": ([0, 0.5, 1.0], [1.0, 0.5, 0.0])}, title="t")
    (axes,) = figure.axes
    assert_allclose(lines(axes)["std"].get_ydata(), [100, 50, 0])
    assert axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 100
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epsilon", "accuracy (%)")


def test_the_worst_case_is_drawn_dashed_in_the_colour_of_its_method():
    curve = ([0, 1.0], [1.0, 0.5])
    figure = plots.robust_accuracy_curves({"std": curve}, title="t", worst={"std": ([0, 1.0], [1.0, 0.1])})
    drawn = lines(figure.axes[0])
    assert_allclose(drawn["std, worst case"].get_ydata(), [100, 10])
    assert drawn["std, worst case"].get_linestyle() == "--"
    assert drawn["std, worst case"].get_color() == drawn["std"].get_color()


def test_brackets_are_sorted_by_the_attack_and_count_what_leaves_them():
    points = {"certified": [0.1, 0.2, 0.3], "estimated": [0.5, 0.9, 0.4], "attacked": [0.6, 0.8, 0.45]}
    figure = paper.brackets({"amr": points}, title="t")
    drawn = lines(figure.axes[0])
    assert_allclose(drawn["attacked"].get_ydata(), [0.45, 0.6, 0.8])
    assert_allclose(drawn["estimated"].get_ydata(), [0.4, 0.5, 0.9])
    assert_allclose(drawn["certified"].get_ydata(), [0.3, 0.1, 0.2])
    assert "1 of 3" in titles(figure)[0].replace("\n", " ")
    with pytest.raises(ValueError, match="lacks attacked"):
        paper.brackets({"amr": {"certified": [1.0], "estimated": [1.0]}}, title="t")


def test_pareto_front_marks_its_points():
    points = {"SVM": (0.3, 0.8), "mean difference": (-0.2, 1.4)}
    figure = case_study.pareto_front((MINIMUM, AVERAGE), points, title="t", path=([-0.5, 0.0, 0.2], [1.2, 1.0, 0.8]))
    drawn = lines(figure.axes[0])
    assert legend(figure) == ["Pareto front", "path of training", "SVM", "mean difference"]
    assert_array_equal(drawn["Pareto front"].get_xydata(), np.transpose([MINIMUM, AVERAGE]))
    for label, point in points.items():
        assert_array_equal(drawn[label].get_xydata(), [point])
        assert drawn[label].get_linestyle() == "None"
    (arrow,) = figure.axes[0].texts
    assert arrow.xy[0] > arrow.xyann[0]  # along the path


@pytest.mark.parametrize("path", [None, ([0.1], [1.0]), ([np.inf], [1.0]), ([0.1, 0.1], [1.0, 1.0]), ([], [])])
def test_pareto_front_takes_any_path(path):
    case_study.pareto_front((MINIMUM, AVERAGE), {"SVM": (0.3, np.inf)}, title="t", path=path).draw_without_rendering()


def test_direction_convergence_is_doubly_logarithmic():
    curves = {"gd": ([0, 1, 10, 100], [2.0, 1.0, np.inf, 0.1]), "adam": ([1, 10], [0.5, 0.0])}
    figure = case_study.direction_convergence(curves, title="t")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert set(notes(figure)[0].split("\n")) == {"1 not finite", "2 not positive"}
    assert_array_equal(lines(axes)["gd"].get_ydata(), [1.0, np.nan, 0.1])
    figure.draw_without_rendering()
    case_study.direction_convergence({"gd": ([1, 2], [0.0, 0.0])}, title="t").draw_without_rendering()


def test_save_gives_the_same_bytes_without_date_or_version(tmp_path):
    first, second = (
        plots.save(plots.margin_curves({"train": CURVE}, title="t"), tmp_path / "new" / name).read_bytes()
        for name in ("a.png", "b.png")
    )
    assert first == second
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.__version__.encode() not in first and b"tEXt" not in first
    assert int.from_bytes(first[16:20], "big") == style.WIDTH * 150


def test_save_is_atomic(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    figure = plots.margin_curves({"train": CURVE}, title=r"$\unknown$")  # the title fails when it is drawn
    with pytest.raises(ValueError, match="unknown"):
        plots.save(figure, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_save_wants_png(tmp_path):
    with pytest.raises(ValueError, match="png"):
        plots.save(Figure(), tmp_path / "figure.pdf")


def test_no_global_state():
    before = dict(matplotlib.rcParams)
    plots.margin_curves({"train": CURVE}, title="t")
    assert dict(matplotlib.rcParams) == before
    assert all("pyplot" not in vars(module) for module in (drawing, plots, style, paper, case_study))
