"""The multi-network dynamic fusion model: several networks see the same video and are fused after each of their stages.

Each member receives its own augmentation of the video. After every stage the members' feature maps are brought to a
common grid and width, and summed with gates that depend on the sample and on the stage:
``f_s = Σ_m g_sm · P_sm(x_sm)``, ``g_s = softmax_m(W_s [mean P_s1(x_s1); …; mean P_sM(x_sM)])``. The fused map is only
read out, or added back to each branch, ``x_sm + U_sm(f_s)`` with U zero in the beginning. What is read out is added to
the late fusion of the members: ``z = 1/M Σ_m log p_m + C [mean f_1; …; mean f_S]``, with C zero in the beginning. This
is our reading of one sentence of the challenge report (feature maps that are "fused dynamically after each stage");
gates as in squeeze-and-excitation (Hu et al., CVPR 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidfuse.errors import InputError
from vidfuse.networks.layers import VideoNetwork

__all__ = ["FusedConfig", "FusedNetwork", "FusedOutput"]


@dataclass(frozen=True)
class FusedConfig:
    """How members are fused.

    Attributes:
        width: Channels of the common feature maps.
        grid: Frames, height and width of the common feature maps that are fed back; what is only read out is a mean.
        feedback: Add the fused map back to each branch; otherwise it is only read out.
        frozen: Members whose weights and statistics stay as they are; all if left out, which wants trained members.
            With `()` they are trained too.
        auxiliary_weight: Weight of each member's own loss in training, at least 0; see `FusedOutput.auxiliary`.
        dropout: Before the classifier of the fused features.
    """

    width: int = 64
    grid: tuple[int, int, int] = (4, 4, 4)
    feedback: bool = False
    frozen: tuple[str, ...] | None = None
    auxiliary_weight: float = 0.5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, *self.grid) < 1:
            raise InputError(f"expected a width and a grid of at least 1, got {self}")
        if not (0 <= self.auxiliary_weight < math.inf and 0 <= self.dropout < 1):
            raise InputError(f"expected an auxiliary_weight of at least 0 and a dropout in [0, 1), got {self}")


@dataclass(frozen=True)
class FusedOutput:
    """What the fused network says in training.

    Attributes:
        logits: The mean of the members' log-likelihoods, changed by the fused features, (N, K).
        member_logits: Each member's own, by name.
        gates: How much each member counted, (N, S, M), summing to 1 over the members.
        auxiliary_weight: Weight of each auxiliary loss.
    """

    logits: Tensor
    member_logits: Mapping[str, Tensor]
    gates: Tensor
    auxiliary_weight: float

    @property
    def auxiliary(self) -> Sequence[Tensor]:
        """The logits of the members that are trained, and of frozen ones that the fused maps are fed back to.

        The feedback after the last stage changes the member's own logits alone. It is trained by a loss on them. A
        frozen member without feedback has nothing to train, and no loss.
        """
        return [z for z in self.member_logits.values() if z.requires_grad]


class FusedNetwork(nn.Module):
    """Members fused after each stage: clips, or {member: its own clips}, to logits (N, K).

    Before it is trained it is the late fusion of its members, their mean log-likelihood, and training goes on from
    there; by default the members are frozen, so that it wants trained ones. There are as many fusions as the member
    with the fewest stages has; of the others the last stages are fused. In training mode a call returns a
    `FusedOutput`, in eval mode its logits alone; `inspect` always returns it all.

    Args:
        members: {member: network}, any of the catalogue's, attention and convolution alike.
        num_classes: K.
        config: How they are fused.
        example: Clips (1, 3, T, H, W) that all members take, to learn the widths of their stages from.

    Raises:
        InputError: Fewer than two members, or a frozen one that is none of them.

    Example:
        >>> from vidfuse import networks
        >>> members = {name: networks.create(f"{name}_tiny", num_classes=5) for name in ("x3d", "swin")}
        >>> answer = FusedNetwork(members, 5).inspect(torch.zeros(2, 3, 8, 64, 64))
        >>> answer.logits.shape, answer.gates.shape
        (torch.Size([2, 5]), torch.Size([2, 2, 2]))
    """

    def __init__(
        self,
        members: Mapping[str, VideoNetwork],
        num_classes: int,
        config: FusedConfig | None = None,
        *,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config or FusedConfig()
        self.frozen = tuple(members) if self.config.frozen is None else self.config.frozen
        unknown = sorted(set(self.frozen) - set(members))
        if len(members) < 2 or unknown:
            raise InputError(
                f"expected at least two members and no frozen ones but these, got {list(members)} and frozen {unknown}"
            )
        self.members = nn.ModuleDict(members)
        channels = _channels(members, torch.zeros(1, 3, 8, 64, 64) if example is None else example)
        stages, width = min(map(len, channels.values())), self.config.width
        self.skipped = {name: len(widths) - stages for name, widths in channels.items()}
        fused = {name: widths[-stages:] for name, widths in channels.items()}
        self.project = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv3d(c[s], width, 1) for name, c in fused.items()}) for s in range(stages)
        )
        self.back = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv3d(width, c[s], 1) for name, c in fused.items() if self.config.feedback})
            for s in range(stages)
        )
        self.gates = nn.ModuleList(nn.Linear(width * len(members), len(members)) for _ in range(stages))
        self.norm = nn.LayerNorm(stages * width)
        self.dropout = nn.Dropout(self.config.dropout)
        self.classifier = nn.Linear(stages * width, num_classes)
        # At first all members count alike, the branches go on as they would alone, and their late fusion stands.
        for parameter in (*self.gates.parameters(), *self.back.parameters(), *self.classifier.parameters()):
            nn.init.zeros_(parameter)
        for name in self.frozen:
            self.members[name].requires_grad_(False)
        for member in members.values():  # TPN's second classifier is not used here
            if isinstance(auxiliary := getattr(member, "auxiliary", None), nn.Module):
                auxiliary.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> FusedNetwork:
        """Put all but the frozen members into training mode."""
        super().train(mode)
        for name in self.frozen:
            self.members[name].eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the members' blocks in the backward pass instead of storing their activations."""
        members: Any = self.members
        for member in members.values():
            member.set_grad_checkpointing(enable)

    def forward(self, clips: Tensor | Mapping[str, Tensor]) -> Tensor | FusedOutput:
        """Return logits (N, K), in training mode with the members' own and the gates; see `inspect`."""
        answer = self.inspect(clips)
        return answer if self.training else answer.logits

    def inspect(self, clips: Tensor | Mapping[str, Tensor]) -> FusedOutput:
        """Return the fused logits, the members' own, and the gates' values.

        Args:
            clips: (N, 3, T, H, W) for all members, or {member: its own augmentation of the same videos}.

        Raises:
            InputError: A member's clips are missing.
        """
        # Members walk in step; of one with more stages than the others, the first are skipped. At each stage the maps
        # are fused. With `feedback` the fused map is added to each of them, and the walks go on from the sums. In the
        # end the walks' logits are fused late, and what the fused maps say is added:
        #
        #   x3d   ── map ──┬── + ── map ──┬── + ── logits
        #                fused          fused
        #   swin  ── map ──┴── + ── map ──┴── + ── logits
        walks, maps = {}, {}
        members: Any = self.members
        for name, member in members.items():
            if isinstance(clips, Mapping) and name not in clips:
                raise InputError(f"expected clips of each of {list(self.members)}, got {list(clips)}")
            walks[name] = member.walk(clips if isinstance(clips, Tensor) else clips[name])
            maps[name] = next(walks[name])
            for _ in range(self.skipped[name]):
                maps[name] = walks[name].send(maps[name])
        logits: dict[str, Tensor] = {}
        means, gates = [], []
        grid = self.config.grid if self.config.feedback else 1  # what is only read out is read as a mean
        layers: Iterable[Any] = zip(self.project, self.back, self.gates, strict=True)
        for project, back, gate in layers:
            common = [project[n](functional.adaptive_avg_pool3d(x, grid)) for n, x in maps.items()]
            weights = gate(torch.cat([x.mean((2, 3, 4)) for x in common], 1)).softmax(1)  # (N, M)
            fused = torch.einsum("nm,mncthw->ncthw", weights, torch.stack(common))
            means.append(fused.mean((2, 3, 4)))
            gates.append(weights)
            for name, walk in walks.items():
                x = maps[name]
                if self.config.feedback:
                    x = x + functional.interpolate(back[name](fused), x.shape[2:], mode="trilinear")
                try:
                    maps[name] = walk.send(x)
                except StopIteration as end:
                    logits[name] = end.value  # after its last stage a walk ends with the member's logits
        late = torch.stack([logits[name].log_softmax(1) for name in self.members]).mean(0)
        change = self.classifier(self.dropout(self.norm(torch.cat(means, 1))))
        return FusedOutput(late + change, logits, torch.stack(gates, 1), self.config.auxiliary_weight)


@torch.no_grad()
def _channels(members: Mapping[str, VideoNetwork], example: Tensor) -> dict[str, list[int]]:
    """Return the channels of each member's stages."""
    channels = {}
    for name, member in members.items():
        training = member.training
        channels[name] = [x.shape[1] for x in member.eval().stages(example)]
        member.train(training)
    return channels
