"""The networks that the pages on anatomy and cost share, by name, and the setups under which their records are found.

Apart from the trials that use them, so that a longer list leaves the records of the others as they are.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from cnnstudy.config import Refused, Setup, canonical, flatten
from cnnstudy.models.counterfactual import CounterfactualConfig
from cnnstudy.models.shuffle import ShuffleNetConfig
from cnnstudy.models.zoo import COMMON, ZooConfig, native

# Networks that no library names, under the names by which pages share their records; every other name is the zoo's.
NAMED: dict[str, CounterfactualConfig | ShuffleNetConfig] = {
    "alexnet": CounterfactualConfig("alexnet"),
    "mobilenetv1_075": CounterfactualConfig("mobilenetv1_100", width=0.75),
    "mobilenetv1_050": CounterfactualConfig("mobilenetv1_100", width=0.5),
    "mobilenetv1_025": CounterfactualConfig("mobilenetv1_100", width=0.25),
    "mobilenetv1_dense": CounterfactualConfig("mobilenetv1_100", ("dense_layers",)),
    "mobilenetv2_025": CounterfactualConfig("mobilenetv2_100", width=0.25),
    "mobilenetv3_large_050": CounterfactualConfig("mobilenetv3_large_100", width=0.5),
    "mobilenetv3_large_025": CounterfactualConfig("mobilenetv3_large_100", width=0.25),
    "resnet50_basic_wide": CounterfactualConfig("resnet50", ("basic_wide",)),
    **{f"shufflenet_v1_g{g}": ShuffleNetConfig(g) for g in (1, 2, 3, 4, 8)},
    **{f"shufflenet_v1_g{g}_unshuffled": ShuffleNetConfig(g, mix="none") for g in (3, 8)},
}
# What the pages of "Anatomy and cost" count, and what they time; a page may ask for fewer, or for others besides.
COUNTED = (
    "alexnet", "vgg11", "vgg13", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200", "resnet50_basic_wide",
    "resnext50_32x4d", "resnext101_32x4d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    "mobilenetv1_100", "mobilenetv1_075", "mobilenetv1_050", "mobilenetv1_025", "mobilenetv1_dense",
    "mobilenetv2_140", "mobilenetv2_100", "mobilenetv2_075", "mobilenetv2_050", "mobilenetv2_025",
    "mobilenetv3_large_100", "mobilenetv3_large_075", "mobilenetv3_large_050", "mobilenetv3_large_025", "mobilenetv3_small_100",
    *(f"efficientnet_b{i}" for i in range(8)),
    "shufflenet_v1_g1", "shufflenet_v1_g2", "shufflenet_v1_g3", "shufflenet_v1_g4", "shufflenet_v1_g8",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
)  # fmt: skip
TIMED = (
    "vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "wide_resnet50_2",
    "mobilenetv1_100", "mobilenetv1_075", "mobilenetv1_050", "mobilenetv1_025", "mobilenetv1_dense",
    "mobilenetv2_140", "mobilenetv2_100", "mobilenetv2_075", "mobilenetv2_050", "mobilenetv2_025",
    "mobilenetv3_large_100", "mobilenetv3_large_075", "mobilenetv3_large_050", "mobilenetv3_large_025", "mobilenetv3_small_100",
    "efficientnet_b0", "shufflenet_v1_g3", "shufflenet_v1_g3_unshuffled", "shufflenet_v1_g8", "shufflenet_v1_g8_unshuffled",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
)  # fmt: skip


def named(name: str) -> Any:
    """The config of a shared network: one of ``NAMED``, at 224 pixels, or the zoo's of that name at its own resolution."""
    return NAMED.get(name) or native(name)


def at(model: Any, resolution: int | None = None) -> Setup:
    """The setup of a network for ``profiles.zoo_profile`` and ``zoo_memory``: ``model`` and ``resolution``, pixels a side.

    ``model``: a name (see :func:`named`), or a config.  ``resolution`` None: the network's own, 224 for one of ``NAMED``.
    """
    if isinstance(model, str) and model in NAMED:
        model, resolution = NAMED[model], resolution or COMMON
    elif isinstance(model, str):
        model = native(model) if resolution is None else ZooConfig(model, resolution)
    if isinstance(model, ZooConfig):
        if resolution not in (None, model.resolution):
            raise Refused(f"{model.name} has resolution {model.resolution} in its config; got {resolution} beside it")
        resolution = model.resolution
    if resolution is None:
        raise Refused(f"a {type(model).__name__} needs a resolution beside it, e.g. at(config, 224)")
    return Setup(model=model, resolution=resolution)


def timed(model: Any, engine: str = "eager", batch: int = 1, threads: int = 1, runs: int = 30, resolution: int | None = None) -> Setup:
    """The setup of a network for ``stopwatch.zoo_latency``.  ``engine``: see ``stopwatch.ENGINES``; ``threads`` 0: all cores."""
    return Setup(**at(model, resolution).parts, engine=engine, batch=batch, threads=threads, runs=runs)


def labels(frame: pd.DataFrame) -> list[str]:
    """The name of each row's network, as :func:`named` takes it: from the columns ``model.*`` of a frame of records.

    Another edit, width or config than a named one shows as "name+edit" or "name x width".
    """
    forms = {name: flatten(canonical(Setup(model=cfg))) for name, cfg in NAMED.items()}
    columns = [c for c in frame.columns if c.startswith("model.")]
    found = []
    for row in frame[columns].to_dict("records"):
        own = {c: v for c, v in row.items() if isinstance(v, list) or pd.notna(v)}
        found.append(next((name for name, form in forms.items() if form == own), None) or _described(own))
    return found


def _described(own: dict[str, Any]) -> str:
    name = str(own.get("model.name", own["model.kind"]))
    width = own.get("model.width", 1)
    return "+".join([name, *own.get("model.edits", [])]) + ("" if width == 1 else f" x {width}")
