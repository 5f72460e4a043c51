import json

import matplotlib.pyplot as plt
import pytest

from cnnstudy.config import Refused
from cnnstudy.report import charts

POINTS = [
    {"name": "vgg16", "family": "vgg", "front": False, "GMACs": 15.5, "top-1": 71.6},
    {"name": "resnet18", "family": "resnet", "front": True, "GMACs": 1.8, "top-1": 69.8},
]


def test_a_front_chart_is_plain_json_with_one_look_for_each_family() -> None:
    spec = charts.front_chart(POINTS, "GMACs", "top-1")
    assert json.loads(json.dumps(spec)) == spec
    line, dots = spec["layer"]
    assert line["transform"] == [{"filter": "datum.front"}]
    assert dots["encoding"]["shape"]["scale"] == {"domain": ["vgg", "resnet"], "range": ["diamond", "circle"]}
    assert [t["title"] for t in dots["encoding"]["tooltip"]] == ["name", "family", "GMACs", "top-1"]


def test_a_chart_comes_with_a_picture_and_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict = {}
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.update(data=data, metadata=metadata))
    charts.show(charts.front_chart(POINTS, "GMACs", "top-1"), plt.figure(), "fig-x", "What one sees.", "What it is.")
    assert set(shown["data"]) == {charts.MIME, "image/png", "text/plain"}
    assert shown["metadata"][charts.MIME] == {"alt": "What one sees.", "caption": "What it is.", "name": "fig-x"}
    with pytest.raises(Refused, match="must not be empty"):
        charts.show({}, plt.figure(), "fig-x", " ", "x")
    with pytest.raises(Refused, match="at least one point"):
        charts.front_chart([], "a", "b")
    plt.close("all")
