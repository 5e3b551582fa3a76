"""Ready-made configurations: the paper's, and two sizes of the toy world; marks as in `config`."""

import types
from dataclasses import replace
from typing import Any

from lofi.config import (
    ActionFormerConfig,
    AMNetConfig,
    BMNConfig,
    Config,
    DataConfig,
    GTADConfig,
    LoFiConfig,
    Mode,
    Optimisation,
    PostProcessing,
    PublishedFeatures,
    WeakConfig,
)
from lofi.fidelity import Fidelity

# The paper's own setting: everything is the dataclasses' default except what is listed.
_KINETICS = Optimisation(  # TSM on Kinetics-400 [spec]
    epochs=50, batch=128, lr=0.02, momentum=0.9, decay_every=20, decay=0.1, clip=20.0,
    augment="multiscale", dropout=0.5, decay_on="weights", bias_lr=2.0, classifier_lr=5.0,
)  # fmt: skip
_PRETEXT = Optimisation(  # the same, scaled: 128 clips are 64 pairs; warm-up 2 epochs
    epochs=50, batch=64, lr=0.02, momentum=0.9, schedule="cosine", warmup=7500, clip=20.0,
    augment="colour",
)  # fmt: skip
_PAPER = Config(
    preset="activitynet",
    encoder="tsm-r18",
    channels_last=True,  # a fifth faster on CPUs and on an H200 [ours]
    full=Fidelity(100, 8, 224),
    data=DataConfig(preset="", workers=8, prefetch=4),
    acp=_KINETICS,
    # TSM's fine-tuning [spec]
    acp_plus=replace(_KINETICS, epochs=25, lr=0.001, decay_every=10, dropout=0.8),
    arrow=_PRETEXT,
    speed=_PRETEXT,
    # joint training: SGD without momentum, 0.1, halved every 5 epochs [paper]; 15 epochs [ours]
    lofi=LoFiConfig(
        training=Optimisation(epochs=15, batch=16, lr=0.1, decay_every=5, decay=0.5),
        mode=Mode(chunk=16),  # of the chunked modes; twice as fast as 4 on an H200 [ours]
    ),
    head_training=Optimisation(
        epochs=10, batch=16, optimizer="adam", lr=0.004, decay_every=5, decay=0.1, augment="none"
    ),
    head_search=(2e-4, 5e-4, 1e-3, 2e-3, 5e-3),  # [paper]
    detect=PostProcessing(shared_classes="acp+"),
)

_TOY_ACP = Optimisation(
    epochs=10, batch=64, optimizer="adamw", lr=0.004, weight_decay=0.01, schedule="cosine",
    warmup=40, augment="colour",
)  # fmt: skip
_TOY = Config(
    preset="toy",
    encoder="tsm-toy",
    full=Fidelity(32, 4, 48),
    data=DataConfig(preset="toy", frame_stride=1, crop_ratio=1.0, cache_gib=1.0, workers=1),
    acp=_TOY_ACP,
    icp=_TOY_ACP,
    icp_shift=False,
    arrow=replace(_TOY_ACP, batch=32),
    speed=replace(_TOY_ACP, batch=32),
    acp_plus=Optimisation(
        epochs=24, batch=32, lr=0.02, momentum=0.9, nesterov=True, schedule="cosine", warmup=10,
        augment="colour",
    ),
    lofi=LoFiConfig(training=Optimisation(batch=4, schedule="cosine", warmup=10, clip=5.0)),
    head=GTADConfig(hidden=64, paths=8, map_hidden=(64, 32), resolution=8, best_anchor=True),
    head_training=Optimisation(
        epochs=10, batch=16, optimizer="adam", lr=0.002, decay_every=7, decay=0.1, augment="none"
    ),
    standardise=True,
    detect=PostProcessing(shared_classes="acp+"),
)  # fmt: skip
_TINY = replace(
    _TOY,
    preset="tiny",
    full=Fidelity(16, 4, 40),
    data=replace(_TOY.data, preset="tiny"),
    acp=replace(_TOY_ACP, batch=32, warmup=20),
    icp=replace(_TOY_ACP, batch=32, warmup=20),
    arrow=replace(_TOY_ACP, batch=16, warmup=20),
    speed=replace(_TOY_ACP, batch=16, warmup=20),
    acp_plus=replace(_TOY.acp_plus, epochs=8, batch=16),
    lofi=replace(_TOY.lofi, training=replace(_TOY.lofi.training, epochs=24)),
    head_training=replace(_TOY.head_training, epochs=15, batch=8, decay_every=10),
    detect=PostProcessing(shared_classes="acp"),
)

_OWN = replace(  # what `lofi fit` starts from; it chooses the rest from the data [ours]
    _TOY,
    preset="own",
    encoder="motion-toy",
    channels_last=True,
    full=Fidelity(64, 8, 64),
    data=DataConfig(
        preset="", source="segments+background", squeeze=True, crop_ratio=0.9, cache_gib=1.0,
        workers=1,
    ),
    acp=Optimisation(
        epochs=40, batch=16, optimizer="adamw", lr=0.002, weight_decay=0.05, schedule="cosine",
        warmup=40, augment="varied",
    ),
    head_training=replace(_TOY.head_training, epochs=30, batch=8, decay_every=20),
    detect=PostProcessing(
        score="cls*reg*start*end", sigma=0.2, include_video_end=True, classes="segment"
    ),
)  # fmt: skip

_PYRAMID = replace(  # videos twice as long, long enough for heads whose levels matter [ours]
    _TOY,
    preset="long",
    full=Fidelity(64, 4, 48),
    data=replace(_TOY.data, preset="long"),
    # without matching scores, of which a prototype saw no effect: a third less to compute
    head=AMNetConfig(hidden=64, layers=1, levels=4, max_steps=64, matching="none"),
    head_training=Optimisation(
        epochs=30, batch=16, optimizer="adamw", lr=1e-3, weight_decay=0.05, decay_on="weights",
        schedule="cosine", warmup_epochs=2, clip=1.0, augment="none",
    ),
    detect=PostProcessing(suppression="per-class", sigma=0.5, classes="own"),
)  # fmt: skip

_STEP = Optimisation(25, 16, "adam", 2e-3, weight_decay=0.0, decay=1.0)
_WEAK = replace(  # two branches from video labels, in the world made for them [ours]
    _TOY,
    preset="weak",
    data=replace(_TOY.data, preset="weak"),
    weak=WeakConfig(
        steps=64, width=64, heads=4, levels=3, prompts=4, prob="pair", thresholds=9,
        score="contrast", warm_up=_STEP, training=_STEP,
    ),
)  # fmt: skip

_THUMOS14 = replace(  # G-TAD as released for THUMOS14 [spec]
    _PAPER,
    preset="thumos14",
    full=Fidelity(256, 8, 224),
    data=replace(_PAPER.data, train_subset="train", test_subset="test", window_stride=5),
    head=replace(_PAPER.head, variant="thumos", durations=64, resolution=16, context_resolution=16),
    head_training=replace(_PAPER.head_training, lr=4e-5, batch=8, clip=1.0),
    head_search=(),
    detect=replace(PostProcessing.thumos14(), shared_classes="acp+"),
)


# ActionFormer on features that others published, as released [spec].
_LONG = replace(  # THUMOS14: features at their own length
    _THUMOS14,
    full=Fidelity(2304, 8, 224),
    head=ActionFormerConfig(),
    head_training=Optimisation(
        epochs=35, batch=2, optimizer="adamw", lr=1e-4, weight_decay=0.05, decay_on="weights",
        schedule="cosine", warmup_epochs=5, clip=1.0, ema=0.999, augment="none",
    ),
    detect=PostProcessing(
        suppression="per-class", sigma=0.5, top_k=200, class_rule="thumos", classes="own"
    ),
)  # fmt: skip
_VIDEOMAE = replace(  # and how VideoMAEv2's were made from the videos
    _LONG,
    encoder="vit-g",
    full=Fidelity(2304, 16, 224),
    data=replace(_LONG.data, rule="window", frame_stride=1, squeeze=True, crop_ratio=1.0),
)
_RESIZED = replace(  # ActivityNet: features resized to 192 steps, classes from elsewhere
    _PAPER,
    full=Fidelity(192, 8, 224),
    head=ActionFormerConfig(
        window=(7, 7, 7, 7, 7, 0), max_steps=192, positions=True, one_class=True,
        first_count=200.0, regression_weight=2.0, smoothing=0.1,
    ),
    head_training=replace(_LONG.head_training, epochs=15, batch=16, lr=1e-3),
    head_search=(),
    detect=PostProcessing(
        suppression="joint", sigma=0.75, class_rule="sqrt", shortest=0.001, voting=0.9
    ),
)  # fmt: skip


def _published(base: Config, preset: str, stride: int, fps: float, **features: Any) -> Config:
    """`base` on features that others published; data.features.folder is left to the user."""
    published = PublishedFeatures(**{"stride": stride, "window": 16, "fps": fps} | features)
    window_stride = stride if base.data.window_stride else 0
    data = replace(base.data, features=published, window_stride=window_stride)
    return replace(base, preset=preset, data=data)


def _weak(base: Config, steps: int) -> Config:
    """Two branches at the paper's sizes [seed]; weak.frames and weak.clip are left to the user."""
    frames = PublishedFeatures(stride=16, window=16, fps=25.0, width=512)
    data = replace(base.data, window_stride=0)
    return replace(base, data=data, weak=WeakConfig(frames=frames, steps=steps))


_LOW, _T = (replace(_PAPER.lofi, schedule=name) for name in ("low", "t"))
_ALL = (
    _TINY,  # channels first, as in the study, and so are the worlds `long` and `weak`
    replace(_TOY, channels_last=True),
    _PAPER,
    replace(_PAPER, preset="activitynet-low", lofi=_LOW),  # supplement B: one 32 GB card
    # supplement B: R50 at 25 snippets, 112 pixels
    replace(_PAPER, preset="activitynet-middle", encoder="tsm-r50", lofi=_LOW),
    replace(  # supplement A: T-LoFi with the BMN head, stage 3 as released [spec]
        _PAPER,
        preset="activitynet-bmn",
        lofi=_T,
        head=BMNConfig(),
        head_training=replace(_PAPER.head_training, epochs=9, lr=1e-3, decay_every=7),
        head_search=(),
        detect=replace(PostProcessing.bmn(), shared_classes="acp+"),
    ),
    replace(  # table 5: R(2+1)D-18 at its native 112 pixels
        _PAPER,
        preset="activitynet-r2plus1d",
        encoder="r2plus1d-18",
        full=Fidelity(100, 8, 112),
        lofi=_T,
    ),
    replace(  # G-TAD's learning rate and batch for HACS [spec]
        _PAPER,
        preset="hacs",
        head_training=replace(_PAPER.head_training, lr=5e-4, batch=32),
        detect=replace(_PAPER.detect, class_rule="hacs"),
    ),
    _THUMOS14,
    _PYRAMID,
    _WEAK,
    _published(_LONG, "thumos14-i3d", 4, 30.0, width=2048),
    _published(replace(_LONG, head=AMNetConfig()), "thumos14-amnet", 4, 30.0, width=2048),
    _published(_VIDEOMAE, "thumos14-videomae", 4, 0.0, width=1408),
    _published(_weak(_THUMOS14, 1000), "thumos14-weak", 16, 25.0, width=2048),
    _published(_weak(_PAPER, 400), "activitynet-weak", 16, 25.0, width=2048),
    _published(_RESIZED, "activitynet-tsp", 16, 15.0, width=512, prefix="v_"),
    _published(_RESIZED, "activitynet-i3d", 16, 25.0, width=2048, prefix="v_"),
    _published(_LONG, "epic-slowfast", 16, 30.0, width=2304, window=32, kind="npz"),
    _OWN,
)
PRESETS = types.MappingProxyType({config.preset: config for config in _ALL})
