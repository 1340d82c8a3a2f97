"""From a network and a loader to a logit cache: every video once, all its views, resumed where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from vidfuse.cache.store import CacheWriter
from vidfuse.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn

    from vidfuse.training import distributed
    from vidfuse.training.state import autocast, logits_of
except ImportError as error:
    raise MissingExtraError("extraction", "networks") from error

__all__ = ["Extraction", "extract", "fingerprint_of"]

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


def fingerprint_of(model: Network) -> str:
    """Return a digest of a network's weights, or of a callable's name: two caches of one fingerprint may be joined.

    Example:
        >>> fingerprint_of(len)
        'builtins.len'
        >>> len(fingerprint_of(nn.Linear(2, 2)))
        64
    """
    if not isinstance(model, nn.Module):
        name = getattr(model, "__qualname__", type(model).__qualname__)
        return f"{getattr(model, '__module__', '')}.{name}"
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def extract(
    model: Network | Mapping[str, Network],
    loader: Iterable[tuple[Any, Sequence[str], Any]],
    folder: str | Path,
    *,
    views: Any = None,
    forward: Callable[[Any, Any], Any] | None = None,
    ids: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    kind: Literal["logits", "log-likelihoods", "probabilities"] = "logits",
    dtype: Literal["float32", "float16"] = "float32",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    clips_per_pass: int = 64,
    videos_per_part: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Extraction:
    """Run videos through a network and write its logits into a cache, or those of the videos that it lacks.

    A batch of views (B, V, 3, T, H, W) is written as (B, V, K), a batch of clips (B, 3, T, H, W) as (B, K). Several
    networks, passed as a mapping, share each decoded batch; each has a cache of its own name in the folder, and reads
    the whole batch, or its own clips where the loader yields a mapping of the same names. Under `torchrun` every rank
    passes a loader of its own share and writes its own parts.

    Args:
        model: A network or any callable `batch -> logits`, whose answer is a tensor or has `.logits`; or {member: it}.
        loader: Yields `(batch, ids, labels or None)`. If it has `only(ids)`, a resumed call decodes nothing twice; its
            `failures` are reported, if it has them.
        folder: The cache's folder; the members' common folder if there are several.
        views: The plan of the views (`ViewPlan`, or anything JSON holds), stored with the cache; {member: plan} if they
            differ.
        forward: `(model, batch) -> answer`, where calling the model with the batch is not what is wanted.
        ids: All ids the cache shall hold in the end; the ids of the loader's data set, if it tells them.
        classes: The classes' names.
        kind: What the network returns.
        dtype: How scores are stored.
        precision: Autocast precision of the forward pass.
        clips_per_pass: Most clips in one forward pass; views beyond it are passed in turn.
        videos_per_part: Videos that are published together; at most so many are computed again after a crash.
        device: Where to run; where the network's first parameter is, if left out.
        progress: Whether to show a bar on stderr.

    Returns:
        What was done.

    Raises:
        CacheConflictError: The folder holds scores of another network or view plan.
        InputError: The answer is not logits.

    Example:
        >>> import tempfile, vidfuse as vf
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> loader = [(torch.zeros(2, 4, 3, 1, 1, 1), ["a", "b"], None)]  # two videos, four views
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = extract(model, loader, f"{folder}/linear", progress=False)
        ...     vf.load_stack(folder).shape
        (2, 1, 4, 2)
    """
    several = isinstance(model, Mapping)
    networks: dict[str, Network] = dict(model) if isinstance(model, Mapping) else {Path(folder).name: model}
    if not networks:
        raise InputError("expected at least one network, got none")
    folders = {name: Path(folder) / name if several else Path(folder) for name in networks}
    where = _device(networks.values(), device)
    for network in networks.values():
        if isinstance(network, nn.Module):
            network.to(where).eval()
    wanted = list(ids) if ids is not None else _ids_of(loader)
    lower = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    began, waited, written = time.perf_counter(), 0.0, 0
    plans = {n: views[n] if several and isinstance(views, Mapping) and n in views else views for n in networks}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                CacheWriter(
                    folders[name],
                    classes=classes,
                    kind=kind,
                    n_views=_n_views(plans[name]),
                    view_plan=_plain(plans[name]),
                    fingerprint=fingerprint_of(network),
                    dtype=dtype,
                    expected_ids=wanted,
                    buffer_rows=videos_per_part,
                )
            )
            for name, network in networks.items()
        }
        lacking = {name: _lacking(writer, wanted) for name, writer in writers.items()}
        todo = None if wanted is None else [i for i in wanted if any(i in lack for lack in lacking.values())]  # type: ignore[operator]
        present = 0 if wanted is None or todo is None else len(wanted) - len(todo)
        stack.enter_context(torch.inference_mode())
        source = _restricted(loader, todo)
        bar = stack.enter_context(
            tqdm(desc=f"extract {'+'.join(networks)}", unit="video", total=None if todo is None else len(todo),
                 disable=not progress or distributed.rank() > 0)
        )  # fmt: skip
        stepped = time.perf_counter()
        for batch, batch_ids, labels in source:
            waited += time.perf_counter() - stepped
            for name, network in networks.items():
                clips = batch[name] if isinstance(batch, Mapping) and name in batch else batch
                rows = [r for r, i in enumerate(batch_ids) if lacking[name] is None or i in lacking[name]]  # type: ignore[operator]
                if not rows:
                    continue
                clips, chosen = (
                    (clips, batch_ids)
                    if len(rows) == len(batch_ids)
                    else (_rows(clips, rows), [batch_ids[r] for r in rows])
                )
                with autocast(where, lower):
                    scores = _scores(network, clips, forward, where, clips_per_pass)
                known = None if labels is None else np.asarray(labels)[rows]
                writers[name].append(chosen, scores.float().cpu().numpy(), known)
            written += len(batch_ids)
            bar.update(len(batch_ids))
            stepped = time.perf_counter()
    failures = tuple((f.id, f.reason) for f in getattr(source, "failures", ()))
    seconds = time.perf_counter() - began
    return Extraction(folders, written, present, failures, seconds, waited / seconds)


def _device(networks: Iterable[Network], device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    modules = [n for n in networks if isinstance(n, nn.Module)]
    return next((p.device for m in modules for p in m.parameters()), torch.device("cpu"))


def _plain(plan: Any) -> Any:
    """Return a plan as what JSON holds."""
    return plan.to_dict() if hasattr(plan, "to_dict") else plan


def _n_views(views: Any) -> int | None:
    """Return the number of views that a plan tells, or None where it tells none."""
    n = getattr(views, "n_views", None)
    return int(n) if n is not None else None


def _ids_of(loader: Any) -> list[str] | None:
    """Return the ids of the loader's data set, if it tells them: `loader.ids` or `loader.dataset.videos.ids`."""
    videos = getattr(getattr(loader, "dataset", None), "videos", None)
    ids = getattr(loader, "ids", None) or getattr(videos, "ids", None)
    return None if ids is None else [str(i) for i in ids]


def _lacking(writer: CacheWriter, wanted: list[str] | None) -> frozenset[str] | None:
    """Return the ids that a cache lacks, or None where the wanted ones are unknown."""
    return None if wanted is None else frozenset(writer.missing(wanted))


def _restricted(loader: Any, todo: list[str] | None) -> Any:
    """Return a loader of the videos still to do, if the loader can be restricted, else the loader itself."""
    if todo is None or not hasattr(loader, "only"):
        return loader
    return loader.only(todo) if todo else ()


def _rows(clips: Any, rows: list[int]) -> Any:
    """Return some rows of a batch of tensors, in whatever mappings or sequences they lie."""
    if isinstance(clips, Tensor | np.ndarray):
        return clips[rows]
    if isinstance(clips, Mapping):
        return {key: _rows(value, rows) for key, value in clips.items()}
    return [_rows(value, rows) for value in clips]


def _passes(clips: Tensor, size: int) -> Iterator[Tensor]:
    yield from clips.split(max(1, size))


def _scores(
    network: Network, clips: Any, forward: Callable[[Any, Any], Any] | None, device: torch.device, size: int
) -> Tensor:
    """Return scores (B, K), or (B, V, K) of clips that have views."""

    def answer(batch: Any) -> Tensor:
        return logits_of(network(batch) if forward is None else forward(network, batch))

    if not isinstance(clips, Tensor):  # another library's batch: its own forward knows what to do
        return answer(clips)
    views = clips.shape[1] if clips.ndim == 6 else None
    flat = clips.flatten(0, 1) if views is not None else clips
    scores = torch.cat([answer(part.to(device, non_blocking=True)) for part in _passes(flat, size)])
    if len(scores) != len(flat):
        raise InputError(f"expected one row of scores for each of {len(flat)} clips, got shape {tuple(scores.shape)}")
    return scores.unflatten(0, (-1, views)) if views is not None else scores
