"""Image folders to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_folder(root: Path, classes: dict[str, int], size: int = 16, seed: int = 0) -> Path:
    """An image folder of noise, in each class around a brightness of its own."""
    generator = np.random.default_rng(seed)
    for index, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 90, (size, size, 3)) + 60 * (index % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03}.png")
    return root
