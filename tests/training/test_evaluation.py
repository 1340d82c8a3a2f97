"""What a network is worth: its views averaged, whatever form the clips have."""

import pytest
import torch
from torch import nn
from toy_videos import Toy, ToyLoader, toy_clips

from vidfuse.errors import InputError
from vidfuse.training import TrainRecipe, evaluate, train
from vidfuse.video.datasets import Failure


class Pair(nn.Module):
    """A network that wants the clips of two members of the same videos, as the fused network does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Toy(norm=False, dropout=0.0), Toy(norm=False, dropout=0.0)

    def forward(self, clips):
        return self.a(clips["a"]) + self.b(clips["b"])


class PairLoader(ToyLoader):
    def __iter__(self):
        for clips, ids, labels in super().__iter__():
            yield {"a": clips, "b": -clips}, ids, labels


def test_evaluation_averages_the_log_likelihoods_of_views():
    model = Toy(norm=False).eval()
    loader = ToyLoader(n=30, views=3)
    clips, _, labels = toy_clips(30)
    with torch.no_grad():
        views = torch.stack([model(clips + 0.1 * v).log_softmax(1) for v in range(3)], 1)
    fused = views.mean(1).log_softmax(1)
    scores = evaluate(model, loader)
    assert scores["n"] == 30
    assert scores["top1"] == pytest.approx((fused.argmax(1) == labels).float().mean().item())
    assert scores["nll"] == pytest.approx(-fused[torch.arange(30), labels].mean().item(), rel=1e-5)


def test_a_mapping_of_clips_is_scored_view_by_view():
    torch.manual_seed(0)
    model, (clips, _, labels) = Pair().eval(), toy_clips(30)
    with torch.no_grad():
        views = [model({"a": clips + 0.1 * v, "b": -(clips + 0.1 * v)}).log_softmax(1) for v in range(2)]
    fused = torch.stack(views).mean(0).log_softmax(1)
    scores = evaluate(model, PairLoader(n=30, views=2))
    assert scores["top1"] == pytest.approx((fused.argmax(1) == labels).float().mean().item())
    assert scores["nll"] == pytest.approx(-fused[torch.arange(30), labels].mean().item(), rel=1e-5)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_a_network_of_several_members_clips_trains_and_is_scored(tmp_path, mixing):
    torch.manual_seed(0)
    recipe = TrainRecipe(lr=0.2, epochs=4, batch_size=8, reference_batch=8, precision="float32", **mixing)
    done = train(
        Pair(), PairLoader(), recipe, tmp_path, val_loader=PairLoader(n=30, seed=1), tensorboard=False, progress=False
    )
    assert done.history[-1]["val_nll"] < done.history[0]["val_nll"]


def test_videos_without_labels_or_no_videos_are_refused():
    with pytest.raises(InputError, match="labelled videos"):
        evaluate(Toy(), ToyLoader(labelled=False))
    with pytest.raises(InputError, match="empty loader"):
        evaluate(Toy(), [])


def test_videos_none_of_which_can_be_read_are_named():
    loader = type("Loader", (list,), {"failures": (Failure("a", "it is cut off"),)})()
    with pytest.raises(InputError, match="to evaluate on, got none of 1 that can be read; a: it is cut off"):
        evaluate(Toy(), loader)
