"""Every network by name: what it is, and how to build it.

A name is ``architecture.source``; the source says whose published checkpoints load into it. A name without a source
is the paper's network as vidfuse trains it, and a ``_tiny`` one is a small preset for a CPU.

A network is one module of this package, and one line in the table below for each of its variants. The module exposes

- ``PRESETS``: a frozen configuration for each of its catalogue names; a published network that has none has that of the
  name without its source,
- ``build(config, num_classes)``: a `vidfuse.networks.layers.VideoNetwork`,
- ``convert(state_dict, source, config)``: a published state dict, renamed to the module's own layout.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
import os
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

from vidfuse.errors import InputError, MissingExtraError, VidfuseWarning

if TYPE_CHECKING:
    from torch import Tensor

    from vidfuse.networks.layers import VideoNetwork

__all__ = [
    "NetworkCost",
    "NetworkInfo",
    "convert_state_dict",
    "cost",
    "create",
    "find_weights",
    "import_network_module",
    "info",
    "load_checkpoint",
    "names",
    "settings",
]


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """What a catalogue name stands for.

    Attributes:
        name: The catalogue name.
        source: Whose layout and checkpoints it follows; ``"vidfuse"`` for a name without a source.
        paper: Where the architecture comes from.
        frames: Frames in a clip.
        interval: Distance of neighbouring frames in the video, in frames.
        size: Height and width of a training crop, in pixels.
        mean: Mean of each channel (RGB, on a scale of 0 to 1) that the clips are normalised with.
        std: Standard deviation of each channel, likewise.
        n_classes: Number of classes of the published checkpoint, and the default of `create`.
        parameters: Number of parameters with that many classes.
        gmacs: Multiply-adds of convolutions and matrix products for one clip of that size, in 10⁹.
        top1: Published top-1 accuracy of the checkpoint in per cent, or None.
        licence: Licence that the checkpoint was published under, ``"unknown"``, or ``"none"`` without a checkpoint.
    """

    name: str
    source: str
    paper: str
    frames: int
    interval: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    n_classes: int
    parameters: int
    gmacs: float
    top1: float | None
    licence: str


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """The size of a network, and the work of one clip.

    Attributes:
        parameters: Number of parameters.
        gmacs: Multiply-adds of the convolutions and matrix products for one clip, in 10⁹.
        n_classes: Classes that the network was built for; its classifier is part of both figures.
        clip: Frames, height and width of the clip.
    """

    parameters: int
    gmacs: float
    n_classes: int
    clip: tuple[int, int, int]


_Norm = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: Final[_Norm] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: Final[_Norm] = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
_CENTRED: Final[_Norm] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_KINETICS: Final[_Norm] = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))

_SLOWFAST: Final = ("slowfast", "Feichtenhofer, Fan, Malik, He. SlowFast Networks for Video Recognition. ICCV 2019")
_R2PLUS1D: Final = ("r2plus1d", "Tran et al. A Closer Look at Spatiotemporal Convolutions. CVPR 2018")
_X3D: Final = ("x3d", "Feichtenhofer. X3D: Expanding Architectures for Efficient Video Recognition. CVPR 2020")
_SWIN: Final = ("swin", "Liu et al. Video Swin Transformer. CVPR 2022")
_TIMESFORMER: Final = ("timesformer", "Bertasius, Wang, Torresani. Is Space-Time Attention All You Need? ICML 2021")
_TIN: Final = ("tin", "Shao, Qian, Liu. Temporal Interlacing Network. AAAI 2020")
_TPN: Final = ("tpn", "Yang et al. Temporal Pyramid Network for Action Recognition. CVPR 2020")

# Settings on which the shapes of embeddings and relative biases depend.
_EXTENTS: Final = frozenset({"frames", "size", "window"})

_Row = tuple[tuple[str, str], int, int, int, _Norm, int, int, float, float | None, str]

# name: ((module, paper), frames, interval, size, normalisation, classes, parameters, GMACs, top-1, licence)
_TABLE: Final[Mapping[str, _Row]] = {
    "r2plus1d_tiny": (_R2PLUS1D, 8, 2, 64, _KINETICS, 15, 785_235, 0.0674, None, "none"),
    "r2plus1d_r18": (_R2PLUS1D, 16, 2, 112, _KINETICS, 400, 31_505_325, 40.519, None, "none"),
    "r2plus1d_r34_8x8": (_R2PLUS1D, 8, 8, 224, _IMAGENET, 400, 63_759_281, 40.561, None, "none"),
    "r2plus1d_r34_32x2": (_R2PLUS1D, 32, 2, 224, _IMAGENET, 400, 63_759_281, 162.2, None, "none"),
    "r2plus1d_r50": (_R2PLUS1D, 16, 4, 224, _HALF, 400, 28_107_600, 57.53, None, "none"),
    "r2plus1d_r18.torchvision": (_R2PLUS1D, 16, 2, 112, _KINETICS, 400, 31_505_325, 40.519, 67.463, "unknown"),
    "r2plus1d_r34_8x8.mmaction2": (_R2PLUS1D, 8, 8, 224, _IMAGENET, 400, 63_759_281, 40.561, 69.76, "unknown"),
    "r2plus1d_r34_32x2.mmaction2": (_R2PLUS1D, 32, 2, 224, _IMAGENET, 400, 63_759_281, 162.2, 75.46, "unknown"),
    "r2plus1d_r50.pytorchvideo": (_R2PLUS1D, 16, 4, 224, _HALF, 400, 28_107_600, 57.53, 76.01, "unknown"),
    "slowfast_tiny": (_SLOWFAST, 16, 2, 64, _HALF, 15, 842_179, 0.1231, None, "none"),
    "slowfast_r50_4x16": (_SLOWFAST, 32, 2, 224, _HALF, 400, 34_480_216, 27.64, None, "none"),
    "slowfast_r50_8x8": (_SLOWFAST, 32, 2, 224, _HALF, 400, 34_566_488, 50.31, None, "none"),
    "slowfast_r101_8x8": (_SLOWFAST, 32, 2, 224, _HALF, 400, 62_826_968, 96.4, None, "none"),
    "slowfast_16x8_r101_50_50": (_SLOWFAST, 64, 2, 224, _HALF, 400, 53_774_808, 163.1, None, "none"),
    "slowfast_r152_4x16": (_SLOWFAST, 32, 2, 224, _HALF, 400, 85_650_520, 75.13, None, "none"),
    "slowfast_r50_4x16.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 34_479_288, 27.64, 75.55, "unknown"),
    "slowfast_r50_8x8.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 34_565_560, 50.31, 76.8, "unknown"),
    "slowfast_r50_8x8_steplr.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 34_566_488, 50.31, 76.65, "unknown"),
    "slowfast_r101_8x8.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 62_912_312, 96.71, 78.65, "unknown"),
    "slowfast_r101_r50_4x16.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 62_384_312, 49.48, 77.03, "unknown"),
    "slowfast_r152_r50_4x16.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 84_843_704, 69.67, 77.13, "unknown"),
    "slowfast_r152_4x16.mmaction2": (_SLOWFAST, 32, 2, 224, _IMAGENET, 400, 85_649_592, 75.13, None, "none"),
    "slowfast_r50_4x16.pyslowfast": (_SLOWFAST, 32, 2, 224, _HALF, 400, 34_480_216, 27.64, 75.6, "unknown"),
    "slowfast_r50_8x8.pyslowfast": (_SLOWFAST, 32, 2, 224, _HALF, 400, 34_566_488, 50.31, 77.0, "unknown"),
    "slowfast_r101_8x8.pyslowfast": (_SLOWFAST, 32, 2, 224, _HALF, 400, 62_826_968, 96.4, None, "none"),
    "slowfast_16x8_r101_50_50.pyslowfast": (_SLOWFAST, 64, 2, 224, _HALF, 400, 53_774_808, 163.1, None, "none"),
    "slowfast_r50_8x8.pytorchvideo": (_SLOWFAST, 32, 2, 224, _HALF, 400, 34_566_488, 50.31, 76.94, "unknown"),
    "slowfast_r101_8x8.pytorchvideo": (_SLOWFAST, 32, 2, 224, _HALF, 400, 62_826_968, 96.4, 77.9, "unknown"),
    "slowfast_16x8_r101_50_50.pytorchvideo": (_SLOWFAST, 64, 2, 224, _HALF, 400, 53_774_808, 163.1, 78.7, "unknown"),
    "swin_tiny": (_SWIN, 8, 2, 64, _IMAGENET, 15, 273_933, 0.1327, None, "none"),
    "swin_t": (_SWIN, 32, 2, 224, _IMAGENET, 400, 28_158_070, 87.76, None, "none"),
    "swin_s": (_SWIN, 32, 2, 224, _IMAGENET, 400, 49_816_678, 165.7, None, "none"),
    "swin_b": (_SWIN, 32, 2, 224, _IMAGENET, 400, 88_048_984, 281.3, None, "none"),
    "swin_l": (_SWIN, 32, 2, 224, _IMAGENET, 400, 196_953_916, 603.3, None, "none"),
    "swin_t.mmaction2": (_SWIN, 32, 2, 224, _IMAGENET, 400, 28_158_070, 87.76, 78.9, "unknown"),
    "swin_s.mmaction2": (_SWIN, 32, 2, 224, _IMAGENET, 400, 49_816_678, 165.7, 80.54, "unknown"),
    "swin_b.mmaction2": (_SWIN, 32, 2, 224, _IMAGENET, 400, 88_048_984, 281.3, 80.57, "unknown"),
    "swin_l.mmaction2": (_SWIN, 32, 2, 224, _IMAGENET, 400, 196_953_916, 603.3, 83.46, "unknown"),
    "swin_t.original": (_SWIN, 32, 2, 224, _IMAGENET, 400, 28_158_070, 87.76, 78.8, "unknown"),
    "swin_b.original": (_SWIN, 32, 2, 224, _IMAGENET, 400, 88_048_984, 281.3, 82.7, "unknown"),
    "swin_t.torchvision": (_SWIN, 32, 2, 224, _IMAGENET, 400, 28_158_070, 87.76, 77.715, "unknown"),
    "swin_s.torchvision": (_SWIN, 32, 2, 224, _IMAGENET, 400, 49_816_678, 165.7, 79.521, "unknown"),
    "swin_b.torchvision": (_SWIN, 32, 2, 224, _IMAGENET, 400, 88_048_984, 281.3, 81.643, "unknown"),
    "timesformer_tiny": (_TIMESFORMER, 8, 2, 64, _HALF, 15, 493_247, 0.1223, None, "none"),
    "timesformer_b": (_TIMESFORMER, 8, 32, 224, _HALF, 400, 121_566_352, 195.8, None, "none"),
    "timesformer_b_joint": (_TIMESFORMER, 8, 32, 224, _HALF, 400, 86_112_400, 179.6, None, "none"),
    "timesformer_b_space": (_TIMESFORMER, 8, 32, 224, _HALF, 400, 86_106_256, 140.5, None, "none"),
    "timesformer_hr": (_TIMESFORMER, 16, 16, 448, _HALF, 400, 122_024_080, 1702.7, None, "none"),
    "timesformer_l": (_TIMESFORMER, 96, 4, 224, _HALF, 400, 121_633_936, 2379.9, None, "none"),
    "timesformer_b.mmaction2": (_TIMESFORMER, 8, 32, 224, _CENTRED, 400, 121_566_352, 195.8, 77.69, "unknown"),
    "timesformer_b_joint.mmaction2": (_TIMESFORMER, 8, 32, 224, _CENTRED, 400, 86_112_400, 179.6, 76.95, "unknown"),
    "timesformer_b_space.mmaction2": (_TIMESFORMER, 8, 32, 224, _CENTRED, 400, 86_106_256, 140.5, 76.93, "unknown"),
    "timesformer_b.original": (_TIMESFORMER, 8, 32, 224, _HALF, 400, 121_566_352, 195.8, 77.9, "unknown"),
    "timesformer_b.transformers": (_TIMESFORMER, 8, 32, 224, _HALF, 400, 121_566_352, 195.8, 77.9, "unknown"),
    "timesformer_hr.transformers": (_TIMESFORMER, 16, 16, 448, _HALF, 400, 122_024_080, 1702.7, 79.6, "unknown"),
    "timesformer_l.transformers": (_TIMESFORMER, 96, 4, 224, _HALF, 400, 121_633_936, 2379.9, 80.6, "unknown"),
    "tin_tiny": (_TIN, 8, 2, 64, _IMAGENET, 15, 311_675, 0.04757, None, "none"),
    "tin_r50": (_TIN, 8, 8, 224, _IMAGENET, 400, 24_358_640, 32.70, None, "none"),
    "tin_r50.mmaction2": (_TIN, 8, 8, 224, _IMAGENET, 400, 24_358_640, 32.70, 71.86, "unknown"),
    "tin_r50.original": (_TIN, 8, 8, 224, _IMAGENET, 400, 24_358_640, 32.70, None, "unknown"),
    "tin_r50_sthv1.mmaction2": (_TIN, 8, 8, 224, _IMAGENET, 174, 23_895_566, 32.70, 39.68, "unknown"),
    "tpn_tiny": (_TPN, 8, 2, 64, _IMAGENET, 15, 539_671, 0.03806, None, "none"),
    "tpn_slowonly_r50": (_TPN, 8, 8, 224, _IMAGENET, 400, 91_498_336, 50.28, None, "none"),
    "tpn_slowonly_r50.mmaction2": (_TPN, 8, 8, 224, _IMAGENET, 400, 91_498_336, 50.28, 76.74, "unknown"),
    "tpn_slowonly_r50.original": (_TPN, 8, 8, 224, _IMAGENET, 400, 91_498_336, 50.28, 76.1, "unknown"),
    "tpn_tsm_r50": (_TPN, 8, 8, 224, _IMAGENET, 174, 82_445_724, 41.23, None, "none"),
    "tpn_tsm_r50.mmaction2": (_TPN, 8, 8, 224, _IMAGENET, 174, 82_445_724, 41.23, 51.87, "unknown"),
    "x3d_tiny": (_X3D, 8, 2, 64, _HALF, 15, 242_519, 0.03946, None, "none"),
    "x3d_xs": (_X3D, 4, 12, 160, _HALF, 400, 3_794_322, 0.605, None, "none"),
    "x3d_s": (_X3D, 13, 6, 160, _HALF, 400, 3_794_322, 1.96, None, "none"),
    "x3d_m": (_X3D, 16, 5, 224, _HALF, 400, 3_794_322, 4.732, None, "none"),
    "x3d_l": (_X3D, 16, 5, 312, _HALF, 400, 6_153_432, 18.37, None, "none"),
    "x3d_s.mmaction2": (_X3D, 13, 6, 160, _HALF, 400, 3_794_322, 1.96, 73.3, "unknown"),
    "x3d_m.mmaction2": (_X3D, 16, 5, 224, _HALF, 400, 3_794_322, 4.732, 76.4, "unknown"),
    "x3d_s.pyslowfast": (_X3D, 13, 6, 160, _HALF, 400, 3_794_322, 1.96, 73.5, "unknown"),
    "x3d_m.pyslowfast": (_X3D, 16, 5, 224, _HALF, 400, 3_794_322, 4.732, 76.2, "unknown"),
    "x3d_l.pyslowfast": (_X3D, 16, 5, 312, _HALF, 400, 6_153_432, 18.37, 77.5, "unknown"),
    "x3d_xs.pytorchvideo": (_X3D, 4, 12, 160, _HALF, 400, 3_794_274, 0.605, 69.12, "unknown"),
    "x3d_s.pytorchvideo": (_X3D, 13, 6, 160, _HALF, 400, 3_794_274, 1.96, 73.33, "unknown"),
    "x3d_m.pytorchvideo": (_X3D, 16, 5, 224, _HALF, 400, 3_794_274, 4.732, 75.94, "unknown"),
    "x3d_l.pytorchvideo": (_X3D, 16, 5, 312, _HALF, 400, 6_153_384, 18.37, 77.44, "unknown"),
}


def import_network_module(module: str) -> ModuleType:
    """Import a module of this package; a missing torch, timm or einops is an error that names the extra.

    Raises:
        MissingExtraError: an optional dependency is not installed.
    """
    try:
        return importlib.import_module(f"vidfuse.networks.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"torch", "timm", "einops"}:
            raise MissingExtraError(f"vidfuse.networks.{module}", "networks") from error
        raise


def names(pattern: str = "*") -> list[str]:
    """List the catalogue names that match a shell pattern, sorted.

    Args:
        pattern: ``*`` stands for any characters, ``?`` for one, ``[ab]`` for either.

    Example:
        >>> names("x3d_m*")
        ['x3d_m', 'x3d_m.mmaction2', 'x3d_m.pyslowfast', 'x3d_m.pytorchvideo']
    """
    return sorted(fnmatch.filter(_TABLE, pattern))


def info(name: str) -> NetworkInfo:
    """Say what a catalogue name stands for: input, normalisation, size, cost, published accuracy.

    Args:
        name: A catalogue name.

    Raises:
        InputError: there is no such name.

    Example:
        >>> info("x3d_m.pytorchvideo").parameters
        3794274
    """
    if name not in _TABLE:
        near = difflib.get_close_matches(name, _TABLE, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "vidfuse.networks.names() lists them"
        raise InputError(f"expected the name of a network, got {name!r}; {hint}")
    (_, paper), frames, interval, size, (mean, std), classes, parameters, gmacs, top1, licence = _TABLE[name]
    return NetworkInfo(
        name, _source(name), paper, frames, interval, size, mean, std, classes, parameters, gmacs, top1, licence
    )


def create(
    name: str,
    num_classes: int | None = None,
    checkpoint: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    *,
    replace_classifier: bool = False,
    **overrides: Any,
) -> VideoNetwork:
    """Build a network by name, with random weights or with those of a checkpoint.

    Args:
        name: A catalogue name, ``architecture.source``.
        num_classes: K; by default that of the published checkpoint.
        checkpoint: A file (``.pth``, ``.pyth``, ``.pt``, ``.safetensors``) or a state dict, in the source's layout
            or in vidfuse's.
        replace_classifier: Accept a checkpoint of another class count, and leave the classifier as initialised.
        overrides: Fields of the network's configuration to set, such as ``dropout=0.2``. A checkpoint's embeddings and
            relative biases are resized to the extents that are set so (``frames``, ``size``, ``window``).

    Returns:
        A module that takes clips ``(N, 3, T, H, W)`` and returns logits ``(N, K)``, in training mode.

    Raises:
        InputError: no such name or field; or the checkpoint's keys or shapes are not the network's.
        MissingExtraError: torch, timm or einops is not installed.

    Example:
        >>> create("x3d_tiny", num_classes=5).num_features
        256
    """
    from vidfuse._checks import check_choice, check_class_count  # NumPy, which the listing of networks needs not

    network, config = _resolve(name)
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(overrides) - known):
        raise InputError(f"{name} has no setting {', '.join(unknown)}; its settings are {', '.join(sorted(known))}")
    # A field of a few allowed words is annotated as a Literal of them.
    for field, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and field in overrides:
            check_choice(field, overrides[field], get_args(hint))
    classes = check_class_count(info(name).n_classes if num_classes is None else num_classes)
    model: VideoNetwork = network.build(dataclasses.replace(config, **overrides), classes)
    model.name = name
    if checkpoint is not None:
        load_checkpoint(
            model, checkpoint, replace_classifier=replace_classifier, resize=not _EXTENTS.isdisjoint(overrides)
        )
    return model


def convert_state_dict(state_dict: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename a published state dict to vidfuse's layout of that network.

    Wrappers (``state_dict``, ``model_state``, …) and prefixes (``module.``) are taken off, and integer buffers
    that carry no weights are dropped. A state dict that is in vidfuse's layout already is returned as it is.

    Args:
        state_dict: The checkpoint's keys and tensors.
        name: The catalogue name whose source it comes from.

    Returns:
        Keys and tensors that ``create(name).load_state_dict`` takes. Keys that no rule knows are kept as they are,
        so that a strict load names them.

    Raises:
        InputError: there is no such name, or there is no state dict in what was passed.

    Example:
        >>> model = create("x3d_tiny", num_classes=3)
        >>> published = {f"module.{key}": value for key, value in model.state_dict().items()}
        >>> model.load_state_dict(convert_state_dict(published, "x3d_tiny"))
        <All keys matched successfully>
    """
    checkpoints = import_network_module("checkpoints")
    network, config = _resolve(name)
    weights: dict[str, Tensor] = checkpoints.unwrap(state_dict)
    source = _source(name)
    # Transformers' classifier is named as ours, but what comes before it is not.
    own = "classifier.weight" in weights and not any(key.startswith("timesformer.") for key in weights)
    if source == "vidfuse" or own:
        return weights
    converted: dict[str, Tensor] = network.convert(weights, source, config)
    return converted


def find_weights(state_dict: Mapping[str, Tensor], model: VideoNetwork) -> tuple[dict[str, Tensor], str]:
    """Find a network's weights in what a training script kept: under a prefix, beside losses, metrics and averages.

    Args:
        state_dict: The checkpoint's keys and tensors, in the layout of the network's source or in vidfuse's.
        model: A network that `create` built, perhaps on the device `meta`; its ``name`` says which layouts to expect.

    Returns:
        The weights as `convert_state_dict` takes them, and in a few words what else there is, such as
        ``"loss.weight, ema.* (340)"``, or nothing. Where the network is not found, all that there is.

    Raises:
        InputError: there is no state dict in what was passed.

    Example:
        >>> model = create("x3d_tiny", num_classes=3)
        >>> lightning = {f"model.{key}": value for key, value in model.state_dict().items()}
        >>> found, aside = find_weights(lightning | {"loss.weight": model.classifier.bias}, model)
        >>> found.keys() <= model.state_dict().keys(), aside
        (True, 'loss.weight')
    """
    checkpoints = import_network_module("checkpoints")
    weights: dict[str, Tensor] = checkpoints.unwrap(state_dict)
    found = checkpoints.of_network(weights, model, lambda part: convert_state_dict(part, model.name))
    taken = {id(value) for value in found.values()}
    return found, checkpoints.summary_of([key for key, value in weights.items() if id(value) not in taken])


def load_checkpoint(
    model: VideoNetwork,
    checkpoint: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    replace_classifier: bool = False,
    resize: bool = False,
) -> None:
    """Load a checkpoint into a network that `create` built, all of it or nothing.

    Args:
        model: The network; its ``name`` says which layouts to expect.
        checkpoint: A file or a state dict, as for `create`.
        replace_classifier: Accept a checkpoint of another class count, and leave the classifier as it is.
        resize: Accept embeddings and relative biases of other extents, and resize them to the network's.

    What a checkpoint holds beside the network's weights, as `find_weights` tells, is left aside with a warning.

    Raises:
        InputError: a list of the missing, unexpected and misshapen keys; nothing was loaded.

    Example:
        >>> model, trained = create("x3d_tiny", num_classes=3), create("x3d_tiny", num_classes=5)
        >>> load_checkpoint(model, trained.state_dict(), replace_classifier=True)
    """
    checkpoints = import_network_module("checkpoints")
    state_dict = checkpoints.read_checkpoint(checkpoint) if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    found, aside = find_weights(state_dict, model)
    converted = convert_state_dict(found, model.name)
    if resize:
        converted = model.resized(converted)
    checkpoints.load_strictly(model, converted, replace_classifier=replace_classifier)
    if aside:
        warnings.warn(f"the checkpoint holds more than {model.name}; left aside: {aside}", VidfuseWarning, stacklevel=2)


def cost(
    name: str, num_classes: int | None = None, *, frames: int | None = None, size: int | None = None
) -> NetworkCost:
    """Count a network's parameters and the multiply-adds of one clip. Needs no memory for weights or features.

    Args:
        name: A catalogue name.
        num_classes: K; by default that of the published checkpoint.
        frames: Frames of the clip; by default those of the catalogue.
        size: Height and width of the clip in pixels; by default those of the catalogue.

    Raises:
        InputError: There is no such name, or the network cannot take such clips.

    Example:
        >>> counted = cost("x3d_m", frames=32)
        >>> counted.parameters, round(counted.gmacs, 2), counted.clip
        (3794322, 9.46, (32, 224, 224))
    """
    facts = info(name)
    clip = (facts.frames if frames is None else frames, *(2 * (facts.size if size is None else size,)))
    if min(clip) < 1:
        raise InputError(f"expected a clip of at least one frame and one pixel, got (T, H, W) = {clip}")
    import_network_module("layers")  # where torch is not installed, an error that names the extra
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):  # shapes alone
        model = create(name, num_classes).eval()
        clips = torch.empty(1, 3, *clip)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = model(clips)
    # The counter counts a multiply-add as two operations.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return NetworkCost(parameters, counter.get_total_flops() / 2e9, logits.shape[1], clip)


def _source(name: str) -> str:
    return name.partition(".")[2] or "vidfuse"


def settings(name: str) -> Any:
    """Return the frozen configuration of a catalogue name; `create` takes other values of its fields.

    Args:
        name: A catalogue name.

    Raises:
        InputError: there is no such name.

    Example:
        >>> settings("tin_r50").segments
        8
    """
    return _resolve(name)[1]


def _resolve(name: str) -> tuple[ModuleType, Any]:
    info(name)
    network = import_network_module(_TABLE[name][0][0])
    return network, network.PRESETS[name if name in network.PRESETS else name.partition(".")[0]]
