"""What a model file says about everything after its network: constants, classifier, outputs.

Loads no torch, so that whoever turns logits into objects needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUCLEI, CELLS = "nuclei", "cells"


@dataclass(frozen=True)
class Settings:
    """The constants of post-processing that the model file carries.

    window        half the side of the square in which a seed grows
    pixel_size    µm per plane pixel
    sigmas        planes of widths that the classifier sees beside the two coordinates
    foreground    the least probability of the last plane at a seed; None where there is no such plane
    over_union    seeds are joined by intersection over union, as later exports do; else over the
                  smaller one
    """

    mask_threshold: float
    peak_distance: int
    seed_threshold: float
    overlap_threshold: float
    window: int
    pixel_size: float
    sigmas: int = 2
    foreground: float | None = None
    over_union: bool = False


@dataclass(frozen=True)
class Classifier:
    """Weights of the perceptron that says whether a pixel belongs to a seed."""

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]

    @property
    def layers(self) -> tuple[NDArray[np.float32], ...]:
        """Weights and biases in turn."""
        pairs = zip(self.weights, self.biases, strict=True)
        return tuple(layer for pair in pairs for layer in pair)


@dataclass(frozen=True)
class Head:
    """How logits become objects. Equal for every process that loads the same file.

    outputs   what the planes are for, in their order: nuclei, cells, or first nuclei, then cells
    """

    settings: Settings
    classifier: Classifier
    outputs: tuple[str, ...]

    @property
    def planes_each(self) -> int:
        """Planes of one output: two coordinates, widths, seeds, and foreground where it has one."""
        return 3 + self.settings.sigmas + (self.settings.foreground is not None)

    @property
    def planes(self) -> int:
        """Planes of logits in all."""
        return len(self.outputs) * self.planes_each

    @property
    def last_planes(self) -> list[int]:
        """The planes that are -inf where nothing was computed, so that no seed is found there."""
        return [(i + 1) * self.planes_each - 1 for i in range(len(self.outputs))]

    @property
    def context(self) -> int:
        """Plane pixels of logits that a block needs round it (see postprocess.label_objects)."""
        windows = 5 if len(self.outputs) == 1 else 7
        return windows * self.settings.window
