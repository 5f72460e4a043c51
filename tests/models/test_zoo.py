import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models.zoo import FROM_TORCHVISION, ZooConfig, native, zoo


def test_a_network_comes_at_the_resolution_of_its_publication() -> None:
    assert native("efficientnet_b7") == ZooConfig("efficientnet_b7", 600)
    assert native("vgg16").resolution == 224


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_both_libraries_give_networks_for_1000_classes(name: str) -> None:
    with torch.device("meta"):
        network = zoo(native(name))
    assert network.eval()(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_edits_reach_timm() -> None:
    with torch.device("meta"):
        plain, edited = (zoo(ZooConfig("vgg16", edits=e)) for e in ((), ("gap_head",)))
    assert sum(p.numel() for p in edited.parameters()) < sum(p.numel() for p in plain.parameters()) / 5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="unknown network 'squeezenet1_2'.*closest: squeezenet1_"):
        zoo(ZooConfig("squeezenet1_2"))
    with pytest.raises(Refused, match="resolution 0 of resnet50"):
        ZooConfig("resnet50", 0)
    with pytest.raises(Refused, match="takes no edits; got no_se"):
        ZooConfig(FROM_TORCHVISION[0], edits=("no_se",))
