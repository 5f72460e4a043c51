"""Shared networks: one name, one config, one key."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from cnnstudy import networks
from cnnstudy.config import Refused, canonical, flatten, key
from cnnstudy.models import CounterfactualConfig, ResNetConfig
from cnnstudy.models.torchvision_mend import import_timm
from cnnstudy.models.zoo import FROM_TORCHVISION, ZooConfig, native
from cnnstudy.probes.tape import network


def test_setups() -> None:
    assert key("zoo_profile", networks.at(native("vgg16")), 0) == key("zoo_profile", networks.at(ZooConfig("vgg16", 224)), 0)
    assert networks.at(ResNetConfig(), 32).resolution == 32
    assert key("zoo_profile", networks.at("vgg16"), 0) == key("zoo_profile", networks.at(native("vgg16")), 0)
    assert [networks.at("efficientnet_b7", r).resolution for r in (None, 224)] == [600, 224]
    assert networks.at("alexnet").resolution == 224 and networks.at("alexnet").model == CounterfactualConfig("alexnet")
    with pytest.raises(Refused, match="needs a resolution"):
        networks.at(ResNetConfig())
    with pytest.raises(Refused, match="has resolution 224"):
        networks.at(native("vgg16"), 192)


def test_every_shared_network_can_be_built_and_has_one_name() -> None:
    assert set(networks.TIMED) - {n for n in networks.NAMED if "unshuffled" in n} <= set(networks.COUNTED)
    forms = [json.dumps(canonical(networks.at(name)), sort_keys=True) for name in {*networks.COUNTED, *networks.TIMED}]
    assert len(set(forms)) == len(forms)
    for name in networks.NAMED:
        network(networks.named(name), "meta", training=False)
    known = set(import_timm().list_models()) | set(FROM_TORCHVISION)
    assert {n for n in networks.COUNTED if n not in networks.NAMED} <= known
    assert not set(networks.NAMED) & known - {"alexnet"}  # a name that a library has means the library's network


def test_labels_name_the_rows_again() -> None:
    names = [*networks.NAMED, "vgg16", "shufflenet_v2_x1_0"]
    setups = [networks.at(n) for n in names] + [networks.at(CounterfactualConfig("resnet50", ("no_skip",)), 224)]
    frame = pd.DataFrame([flatten(canonical(s)) for s in setups])  # with NaN where a config has no such field
    assert networks.labels(frame) == [*names, "resnet50+no_skip"]
    narrow = pd.DataFrame([flatten(canonical(networks.at(CounterfactualConfig("mobilenetv1_100", width=0.6), 224)))])
    assert networks.labels(narrow) == ["mobilenetv1_100 x 0.6"]
