"""`vidfuse soup`: several checkpoints of one network averaged into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import vidfuse as vf
from vidfuse.cli import options
from vidfuse.cli.decoding import Decoding, keep_left_out, listed_failures
from vidfuse.cli.late import modules
from vidfuse.cli.runs import checkpoint_file, one_view, resolved_recipe, run_of
from vidfuse.cli.videos import Listed, ToTrain, class_names, of_classes, tell_order
from vidfuse.errors import InputError

__all__ = ["soup"]


@click.command()
@click.argument("network")
@options.asks(ToTrain, "videos")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=options.FOUND,
    multiple=True,
    required=True,
    help="A run's folder or its checkpoint; once for each.",
)
@click.option(
    "--how",
    type=click.Choice(["greedy", "uniform"]),
    help="Average those that help on the validation videos, or all.  [default: greedy where there are such videos]",
)
@click.option(
    "--score",
    type=options.FOUND,
    help="Labelled videos to score the result on, of other sources than those that it was chosen on.",
)
@options.groups
@click.option(
    "--recipe", "recipe_name", help="Take clips as this recipe does; by default as the checkpoints' runs did."
)
@click.option("--batches", type=options.COUNT, default=100, help="Batches for the statistics of batch normalisation.")
@options.asks(Decoding, "decoding")
@options.out("runs/soup", "The folder that receives best.pt, which `vidfuse extract --checkpoint` takes.")
@options.as_json
def soup(
    network: str,
    videos: ToTrain,
    checkpoints: tuple[Path, ...],
    how: Any,
    score: Path | None,
    groups: str | None,
    recipe_name: str | None,
    batches: int,
    decoding: Decoding,
    out: Path,
) -> None:
    """Average the weights of several checkpoints of NETWORK into one; statistics come from the training videos DATA.

    The validation videos (`--val`, or the split of that name where DATA has splits) choose, by `--how greedy`: their
    accuracy is then too good. `--score` scores on others.
    """
    # What a checkpoint lacks decides what is asked of the user. One of a run of ours brings its network, classes and
    # recipe (a recipe.yaml beside it); a published one brings weights alone, so that NETWORK and DATA say the rest.
    inputs, soups, files, evaluation, torch = modules(
        *(f"vidfuse.training.{name}" for name in ("data", "soups", "checkpoints", "evaluation")), "torch"
    )
    paths = [checkpoint_file(path) for path in checkpoints]
    if (out / "last.pt").exists() or any(path.resolve() == (out / "best.pt").resolve() for path in paths):
        raise InputError(f"--out: expected a folder for the soup, got {out}, whose best.pt is a run's; name another")
    runs = [run_of(path, network) for path in paths]
    first = next((run for run in runs if run is not None), None)
    beside = next((path.with_name("recipe.yaml") for path, run in zip(paths, runs, strict=True) if run), Path())
    recipe, augmentation = resolved_recipe(recipe_name or (str(beside) if beside.is_file() else network), ())
    found, chosen, n_classes = videos.to_train()
    if class_names(videos.classes)[1] is None:
        tell_order(paths[0], first.classes if first else None, found, videos.data)
    if first is not None:
        n_classes, found = first.n_classes, of_classes(found, videos.data, first.classes, first.n_classes)
        if chosen is not None:
            chosen = of_classes(chosen, videos.val or videos.data, first.classes, first.n_classes)
    others = None
    if score is not None:
        names = first.classes if first else found.classes
        others = Listed(score, videos.layout, videos.root).listed("val", names)
    if chosen is not None and others is not None:
        _check_apart(chosen.ids, others.ids, groups)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = max(1, recipe.batch_size // recipe.accumulate)

    def views_of(listed: Any) -> Any:
        views = inputs.view_input(one_view(recipe), network)
        return None if listed is None else decoding.loader(listed, views, batch, device)

    source = inputs.train_input(recipe, network, **augmentation)
    loader = decoding.loader(found, source, batch, device, seed=recipe.seed, shuffle=True)
    model = inputs.network_for(recipe.frames, network, n_classes)
    named = {str(path): path if run else _converted(path, model) for path, run in zip(paths, runs, strict=True)}
    made = soups.soup(
        model,
        named,
        loader,
        val_loader=views_of(chosen),
        how=how,
        batches=batches,
        device=device,
    )
    kept: dict[str, Any] = {} if first is None else files.load_checkpoint(paths[runs.index(first)])
    unneeded = ("model", "ema", "stepped", "optimizer", "scaler", "history")
    kept = {name: value for name, value in kept.items() if name not in unneeded}
    weights = {name: value.cpu() for name, value in made.model.state_dict().items()}
    files.save_checkpoint(out / "best.pt", {**kept, "history": [], "network": network, "model": weights})
    options.save_config(out)
    keep_left_out(out, found, *(one for one in (chosen, others) if one is not None))
    held_out = None if others is None else evaluation.evaluate(made.model, views_of(others), device=device)
    result = {"out": out / "best.pt", "members": made.members, "scores": made.scores, "score": made.score}
    text = f"{len(made.members)} of {len(named)} checkpoints averaged: {', '.join(made.members)}"
    if made.score:
        greedy = "; they chose, so this is too good" if made.scores else ""
        text += f"\n{_accuracy(made.score)} of the validation videos{greedy}"
    for name, own in made.scores.items():
        text += f"\n  {name}: {_accuracy(own)}"
    text += "" if held_out is None else f"\n{_accuracy(held_out)} of the videos of --score"
    failures = {failure.id: failure.reason for failure in loader.failures}
    text += f"{listed_failures(failures)}\nwritten to {out / 'best.pt'}"
    options.emit({**result, "held_out": held_out, "failures": list(failures.items())}, text)


def _converted(path: Path, model: Any) -> Any:
    """Return published weights in the network's own layout."""
    found, aside = vf.networks.find_weights(vf.networks.read_checkpoint(path), model)
    if aside:
        click.echo(f"{path} holds more than {model.name}; left aside: {aside}", err=True)
    return vf.networks.convert_state_dict(found, model.name)


def _check_apart(chosen: Any, scored: Any, pattern: str | None) -> None:
    """Refuse videos to score that the choice was made on, and with `--groups` those of the same source.

    Example:
        >>> _check_apart(["g1_c1"], ["g1_c2"], None)
        >>> _check_apart(["g1_c1"], ["g1_c2"], "^(.*)_c")
        Traceback (most recent call last):
        vidfuse.errors.InputError: --score: expected videos of other sources than those of --val, got 1 that share ...
    """
    own, others = (
        list(ids) if pattern is None else list(options.groups_of(pattern, list(ids)).values())
        for ids in (chosen, scored)
    )
    if shared := set(own) & set(others):
        n = sum(name in shared for name in others)
        raise InputError(
            f"--score: expected videos of other sources than those of --val, got {n} that share one with them, such as "
            f"{sorted(shared)[0]!r}; `vidfuse split` parts videos by their source"
        )


def _accuracy(score: Any) -> str:
    progress = modules("vidfuse.training.progress")[0]
    return f"accuracy {progress.accuracy_text(score['top1'], int(score['n']))}"
