"""What a full run of the challenge's method would cost: accelerator hours, decoding hours and disk.

    python examples/plan_challenge.py --gmacs-per-second 30000 --clips-per-second 8      # two assumptions
    python examples/plan_challenge.py --measure --data Kinetics400ViPriors               # or measured on this machine

The calculation needs vidfuse alone; measuring needs `vidfuse[training]`. docs/planning.md explains the columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from vidfuse import networks
from vidfuse.errors import InputError, VidfuseError
from vidfuse.training.recipes import FULL_SIZE, TABLE_I, TrainRecipe
from vidfuse.video.lists import VideoItem, read_class_folders
from vidfuse.video.vipriors import read_vipriors


@dataclass(frozen=True)
class Cost:
    """What one member costs.

    Attributes:
        member: Its name.
        network: The network's name in the catalogue.
        gmacs: Multiply-adds of one clip of the recipe's size, in 10⁹.
        gmacs_per_second: Multiply-adds that one accelerator does in a second on this network, in 10⁹.
        train_clips: Clips in all epochs.
        train_hours: Hours of one accelerator in training.
        extract_hours: Hours of one accelerator for all views of the validation and test videos.
        decode_hours: Hours of one CPU core that decodes for training; shared by members that train together.
        view_decode_hours: The same for extraction, at most: as if each view were decoded by itself.
        cores: CPU cores that decode as fast as one accelerator trains.
        cache_bytes: Size of its logit caches.
        checkpoint_bytes: Size of its checkpoint while it trains: weights, optimiser's state, average.
    """

    member: str
    network: str
    gmacs: float
    gmacs_per_second: float
    train_clips: int
    train_hours: float
    extract_hours: float
    decode_hours: float
    view_decode_hours: float
    cores: float
    cache_bytes: int
    checkpoint_bytes: int


def gmacs_of_clip(network: str, recipe: TrainRecipe) -> float:
    """Return the multiply-adds of one clip of a recipe's size, in 10⁹.

    They are scaled from the network's catalogue entry to the recipe's frames and pixels, as if proportional to both
    (attention grows faster: take sizes far from the entry's with care).

    Example:
        >>> gmacs_of_clip("x3d_m", TABLE_I["x3d"]) / networks.info("x3d_m").gmacs  # 32 frames, where 16 are published
        2.0
    """
    facts = networks.info(network)
    return facts.gmacs * recipe.frames / facts.frames * (recipe.size / facts.size) ** 2


def plan_run(
    *,
    gmacs_per_second: float | Mapping[str, float],
    clips_decoded_per_second: float,
    recipes: Mapping[str, TrainRecipe] = TABLE_I,
    full_size: Mapping[str, str] = FULL_SIZE,
    videos: tuple[int, int, int] = (40_000, 10_000, 20_000),
    views: int = 10,
    n_classes: int = 400,
) -> list[Cost]:
    """Calculate accelerator hours, decoding hours and disk for training and extracting each member.

    Training costs three forward passes a clip: one forward, two of its size backward.

    Args:
        gmacs_per_second: Multiply-adds of one accelerator in training these networks, in 10⁹ a second; {member:
            number} if they differ.
        clips_decoded_per_second: Clips that one CPU core decodes and augments in a second.
        recipes: {member: recipe}.
        full_size: {member: network name}.
        videos: Videos of the training, validation and test splits.
        views: Views of each validation and test video.
        n_classes: K.

    Raises:
        InputError: A throughput is not positive, or a member has no network or no throughput.

    Example:
        >>> plan = plan_run(gmacs_per_second=50_000, clips_decoded_per_second=20, recipes={"x3d": TABLE_I["x3d"]})
        >>> plan[0].train_clips, round(plan[0].train_hours, 1), plan[0].cache_bytes
        (7200000, 1.1, 480000000)
    """
    given = gmacs_per_second
    speeds = dict(given) if isinstance(given, Mapping) else dict.fromkeys(recipes, float(given))
    if lacking := sorted(set(recipes) - set(full_size)):
        raise InputError(f"expected a network for each recipe, got none for {', '.join(lacking)}")
    if lacking := sorted(set(recipes) - set(speeds)):
        raise InputError(f"expected the multiply-adds a second of each member, got none for {', '.join(lacking)}")
    if min(*speeds.values(), clips_decoded_per_second) <= 0 or min(videos) < 0 or min(views, n_classes) < 1:
        raise InputError(
            f"expected positive throughputs and numbers, got {given} 10⁹ multiply-adds and {clips_decoded_per_second} "
            f"clips a second, {videos} videos, {views} views, {n_classes} classes"
        )
    train, val, test = videos
    viewed = (val + test) * views
    costs = []
    for member, recipe in recipes.items():
        gmacs, speed, clips = gmacs_of_clip(full_size[member], recipe), speeds[member], train * recipe.epochs
        copies = 1 + (1 if recipe.optimizer == "sgd" else 2) + (recipe.ema is not None)
        costs.append(
            Cost(
                member=member,
                network=full_size[member],
                gmacs=gmacs,
                gmacs_per_second=speed,
                train_clips=clips,
                train_hours=3 * gmacs * clips / speed / 3600,
                extract_hours=gmacs * viewed / speed / 3600,
                decode_hours=clips / clips_decoded_per_second / 3600,
                view_decode_hours=viewed / clips_decoded_per_second / 3600,
                cores=speed / (3 * gmacs) / clips_decoded_per_second,
                cache_bytes=viewed * n_classes * 4,
                checkpoint_bytes=networks.info(full_size[member]).parameters * 4 * copies,
            )
        )
    return costs


def describe_costs(costs: Sequence[Cost]) -> str:
    """Return a plan as a table of text, with its sums.

    Example:
        >>> print(describe_costs(plan_run(gmacs_per_second=1e5, clips_decoded_per_second=20)).splitlines()[0])
        member       network             GMACs/clip  GMACs/s  train h  extract h  decode core h  cores  cache GB  ...
    """
    heads = ("GMACs/clip", "GMACs/s", "train h", "extract h", "decode core h", "cores", "cache GB", "checkpoint GB")
    lines = [f"{'member':12s} {'network':18s}  " + "  ".join(heads)]
    for c in costs:
        numbers = (
            f"{c.gmacs:.1f}", f"{c.gmacs_per_second:.5g}", f"{c.train_hours:.1f}", f"{c.extract_hours:.2f}",
            f"{c.decode_hours:.0f}", f"{c.cores:.3g}", f"{c.cache_bytes / 1e9:.2f}", f"{c.checkpoint_bytes / 1e9:.2f}",
        )  # fmt: skip
        cells = (f"{number:>{len(head)}s}" for number, head in zip(numbers, heads, strict=True))
        lines.append(f"{c.member:12s} {c.network:18s}  " + "  ".join(cells))
    hours, extract = sum(c.train_hours for c in costs), sum(c.extract_hours for c in costs)
    apart, together = sum(c.decode_hours for c in costs), max(c.decode_hours for c in costs)
    disk = sum(c.cache_bytes + c.checkpoint_bytes for c in costs)
    viewed = max(c.view_decode_hours for c in costs)
    lines += [
        f"in all {hours:.0f} accelerator hours of training and {extract:.1f} of extraction",
        f"decoding for training: {apart:.0f} core hours for members that train apart, at least {together:.0f} for all "
        "from one decode",
        f"decoding for extraction: at most {viewed:.0f} core hours, once for all members",
        f"disk: {disk / 1e9:.1f} GB of caches and checkpoints, beside the videos",
    ]
    return "\n".join(lines)


def trained_gmacs_per_second(
    network: str, recipe: TrainRecipe, *, batch: int = 1, steps: int = 2, device: str = "cpu"
) -> float:
    """Measure the multiply-adds a second of a network's training steps, in 10⁹; the first step is not timed.

    The steps are those of `train` (precision, optimiser, checkpointing as the recipe has them), on random clips. Each
    clip counts as three forward passes, as in `plan_run`.

    Args:
        network: Name of the network in the catalogue.
        recipe: How it is trained.
        batch: Clips in a step.
        steps: Steps that are timed.
        device: Where to run.

    Raises:
        InputError: Fewer than one clip or step.

    Example:
        >>> small = TrainRecipe(lr=0.1, epochs=1, frames=4, size=32)
        >>> trained_gmacs_per_second("x3d_tiny", small, steps=1) > 0
        True
    """
    import torch

    from vidfuse.training.data import network_for
    from vidfuse.training.state import Run
    from vidfuse.training.step import Batch, forward_module, take_step

    if min(batch, steps) < 1:
        raise InputError(f"expected at least one clip and one step, got batch={batch}, steps={steps}")
    where = torch.device(device)
    seconds = []
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        run = Run(network_for(recipe.frames, network), recipe, Path(), where)
        forward = forward_module(run)
        run.model.train()
        clips = torch.randn(batch, 3, recipe.frames, recipe.size, recipe.size, device=where)
        group: list[Batch] = [(clips, [f"clip{i}" for i in range(batch)], torch.zeros(batch, dtype=torch.int64))]
        for _ in range(steps + 1):
            began = time.perf_counter()
            take_step(run, forward, group, 1 / batch, 1e-6)  # ends with the gradient's norm: the device has finished
            seconds.append(time.perf_counter() - began)
    return 3 * gmacs_of_clip(network, recipe) * batch * steps / sum(seconds[1:])


def clips_decoded_per_second(
    videos: Sequence[VideoItem], recipe: TrainRecipe, network: str, *, limit: int = 32
) -> float:
    """Measure the clips a second that one core decodes and augments for training, from video files.

    Args:
        videos: Videos like those to be trained on.
        recipe: Its clips.
        network: Name of the network in the catalogue.
        limit: Videos that are read.

    Raises:
        InputError: No video can be decoded.
    """
    import torch

    from vidfuse.training.data import train_input
    from vidfuse.video.datasets import Failure, VideoDataset

    data = VideoDataset(videos, train_input(recipe, network), seed=recipe.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        clips = sum(not isinstance(data[i], Failure) for i in range(min(limit, len(data))))
        seconds = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    if clips == 0:
        raise InputError(f"expected videos that can be decoded to measure with, got none in {len(videos)}")
    return clips / seconds


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
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
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
    try:
        names = list(TABLE_I) if members is None else members.split(",")
        if unknown := [name for name in names if name not in TABLE_I]:
            raise InputError(f"expected members of Table I ({', '.join(TABLE_I)}), got {', '.join(unknown)}")
        if measure == bool(gmacs_per_second) or (data is None) == (clips_per_second is None):
            raise InputError(
                "expected either --gmacs-per-second or --measure, and either --clips-per-second or --data: a plan "
                "needs the speed of training and of decoding"
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
        result = {"sources": sources, "members": [asdict(cost) for cost in costs]}
        click.echo(json.dumps(result, indent=2) if as_json else "\n".join([*sources, "", describe_costs(costs)]))
    except VidfuseError as error:
        raise click.UsageError(str(error)) from error


def _given(values: tuple[str, ...], names: list[str]) -> dict[str, float]:
    """Read one number for all members, or one for each."""
    try:
        if len(values) == 1 and "=" not in values[0]:
            return dict.fromkeys(names, float(values[0]))
        return {name: float(number) for name, _, number in (value.partition("=") for value in values)}
    except ValueError as error:
        raise InputError(f"--gmacs-per-second: expected numbers, got {', '.join(values)}") from error


def _measured(names: list[str], batch: int) -> tuple[dict[str, float], str]:
    """Measure each member's training speed on this machine's device, and name the device."""
    import torch

    gpu = torch.cuda.is_available()
    speeds = {}
    for name in names:
        click.echo(f"measuring {name}", err=True)
        device = "cuda" if gpu else "cpu"
        speeds[name] = trained_gmacs_per_second(FULL_SIZE[name], TABLE_I[name], batch=batch, device=device)
    return speeds, torch.cuda.get_device_name() if gpu else f"a CPU with {torch.get_num_threads()} threads"


def _decoded(data: Path) -> float:
    """Measure how fast one core decodes and augments the clips that most members train on."""
    videos = read_vipriors(data, "train") if (data / "annotations").is_dir() else read_class_folders(data)
    return clips_decoded_per_second(videos, TABLE_I["x3d"], "x3d_m")


if __name__ == "__main__":
    plan()
