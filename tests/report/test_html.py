"""The page: self-contained, well-formed, honest about how its scores were taken."""

from __future__ import annotations

import base64
import html
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import vidfuse as vf
import vidfuse.report
from vidfuse._tables import points
from vidfuse.cache.reader import PartsSource
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import InputError, VidfuseWarning
from vidfuse.evaluation.trial import open_trial
from vidfuse.evaluation.worth import member_worth
from vidfuse.fusion.rule import Rule
from vidfuse.report.drawings import DARK_FROM
from vidfuse.report.html import findings_of, held, sampled

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


def page_of(tmp_path, stack, curves=False, again=False, **options):
    """Write a page; only with `again` the headline rule is fitted for contributions, combinations and curves, too."""
    with mock.patch("vidfuse.report.html._MOST_FITS", 60 if again else 0):
        page = vf.write_report(stack, tmp_path / "deep" / "report.html", curves=curves, **options)
    text = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return text, checker


def headings(text):
    return re.findall(r"<h2 [^>]*>(.*?)</h2>", text)


def test_the_page_answers_first_and_shows_what_the_answer_rests_on(tmp_path):
    val, test = make_stack(seed=1), make_stack(seed=2)
    text, checker = page_of(tmp_path, val, test=test, title="Trial & error", again=True)
    board = vf.leaderboard(val, test)
    assert html.escape(board.headline()) in re.sub(r"</?span[^>]*>", "", text.split("<nav")[0])
    assert "<title>Trial &amp; error</title>" in text
    assert "Rules were fitted on 120 videos and scored on 120 others." in text
    assert headings(text) == [
        "What to do",
        "Leaderboard",
        "Weights",
        "Contributions",
        "Growing combinations",
        "How many are enough",
        "Classes",
        "Agreement",
        "Calibration",
        "Confusions",
        "Confident mistakes",
        "How this was computed",
    ]
    assert [attrs["lang"] for tag, attrs in checker.tags if tag == "html"] == ["en"]
    assert "IN-SAMPLE" not in text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text, checker = page_of(tmp_path, make_stack(), thumbnails={f"v{i}": PNG for i in range(120)})
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in checker.links)
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert "prefers-color-scheme: dark" in text


def test_thumbnails_stand_with_the_mistakes(tmp_path):
    stack = make_stack(strength=0.8)
    text, _ = page_of(tmp_path, stack, thumbnails={"v0": b"GIF89a", **{f"v{i}": PNG for i in range(1, 120)}})
    encoded = base64.b64encode(PNG).decode()
    assert text.count(f'src="data:image/png;base64,{encoded}"') + text.count("data:image/gif") == 12
    with pytest.raises(InputError, match=r"thumbnail of 'v\d+': expected the bytes of a PNG"):
        vf.write_report(stack, tmp_path / "report.html", thumbnails={f"v{i}": b"text" for i in range(120)})


def test_pictures_come_from_a_folder_and_other_names_are_said(tmp_path):
    stack, folder = make_stack(strength=0.8), tmp_path / "pictures"
    folder.mkdir()
    for name in stack.ids:
        (folder / f"{name}.png").write_bytes(PNG)
    text, _ = page_of(tmp_path, stack, thumbnails=folder)
    assert text.count('src="data:image/png;base64,') == 12
    with pytest.warns(VidfuseWarning, match="none of the 12 mistakes that are shown has a picture: .* such as 'x0'"):
        page_of(tmp_path, stack, thumbnails={"x0": PNG})


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
    assert "gets 100.0 %" in re.sub("</?span[^>]*>", "", text)


def test_a_single_member_is_reported_too(tmp_path):
    text, _ = page_of(tmp_path, make_stack(members=("swin",)), rules={"itself": vf.LogLinearPool(weights="uniform")})
    assert "Agreement" not in headings(text)
    assert "0.0 points over the best single member (swin)" in text


def test_members_that_rule_classes_out_are_reported(tmp_path):
    stack = make_stack(n=60)
    hard = {name: np.where(np.eye(4)[stack.scores(name).argmax(axis=1)] > 0, 0.0, -np.inf) for name in stack.members}
    stack = vf.LogitStack.from_arrays(hard, labels=stack.labels, ids=stack.ids)
    for again in (False, True):
        text, _ = page_of(tmp_path, stack, again=again)
        assert "Contributions" in headings(text) and "Growing combinations" in headings(text)


def test_views_are_kept_for_the_vote(tmp_path):
    rng = np.random.default_rng(3)
    y = np.arange(60) % 3
    z = {m: rng.normal(size=(60, 4, 3)) + np.eye(3)[y][:, None] for m in ("swin", "x3d")}
    text, _ = page_of(tmp_path, vf.LogitStack.from_arrays(z, labels=y))
    assert "the majority of 4 views of the score-weighted fusion" in text


def test_the_same_input_gives_the_same_page(tmp_path):
    pages = [
        vf.write_report(make_stack(), tmp_path / name, rules={"a": vf.LogLinearPool("accuracy")}).read_bytes()
        for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]


def test_contributions_are_those_of_the_headline_rule(tmp_path):
    val, test = make_stack(seed=1), make_stack(seed=2)
    text, _ = page_of(tmp_path, val, test=test, again=True)
    worth = member_worth(val, test)
    plain = re.sub("</?strong>", "", text)
    for row in worth.rows:
        low, high = row.lost.interval
        cell = f"<td>{points(row.lost.difference)} <small>({points(low)} to {points(high)})</small></td>"
        assert re.search(f'<th scope="row">{row.member}</th><td>[^/]*</small></td>{re.escape(cell)}', plain)


def test_what_would_take_minutes_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("vidfuse.report.html._MOST_NUMBERS", 100)
    val, test = make_stack(seed=1), make_stack(seed=2)
    text, _ = page_of(tmp_path, val, test=test, curves=True)
    assert "anew without each member would take minutes here" in text
    assert "on each would take minutes here; `combination_table` does it" in text
    assert "Labelled videos that weights are fitted on" not in text
    shapley, without = vf.shapley_values(test, objective="accuracy"), vf.leave_one_out(test, objective="accuracy")
    plain = re.sub("</?strong>", "", text)
    for name in test.members:
        cells = f"<td>{points(shapley.values[name])}</td><td>{points(without.values[name])}</td>"
        assert re.search(f'<th scope="row">{name}</th><td>[0-9.]+</td>{re.escape(cells)}', plain)


def test_curves_say_how_many_are_enough(tmp_path):
    rng = np.random.default_rng(3)
    y = np.arange(120) % 3
    z = {m: rng.normal(size=(120, 4, 3)) + np.eye(3)[y][:, None] for m in ("swin", "x3d")}
    stack = vf.LogitStack.from_arrays(z, labels=y, ids=[f"v{i}" for i in range(120)])
    rules = {"mine": vf.LogLinearPool(weights="accuracy")}
    text, _ = page_of(tmp_path, stack, rules=rules, curves=True, again=True, costs={"swin": 3.0, "x3d": 1.0})
    for title in ("Labelled videos that weights are fitted on", "Members, as they join", "Views of each video"):
        assert f"<figcaption>{title}. From " in text
    members = vf.members_curve(vf.reduce_views(stack, "mean-log"), rule=rules["mine"], cost={"swin": 3.0, "x3d": 1.0})
    assert f"They join in this order: {members.points[0].label}, {members.points[1].label}." in text


def test_the_page_says_from_which_confidence_on_errors_are_bounded(tmp_path):
    """By the threshold for the largest round error below that of all videos; with too few videos there is none."""
    text, _ = page_of(tmp_path, make_stack(n=600, strength=2.0, ids=None))
    said = re.search(r"Answering from a confidence of ([\d.]+) on, at most ([\d.]+) % of the answered are wrong", text)
    assert said
    assert 0 < float(said[1]) < 1
    assert float(said[2]) in (20, 10, 5, 2, 1)
    assert "certified" in text
    assert "Answering from a confidence" not in page_of(tmp_path, make_stack(n=12, ids=None))[0]


def test_figures_for_a_paper_are_written_beside_the_page(tmp_path):
    val, test = make_stack(seed=1), make_stack(seed=2)
    rules = {"mine": vf.LogLinearPool("accuracy")}
    page_of(
        tmp_path, val, test=test, rules=rules, figures=tmp_path / "figures", formats=["svg"], curves=True, again=True
    )
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "agreement.svg",
        "contributions.svg",
        "leaderboard.svg",
        "members-curve.svg",
        "reliability.svg",
        "risk.svg",
        "videos-curve.svg",
    ]


def test_members_may_lack_videos_where_the_stack_says_so(tmp_path):
    full = make_stack()
    ids = {name: full.ids[: 120 - 20 * number].tolist() for number, name in enumerate(full.members)}
    arrays = {name: full.scores(name)[: len(ids[name])] for name in full.members}
    labels = dict(zip(full.ids.tolist(), full.labels.tolist(), strict=True))
    stack = vf.LogitStack.from_arrays(arrays, ids=ids, labels=labels, join="outer")
    text, _ = page_of(tmp_path, stack, curves=True, again=True)
    assert "The fusion of 3 members gets" in text
    assert "Contributions" in headings(text) and "Some members lack videos: there the others take" in text
    assert "Members, as they join" in text
    text, _ = page_of(tmp_path, stack, curves=True)
    for call in ("learning_curve", "members_curve"):
        assert f"would take minutes here; `{call}` does it." in text


@pytest.mark.parametrize(
    ("views", "held_out", "most"),
    [
        # cross-fitted: learned 5, calibrated 5 and score weights within 5, greedy 5 and pools of its weights 5,
        # three rules that learn nothing 1 each, the headline's weights 1 (29); what each of 7 members is worth 5 (35);
        # the combination table: learned weights 5 for each combination of 2 to 6 (25), score weights 1, from which the
        # folds' follow, also those of the vote of views; the others are those of the board, and the six most accurate
        # members are those without the seventh (-5)
        (None, False, 85),
        (3, False, 85),
        # held-out: the same six rules 1 or 2 each (8); members 7; the table 5 + 1; shared 1
        (None, True, 20),
        (3, True, 20),
    ],
)
def test_a_rule_is_fitted_once_for_each_fold(tmp_path, monkeypatch, views, held_out, most):
    fits = []
    monkeypatch.setattr(Rule, "fit", lambda self, *args, _fit=Rule.fit: fits.append(self) or _fit(self, *args))
    rng = np.random.default_rng(0)
    y = np.arange(160) % 4
    shape = (160, 4) if views is None else (160, views, 4)
    one_hot = np.eye(4)[y].reshape(160, *[1] * (len(shape) - 2), 4)
    arrays = {f"net{i}": rng.normal(size=shape) + one_hot for i in range(7)}
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(160)])
    options = {"test": stack[80:]} if held_out else {}
    text, _ = page_of(tmp_path, stack[:80] if held_out else stack, again=True, **options)
    assert "Contributions" in headings(text)
    assert len(fits) == most


@pytest.mark.parametrize("objective", ["accuracy", "nll"])
def test_no_rule_is_fitted_twice_on_the_same_members_and_videos(tmp_path, monkeypatch, objective):
    fits = []

    def fit(self, stack, *args, _fit=Rule.fit):
        fits.append((type(self).__name__, repr(self), frozenset(stack.members), tuple(stack.ids)))
        return _fit(self, stack, *args)

    monkeypatch.setattr(Rule, "fit", fit)
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    arrays = {f"net{i}": rng.normal(size=(80, 2)) + (1 - i / 4) * np.eye(2)[y] for i in range(4)}
    stack = vf.LogitStack.from_arrays(arrays, labels=y, ids=[f"v{i}" for i in range(80)])
    page = vf.write_report(stack, tmp_path / "report.html", folds=2, objective=objective).read_text()
    assert "in the order of the curve below" in page and "They join in this order" in page
    assert len(set(fits)) == len(fits)


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


class Outline(HTMLParser):
    """What a screen reader and a validator look at: headings, names, and where links lead."""

    def __init__(self):
        super().__init__()
        self.headings, self.ids, self.links, self.faults = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        named = attrs.get("aria-label") or attrs.get("aria-labelledby")
        if (attrs.get("role") in ("img", "region") or tag in ("section", "nav")) and not named:
            self.faults.append(f"<{tag}> has no name")
        if tag == "svg" and not (named or attrs.get("aria-hidden") == "true"):
            self.faults.append("a drawing is neither described nor hidden")
        if tag == "img" and not attrs.get("alt"):
            self.faults.append("a picture without alt")
        if tag == "th" and attrs.get("scope") not in ("row", "col"):
            self.faults.append("a heading cell without scope")
        if "scroll" in attrs.get("class", "").split() and attrs.get("tabindex") != "0":
            self.faults.append("a box that scrolls cannot be reached by keys")


def test_the_outline_is_one_that_a_screen_reader_can_follow(tmp_path):
    text, _ = page_of(tmp_path, make_stack(strength=0.8), thumbnails={f"v{i}": PNG for i in range(120)})
    outline = Outline()
    outline.feed(text)
    assert outline.faults == []
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(outline.headings))
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert len(outline.links) == len(headings(text))
    assert "<main>" in text and "<header>" in text and '<html lang="en">' in text


def themes():
    """Return the colours of page.css: light, dark, and on paper."""
    css = (Path(vidfuse.report.__file__).parent / "page.css").read_text()
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for name, block in zip(("light", "dark", "paper"), re.findall(r":root \{(.*?)\}", css, re.DOTALL), strict=True)
    }


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def contrast(first, second):
    """WCAG 2.2, relative luminance and contrast ratio, of sRGB colours 0 … 1."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (first, second)]
    high, low = sorted((float(c @ (0.2126, 0.7152, 0.0722)) for c in linear), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_words_and_marks_stand_out_in_every_theme(theme):
    colours = {name: rgb(colour) for name, colour in themes()[theme].items()}
    for word in ("text", "muted", "accent", "down"):
        for ground in ("surface", "raised"):
            assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
    for mark in ("member", "fusion", "accent", "down"):
        assert contrast(colours[mark], colours["surface"]) >= 3, mark
    for depth in np.arange(101) / 100:
        ground = depth * colours["heat"] + (1 - depth) * colours["surface"]
        assert contrast(colours["on-heat" if depth > DARK_FROM else "ink"], ground) >= 4.5, depth


def test_facts_of_equal_value_stand_side_by_side(tmp_path):
    """Three classes and three members are two facts."""
    text, _ = page_of(tmp_path, make_stack(k=3))
    strip = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text.split("<nav")[0])
    assert strip[:3] == [("videos scored", "120"), ("classes", "3"), ("members", "3")]


def test_a_page_of_many_long_names_and_large_thumbnails_stays_small(tmp_path):
    members = [f"a member with a long name and the number {i}" for i in range(17)]
    stack = make_stack(n=160, k=40, members=members, strength=0.5, classes=[f"class {i} " * 5 for i in range(40)])
    rules = {"uniform": vf.LogLinearPool(weights="uniform")}
    text, _ = page_of(tmp_path, stack, rules=rules, thumbnails={f"v{i}": PNG.ljust(100_000, b"x") for i in range(160)})
    assert len(text.encode()) < 2_000_000
    with pytest.raises(InputError, match=r"thumbnail of 'v\d+': expected at most 100,000 bytes, got 100,001"):
        vf.write_report(
            stack, tmp_path / "x.html", rules=rules, thumbnails={f"v{i}": PNG.ljust(100_001) for i in range(160)}
        )


def test_a_page_from_a_sample_says_so_and_keeps_groups_whole(tmp_path):
    stack, test = make_stack(120), make_stack(80, seed=1)
    sources = [f"s{row // 4}" for row in range(120)]
    found = findings_of(stack.with_groups(sources), curves=False, sample=61)
    names, sizes = np.unique(found.trial.fit_stack.groups, return_counts=True)
    assert len(names) == 15 and set(sizes) == {4} and found.drawn().endswith("by chance: 60 of 120.")
    assert findings_of(stack, curves=False, groups=sources, sample=61).scored.ids.tolist() == found.scored.ids.tolist()
    text, _ = page_of(tmp_path, stack, test=test, sample=90)
    assert "All of it is of videos drawn by chance: 90 of 120." in text  # the test stack is whole
    assert "drawn by chance" not in page_of(tmp_path, stack, test=test, sample=120)[0]
    uneven = stack.with_groups(["big"] * 100 + ["small"] * 20)
    assert set(sampled(uneven, 30).groups) == {"small"}
    with pytest.raises(InputError, match="room for a group, of at least 20 videos, got 10"):
        sampled(uneven, 10)
    with pytest.raises(InputError, match="sample: expected a whole number of at least 1, got 0"):
        vf.write_report(stack, tmp_path / "p.html", sample=0)


def test_a_sample_is_read_from_the_files_once_and_holds_what_they_hold(tmp_path, monkeypatch):
    """Also where a member lacks videos, and with views."""
    rng = np.random.default_rng(4)
    ids = [f"v{row:02d}" for row in range(60)]
    for name, rows in (("a", range(60)), ("b", range(0, 60, 2))):
        scores = rng.normal(size=(len(rows), 2, 3)).astype(np.float32)
        with CacheWriter(tmp_path / "caches" / name) as writer:
            writer.append([ids[row] for row in rows], scores, [0] * len(rows))
    stack = vf.load_stack(tmp_path / "caches", views=None, join="outer")
    few = held(open_trial(sampled(stack, 20), folds=2)).scored
    at = [ids.index(one) for one in few.ids]
    expected, present = stack.log_likelihoods(at), stack.present[at]
    reads = []
    take = PartsSource.take
    monkeypatch.setattr(PartsSource, "take", lambda source, rows: reads.append(rows) or take(source, rows))
    assert np.array_equal(few.log_likelihoods(), expected)
    assert np.array_equal(few.present, present) and 0 < present[:, 1].sum() < 20
    assert few.labels.tolist() == [0] * 20 and not reads


def test_a_sample_of_scores_without_ids_that_were_fitted_on_is_called_in_sample():
    stack = make_stack(200, ids=None)
    found = findings_of(stack, stack[:150], sample=100, curves=False)
    assert found.trial.protocol.name == "partly in-sample" and 0 < found.trial.protocol.n_shared < 100
