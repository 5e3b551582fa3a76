"""What is known about single videos of the public data sets, and how many there should be.

Counts and findings were computed from the public annotation files (data/*/README.md says which).
"""

from collections.abc import Iterable
from typing import NamedTuple

from lofi.data.annotations import Video


class Known(NamedTuple):
    """A video that needs care; `evaluated` is False when the official evaluation leaves it out."""

    video_id: str
    reason: str
    evaluated: bool = True


KNOWN = {
    known.video_id: known
    for known in (
        # THUMOS14: not in `thumos_gt.json`, the released evaluation file of 210 test videos.
        Known("video_test_0000270", "29 segments of HammerThrow, known to be wrong", False),
        Known("video_test_0001292", "nothing but Ambiguous segments", False),
        Known("video_test_0001496", "18 segments of CricketShot, not evaluated as released", False),
        # ActivityNet-1.3
        Known("0dkIbKXXFzI", "2.1 frames a second (33 frames): snippets repeat frames"),
        Known("JMpwIWxoB5s", "3.8 frames a second: snippets span several times their usual time"),
        Known("vdYFwqfqgJA", "common copies end at 73 s, the segment at 118 s: it is cut there"),
        *(
            Known(video_id, "has a segment of length zero: dropped in training, kept in evaluation")
            for video_id in (
                "H-yBxySDyTw", "6kgJx6ahgq0", "6KXVjADefBY", "8slE1UskRS4", "QhiKgeJV3k0",
                "EJxWhTE_ZeE", "dJVWRkiRXHM", "sCzauf2u4dc", "e6J_ygZ779A", "2IRQ5fPwHV8",
                "ZZVrH3Hv1fM", "RuBLAghI1vE",
            )
        ),
    )
}  # fmt: skip

# Videos of the official releases; derivatives and crawls hold fewer.
OFFICIAL = {
    "ActivityNet-1.3": {"training": 10_024, "validation": 4_926, "testing": 5_044},
    "HACS Segments 1.1.1": {"training": 37_613, "validation": 5_981, "testing": 5_987},
    "THUMOS14": {"validation": 200, "test": 213},
    "THUMOS14 (thumos_gt.json)": {"train": 200, "test": 210},
}


def official_counts(videos: Iterable[Video]) -> tuple[str, dict[str, int]]:
    """Name and videos per subset of the public data set that these videos seem to be of.

    Told by ids (THUMOS14), or by subsets, 11-character ids and size; ("", {}) for any other.
    """
    videos = list(videos)
    subsets = {video.subset for video in videos}
    if videos and all(v.id.startswith(("video_test_", "video_validation_")) for v in videos):
        name = "THUMOS14 (thumos_gt.json)" if "train" in subsets else "THUMOS14"
    elif all(len(v.id) == 11 for v in videos) and "training" in subsets:
        known = sum(OFFICIAL["ActivityNet-1.3"].values())
        name = "ActivityNet-1.3" if len(videos) <= known else "HACS Segments 1.1.1"
    else:
        return "", {}
    return name, OFFICIAL[name]
