"""What a full run of the method would cost: a calculation from measured throughput and the networks' multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vidfuse import networks
from vidfuse.errors import InputError
from vidfuse.training.recipes import TABLE_I, TrainRecipe

__all__ = ["Cost", "describe_costs", "plan_run"]

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
        train_clips: Clips in all epochs.
        train_hours: Hours of one accelerator in training.
        extract_hours: Hours of one accelerator for all views of the validation and test videos.
        decode_hours: Hours of one CPU core that decodes for training; shared by members that train together.
        cache_bytes: Size of its logit caches.
    """

    member: str
    network: str
    gmacs: float
    train_clips: int
    train_hours: float
    extract_hours: float
    decode_hours: float
    cache_bytes: int


def plan_run(
    *,
    gmacs_per_second: float,
    clips_decoded_per_second: float,
    recipes: Mapping[str, TrainRecipe] = TABLE_I,
    full_size: Mapping[str, str] = FULL_SIZE,
    videos: tuple[int, int, int] = (40_000, 10_000, 20_000),
    views: int = 10,
    n_classes: int = 400,
) -> list[Cost]:
    """Calculate accelerator hours, decoding hours and disk for training and extracting each member.

    Training costs three forward passes a clip (one forward, two of its size backward). A network's multiply-adds are
    scaled from its catalogue entry to the recipe's frames and pixels, as if proportional to both (attention grows
    faster, so take windows and tokens with care).

    Args:
        gmacs_per_second: Measured multiply-adds of the accelerator on these networks, in 10⁹ a second.
        clips_decoded_per_second: Measured clips that one CPU core decodes and augments in a second.
        recipes: {member: recipe}.
        full_size: {member: network name}.
        videos: Videos of the training, validation and test splits.
        views: Views of each validation and test video.
        n_classes: K.

    Raises:
        InputError: A throughput is not positive, or a member has no network.

    Example:
        >>> plan = plan_run(gmacs_per_second=50_000, clips_decoded_per_second=20, recipes={"x3d": TABLE_I["x3d"]})
        >>> plan[0].train_clips, round(plan[0].train_hours, 1), plan[0].cache_bytes
        (7200000, 1.1, 480000000)
    """
    if min(gmacs_per_second, clips_decoded_per_second) <= 0:
        raise InputError(
            f"expected positive throughputs, got {gmacs_per_second} 10⁹ multiply-adds and "
            f"{clips_decoded_per_second} clips a second"
        )
    if lacking := sorted(set(recipes) - set(full_size)):
        raise InputError(f"expected a network for each recipe, got none for {', '.join(lacking)}")
    train, val, test = videos
    costs = []
    for member, recipe in recipes.items():
        facts = networks.info(full_size[member])
        gmacs = facts.gmacs * recipe.frames / facts.frames * (recipe.size / facts.size) ** 2
        clips = train * recipe.epochs
        viewed = (val + test) * views
        costs.append(
            Cost(
                member=member,
                network=full_size[member],
                gmacs=gmacs,
                train_clips=clips,
                train_hours=3 * gmacs * clips / gmacs_per_second / 3600,
                extract_hours=gmacs * viewed / gmacs_per_second / 3600,
                decode_hours=clips / clips_decoded_per_second / 3600,
                cache_bytes=viewed * n_classes * 4,
            )
        )
    return costs


def describe_costs(costs: list[Cost]) -> str:
    """Return a plan as a table of text, with its sums.

    Example:
        >>> print(describe_costs(plan_run(gmacs_per_second=1e5, clips_decoded_per_second=20)).splitlines()[0])
        member       network                GMACs/clip  train h  extract h  decode core h  cache GB
    """
    lines = [
        f"{'member':12s} {'network':22s} {'GMACs/clip':>10s} {'train h':>8s} {'extract h':>10s} {'decode core h':>14s} "
        f"{'cache GB':>9s}"
    ]
    for c in costs:
        lines.append(
            f"{c.member:12s} {c.network:22s} {c.gmacs:10.1f} {c.train_hours:8.1f} {c.extract_hours:10.2f} "
            f"{c.decode_hours:14.1f} {c.cache_bytes / 1e9:9.2f}"
        )
    hours, extract = sum(c.train_hours for c in costs), sum(c.extract_hours for c in costs)
    apart, together = sum(c.decode_hours for c in costs), max(c.decode_hours for c in costs)
    lines.append(
        f"in all {hours:.0f} accelerator hours of training and {extract:.1f} of extraction; {apart:.0f} core hours of "
        f"decoding apart, at least {together:.0f} together; caches {sum(c.cache_bytes for c in costs) / 1e9:.1f} GB"
    )
    return "\n".join(lines)
