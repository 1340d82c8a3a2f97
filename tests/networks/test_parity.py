"""The published networks' logits, to rounding."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidfuse import networks


def test_layout_is_the_published_one(golden):
    assert golden.digest() == golden.keys_sha256


@pytest.mark.usefixtures("two_threads")
def test_logits_equal_the_published_networks(golden):
    model = networks.create(golden.network, checkpoint=golden.state_dict(), **golden.overrides).eval()
    for label, expected in golden.outputs.items():
        with torch.inference_mode():
            output = model(golden.clips(expected["shape"]))
        if golden.output == "probabilities":
            output = output.softmax(dim=-1)
        values = torch.tensor(expected["values"])
        assert torch.linalg.norm(output - values) < 1e-5 * torch.linalg.norm(values), label


def test_size_and_cost_equal_the_published_networks(golden):
    with torch.device("meta"):
        model = networks.create(golden.network).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.parameters
    if golden.gmacs is not None:
        clips = golden.clips(golden.gmacs_shape).to("meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(clips)
        assert counter.get_total_flops() / 2e9 == pytest.approx(golden.gmacs, rel=5e-3)
