import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from numpy.testing import assert_allclose, assert_array_equal

from jaxmargin.lab.figures import style
from runs.mma import figures
from runs.mma.toy_classifier import Steps

RNG = np.random.default_rng(0)
FIRST, SECOND = np.linspace(-1.0, 2.0, 7), np.linspace(-1.0, 1.0, 5)
HEIGHTS = FIRST[:, None] - 0.5 + 0.1 * SECOND**2
PLANE = (FIRST, SECOND, HEIGHTS + 0.2, -HEIGHTS)
SPREAD = {"mma-2": RNG.normal(2.0, 0.4, 100), "pgd-1": RNG.normal(1.0, 0.3, 80)}
XS = np.linspace(0.0, 2.0, 9)
RESULT = Steps(
    xs=XS,
    before=XS - 1.0,
    places=np.array([0.0, 1.0, 1.7]),
    after=np.stack([XS - 0.9, XS - 1.2, XS - 1.1]),
    margins_at=np.array([0.9, 1.2, 1.1]),
    margin=np.array(1.0),
    locations=XS,
    margins=1.2 - 0.3 * (XS - 1.0) ** 2,
    first_order=1.2 - 0.29 * (XS - 1.0) ** 2,
)
# Each figure of a dict with a valid entry of it.
DRAW = {
    "distances": (figures.margin_spread, SPREAD),
    "grids": (figures.landscapes, PLANE),
}


def many(value, size):
    return {f"step {number}": value for number in range(size)}


def titles(figure):
    return [axes.get_title(loc="left").strip() for axes in figure.axes]


def notes(figure):
    return [axes.get_title(loc="right") for axes in figure.axes]


def legend(figure):
    return {text.get_text(): line for text, line in zip(figure.legends[0].get_texts(), handles(figure), strict=True)}


def handles(figure):
    return figure.legends[0].legend_handles


def outlines(axes):
    """The histograms of a panel without their fillings: colour to (heights, edges)."""
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch) and not patch.get_fill()]
    return {to_hex(patch.get_edgecolor()): patch.get_data()[:2] for patch in steps}


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.mark.parametrize("argument", DRAW)
def test_every_figure_draws_and_names_its_empty_argument(argument):
    draw, value = DRAW[argument]
    figure = draw({"one": value}, title="t")
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "t"
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match=f"^{argument} is empty"):
        draw({}, title="t")


def test_every_figure_is_tested():
    assert {draw.__name__ for draw, _ in DRAW.values()} | {"toy_classifier"} == set(figures.__all__)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("argument", DRAW)
def test_text_stays_inside_the_figure_and_off_other_text(argument, size):
    draw, value = DRAW[argument]
    broken = {**value, "trades with a rather long name": [np.inf]} if argument == "distances" else value
    figure = draw(many(broken, size), title="A long title in many words. " * 8)
    figure.draw_without_rendering()
    boxes = [artist.get_window_extent() for artist in (*figure.legends, figure._suptitle)]
    boxes += [axes.get_tightbbox() for axes in figure.axes]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 + 1 and box.x1 <= figure.bbox.x1 + 1, box
        assert figure.bbox.y0 <= box.y0 + 1 and box.y1 <= figure.bbox.y1 + 1, box
    for axes in figure.axes[:size]:
        left, right = axes._left_title.get_window_extent(), axes._right_title.get_window_extent()
        assert not right.width or left.x1 < right.x0 or axes.get_title(loc="left").endswith("\n")
        assert axes.get_tightbbox().y0 > boxes[0].y1 - 1  # the legend lies below


@pytest.mark.parametrize("argument", DRAW)
@pytest.mark.parametrize("size, shape", [(1, (1, 1)), (4, (1, 4)), (5, (1, 5)), (6, (2, 3)), (7, (2, 4))])
def test_panels_stand_in_rows_on_common_axes_labelled_at_the_outside(argument, size, shape):
    draw, value = DRAW[argument]
    figure = draw(many(value, size), title="t")
    row = figure.axes[:size]
    grid = row[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    assert titles(figure)[:size] == list(many(value, size))
    assert len({axes.get_xlim() for axes in row}) == len({axes.get_ylim() for axes in row}) == 1
    assert all(axes.get_xlabel() for axes in row[-grid.ncols :])
    assert [bool(axes.get_ylabel()) for axes in row] == [place % grid.ncols == 0 for place in range(size)]


# margin_spread


def test_a_method_has_one_colour_in_all_panels_and_in_the_legend():
    spread = {"step 1": SPREAD, "step 2": dict(reversed(SPREAD.items())), "step 3": {"pgd-1": SPREAD["pgd-1"]}}
    epsilons = {"pgd-1": 1.0, "mma-2": 2.0}
    figure = figures.margin_spread(spread, title="t", epsilons=epsilons)
    colours = {method: handle.get_color() for method, handle in legend(figure).items()}
    assert list(colours) == ["mma-2", "pgd-1", "epsilon or d_max"]
    assert len(set(colours.values())) == 3
    for axes, methods in zip(figure.axes, spread.values(), strict=True):
        drawn = outlines(axes)
        assert set(drawn) == {colours[method] for method in methods}
        for method, values in methods.items():
            heights, edges = drawn[colours[method]]
            assert_allclose(heights, 100 * np.histogram(values, edges)[0] / len(values))
        dotted = {line.get_color(): line.get_xdata()[0] for line in axes.get_lines()}
        assert dotted == {colours[method]: epsilon for method, epsilon in epsilons.items()}


def test_the_colours_of_many_methods_differ_and_known_names_keep_theirs():
    methods = ("mma-1", "mma-2", "mma-3", "pgd-1", "pgd-2", "std")
    figure = figures.margin_spread({"step 1": dict.fromkeys(methods, [1.0])}, title="t")
    colours = {method: handle.get_color() for method, handle in legend(figure).items()}
    assert len(set(colours.values())) == len(methods)
    assert colours["mma-1"] == style.LOOKS["mma"].colour
    nine = dict.fromkeys(map(str, range(9)), [1.0])  # more than there are colours: they repeat
    assert list(legend(figures.margin_spread({"step 1": nine}, title="t"))) == list(nine)


def test_methods_share_their_bins_which_begin_at_zero():
    spread = {"step 1": {"mma-2": [0.5, 3.0]}, "step 2": {"mma-2": [0.7], "pgd-1": [1.0]}}
    figure = figures.margin_spread(spread, title="t", bins=12)
    edges = [edges for axes in figure.axes for _, edges in outlines(axes).values()]
    assert len(edges) == 3
    for row in edges:
        assert_allclose(row, np.linspace(0.0, 3.0, 13))


def test_what_is_not_finite_is_counted_and_stays_in_the_shares():
    spread = {"step 1": {"a": [np.inf, 1.0, 2.0, np.nan], "b": [-np.inf, 1.0]}, "step 2": {"a": [1.0], "b": []}}
    figure = figures.margin_spread(spread, title="t")
    assert notes(figure) == ["3 not finite", ""]
    assert [[heights.sum() for heights, _ in outlines(axes).values()] for axes in figure.axes] == [[50, 50], [100, 0]]
    figure.draw_without_rendering()


def test_the_share_of_zeros_is_written_in_the_colour_of_its_method():
    spread = {"step 1": {"a": [0.0, 1.0, 0.0, 2.0], "b": [1.0, 2.0]}, "step 2": {"a": [1.0], "b": [0.0, -1.0, 1.0]}}
    figure = figures.margin_spread(spread, title="t")
    colours = {method: handle.get_color() for method, handle in legend(figure).items()}
    said = [[(text.get_text(), text.get_color()) for text in axes.texts] for axes in figure.axes]
    assert said == [[("50% at 0", colours["a"])], [("33% at 0", colours["b"])]]
    assert outlines(figure.axes[0])[colours["a"]][0].sum() == 50
    assert_allclose(outlines(figure.axes[1])[colours["b"]][0].sum(), 200 / 3)  # a negative distance has its bar
    figure.draw_without_rendering()


def test_methods_with_one_epsilon_take_turns_along_it():
    figure = figures.margin_spread({"step 1": SPREAD}, title="t", epsilons={"mma-2": 2.0, "pgd-1": 2.0})
    (first, ons), (second, same) = (line._unscaled_dash_pattern for line in figure.axes[0].get_lines())
    assert_allclose(ons, same)
    assert_allclose((first - second) % sum(ons), sum(ons) / 2)
    figure.draw_without_rendering()


@pytest.mark.parametrize("values", [[], [np.inf], [0.0, 0.0], [0.7] * 9, [-1.0, 2.0], [1e-9]])
@pytest.mark.parametrize("bins", [1, 2, 40])
def test_any_distances_draw(values, bins):
    figure = figures.margin_spread({"step 1": {"mma-2": values}}, title="t", bins=bins)
    figure.draw_without_rendering()
    ((heights, _),) = outlines(figure.axes[0]).values()
    drawn = np.isfinite(values) & (np.array(values) != 0)
    assert_allclose(heights.sum(), 100 * drawn.sum() / max(len(values), 1))


@pytest.mark.parametrize(
    "spread, options, match",
    [
        ({"broken": {}}, {}, r"distances\['broken'\] is empty"),
        ({"step 1": {"broken": [[1.0]]}}, {}, "'step 1, broken' has an array of shape"),
        ({"step 1": SPREAD}, {"epsilons": {"trades": 1.0}}, "epsilons has trades: distances has mma-2, pgd-1"),
        ({"step 1": SPREAD}, {"bins": 0}, "bins=0"),
    ],
)
def test_a_spread_that_cannot_be_drawn_is_named(spread, options, match):
    with pytest.raises(ValueError, match=match):
        figures.margin_spread(spread, title="t", **options)


# landscapes


def boundaries(axes):
    """The vertices of the thick line, [v, 2]; none where there is no such line."""
    thick = [drawn for drawn in axes.collections if np.max(drawn.get_linewidths(), initial=0.0) > 2]
    return np.concatenate([path.vertices for drawn in thick for path in drawn.get_paths()] or [np.empty((0, 2))])


def test_landscapes_have_one_scale_of_colours_centred_at_zero_and_their_bar():
    low = (FIRST, SECOND, 4.0 * PLANE[2], PLANE[3])
    figure = figures.landscapes({"mma-2": PLANE, "std": low}, title="t")
    *row, bar = figure.axes
    fillings = [axes.collections[0] for axes in row]
    assert_array_equal(fillings[0].levels, fillings[1].levels)
    assert {filling.get_clim() for filling in fillings} == {(-fillings[0].norm.vmax, fillings[0].norm.vmax)}
    levels = fillings[0].levels
    assert 0.0 in levels
    assert levels[0] <= low[2].min() and low[2].max() <= levels[-1]
    assert bar.get_ylabel() == "soft margin loss"
    assert row[0].get_xlabel() == "along the attack" and row[0].get_ylabel() == "random, orthogonal"


def test_landscapes_mark_the_boundary_and_the_point():
    figure = figures.landscapes({"mma-2": PLANE}, title="t")
    (x, y) = boundaries(figure.axes[0]).T
    inside = np.interp(y, SECOND, 0.5 - 0.1 * SECOND**2)
    assert_allclose(x, inside, atol=0.02)  # the zero of the margin, along the first direction
    assert y.min() == -1.0 and y.max() == 1.0
    (point,) = figure.axes[0].get_lines()
    assert_array_equal(point.get_xydata(), [[0.0, 0.0]])
    assert list(legend(figure)) == ["decision boundary", "the point"]


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0, np.nan, np.inf])
def test_landscapes_without_a_boundary_draw(value):
    figure = figures.landscapes({"mma-2": (FIRST, SECOND, *2 * [np.full((7, 5), value)])}, title="t")
    figure.draw_without_rendering()
    assert not len(boundaries(figure.axes[0]))
    assert notes(figure)[0] == ("" if np.isfinite(value) else "35 not finite")


def test_landscapes_count_what_is_not_finite():
    values = PLANE[2].copy()
    values[0, :2] = np.nan, np.inf
    figure = figures.landscapes({"mma-2": (FIRST, SECOND, values, PLANE[3]), "std": PLANE}, title="t")
    figure.draw_without_rendering()
    assert notes(figure)[:2] == ["2 not finite", ""]


@pytest.mark.parametrize(
    "grid",
    [
        (FIRST, SECOND, PLANE[2].T, PLANE[3]),
        (FIRST, SECOND, PLANE[2], PLANE[3][:-1]),
        (FIRST[:-1], SECOND, *PLANE[2:]),
        ([1.0], [1.0], [[1.0]], [[1.0]]),
        (FIRST, [], [], []),
    ],
)
def test_landscapes_that_cannot_be_drawn_are_named(grid):
    with pytest.raises(ValueError, match="'broken' has values of shape"):
        figures.landscapes({"std": PLANE, "broken": grid}, title="t")


# toy_classifier


def test_toy_classifier_draws_the_curves_and_marks_the_boundaries():
    figure = figures.toy_classifier(RESULT, title="t")
    figure.draw_without_rendering()
    left, right = figure.axes
    drawn = lines(left)
    labels = ["step at 0, the point itself", "step at 1, the boundary", "step at 1.7, beyond it"]
    assert set(legend(figure)) == {"boundary before a step", "loss before a step", "change to first order", *labels}
    assert_allclose(drawn["loss before a step"].get_ydata(), RESULT.before)
    marks = {line.get_color(): line.get_xydata()[0] for line in left.get_lines() if line.get_marker() == "o"}
    changes = {line.get_color(): line.get_xydata()[0] for line in right.get_lines() if line.get_marker() == "o"}
    for label, curve, place, margin in zip(labels, RESULT.after, RESULT.places, RESULT.margins_at, strict=True):
        assert_allclose(drawn[label].get_ydata(), curve)
        assert_allclose(marks[drawn[label].get_color()], (margin, 0.0))
        assert_allclose(changes[drawn[label].get_color()], (place, margin - 1.0))
    assert_allclose(marks[drawn["loss before a step"].get_color()], (1.0, 0.0))
    assert len({line.get_color() for line in map(drawn.get, ("loss before a step", *labels))}) == 4


def test_toy_classifier_draws_the_change_of_the_margin_with_the_boundary_marked():
    _, right = figures.toy_classifier(RESULT, title="t").axes
    drawn = lines(right)
    assert_allclose(drawn["_change"].get_ydata(), RESULT.margins - 1.0)
    assert_allclose(drawn["change to first order"].get_ydata(), RESULT.first_order - 1.0)
    assert_array_equal(drawn["boundary before a step"].get_xdata(), [1.0, 1.0])
    (lowered,) = right.collections
    heights = lowered.get_paths()[0].vertices[:, 1]
    assert heights.min() < 0 and heights.max() == 0


def test_toy_classifier_names_any_places():
    result = RESULT._replace(places=np.array([0.5]), after=RESULT.after[:1], margins_at=RESULT.margins_at[:1])
    assert "step at 0.5, before it" in legend(figures.toy_classifier(result, title="t"))


def test_toy_classifier_counts_the_margins_without_end():
    margins = np.where(XS > 1.5, np.inf, RESULT.margins)
    result = RESULT._replace(margins=margins, margins_at=np.array([0.9, 1.2, np.inf]))
    figure = figures.toy_classifier(result, title="t")
    figure.draw_without_rendering()
    assert notes(figure) == ["", "2 not finite"]


@pytest.mark.parametrize("field", ["before", "margins", "first_order", "locations", "margins_at", "after"])
def test_toy_classifier_of_unequal_lengths_is_refused(field):
    with pytest.raises(ValueError, match="must agree"):
        figures.toy_classifier(RESULT._replace(**{field: getattr(RESULT, field)[..., :-1]}), title="t")


def test_no_global_state():
    before = dict(matplotlib.rcParams)
    figures.margin_spread({"step 1": SPREAD}, title="t")
    figures.landscapes({"mma-2": PLANE}, title="t")
    assert dict(matplotlib.rcParams) == before
