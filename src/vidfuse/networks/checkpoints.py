"""Reading checkpoints: every published wrapper and file kind, arrays only, strict unless told otherwise."""

from __future__ import annotations

import os
import pickle  # only for the class of its error: nothing is unpickled here
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vidfuse._checks import naming
from vidfuse.errors import InputError, VidfuseWarning, option

__all__ = [
    "CLASSIFIERS",
    "COUNTED",
    "Rules",
    "load_strictly",
    "of_network",
    "parts",
    "read_checkpoint",
    "rename",
    "summary_of",
    "unwrap",
]

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Pairs of a regular expression and its replacement, as `re.sub` takes them."""

_WRAPPERS: Final = ("state_dict", "model_state", "model_state_dict", "model", "state_dict_ema", "model_ema", "ema")
_PREFIXES: Final = ("module.", "model.")
# What torch puts between the names of modules that are compiled, sharded or checkpointed, wherever they lie.
_BETWEEN: Final = re.compile(r"(?<![^.])_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
# Buffers that are counted or computed, not learned.
COUNTED: Final = ("num_batches_tracked", "relative_position_index", "n_averaged")
# How the names begin of what depends on the number of classes.
CLASSIFIERS: Final = ("classifier.", "auxiliary.classifier.")
_LISTED: Final = 20
# A network lies in what a training script keeps at most so deep: `model.ema.module.` is three.
_DEPTH: Final = 4
# Copies of a network that training makes beside it.
_COPY: Final = re.compile(
    r"(^|[._])(ema|averaged?|avg|swa|mean|momentum|mmt|hist|teacher|target|k)([._]|$)", re.IGNORECASE
)
_GROUPS_TOLD: Final = 4
_HEAD: Final = 80  # bytes that tell what a file is
_TORCH_PICKLE: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch's files before zip archives begin
# What training scripts keep beside the weights: settings, and what their frameworks count. Nothing of it is built.
_SETTINGS: Final = re.compile(
    r"(argparse|pathlib|functools|enum|omegaconf|yacs|addict|ml_collections|lightning\w*|pytorch_lightning|mmengine|mmcv"
    r"|mmaction|fvcore|iopath|timm|torch\.(nn|optim))\.|builtins\.(list|dict|set|getattr)$|typing\.Any$|__main__\."
)


def _numpy_globals() -> list[Any]:
    """Return what pickled NumPy arrays and scalars are made of; checkpoints often keep their metrics as such."""
    core = getattr(np, "_core", None) or np.core
    dtypes = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    return [np.ndarray, np.dtype, core.multiarray._reconstruct, core.multiarray.scalar, *dtypes]


class _Aside:
    """What stands for an object of a checkpoint's settings: it takes anything, and is and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Aside:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _unpickled(path: Path) -> Any:
    """Return what a pickled checkpoint holds; objects of its settings are left aside, any others are refused."""

    def load() -> Any:
        with path.open("rb") as file:  # given a path, torch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)

    with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other pickle protocols: what cannot be read is an error anyway
        aside: dict[str, Any] = {}
        told: list[pickle.UnpicklingError] = []
        while True:  # each refusal names one more kind
            try:
                with torch.serialization.safe_globals([(kind, name) for name, kind in aside.items()]):
                    return load()
            except pickle.UnpicklingError as error:
                told.append(error)
                names = {name for name in _refused(error) if _SETTINGS.match(name)} - aside.keys()
                if not names:  # what else it refuses it names, or else the first refusal says more
                    raise told[-1 if _refused(error) else 0] from error
                aside |= {name: type(name, (_Aside,), {}) for name in names}  # torch wants a class for each


def _refused(error: pickle.UnpicklingError) -> list[str]:
    """Return the objects that torch names as those that it did not build; it names those of `builtins` without that."""
    names = re.findall(r"GLOBAL ([\w.]+)", str(error)) or re.findall(r"class ([\w.]+)", str(error))
    return [name if "." in name else f"builtins.{name}" for name in names]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a ``.pth``, ``.pyth``, ``.pt`` or ``.safetensors`` file, on the CPU.

    Nothing but tensors, arrays and plain containers is ever unpickled: objects of a training script's settings, as
    Lightning and MMEngine keep them, are left aside, and any others are refused. A wrapper (``state_dict``,
    ``model_state``, ``model``, …) and a common prefix (``module.``) are taken off.

    Args:
        path: The file. Its content, not its suffix, tells safetensors from pickle.

    Raises:
        InputError: no such file; or it holds no state dict; or it needs objects to be unpickled (they are named).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.head.weight": torch.zeros(2, 3)}}, f"{folder}/epoch_10.pth")
        ...     {name: tuple(value.shape) for name, value in read_checkpoint(f"{folder}/epoch_10.pth").items()}
        {'head.weight': (2, 3)}
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"expected a checkpoint file, got the folder {path}; pass the file of weights in it")
    if not path.is_file():
        raise InputError(f"expected a checkpoint file, but there is none at {path}")
    try:
        if _is_safetensors(path):
            return unwrap(load_file(path))
        content = _unpickled(path)
    except pickle.UnpicklingError as error:
        refused = _refused(error)
        if refused:
            needed = ", ".join(dict.fromkeys(refused))
            what = f"it needs {needed}, which is neither an array nor a plain container; save its state dict alone"
        else:
            what = _foreign(path) or "it is not a checkpoint of tensors; save its state dict alone"
        raise InputError(f"{path} was not read, and nothing of it was executed: {what}") from error
    except (RuntimeError, EOFError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a readable checkpoint: {_foreign(path) or error}") from error
    with naming(path):
        return unwrap(content)


def _is_safetensors(path: Path) -> bool:
    """Tell by the first bytes: the length of a JSON object, and its brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _foreign(path: Path) -> str | None:
    """Say what a file is that torch did not write, where its content tells, and what to do."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    line = head.decode("utf-8", "replace").partition("\n")[0].strip().rstrip("\ufffd")
    if line and line.isprintable() and "\ufffd" not in line:
        return f"it is text, which begins with {line[: _HEAD // 2]!r}: fetch the file of the weights themselves"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).name for name in archive.namelist()]
        if "constants.pkl" in names:
            return "it is a TorchScript program: torch.jit.load(file).state_dict() gives its weights"
        if any(name.endswith(".npy") for name in names):
            return "it is an archive of NumPy: make a mapping of names to tensors of it"
    if head.startswith(b"\x80") and not head.startswith(_TORCH_PICKLE):
        return "it is a pickle that torch did not write, as Caffe2's are: make a mapping of names to tensors of it"
    return None


def unwrap(content: Any) -> dict[str, Tensor]:
    """Find the state dict in what a checkpoint holds, without wrappers, common prefixes and counters.

    Raises:
        InputError: there is no mapping of names to tensors in it.

    Example:
        >>> weight = torch.zeros(2)
        >>> list(unwrap({"epoch": 3, "model_state": {"module.fc.weight": weight}}))
        ['fc.weight']
    """
    seen: list[str] = []
    # Go inwards, one wrapper at a time, until a mapping has none. `seen` then names the keys of one without tensors.
    while isinstance(content, Mapping):
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            if not any(isinstance(value, Tensor) for value in content.values()):
                seen = [f"{key} ({type(value).__name__})" for key, value in content.items()]
            break
        _tell_others(content, inner)
        content = content[inner]
    if not isinstance(content, Mapping) or seen or not content:
        found = f"keys {', '.join(seen[:_LISTED])}" if seen else f"an object of type {type(content).__name__}"
        raise InputError(
            f"expected a state dict, bare or under one of {', '.join(_WRAPPERS)}; found {found}; pass the mapping of "
            "names to tensors that is meant"
        )
    weights = {_BETWEEN.sub("", str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
    weights = {key: value for key, value in weights.items() if not key.endswith(COUNTED)}
    # Take off a prefix that all keys have, and then the next one: "module.model." loses both.
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _tell_others(content: Mapping[Any, Any], taken: str) -> None:
    """Warn of other weights beside those that are taken: a training script scored one of the two."""
    ends = [_end(key) for key, value in content[taken].items() if isinstance(value, Tensor)]
    others = [
        str(name)
        for name, value in content.items()
        if name != taken
        and isinstance(value, Mapping)  # an optimiser's state ends otherwise, as in weight.exp_avg
        and 0 < len(ends) <= 2 * sum(isinstance(v, Tensor) and _end(key) in ends for key, v in value.items())
    ]
    if others:
        warnings.warn(
            f"the checkpoint holds weights under {taken} and under {', '.join(others)}: those under {taken} are taken; "
            f"pass torch.load(file)[{others[0]!r}] to take others",
            VidfuseWarning,
            stacklevel=3,
        )


def _end(key: Any) -> str:
    return str(key).rpartition(".")[2]


def parts(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield what of a state dict may be a network: all of it, then what stands under each prefix, the largest first.

    Copies that training keeps, such as the average `ema.module.`, come last.

    Example:
        >>> kept = {"net.fc.weight": torch.zeros(2), "net.fc.bias": torch.zeros(2), "ema.net.fc.weight": torch.zeros(2)}
        >>> [list(part) for part in parts(kept)][:2]
        [['net.fc.weight', 'net.fc.bias', 'ema.net.fc.weight'], ['fc.weight', 'fc.bias']]
    """
    yield from (_below(weights, prefix) for prefix in _prefixes(weights))


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _prefixes(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the prefixes below which a network may lie, in the order of `parts`."""
    yield ""
    sizes: Counter[str] = Counter()
    for key in weights:
        levels = key.split(".")[:-1]
        sizes.update(".".join(levels[:depth]) + "." for depth in range(1, 1 + min(_DEPTH, len(levels))))
    yield from sorted(sizes, key=lambda prefix: (_COPY.search(prefix) is not None, -sizes[prefix]))


def of_network(
    weights: Mapping[str, Tensor], model: nn.Module, convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Find a network's weights in what a training script kept: under a prefix, beside losses, metrics and averages.

    What is found has all of the network's own weights but the classifier. Of what stands beside them, a part is left
    aside if nothing of it is the network's: `loss.weight` beside `blocks.0.weight`, but never one block more than there
    should be, which makes another network.

    Args:
        weights: A state dict.
        model: The network, perhaps on the device `meta`.
        convert: What renames a state dict to the network's own layout.

    Returns:
        Its weights as they are published, without a prefix; all of `weights` where it is not found.

    Raises:
        InputError: There are two such networks, neither of which is called a copy of the other.
    """
    own = {key for key in model.state_dict() if not key.endswith(COUNTED)}
    spared = (*CLASSIFIERS, *getattr(model, "training_only", ()))
    body = {key for key in own if not key.startswith(spared)}
    found: dict[str, dict[str, Tensor]] = {}
    for prefix in _prefixes(weights):
        if any(_COPY.search(prefix) or prefix.startswith(one) or one.startswith(prefix) for one in found):
            continue
        part = _below(weights, prefix)
        there = convert(part).keys() if 2 * len(part) >= len(body) else set()
        if not body <= there:
            continue
        if not there <= own:
            for group in dict.fromkeys(key.partition(".")[0] for key in part):
                rest = {key: value for key, value in part.items() if key.partition(".")[0] != group}
                if rest and convert(rest).keys() & own == there & own:
                    part = rest
        if not prefix:
            return part
        if not any(_equal(part, other) for other in found.values()):  # a network may be kept under two names
            found[prefix] = part
    if len(found) > 1:
        raise InputError(
            f"expected the weights of one network, got those of {len(found)} alike, under {' and '.join(found)}; pass "
            "the state dict of the one that is meant alone"
        )
    return next(iter(found.values()), dict(weights))


def _equal(part: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return part.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in part.items())


def summary_of(keys: Sequence[str]) -> str:
    """Name what a checkpoint holds in a few words: by the first part of the names, with how many there are.

    Example:
        >>> summary_of(["loss.weight", "ema.module.conv.weight", "ema.module.conv.bias"])
        'loss.weight, ema.* (2)'
    """
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.partition(".")[0], []).append(key)
    told = [own[0] if len(own) == 1 else f"{group}.* ({len(own)})" for group, own in groups.items()]
    return ", ".join(told[:_GROUPS_TOLD]) + (
        f" and {len(told) - _GROUPS_TOLD} more" if len(told) > _GROUPS_TOLD else ""
    )


def rename(state_dict: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Apply every rule, in order, to every key.

    Raises:
        InputError: Two keys that hold other numbers become one: they are of two networks.

    Example:
        >>> rename({"head.projection.weight": torch.zeros(1)}, [(r"^head[.]projection", "classifier")])
        {'classifier.weight': tensor([0.])}
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for name, value in state_dict.items():
        key = name
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        if key in renamed and not value.is_meta and not torch.equal(renamed[key], value):
            raise InputError(f"expected the weights of one network, got two for {key}: {first[key]} and {name}")
        first.setdefault(key, name)
        renamed[key] = value
    return renamed


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], *, replace_classifier: bool = False) -> None:
    """Load weights into a model if every key and shape agrees, and else change nothing.

    Args:
        model: A network whose classifier is named ``classifier``.
        state_dict: Weights in the model's own layout. Where all of what only training uses is missing
            (`VideoNetwork.training_only`), the rest is loaded, with a warning.
        replace_classifier: Leave the model's classifier as it is where the checkpoint's has another class count.

    Raises:
        InputError: a list of the missing, unexpected and misshapen keys.
    """
    wanted = {key: value for key, value in model.state_dict().items() if not key.endswith(COUNTED)}
    given = dict(state_dict)
    if replace_classifier:
        # A classifier's tensor stays the model's where the checkpoint has none, or one of another class count (K is the
        # first axis). Where another axis differs, the checkpoint is of another network: that is reported below.
        for key in [key for key in wanted if key.startswith(CLASSIFIERS)]:
            if key not in given or given[key].shape[1:] == wanted[key].shape[1:]:
                given[key] = given.get(key, wanted[key])
                if given[key].shape != wanted[key].shape:
                    given[key] = wanted[key]
    missing = [key for key in wanted if key not in given]
    # What only training uses may be missing as a whole: published files are often cut down to what predicts.
    spare = tuple(part for part in getattr(model, "training_only", ()) if any(key.startswith(part) for key in wanted))
    cut = bool(spare) and not any(key.startswith(spare) for key in state_dict)
    if cut:
        missing = [key for key in missing if not key.startswith(spare)]
    unexpected = [key for key in given if key not in wanted]
    misshapen = [
        f"{key} (expected {tuple(wanted[key].shape)}, got {tuple(given[key].shape)})"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    unusable = [
        f"{key} ({value.dtype})"
        for key, value in given.items()
        if key in wanted and wanted[key].is_floating_point()
        if not (value.is_floating_point() and value.float().isfinite().all())
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:_LISTED])}" + (" …" if len(keys) > _LISTED else "")
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
            ("of other numbers than finite floating-point ones", unusable),
        )
        if keys
    ]
    if problems:
        name = getattr(model, "name", "") or type(model).__name__
        advice = "" if missing or unexpected or unusable else _advice(model, given, wanted)
        raise InputError(f"the checkpoint does not fit {name}, nothing was loaded: {'; '.join(problems)}{advice}")
    if cut:
        given = {key: value for key, value in given.items() if not key.startswith(spare)}
        warnings.warn(
            f"the checkpoint has no {', '.join(name.rstrip('.') for name in spare)} head, which only training uses: "
            "it is as freshly built; predictions do not need it",
            VidfuseWarning,
            stacklevel=3,
        )
    model.load_state_dict(given, strict=False)


def _advice(model: nn.Module, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say how to go on where weights have all names of a model's, but other shapes."""
    others = {key: value for key, value in wanted.items() if not key.startswith(CLASSIFIERS)}
    if all(given.get(key, value).shape == value.shape for key, value in others.items()):
        n_given, n_wanted = len(given["classifier.weight"]), len(wanted["classifier.weight"])
        return (
            f"; it tells {n_given} classes apart, and the network {n_wanted}: say {n_given} with "
            f"{option('num_classes')}, or go on from its weights with a new classifier: "
            f"{option('replace_classifier', True)}"
        )
    resized = getattr(model, "resized", dict)(given)
    if all(resized.get(key, value).shape == value.shape for key, value in others.items()):
        return (
            "; it was made for clips of other extents: with its own frames=, size= or window=, "
            "vidfuse.networks.create(…) takes it as it is, and with others it resizes it"
        )
    if (segments := getattr(getattr(model, "config", None), "segments", None)) is not None:
        return f"; the network was built for clips of {segments} frames: take as many as the checkpoint was trained on"
    return ""
