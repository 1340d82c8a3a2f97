"""Extraction: what is stored, what a resumed call computes, and whose networks it reads."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from torch import nn
from toy_videos import Toy, ToyLoader, toy, toy_clips

import vidfuse as vf
from vidfuse import networks
from vidfuse.errors import CacheConflictError, InputError, VidfuseWarning
from vidfuse.training import TrainRecipe, evaluate, recompute_statistics, train
from vidfuse.training.extraction import extract
from vidfuse.training.fingerprints import fingerprint_of
from vidfuse.video.clips import ViewPlan

QUIET = {"progress": False}
NAMED = {**QUIET, "fingerprint": "as in this test"}  # for code that weights do not tell


class Restricted(ToyLoader):
    """A loader that knows its ids and can be restricted to some of them, as the video loader does."""

    def __init__(self, kept=None, **settings):
        super().__init__(**settings)
        self.all, self.settings, self.kept = tuple(self.ids), settings, kept
        self.restricted = []

    @property
    def dataset(self):
        return type("Data", (), {"videos": type("Videos", (), {"ids": self.all})})

    def rows(self):
        rows = super().rows()
        return rows if self.kept is None else np.array([r for r in rows if self.ids[r] in self.kept])

    def only(self, ids):
        self.restricted.append(list(ids))
        return Restricted(kept=set(ids), **self.settings)


def by_hand(model, views):
    clips, ids, _ = toy_clips(24)
    with torch.no_grad():
        scores = torch.stack([model.eval()(clips + 0.1 * v) for v in range(views)], 1)
    return dict(zip(ids, scores.numpy(), strict=True))


@pytest.mark.parametrize("clips_per_pass", [1, 7, 1000])
def test_every_view_of_every_video_is_stored_once(tmp_path, clips_per_pass):
    model = toy()
    done = extract(model, ToyLoader(views=4), tmp_path / "toy", clips_per_pass=clips_per_pass, **QUIET)
    stack = vf.load_stack(tmp_path / "toy")
    expected = by_hand(model, 4)
    assert (done.written, done.present, done.failures) == (24, 0, ())
    assert stack.shape == (24, 1, 4, 3) and set(stack.ids) == set(expected)
    np.testing.assert_allclose(stack.scores("toy"), [expected[i] for i in stack.ids], atol=1e-6)
    labels = dict(zip(ToyLoader().ids, ToyLoader().labels.tolist(), strict=True))
    assert stack.labels.tolist() == [labels[i] for i in stack.ids]


def test_clips_without_views_are_stored_without_the_axis(tmp_path):
    extract(toy(), ToyLoader(), tmp_path / "toy", **QUIET)
    assert vf.load_stack(tmp_path / "toy").shape == (24, 1, 3)


def test_an_interrupted_call_is_resumed_by_what_is_missing(tmp_path):
    model, calls = toy(), []

    def failing(network, clips):
        calls.append(len(clips))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return network(clips)

    with pytest.raises(KeyboardInterrupt):
        extract(model, Restricted(batch_size=5), tmp_path / "toy", forward=failing, flush_seconds=0, **NAMED)
    loader, calls[:] = Restricted(batch_size=7), []
    again = extract(model, loader, tmp_path / "toy", forward=failing, **NAMED)
    assert (again.present, again.written) == (10, 14)
    assert [len(ids) for ids in loader.restricted] == [14]
    assert loader.asked == []  # only the restricted loader was read
    expected = by_hand(model, 1)
    stack = vf.load_stack(tmp_path / "toy")
    np.testing.assert_allclose(stack.scores("toy"), [expected[i][0] for i in stack.ids], atol=1e-6)


def test_a_loader_that_cannot_be_restricted_resumes_too(tmp_path):
    model, ids = toy(), ToyLoader().ids
    seen = []

    def counted(network, clips):
        seen.append(len(clips))
        return network(clips)

    extract(model, list(ToyLoader(batch_size=6))[:2], tmp_path / "toy", ids=ids, forward=counted, **NAMED)
    seen.clear()
    extract(model, ToyLoader(batch_size=5), tmp_path / "toy", ids=ids, forward=counted, **NAMED)
    assert sum(seen) == 12
    assert len(vf.load_stack(tmp_path / "toy")) == 24


def test_a_finished_cache_reads_nothing(tmp_path):
    model = toy()
    extract(model, Restricted(), tmp_path / "toy", **QUIET)
    loader = Restricted()
    done = extract(model, loader, tmp_path / "toy", **QUIET)
    assert (done.written, done.present) == (0, 24)
    assert loader.asked == [] and loader.restricted == []


def test_members_share_each_decoded_batch(tmp_path):
    models = {"a": toy(1), "b": toy(2)}
    loader = ToyLoader(views=2)
    extract(models, loader, tmp_path, **QUIET)
    assert len(loader.asked) == 24
    stack = vf.load_stack(tmp_path)
    assert stack.members == ("a", "b") and stack.shape == (24, 2, 2, 3)
    for name, model in models.items():
        expected = by_hand(model, 2)
        np.testing.assert_allclose(stack.scores(name), [expected[i] for i in stack.ids], atol=1e-6)


def test_members_read_their_own_clips_of_a_batch(tmp_path):
    clips, ids, labels = toy_clips(6)
    models = {"a": toy(1), "b": toy(2)}
    extract(models, [({"a": clips, "b": clips + 1}, ids, labels)], tmp_path, **QUIET)
    stack = vf.load_stack(tmp_path)
    with torch.no_grad():
        expected = models["b"](clips + 1).numpy()
    order = [ids.index(i) for i in stack.ids]
    np.testing.assert_allclose(stack.scores("b"), expected[order], atol=1e-6)


@pytest.mark.parametrize("views", [None, 3])
def test_a_network_of_several_members_reads_the_whole_mapping(tmp_path, views):
    clips, ids, labels = toy_clips(6)
    if views:
        clips = torch.stack([clips + v for v in range(views)], 1)
    inner = {"a": toy(1).eval(), "b": toy(2).eval()}

    def both(batch):
        return inner["a"](batch["a"]) + inner["b"](batch["b"])

    extract({"both": both}, [({"a": clips, "b": 2 * clips}, ids, labels)], tmp_path, clips_per_pass=4, **NAMED)
    stack = vf.load_stack(tmp_path)
    flat = clips.reshape(-1, 3, 2, 4, 4)
    with torch.no_grad():
        expected = both({"a": flat, "b": 2 * flat}).reshape(6, *([views] if views else []), 3).numpy()
    np.testing.assert_allclose(stack.scores("both"), expected[[ids.index(i) for i in stack.ids]], atol=1e-5)


def test_a_member_that_lags_behind_catches_up_alone(tmp_path):
    models = {"a": toy(1), "b": toy(2)}
    ran = []

    def counted(network, clips):
        ran.append(network)
        return network(clips)

    extract({"a": models["a"]}, Restricted(), tmp_path, forward=counted, **NAMED)
    before = {p.name for p in (tmp_path / "a").iterdir()}
    ran.clear()
    extract(models, Restricted(), tmp_path, forward=counted, **NAMED)
    assert all(network is models["b"] for network in ran) and ran
    assert {p.name for p in (tmp_path / "a").iterdir()} == before


def test_row_39_another_checkpoint_or_view_plan_is_a_conflict(tmp_path):
    plan = ViewPlan(clips=2)
    extract(toy(), list(ToyLoader(views=2))[:1], tmp_path / "toy", views=plan, ids=ToyLoader().ids, **QUIET)
    with pytest.raises(CacheConflictError, match="fingerprint"):
        extract(toy(1), ToyLoader(views=2), tmp_path / "toy", views=plan, ids=ToyLoader().ids, **QUIET)
    with pytest.raises(CacheConflictError, match="view_plan"):
        extract(toy(), ToyLoader(views=2), tmp_path / "toy", views=ViewPlan(clips=2, seed=1), **QUIET)


def test_row_43_videos_that_cannot_be_decoded_are_reported(tmp_path):
    class Broken(ToyLoader):
        failures = (type("Failure", (), {"id": "video3", "reason": "truncated"}),)

    assert extract(toy(), Broken(), tmp_path / "toy", **QUIET).failures == (("video3", "truncated"),)


class Answer:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("wrap", [Answer, lambda z: {"logits": z, "loss": 0}], ids=["object", "mapping"])
def test_answers_that_hold_logits_are_read(tmp_path, wrap):
    model = toy().eval()
    extract(lambda clips: wrap(model(clips)), ToyLoader(), tmp_path / "toy", **NAMED)
    expected = by_hand(model, 1)
    stack = vf.load_stack(tmp_path / "toy")
    np.testing.assert_allclose(stack.scores("toy"), [expected[i][0] for i in stack.ids], atol=1e-6)


def test_a_forward_of_ones_own_reads_any_batch(tmp_path):
    """Another library's batch is no tensor; its forward function knows what to do with it."""
    model = toy().eval()
    clips, ids, labels = toy_clips(6)
    loader = [({"pixel_values": clips.transpose(1, 2)}, ids, labels)]
    extract(
        model, loader, tmp_path / "toy", forward=lambda net, batch: net(batch["pixel_values"].transpose(1, 2)), **NAMED
    )
    assert vf.load_stack(tmp_path / "toy").shape == (6, 1, 3)


def test_networks_are_put_into_eval_mode_and_no_graph_is_kept(tmp_path):
    model = toy().train()
    modes = []

    def watched(network, clips):
        modes.append((network.training, torch.is_grad_enabled()))
        return network(clips)

    extract(model, ToyLoader(), tmp_path / "toy", forward=watched, **NAMED)
    assert set(modes) == {(False, False)}


def test_wrong_answers_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least one member"):
        extract({}, ToyLoader(), tmp_path, **QUIET)
    with pytest.raises(InputError, match=r"expected logits of shape \(N, K\)"):
        extract(nn.Flatten(1, 2), ToyLoader(), tmp_path / "a", **QUIET)
    with pytest.raises(InputError, match="one row of scores for each of 24 clips"):
        extract(lambda clips: torch.zeros(3, 5), ToyLoader(batch_size=24), tmp_path / "b", **NAMED)


def test_a_fingerprint_tells_weights_apart():
    assert fingerprint_of(toy()) == fingerprint_of(toy()) != fingerprint_of(toy(1))
    other = toy()
    other.norm.running_mean += 1e-7
    assert fingerprint_of(other) != fingerprint_of(toy())


class OtherToy(Toy):
    """The same weights, another class."""


def test_a_fingerprint_tells_classes_and_names_apart():
    other = OtherToy()
    other.load_state_dict(toy().state_dict())
    prints = {fingerprint_of(toy()), fingerprint_of(other), fingerprint_of(toy(), "x"), fingerprint_of(toy(), "y")}
    assert len(prints) == 4


def test_a_fingerprint_is_made_of_the_class_and_the_bytes_of_the_weights():
    """By hand, so that another Python or release gives the same: a cache may be resumed with it."""
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0]]))
        network.bias.fill_(3.0)
    content = b"Linear" + b"weight" + struct.pack("<2f", 1, 2) + b"bias" + struct.pack("<f", 3)
    assert fingerprint_of(network) == hashlib.sha256(content).hexdigest()
    assert fingerprint_of(network, "halved") == "halved " + hashlib.sha256(content).hexdigest()


def test_a_network_is_the_same_one_where_it_was_trained_and_read_from_its_file(tmp_path):
    """Counters of batches, and a classifier that only training uses, are no part of what predicts."""
    network = networks.create("tpn_tiny", 3, auxiliary=True)
    network.train()(torch.randn(2, 3, 8, 32, 32))  # moves the batch statistics, and counts
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith("auxiliary.")}
    torch.save(weights, tmp_path / "tpn.pt")
    with pytest.warns(VidfuseWarning, match="which only training uses"):
        again = networks.create("tpn_tiny", 3, auxiliary=True, checkpoint=tmp_path / "tpn.pt")
    assert fingerprint_of(network) == fingerprint_of(again)
    again.classifier.bias.data[0] += 1e-3
    assert fingerprint_of(network) != fingerprint_of(again)


@pytest.mark.parametrize(
    ("model", "forward", "what"),
    [(lambda clips: clips, None, "function"), (toy(), lambda model, clips: model(clips), "`forward`")],
    ids=["callable", "forward"],
)
def test_code_needs_a_name(model, forward, what, tmp_path):
    with pytest.raises(InputError, match=rf"expected fingerprint=, a name .* nothing tells {what} from other code"):
        extract(model, ToyLoader(), tmp_path / "toy", forward=forward, **QUIET)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"model": toy().eval().forward, "fingerprint": "a"}, {"model": toy().eval().forward, "fingerprint": "b"}),
        ({"model": toy()}, {"model": toy(), "forward": lambda net, clips: 2 * net(clips), "fingerprint": "twice"}),
        ({"model": toy(), "fingerprint": "a"}, {"model": toy(), "fingerprint": "b"}),
        ({"model": toy(), "fingerprint": "a"}, {"model": toy(1), "fingerprint": "a"}),
    ],
)
def test_row_39_another_callable_or_forward_is_refused(first, second, tmp_path):
    extract(loader=ToyLoader(), folder=tmp_path / "toy", **first, **QUIET)
    extract(loader=ToyLoader(), folder=tmp_path / "toy", **first, **QUIET)
    with pytest.raises(CacheConflictError, match="fingerprint"):
        extract(loader=ToyLoader(), folder=tmp_path / "toy", **second, **QUIET)


def test_a_second_call_writes_nothing_and_says_so(tmp_path):
    ids = list(ToyLoader().ids)
    first = extract(toy(), ToyLoader(), tmp_path / "toy", ids=ids, **QUIET)
    again = extract(toy(), ToyLoader(), tmp_path / "toy", ids=ids, **QUIET)  # this loader cannot be restricted
    assert (first.written, first.present, again.written, again.present) == (24, 0, 0, 24)


def test_arrays_and_ids_as_tensors_are_taken(tmp_path):
    clips = np.random.default_rng(0).normal(size=(4, 2, 3, 1, 2, 2)).astype(np.float32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

    def session(batch):  # as compiled runtimes take and give arrays
        assert isinstance(batch, np.ndarray)
        return batch.reshape(len(batch), -1)[:, :5]

    ids = torch.arange(4)
    extract(
        {"net": network, "session": session},
        [(clips, ids, None)],
        tmp_path,
        ids=ids,
        fingerprint={"session": "s"},
        **QUIET,
    )
    stack = vf.load_stack(tmp_path)
    assert list(stack.ids) == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(stack.scores("session"), clips.reshape(4, 2, -1)[:, :, :5])
    with torch.no_grad():
        expected = network(torch.from_numpy(clips).flatten(0, 1)).unflatten(0, (4, 2))
    np.testing.assert_allclose(stack.scores("net"), expected, atol=1e-6)


def test_half_precision_is_stored_on_request(tmp_path):
    extract(toy(), ToyLoader(), tmp_path / "toy", dtype="float16", precision="bfloat16", **QUIET)
    stack = vf.load_stack(tmp_path / "toy")
    assert stack.scores("toy").dtype == np.float16
    expected = by_hand(toy(), 1)
    np.testing.assert_allclose(stack.scores("toy"), [expected[i][0] for i in stack.ids], atol=0.05)


def test_a_cache_goes_on_with_the_labels_that_it_holds(tmp_path):
    """Videos that are there are not run again, and would keep the label that a list gave them before."""

    class Labelled(Restricted):
        names = None

        @property
        def dataset(self):
            videos = {"ids": self.all, "labels": self.names or toy_clips(24)[2].tolist()}
            return type("Data", (), {"videos": type("Videos", (), videos)})

    model = toy()
    extract(model, Labelled(), tmp_path / "toy", **QUIET)
    assert extract(model, Labelled(), tmp_path / "toy", **QUIET).written == 0
    changed = Labelled()
    changed.names = [(label + (i < 2)) % 3 for i, label in enumerate(toy_clips(24)[2].tolist())]
    with pytest.raises(CacheConflictError, match=r"2 videos are there under other labels .* such as 'video[01]' under"):
        extract(model, changed, tmp_path / "toy", **QUIET)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(2, 3, 2, 4, 4), ["a", "b"]), r"batches \(clips, ids, labels or None\), got a tuple of 2"),
        ({"video": torch.zeros(2, 3, 2, 4, 4)}, "got a dict"),
        ((torch.zeros(2, 3, 2, 4, 4), ["a", "b"], torch.tensor([0])), "a label for each of the 2 videos .* got 1"),
    ],
)
def test_batches_of_another_kind_are_refused(batch, message, tmp_path):
    """As of a plain data loader, which has no ids: by all that pass over one."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 2))
    for call in (
        lambda: extract(network, [batch], tmp_path, progress=False),
        lambda: evaluate(network, [batch]),
        lambda: train(
            network, [batch], TrainRecipe(lr=0.1, epochs=1, warmup_epochs=0), tmp_path / "run", progress=False
        ),
        lambda: recompute_statistics(torch.nn.BatchNorm3d(3), [batch]),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_scoring_asks_for_no_ids():
    clips, _, labels = toy_clips(8)
    assert evaluate(toy(1), [(clips, None, labels)])["n"] == 8


def test_names_and_precisions_that_cannot_be_are_refused(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 2))
    with pytest.raises(InputError, match="expected a plain folder name"):
        extract({"a/b": network}, [], tmp_path)
    with pytest.raises(InputError, match="precision: expected one of 'float32', 'bfloat16', 'float16', got 'fp16'"):
        extract(network, [], tmp_path, precision="fp16")
