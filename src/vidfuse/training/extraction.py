"""From a network and a loader to a logit cache: every video once, all its views, resumed where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidfuse._checks import check_choice, check_member_names, per_member
from vidfuse.cache.reader import open_cache
from vidfuse.cache.writer import CacheWriter
from vidfuse.errors import CacheConflictError, InputError, MissingExtraError

try:
    import torch
    from einops import rearrange
    from torch import Tensor, nn

    from vidfuse.training import distributed
    from vidfuse.training.fingerprints import fingerprint_of
    from vidfuse.training.progress import bar as progress_bar
    from vidfuse.training.progress import say
    from vidfuse.training.state import autocast, logits_of
    from vidfuse.training.step import batches_of
except ImportError as error:
    raise MissingExtraError("extraction", "networks") from error

__all__ = ["Extraction", "extract"]

Network = Callable[..., Any]


@dataclass(frozen=True)
class Extraction:
    """What one call of `extract` did, on this rank.

    Attributes:
        folders: The caches written, by member.
        written: Videos that this call ran through the networks.
        present: Videos that were there before, of all ranks.
        failures: (id, reason) of the videos that could not be decoded.
        seconds: Wall time.
        waited: Share of it spent waiting for the loader.
    """

    folders: dict[str, Path]
    written: int
    present: int
    failures: tuple[tuple[str, str], ...]
    seconds: float
    waited: float


def extract(
    model: Network | Mapping[str, Network],
    loader: Iterable[tuple[Any, Sequence[str], Any]],
    folder: str | Path,
    *,
    views: Any = None,
    forward: Callable[[Any, Any], Any] | None = None,
    ids: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    fingerprint: str | Mapping[str, str] | None = None,
    kind: Literal["logits", "log-likelihoods", "probabilities"] = "logits",
    dtype: Literal["float32", "float16"] = "float32",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    clips_per_pass: int = 64,
    flush_seconds: float = 60.0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Extraction:
    """Run videos through a network and write its logits into a cache, or those of the videos that it lacks.

    A batch of views (B, V, 3, T, H, W) is written as (B, V, K), a batch of clips (B, 3, T, H, W) as (B, K). Several
    networks, passed as a mapping, share each decoded batch; each has a cache of its own name in the folder, and reads
    the whole batch, or its own clips where the loader yields a mapping of the same names. Under `torchrun` every rank
    passes a loader of its own share and writes its own parts.

    Args:
        model: A network or any callable `batch -> logits`, whose answer is a tensor, an array or has `.logits`; or
            {member: it}.
        loader: Yields `(batch, ids, labels or None)`. If it has `only(ids)`, a resumed call decodes nothing twice; its
            `failures` are reported, if it has them.
        folder: The cache's folder; the members' common folder if there are several.
        views: The plan of the views (`ViewPlan`, or anything JSON holds), stored with the cache; {member: plan} if they
            differ.
        forward: `(model, batch) -> answer`, where calling the model with the batch is not what is wanted.
        ids: All ids the cache shall hold in the end; the ids of the loader's data set, if it tells them.
        classes: The classes' names.
        fingerprint: A name for what the weights do not tell, or {member: name}; any callable that is no network, and
            `forward`, need one. It is compared on resuming: change it when that code changes.
        kind: What the network returns.
        dtype: How scores are stored.
        precision: Autocast precision of the forward pass.
        clips_per_pass: Most clips in one forward pass; views beyond it are passed in turn.
        flush_seconds: Scores are on disk at the latest this long after they were computed, and what was computed in
            that time before a crash is computed again; 0 writes a file with every batch.
        device: Where to run; where the network's first parameter is, if left out.
        progress: Whether to show a bar on stderr.

    Returns:
        What was done.

    Raises:
        CacheConflictError: The folder holds scores of another network or view plan, or videos under other labels.
        InputError: The answer is not logits, or a callable or `forward` comes without `fingerprint`.

    Example:
        >>> import tempfile, vidfuse as vf
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> loader = [(torch.zeros(2, 4, 3, 1, 1, 1), ["a", "b"], None)]  # two videos, four views
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = extract(model, loader, f"{folder}/linear", progress=False)
        ...     vf.load_stack(folder).shape
        (2, 1, 4, 2)
    """
    check_choice("precision", precision, ("float32", "bfloat16", "float16"))
    members = _members(model, folder, views, _device(model, device))
    given = per_member(fingerprint, members, "fingerprint", needed=())
    prints = {name: fingerprint_of(m.network, given[name], forward=forward) for name, m in members.items()}
    wanted = [_id(i) for i in ids] if ids is not None else _ids_of(loader)
    lower = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    began, waited, written = time.perf_counter(), 0.0, 0
    with ExitStack() as stack:
        for name, member in members.items():
            member.writer = stack.enter_context(
                CacheWriter(
                    member.folder,
                    classes=classes,
                    kind=kind,
                    n_views=getattr(member.plan, "n_views", None),
                    view_plan=member.plan.to_dict() if hasattr(member.plan, "to_dict") else member.plan,
                    fingerprint=prints[name],
                    dtype=dtype,
                    expected_ids=wanted,
                    flush_seconds=flush_seconds,
                )
            )
            member.lacks = None if wanted is None else frozenset(member.writer.missing(wanted))
            if wanted is not None and len(member.lacks or ()) < len(wanted):
                _check_labels(member.folder, _labels_of(loader))
        # `wanted` is None where nobody can tell the ids beforehand; then every video is passed on.
        todo = None if wanted is None else [i for i in wanted if any(member.needs(i) for member in members.values())]
        source = _restricted(loader, todo)
        bar = stack.enter_context(_bar(members, todo, progress))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(autocast(next(iter(members.values())).device, lower))
        stepped = time.perf_counter()
        try:
            for batch, batch_ids, labels in batches_of(source):
                waited += time.perf_counter() - stepped
                batch_ids = [_id(i) for i in batch_ids]
                for name, member in members.items():
                    clips = batch[name] if isinstance(batch, Mapping) and name in batch else batch
                    member.append(clips, batch_ids, labels, forward, clips_per_pass)
                done = sum(any(member.needs(i) for member in members.values()) for i in batch_ids)
                written += done
                bar.update(done)
                stepped = time.perf_counter()
        except KeyboardInterrupt:
            kept = "what is written stays, and the rest follows when started again"
            say(f"stopped after {written} videos{'' if todo is None else f' of {len(todo)}'}: {kept}", progress)
            raise
    seconds = time.perf_counter() - began
    return Extraction(
        folders={name: member.folder for name, member in members.items()},
        written=written,
        present=0 if wanted is None or todo is None else len(wanted) - len(todo),
        failures=tuple((f.id, f.reason) for f in getattr(source, "failures", ())),
        seconds=seconds,
        waited=waited / seconds,
    )


@dataclass
class _Member:
    """One network and the cache it fills."""

    network: Network
    folder: Path
    plan: Any
    device: torch.device
    writer: CacheWriter | None = None
    lacks: frozenset[str] | None = None

    def needs(self, video_id: str) -> bool:
        return self.lacks is None or video_id in self.lacks

    def append(
        self, clips: Any, ids: Sequence[str], labels: Any, forward: Callable[[Any, Any], Any] | None, size: int
    ) -> None:
        """Run the videos of a batch that the cache lacks through the network, and store their scores."""
        rows = [row for row, video_id in enumerate(ids) if self.needs(video_id)]
        if not rows or self.writer is None:
            return
        part = clips if len(rows) == len(ids) else _rows(clips, rows)
        scores = _scores(self.network, part, forward, self.device, size)
        known = None if labels is None else np.asarray(labels)[rows]
        self.writer.append([ids[row] for row in rows], scores.float().cpu().numpy(), known)


def _members(
    model: Network | Mapping[str, Network], folder: str | Path, views: Any, device: torch.device
) -> dict[str, _Member]:
    """Put each network on the device and into eval mode, and say which cache and plan are its own."""
    if not isinstance(model, Mapping):
        members = {Path(folder).name: _Member(model, Path(folder), views, device)}
    else:
        own = views if isinstance(views, Mapping) and set(views) >= set(model) else dict.fromkeys(model, views)
        check_member_names(model)
        members = {name: _Member(network, Path(folder) / name, own[name], device) for name, network in model.items()}
    for member in members.values():
        if isinstance(member.network, nn.Module):
            member.network.to(device).eval()
    return members


def _bar(members: Mapping[str, _Member], todo: list[str] | None, progress: bool) -> Any:
    # Each rank sees about its share of the videos that are still to do.
    total = None if todo is None else -(-len(todo) // distributed.world_size())
    quiet = not progress or distributed.rank() > 0
    return progress_bar(total, 0, f"extract {' '.join(members)}", "video", not quiet, lines=True)


def _device(model: Network | Mapping[str, Network], device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    networks = model.values() if isinstance(model, Mapping) else [model]
    modules = [network for network in networks if isinstance(network, nn.Module)]
    return next((p.device for module in modules for p in module.parameters()), torch.device("cpu"))


def _ids_of(loader: Any) -> list[str] | None:
    """Return the ids of the loader's data set, if it tells them: `loader.ids` or `loader.dataset.videos.ids`."""
    videos = getattr(getattr(loader, "dataset", None), "videos", None)
    ids = getattr(loader, "ids", None) or getattr(videos, "ids", None)
    return None if ids is None else [_id(i) for i in ids]


def _labels_of(loader: Any) -> dict[str, int]:
    """Return {id: label} of the loader's data set, as far as it tells them."""
    videos = getattr(getattr(loader, "dataset", None), "videos", None)
    ids, labels = getattr(videos, "ids", None), getattr(videos, "labels", None)
    return {} if ids is None or labels is None else dict(zip(map(_id, ids), map(int, labels), strict=True))


def _check_labels(folder: Path, now: Mapping[str, int]) -> None:
    """Refuse to go on with a cache whose videos are stored under other labels: those that are there would keep them."""
    cache = open_cache(folder, partial=True)
    stored = [] if cache.labels is None else list(zip(cache.ids.tolist(), cache.labels.tolist(), strict=True))
    other = [(name, label) for name, label in stored if label >= 0 and now.get(name, label) != label]
    if other:
        name, label = other[0]
        raise CacheConflictError(
            f"{folder}: {len(other)} videos are there under other labels than they have now, such as {name!r} under "
            f"{label}, now {now[name]}; nothing was written: take the same list, or another folder"
        )


def _restricted(loader: Any, todo: list[str] | None) -> Any:
    """Return a loader of the videos still to do, if the loader can be restricted, else the loader itself."""
    if todo is None or not hasattr(loader, "only"):
        return loader
    return loader.only(todo) if todo else ()


def _id(value: Any) -> str:
    """Return an id as text, of a tensor or an array its number."""
    return str(value.item() if hasattr(value, "item") else value)


def _rows(clips: Any, rows: list[int]) -> Any:
    """Return some rows of a batch of tensors, in whatever mappings or sequences they lie."""
    if isinstance(clips, Tensor | np.ndarray):
        return clips[rows]
    if isinstance(clips, Mapping):
        return {key: _rows(value, rows) for key, value in clips.items()}
    return [_rows(value, rows) for value in clips]


def _scores(
    network: Network, clips: Any, forward: Callable[[Any, Any], Any] | None, device: torch.device, size: int
) -> Tensor:
    """Return scores (B, K), or (B, V, K) of clips that have views."""
    arrays = isinstance(clips, np.ndarray) and not isinstance(network, nn.Module)  # a callable gets what it was given

    def answer(batch: Any) -> Tensor:
        batch = batch.numpy() if arrays else batch
        output = network(batch) if forward is None else forward(network, batch)
        return logits_of(torch.from_numpy(output) if isinstance(output, np.ndarray) else output)

    clips = torch.from_numpy(clips) if isinstance(clips, np.ndarray) else clips
    device = torch.device("cpu") if arrays else device
    if not isinstance(clips, Tensor):
        return _scores_of_mapping(answer, clips, device, size)
    views = clips.shape[1] if clips.ndim == 6 else None
    flat = rearrange(clips, "n v ... -> (n v) ...") if views is not None else clips
    scores = torch.cat([answer(part.to(device, non_blocking=True)) for part in flat.split(max(1, size))])
    if len(scores) != len(flat):
        raise InputError(f"expected one row of scores for each of {len(flat)} clips, got shape {tuple(scores.shape)}")
    return rearrange(scores, "(n v) ... -> n v ...", v=views) if views is not None else scores


def _scores_of_mapping(answer: Callable[[Any], Tensor], clips: Any, device: torch.device, size: int) -> Tensor:
    """Return scores of several networks' clips of the same videos, with views or without, or of any other batch."""
    if not isinstance(clips, Mapping) or not all(isinstance(value, Tensor) for value in clips.values()):
        return answer(clips)  # its own forward knows what to do
    if not all(value.ndim == 6 for value in clips.values()):
        return answer({name: value.to(device, non_blocking=True) for name, value in clips.items()})
    views = next(iter(clips.values())).shape[1]
    parts = [rearrange(value, "n v ... -> (n v) ...").split(max(1, size)) for value in clips.values()]
    passes = [dict(zip(clips, part, strict=True)) for part in zip(*parts, strict=True)]
    scores = [answer({name: value.to(device, non_blocking=True) for name, value in part.items()}) for part in passes]
    return rearrange(torch.cat(scores), "(n v) ... -> n v ...", v=views)
