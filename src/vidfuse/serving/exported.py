"""An exported ensemble read back: its facts, and what it answers. An ONNX file needs onnxruntime and NumPy alone."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse import __version__
from vidfuse.errors import AlignmentError, CacheFormatError, InputError, MissingExtraError

__all__ = [
    "FACTS",
    "FORMAT",
    "OUTPUTS",
    "VERSION",
    "Exported",
    "check_suffix",
    "first_line",
    "load_export",
    "read_export",
]

FORMAT: Final = "vidfuse-export"
VERSION: Final = 1
FACTS: Final = "vidfuse"
"""Under this name an ONNX file's metadata hold the facts, as JSON; of a `.pt2` file it is `vidfuse.json`."""
OUTPUTS: Final = ("log_likelihoods", "probabilities", "label")
"""What an export answers: (N, K) and (N, K) in float64, and the most probable class (N,), -1 where they are NaN."""
_SUFFIXES: Final = (".onnx", ".pt2")
_Run = Callable[[dict[str, NDArray[np.float32]]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Exported:
    """An exported ensemble: scores or clips in, fused log-likelihoods, probabilities and labels out.

    Attributes:
        facts: What the file says of itself: `members` (its inputs), `classes`, `n_classes`, `kinds`, `views`, the
            `rule`, the `inputs`' shapes, the `recipe_sha256` and the version of vidfuse that wrote it.

    Example:
        >>> import tempfile, vidfuse as vf
        >>> stack = vf.LogitStack.from_arrays({"a": 3 * np.eye(2), "b": 3 * np.eye(2)}, labels=[0, 1])
        >>> recipe = vf.Recipe.from_fitted(vf.LogLinearPool("uniform").fit(stack), stack)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = load_export(vf.serving.export(recipe, f"{folder}/both.pt2").path)
        >>> exported.facts["members"], exported({"a": [[0.0, 2.0]], "b": [[1.0, 0.0]]})["label"].tolist()
        (['a', 'b'], [1])
    """

    facts: Mapping[str, Any]
    _run: _Run = field(repr=False)

    def __call__(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """Return `log_likelihoods` (N, K), `probabilities` (N, K) and `label` (N,) of {member: its scores or clips}.

        Raises:
            AlignmentError: The inputs are not the export's members.
            InputError: An input is not of the shape that the export takes, or holds no real numbers.
        """
        expected = self.facts["inputs"]
        if set(inputs) != set(expected):
            absent, unknown = sorted(set(expected) - set(inputs)), sorted(set(inputs) - set(expected))
            raise AlignmentError(f"expected {sorted(expected)}; missing {absent}, not in the export {unknown}")
        arrays = {}
        for name in expected:
            given = np.asarray(inputs[name])
            if given.dtype.kind in "cOSUmM":
                raise InputError(f"{name}: expected real numbers, got an array of {given.dtype}")
            arrays[name] = np.ascontiguousarray(given, dtype=np.float32)
        free: dict[str, int] = {}  # extents that the caller chooses, the same in all inputs
        for name, shape in expected.items():
            got = arrays[name].shape
            fits = len(got) == len(shape) and all(
                (free.setdefault(want, have) if isinstance(want, str) else want) == have
                for want, have in zip(shape, got, strict=True)
            )
            if not fits or not arrays[name].size:
                wanted = ", ".join(f"{want} = {free[want]}" if want in free else str(want) for want in shape)
                raise InputError(f"{name}: expected an array ({wanted}), got shape {got}")
        return self._run(arrays)


def load_export(path: str | os.PathLike[str]) -> Exported:
    """Read what `vidfuse.serving.export` wrote: `.onnx` (by onnxruntime, without torch) or `.pt2` (by torch).

    A `.pt2` file is code that torch runs: read those of people whom you would let run some.

    Args:
        path: The file; its suffix, `.onnx` or `.pt2`, says how it is read.

    Raises:
        InputError: Another suffix.
        CacheFormatError: The file is cut off or damaged, no export of vidfuse, or of a newer version.
        MissingExtraError: What reads it is not installed.
        OSError: The file cannot be read.

    Example:
        >>> load_export("README.md")
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected a file that ends in .onnx or .pt2, got README.md
    """
    path = Path(path)
    check_suffix(path)
    return read_export(path.read_bytes(), path)


def check_suffix(path: Path) -> None:
    """Refuse a file that is called neither `.onnx` nor `.pt2`."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"expected a file that ends in {' or '.join(_SUFFIXES)}, got {path}")


def read_export(data: bytes, path: Path) -> Exported:
    """Return an export from its bytes; the path says its kind, and what errors call it.

    Example:
        >>> read_export(b"", Path("a.pt2"))
        Traceback (most recent call last):
        vidfuse.errors.CacheFormatError: a.pt2: the file is empty
    """
    if not data:
        raise CacheFormatError(f"{path}: the file is empty")
    text, opened = (_onnx if path.suffix == ".onnx" else _pt2)(data, path)
    try:
        facts = json.loads(text or "")
        known = facts["format"] == FORMAT and isinstance(facts["version"], int)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CacheFormatError(f"{path}: expected an export that vidfuse wrote, and it says nothing of that")
    if not 1 <= facts["version"] <= VERSION:
        raise CacheFormatError(
            f"{path}: the export has version {facts['version']}, and vidfuse {__version__} reads up to {VERSION}; "
            "upgrade"
        )
    return Exported(facts, opened())


def _onnx(data: bytes, path: Path) -> tuple[str | None, Callable[[], _Run]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("an ONNX file", "export") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class but this one
        raise CacheFormatError(
            f"{path}: expected an ONNX file, and it is damaged or cut off: {first_line(error)}"
        ) from error
    names = [output.name for output in session.get_outputs()]

    def run(arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return session.get_modelmeta().custom_metadata_map.get(FACTS), lambda: run


def _pt2(data: bytes, path: Path) -> tuple[str | None, Callable[[], _Run]]:
    """Check the archive and read the facts in it; torch takes it apart later, and only if vidfuse wrote it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
            name = next((name for name in archive.namelist() if name.endswith(f"/extra/{FACTS}.json")), None)
            text = None if name is None else archive.read(name).decode()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        damaged = first_line(error)
    if damaged is not None:
        raise CacheFormatError(f"{path}: expected a .pt2 file, and it is damaged or cut off: {damaged}")

    def opened() -> _Run:
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("a .pt2 file", "networks") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(io.BytesIO(data)).module()

        def run(arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
            with torch.no_grad():
                answers = module({name: torch.from_numpy(array) for name, array in arrays.items()})
            return {name: answers[name].numpy() for name in OUTPUTS}

        return run

    return text, opened


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message.

    Example:
        >>> first_line(ValueError("no such axis" + chr(10) + "in line 3 of …")), first_line(KeyError())
        ('no such axis', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
