"""Charts as inline SVG: Vega-Lite specifications, rendered by vl-convert (no browser, no network).

Colours are CSS variables and fonts are inherited, so that a chart follows the page's theme. Knows lines, bands, ranges
and axes; does NOT know metrics, languages or the page around it. Renders in about 0.1 s a chart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import vl_convert

VERSION = "5.21"  # of Vega-Lite, among those that vl-convert carries
HEIGHT = 150


class Dot(msgspec.Struct, frozen=True):
    """One value; `low` and `high` are its interval, None without one; `label` is what hovering over it says."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """`colour` is a CSS colour, a variable as a rule; `shape` a Vega symbol, so that colour is never the only sign."""

    dots: Sequence[Dot]
    colour: str
    shape: str = "circle"
    dashed: bool = False


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Axes, and what is marked along x: `shade` a range, `rule` one value, `bar` a range drawn on the x axis."""

    x: tuple[float, float]
    y: tuple[float, float] | None = None  # None: from 0 to whatever is needed
    percent: bool = False
    shade: tuple[float, float] | None = None
    rule: float | None = None
    bar: tuple[float, float] | None = None
    zero: bool = True
    width: int = 285  # of the plot, in CSS pixels at its natural size


def draw(lines: Sequence[Line], frame: Frame) -> str:
    """The chart as an `<svg>` element that scales with its container."""
    svg: str = vl_convert.vegalite_to_svg(specification(lines, frame), vl_version=VERSION)
    # a <title> inside a mark is the tooltip that needs no script
    svg = re.sub(
        r'<path aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="point"([^>]*)/>',
        r'<path role="img" aria-label="\1"\2><title>\1</title></path>',
        svg,
    )
    svg = re.sub(r' (?:aria-roledescription|xmlns:xlink|pointer-events|class)="[^"]*"', "", svg)
    svg = re.sub(r'<path [^>]*(?:d=""|h0v0h0Z")[^>]*/>|(?<=<g) role="graphics-(?:object|symbol)"', "", svg)
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)


def specification(lines: Sequence[Line], frame: Frame) -> dict[str, Any]:
    """The Vega-Lite specification of one chart."""
    layers = [*_marks(frame), *(layer for line in lines for layer in _band(line)), *(_stroke(line) for line in lines)]
    return {
        "width": frame.width,
        "height": HEIGHT,
        "padding": 2,
        "background": None,
        "config": {
            "font": "inherit",
            "view": {"stroke": None},
            "axis": {
                "gridColor": "var(--grid)", "domainColor": "var(--edge)", "tickColor": "var(--edge)",
                "labelColor": "var(--soft)", "labelFontSize": 11, "title": None, "tickSize": 4,
            },
        },
        "encoding": {"x": _axis_x(frame), "y": _axis_y(frame)},
        "layer": layers,
    }  # fmt: skip


def _axis_x(frame: Frame) -> dict[str, Any]:
    return {
        "type": "quantitative",
        "field": "x",
        "scale": {"domain": list(frame.x), "nice": False, "zero": False},
        "axis": {"grid": False, "tickCount": 6, "format": ".3~g"},
    }


def _axis_y(frame: Frame) -> dict[str, Any]:
    scale: dict[str, Any] = {"zero": frame.zero, "nice": True}
    if frame.y is not None:
        scale = {"domain": list(frame.y), "nice": False}
    axis = {"tickCount": 4, "format": ".1~%" if frame.percent else ".3~g", "domain": False, "ticks": False}
    axis |= {"minExtent": 30, "maxExtent": 30}  # the same frame whatever the labels
    return {"type": "quantitative", "field": "y", "scale": scale, "axis": axis}


def _marks(frame: Frame) -> list[dict[str, Any]]:
    low, high = frame.x

    def inside(value: float) -> float:
        return min(max(value, low), high)

    layers: list[dict[str, Any]] = []
    if frame.shade is not None:
        ends = {"a": inside(frame.shade[0]), "b": inside(frame.shade[1])}
        mark = {"type": "rect", "fill": "var(--shade)", "y": 0, "y2": HEIGHT}
        layers.append(_span(ends, mark))
    if frame.bar is not None:
        ends = {"a": inside(frame.bar[0]), "b": inside(frame.bar[1])}
        mark = {"type": "rect", "fill": "var(--good)", "y": HEIGHT - 5, "y2": HEIGHT, "cornerRadius": 2}
        layers.append(_span(ends, mark))
    if frame.rule is not None and low <= frame.rule <= high:
        mark = {"type": "rule", "stroke": "var(--soft)", "strokeDash": [3, 3], "y": 0, "y2": HEIGHT}
        layers.append(
            {"data": {"values": [{"x": frame.rule}]}, "mark": mark, "encoding": {"x": {"field": "x"}, "y": None}}
        )
    return layers


def _span(ends: dict[str, float], mark: dict[str, Any]) -> dict[str, Any]:
    if ends["b"] - ends["a"] < 0.02:  # a single temperature still has to be seen
        ends = {"a": ends["a"] - 0.01, "b": ends["b"] + 0.01}
    encoding = {"x": {"field": "a", "type": "quantitative"}, "x2": {"field": "b"}, "y": None}
    return {"data": {"values": [ends]}, "mark": mark, "encoding": encoding}


def _band(line: Line) -> list[dict[str, Any]]:
    values = [{"x": dot.x, "y": dot.low, "high": dot.high} for dot in line.dots if dot.low is not None]
    mark = {"type": "area", "fill": line.colour, "fillOpacity": 0.16, "interpolate": "linear"}
    return [{"data": {"values": values}, "mark": mark, "encoding": {"y2": {"field": "high"}}}] if values else []


def _stroke(line: Line) -> dict[str, Any]:
    values = [{"x": dot.x, "y": dot.y, "label": dot.label} for dot in line.dots]
    stroke = {
        "type": "line",
        "stroke": line.colour,
        "strokeWidth": 2,
        **({"strokeDash": [4, 3]} if line.dashed else {}),
    }
    point = {"type": "point", "filled": True, "opacity": 1, "size": 34, "color": line.colour, "shape": line.shape}
    return {
        "data": {"values": values},
        "layer": [{"mark": stroke}, {"mark": point, "encoding": {"description": {"field": "label"}}}],
    }
