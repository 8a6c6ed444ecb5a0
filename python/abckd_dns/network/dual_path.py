"""Dual-path recurrence: over the bands of a frame, then over the frames of a band.

Source: DPCRN (Le, Chen, Chen and Lu, 2021, arXiv 2107.05429), section 2.2, after the dual-path RNN of Luo, Chen and
Yoshioka (2020). The path over time goes forward only, so that it is causal, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupedGru(nn.Module):
    """GRUs that each take their share of the last axis: (sequences, length, `source`) to (..., `size`), over length.

    With one group it is a GRU. In both directions, `size` is that of both together.
    """

    def __init__(self, source: int, size: int, groups: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        own = size // groups // (2 if bidirectional else 1)
        self.grus = nn.ModuleList(
            nn.GRU(source // groups, own, batch_first=True, bidirectional=bidirectional) for _ in range(groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.grus, x.chunk(len(self.grus), dim=-1), strict=True)
        return torch.cat([gru(part)[0] for gru, part in parts], dim=-1)

    def step(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """As forward, for what follows that of which `past` (sequences, size) is remembered; in one direction."""
        pasts = [None] * len(self.grus) if past is None else past.chunk(len(self.grus), dim=-1)
        outputs, lasts = [], []
        for gru, part, before in zip(self.grus, x.chunk(len(self.grus), dim=-1), pasts, strict=True):
            output, last = gru(part, None if before is None else before[None].contiguous())
            outputs.append(output)
            lasts.append(last[0])
        return torch.cat(outputs, dim=-1), torch.cat(lasts, dim=-1)


class AcrossBands(nn.Module):
    """(B, C, T, F): what the bands of a frame know of each other is added to them."""

    def __init__(self, channels: int, bands: int, size: int, groups: int = 1) -> None:
        super().__init__()
        self.gru = GroupedGru(channels, size, groups, bidirectional=True)
        self.expand = nn.Linear(size, channels)
        self.norm = nn.LayerNorm((bands, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, bands = x.shape
        rows = x.permute(0, 2, 3, 1)
        found = self.expand(self.gru(rows.reshape(batch * frames, bands, channels)))
        found = self.norm(found.view(batch, frames, bands, channels))
        return x + found.permute(0, 3, 1, 2)


class AlongTime(nn.Module):
    """(B, C, T, F): what each band remembers of the frames before is added to it; all bands have the same weights."""

    def __init__(self, channels: int, bands: int, size: int, groups: int = 1) -> None:
        super().__init__()
        self.gru = GroupedGru(channels, size, groups)
        self.expand = nn.Linear(size, channels)
        self.norm = nn.LayerNorm((bands, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As forward, for frames that follow those of which `past` (B, F, size) is remembered."""
        batch, channels, frames, bands = x.shape
        rows = x.permute(0, 3, 2, 1).reshape(batch * bands, frames, channels)
        hidden, last = self.gru.step(rows, None if past is None else past.flatten(0, 1))
        found = self.expand(hidden).view(batch, bands, frames, channels).transpose(1, 2)
        return x + self.norm(found).permute(0, 3, 1, 2), last.view(batch, bands, -1)


class DualPath(nn.Module):
    """Blocks of both; keeps (B, C, T, F)."""

    def __init__(self, channels: int, bands: int, size: int, blocks: int) -> None:
        super().__init__()
        self.across = nn.ModuleList(AcrossBands(channels, bands, size) for _ in range(blocks))
        self.along = nn.ModuleList(AlongTime(channels, bands, size) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As forward, for frames that follow those of which `past` (B, blocks, F, size) is remembered."""
        lasts = []
        for index, (across, along) in enumerate(zip(self.across, self.along, strict=True)):
            x, last = along.step(across(x), None if past is None else past[:, index])
            lasts.append(last)
        return x, torch.stack(lasts, dim=1)
