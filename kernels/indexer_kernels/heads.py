"""What attention heads look at: their scores on repeated random tokens, and on every window of the panel.

The first follow from the model and the seed, so all parts of a corpus have the same, but for rounding on
other machines; a merge takes the larger. The others go with the windows, and are chosen as these are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.panel import Windows

# shares of attention: on the token before, on the same token earlier, and on the one that came after that
REPEATED = ("previous", "duplicate", "induction")
# of a window's tokens: share of attention on the sequence's first token, entropy in nats, distance in tokens
ON_WINDOWS = ("first_token", "entropy", "distance")


@dataclass
class HeadScores:
    """Scores of the heads of a layer; NaN where they are not known.

    most: windows that there may be. windows: in their order. repeated: float32 [heads, 3], see REPEATED.
    on_windows: float32 [heads, 3, windows], see ON_WINDOWS, means over the tokens of each window.
    """

    most: int
    windows: Windows
    repeated: NDArray[np.float32]
    on_windows: NDArray[np.float32]

    @classmethod
    def empty(cls, heads: int, most: int) -> HeadScores:
        """Of no tokens."""
        repeated = np.full((heads, len(REPEATED)), np.nan, np.float32)
        return cls(most, Windows.none(), repeated, np.zeros((heads, len(ON_WINDOWS), 0), np.float32))

    def merge(self, other: HeadScores) -> None:
        """Take in the scores of other tokens: of the windows of both those with the smallest hashes."""
        windows = self.windows.joined(other.windows)
        chosen = windows.order()[: self.most]
        on_windows = np.concatenate([self.on_windows, other.on_windows], axis=2)
        self.windows, self.on_windows = windows.taken(chosen), on_windows[:, :, chosen]
        self.repeated = np.fmax(self.repeated, other.repeated)
