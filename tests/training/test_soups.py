"""Weight averaging: exact means, statistics of the averaged network, and a greedy choice that algorithm 1 makes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toy_videos import ToyLoader, same_state, state_of, toy

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training import TrainRecipe, evaluate, train
from vidfuse.training.soups import average_weights, recompute_statistics, soup

QUIET = {"progress": False, "tensorboard": False}
RECIPE = TrainRecipe(lr=0.05, epochs=3, batch_size=8, reference_batch=8, precision="float32")


def runs(folder, n=3, seed=0):
    """Fine-tune one initialisation n times, by other orders and rates."""
    start = toy(seed)
    for number in range(n):
        recipe = TrainRecipe(**{**vars(RECIPE), "lr": 0.02 * (number + 1), "seed": number})
        train(copy.deepcopy(start), ToyLoader(seed=number), recipe, folder / f"run{number}", **QUIET)
    return [folder / f"run{number}" for number in range(n)]


def test_the_uniform_average_is_the_mean_of_the_weights_to_the_last_bit(tmp_path):
    folders = runs(tmp_path)
    made = soup(toy(9), folders, ToyLoader())
    states = [torch.load(folder / "last.pt", weights_only=True)["model"] for folder in folders]
    for key, value in state_of(made.model).items():
        if "running" in key or "num_batches" in key:
            continue
        expected = np.mean([own[key].double().numpy() for own in states], axis=0).astype(np.float32)
        np.testing.assert_array_equal(value.numpy(), expected)
    assert made.members == tuple(map(str, folders)) and not made.model.training
    assert not made.scores and not made.score


def test_statistics_are_those_of_the_averaged_weights_not_an_average_of_statistics(tmp_path):
    """By hand: what enters the normalisation, over each batch, in a network whose weights are the average."""
    made, loader = soup(toy(9), runs(tmp_path), ToyLoader()), ToyLoader()
    entering = [made.model.conv(clips).detach() for clips, _, _ in loader]
    means = torch.stack([x.mean((0, 2, 3, 4)) for x in entering]).mean(0)
    variances = torch.stack([x.var((0, 2, 3, 4)) for x in entering]).mean(0)
    torch.testing.assert_close(made.model.norm.running_mean, means)
    torch.testing.assert_close(made.model.norm.running_var, variances)
    assert made.model.norm.momentum == 0.1


def test_wrong_statistics_are_the_trap_that_this_avoids():
    """Two networks of opposite channels: the mean of their statistics has nothing to do with the mean network's."""
    one, two = toy(0, dropout=0.0), toy(0, dropout=0.0)
    with torch.no_grad():
        two.conv.weight.copy_(-0.2 * one.conv.weight)
        two.conv.bias.copy_(one.conv.bias + 5)
    for model in (one, two):
        recompute_statistics(model, ToyLoader())
    naive = toy(0, dropout=0.0)
    naive.load_state_dict(average_weights([one.state_dict(), two.state_dict()]))
    made = soup(toy(0, dropout=0.0), {"one": one, "two": two}, ToyLoader()).model
    clips = next(iter(ToyLoader()))[0]
    with torch.no_grad():
        spread = [m.norm(m.conv(clips)).std((0, 2, 3, 4)) for m in (made, naive.eval())]
    torch.testing.assert_close(spread[0], torch.ones(6), atol=0.1, rtol=0)
    assert float((spread[1] - 1).abs().max()) > 0.1


def test_dropout_sleeps_while_statistics_are_computed():
    first, again = toy(0, dropout=0.9), toy(0, dropout=0.9)
    torch.manual_seed(1)
    recompute_statistics(first, ToyLoader())
    torch.manual_seed(2)
    recompute_statistics(again, ToyLoader(), batches=3)
    assert same_state(state_of(first), state_of(again))


def test_the_greedy_choice_is_that_of_algorithm_1(tmp_path):
    """Against the algorithm written again, over an odd checkpoint that must be left out, in any order given."""
    folders, val = runs(tmp_path), ToyLoader(seed=5, n=40)
    given = {**{folder.name: folder for folder in folders}, "odd": toy(77)}
    made = soup(toy(9), given, ToyLoader(), val_loader=val)
    states = {name: state_of(one) if isinstance(one, nn.Module) else None for name, one in given.items()}
    for folder in folders:
        states[folder.name] = torch.load(folder / "last.pt", weights_only=True)["model"]

    def score(names):
        model = toy(9)
        model.load_state_dict(
            {key: torch.stack([states[n][key].double() for n in names]).mean(0) for key in states["odd"]}
        )
        if len(names) > 1:
            recompute_statistics(model, ToyLoader())
        return evaluate(model, val)

    alone = {name: score([name]) for name in states}
    order = sorted(alone, key=lambda name: (-alone[name]["top1"], alone[name]["nll"]))
    kept = order[:1]
    for name in order[1:]:
        if score([*kept, name])["top1"] >= score(kept)["top1"]:
            kept.append(name)
    assert made.members == tuple(kept)
    assert made.scores["odd"]["top1"] == alone["odd"]["top1"]
    assert made.score["top1"] == pytest.approx(score(kept)["top1"]) and made.score["top1"] >= max(
        one["top1"] for one in alone.values()
    )
    assert evaluate(made.model, val) == pytest.approx(made.score)
    turned = soup(toy(9), dict(reversed(list(given.items()))), ToyLoader(), val_loader=val)
    assert turned.members == made.members


def test_a_network_without_batch_statistics_needs_no_loader_and_one_with_them_does():
    plain = {str(n): toy(n, norm=False) for n in range(2)}
    assert soup(toy(5, norm=False), plain, None).members == ("0", "1")
    with pytest.raises(InputError, match="statistics of batch normalisation"):
        soup(toy(5), {str(n): toy(n) for n in range(2)}, None)
    with pytest.raises(InputError, match="got an empty loader"):
        soup(toy(5), {str(n): toy(n) for n in range(2)}, [])


def test_the_network_that_is_given_is_left_alone():
    model = toy(3)
    before = state_of(model)
    soup(model, [toy(0), toy(1)], ToyLoader())
    assert same_state(before, state_of(model)) and model.training


@pytest.mark.parametrize("name", ["x3d_tiny", "swin_tiny"])
def test_networks_of_the_catalogue_are_averaged_from_their_files(name, tmp_path):
    made = [networks.create(name, 3) for _ in range(2)]
    for number, network in enumerate(made):
        torch.save({"model": network.state_dict()}, tmp_path / f"{number}.pt")
    clips = torch.randn(2, 3, 8, 48, 48)
    averaged = soup(networks.create(name, 3), [tmp_path / "0.pt", tmp_path / "1.pt"], [(clips, ["a", "b"], None)]).model
    expected = (made[0].classifier.weight + made[1].classifier.weight) / 2
    torch.testing.assert_close(averaged.classifier.weight, expected)
    assert averaged(clips).isfinite().all()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([toy(0)], {}, "at least two checkpoints"),
        ([toy(0), toy(1, n_classes=4)], {}, r"checkpoint 1: .* other shapes of 2: classifier.weight"),
        ([toy(0), toy(1, norm=False)], {}, r"checkpoint 1: .* it lacks 4: norm.weight"),
        ([toy(0), toy(1)], {"how": "greedy"}, "expected val_loader="),
        ([toy(0), toy(1)], {"how": "best"}, '"greedy" or "uniform", got \'best\''),
        (["a.pt", "a.pt"], {}, "each checkpoint once"),
        (["a.pt", "b.pt"], {}, "there is none at a.pt"),
    ],
)
def test_what_cannot_be_averaged_is_refused(given, options, message):
    with pytest.raises(InputError, match=message):
        soup(toy(2), given, ToyLoader(), **options)


@pytest.mark.parametrize("which", ["loader", "val_loader"])
def test_batches_that_end_are_refused(which):
    """Each average that is tried runs through them again: of a generator, the second would see none."""
    loaders = {"loader": ToyLoader(), "val_loader": ToyLoader(), which: iter(ToyLoader())}
    with pytest.raises(InputError, match=f"^{which}: expected batches that can be run through again"):
        soup(toy(2), {"a": toy(0), "b": toy(1)}, loaders["loader"], val_loader=loaders["val_loader"])


def test_weights_that_are_not_finite_are_refused():
    bad = toy(1)
    bad.conv.weight.data[0] = float("nan")
    with pytest.raises(InputError, match=r"checkpoint bad: expected finite weights, got others in conv\.weight"):
        soup(toy(2), {"good": toy(0), "bad": bad}, ToyLoader())


def test_runs_of_other_classes_or_of_another_order_are_refused(tmp_path):
    """The classifiers' rows would be averaged over different classes."""

    class Named(ToyLoader):
        def __init__(self, classes):
            super().__init__()
            videos = type("Videos", (), {"ids": self.ids, "labels": self.labels.tolist(), "classes": classes})
            self.dataset = type("Data", (), {"videos": videos})

    for name, classes in (("a", ("run", "jump", "swim")), ("b", ("jump", "run", "swim"))):
        train(toy(), Named(classes), RECIPE, tmp_path / name, **QUIET)
    with pytest.raises(InputError, match=r"checkpoint .*b: .* class 0 is 'run' there and 'jump' here"):
        soup(toy(), [tmp_path / "a", tmp_path / "b"], ToyLoader())
