"""Exports answer what the recipe answers, say what they are, and are refused where they are not whole."""

import dataclasses
import io
import json
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from fusion_cases import CASES, members
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

import vidfuse as vf
from vidfuse.cli import main
from vidfuse.errors import AlignmentError, CacheFormatError, InputError, MissingExtraError, VidfuseError
from vidfuse.fusion.rule import Rule
from vidfuse.serving import Ensemble, Fusion, exports, load_export, triton
from vidfuse.serving.rules import FORMS

LOGITS, LABELS = members(120, classes=6)
LOGITS = {name: z.astype(np.float32) for name, z in LOGITS.items()}
OTHER = {name: z.astype(np.float32) for name, z in members(7, seed=1, classes=6)[0].items()}
MASKED = {
    name: np.where(np.arange(6) == np.arange(7)[:, None] % 6, np.float32(-np.inf), z) for name, z in OTHER.items()
}
RULES = {
    **{
        case: CASES[case]
        for case in ("linear", "borda-weighted", "stacked-diagonal", "dynamic", "subset", "greedy", "cascade")
    },
    "calibrated": CASES["calibrated-members"],
    "vote": vf.MajorityVote("accuracy", missing="renormalise"),
    "log-linear": vf.LogLinearPool(missing="renormalise"),
    "vetoed": vf.LinearPool("uniform", floor=0.0),
}
RULES |= {case: rule for case, rule in CASES.items() if type(rule) in FORMS.keys() - set(map(type, RULES.values()))}


def fitted(rule, views=None, kind="logits", classes=None, names="abc"):
    scores = dict(zip(names, LOGITS.values(), strict=True))
    stack = vf.LogitStack.from_arrays(scores, labels=LABELS, kind=kind, classes=classes)
    return vf.Recipe.from_fitted(clone(rule).fit(stack), stack, views=views)


def network(seed, classes=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, classes))


class All(nn.Module):
    """Every rule in one graph: exporters take seconds for each graph."""

    def __init__(self, recipes):
        super().__init__()
        self.fusions = nn.ModuleList(Fusion(recipe) for recipe in recipes)

    def forward(self, scores):
        return tuple(f({name: scores[name] for name in f.recipe.needed_members()}) for f in self.fusions)


def test_every_rule_is_a_graph_that_onnxruntime_runs():
    recipes = [fitted(rule) for rule in RULES.values()]
    assert {type(recipe.rule).__name__ for recipe in recipes} == {kind.__name__ for kind in FORMS}
    example = {name: torch.from_numpy(z[:2].copy()) for name, z in LOGITS.items()}
    free = ({name: {0: torch.export.Dim("videos", min=1)} for name in example},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(All(recipes).eval(), (example,), dynamic_shapes=free)
        model = torch.onnx.export(
            program, dynamo=True, verbose=False, optimize=False, input_names=list(example)
        ).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for scores in ({name: z[:1] for name, z in OTHER.items()}, OTHER, MASKED):
        with torch.no_grad():
            own = program.module()({name: torch.from_numpy(z) for name, z in scores.items()})
        for recipe, fused, answer in zip(recipes, own, session.run(None, scores), strict=True):
            expected = recipe.predict_log_proba(scores)
            np.testing.assert_allclose(fused, expected, rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-5)


class WithNetwork(nn.Module):
    """A network and rules that fuse its logits with the scores of other members, in one graph."""

    def __init__(self, model, recipes):
        super().__init__()
        self.model, self.rules = model, All(recipes)

    def forward(self, clips, others):
        logits = self.model(clips)
        return logits, *self.rules({**others, "c": logits})


@pytest.mark.parametrize("i", range(7))
def test_every_network_is_exported_with_some_rule_and_every_rule_with_some_network(i):
    """As a graph of torch and as ONNX, for batches of any size, beside the recipe on the network's logits."""
    names = vf.networks.names("*_tiny")
    assert len(names) == 7
    torch.manual_seed(0)
    model, facts = vf.networks.create(names[i], num_classes=6).eval(), vf.networks.info(names[i])
    clips = torch.randn(5, 3, facts.frames, facts.size, facts.size)
    others = {name: torch.from_numpy(OTHER[name][:5].copy()) for name in "ab"}
    recipes = [fitted(rule) for rule in list(RULES.values())[i::7]]
    assert all("c" in recipe.needed_members() for recipe in recipes)
    free = {0: torch.export.Dim("videos", min=1, max=64)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.export.export(
            WithNetwork(model, recipes).eval(),
            (clips[:2], {name: z[:2] for name, z in others.items()}),
            dynamic_shapes=(free, dict.fromkeys("ab", free)),
        )
        onnx_model = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["clips", "a", "b"]).model_proto
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        scores = {name: z[:n] for name, z in others.items()}
        with torch.no_grad():
            logits = model(clips[:n])
            own = program.module()(clips[:n], scores)
        got = session.run(None, {"clips": clips[:n].numpy(), **{name: z.numpy() for name, z in scores.items()}})
        torch.testing.assert_close(own[0], logits)
        torch.testing.assert_close(torch.from_numpy(got[0]), logits, rtol=1e-4, atol=1e-5)
        for recipe, fused, answer in zip(recipes, own[1:], got[1:], strict=True):
            expected = recipe.predict_proba({**scores, "c": logits})
            np.testing.assert_allclose(fused.exp(), expected, atol=1e-6)
            np.testing.assert_allclose(np.exp(answer), expected, atol=1e-5)


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def written(request, tmp_path_factory):
    """A recipe whose views are reduced and whose members may be missing, as a file."""
    path = tmp_path_factory.mktemp("export") / f"ensemble.{request.param}"
    recipe = fitted(vf.LinearPool(missing="renormalise"), views="mean-log", classes=list("uvwxyz"))
    return recipe, exports.export(recipe, path, with_views=True)


def test_an_export_answers_what_the_recipe_answers(written):
    recipe, done = written
    exported = load_export(done.path)
    assert done.size == done.path.stat().st_size and done.difference <= 1e-5
    for shape in ((1, 1), (4, 5)):
        views = {name: np.random.default_rng(0).normal(size=(*shape, 6)).astype(np.float32) for name in "abc"}
        answer = exported(views)
        np.testing.assert_allclose(answer["log_likelihoods"], recipe.predict_log_proba(views), atol=1e-5)
        np.testing.assert_allclose(answer["probabilities"], recipe.predict_proba(views), atol=1e-6)
        np.testing.assert_array_equal(answer["label"], recipe.predict(views))
    views["b"][2] = np.nan  # video 2 has no member b
    others = {name: views[name][2:3] for name in "ac"}
    np.testing.assert_allclose(exported(views)["log_likelihoods"][2:3], recipe.predict_log_proba(others), atol=1e-5)


def test_a_video_that_the_recipe_refuses_has_no_label(written):
    recipe, done = written
    views = {name: np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32) for name in "abc"}
    expected = recipe.predict(views)
    for values in views.values():
        values[1] = np.nan  # nobody has video 1
    answer = load_export(done.path)(views)
    assert np.isnan(answer["probabilities"]).tolist() == [[False] * 6, [True] * 6, [False] * 6]
    assert answer["label"].tolist() == [expected[0], -1, expected[2]]


def test_a_cascade_over_views_is_one_graph_of_all_its_views(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 800)
    scores = {name: rng.normal(size=(800, 4, 6)) + 3 * np.eye(6)[y][:, None] for name in "ab"}
    stack = vf.LogitStack.from_arrays({name: z.astype(np.float32) for name, z in scores.items()}, labels=y)
    rule = vf.Cascade(vf.LogLinearPool("uniform"), at_most=0.1, keep=0).fit(stack)
    recipe = vf.Recipe.from_fitted(rule, stack)
    done = exports.export(recipe, tmp_path / "cascade.pt2")
    assert done.facts["inputs"] == {name: ["videos", 4, 6] for name in recipe.needed_members()}
    new = {name: stack.scores(name)[:9].copy() for name in recipe.needed_members()}
    answer = load_export(done.path)(new)
    np.testing.assert_allclose(answer["log_likelihoods"], recipe.predict_log_proba(new), atol=1e-5)
    with pytest.raises(InputError, match="4 views of each member"):
        Fusion(recipe)({name: torch.from_numpy(z[:, 0].copy()) for name, z in new.items()})


def test_an_export_says_what_it_is(written):
    recipe, done = written
    facts = load_export(done.path).facts
    assert facts == done.facts
    assert facts["members"] == ["a", "b", "c"] and facts["classes"] == list("uvwxyz") and facts["n_classes"] == 6
    assert facts["inputs"]["a"] == ["videos", "views", 6] and facts["kinds"]["a"] == "logits"
    assert (facts["views"], facts["missing"], facts["vidfuse"]) == ("mean-log", "renormalise", vf.__version__)
    assert facts["recipe_sha256"] == exports.digest(recipe)


def test_inputs_that_do_not_fit_are_refused(written):
    exported = load_export(written[1].path)
    good = {name: np.zeros((4, 2, 6), np.float32) for name in "abc"}
    with pytest.raises(AlignmentError, match=r"missing \['b', 'c'\], not in the export \['x'\]"):
        exported({"a": good["a"], "x": good["a"]})
    for wrong in (np.zeros((3, 2, 6)), np.zeros((4, 6)), np.zeros((4, 2, 5)), np.zeros((4, 0, 6))):
        with pytest.raises(InputError, match=r"b: expected an array \(videos = 4, views = 2, 6\), got shape"):
            exported({**good, "b": wrong})
    for wrong in (good["b"] + 1j, good["b"].astype(object), good["b"].astype(str)):
        with pytest.raises(InputError, match="b: expected real numbers, got an array of"):
            exported({**good, "b": wrong})
    for dtype in (np.float16, np.float64, int):
        np.testing.assert_allclose(exported({**good, "b": good["b"].astype(dtype)})["probabilities"], 1 / 6)


def test_a_file_that_is_cut_off_is_refused(written, tmp_path):
    path = written[1].path
    data = path.read_bytes()
    cut = tmp_path / path.name
    for length in {0, 1, 7, 100, len(data) // 3, len(data) // 2, len(data) - 500, len(data) - 1}:
        cut.write_bytes(data[:length])
        with pytest.raises(CacheFormatError, match=path.name):
            load_export(cut)


def test_a_foreign_file_is_refused(tmp_path):
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    opset = [onnx.helper.make_opsetid("", 17)]
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opset, ir_version=8
    )
    (tmp_path / "foreign.onnx").write_bytes(foreign.SerializeToString())
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.pt2")
    for name in ("foreign.onnx", "foreign.pt2"):
        with pytest.raises(CacheFormatError, match="expected an export that vidfuse wrote"):
            load_export(tmp_path / name)
    entry = foreign.metadata_props.add()
    entry.key, entry.value = "vidfuse", json.dumps({"format": "vidfuse-export", "version": 2})
    (tmp_path / "newer.onnx").write_bytes(foreign.SerializeToString())
    with pytest.raises(CacheFormatError, match=r"version 2, and vidfuse .* reads up to 1; upgrade"):
        load_export(tmp_path / "newer.onnx")


def test_nothing_of_a_foreign_pt2_file_is_run(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"cos\nsystem\n(S'touch owned'\ntR.")
    (tmp_path / "a.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(CacheFormatError, match="expected an export that vidfuse wrote"):
        load_export(tmp_path / "a.pt2")
    assert not (tmp_path / "owned").exists()


def test_a_rule_of_ones_own_and_odd_names_are_refused(tmp_path):
    class Own(Rule):
        def _fit(self, stack, labels, weight):
            pass

        def _fuse(self, stack):
            return stack.log_likelihoods().mean(1)

    with pytest.raises(InputError, match="Own has no form in torch"):
        exports.export(fitted(Own()), tmp_path / "own.pt2")
    with pytest.raises(InputError, match=r"ends in \.onnx or \.pt2, got .*own\.pt$"):
        exports.export(fitted(vf.BordaCount()), tmp_path / "own.pt")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"vidfuse\[export\]"):
        exports.export(fitted(vf.LinearPool("uniform")), tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"vidfuse\[export\]"):
        load_export(tmp_path / "a.onnx")


def test_an_export_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    graph = exports.graph_of(fitted(vf.LinearPool("uniform")), with_views=False, clips=None)
    other = exports.graph_of(fitted(vf.LinearPool({"a": 1, "b": 2, "c": 3})), with_views=False, clips=None)
    monkeypatch.setattr(exports, "graph_of", lambda *_, **__: exports.Graph(graph.module, other.program, graph.facts))
    with pytest.raises(VidfuseError, match=r"answers otherwise than torch: a probability differs by 0\.\d+; nothing"):
        exports.export(fitted(vf.LinearPool("uniform")), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_networks_are_part_of_an_export(tmp_path):
    recipe = fitted(vf.LinearPool({"a": 1, "b": 0, "c": 2}))
    ensemble = Ensemble(recipe, {name: network(i) for i, name in enumerate("abc")})
    with pytest.raises(InputError, match=r"a: expected the extents of its clips.*16x224x224"):
        exports.export(ensemble, tmp_path / "a.pt2")
    done = exports.export(ensemble, tmp_path / "a.pt2", clips=dict.fromkeys("ac", (2, 4, 4)))
    exported = load_export(done.path)
    assert exported.facts["inputs"] == {name: ["videos", 3, 2, 4, 4] for name in "ac"}
    clips = {name: torch.randn(5, 3, 2, 4, 4) for name in "ac"}
    with torch.no_grad():
        expected = ensemble(clips)
    answer = exported({name: clip.numpy() for name, clip in clips.items()})
    np.testing.assert_allclose(answer["log_likelihoods"], expected, atol=1e-5)


def test_a_network_that_pools_adaptively_is_written_as_onnx(tmp_path):
    pooled = nn.Sequential(nn.AdaptiveAvgPool3d((3, 3, 2)), nn.Flatten(), nn.Linear(3 * 3 * 3 * 2, 6))
    recipe = fitted(vf.LinearPool({"a": 1, "b": 0, "c": 2}, missing="renormalise"))
    ensemble = Ensemble(recipe, {"a": pooled, "c": network(0)})
    extents = {"a": (5, 7, 4), "c": (2, 4, 4)}
    exported = load_export(exports.export(ensemble, tmp_path / "a.onnx", clips=extents).path)
    clips = {name: torch.randn(3, 3, *extents[name]) for name in "ac"}
    clips["c"][1] = torch.nan  # video 1 has no member c
    with torch.no_grad():
        expected = ensemble(clips)
        alone = recipe.predict_log_proba({"a": pooled(clips["a"][1:2]).numpy()})
    got = exported({name: clip.numpy() for name, clip in clips.items()})["log_likelihoods"]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got[1:2], alone, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_means_of_slices_are_the_adaptive_pool(lengths, grid):
    x = torch.randn(2, 3, *lengths, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = nn.functional.adaptive_avg_pool3d(x, grid)
    torch.testing.assert_close(exports._adaptive_average(x, grid), expected)


class Branching(nn.Module):
    def forward(self, clips):
        return clips.flatten(1)[:, :6] if clips.sum() > 0 else clips.flatten(1)[:, 6:12]


def test_networks_that_cannot_be_exported_are_refused_with_the_reason(tmp_path):
    recipe = fitted(vf.LinearPool({"a": 1, "b": 0, "c": 2}))
    extents = dict.fromkeys("abc", (2, 4, 4))
    half, other = network(0).half(), network(0, classes=5)
    elsewhere = network(0).to("meta")
    for model, clips, error, words in (
        (half, extents, InputError, "a: expected a network in float32 on the CPU.*torch.float16 on cpu; say"),
        (elsewhere, extents, InputError, "a: expected a network in float32 on the CPU.*torch.float32 on meta; say"),
        (other, extents, AlignmentError, "a: expected scores of the recipe's 6 classes, got 5"),
        (network(0), {**extents, "x": (2, 4, 4)}, AlignmentError, r"extents for some of .*, got those for \['x'\]"),
        (
            network(0),
            {**extents, "a": (3, 4, 4)},
            InputError,
            r"a: its network does not take clips of shape \(2, 3, 3,",
        ),
        (Branching(), extents, InputError, "torch.export makes no graph of this ensemble: .*data-dependent"),
    ):
        with pytest.raises(error, match=words):
            exports.export(Ensemble(recipe, {"a": model, "c": network(1)}), tmp_path / "a.pt2", clips=clips)


def test_what_onnx_cannot_hold_is_refused_with_the_reason(tmp_path, monkeypatch):
    class Special(nn.Module):
        def forward(self, clips):
            return torch.special.bessel_j0(clips.flatten(1)[:, :6])

    with pytest.raises(
        InputError, match="a member of an ONNX file cannot be called as one of its outputs is, got 'label'"
    ):
        exports.export(fitted(vf.LinearPool("uniform"), names=("label", "b", "c")), tmp_path / "a.onnx")
    ensemble = Ensemble(fitted(vf.LinearPool({"a": 1, "b": 0, "c": 0})), {"a": Special()})
    with pytest.raises(InputError, match=r"cannot write this ensemble: .*bessel_j0.*write a \.pt2 file"):
        exports.export(ensemble, tmp_path / "a.onnx", clips={"a": (2, 4, 4)})
    monkeypatch.setattr(exports, "_MOST", 120 * 6 * 4)  # what `dynamic` keeps of its fit is part of the file
    with pytest.raises(InputError, match="weights of less than 2 GB"):
        exports.export(fitted(CASES["dynamic"]), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


# The command ----------------------------------------------------------------------------------------------------------


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def test_the_command_writes_a_model_repository(tmp_path):
    names = ("exp", "日本 x=1", "-")  # "exp" is also what the graph calls a value of its own
    recipe = fitted(vf.LinearPool("accuracy"), classes=["on", 'o"ff', "c", "d", "e", "f"], names=names)
    recipe.save(tmp_path / "fused.json")
    result = run("export", tmp_path / "fused.json", "--triton", tmp_path / "models", "--max-batch", 8, "--json")
    told = json.loads(result.stdout)
    model = tmp_path / "models" / "fused"
    assert [file["path"] for file in told["files"]] == [str(model / "1" / "model.onnx")]
    found = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert found == {"config.pbtxt", "classes.txt", "1/model.onnx"}
    assert (model / "classes.txt").read_text().splitlines() == list(recipe.classes)
    config = parsed_by_triton((model / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("fused", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    other = dict(zip(names, OTHER.values(), strict=True))
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    answers = dict(zip([one.name for one in session.get_outputs()], session.run(None, other), strict=True))
    np.testing.assert_allclose(answers["log_likelihoods"], recipe.predict_log_proba(other), atol=1e-5)
    assert {one.name: (one.data_type, list(one.dims)) for one in config.input} == {name: (11, [6]) for name in names}
    for one in config.output:  # 9, 11 and 12 are TYPE_INT64, TYPE_FP32 and TYPE_FP64
        shape = list(one.reshape.shape) if one.HasField("reshape") else list(one.dims)
        assert shape == list(answers[one.name].shape[1:])
        assert one.data_type == {"int64": 9, "float64": 12}[answers[one.name].dtype.name]
    assert [one.label_filename for one in config.output] == ["", "classes.txt", ""]
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, vidfuse as vf\n"
        "exported = vf.serving.load_export(sys.argv[1])\n"
        "same = {name: np.eye(6) for name in exported.facts['members']}\n"
        "print(exported(same)['label'].tolist())\n"
    )
    told = subprocess.check_output([sys.executable, "-c", code, model / "1" / "model.onnx"], text=True)
    assert json.loads(told) == [0, 1, 2, 3, 4, 5]


def parsed_by_triton(text):
    """Parse a configuration as Triton does, by its protobuf: the fields that are written here, and what they hold."""
    kinds = {"string": 9, "int32": 5, "int64": 3, "message": 11, "enum": 14}
    messages = {
        "Reshape": [("shape", 1, "int64", True, None)],
        "ModelInput": [
            ("name", 1, "string", False, None),
            ("data_type", 2, "enum", False, "DataType"),
            ("dims", 4, "int64", True, None),
        ],
        "ModelOutput": [
            ("name", 1, "string", False, None),
            ("data_type", 2, "enum", False, "DataType"),
            ("dims", 3, "int64", True, None),
            ("label_filename", 4, "string", False, None),
            ("reshape", 5, "message", False, "Reshape"),
        ],
        "DynamicBatching": [],
        "ModelConfig": [
            ("name", 1, "string", False, None),
            ("max_batch_size", 4, "int32", False, None),
            ("input", 5, "message", True, "ModelInput"),
            ("output", 6, "message", True, "ModelOutput"),
            ("dynamic_batching", 11, "message", False, "DynamicBatching"),
            ("backend", 17, "string", False, None),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="triton", syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_INT64", 9), ("TYPE_FP32", 11), ("TYPE_FP64", 12)):
        data_type.value.add(name=name, number=number)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, of in fields:
            message.field.add(
                name=field,
                number=number,
                type=kinds[kind],
                label=3 if repeated else 1,
                type_name=None if of is None else f".triton.{of}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    empty = message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))()
    return text_format.Parse(text, empty)


def test_triton_reads_the_configuration_of_views_and_clips():
    inputs = {"x3d": ["videos", "views", 3, 8, 64, 64]}
    config = parsed_by_triton(triton._config('a "b"', {"inputs": inputs, "n_classes": 5, "classes": None}, 1))
    assert config.name == 'a "b"' and list(config.input[0].dims) == [-1, 3, 8, 64, 64]
    assert [list(one.dims) for one in config.output] == [[5], [5], [1]] and not config.output[1].label_filename


def test_a_class_of_two_lines_is_refused_where_triton_reads_one_a_line(tmp_path):
    recipe = fitted(vf.LinearPool("uniform"), classes=["a\nb", *"cdefg"])
    with pytest.raises(InputError, match=r"one class a line.*'a\\nb'"):
        triton.export_triton(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_the_networks_from_their_checkpoints(tmp_path):
    stack = vf.LogitStack.from_arrays({name: LOGITS[name] for name in "ab"}, labels=LABELS)
    recipe = vf.Recipe.from_fitted(vf.LogLinearPool("accuracy").fit(stack), stack)
    recipe = dataclasses.replace(recipe, fingerprints={"b": (64 * "0",)})
    recipe.save(tmp_path / "fused.json")
    models = {"a": vf.networks.create("x3d_tiny", num_classes=6), "b": vf.networks.create("x3d_tiny", num_classes=6)}
    for name, model in models.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    given = [word for name in "ab" for word in ("--checkpoint", f"{name}={tmp_path / name}.pt")]
    arguments = ["export", tmp_path / "fused.json", "--out", tmp_path / "fused.pt2", *given]
    assert "--network a=" in run(*arguments, status=2).output
    networks = ["--network", "a=x3d_tiny", "--network", "b=x3d_tiny", "--clips", "a=4x32x48"]
    refused = run(*arguments, *networks, status=2).output
    assert f"member 'b': the fit saw the checkpoint {64 * '0'}" in refused and "say --checkpoints any" in refused
    assert "TxHxW" not in run(*arguments, *networks, "--checkpoints", "any").output
    exported = load_export(tmp_path / "fused.pt2")
    assert exported.facts["inputs"] == {"a": ["videos", 3, 4, 32, 48], "b": ["videos", 3, 8, 64, 64]}
    assert exported.facts["clips"]["a"]["network"] == "x3d_tiny"
    clips = {name: torch.randn(3, *shape[1:]) for name, shape in exported.facts["inputs"].items()}
    with torch.no_grad():
        expected = Ensemble(recipe, models, checkpoints="any").eval()(clips)
    answer = exported({name: clip.numpy() for name, clip in clips.items()})
    np.testing.assert_allclose(answer["log_likelihoods"], expected, atol=1e-5)


def test_the_command_refuses_what_it_cannot_read(tmp_path):
    fitted(vf.LinearPool("uniform")).save(tmp_path / "fused.json")
    assert "belong to --checkpoint" in run("export", tmp_path / "fused.json", "--clips", "a=8x8x8", status=2).output
    wrong = run("export", tmp_path / "fused.json", "--clips", "a=8x8", status=2).output
    assert "FRAMESxHEIGHTxWIDTH" in wrong
    absent = run("export", tmp_path / "fused.json", "--checkpoint", "a=runs/a", status=2).output
    assert "there is nothing at runs/a" in absent
    assert ".onnx or .pt2" in run("export", tmp_path / "fused.json", "--out", tmp_path / "a.bin", status=2).output


class Broken(nn.Module):
    """A network whose answer is NaN."""

    def forward(self, clips):
        return clips.flatten(1)[:, :6] * float("nan")


def test_an_export_that_answers_nan_is_not_written(tmp_path):
    """As far from torch as from anything: NaN is in no order with the limit."""
    ensemble = Ensemble(fitted(vf.LinearPool({"a": 1, "b": 0, "c": 2})), {"a": network(0), "c": Broken()})
    with pytest.raises(VidfuseError, match="a probability differs by nan; nothing was written"):
        exports.export(ensemble, tmp_path / "a.pt2", clips=dict.fromkeys("ac", (2, 4, 4)))
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_members_without_a_checkpoint_and_other_networks(tmp_path):
    stack = vf.LogitStack.from_arrays({name: LOGITS[name] for name in "ab"}, labels=LABELS)
    vf.Recipe.from_fitted(vf.LinearPool("uniform").fit(stack), stack).save(tmp_path / "fused.json")
    torch.save(vf.networks.create("x3d_tiny", num_classes=6).state_dict(), tmp_path / "x.pt")
    given = ["export", tmp_path / "fused.json", *(w for n in "ab" for w in ("--checkpoint", f"{n}={tmp_path}/x.pt"))]
    named = ["--network", "a=x3d_tiny", "--network", "b=x3d_tiny"]
    other = run(*given, *named, "--network", "c=x3d_tiny", status=2).output
    assert "--network: expected members with a --checkpoint, got c" in other
    other = run(*given, *named, "--clips", "c=8x64x64", status=2).output
    assert "--clips: expected members with a --checkpoint, got c" in other
