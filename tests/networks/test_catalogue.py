"""The catalogue: light to import, helpful when a name is wrong."""

import subprocess
import sys

import numpy as np
import pytest

from vidfuse import networks
from vidfuse.errors import InputError


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_listing_the_networks_imports_no_torch():
    code = (
        "import sys, vidfuse.networks as n; assert n.names('x3d*') and n.info('x3d_m').frames == 16;"
        "assert not {'torch', 'timm', 'numpy', 'einops'} & set(sys.modules)"
    )
    assert run(code).returncode == 0


@pytest.mark.parametrize(("package", "name"), [("torch", "x3d_tiny"), ("timm", "timesformer_tiny")])
def test_a_missing_package_names_the_extra(package, name):
    code = f"import sys; sys.modules[{package!r}] = None\nimport vidfuse.networks as n; n.create({name!r})"
    result = run(code)
    assert "MissingExtraError" in result.stderr
    assert "vidfuse[networks]" in result.stderr


def test_names_match_a_pattern_and_are_sorted():
    assert networks.names("x3d_xs*") == ["x3d_xs", "x3d_xs.pytorchvideo"]
    assert networks.names() == sorted(networks.names())
    assert networks.names("resnet*") == []


def test_an_unknown_name_suggests_known_ones():
    with pytest.raises(InputError, match=r"x3d_m\.pytorchvideo"):
        networks.info("x3d_m.pytorchvide")
    with pytest.raises(InputError, match="names"):
        networks.create("?")


def test_an_unknown_setting_lists_the_known_ones():
    with pytest.raises(InputError, match=r"no setting drop; its settings are .*dropout"):
        networks.create("x3d_tiny", drop=0.1)


def test_a_setting_of_few_values_lists_them():
    with pytest.raises(InputError, match="attention: expected one of 'divided', 'joint', 'space', got 'jiont'"):
        networks.create("timesformer_tiny", attention="jiont")
    assert networks.create("timesformer_tiny", attention="joint").config.attention == "joint"


def test_a_class_count_of_numpys_will_do():
    assert networks.create("x3d_tiny", num_classes=np.int64(5)).classifier.out_features == 5


@pytest.mark.parametrize("count", [0, 1, 2.0, True, "2"])
def test_a_class_count_must_be_an_integer_of_at_least_two(count):
    with pytest.raises(InputError, match="num_classes"):
        networks.create("x3d_tiny", num_classes=count)


def test_settings_reach_the_network():
    assert networks.create("x3d_tiny", dropout=0.25).dropout.p == 0.25


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="resnet"):
        _ = networks.resnet
