"""The demo's videos, in examples/: `python -m motion --contact-sheet FILE` shows them, `--render FOLDER` writes."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from motion import ACTIONS, MotionPlan, render_clip, render_motion


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
    """Read the command line, and write the picture or the videos."""
    parser = argparse.ArgumentParser(prog="python -m motion", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--contact-sheet", type=Path, metavar="FILE", help="a .png or .webp to write")
    what.add_argument("--render", type=Path, metavar="FOLDER", help="receives the videos in the challenge's layout")
    parser.add_argument("--videos", type=int, nargs=3, default=(60, 15, 20), metavar=("TRAIN", "VAL", "TEST"),
                        help="rendered, an action; by default 60 15 20")  # fmt: skip
    args = parser.parse_args()
    if args.contact_sheet is not None:
        contact_sheet(MotionPlan()).save(args.contact_sheet)
    else:
        print(render_motion(args.render, MotionPlan(*args.videos)).root)


if __name__ == "__main__":
    main()
