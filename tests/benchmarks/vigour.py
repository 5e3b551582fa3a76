"""What an encoder holds of vigour and of classes, over seeds; notebooks 02 and 03 show the table.

    python tests/benchmarks/vigour.py --out runs/vigour --preset tiny --seeds 0 1 2 3 4 5

A seed is a new world, new initial weights and new draws. Trains the encoders untrained, ACP, ACP+,
C-LoFi and the positive control (ACP's network and recipe, but vigour is the only label, see
`lectures.train_vigour`), and a head on each. Vigour is measured on 320 rendered scenes with a dial,
classes on 400 validation videos, mAP on the first 160 of them: nothing was trained on any. Rows of
other presets and seeds stay in vigour.json beside this file; then prints means ± standard errors.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "notebooks"))
import lectures

from lofi import config as configs
from lofi import experiment
from lofi.config import Config
from lofi.data.toyworld import WORLDS, write_world
from lofi.detection.classes import detections, main_labels, true_classes
from lofi.detection.detector import propose, video_classes
from lofi.encoders import normalise
from lofi.evaluation import detection_map
from lofi.files import read_json, write_json
from lofi.training import methods

PATH = Path(__file__).with_suffix(".json")
ENCODERS = ("random", "acp", "acp+", "c-lofi", "vigour")
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
VIDEOS, JUDGED, SCENES = 400, 160, 320


def dialled(config: Config, encoder: torch.nn.Module) -> dict[str, float]:
    """Shares of the features' variance and R² of the read-out over the rendered scenes."""
    world = WORLDS[config.data.preset]
    world = replace(world, source_clips=(world.source_clips[0], SCENES))
    clips, labels = lectures.dial_vigour(world, config.seed, LEVELS, SCENES)
    with torch.no_grad():
        parts = [encoder.eval()(normalise(x, encoder)) for x in clips.flatten(0, 1).split(80)]
    features = torch.cat(parts).view(len(LEVELS), SCENES, -1)
    shares = lectures.variance_shares(features, labels)._asdict()
    return shares | {"r2": lectures.read_vigour_off(features, LEVELS)[1]}


def localized(config: Config, run: Path, method: str, classes: dict) -> dict[str, float]:
    """Average mAP of one method's segments under every source of classes, in percent."""
    data = methods.run_data(config, run)
    store, videos = methods.open_features(config, run, method, data), data.test[:JUDGED]
    head, found = methods.load_head(config, run, method), {}
    kept = {video.id: propose(config, head, store[video.id]) for video in videos}
    for name, source in classes.items():
        rows = {}
        for key, proposals in kept.items():
            scores = source.of(key), source.names
            seconds = store[key].grid.duration_s
            rows[key] = detections(proposals, seconds, config.detect, *scores)
        found[name] = 100 * detection_map(videos, rows, subset="validation").average_map
    return found


def study(preset: str, seed: int, run: Path) -> list[dict]:
    """All rows of one seed."""
    world = WORLDS[preset]
    write_world(run / "world", replace(world, videos=(world.videos[0], VIDEOS)), seed)
    config = configs.preset(preset)
    config = configs.override(config, {"seed": seed, "data.world": str(run / "world")})
    for method in ("acp+", "c-lofi"):  # both begin with ACP
        experiment.train_encoder(config, run, method, resume=True)
    lectures.train_vigour(config, run)
    control = configs.override(config, {"weights": str(methods.encoder_path(run, "vigour"))})
    rows, classes = [], {}
    for name in ENCODERS:
        mine, method = (control, "weights") if name == "vigour" else (config, name)
        experiment.localize(mine, run, method, resume=True)
        data = methods.run_data(mine, run)
        classes["own"] = video_classes(mine, run, method, "own", data)
        if name in ("acp", "acp+"):
            classes[name] = classes["own"]
        sources = {"oracle": true_classes(data.test), **classes}
        row = {"preset": preset, "seed": seed, "encoder": name}
        row |= dialled(mine, methods.load_encoder(mine, run, method)[0])
        row["accuracy"] = 100 * classes["own"].accuracy(main_labels(data.test))
        row["map"] = (mine, run, method, sources)
        rows.append(row)
    for row in rows:  # now the classes of every other encoder are there
        mine, run, method, sources = row["map"]
        shared = {key: classes[key] for key in ("acp", "acp+")}
        found = localized(mine, run, method, sources | shared)
        row["map"] = {key: round(value, 2) for key, value in found.items()}
    return [{k: round(v, 4) if type(v) is float else v for k, v in r.items()} for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vigour"))
    parser.add_argument("--preset", choices=("tiny", "toy"), default="tiny")
    parser.add_argument("--seeds", type=int, nargs="*", default=())
    given = parser.parse_args()
    for seed in given.seeds:
        new = study(given.preset, seed, given.out / f"{given.preset}-{seed}")
        old = read_json(PATH, "the study's rows")["rows"] if PATH.is_file() else []
        key = (given.preset, seed)
        rows = [row for row in old if (row["preset"], row["seed"]) != key] + new
        rows.sort(key=lambda r: (r["preset"], r["seed"], ENCODERS.index(r["encoder"])))
        write_json(PATH, {"videos": VIDEOS, "judged": JUDGED, "scenes": SCENES, "rows": rows})
    rows = read_json(PATH, "the study's rows")["rows"]
    for preset in sorted({row["preset"] for row in rows}):
        for name, found in lectures.study(preset).items():
            print(f"{preset}, {name}, seeds {found.pop('seed')}")
            for key, values in found.items():
                if type(values[0]) is float:
                    print(f"    {key:10s} {lectures.mean_error(values)}")


if __name__ == "__main__":
    main()
