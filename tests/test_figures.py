"""The tables of the pages quote what the benchmarks wrote into `benchmarks/results`.

A benchmark that is run again changes its file; these tests then name what the pages still quote of the run before.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"  # as the pages write them
SIZES = ("100", "20 %", "50 %")
RULES = {  # what the pages call a rule, and what the benchmark does
    "the default, groups given": "vidfuse default, groups given",
    "the default, without groups": "vidfuse default",
    "the default": "vidfuse default",
    "accuracy-weighted log-likelihoods, calibrated": "accuracy log-linear, calibrated",
    "accuracy-weighted log-likelihoods": "accuracy log-linear (the paper's)",
    "average of probabilities, then `probmetrics`' ts-mix": "average, then probmetrics' ts-mix",
    "average of probabilities, then `probmetrics`' logistic": "average, then probmetrics' logistic",
    "members by `probmetrics`' ts-mix, then their average": "members by probmetrics' ts-mix, then average",
    "linear optimum": "linear optimum",
    "CMA-ES, softmax weights (`cma`)": "CMA-ES, softmax weights",
    "`phem`'s ensemble selection, 50 iterations": "phem's selection, 50 iterations",
    "uniform log-likelihoods": "uniform log-linear",
    "Caruana, 50 rounds": "Caruana, 50 rounds",
    "AutoGluon, 25 rounds": "AutoGluon, 25 rounds",
    "`hillclimbers`": "hillclimbers",
    "accuracy-weighted probabilities": "accuracy linear",
    "majority vote": "majority vote",
    "uniform probabilities (soft voting)": "uniform linear (scikit-learn's soft voting)",
    "best single": "best single",
    "scikit-learn's stacking": "scikit-learn's stacking",
}
README_RULES = {
    "vidfuse, the default, groups given": "vidfuse default, groups given",
    "vidfuse, score weights, calibrated": "accuracy log-linear, calibrated",
    "AutoGluon's ensemble selection (25 rounds)": "AutoGluon, 25 rounds",
    "`hillclimbers`": "hillclimbers",
    "average of probabilities, as MMAction2's `report_accuracy` adds scores": (
        "uniform linear (scikit-learn's soft voting)"
    ),
    "scikit-learn's stacking": "scikit-learn's stacking",
    "best single member": "best single",
}


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def page(name):
    """The page, with emphasis taken off: the best of a row may be bold."""
    return (ROOT / name).read_text(encoding="utf-8").replace("**", "")


def section(name, heading):
    """What stands under a heading of a page, down to the next of its level."""
    text = page(name)
    start = text.index(f"\n{heading}\n")
    end = text.find("\n" + heading.split()[0] + " ", start + len(heading))
    return text[start : end if end > 0 else None]


def rows_of(text):
    """{first cell: the other cells} of every row of the text's tables."""
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in text.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def signed(value, digits):
    return f"{value:+.{digits}f}".replace("-", MINUS) if round(value, digits) else f"{0:.{digits}f}"


def test_published_predictions_beside_other_packages():
    """Each of the nineteen rules, on the page and in the README."""
    table = {row["rule"]: row for row in results("fusion_quality_dumps")["among rules from elsewhere"]}
    shown = rows_of(section("docs/benchmarks.md", "### Published predictions of video models"))
    assert {RULES[name] for name in shown if name in RULES} == set(table)
    for name in set(shown) & set(RULES):
        row = table[RULES[name]]
        low, high = row["NLL rank interval"]
        pairs = [f"{row[f'NLL at {size}']:.3f} / {100 * row[f'accuracy at {size}']:.1f}" for size in SIZES]
        assert shown[name] == [*pairs, f"{row['NLL rank']:.1f} ({low:.1f}{DASH}{high:.1f})"], name
    first = rows_of(section("README.md", "## Why"))
    assert set(README_RULES) < set(first)
    for name, rule in README_RULES.items():
        row = table[rule]
        assert first[name][:2] == [f"{row['NLL at 20 %']:.3f}", f"{100 * row['accuracy at 20 %']:.1f} %"], name


def test_what_few_videos_and_groups_are_worth():
    table = {row["rule"]: row for row in results("fusion_quality_dumps")["among rules from elsewhere"]}
    grouped, default = table["vidfuse default, groups given"], table["vidfuse default"]
    weighted = table["accuracy log-linear, calibrated"]
    words = " ".join(page("docs/how-to/few-videos.md").split())
    assert (
        f"it gets {100 * grouped['accuracy at 100']:.1f} % ({100 * default['accuracy at 100']:.1f} % without groups), "
        f"and weights by accuracy get {100 * weighted['accuracy at 100']:.1f} %" in words
    )
    losses = [row["NLL at 100"] for row in (grouped, default, weighted)]
    assert "({:.3f}, {:.3f} without groups, and {:.3f} for weights by accuracy".format(*losses) in words
    spans = [[row[f"NLL at {size}"] for size in SIZES] for row in (grouped, default)]
    texts = [f"{min(span):.3f} to {max(span):.3f}" for span in spans]
    assert f"{texts[0]}, without {texts[1]}" in page("docs/how-to/groups.md")


def test_classifiers_of_scikit_learn():
    table = {row["rule"]: row for row in results("fusion_quality")["among rules from elsewhere"]}
    shown = rows_of(section("docs/benchmarks.md", "### Classifiers of scikit-learn"))
    assert {RULES[name] for name in shown if name in RULES} == set(table)
    for name in set(shown) & set(RULES):
        row = table[RULES[name]]
        ranks = [
            f"{row[f'{what} rank']:.2f} ({low:.2f}{DASH}{high:.2f})"
            for what in ("NLL", "accuracy")
            for low, high in [row[f"{what} rank interval"]]
        ]
        assert shown[name] == [*ranks, f"{row['accuracy']:.4f}"], name


def test_why_not_just_average():
    """The page's table and counts, from the file that the benchmark wrote."""
    found = results("fusion_quality_dumps")
    cases, text = found["each case: NLL, accuracy"], page("docs/why-not-average.md")
    best, soft, logs = "best single", "uniform linear (scikit-learn's soft voting)", "uniform log-linear"
    learned = "vidfuse default, groups given"
    shown = rows_of(section("docs/why-not-average.md", "## The figures"))
    assert set(shown) == {"set", "---|---|---|---|---", *found["sets"]}
    for name in found["sets"]:
        own = [case for case in cases if case["set"] == name and case["size"] == "20 %"]
        means = [np.mean([case[rule] for case in own], axis=0) for rule in (best, soft, logs, learned)]
        assert shown[name] == [f"{100 * accuracy:.1f} / {nll:.3f}" for nll, accuracy in means], name

    def count(rule, than):
        return sum(case[rule][1] > case[than][1] for case in cases)

    words = " ".join(text.split())
    average_wins = sum(max(case[soft][1], case[logs][1]) > case[learned][1] for case in cases)
    assert f"beats the best member in {count(soft, best)} of the {len(cases)} cases" in words
    assert (
        f"than averaged probabilities in {count(learned, soft)} of {len(cases)} cases and than averaged "
        f"log-likelihoods in {count(learned, logs)}; in {average_wins} the better of the two" in words
    )


def test_fusion_strategies():
    kinds = results("strategies").values()
    shown = rows_of(section("docs/benchmarks.md", "### Fusion strategies"))
    names = list(next(iter(next(iter(kinds)).values())))
    assert set(names) < set(shown)
    for name in names:
        expected = []
        for sets in kinds:
            gains = [each[name][0] - each["best single member"][0] for each in sets.values()]
            expected += [signed(100 * np.mean(gains), 1), f"{np.mean([each[name][1] for each in sets.values()]):.3f}"]
        assert shown[name] == expected, name


def test_networks_beside_their_peers():
    shown = section("docs/benchmarks.md", "## Networks")
    for name in ("networks", "networks_cuda"):
        for row in results(name)["rows"]:
            if "ratio" not in row:
                continue
            spread = f" ({row['ratio_low']:.2f}{DASH}{row['ratio_high']:.2f})" if row["rounds"] > 1 else ""
            assert f"| {row['ratio']:.2f}{spread} | {row['fastest_peer']} |" in shown, (name, row)


def test_cascades_and_exact_stopping():
    found = results("cascades")
    text = section("docs/benchmarks.md", "## Exact stopping and cascades")
    for name, one in found["cascades"].items():
        if not one["certified"]:  # told in words: all members run
            continue
        used, least = one["used"], one["cheapest"]
        cells = [one["members"], f"{one['videos_fitted']:,}", one["splits"], f"{100 * one['at_most']:.0f}"]
        cells += [f"{one['gain_points']:.2f}", f"{100 * used['exceeded']:.1f}", f"{used['lost_points']:.2f}"]
        cells += [f"{100 * used['gain_kept']:.0f}", f"{100 * used['cost']:.0f}", f"{100 * least['exceeded']:.1f}"]
        cells += [f"{least['lost_points']:.2f}", f"{100 * least['cost']:.0f}"]
        assert " | ".join(map(str, cells)).replace("-", MINUS) in text, name
    families = ("dmcnet_ucf101", "autsl", "dmcnet_hmdb51", "seqvlad", "twostream", "drawn")
    for rule in found["stopping"]["drawn"]:
        cells = []
        for family in families:
            own = [one[rule] for name, one in found["stopping"].items() if name.startswith(family)]
            saved, ceiling = (100 * np.mean([one[key] for one in own]) for key in ("saved", "ceiling"))
            cells.append(f"{saved:.0f} of {ceiling:.0f}")
            assert not any(one["other_labels"] for one in own)
        assert rows_of(text)[rule.replace("^4", "⁴")] == cells, rule


def test_intervals_and_tests():
    cells = results("coverage")["simulated"]
    shown = rows_of(section("docs/benchmarks.md", "## Do intervals hold?"))
    parts = {groups: [cell for cell in cells if cell["groups"] == groups] for groups in (0, 30, 700)}
    told = {
        "interval of accuracy covers": ("coverage", "accuracy"),
        "… of mean class accuracy": ("coverage", "mean class accuracy"),
        "… of NLL": ("coverage", "nll"),
        "… of a gain of accuracy": ("coverage", "gain of accuracy"),
        "… of a gain of mean class accuracy": ("coverage", "gain of mean class accuracy"),
        "… of a gain of NLL": ("coverage", "gain of nll"),
        "equal rules are told apart, by accuracy": ("rejected", "accuracy"),
        "… by mean class accuracy": ("rejected", "mean class accuracy"),
        "any of three equal rules' pairs, by accuracy (Holm)": ("any rejected", "accuracy"),
        "… by NLL": ("any rejected", "nll"),  # the last of two rows that are called so
    }
    for name, (part, what) in told.items():
        spans = [[cell[part][what] for cell in own] for own in parts.values()]
        assert shown[name] == [f"{min(span):.3f} … {max(span):.3f}" for span in spans], name


def test_abstaining_sets_and_alarms():
    found = results("reliability_claims")
    text = section("docs/benchmarks.md", "## Abstaining, sets and alarms")
    families = {"HMDB51": "dmcnet_hmdb51", "DMC-Net": "dmcnet_ucf101", "SeqVLAD": "seqvlad", "15 classes": "twostream"}
    pooled = defaultdict(list)
    for row in found["sets and abstaining, shared rule"]:
        pooled[row["stated"], row["by"], row["set"].split("_split")[0]].append(row)
    for stated in (0.9, 0.95):
        for own in families.values():
            cells = []
            for by in ("vidfuse, least-ambiguous", "MAPIE lac, best member"):
                rows = [r for key, some in pooled.items() if key[:2] == (f"sets, {stated}", by) and
                        key[2].startswith(own) for r in some]  # fmt: skip
                weights = [row["splits"] for row in rows]
                held, size = (np.average([row[k] for row in rows], weights=weights)
                              for k in ("held", "size or share answered"))  # fmt: skip
                cells += [f"{held:.3f}", f"{size:.2f}".removesuffix(".00") if size == 15 else f"{size:.2f}"]
            assert f"| {' | '.join(cells)} |" in text, (stated, own, cells)
    for error in (0.05, 0.1, 0.2):
        (row,) = pooled[f"abstain, {error}", "vidfuse", "all"]
        certified, wrong = row["splits"], row["exceeded"]
        of = "" if error != 0.05 else " splits"
        expected = [f"{certified} of {row['asked']}{of}", f"{100 * row['held']:.1f} %", f"{wrong} of {certified}",
                    f"{100 * row['size or share answered']:.0f} %"]  # fmt: skip
        assert rows_of(text)[f"{100 * error:.0f} %"] == expected
    for row in found["alarms"]:
        share = f"{row['alarms']} of {row['runs']}"
        assert share in text, row


@pytest.mark.parametrize("kind", ["held-out", "cross-fitted"])
def test_what_a_report_costs(kind):
    row = results("report_speed")[kind]
    assert f"| {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_GB']:.2f} |" in page("docs/benchmarks.md")


def test_what_prediction_and_a_million_videos_cost():
    text = page("docs/large-data.md")
    for row in results("predict_speed")["rows"]:
        plain, cost = f"{row['plain CPU seconds']:.2f} s", f"{row['predict CPU seconds']:.1f} s"
        clock = f"{row['predict seconds']:.0f} s | {row['plain seconds']:.1f} s | {row['peak MB'] / 1000:.2f} GB"
        assert f"| {cost} | {plain} | {clock} |" in text, row
    for row in results("predict_speed_ten_million")["rows"]:
        assert f"{row['predict seconds']:.0f}" in text and f"{row['plain seconds']:.0f}" in text, row
    shown = rows_of(page("docs/cache-format.md"))
    for videos, ahead, behind in (("", "", ", `ulimit -n 256`"), (", 10,000,000 videos", "10⁷: ", "")):
        found = results("large_data")[f"ulimit -n 256{videos}"]
        steps = {
            "write, three processes": found["write"],
            "`vidfuse verify`": found["verify"],
            "open as one stack": found["open"],
            "`vidfuse fit --no-check`": found["fit"],
            "`vidfuse predict --dtype float32` to `.npz`": found["predict"]["npz"],
            "the same to a cache": found["predict"]["cache"],
            "`vidfuse report --sample 20000`": found["report"],
        } | ({} if videos else {"`vidfuse evaluate`": found["evaluate"]})
        for name, step in steps.items():
            cost, clock, peak = shown[f"{ahead}{name}{behind}"]
            assert float(cost) == pytest.approx(step["CPU seconds"], abs=0.5 if step["CPU seconds"] > 100 else 0.05)
            if (ahead, name) != ("10⁷: ", "`vidfuse fit --no-check`"):  # which ran beside other work
                assert float(clock.replace(",", "")) == pytest.approx(
                    step["seconds"], abs=0.5 if step["seconds"] > 50 else 0.05
                )
            assert float(peak.split()[0]) == pytest.approx(step["peak GB"], abs=0.005 if step["peak GB"] < 1 else 0.05)


def test_what_serving_takes():
    found, shown = results("serving"), rows_of(page("docs/shipping.md"))
    for rule, row in found["recipe_alone"].items():
        assert shown[rule] == [f"{row['ms_1']:.2f} ms", f"{row['ms_1000']:.0f} ms"], rule
    words = " ".join(page("docs/shipping.md").split())
    ratios = {name: f"{found['with_networks'][name]['ratio']:.2f}" for name in found["with_networks"] if "_" in name}
    assert f"{ratios['torch_1']} in torch and {ratios['onnxruntime_1']} in onnxruntime for one video" in words
    assert f"{ratios['torch_64']} and {ratios['onnxruntime_64']} for 64 a call" in words
    assert f"are {found['environment_without_torch_mb']:.0f} MB installed" in words
    exports = results("exports")
    presets = max(one[kind]["difference"] for one in exports["presets"].values() for kind in ("pt2", "onnx"))
    fused = max(one[kind]["difference"] for one in exports["fused"].values() for kind in ("pt2", "onnx"))
    texts = [f"{value:.1e}".replace("e-07", "e-7") for value in (exports["matrix"]["largest"], presets, fused)]
    assert f"differ by {texts[0]} at most" in words
    assert f"({texts[1]}), and the fused network ({texts[2]})" in words


def test_what_decoding_takes():
    found, shown = results("pipeline"), rows_of(section("docs/benchmarks.md", "## Decoding"))
    networks = {
        "… clips that share their place in time": ("one training clip, shared in time", 2),
        "… the same ten views for each network": ("the same ten views each", 1),
        "… seven short clips at places of their own": ("one training clip each", 2),
    }
    for name, (what, digits) in networks.items():
        ratios = [
            found["seven_networks"][gop][what]["seven readers that seek / one decode"] for gop in ("gop 12", "gop 250")
        ]
        assert shown[name] == [f"{ratio:.{digits}f}" for ratio in ratios], name


def test_few_clips():
    shown = section("docs/real-footage.md", "## What to expect of few clips")
    pooled = defaultdict(list)
    for name, shares in results("few_clips")["accuracy"].items():
        pooled[name.rpartition(", seed")[0]].append(list(shares.values()))
    for name, seeds in pooled.items():
        if len(seeds) < 2:
            continue
        count, filmed, way = name.replace(" clips", "", 1).split(", ", 2)
        cells = [f"{np.mean(c):.0f} ({min(c):.0f} to {max(c):.0f})" for c in 100 * np.transpose(seeds)]
        assert f"| {filmed} | {count} | {way} | {' | '.join(cells)} |" in shown, name
