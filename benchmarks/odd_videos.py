"""Hold the decoders to a plain decode of the whole file, on every odd video that can be made here.

    python benchmarks/odd_videos.py                     # about a minute
    python benchmarks/odd_videos.py --list              # a line a video

Each video of `tests/support/video_corpus.py` (container × codec × B-frames × pixel format × rotation × start × frame
rate × cut) is asked for every frame alone, for all at once, and for sets in any order. A decoder passes if frame count
and pixels equal the plain decode, or if it refuses with a reason. Where torchcodec is installed, it is held to the
same. "truncated" files are said to be cut and their frames are exact; of "damaged" ones some frames are refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import av

from vidfuse.errors import MissingExtraError
from vidfuse.video import decode as by_pyav
from vidfuse.video import decode_torchcodec as by_torchcodec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import video_corpus


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--list", action="store_true", help="print every video, not only those that are refused or wrong"
    )
    parser.add_argument("--only", default="", help="videos whose name contains this")
    options = parser.parse_args(arguments)
    av.logging.set_level(av.logging.PANIC)
    warnings.simplefilter("ignore")
    decoders: dict[str, ModuleType] = {"PyAV": by_pyav}
    try:
        by_torchcodec.require()
        decoders["torchcodec"] = by_torchcodec
    except MissingExtraError as error:
        print(f"without torchcodec: {error}")
    outcomes = {name: Counter[str]() for name in decoders}
    made, unmade, began = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for video in video_corpus.CORPUS:
            if options.only not in str(video):
                continue
            try:
                path = video_corpus.write(video, Path(folder))
            except (av.FFmpegError, ValueError) as error:
                unmade += 1
                print(f"{video}: cannot be made: {error}")
                continue
            made += 1
            expected = video_corpus.full_decode(path)
            for name, decoder in decoders.items():
                outcome = video_corpus.judged(decoder, path, expected)
                kind = outcome.split(":")[0]
                outcomes[name][kind] += 1
                if options.list or kind != "exact":
                    print(f"{name:10} {video}: {outcome}")
            path.unlink()
    print(
        f"\n{made} videos in {time.perf_counter() - began:.0f} s" + (f", {unmade} could not be made" if unmade else "")
    )
    for name, counts in outcomes.items():
        print(f"{name:10} " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    if any(counts["wrong"] for counts in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
