"""Commands on data sets: render, check, copy."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lofi.commands.progress import bar


def toy(folder: Positional[Path], /, preset: Literal["tiny", "toy"] = "toy", seed: int = 0) -> None:
    """Render the toy world: source clips, untrimmed videos and their annotations."""
    from lofi.data.toyworld import TINY, TOY, write_world

    paths = write_world(folder, {"tiny": TINY, "toy": TOY}[preset], seed, progress=bar("rendering"))
    print(f"{paths.annotations}\n{paths.video_dir}\n{paths.source_csv}")


def check(
    annotations: Positional[Path],
    /,
    videos: Path | None = None,
    format: str = "auto",
    decode: bool = True,
    workers: int = 2,
    limit_s: float = 60.0,
    report: Path | None = None,
) -> None:
    """Report missing, undecodable, out-of-range, zero-length, overlapping and mislabelled entries.

    Exit status 1 when something was found.

    Args:
        videos: folder with the video files; without it only the annotations are checked.
        decode: open and decode the videos, not only look for their files.
        limit_s: seconds that one video may take.
        report: CSV of all findings; an unfinished check goes on from it.
    """
    from lofi.data import check_dataset, read_annotations

    found = check_dataset(
        read_annotations(annotations, format=format, video_dir=videos),
        videos,
        decode=decode and videos is not None,
        workers=workers,
        limit_s=limit_s,
        report=report,
        progress=bar("checking"),
    )
    print(found.summary())
    if found.entries:
        raise SystemExit(1)


def cache(
    source: Positional[Path],
    /,
    out: Path,
    videos: Path | None = None,
    short_side: int = 256,
    fps: float = 0.0,
    crf: int = 20,
    workers: int = 2,
    limit_s: float = 1800.0,
) -> None:
    """Copy videos at low resolution, once, so that training decodes several times faster.

    Then train with --data.videos OUT. Start again to go on; OUT/cache.csv lists every video.
    Exit status 1 when a video failed.

    Args:
        source: folder of videos, or an annotation file (then only its videos are copied).
        out: folder of the copies, beside the folder of the videos.
        videos: folder of the videos when SOURCE is an annotation file.
        short_side: pixels; smaller videos keep their size.
        fps: frame rate of the copies; 0 keeps every frame.
        crf: quality, lower is better and larger.
        workers: processes.
        limit_s: seconds that one video may take.
    """
    from lofi.data import read_annotations
    from lofi.data.copies import cache_videos, media_files

    if source.is_dir():
        videos, paths = source, media_files(source)
    elif videos is None:
        raise ValueError(f"{source}: whose videos? Give their folder with --videos")
    else:
        annotated = read_annotations(source, video_dir=videos)
        paths = sorted({video.path for video in annotated if video.path is not None})
        print(f"{len(paths):,} of {len(annotated):,} annotated videos have a file in {videos}")
    done = cache_videos(
        paths, videos, out, short_side=short_side, fps=fps, crf=crf, workers=workers,
        limit_s=limit_s, progress=bar("copying"),
    )  # fmt: skip
    print(done.summary())
    if done.failed:
        raise SystemExit(1)
