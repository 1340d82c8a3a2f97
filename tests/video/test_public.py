"""The package's face: every listed name loads, and importing it loads nothing heavy."""

import subprocess
import sys

import pytest

import vidfuse.video


@pytest.mark.parametrize("name", vidfuse.video.__all__)
def test_every_listed_name_loads(name):
    assert getattr(vidfuse.video, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_here"):
        vidfuse.video.nothing_here  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, vidfuse.video; print([m for m in ('numpy', 'torch', 'av', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
