"""`vidfuse plan`: what a full run of the method would cost, before anybody pays for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from vidfuse.cli import options
from vidfuse.errors import InputError

__all__ = ["plan"]


@click.command()
@click.option(
    "--gmacs-per-second",
    metavar="NUMBER|MEMBER=NUMBER",
    multiple=True,
    help="10⁹ multiply-adds a second of one accelerator in training, for all members or each; an assumption.",
)
@click.option("--measure", is_flag=True, help="Measure that instead: train each network for a few steps, here.")
@click.option("--batch", default=1, show_default=True, help="Clips in a step that is measured.")
@click.option("--clips-per-second", type=float, help="Clips that one core decodes in a second; an assumption.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure that instead: decode videos of this folder, which is in the challenge's layout or has one a class.",
)
@click.option("--members", help="Members of Table I, separated by commas; all seven if left out.")
@click.option(
    "--videos", nargs=3, type=int, default=(40_000, 10_000, 20_000), show_default=True, metavar="TRAIN VAL TEST"
)
@click.option("--views", default=10, show_default=True, help="Views of each validation and test video.")
@click.option("--classes", default=400, show_default=True)
@options.as_json
def plan(
    gmacs_per_second: tuple[str, ...],
    measure: bool,
    batch: int,
    clips_per_second: float | None,
    data: Path | None,
    members: str | None,
    videos: tuple[int, int, int],
    views: int,
    classes: int,
    as_json: bool,
) -> None:
    """Calculate accelerator hours, decoding hours and disk of the method's Table I.

    It needs two throughputs, each of which is given (an assumption) or measured on this machine.
    """
    from vidfuse.training.plan import FULL_SIZE, describe_costs, plan_run
    from vidfuse.training.recipes import TABLE_I

    names = list(TABLE_I) if members is None else members.split(",")
    if unknown := [name for name in names if name not in TABLE_I]:
        raise InputError(f"expected members of Table I ({', '.join(TABLE_I)}), got {', '.join(unknown)}")
    if measure == bool(gmacs_per_second) or (data is None) == (clips_per_second is None):
        raise InputError(
            "expected either --gmacs-per-second or --measure, and either --clips-per-second or --data: a plan needs "
            "the speed of training and of decoding"
        )
    recipes = {name: TABLE_I[name] for name in names}
    device = "cpu"
    if measure:
        speeds, device = _measured(names, batch)
    else:
        speeds = _given(gmacs_per_second, names)
    decoded = clips_per_second if data is None else _decoded(data)
    costs = plan_run(
        gmacs_per_second=speeds,
        clips_decoded_per_second=float(decoded or 0),
        recipes=recipes,
        full_size=FULL_SIZE,
        videos=videos,
        views=views,
        n_classes=classes,
    )
    sources = [
        f"training speed: {f'measured here, on {device}, {batch} clips a step' if measure else 'assumed'}",
        f"decoding speed: {decoded:.2f} clips a second and core, {f'measured on {data}' if data else 'assumed'}",
    ]
    result = {"sources": sources, "members": [dataclasses.asdict(cost) for cost in costs]}
    options.emit(result, "\n".join([*sources, "", describe_costs(costs)]), as_json)


def _given(values: tuple[str, ...], names: list[str]) -> dict[str, float]:
    """Read one number for all members, or one for each."""
    named = options.named_values(values, "MEMBER=NUMBER")
    texts = named if isinstance(named, dict) else dict.fromkeys(names, named or "")
    try:
        return {name: float(text) for name, text in texts.items()}
    except ValueError as error:
        raise InputError(f"--gmacs-per-second: expected numbers, got {', '.join(values)}") from error


def _measured(names: list[str], batch: int) -> tuple[dict[str, float], str]:
    """Measure each member's training speed on this machine's device, and name the device."""
    import torch

    from vidfuse.training.plan import FULL_SIZE
    from vidfuse.training.recipes import TABLE_I
    from vidfuse.training.throughput import trained_gmacs_per_second

    gpu = torch.cuda.is_available()
    speeds = {}
    for name in names:
        click.echo(f"measuring {name}", err=True)
        device = "cuda" if gpu else "cpu"
        speeds[name] = trained_gmacs_per_second(FULL_SIZE[name], TABLE_I[name], batch=batch, device=device)
    return speeds, torch.cuda.get_device_name() if gpu else f"a CPU with {torch.get_num_threads()} threads"


def _decoded(data: Path) -> float:
    """Measure how fast one core decodes and augments the clips that most members train on."""
    from vidfuse.training.recipes import TABLE_I
    from vidfuse.training.throughput import clips_decoded_per_second
    from vidfuse.video.lists import read_class_folders
    from vidfuse.video.vipriors import read_vipriors

    videos = read_vipriors(data, "train") if (data / "annotations").is_dir() else read_class_folders(data)
    return clips_decoded_per_second(videos, TABLE_I["x3d"], "x3d_m")
