"""Film strips and share bars, checked through their axes."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lofi.data.toyworld import Shares
from lofi.figures.clips import film, share_bars


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_a_film_puts_frames_side_by_side_and_leaves_its_input_alone():
    frames = torch.full((3, 3, 4, 5), 100, dtype=torch.uint8)
    picture = film(frames, "three").images[0].get_array()
    assert picture.shape == (4, 15, 3)
    assert (np.asarray(picture)[:, [4, 9, 14]] == 255).all()  # lines between the frames
    assert (frames == 100).all()
    assert film(frames.permute(0, 2, 3, 1)).images[0].get_array().shape == (4, 15, 3)


def test_a_film_needs_frames():
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        film(np.zeros((4, 5), np.uint8))


def test_parts_of_a_bar_lie_end_to_end():
    ax = share_bars({"a": Shares(0.5, 0.3, 0.2), "b": Shares(0.1, 0.1, 0.8)})
    starts = [[bar.get_x() for bar in bars] for bars in ax.containers]
    assert np.allclose(starts, [[0, 0], [0.5, 0.1], [0.8, 0.2]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["label", "scene", "vigour"]
