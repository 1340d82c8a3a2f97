"""Small labelled clips and a small network for the tests of training and extraction."""

import numpy as np
import torch
from torch import nn

N_CLASSES = 3


def toy_clips(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, N_CLASSES, n))
    clips = torch.from_numpy(rng.normal(size=(n, 3, 2, 4, 4)).astype(np.float32))
    clips[torch.arange(n), labels] += 1.5  # the class brightens a channel
    return clips, [f"video{i}" for i in range(n)], labels


class ToyLoader:
    """Shuffled batches by epoch, of one rank's share."""

    def __init__(self, n=24, batch_size=8, *, rank=0, world_size=1, seed=0, views=None, labelled=True):
        self.clips, self.ids, self.labels = toy_clips(n, seed)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.views, self.labelled = views, labelled
        self.epoch, self.asked = 0, []

    def __len__(self):
        return -(-len(range(self.rank, len(self.ids), self.world_size)) // self.batch_size)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def rows(self):
        order = np.random.default_rng(self.epoch).permutation(len(self.ids))
        return order[self.rank :: self.world_size]

    def __iter__(self):
        rows = self.rows()
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            clips = self.clips[part]
            if self.views:
                clips = torch.stack([clips + 0.1 * v for v in range(self.views)], 1)
            ids = [self.ids[i] for i in part]
            self.asked += ids
            yield clips, ids, self.labels[part] if self.labelled else None


class Toy(nn.Module):
    """A network with everything that training has to carry over: batch statistics, dropout, a bias."""

    def __init__(self, dropout=0.3, norm=True, n_classes=N_CLASSES):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 1)
        self.norm = nn.BatchNorm3d(6) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(6, n_classes)

    def forward(self, clips):
        return self.classifier(self.dropout(self.norm(self.conv(clips)).relu().mean((2, 3, 4))))


def toy(seed=0, **settings):
    torch.manual_seed(seed)
    return Toy(**settings)


def state_of(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
