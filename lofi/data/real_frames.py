"""Frames of real videos, kept in one file, for the backgrounds of toy world `real`.

The file holds up to `MOST` frames in all, at the rate of the toy worlds and `SHORT_SIDE` pixels,
of every video that could be read, and where they are from: names and SHA-256, no paths.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lofi.data.copies import media_files, small_size
from lofi.data.snippets import resampled_frames
from lofi.data.video import VideoError, decode_frames, probe
from lofi.files import atomic_path, sha256

FPS = 8.0  # of every toy world
SHORT_SIDE = 64  # pixels
MOST, LEAST, MOST_VIDEOS = 1024, 16, 64  # frames in all, of one video if it has them; videos


def keep_frames(folder: str | Path, path: str | Path) -> str:
    """Decode the middle of every video of a folder into `path`; says what was kept and what not.

    A file of the same videos stays as it is. FileNotFoundError, ValueError: no folder, no readable
    video in it, or `path` holds frames of other videos.
    """
    files = media_files(folder)
    chosen = np.linspace(0, len(files) - 1, min(len(files), MOST_VIDEOS)).astype(int)
    most = max(LEAST, MOST // len(chosen))
    videos, sources, failed = {}, [], []
    for file in (files[i] for i in chosen):
        try:
            info = probe(file)
            shown = resampled_frames(info.num_frames, info.fps, FPS)
            shown = shown[max(0, len(shown) - most) // 2 :][:most]
            size = small_size(info.height, info.width, SHORT_SIDE)
            videos[str(len(videos))] = decode_frames(file, shown, size)
            sources.append((file.relative_to(folder).as_posix(), sha256(file)))
        except VideoError as error:
            failed.append(error)
    count = f"{len(failed)} of {len(chosen)} videos cannot be read"
    count += f" (first: {failed[0]})" if failed else ""
    if not videos:
        raise ValueError(f"{folder}: {count}; give a folder with videos of what you like")
    if Path(path).is_file():
        kept = _load(path)["sources"]
        if [*map(tuple, kept.tolist())] != sources:
            found = f"frames of {len(kept)} other videos than those of {folder}"
            raise ValueError(f"{path}: {found}; choose another folder for this run")
    else:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, sources=np.array(sources), **videos)
    frames = sum(map(len, videos.values()))
    return f"{frames} frames of {len(videos)} of {len(files)} videos in {path}; {count}"


def read_frames(path: str | Path) -> list[np.ndarray]:
    """The frames of each video, (N, H, W, 3) uint8; FileNotFoundError: nobody kept any.

    ValueError: the file is damaged."""
    if not Path(path).is_file():
        cure = "run: lofi tables --study --frames FOLDER (a folder of videos)"
        raise FileNotFoundError(f"{path}: no frames for the backgrounds of world real; {cure}")
    kept = _load(path)
    return [kept[str(i)] for i in range(len(kept["sources"]))]


def _load(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as kept:
            arrays = dict(kept)
        if arrays.keys() != {"sources", *map(str, range(len(arrays["sources"])))}:
            raise ValueError("its parts do not belong together")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        cure = "delete it, and give the folder of videos again (--frames)"
        raise ValueError(f"{path}: damaged, or not of this kit ({error}); {cure}") from None
    return arrays
