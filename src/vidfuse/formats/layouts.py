"""Which tool's layout a file's content has: scores, labels and ids found in arrays, lists and dicts.

`LAYOUTS` is the list of what is recognised: what fits, how it is read, and what it is called. The first that fits is
taken. Roles are told by names, by position where a tool always writes the same one, and by type; never by values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidfuse._checks import as_float_array, first_few
from vidfuse.errors import InputError, option
from vidfuse.formats.pipelines import answers_in, is_answers, read_answers
from vidfuse.formats.values import (
    as_labels,
    as_names,
    describe,
    is_cells,
    is_matrix,
    is_numbers,
    is_row,
    is_video,
    label_values,
    stack_videos,
    whole,
)
from vidfuse.stack.columns import (
    CLASS_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    NO_IDS,
    NOTE_NAMES,
    called,
    counts_rows,
    id_name,
    in_numbered_order,
    is_numbered,
    tells_apart,
)
from vidfuse.stack.frames import Dump, label_indices, read_frame, sorted_classes

__all__ = ["LAYOUTS", "SCORE_NAMES", "Ask", "Layout", "label_key", "read_layout"]

SCORE_NAMES: Final = (
    *("scores", "logits", "preds", "pred_scores", "probabilities", "pred_score", "score", "probs", "prob", "logit"),
    *("predictions", "prediction", "video_preds", "video_pred", "outputs", "output", "all_preds", "test_preds"),
    *("y_score", "softmax", "y_pred", "results", "result"),
)
_HEAD_ENDINGS: Final = ("", "_output", "_outputs", "_scores", "_logits", "_preds", "_probs")
_HEAD_LABELS: Final = ("_class", "_label", "_labels", "_target", "_targets")


@dataclass(frozen=True)
class Ask:
    """What the caller said about a file.

    Attributes:
        size: The file's size in bytes, or what it unpacks to; arrays may take a small multiple of it.
        head: Which scores to take where there are several, by name.
        id_column: The key of the ids, or "none".
        classes: Class names, for labels that are names, or "sorted".
        columns: Which keys of flat dicts are scores, as of a table's columns.
    """

    size: int
    head: str | None = None
    id_column: str | None = None
    classes: Sequence[str] | str | None = None
    columns: Sequence[str] | str | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which tools lay out predictions.

    Attributes:
        name: What it is, for people.
        fits: Whether a content has this layout.
        read: How to read it.
    """

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[Any, Ask], Dump]


def read_layout(content: Any, ask: Ask) -> Dump:
    """Read a content by the first layout that fits; ids are names as they stand, and nothing is checked yet.

    Raises:
        InputError: None fits; the message says what the content looks like and what is known.
    """
    layout = next((layout for layout in LAYOUTS if layout.fits(content)), None)
    if layout is None:
        listed = isinstance(content, list) and len(content) == 2 and as_names(content[0]) is not None
        if listed or as_names(content) is not None:
            raise InputError(
                f"expected predictions, got a list of videos, without scores; pass it with {option('annotations')}"
            )
        if isinstance(content, np.ndarray) and content.ndim > 1:
            as_float_array(content, "predictions")
        videos = dict(enumerate(content)) if isinstance(content, list) else content
        odd = [key for key, value in videos.items() if not is_video(value)] if isinstance(videos, dict) else []
        if odd and 2 * len(odd) < len(videos):
            shown = ", ".join(f"{key!r} ({describe(videos[key])})" for key in odd[:3])
            raise InputError(
                f"expected scores of each video, got something else for {len(odd)} of {len(videos)}: {shown}"
            )
        raise InputError(
            f"expected predictions, got {describe(content)}; known are: {'; '.join(known.name for known in LAYOUTS)}"
        )
    return layout.read(content, ask)


def _is_named(content: Any) -> bool:
    """Whether a dict names arrays: it has scores by a usual name, or arrays of all videos beside other things."""
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        return False
    if called(content, SCORE_NAMES) and any(_holds_scores(v) for k, v in content.items() if k.lower() in SCORE_NAMES):
        return True
    matrices = [value for value in content.values() if is_matrix(value)]
    if len(matrices) < len(content):
        return len(matrices) == 1 or (bool(matrices) and not all(map(is_video, content.values())))
    return len(matrices) == 1 or min(map(len, matrices)) > len(matrices)  # views of two videos, or two heads?


def _holds_scores(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], list | dict | np.ndarray) and as_labels(value) is None
    return is_matrix(value) or is_cells(value) or (isinstance(value, dict) and bool(value))


def _read_named(content: Mapping[str, Any], ask: Ask) -> Dump:
    """Scores, labels, ids and class names by their keys; what is not understood is named.

    Scores are the array with a usual name or that of `head`, or else the only one of two or three axes.
    """
    content = {name: value for name, value in content.items() if value is not None}  # nothing was known of these
    key = _score_key(content, ask)
    value = content[key]
    if isinstance(value, np.ndarray) and not is_cells(value):
        dump = Dump(value)
    else:
        dump = read_layout(value, replace(ask, id_column=None))
    if not len(dump.scores):
        raise InputError(f"expected predictions of at least one video, got none in {key!r}")
    return _with_columns(dump, content, {key}, key, ask)


def _with_columns(dump: Dump, content: Mapping[str, Any], used: set[str], key: str, ask: Ask) -> Dump:
    """Add the labels, ids and class names that stand beside scores, by their keys; note or refuse what is left.

    Args:
        dump: The scores, and what came with them.
        content: What stands beside them, and perhaps they themselves.
        used: The keys of the scores.
        key: What the scores are called.
        ask: What the caller said.
    """
    n = len(dump.scores)
    class_key = called([name for name in content if name not in used], CLASS_NAMES)
    if class_key is not None:
        used.add(class_key)
        dump = replace(dump, classes=tuple(_some_names(content[class_key], class_key)))
    labels_key = label_key([name for name in content if name not in used], key)
    if labels_key is not None:
        used.add(labels_key)
        given = _by_id(content[labels_key], dump)
        classes = dump.classes or sorted_classes(ask.classes, as_names(given))
        labels = label_values(given, n, classes)
        # TSN's rows carry their own labels; those beside them may be a placeholder of another length.
        dump = replace(dump, labels=labels if dump.labels is None or len(labels) == n else dump.labels)
        dump = replace(dump, classes=None if classes is None else tuple(classes))
    id_key = _id_key(content, ask)
    if id_key is not None:
        used.add(id_key)
        if (
            dump.ids is None or counts_rows(dump.ids) or ask.id_column is not None
        ):  # ids that scores stand under are theirs, in any order
            names = _some_names(_by_id(content[id_key], dump), id_key)
            dump = replace(dump, ids=np.array(names, dtype=np.str_))
    kind = as_names(content.get("kind")) or ([content["kind"]] if isinstance(content.get("kind"), str) else None)
    if ask.head is not None:  # what belongs to the other heads is known, and not wanted
        used |= {name for name, other in content.items() if is_matrix(other) or name.endswith(_HEAD_LABELS)}
    notes = _rest(content, used, dump, dump.ids is None and ask.id_column is None)
    return replace(dump, kind=kind[0] if kind else None, notes=(*dump.notes, *notes))


def _by_id(value: Any, dump: Dump) -> Any:
    """Return a list in the rows' order of what is given by id."""
    by_id = isinstance(value, dict) and dump.ids is not None
    return [value.get(name) for name in dump.ids.tolist()] if by_id else value  # type: ignore[union-attr]


def _score_key(content: Mapping[str, Any], ask: Ask) -> str:
    usual = [k for k in content if k.lower() in SCORE_NAMES and _holds_scores(content[k])]
    matrices = [key for key, value in content.items() if is_matrix(value) or is_cells(value)]
    either = {*usual, *matrices}
    choices = usual if len(usual) == 1 or not matrices else [key for key in content if key in either]
    if ask.head is not None and (len(choices) != 1 or ask.head in content):
        return _head(choices or list(content), ask.head)
    if len(choices) == 1:
        return choices[0]
    if len(usual) > 1:  # logits and their softmax, say
        choices = usual
    raise InputError(f"there are several arrays of scores, {first_few(choices)}; say which with {option('head')}")


def _head(keys: Sequence[str], head: str) -> str:
    found = next((head + end for end in _HEAD_ENDINGS if head + end in keys), None)
    if found is None:
        raise InputError(f"there are the scores {first_few(keys)}; say which with {option('head')}, got {head!r}")
    return found


def label_key(names: Sequence[str], key: str) -> str | None:
    """Return the labels' name among others: that of the head whose scores `key` holds, or a usual one.

    Example:
        >>> label_key(["label", "verb_class"], "verb_output"), label_key(["label", "verb_class"], "scores")
        ('verb_class', 'label')
    """
    start = next((key.removesuffix(end) for end in reversed(_HEAD_ENDINGS) if key.endswith(end)), key)
    return next((start + end for end in _HEAD_LABELS if start + end in names), None) or called(names, LABEL_NAMES)


def _id_key(content: Mapping[str, Any], ask: Ask) -> str | None:
    if ask.id_column is None:
        return id_name(content, content.__getitem__)
    if ask.id_column == NO_IDS:
        return None
    if ask.id_column not in content:
        raise InputError(f"id_column: no array is called {ask.id_column!r}; there are {first_few(content)}")
    return ask.id_column


def _some_names(value: Any, key: str) -> list[str]:
    cells = value.tolist() if is_cells(value) else value
    if isinstance(cells, list) and all(isinstance(cell, dict) for cell in cells):
        value = [cell.get("path") for cell in cells]  # as Hugging Face's data sets keep files
    names = as_names(value)
    if names is None:
        numbers = as_labels(value)
        names = None if numbers is None else [str(number) for number in numbers.tolist()]
    if names is None:
        raise InputError(f"expected a list of names in {key!r}, got {describe(value)}")
    return names


def _rest(content: Mapping[str, Any], used: set[str], dump: Dump, without_ids: bool) -> list[str]:
    """Refuse what can only be the ids nobody recognised, or the best classes; note everything else that is left out."""
    rest = [k for k in content if k not in used and k.lower() not in NOTE_NAMES and k.lower() not in SCORE_NAMES]
    n = len(dump.scores)
    ids = [key for key in rest if _could_be_ids(content[key], n)]
    if ids and without_ids:
        raise InputError(
            f"{first_few(ids)} holds one name or number for each row: the ids? Say {option('id_column', ids[0])}, or "
            f"{option('id_column', NO_IDS)} if they are not"
        )
    best = next((key for key in rest if _holds_best(content[key], dump.scores)), None)
    if best is not None:
        raise InputError(
            f"{best!r} says of which classes the {dump.scores[0].size} highest scores are: the others are not there, "
            "and needed; write the scores of every class"
        )
    what = ", ".join(f"{key!r} ({describe(content[key])})" for key in rest[:5])
    return [f"not understood, and left out: {what}{', …' if len(rest) > 5 else ''}"] if rest else []


def _could_be_ids(value: Any, n: int) -> bool:
    """Whether these are N different texts, or N different whole numbers that do not just count the rows."""
    names = as_names(value)
    if names is None and (numbers := as_labels(value)) is not None and not counts_rows(numbers):
        names = [str(number) for number in numbers.tolist()]
    return names is not None and len(names) == n == len(set(names)) and n > 1


def _holds_best(value: Any, scores: Any) -> bool:
    """Whether these are the classes of scores that descend in each row, as the highest of many do."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or isinstance(scores, list):
        return False
    if value.shape != scores.shape:
        return False
    distinct = (np.diff(np.sort(value, axis=-1), axis=-1) > 0).all()
    return value.ndim == 2 and bool(distinct and (np.diff(scores, axis=-1) <= 0).all())


def _is_by_id(content: Any) -> bool:
    if not isinstance(content, dict) or not content or called([str(key) for key in content], SCORE_NAMES):
        return False
    if not all(map(is_numbers, content.values())):
        return all(map(is_video, content.values()))
    # Some may be whole, as other languages write 1 for 1.0, but for labels and counts among a table's columns.
    whole = [str(key) for key, video in content.items() if not is_video(video)]
    return len(whole) < len(content) and called(whole, (*ID_NAMES, *LABEL_NAMES, *NOTE_NAMES)) is None


def _read_by_id(content: Mapping[Any, Any], ask: Ask) -> Dump:
    return Dump(stack_videos(content.values(), ask.size), ids=_keys(content))


def _keys(content: Mapping[Any, Any]) -> NDArray[np.str_]:
    return np.array([key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key) for key in content])


def _is_rows_by_id(content: Any) -> bool:
    if not isinstance(content, dict) or not content:
        return False
    return all(map(is_row, content.values())) or all(map(_is_sample, content.values()))


def _is_sample(value: Any) -> bool:
    """Whether this is one video as a dict: with scores by a usual name, or by head."""
    if not isinstance(value, dict):
        return False
    return _score_of(value) is not None or any(is_video(head) and np.ndim(head[0]) == 0 for head in value.values())


def _read_rows_by_id(content: Mapping[Any, Any], ask: Ask) -> Dump:
    rows = list(content.values())
    dump = _read_dicts(rows, ask) if isinstance(rows[0], dict) else _read_rows(rows, ask, _keys(content))
    return _keyed(dump, content, ask)


def _keyed(dump: Dump, content: Mapping[Any, Any], ask: Ask) -> Dump:
    """Take the keys as ids, unless they only count the rows and videos have ids that tell them apart, or on request."""
    keys = _keys(content)
    own = dump.ids is not None and (ask.id_column is not None or (counts_rows(keys) and tells_apart(dump.ids)))
    return dump if own else replace(dump, ids=keys)


def _is_labels_by_id(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and as_labels(list(content.values())) is not None


def _is_answered(content: Any) -> bool:
    """Whether videos have a pipeline's answers: in a list, by id, or in a dict of each video."""
    videos = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(videos, list) or not videos:
        return False
    return is_answers(videos) or all(map(is_answers, videos)) or all(map(_is_answered_sample, videos))


def _is_answered_sample(video: Any) -> bool:
    """Whether a video's dict holds a pipeline's answers, and no scores by a usual name, beside which they are notes."""
    key = answers_in(video)
    if key is None:
        return False
    scores = _score_of({name: value for name, value in video.items() if name != key})
    return not (isinstance(scores, dict) or is_video(scores))


def _read_answered(content: Any, ask: Ask) -> Dump:
    videos = list(content.values()) if isinstance(content, dict) else content
    key = answers_in(videos[0])
    dump = read_answers(videos if key is None else [video[answers_in(video)] for video in videos], ask.classes)
    if key is not None:
        dump = _with_columns(*_beside(dump, videos), set(), key, ask)
    return _keyed(dump, content, ask) if isinstance(content, dict) else dump


def _beside(dump: Dump, samples: Sequence[Mapping[Any, Any]]) -> tuple[Dump, dict[str, list[Any]]]:
    """Return what every video has beside its scores, by name, and the dump with a note of what only some have."""
    keys = dict.fromkeys(name for sample in samples for name, value in sample.items() if not is_answers(value))
    besides = {str(name): [sample.get(name) for sample in samples] for name in keys}
    lacking = {name: sum(value is None for value in values) for name, values in besides.items()}
    some = [name for name, count in lacking.items() if 0 < count < len(samples)]
    if some:
        dump = replace(dump, notes=(*dump.notes, f"only some videos have {first_few(some)}: left out"))
    columns = {name: values for name, values in besides.items() if not lacking[name]}
    for key in [name for name in columns if name.lower() in CLASS_NAMES]:
        lists = [as_names(value) or [] for value in columns.pop(key)]
        if dump.classes is None and {len(names) for names in lists} == {np.shape(dump.scores[0])[-1]}:
            odd = next((row for row, names in enumerate(lists) if names != lists[0]), None)
            if odd is not None:
                raise InputError(
                    f"expected one order of classes, got {first_few(lists[0])} in row 0 and {first_few(lists[odd])} in "
                    f"row {odd}; save {{class: score}} of each video"
                )
            dump = replace(dump, classes=tuple(lists[0]))
        elif dump.classes is None:
            dump = replace(dump, notes=(*dump.notes, f"{key!r} is no list of the classes' names, and left out"))
    return dump, columns


def _is_dicts(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(item, dict) for item in content)


def _is_flat(content: Any) -> bool:
    """Whether this is a table, row by row: dicts of texts and numbers."""
    return _is_dicts(content) and all(
        isinstance(value, str | int | float | None) for row in content for value in row.values()
    )


def _read_flat(rows: Sequence[Mapping[Any, Any]], ask: Ask) -> Dump:
    keys = dict.fromkeys(key for row in rows for key in row)
    table = {str(key): [row.get(key) for row in rows] for key in keys}
    return read_frame(table, id=ask.id_column, columns=ask.columns, classes=ask.classes)


def _score_of(sample: Mapping[Any, Any]) -> Any:
    names = {str(key).lower(): key for key in sample}
    return next((sample[names[name]] for name in ("pred_score", *SCORE_NAMES) if name in names), None)


def _read_dicts(samples: Sequence[Mapping[Any, Any]], ask: Ask) -> Dump:
    """Collect a video's scores, label and id from each dict.

    Scores are an array, or {head: array}, of which the only one or the one called `head` is taken; so where they stand
    beside each other, as EPIC's verb_output and noun_output. What every dict has beside them is read by its name.
    """
    scores, besides, keys = [], [], dict[str, None]()
    classes = _classes_of(_score_of(samples[0]))
    for row, sample in enumerate(samples):
        found, key = _score_of(sample), ""
        if classes is not None:
            sample = {name: value for name, value in sample.items() if value is not found}
            if not isinstance(found, dict) or set(map(str, found)) != set(classes):
                raise InputError(
                    f"row {row}: expected a score of each class, {first_few(classes)}, got {describe(found)}"
                )
            by_class = {str(name): value for name, value in found.items()}
            found = [float(by_class[name]) for name in classes]
        heads = found if isinstance(found, dict) else None
        if found is None:
            heads = {key: value for key, value in sample.items() if isinstance(key, str) and is_video(value)}
        if heads is not None:
            if not heads:
                raise InputError(f"row {row}: expected a dict with pred_score, got {first_few(sample)}")
            if ask.head is None and len(heads) > 1:
                videos = ", or call the file .json if these are videos" if len(samples) == 1 else ""
                raise InputError(
                    f"row {row} has the scores {first_few(heads)}; say which with {option('head')}{videos}"
                )
            key = next(iter(heads)) if ask.head is None else _head(list(heads), ask.head)
            found = heads[key]
            keys[key] = None
        scores.append(found)
        of_head = {name: _of_head(value, key) for name, value in sample.items()}
        besides.append({name: value for name, value in of_head.items() if value is not found})
    if len(keys) > 1 and ask.head is None:
        raise InputError(
            f"videos have their scores under other names each, {first_few(keys)}: ids? Save {{id: scores}}"
        )
    own = None if classes is None or is_numbered(classes) else tuple(classes)
    dump, columns = _beside(Dump(stack_videos(scores, ask.size), classes=own), besides)
    return _with_columns(dump, columns, set(), next(iter(keys), ""), ask)


def _classes_of(scores: Any) -> list[str] | None:
    """Return the classes of one video's scores {class: number}, in the order of their numbers if they have some."""
    if not isinstance(scores, dict) or len(scores) < 2 or not is_numbers(list(scores.values())):
        return None
    return in_numbered_order(list(map(str, scores)))


def _of_head(value: Any, head: str) -> Any:
    """Return what a video has of one head, where it has something of each, or something for all."""
    return value.get(head, next(iter(value.values()), None)) if isinstance(value, dict) and head else value


def _parts(content: Any) -> dict[str, Any] | None:
    """Tell the parts of [scores, labels], (ids, scores), (ids, scores, labels) apart by type; None if that fails."""
    if not isinstance(content, list) or len(content) not in (2, 3):
        return None
    found: dict[str, Any] = {}
    for part in content:
        if not hasattr(part, "__len__") or not len(part):
            return None
        role = (
            "ids" if as_names(part) is not None
            else "scores" if is_matrix(part)
            else "labels" if as_labels(part) is not None
            else None
        )  # fmt: skip
        if role is None or role in found:
            return None
        found[role] = part
    return found if "scores" in found and len({len(part) for part in found.values()}) == 1 else None


def _read_parts(content: Sequence[Any], ask: Ask) -> Dump:
    found = _parts(content) or {}
    scores = found["scores"]
    return Dump(
        scores if isinstance(scores, np.ndarray) else stack_videos(scores, ask.size),
        as_labels(found["labels"]) if "labels" in found else None,
        np.array(as_names(found["ids"])) if "ids" in found else None,
    )


def _read_rows(rows: Sequence[Sequence[Any]], ask: Ask, keys: NDArray[np.str_] | None = None) -> Dump:
    """Rows of two or three cells: before the scores stands the name or the position, after them the label.

    A text is the id wherever it stands, a second one the label's name, and so is one after the scores of rows that
    stand under `keys`, unless these count the rows and it tells them apart. Positions 0 … N − 1 in any order put the
    rows in that order, unless they have ids or keys.
    """
    at = next(place for place, cell in enumerate(rows[0]) if is_video(cell))
    before, after = [row[:at] for row in rows], [row[at + 1 :] for row in rows]
    scores = stack_videos([row[at] for row in rows], ask.size)
    texts = [[cell for cell in row if isinstance(cell, str)] for row in rows]
    if len(set(map(len, texts))) > 1:
        raise InputError(f"expected rows of the same cells, got some like {describe(rows[0])} and others")
    words = [row[-1] for row in texts if row]
    own = keys is None or (counts_rows(keys) and tells_apart(words))  # one text alone is an id
    by_name = not own and any(isinstance(cell, str) for cell in after[0])
    named = len(texts[0]) - (len(texts[0]) == 2 or by_name)  # texts that are ids
    labels = [[whole(cell) for cell in row if not isinstance(cell, str)] for row in after]
    positions = [[whole(cell) for cell in row if not isinstance(cell, str)] for row in before]
    if any(len(found) != len(labels[0]) for found in labels) or len(labels[0]) > 1:
        raise InputError(f"expected rows of scores and one label, got rows like {describe(rows[0])}")
    dump = Dump(
        scores,
        np.array(labels, dtype=np.int64)[:, 0] if labels[0] else None,
        np.array([row[0] for row in texts]) if named else None,
    )
    if named < len(texts[0]) and dump.labels is None:
        dump = _labelled(dump, words, ask.classes)
    if not all(len(found) == 1 for found in positions):
        return dump
    numbers = np.array(positions)[:, 0]
    if keys is not None or dump.ids is not None:
        note = "a number before the scores, beside an id, is left out; a label stands after the scores"
        return replace(dump, notes=(*dump.notes, note))
    if sorted(numbers.tolist()) == list(range(len(numbers))):
        order = np.argsort(numbers)
        sorted_scores = scores[order] if isinstance(scores, np.ndarray) else [scores[row] for row in order]
        return Dump(sorted_scores, None if dump.labels is None else dump.labels[order])
    return replace(dump, ids=np.array([str(number) for number in numbers.tolist()]))


def _labelled(dump: Dump, words: Sequence[str], classes: Sequence[str] | str | None) -> Dump:
    """Add labels by name; texts that are all different, or all alike, name no classes but those that are given."""
    known = () if isinstance(classes, str | None) else classes
    names = sorted_classes(classes, words)
    no_labels = set(words).isdisjoint(known) and not 1 < len(set(words)) < len(words)
    if no_labels or (names is None and not all(map(str.isdecimal, words))):
        note = f"texts such as {words[0]!r}, beside an id, are left out; if they are labels, pass {option('classes')}"
        return replace(dump, notes=(note,))
    return replace(dump, labels=label_indices(words, names), classes=None if names is None else tuple(names))


def _read_cells(cells: NDArray[Any], ask: Ask) -> Dump:
    """TSN's toolkit and its forks: an object array of arrays (segments, crops, K), or of rows (array, label)."""
    rows = cells.reshape(len(cells), -1).tolist()
    if all(is_row(row) for row in rows):
        return _read_rows(rows, ask)
    if cells.ndim == 1:
        return read_layout(cells.tolist(), ask)
    # One object array of numbers, or of arrays, for each video.
    return Dump(stack_videos([_joined(row) for row in rows], ask.size))


def _joined(row: list[Any]) -> Any:
    return np.concatenate([np.atleast_2d(v) for v in row]) if all(isinstance(v, np.ndarray) for v in row) else row


def _read_list(videos: list[Any], ask: Ask) -> Dump:
    dump = Dump(stack_videos(videos, ask.size))
    *full, last = map(len, videos)
    if isinstance(dump.scores, list) and len(full) > 1 and len(set(full)) == 1 and last < full[0]:
        raise InputError(
            f"a list of {len(videos)} arrays of {full[0]} rows, and of {last} in the last: batches? Save them as one "
            "array (N, K)"
        )
    if min(map(len, videos)) > len(videos) and (isinstance(dump.scores, list) or dump.scores.ndim == 3):
        raise InputError(
            f"a list of {len(videos)} arrays, the first of {len(videos[0])} rows: heads, or videos with so many views? "
            "Save heads as a dict, or views as one array (N, V, K)"
        )
    return dump


def _read_votes(content: Any, ask: Ask) -> Dump:
    if isinstance(content, dict):
        return Dump(label_values(list(content.values()), len(content)), ids=_keys(content))
    return Dump(label_values(content, len(content)))


LAYOUTS: Final = (
    Layout("a dict or archive of arrays called scores, labels, ids …", _is_named, _read_named),
    Layout("a Hugging Face pipeline's {label, score} of every class, for each video", _is_answered, _read_answered),
    Layout("{id: scores}", _is_by_id, _read_by_id),
    Layout("{id: [scores, label]} or {id: {'pred_score': …}}", _is_rows_by_id, _read_rows_by_id),
    Layout("{id: label}, as votes", _is_labels_by_id, _read_votes),
    Layout("an array (N, K) or (N, V, K)", lambda c: isinstance(c, np.ndarray) and c.dtype.kind == "f" and c.ndim > 1,
           lambda c, ask: Dump(c)),
    Layout("an array of objects, one for each video", is_cells, _read_cells),
    Layout("a table as a list of dicts", _is_flat, _read_flat),
    Layout("MMAction2's list of dicts", _is_dicts, _read_dicts),
    Layout("PySlowFast's [scores, labels], or [ids, scores, labels]", lambda c: _parts(c) is not None, _read_parts),
    Layout("a list of [scores, label]", lambda c: isinstance(c, list) and bool(c) and all(map(is_row, c)), _read_rows),
    Layout("a list of one array, or list of numbers, for each video",
           lambda c: isinstance(c, list) and bool(c) and all(is_video(v) or isinstance(v, np.ndarray) for v in c),
           _read_list),
    Layout("a list of labels, as votes", lambda c: as_labels(c) is not None, _read_votes),
)  # fmt: skip
