"""Charts over layers: every mark is there, inside its frame, and said in words."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pantomim.report.charts import LAYERS, head_chart, map_chart, share_chart


def marks(chart, tag):
    return [node.attrib for node in ElementTree.fromstring(str(chart)).iter(tag)]


@pytest.mark.parametrize("num_layers", [1, 4, 48])
def test_a_dot_for_each_head_of_each_layer(num_layers):
    distance = np.random.default_rng(0).random((num_layers, 3)) * 100
    chart = head_chart(distance, 80.0, 100.0, "a <name>")
    dots = marks(chart, "circle")
    assert len(dots) == 3 * num_layers
    assert all(0 < float(dot["cx"]) < LAYERS[0] and 0 < float(dot["cy"]) < LAYERS[1] for dot in dots)
    assert "a &lt;name&gt;: mean over heads" in chart


def test_higher_is_farther():
    first, second = marks(head_chart(np.array([[10.0, 90.0]]), 80.0, 100.0, "a"), "circle")
    assert float(first["cy"]) > float(second["cy"])


def test_a_line_for_each_number_of_singular_values():
    chart = share_chart(np.linspace(0.1, 0.3, 5)[None].repeat(4, 0), 0.3, "a")
    assert len(marks(chart, "path")) == 5
    assert re.findall(r"k = (\d)", chart) == ["1", "2", "3", "4", "5"]


def test_a_cell_for_each_pair_of_layers():
    values = np.array([[1.0, 0.996, 0.5], [np.nan, -0.02, 0.25]])
    chart = map_chart(values, "a & b", "c")
    cells = marks(chart, "rect")
    assert len(cells) == 6
    assert cells[0]["fill"] == "#fde725"
    assert cells[4]["fill"] == "#440154"  # below 0 by chance
    texts = re.findall(r'class="cell"[^>]*>([^<]*)<', chart)
    assert texts == ["1.00", "1.00", ".50", "nan", "-.02", ".25"]
    assert "a &amp; b" in chart
    assert "block 1 and 1 (1.00)" in chart
    assert "<title>2, 3: 0.250</title>" in chart
