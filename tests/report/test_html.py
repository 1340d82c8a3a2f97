"""The page: self-contained, well-formed, honest about how its scores were taken."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import vidfuse as vf
from vidfuse._tables import points
from vidfuse.errors import InputError

PNG = b"\x89PNG\r\n\x1a\nnot really"
VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Collects tags, and raises where they are not nested."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_stack(n=120, k=4, seed=0, members=("swin", "x3d", "tin"), strength=1.5, **options):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    arrays = {m: (rng.normal(size=(n, k)) + strength * np.eye(k)[y]).astype(np.float32) for m in members}
    options.setdefault("ids", [f"{seed or 'v'}{i}" for i in range(n)])
    return vf.LogitStack.from_arrays(arrays, labels=y, **options)


def page_of(tmp_path, stack, **options):
    text = vf.write_report(stack, tmp_path / "deep" / "report.html", **options).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return text, checker


def headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_the_page_answers_first_and_shows_what_the_answer_rests_on(tmp_path):
    val, test = make_stack(seed=1), make_stack(seed=2)
    text, checker = page_of(tmp_path, val, test=test, title="Trial & error")
    board = vf.leaderboard(val, test)
    assert f"<h1>{html.escape(board.headline())}</h1>" in text
    assert "<title>Trial &amp; error</title>" in text
    assert "Rules were fitted on 120 videos and scored on 120 others." in text
    assert headings(text) == [
        "Leaderboard",
        "Growing combinations",
        "Weights",
        "Contributions",
        "Classes",
        "Agreement",
        "Calibration",
        "Confusions",
        "Confident mistakes",
        "How this was computed",
    ]
    assert [attrs["lang"] for tag, attrs in checker.tags if tag == "html"] == ["en"]
    assert all(attrs.get("aria-label") for tag, attrs in checker.tags if tag == "svg")
    assert "IN-SAMPLE" not in text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text, checker = page_of(tmp_path, make_stack(), thumbnails={f"v{i}": PNG for i in range(120)})
    assert all(link.startswith("data:image/png;base64,") for link in checker.links)
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert "prefers-color-scheme: dark" in text


def test_thumbnails_stand_with_the_mistakes(tmp_path):
    stack = make_stack(strength=0.8)
    text, _ = page_of(tmp_path, stack, thumbnails={"v0": b"GIF89a", **{f"v{i}": PNG for i in range(1, 120)}})
    encoded = base64.b64encode(PNG).decode()
    assert text.count(f'src="data:image/png;base64,{encoded}"') + text.count("data:image/gif") == 12
    with pytest.raises(InputError, match=r"thumbnail of 'v\d+': expected the bytes of a PNG"):
        vf.write_report(stack, tmp_path / "report.html", thumbnails={f"v{i}": b"text" for i in range(120)})


def test_in_sample_scores_warn_at_the_top(tmp_path):
    text, _ = page_of(tmp_path, make_stack(), folds=0)
    assert '<p class="warning">IN-SAMPLE: the 120 videos' in text.split("<main>")[0]
    assert "(in-sample)." in text


def test_row_46_the_page_says_order_unchecked(tmp_path):
    text, _ = page_of(tmp_path, make_stack(ids=None))
    assert "Order unchecked" in text.split("<main>")[0]


def test_row_18_a_report_needs_labels(tmp_path):
    bare = vf.LogitStack.from_arrays({"a": np.zeros((3, 2))})
    with pytest.raises(InputError, match="needs labels"):
        vf.write_report(bare, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_names_are_escaped(tmp_path):
    stack = make_stack(members=("x3d", "a & b"), classes=["<script>0</script>", "1", "2", "3"])
    text, checker = page_of(tmp_path, stack)
    assert "script" not in {tag for tag, _ in checker.tags}
    assert "&lt;script&gt;0&lt;/script&gt;" in text


def test_many_classes_are_cut_to_those_that_matter(tmp_path):
    stack = make_stack(n=300, k=60, strength=3.0)
    text, _ = page_of(tmp_path, stack)
    assert "Of 60 classes, the 10 that gain most and the 10 that gain least." in text
    assert "The 24 of 60 classes with the most errors." in text


def test_a_vote_has_no_weights_to_fit_and_a_perfect_fusion_no_mistakes(tmp_path):
    text, _ = page_of(tmp_path, make_stack(strength=40.0), rules={"learned": vf.LogLinearPool(weights="uniform")})
    assert "Confusions" not in headings(text)
    assert "Confident mistakes" not in headings(text)
    assert "gets 100.0 %" in text


def test_a_single_member_is_reported_too(tmp_path):
    text, _ = page_of(tmp_path, make_stack(members=("swin",)), rules={"itself": vf.LogLinearPool(weights="uniform")})
    assert "Agreement" not in headings(text)
    assert "0.0 points over the best single member (swin)" in text


def test_views_are_kept_for_the_vote(tmp_path):
    rng = np.random.default_rng(3)
    y = np.arange(60) % 3
    z = {m: rng.normal(size=(60, 4, 3)) + np.eye(3)[y][:, None] for m in ("swin", "x3d")}
    text, _ = page_of(tmp_path, vf.LogitStack.from_arrays(z, labels=y))
    assert "the majority of 4 views of the score-weighted fusion" in text


def test_the_same_input_gives_the_same_page(tmp_path):
    pages = [vf.write_report(make_stack(), tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_contributions_are_those_of_the_library(tmp_path):
    val, test = make_stack(seed=1), make_stack(seed=2)
    text, _ = page_of(tmp_path, val, test=test)
    shapley, without = vf.shapley_values(test, objective="accuracy"), vf.leave_one_out(test, objective="accuracy")
    for name in test.members:
        cells = f"<td>{points(shapley.values[name])}</td><td>{points(without.values[name])}</td>"
        assert re.search(f'<th scope="row">{name}</th><td>[0-9.]+</td>{re.escape(cells)}', text)


def test_members_may_lack_videos_where_the_stack_says_so(tmp_path):
    full = make_stack()
    ids = {name: full.ids[: 120 - 20 * number].tolist() for number, name in enumerate(full.members)}
    arrays = {name: full.scores(name)[: len(ids[name])] for name in full.members}
    labels = dict(zip(full.ids.tolist(), full.labels.tolist(), strict=True))
    stack = vf.LogitStack.from_arrays(arrays, ids=ids, labels=labels, join="outer")
    text, _ = page_of(tmp_path, stack)
    assert "The fusion of 3 members gets" in text
    assert "Contributions" not in headings(text)


@pytest.mark.parametrize(
    ("views", "held_out", "most"),
    [
        # cross-fitted: learned and score-weighted 5 each, three rules that learn nothing 1 each, the headline's weights
        # 1 (14); the combination table: score weights 5, equal weights 1, vote 1, or by views 1 + 5
        (None, False, 21),
        (3, False, 26),
        # held-out: five rules 1 each; the table 3, or 4
        (None, True, 8),
        (3, True, 9),
    ],
)
def test_a_rule_is_fitted_once_for_each_fold(tmp_path, monkeypatch, views, held_out, most):
    fits = []
    for rule in (vf.LogLinearPool, vf.LinearPool, vf.MajorityVote):
        monkeypatch.setattr(rule, "fit", lambda self, *args, _fit=rule.fit: fits.append(self) or _fit(self, *args))
    rng = np.random.default_rng(0)
    y = np.arange(160) % 4
    shape = (160, 4) if views is None else (160, views, 4)
    one_hot = np.eye(4)[y].reshape(160, *[1] * (len(shape) - 2), 4)
    arrays = {f"net{i}": rng.normal(size=shape) + one_hot for i in range(7)}
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(160)])
    options = {"test": stack[80:]} if held_out else {}
    text, _ = page_of(tmp_path, stack[:80] if held_out else stack, **options)
    assert "Contributions" in headings(text)
    assert len(fits) == most


def test_a_bin_of_the_reliability_diagram_holds_at_least_five_videos(tmp_path):
    """Of six videos at a confidence of 0.95, five at 0.65 and four at 0.45, the last ones have no dot."""
    sizes = {0.95: 6, 0.65: 5, 0.45: 4}
    confidence = np.repeat(list(sizes), list(sizes.values()))
    y = np.arange(15) % 4
    p = np.where(np.eye(4, dtype=bool)[y], confidence[:, None], (1 - confidence[:, None]) / 3)
    stack = vf.LogitStack.from_arrays({"a": np.log(p), "b": np.log(p)}, labels=y, ids=[f"v{i}" for i in range(15)])
    text, _ = page_of(tmp_path, stack)
    assert re.findall(r"<title>a: confidence ([\d.]+), accuracy 100.0, (\d) videos", text) == [
        ("65.0", "5"),
        ("95.0", "6"),
    ]
