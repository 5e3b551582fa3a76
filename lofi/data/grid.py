"""Where the steps of a feature sequence lie in their video."""

from dataclasses import dataclass, replace

import numpy as np

from lofi.data.annotations import Segment, Video
from lofi.data.windows import training_windows


@dataclass(frozen=True)
class Grid:
    """T equal steps over a stretch of a video; step i is [start_s + i · step_s, + step_s).

    A whole video that was cut into (or resized to) T steps has `stride` 0 and starts at 0. A video
    of any length with a step every `stride` frames, and each window of it, has frame numbers too.

    Args:
        steps: T.
        length_s: seconds that the T steps divide; a window may reach beyond the video's end.
        duration_s: of the video; proposals are clipped to [0, duration_s].
        stride: frames between two steps; 0 = the whole video, whatever its rate.
        fps: frames a second that `stride` counts.
        num_frames: of the video, counted at `fps`.
        first_frame: of the first step.
        offset_s: left edge of step 0 minus the time of `first_frame`: (window - stride) / 2 frames
            for features whose window is longer than their stride.
    """

    steps: int
    length_s: float
    duration_s: float
    stride: int = 0
    fps: float = 0.0
    num_frames: int = 0
    first_frame: int = 0
    offset_s: float = 0.0

    @staticmethod
    def whole(steps: int, duration_s: float) -> "Grid":
        """The grid of a video that is divided into `steps` equal parts."""
        return Grid(steps, duration_s, duration_s)

    @staticmethod
    def strided(
        steps: int, stride: int, fps: float, num_frames: int, offset_s: float = 0.0
    ) -> "Grid":
        """The grid of a video with a step every `stride` frames from its first frame on."""
        length_s, duration_s = steps * stride / fps, num_frames / fps
        return Grid(steps, length_s, duration_s, stride, fps, num_frames, 0, offset_s)

    @property
    def start_s(self) -> float:
        """Seconds from the beginning of the video to the left edge of step 0."""
        return self.first_frame / self.fps + self.offset_s if self.stride else 0.0

    @property
    def step_s(self) -> float:
        """Seconds a step."""
        return self.length_s / self.steps

    @property
    def covered_s(self) -> float:
        """Seconds from the beginning of the first step's window to the end of the last one's."""
        return self.length_s + 2 * self.offset_s

    def inside(self) -> np.ndarray:
        """(T,) bool: steps that begin before the end of the video."""
        if not self.stride:
            return np.ones(self.steps, bool)
        frames = round(self.length_s * self.fps)  # at low fidelity steps are longer than `stride`
        return self.first_frame + np.arange(self.steps) * frames / self.steps < self.num_frames

    def window(self, first: int, steps: int) -> "Grid":
        """Steps [first, first + steps) of a strided grid; they may reach beyond its end."""
        frame = self.first_frame + first * self.stride
        length_s = steps * self.stride / self.fps
        return replace(self, steps=steps, length_s=length_s, first_frame=frame)


def training_parts(video: Video, grid: Grid, steps: int) -> list[tuple[Video, Grid]]:
    """What is trained on of one video: itself, or of a strided grid the windows worth it.

    A window is worth it when it holds 90 % of some segment; its video's segments are those that it
    touches, in seconds from its beginning (they may begin before it or end behind it).
    """
    if not grid.stride:
        return [(video, grid)]
    given = [s for s in video.segments if s.end_s > s.start_s]
    times = [(s.start_s * grid.fps, s.end_s * grid.fps) for s in given]
    parts = []
    for window in training_windows(grid.steps * grid.stride, times, steps, grid.stride):
        part = grid.window(window.first_frame // grid.stride, steps)
        at = part.start_s
        inside = (given[row] for row in window.rows)
        moved = tuple(Segment(s.start_s - at, s.end_s - at, s.label) for s in inside)
        parts.append((replace(video, segments=moved), part))
    return parts
