"""The video half's data: decoding, clips, transforms, lists of videos, data sets and the challenge's own layout.

Names load on first use (PEP 562): the lists of videos need the base install only, decoding needs `vidfuse[video]`.
"""

from __future__ import annotations

from vidfuse._lazy import lazy_face

_HOME = {
    "ClipSampler": "clips",
    "ClipTransform": "transforms",
    "Input": "datasets",
    "Thumbnails": "thumbnails",
    "TransformConfig": "transforms",
    "VideoDataset": "datasets",
    "VideoInfo": "decode",
    "VideoItem": "lists",
    "VideoList": "lists",
    "VideoLoader": "loader",
    "View": "clips",
    "ViewPlan": "clips",
    "Views": "datasets",
    "check_videos": "decode",
    "drop_broken": "datasets",
    "probe": "decode",
    "groups_by_pattern": "splits",
    "guess_layout": "layouts",
    "read_class_folders": "lists",
    "read_csv_list": "lists",
    "read_folder": "lists",
    "read_mmaction2": "lists",
    "read_videos": "layouts",
    "read_vipriors": "vipriors",
    "same_files": "splits",
    "split_by_group": "splits",
    "thumbnail": "thumbnails",
}
_SUBMODULES = (
    "clips",
    "datasets",
    "decode",
    "decode_torchcodec",
    "layouts",
    "lists",
    "loader",
    "splits",
    "thumbnails",
    "transforms",
    "vipriors",
)

__all__ = sorted([*_HOME, *_SUBMODULES])

__getattr__, __dir__ = lazy_face(__name__, _HOME, _SUBMODULES)
