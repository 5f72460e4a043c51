import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models.zoo import ZooConfig, native, zoo
from cnnstudy.probes.attribution import against, basic_blocks, count_on, counted, headline, mobilenet_parts, saved


def test_headline_of_vgg16_by_hand() -> None:
    """13 convolutions of 3x3 and three linear layers, from the published table of the network."""
    widths = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56)]
    widths += [(256, 512, 28), (512, 512, 28), (512, 512, 28), (512, 512, 14), (512, 512, 14), (512, 512, 14)]
    convs = [9 * a * b * size * size for a, b, size in widths]
    linear = 25088 * 4096 + 4096 * 4096 + 4096 * 1000
    found = headline(native("vgg16"))
    assert found["macs"] == sum(convs) + linear == found["macs_224"]
    assert found["flops"] == 2 * found["macs"]
    assert found["share_by_operator"] == pytest.approx({"3x3": sum(convs) / found["macs"], "fc": linear / found["macs"]})
    assert found["share_by_channels"]["512"] == pytest.approx(sum(convs[7:]) / found["macs"])
    assert sum(found["share_by_size"].values()) == pytest.approx(1)
    assert found["memory_mb"] > 4 * found["params"] / 1e6


def test_the_common_resolution_differs_from_the_own() -> None:
    found = headline(native("efficientnet_b3"))
    assert found["macs"] > 1.5 * found["macs_224"]
    assert sum(found["share_by_operator"].values()) == pytest.approx(1)
    assert found["share_by_operator"]["SE gate"] < 0.01


def test_a_printed_cost_is_compared_in_both_units() -> None:
    macs = counted(native("resnet18"))["macs"]
    found = against(2 * macs, native("resnet18"))
    assert (found["macs_error_share"], found["flops_error_share"]) == (1, 0)
    assert found["factor_at_224"] == against(macs / 2, native("resnet18"))["factor_at_224"] == 2


def test_a_real_pass_counts_as_much_as_none() -> None:
    small = ZooConfig("mobilenetv3_small_100", 64)
    assert count_on(small, 1, "meta", "float32") == count_on(small, 2, "cpu", "bfloat16")
    with pytest.raises(Refused, match="precision"):
        count_on(small, 1, "cpu", "int4")


def test_the_parts_of_a_mobilenet_are_all_of_it() -> None:
    for name in ("mobilenetv2_100", "mobilenetv3_large_100"):
        assert sum(mobilenet_parts(native(name)).values()) == counted(native(name))["macs"]
    found = saved(native("mobilenetv2_100"), native("mobilenetv3_large_100"))
    parts = [v for k, v in found.items() if k.endswith("_saved_macs")]
    assert (
        sum(parts) == found["saved_macs"] == counted(native("mobilenetv2_100"))["macs"] - counted(native("mobilenetv3_large_100"))["macs"]
    )
    assert found["stem_saved_macs"] == (32 - 16) * 27 * 112 * 112
    assert found["gates_saved_macs"] < 0 < found["body_share"] < found["body_and_first_block_share"]


def test_blocks_are_counted_with_their_convolutions() -> None:
    with torch.device("meta"):
        found = [basic_blocks(zoo(native(name))) for name in ("resnet18", "resnet50", "vgg11")]
    assert found[0] == {"blocks": 8, "kind": "BasicBlock", "convs_3x3": [2] * 8, "other_convs": 0}
    assert (found[1]["blocks"], found[1]["kind"], found[1]["other_convs"]) == (16, "Bottleneck", 32)
    assert found[2] == {"blocks": 0, "kind": "", "convs_3x3": [], "other_convs": 0}
