"""Show what the demo's videos look like: `python -m motion --contact-sheet FILE`, in examples/."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from motion import ACTIONS, MotionPlan, render_clip


def contact_sheet(plan: MotionPlan, moments: int = 5) -> Image.Image:
    """Return a picture of every action, three a row: two performers one above the other, at some moments of a video."""
    gap, line = 4, 12
    width, height = moments * plan.size + gap, 2 * plan.size + line + gap
    sheet = Image.new("RGB", (3 * width - gap, -(-len(ACTIONS) // 3) * height - gap), "white")
    for number, action in enumerate(ACTIONS):
        x, y = number % 3 * width, number // 3 * height
        ImageDraw.Draw(sheet).text((x, y), action, fill="black")
        for row in range(2):
            video = render_clip(action, plan, "train", 2 * number + row)
            strip = np.concatenate(list(video[:: plan.frames // moments][:moments]), axis=1)
            sheet.paste(Image.fromarray(strip), (x, y + line + row * plan.size))
    return sheet


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m motion", description=__doc__)
    parser.add_argument("--contact-sheet", type=Path, required=True, metavar="FILE", help="a .png or .webp to write")
    contact_sheet(MotionPlan()).save(parser.parse_args().contact_sheet)


if __name__ == "__main__":
    main()
