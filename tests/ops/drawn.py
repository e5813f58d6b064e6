"""What hypothesis draws for the ops' parity."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.parity import DTYPES, LAYOUTS

KINDS: dict[str, Any] = {
    "dtype": st.sampled_from(DTYPES),
    "layout": st.sampled_from(LAYOUTS),
    "with_shortcut": st.booleans(),
}


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Maps of up to 33 × 33 and up to 96 channels, and of 2¹³ elements in all: the interpreter is slow."""
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 33)), draw(st.integers(1, 33))
    return batch, draw(st.integers(1, min(96, 2**13 // (batch * height * width)))), height, width


def sizes(channels: int, height: int, width: int) -> dict[str, Any]:
    """Up to three images of up to these sizes, each drawn by itself."""
    most = {"batch": 3, "channels": channels, "height": height, "width": width}
    return {name: st.integers(1, size) for name, size in most.items()}
