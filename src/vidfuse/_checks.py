"""Checks of what a user passes: shapes, dtypes, finite values, ids, labels, names and weights, in one place.

Every check either returns its argument in canonical form or raises an `InputError` that says what was expected, what
came, where, and what to do.
"""

from __future__ import annotations

import difflib
import operator
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidfuse.errors import InputError, VidfuseWarning, option

__all__ = [
    "KINDS",
    "UNORDERED",
    "Kind",
    "Rows",
    "as_array",
    "as_dtype",
    "as_float_array",
    "check_choice",
    "check_class_count",
    "check_classes",
    "check_count",
    "check_ids",
    "check_kind",
    "check_labels",
    "check_member_names",
    "check_name",
    "check_names",
    "check_same_labels",
    "check_scores",
    "check_share",
    "check_weights",
    "did_you_mean",
    "first_few",
    "naming",
    "per_member",
    "place",
]

Kind = Literal["logits", "log-likelihoods", "probabilities", "sum"]
Rows = slice | NDArray[np.int64]  # rows of an array; a slice always has explicit bounds and step 1
KINDS: Final[tuple[Kind, ...]] = ("logits", "log-likelihoods", "probabilities", "sum")
UNORDERED: Final = (set, frozenset)  # a dictionary's keys are a Set too, and in order

_BLOCK_NUMBERS: Final = 1 << 19  # how many numbers a check looks at once, so that its memory stays bounded
_EXACT, _ROUNDED = 1e-3, 5e-3  # how far sums of probabilities are off 1 by arithmetic, and by rounding
_SINGLE = 1e-5  # the same for a single row, which may be of two logits that happen to sum to nearly 1
_BAD_NAME: Final = re.compile(r"[\x00-\x1f\x7f]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|^[/\\]")
_NO_NAME: Final = ("", "None", "nan", "NaT", "<NA>")  # the texts of what is missing
_BAD_FOLDER: Final = re.compile(r'[/\\:*?"<>|]|^\.|[. ]$|^\s')


def place(row: int, ids: NDArray[np.str_] | None = None, member: str | None = None) -> str:
    """Say where a value stands: the member, and the video's id or else its row.

    Example:
        >>> place(3, np.array(["a", "b", "c", "d"]), "swin")
        "member 'swin', id 'd' (row 3)"
    """
    where = f"row {row}" if ids is None else f"id {str(ids[row])!r} (row {row})"
    return where if member is None else f"member {member!r}, {where}"


def first_few(values: Iterable[object], count: int = 5) -> str:
    """Quote the first values of a collection, and say how many more there are.

    Example:
        >>> first_few(["a", "b", "c"], count=2)
        "'a', 'b' and 1 more"
    """
    listed = [v.item() if isinstance(v, np.generic) else v for v in values]
    shown = ", ".join(repr(v) for v in listed[:count])
    return shown if len(listed) <= count else f"{shown} and {len(listed) - count} more"


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Say what an `InputError` is about, where its message does not.

    Example:
        >>> with naming("val.csv"):
        ...     check_kind("odds")
        Traceback (most recent call last):
        vidfuse.errors.InputError: val.csv: kind: expected one of ...
    """
    try:
        yield
    except InputError as error:
        if str(what) in str(error):
            raise
        raise type(error)(f"{what}: {error}") from error


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return the end of an error's sentence: the known names that a mistyped one is close to, or nothing.

    Example:
        >>> did_you_mean("slowfst", ["swin", "slowfast"]), did_you_mean("mvit", ["swin", "slowfast"])
        ("; did you mean 'slowfast'?", '')
    """
    near = difflib.get_close_matches(str(name), [str(one) for one in known], n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def as_array(values: Any, what: str = "the array") -> NDArray[Any]:
    """Return anything array-like as a NumPy array; a torch tensor is taken without importing torch.

    Args:
        values: An array, a tensor (detached and moved to the CPU), a frame's column, or nested sequences.
        what: How an error calls it.

    Raises:
        InputError: The values are ragged or masked, or in no order.
    """
    if isinstance(values, UNORDERED):
        raise InputError(f"{what}: expected a sequence, got a {type(values).__name__}, which has no order")
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        values = (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{what}: expected an array without a mask; fill or drop the masked values first")
    if isinstance(values, np.ndarray) and not isinstance(values, np.matrix):
        return values
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what}: expected a rectangular array, got rows of different lengths ({error})") from error


def as_float_array(values: Any, what: str = "the array") -> NDArray[np.floating[Any]]:
    """Return an array of float16, float32 or float64 in native byte order, or refuse it.

    Example:
        >>> as_float_array([[1, 2]], "member 'swin'")
        Traceback (most recent call last):
        vidfuse.errors.InputError: member 'swin': expected floating-point scores, got dtype int64; ...
    """
    array = as_array(values, what)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        hint = (
            "an array of objects would need a pickle, which is never loaded"
            if array.dtype.kind == "O"
            else "pass float16, float32 or float64 (votes or ranks are not scores)"
        )
        raise InputError(f"{what}: expected floating-point scores, got dtype {array.dtype}; {hint}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def as_dtype(scores: NDArray[Any], dtype: np.dtype[Any], ids: NDArray[np.str_]) -> NDArray[Any]:
    """Return scores in another precision; a finite one that is infinite there is an error that names its video.

    Example:
        >>> as_dtype(np.array([[1e5, 0.0]]), np.dtype(np.float16), np.array(["a"]))
        Traceback (most recent call last):
        vidfuse.errors.InputError: expected scores within ±65504 for float16, got 100000 at id 'a', class 0 ...
    """
    if scores.dtype == dtype:
        return scores
    with np.errstate(over="ignore", under="ignore"):
        cast = scores.astype(dtype)
    large = np.isinf(cast)
    if large.any() and (lost := large & np.isfinite(scores)).any():
        where = tuple(np.argwhere(lost)[0].tolist())
        raise InputError(
            f"expected scores within ±{np.finfo(dtype).max:g} for {dtype}, got {scores[where]:g} at id "
            f"{str(ids[where[0]])!r}, class {where[-1]} ({int(lost.sum())} in all); store {option('dtype', 'float32')}"
        )
    return cast


def check_kind(kind: Any, what: str = "kind") -> Kind:
    """Return `kind` if it is one of the four kinds of numbers that are known."""
    check_choice(what, kind, KINDS)
    checked: Kind = kind
    return checked


def check_choice(what: str, value: Any, allowed: Collection[Any]) -> None:
    """Raise unless a value is one of those that a parameter may have.

    Example:
        >>> check_choice("join", "inne", ("exact", "inner", "outer"))
        Traceback (most recent call last):
        vidfuse.errors.InputError: join: expected one of 'exact', 'inner', 'outer', got 'inne'; did you mean 'inner'?
    """
    if not isinstance(value, str | None) or value not in allowed:
        near = did_you_mean(value, allowed)
        raise InputError(f"{what}: expected one of {', '.join(map(repr, allowed))}, got {value!r}{near}")


def check_count(what: str, value: Any) -> None:
    """Raise unless a value is a whole number of at least 1.

    Example:
        >>> check_count("repeats", 0.5)
        Traceback (most recent call last):
        vidfuse.errors.InputError: repeats: expected a whole number of at least 1, got 0.5
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{what}: expected a whole number of at least 1, got {value!r}")


def check_share(what: str, value: Any) -> None:
    """Raise unless a value is a number above 0 and below 1.

    Example:
        >>> check_share("confidence", 0.95)
    """
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise InputError(f"{what}: expected a share between 0 and 1, got {value!r}")


def check_name(name: object, what: str = "member", *, folder: bool = True) -> str:
    """Return a name that is safe to store, and (with `folder`) to use as a folder's name on any system.

    A video's id may contain slashes (a relative path), a member's name may not. Neither may leave its folder
    (``..``, ``/x``, ``C:x``) or contain control characters such as NUL.

    Example:
        >>> check_name("swin_b.v2"), check_name("abseiling/x.mp4", "video", folder=False)
        ('swin_b.v2', 'abseiling/x.mp4')
        >>> check_name("../x")
        Traceback (most recent call last):
        vidfuse.errors.InputError: member name '../x': expected ...
    """
    text = str(name)
    unsafe = (
        not text or _BAD_NAME.search(text) or len(text.encode("utf-8", "surrogatepass")) > (200 if folder else 4096)
    )
    if unsafe or (folder and _BAD_FOLDER.search(text)) or not _encodes(text):
        allowed = "a plain folder name (no '/', '\\\\', ':', no leading dot)" if folder else "a relative name"
        raise InputError(
            f"{what} name {text!r}: expected {allowed} without '..', a drive, or control characters; rename it"
        )
    return text


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_member_names(names: Iterable[object]) -> tuple[str, ...]:
    """Return members' names as a tuple, each safe as a folder's name and none given twice."""
    checked = tuple(check_name(name) for name in names)
    if not checked:
        raise InputError("expected at least one member, got none")
    repeated = sorted({name for name in checked if checked.count(name) > 1})
    if repeated:
        raise InputError(f"a member's name must be unique, got {first_few(repeated)} more than once; rename one")
    return checked


def per_member(value: Any, names: Collection[str], what: str, needed: Collection[str] | None = None) -> dict[str, Any]:
    """Return {member: value}, from one value for all members or a mapping by member.

    Args:
        value: What was given, not a mapping unless by member.
        names: The members' names.
        what: How an error calls it.
        needed: Members that a mapping must name, by default all; others it may leave out, and they get None.

    Raises:
        InputError: A mapping names other members, or lacks some.

    Example:
        >>> per_member("logits", ["swin", "x3d"], "kind")
        {'swin': 'logits', 'x3d': 'logits'}
        >>> per_member({"swin": "logits"}, ["swin", "x3d"], "kind", needed=[])
        {'swin': 'logits', 'x3d': None}
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    unknown = [name for name in value if name not in names]
    missing = [name for name in (names if needed is None else needed) if name not in value]
    if unknown or missing:
        raise InputError(
            f"{what}: expected one for each of {first_few(names, 20)}; "
            f"unknown: {first_few(unknown) or 'none'}, missing: {first_few(missing) or 'none'}"
        )
    return {name: value.get(name) for name in names}


def check_ids(ids: Any, n: int | None = None, member: str | None = None) -> NDArray[np.str_]:
    """Return video ids as an array of strings: one per row, unique, safe to store.

    Args:
        ids: A sequence of strings or integers.
        n: The number of rows that they must match.
        member: Whose ids they are, for messages.

    Raises:
        InputError: A wrong number, a duplicate (with its positions), an empty or unsafe id.
    """
    owner = "ids" if member is None else f"member {member!r}: ids"
    listed = not (isinstance(ids, (np.ndarray, *UNORDERED)) or hasattr(ids, "__array__"))
    given = [_plain(v) for v in ids] if listed else ids
    array = as_array(given, owner)
    if array.ndim != 1:
        raise InputError(f"{owner}: expected a sequence of {'N' if n is None else n} ids, got shape {array.shape}")
    # Of a list each type, before NumPy makes texts of numbers beside texts; an array has one type, unless of objects.
    values = given if listed else array.tolist() if array.dtype.kind == "O" else array[:1].tolist()
    for odd in {type(value) for value in values}:
        if not issubclass(odd, str | bytes | int | np.integer) or odd is bool:
            shown = next(value for value in values if type(value) is odd)
            raise InputError(f"{owner}: expected strings or integers, got {odd.__name__} such as {shown!r}")
    for value in values if listed or array.dtype.kind == "O" else ():
        if isinstance(value, str) and value.endswith("\0"):  # which NumPy takes for the end of a shorter text
            check_name(value, f"{owner}: video", folder=False)
    text = array if array.dtype.kind == "U" else np.array([_as_text(v) for v in array.tolist()], dtype=np.str_)
    if text.dtype.itemsize == 0:
        text = text.astype("<U1")
    if n is not None and len(text) != n:
        raise InputError(f"{owner}: expected {n}, one for each row, got {len(text)}")
    _check_id_texts(text, owner)
    order = np.argsort(text, kind="stable") if not _increasing(text) else None
    if order is not None:
        same = np.flatnonzero(text[order][1:] == text[order][:-1])
        if same.size:
            repeated = text[order][same[0]]
            positions = np.flatnonzero(text == repeated).tolist()
            raise InputError(
                f"{owner}: expected each id once, got {str(repeated)!r} at rows {first_few(positions)} "
                f"({same.size} repeated in all); drop or rename the duplicates"
            )
    return text


def check_names(values: Any, n: int, what: str, ids: NDArray[np.str_] | None = None) -> NDArray[Any]:
    """Return a name for each video (N,), which others may have too: its group or class. Objects and bytes become texts.

    Args:
        values: Texts, numbers, or anything else that has a text of its own.
        n: The number of videos.
        what: What they are, for messages.
        ids: The videos' ids, for messages.

    Raises:
        InputError: Not one for each video, or one that is missing: None, NaN, NaT, NA or an empty text.

    Example:
        >>> check_names(["a", None], 2, "groups")
        Traceback (most recent call last):
        vidfuse.errors.InputError: groups: expected a name for each video, got None for row 1
    """
    names = as_array(values, what)
    if names.shape != (n,):
        raise InputError(f"{what}: expected one name for each of {n} videos, got shape {names.shape}")
    if names.dtype.kind in "biu":
        return names
    listed = isinstance(values, list | tuple)  # before NumPy makes texts of what stands beside texts
    if listed or names.dtype.kind != "U":
        for row, name in enumerate(values if listed else names.tolist()):
            if not isinstance(name, str) and str(name) in _NO_NAME:
                raise InputError(f"{what}: expected a name for each video, got {name!r} for {place(row, ids)}")
        if names.dtype.kind in "OS":
            names = np.array([_as_text(name) for name in names.tolist()], dtype=np.str_)
    if names.dtype.kind == "U" and (names == "").any():
        row = int((names == "").argmax())
        raise InputError(f"{what}: expected a name for each video, got '' for {place(row, ids)}")
    return names


def _plain(value: Any) -> Any:
    """Return one id of a list: a number or text of NumPy's or torch's as Python's, and bytes as text."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return _as_text(value) if isinstance(value, bytes) else value


def _as_text(value: object) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8, got bytes that are not: {value!r}") from error


def _increasing(text: NDArray[np.str_]) -> bool:
    return bool(np.all(text[1:] > text[:-1]))


def _check_id_texts(text: NDArray[np.str_], owner: str) -> None:
    if not len(text):
        return
    codes = np.ascontiguousarray(text).view(np.uint32).reshape(len(text), -1)
    step = max(1, _BLOCK_NUMBERS // codes.shape[1])
    for start in range(0, len(text), step):
        block = codes[start : start + step]
        # Plain ASCII without separators, dots first or controls cannot be unsafe: the usual case costs one pass.
        plain = bool(((block == 0) | ((block > 0x20) & (block < 0x7F))).all())
        if not plain or (block == 0x2E).any() or np.isin(block[:, :2], [0x2F, 0x5C, 0x3A, 0]).any():
            for row, value in enumerate(text[start : start + step].tolist(), start):
                if not value:
                    raise InputError(f"{owner}: expected an id for each video, got an empty name at row {row}")
                check_name(value, f"{owner}: video", folder=False)


def check_labels(
    labels: Any,
    n: int | None = None,
    n_classes: int | None = None,
    ids: NDArray[np.str_] | None = None,
    *,
    some: bool = False,
) -> NDArray[np.int64]:
    """Return labels as int64 of shape (N,), each in 0 … K − 1; with `some`, -1 stands for a label that is not known.

    Raises:
        InputError: Floats, one-hot or multi-label rows, a wrong number, or a value out of range (with its id).

    Example:
        >>> check_labels([0, 2], n_classes=2)
        Traceback (most recent call last):
        vidfuse.errors.InputError: labels: expected 0 to 1 (2 classes), got 2 at row 1 (1 out of range in all); ...
    """
    array = as_array(labels, "labels")
    single = "vidfuse fuses single-label classification only"
    if array.ndim != 1:
        raise InputError(
            f"labels: expected integers of shape ({'N' if n is None else n},), got shape {array.shape}; {single}: "
            "turn one-hot rows into class indices with argmax"
        )
    if array.dtype.kind not in "iu":
        raise InputError(
            f"labels: expected integers of shape ({'N' if n is None else n},), got dtype {array.dtype}; {single}: "
            "pass class indices"
        )
    if n is not None and len(array) != n:
        raise InputError(f"labels: expected {n}, one for each video, got {len(array)}")
    least = -1 if some else 0
    bad = array < least if n_classes is None else (array < least) | (array >= n_classes)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        valid = "0 or more" if n_classes is None else f"0 to {n_classes - 1} ({n_classes} classes)"
        raise InputError(
            f"labels: expected {valid}, got {int(array[row])} at {place(row, ids)} "
            f"({int(bad.sum())} out of range in all); class indices start at 0; "
            f"pass {option('labels', None)} where labels are not known"
        )
    return array.astype(np.int64, copy=False)


def check_same_labels(
    y: ArrayLike, labels: NDArray[np.int64], ids: NDArray[np.str_] | None = None
) -> NDArray[np.int64]:
    """Return `y` if it equals the labels that a stack carries, or name the rows where they differ."""
    given = check_labels(y, len(labels), None, ids)
    rows = np.flatnonzero(given != labels)
    if rows.size:
        shown = "; ".join(f"{place(int(r), ids)}: y {given[r]}, stack {labels[r]}" for r in rows[:5])
        raise InputError(f"y and the stack's labels differ in {rows.size} of {len(labels)} videos ({shown}); pass one")
    return given


def check_class_count(count: Any) -> int:
    """Return a number of classes, Python's or NumPy's, as an integer.

    Raises:
        InputError: It is not an integer of at least 2.

    Example:
        >>> check_class_count(400)
        400
    """
    try:
        number = 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = 0
    if number < 2:
        raise InputError(f"expected num_classes to be an integer of at least 2, got {count!r}")
    return number


def check_classes(classes: Iterable[object] | None, n_classes: int) -> tuple[str, ...] | None:
    """Return class names as a tuple of K unique strings, or None where none were given."""
    if classes is None:
        return None
    if isinstance(classes, str):
        raise InputError(f"classes: expected a sequence of names, got the text {classes!r}")
    given = list(as_array(classes, "classes") if isinstance(classes, UNORDERED) else classes)
    unnamed = [k for k, name in enumerate(given) if name is None or type(name).__name__ == "NAType" or name != name]
    if unnamed:
        raise InputError(f"classes: expected a name for each class, got none for class {first_few(unnamed)}")
    names = tuple(map(_as_text, given))
    if len(names) != n_classes:
        raise InputError(f"classes: expected {n_classes} names, one for each class, got {len(names)}")
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"classes: expected unique names, got {first_few(repeated)} more than once")
    return names


def check_scores(
    scores: NDArray[np.floating[Any]], kind: Kind, *, member: str | None = None, ids: NDArray[np.str_] | None = None
) -> None:
    """Check that scores of shape (N, [V,] K) can be what they are said to be; one pass, bounded memory.

    NaN, +inf, a row of -inf alone, probabilities said to be logits, and negative or unnormalised probabilities are
    refused; single -inf values stand for probability 0 and are allowed. Probabilities whose sums are off by rounding
    (bfloat16, "%.4f": within 0.5 %) are allowed with a warning, as whoever reads them divides by their sums.
    """
    # Of each block the row sums are taken once, and three questions are put to them: are all numbers finite; are all
    # rows probabilities, where logits are said; does a row break the kind that is said? A broken row is kept until the
    # end, so that the error names the worst of all rows.
    who = "" if member is None else f"member {member!r}: "
    half = scores.dtype == np.float16
    tolerance = 1e-2 if half else _ROUNDED
    near = _SINGLE if scores.size == scores.shape[-1] and not half else tolerance
    per_row = max(1, int(np.prod(scores.shape[1:])))
    step = max(1, _BLOCK_NUMBERS // per_row)
    looks_like_probabilities = kind in ("logits", "log-likelihoods")
    worst: tuple[float, int] | None = None
    for start in range(0, len(scores), step):
        block = scores[start : start + step]
        with np.errstate(invalid="ignore", over="ignore"):
            totals = block.sum(axis=-1, dtype=np.float64 if block.dtype == np.float64 else np.float32)
        if not np.isfinite(totals).all():
            _check_finite(scores, start, step, kind, member, ids)
        if looks_like_probabilities:
            near_one = bool((np.abs(totals - 1) <= near).all())
            looks_like_probabilities = near_one and bool((block >= 0).all())
        if kind in ("probabilities", "sum"):
            if block.min() < 0:
                lowest = block.min(axis=tuple(range(1, block.ndim)))
                row = int(np.argmin(lowest))
                raise InputError(
                    f"{who}expected {kind} of at least 0, got {lowest[row]:g} at {place(start + row, ids)}; "
                    f"are these logits? Say {option('kind', 'logits')}"
                )
            off = np.abs(totals - 1) if kind == "probabilities" else np.where(totals > 0, 0.0, np.inf)
            off = off.reshape(len(block), -1)
            row = int(np.argmax(off.max(axis=1)))
            if off[row].max() > (worst[0] if worst else 0.0):
                worst = (float(off[row].max()), start + row)
    if looks_like_probabilities and len(scores):
        raise InputError(
            f"{who}expected {kind}, but every row is at least 0 and sums to 1, as probabilities do; "
            f"say {option('kind', 'probabilities')} (nothing is converted silently)"
        )
    if worst is not None and worst[0] > tolerance:
        row_sums = scores[worst[1]].sum(axis=-1, dtype=np.float64).reshape(-1)
        total = row_sums[np.argmax(np.abs(row_sums - 1))]
        wanted = f"sum to 1 within {tolerance:g}" if kind == "probabilities" else "have a positive sum"
        raise InputError(
            f"{who}expected rows of kind {kind!r} to {wanted}; the worst is {place(worst[1], ids)} with the sum "
            f"{total:g}; say {option('kind', 'sum')} if they are sums over views, which are divided by their sum"
        )
    if worst is not None and kind == "probabilities" and _EXACT < worst[0] and not half:
        warnings.warn(
            f"{who}probabilities sum to 1 within {worst[0]:.2g} only, as rounded ones do: they are divided by their "
            "sums",
            VidfuseWarning,
            stacklevel=3,
        )


def _check_finite(
    scores: NDArray[np.floating[Any]],
    start: int,
    step: int,
    kind: Kind,
    member: str | None,
    ids: NDArray[np.str_] | None,
) -> None:
    """Raise for the first block that holds something not finite, unless it is -inf as probability 0."""
    block = scores[start : start + step]

    def fail(test: Callable[[NDArray[Any]], Any], found: str, advice: str) -> None:
        where = np.argwhere(test(block))[0]
        view = f", view {where[1]}" if block.ndim > 2 and len(where) == block.ndim else ""
        column = f", class {where[-1]}" if len(where) == block.ndim else ""
        count = sum(int(test(scores[s : s + step]).sum()) for s in range(0, len(scores), step))
        raise InputError(
            f"expected finite scores, got {found} at {place(start + int(where[0]), ids, member)}{view}{column} "
            f"({count} in all); {advice}"
        )

    if np.isnan(block).any():
        fail(np.isnan, "NaN", "recompute or drop these videos")
    if np.isposinf(block).any():
        half = scores.dtype == np.float16
        fail(np.isposinf, "+inf", "float16 overflow? Store float32" if half else "recompute these videos")
    if kind in ("probabilities", "sum") and np.isneginf(block).any():
        fail(np.isneginf, "-inf", f"{kind} are at least 0")
    if np.isneginf(block).all(axis=-1).any():
        fail(lambda x: np.isneginf(x).all(axis=-1), "-inf in every class", "drop or recompute these videos")


def check_weights(
    weights: Sequence[float] | Mapping[str, float] | ArrayLike, members: Sequence[str]
) -> NDArray[np.float64]:
    """Return one weight a member, in the members' order, on the simplex.

    Args:
        weights: Numbers in the members' order, or a mapping from member to number; each at least 0.
        members: The members' names.

    Raises:
        InputError: A wrong number, an unknown member, a negative or NaN weight, or a sum of zero.

    Example:
        >>> check_weights({"swin": 1.0, "x3d": 3.0}, ["swin", "x3d"]).tolist()
        [0.25, 0.75]
    """
    if isinstance(weights, Mapping):
        weights = list(per_member(weights, members, "weights").values())
    array = as_array(weights, "weights")
    if array.dtype.kind not in "fiu" or array.ndim != 1:
        raise InputError(f"weights: expected {len(members)} numbers, got dtype {array.dtype}, shape {array.shape}")
    if len(array) != len(members):
        raise InputError(
            f"weights: expected {len(members)}, one for each of {first_few(members, 20)}, got {len(array)}"
        )
    numbers = array.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if bad.size:
        raise InputError(
            f"weights: expected finite numbers of at least 0, got {numbers[bad[0]]:g} for member {members[bad[0]]!r}"
        )
    if numbers.max(initial=0.0) > 1e300:  # their sum may be no number
        numbers /= numbers.max()
    total = numbers.sum()
    if not total > 0:
        raise InputError("weights: expected a positive sum, got weights that sum to zero; give one member a weight")
    return numbers / total
