"""`vidfuse networks`: what the catalogue holds, and what a network costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from vidfuse.cli import options
from vidfuse.errors import InputError

__all__ = ["networks"]


@click.command()
@click.argument("name", default="*")
@click.option("--classes", type=click.IntRange(min=2), help="Classes, other than those of the published checkpoint.")
@click.option("--frames", type=options.COUNT, help="Frames of a clip, other than the catalogue's.")
@click.option("--size", type=options.COUNT, help="Height and width of a clip, other than the catalogue's.")
@click.option(
    "--measure", is_flag=True, help="Time a forward pass of one clip on this machine, on the GPU if it has one."
)
@options.as_json
def networks(name: str, classes: int | None, frames: int | None, size: int | None, measure: bool) -> None:
    """List the catalogue's networks, or count the parameters and multiply-adds (GMACs) of the network NAME.

    NAME may be a shell pattern, such as 'x3d_*', which lists the names that match. A list shows the figures of the
    catalogue. For a single NAME both are counted anew, on the network itself.
    """
    from vidfuse.networks import catalogue

    if name in (found := catalogue.names(name)) or not any(mark in name for mark in "*?["):
        _show(name, classes, frames, size, measure)
        return
    if (classes, frames, size, measure) != (None, None, None, False):
        raise InputError(
            f"--classes, --frames, --size and --measure: expected them with the name of one network, got {name!r}"
        )
    if not found:
        raise InputError(f"expected a pattern of networks' names, got {name!r}, which matches none")
    listed = [catalogue.info(match) for match in found]
    lines = [f"{'name':<40} {'frames':>6} {'size':>4} {'classes':>7} {'parameters':>11} {'GMACs':>8} {'top-1':>6}"]
    for one in listed:
        top1 = "" if one.top1 is None else f"{one.top1:.1f}"
        clip = f"{one.frames:>6} {one.size:>4}"
        lines.append(f"{one.name:<40} {clip} {one.n_classes:>7} {one.parameters:>11,} {one.gmacs:>8.4g} {top1:>6}")
    options.emit({"networks": [dataclasses.asdict(one) for one in listed]}, "\n".join(lines))


def _show(name: str, classes: int | None, frames: int | None, size: int | None, measure: bool) -> None:
    """Print what is known of one network, and what is counted on it."""
    from vidfuse import networks as catalogue

    facts, counted = catalogue.info(name), catalogue.cost(name, classes, frames=frames, size=size)
    t, h, w = counted.clip
    top1 = "" if facts.top1 is None else f"\n{facts.top1} % top-1 published; licence of the checkpoint: {facts.licence}"
    text = (
        f"{name}: {facts.paper}\n"
        f"{counted.parameters:,} parameters with {counted.n_classes} classes\n"
        f"{counted.gmacs:.4g} GMACs for a clip of {t} frames of {h} x {w} pixels (multiply-adds of convolutions and "
        f"matrix products, in 10⁹){top1}"
    )
    result: dict[str, Any] = {"catalogue": dataclasses.asdict(facts), "counted": dataclasses.asdict(counted)}
    if measure:
        milliseconds, device = _timed(name, counted.n_classes, counted.clip)
        result["milliseconds"], result["device"] = milliseconds, device
        text += f"\n{milliseconds:.4g} ms for a clip, one at a time, on {device}: the median of five"
    options.emit(result, text)


def _timed(name: str, classes: int, clip: tuple[int, int, int]) -> tuple[float, str]:
    """Return the milliseconds of a forward pass of one clip, and where it ran."""
    import torch

    from vidfuse import networks as catalogue
    from vidfuse.serving.timing import measure

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = catalogue.create(name, classes).eval().to(device)
    taken = measure({name: model}, torch.zeros(1, 3, *clip, device=device))[name]
    return taken, torch.cuda.get_device_name() if cuda else f"the CPU ({torch.get_num_threads()} threads)"
