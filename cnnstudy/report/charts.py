"""Interactive charts: Vega-Lite specifications, with a picture of the same data for readers without JavaScript.

The site draws the specification; GitHub, Colab and a printed page show the picture.  Text and axis colours are the page's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cnnstudy.config import Refused
from cnnstudy.report import theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIME = "application/vnd.vegalite.v6+json"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHAPES = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
}


def front_chart(points: Sequence[Mapping[str, Any]], cost: str, accuracy: str, height: int = 380) -> dict[str, Any]:
    """A scatter of accuracy against cost (logarithmic) with its Pareto front; hovering names a point.

    ``points``: one dict each with ``name``, ``family`` (of the theme), ``front`` (bool), the numbers ``cost`` and ``accuracy``
    (the names of these keys are the axis titles) and whatever else the tooltip should say.  Raises Refused for no points.
    """
    if not points:
        raise Refused("a chart needs at least one point")
    families = list(dict.fromkeys(p["family"] for p in points))
    shapes = [SHAPES.get(theme.marker(f), "cross") for f in families]
    x = {
        "field": cost,
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {"tickCount": 5, "format": "~g"},
        "title": cost,
    }
    y = {"field": accuracy, "type": "quantitative", "scale": {"zero": False}, "title": accuracy}
    look = {"color": {"field": "family", "type": "nominal", "scale": {"domain": families, "range": [theme.family(f) for f in families]}}}
    look["shape"] = {"field": "family", "type": "nominal", "scale": {"domain": families, "range": shapes}}
    said = [key for key in points[0] if key != "front"]
    tips = [{"field": key, "type": "nominal" if isinstance(points[0][key], str) else "quantitative", "title": key} for key in said]
    line = {
        "mark": {"type": "line", "color": "#74777c", "strokeDash": [4, 3]},
        "transform": [{"filter": "datum.front"}],
        "encoding": {"x": x, "y": y},
    }
    dots = {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9}, "encoding": {"x": x, "y": y, **look, "tooltip": tips}}
    return {"$schema": SCHEMA, "width": "container", "height": height, "data": {"values": [dict(p) for p in points]}, "layer": [line, dots]}


def show(spec: Mapping[str, Any], fig: Figure, name: str, alt: str, caption: str) -> None:
    """Show a Vega-Lite chart, with the Matplotlib figure of the same data where charts can't be drawn; see ``show.figure``."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    if not alt.strip() or not caption.strip():
        raise Refused(f"chart {name}: alt and caption must not be empty")
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=theme.DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)
    about = {"alt": alt, "caption": caption}  # two labels: the site reads both forms before it chooses one
    picture = base64.b64encode(out.getvalue()).decode()
    metadata = {MIME: about | {"name": name}, "image/png": about | {"name": f"{name}-picture"}}
    display({MIME: dict(spec), "image/png": picture, "text/plain": alt}, metadata=metadata, raw=True)
