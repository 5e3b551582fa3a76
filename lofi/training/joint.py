"""Stage 2: joint training of encoder and head on low-fidelity mini-batches (LoFi).

Source: LoFi paper section 3.2 and supplement B. A mini-batch holds fewer snippets, fewer pixels or
both; its size in videos never changes and the full fidelity never occurs. Beyond the paper, the
encoder's gradient can be found in other ways and at full fidelity: see `lofi.training.end_to_end`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.config import Config
from lofi.data import ClipReader, Video, VideoError
from lofi.data.datasets import fingerprint, open_reader, video_grid, video_request
from lofi.data.snippets import Grid, training_parts
from lofi.encoders import Encoder, freeze_batch_norm
from lofi.encoders.extraction import encode, placed
from lofi.fidelity import schedule
from lofi.heads import part_of, to_device
from lofi.heads.scaled import ScaledHead
from lofi.training import methods
from lofi.training.augmentation import draw_colour, draw_geometry, recolour
from lofi.training.distributed import gather, is_first, reduce_sum, share
from lofi.training.end_to_end import EndToEnd, sampled_snippets, verify_exact
from lofi.training.loop import Batches, OnStep, Training, fit, generator_for
from lofi.training.run_folder import RunFolder

log = logging.getLogger(__name__)
# Settings that change speed and memory, not the result: an interrupted run may go on with others.
FREE = ("micro_batch", "verify_exact", "trial")  # a trial is another seed
FREE_OF_MODE = ("chunk", "recompute", "fold")
STATISTICS_STEPS = 8  # mini-batches whose features give the input statistics of the head


def train_lofi(
    config: Config, run_dir: str | Path, *, resume: bool = True,
    on_step: OnStep | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Train encoder and head jointly on low-fidelity mini-batches (paper section 3.2).

    The head is kept beside the encoder for study only; stage 3 trains a new one.
    """
    data = methods.run_data(config, run_dir)
    method = methods.lofi_method(config)
    encoder, start = methods.load_encoder(config, run_dir, config.lofi.start)
    unreadable = {v.id: FileNotFoundError(methods.NO_FILE) for v in data.train if v.path is None}
    items = joint_items(config, data.with_files(data.train), unreadable.__setitem__)
    config = replace(config, seed=config.seed + config.lofi.trial)
    lofi = {key: value for key, value in asdict(config.lofi).items() if key not in FREE}
    lofi["mode"] = {k: v for k, v in lofi["mode"].items() if k not in FREE_OF_MODE}
    settings = {"stage": "lofi", "start": start, "videos": fingerprint([v for v, _ in items])}
    settings |= methods.video_settings(config) | {"lofi": lofi, "head": asdict(config.head)}
    settings |= {"standardise": config.standardise, "jitter": config.data.jitter}
    run = RunFolder(Path(run_dir) / method / "encoder", settings, resume)
    if (done := run.result()) is not None:
        return done
    for item, reason in unreadable.items():
        run.skip(item, reason)
    with open_reader(config.data) as reader:
        joint = JointTraining(config, encoder, items, data.classes, reader, run, device)
        training = joint.training()
        if config.standardise:
            joint.fit_statistics()
        if "bank" in joint.modules and run.load_checkpoint() is None:
            joint.fill_bank()
        fit(training, run, on_step)
    if is_first():
        joint.head.save(run.folder / "head.safetensors")
    result = methods.save_stage_encoder(config, run, encoder, method)
    return run.finish(result | methods.counts(len(data.train), run.skipped()))


def joint_items(
    config: Config, videos: Sequence[Video],
    skip: Callable[[str, Exception], None] = lambda *why: log.warning("no windows of %s: %s", *why),
) -> list[tuple[Video, Grid | None]]:  # fmt: skip
    """What is trained on: videos (None: their grid follows when they are read) or windows of them;
    ValueError when no window is left. `skip` gets the videos that cannot be read."""
    if not config.data.window_stride:
        return [(video, None) for video in videos]
    items: list[tuple[Video, Grid | None]] = []
    for video, info in zip(videos, methods.video_infos(config, videos)):
        if isinstance(info, VideoError):
            skip(video.id, info)
            continue
        grid = video_grid(config.data, info, config.full)
        items += training_parts(video, grid, config.full.snippets)
    if not items:
        size = f"{config.full.snippets} snippets, {config.data.window_stride} frames apart"
        found = f"no window of {size}, holds an action of the {len(videos)} videos"
        raise ValueError(f"{found}; set data.window_stride to more frames")
    return items


class Batch(NamedTuple):
    """This process's share of a logical batch; b of its videos could be read."""

    clips: Tensor  # (b, L, F, 3, S, S) uint8
    targets: tuple  # collated ones of these videos, see `Head.targets`
    places: list[int]  # their positions in the logical batch
    videos: int  # B, videos of the logical batch, readable or not
    mask: Tensor  # (b, L) False for snippets behind the end of their video


class JointTraining:
    """What is trained together, how its batches are read, and one step of it."""

    def __init__(
        self, config: Config, encoder: Encoder, items: Sequence[tuple[Video, Grid | None]],
        classes: int | Sequence[str], reader: ClipReader, run: RunFolder, device: str = "cpu",
    ):  # fmt: skip
        self.config, self.encoder, self.items = config, encoder, items
        self.reader, self.run, self.device = reader, run, device
        lofi = config.lofi
        self.head = ScaledHead(config.head, encoder.channels, classes, config.seed)
        if lofi.mode.name == "adapters":
            encoder.add_adapters()
        self.modules = {"encoder": encoder, "head": self.head}
        self.labels = sorted({s.label for video, _ in items for s in video.segments})
        if lofi.class_loss:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.modules["classifier"] = nn.Linear(2 * encoder.channels, len(self.labels))
        for module in self.modules.values():
            module.to(device)
        placed(config, encoder, device)
        if lofi.frozen_bn:
            freeze_batch_norm(encoder, fold=lofi.mode.fold)
        encoder.train()
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        limits = {"amp": lofi.amp, "micro_batch": lofi.micro_batch}
        self.end_to_end = EndToEnd(encoder, lofi.mode, parameters, **limits)
        sizes = len(items), lofi.training.batch, lofi.training.epochs
        self.batches = Batches(*sizes, (config.seed, "lofi"))
        periods = {name: getattr(lofi, name) for name in ("period_epochs", "period_iterations")}
        self.plan = schedule(lofi.schedule, config.full, **periods, patch=encoder.patch)
        if lofi.mode.name == "bank":
            if len({*self.plan.fidelities}) > 1:
                found = (
                    f"mode bank keeps features of one fidelity, schedule {lofi.schedule} has more"
                )
                raise ValueError(f"{found}; set lofi.schedule to full, s, t or st")
            self.modules["bank"] = bank = nn.Module()  # on the CPU; a part of every checkpoint
            shape = len(items), encoder.channels, self.plan.fidelities[0].snippets
            bank.register_buffer("features", torch.zeros(shape))
        self.verified = not (lofi.verify_exact and lofi.mode.name in ("exact", "sampled"))

    def training(self) -> Training:
        """What `fit` runs."""
        config = self.config
        return Training(
            self.modules, config.lofi.training, self.batches, self.load, self.step,
            min(config.data.workers, config.data.prefetch), config.checkpoint_every,
            describe=lambda step: ", ".join(self.items[i][0].id for i in self.batches.at(step)),
            rates={"encoder": config.lofi.encoder_lr}, keep_every=config.keep_every,
            fidelity=lambda step: str(self.plan.at(step // self.batches.per_epoch, step)),
            one_backward=self.end_to_end.one_backward, scaler=self.end_to_end.scaler,
        )  # fmt: skip

    def load(self, step: int) -> Batch:
        """This process's share of a step's videos; unreadable ones go to the skip list.

        All random numbers of the logical batch are drawn on every process, so what a video looks
        like does not depend on how many processes there are.
        """
        fidelity = self.plan.at(step // self.batches.per_epoch, step)
        items = [self.items[i] for i in self.batches.at(step)]
        data, augment = self.config.data, self.config.lofi.training.augment
        draws = generator_for(self.config.seed, "lofi", step, "augmentation")
        jitter = data.jitter * fidelity.snippets
        views = [draw_geometry(augment, draws, jitter) for _ in items]  # one for all its snippets
        colours = [draw_colour(draws) for _ in items] if augment == "colour" else None
        mine = share(len(items))
        requests = [(items[i][0].path, fidelity, views[i], items[i][1]) for i in mine]
        read = self.reader.read([video_request(data, *request) for request in requests])
        clips, targets, places, masks = [], [], [], []
        for i, clip in zip(mine, read):
            video, grid = items[i]
            if isinstance(clip, Exception):
                self.run.skip(video.id, clip)
                continue
            self.run.readable(video.id)
            if colours:
                clip = recolour(clip.flatten(0, 1), colours[i]).view(clip.shape)
            if grid is None:
                grid = Grid.whole(fidelity.snippets, self.reader.info(video.path).duration_s)
            grid = replace(grid, steps=fidelity.snippets)
            clips.append(clip)
            targets.append(self.head.head.targets(video, grid))
            places.append(i)
            masks.append(torch.from_numpy(grid.inside()))
        kept = slice(None)
        if not clips:  # a share of nothing still has shapes
            kept, snippets = slice(0), fidelity.snippets
            nothing, whole = Video("", None, None, None, None, ()), Grid.whole(snippets, 1.0)
            clips = [torch.zeros((snippets, fidelity.frames, 3, *[fidelity.pixels] * 2)).byte()]
            targets = [self.head.head.targets(nothing, whole)]
            masks = [torch.ones(snippets, dtype=torch.bool)]
        together = part_of(self.head.head.collate(targets), kept)
        mask = torch.stack(masks)[kept]
        return Batch(torch.stack(clips)[kept], together, places, len(items), mask)

    def step(self, batch: Batch, step: int) -> dict[str, float] | None:
        """Losses of this share, their gradients in place; None when it is empty."""
        lofi, head, address = self.config.lofi, self.head.head, (self.config.seed, "lofi", step)
        draws = head.draws(batch.videos, batch.targets, generator_for(*address, "loss"))
        draws = draws[batch.places]
        statistics = head.statistics(batch.targets, draws, reduce_sum)
        readable = reduce_sum(torch.tensor(float(len(batch.places)))) if lofi.class_loss else None
        if not batch.places:
            self._remember([], None)
            return None
        if not self.verified:
            error = verify_exact(self.encoder, lofi.mode, batch.clips)
            log.info("mode %s: gradient within %.1e of one graph", lofi.mode, error)
            self.verified = True
        targets, draws = to_device(batch.targets, self.device), draws.to(self.device)
        mask = batch.mask.to(self.device)

        def losses_of(features: Tensor, part: slice) -> dict[str, Tensor]:
            inside = mask[part]
            if not batch.mask.all():  # as in stage 3: no features behind the end of a video
                features = features * inside[:, None]
            outputs = self.head(features, inside, draws[part])
            found = head.losses(outputs, part_of(targets, part), statistics, draws[part])
            if lofi.class_loss:
                classes = self._class_loss(features, batch, step, part) / readable.to(self.device)
                total = found.pop("loss") + lofi.class_loss * classes
                found = {"loss": total, "class": classes, **found}
            return found

        sampled = known = None
        items = [self.batches.at(step)[place] for place in batch.places]
        if "bank" in self.modules:
            known = self.modules["bank"].features[items]
        if lofi.mode.drawn:
            shape = batch.videos, batch.clips.shape[1]
            generator = generator_for(*address, "sampled")
            sampled = sampled_snippets(*shape, lofi.mode.ratio, generator)[batch.places]
        losses = self.end_to_end.backpropagate(batch.clips, losses_of, sampled, known)
        self._remember(items, known)
        return {name: float(value) for name, value in losses.items()}

    def fill_bank(self) -> None:
        """Encode every item once, as the first epoch shows it."""
        self.encoder.eval()
        for step in range(self.batches.per_epoch):
            batch = self.load(step)
            items = [self.batches.at(step)[place] for place in batch.places]
            found = self.modules["bank"].features[items]
            with torch.no_grad():
                for row, clip in zip(found, batch.clips):
                    row.copy_(encode(self.encoder, clip[None].to(self.device))[0])
            self._remember(items, found)
        self.encoder.train()

    def _remember(self, items: Sequence[int], features: Tensor | None) -> None:
        """Put the features of items into the bank, if there is one, on every process."""
        if "bank" in self.modules:
            for rows, found in gather((items, features)):
                if rows:
                    self.modules["bank"].features[rows] = found

    def _class_loss(self, features: Tensor, batch: Batch, step: int, part: slice) -> Tensor:
        """Summed cross-entropy of the videos' classes, from mean and top-quarter features."""
        chosen = self.batches.at(step)
        wanted = features.new_zeros(len(features), len(self.labels))
        for row, place in enumerate(batch.places[part]):
            for segment in self.items[chosen[place]][0].segments:
                wanted[row, self.labels.index(segment.label)] += 1
        top = features.topk(max(1, features.shape[2] // 4), dim=2).values.mean(2)
        logits = self.modules["classifier"](torch.cat([features.mean(2), top], dim=1))
        wanted = wanted / wanted.sum(1, keepdim=True).clamp_min(1)
        return F.cross_entropy(logits.float(), wanted.float(), reduction="sum")

    def fit_statistics(self) -> None:
        """Fit the head's input statistics to the features of the first mini-batches."""
        self.encoder.eval()
        features = []
        with torch.no_grad():
            for step in range(min(STATISTICS_STEPS, self.batches.steps)):
                batch = self.load(step)
                for place, clip in zip(batch.places, batch.clips):
                    found = encode(self.encoder, clip[None].to(self.device))[0]
                    features.append(((step, place), found.cpu()))
        everywhere = sorted(sum(gather(features), []), key=lambda item: item[0])
        if everywhere:  # else `fit` will say that nothing can be read
            self.head.standardise.fit_to([found.to(self.device) for _, found in everywhere])
        self.encoder.train()
