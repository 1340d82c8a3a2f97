"""What a full run of the method would cost: a calculation from throughput and the networks' multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training.recipes import TABLE_I, TrainRecipe

__all__ = ["FULL_SIZE", "Cost", "describe_costs", "gmacs_of_clip", "plan_run"]

# The networks that Table I's recipes train, by member.
FULL_SIZE: Mapping[str, str] = {
    "slowfast": "slowfast_r152_4x16",
    "swin": "swin_b",
    "tin": "tin_r50",
    "tpn": "tpn_slowonly_r50",
    "x3d": "x3d_m",
    "timesformer": "timesformer_b",
    "r2plus1d": "r2plus1d_r34_32x2",
}


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
