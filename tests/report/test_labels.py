"""Names at curves: moved apart at their ends, and along lines where nothing else is."""

import numpy as np
import pytest
from matplotlib.text import Text

from lensbench.report.labels import MOST_AT_ENDS, Named, label_ends, label_lines, settle, spread
from lensbench.report.style import new_figure, plot_style


def test_labels_are_moved_apart_in_order() -> None:
    places = spread([0.5, 0.51, 0.1, 0.52], 0.1, 0.0, 1.0)
    assert sorted(range(4), key=places.__getitem__) == [2, 0, 1, 3]
    assert min(np.diff(sorted(places))) > 0.0999
    assert spread([], 0.1, 0.0, 1.0) == []


@pytest.mark.parametrize("methods", [2, MOST_AT_ENDS])
def test_names_at_ends_do_not_overlap_however_many_there_are(methods: int) -> None:
    with plot_style():
        figure = new_figure((3.3, 2.2))
        axis = figure.subplots()
        axis.plot([0, 30], [0, 1])
        settle(axis)
        names = [f"chain_of_thought_lens_{place}" for place in range(methods)]
        label_ends(axis, [(name, 0.5) for name in names], dict.fromkeys(names, "black"))
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the arrows
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_name_stands_beside_its_own_line_and_on_no_other() -> None:
    with plot_style():
        figure = new_figure((3.3, 2.2))
        axis = figure.subplots()
        level = axis.axhline(0.5)
        (rising,) = axis.plot(np.arange(31), np.linspace(0.1, 0.9, 31))
        axis.plot(np.arange(31), np.full(31, 0.62))
        axis.set_ylim(0, 1)
        settle(axis)
        label_lines(axis, [Named(level, "the level line", {"fontsize": 7}), Named(rising, "rising", {"fontsize": 7})])
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in axis.texts]
        frame = axis.get_window_extent()
        curves = [line.get_transform().transform(np.column_stack(
            [np.linspace(*line.get_xdata()[[0, -1]], 999) if len(line.get_xdata()) > 2 else np.linspace(0, 1, 999),
             np.interp(np.linspace(0, 1, 999), np.linspace(0, 1, len(line.get_ydata())), line.get_ydata())]))
            for line in (axis.lines[0], axis.lines[1], axis.lines[2])]  # fmt: skip
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.contains(*point) for points in curves for point in points)
