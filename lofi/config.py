"""Every setting of a run as frozen dataclasses: presets, overrides, JSON, differences.

Values marked [paper] are stated in the LoFi paper or its supplement, [spec] follow the released
code of G-TAD or TSM, [ours] are our choices where both are silent (reasons in the notebooks).
"""

import dataclasses
import math
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lofi.fidelity import Fidelity
from lofi.files import read_json, write_json


@dataclass(frozen=True)
class PublishedFeatures:
    """Features that others extracted; row i is centred at (i · stride + window / 2) / fps s."""

    folder: str = ""  # one file a video, or one .h5 file; "" = features are extracted from videos
    stride: int = 0  # frames between rows; 0 = the rows divide the annotated duration evenly
    window: int = 0  # frames that a row has seen
    fps: float = 0.0  # frames a second that the two count; 0 = as annotated for each video
    width: int = 0  # channels, tells (T, C) from (C, T); 0 = (T, C)
    prefix: str = ""  # of file names before the video id, such as v_
    kind: str = ""  # npy | npz | pt | csv; "" = any
    allow_missing: bool = False  # leave out videos without features instead of refusing the folder


@dataclass(frozen=True)
class DataConfig:
    """Where videos and annotations are and how snippets are cut from them."""

    world: str = ""  # folder of a toy world; "" = <run>/world, rendered when absent
    preset: str = "toy"  # which toy world is rendered when no annotations are given; "" = none
    annotations: str = ""  # ActivityNet, HACS, THUMOS14 or CSV file; wins over the toy world
    videos: str = ""  # folder with the untrimmed videos
    source: str = ""  # trimmed clips for ACP: a list, "segments" (training), "segments+background"
    train_subset: str = "training"
    test_subset: str = "validation"
    frame_stride: int = 8  # frames between two frames of a snippet [paper]
    # How frames sit in a snippet: centred | tile | bsp, or window, which begins at its frame.
    rule: str = "centred"
    window_stride: int = 0  # frames between snippets of sliding windows; 0 = whole videos
    features: PublishedFeatures = field(default_factory=PublishedFeatures)
    resample_fps: float = 0.0  # cut snippets as if videos had this rate; 0 = as decoded [ours]
    jitter: bool = False  # training: each snippet's middle anywhere in its interval [ours]
    crop_ratio: float = 0.875  # crop side / short side, 224/256 [spec]
    squeeze: bool = False  # the whole frame into the square, no sides cut off [ours]
    cache_gib: float = 0.0  # memory for decoded frames; 0 = decode every time
    workers: int = 2  # decoding threads or processes
    prefetch: int = 2  # batches prepared ahead, at most as many as workers
    decode_limit_s: float = 0.0  # > 0: child processes, killed after so long; 0 = threads


@dataclass(frozen=True)
class GTADConfig:
    """G-TAD; the defaults are those released for ActivityNet [spec]."""

    kind: Literal["gtad"] = "gtad"
    variant: Literal["anet", "thumos"] = "anet"
    durations: int = 0  # D, rows of the map; 0 = as many as snippets
    hidden: int = 256
    paths: int = 32
    map_hidden: tuple[int, int] = (512, 128)
    resolution: int = 32  # samples inside an anchor (SGAlign)
    context_resolution: int = 4  # samples of the semantic context
    best_anchor: bool = False  # an instance's best anchor is positive when none exceeds 0.9 [ours]


@dataclass(frozen=True)
class BMNConfig:
    """BMN as in the public code that LoFi compares with [spec]."""

    kind: Literal["bmn"] = "bmn"
    durations: int = 0  # D, rows of the map; 0 = as many as snippets
    best_anchor: bool = False  # as in `GTADConfig`


@dataclass(frozen=True)
class ActionFormerConfig:
    """ActionFormer; the defaults are those released for THUMOS14 [spec]."""

    kind: Literal["actionformer"] = "actionformer"
    hidden: int = 512
    heads: int = 4
    window: tuple[int, int, int, int, int, int] = (19, 19, 19, 19, 19, 19)  # a level; 0 = all of it
    max_steps: int = 2304  # of a training crop
    positions: bool = False  # sinusoids
    relative: bool = False  # learned bias inside a window
    neck: Literal["identity", "fpn"] = "identity"
    one_class: bool = False  # "an action": the classes come from elsewhere
    drop_path: float = 0.1
    first_count: float = 100.0  # positive points of a batch, where the running mean begins
    regression_weight: float = 1.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class AMNetConfig:
    """AMNet as reconstructed: sizes and the two parts [supplement, figure 2], the rest [ours]."""

    kind: Literal["amnet"] = "amnet"
    hidden: int = 512
    heads: int = 4
    layers: int = 2  # of group attention
    levels: int = 6
    max_steps: int = 2304  # of a training crop
    # What joins the features: an attention that learns from a triplet loss, a probability of
    # "action" a step, or nothing.
    mask: Literal["triplet", "binary", "none"] = "triplet"
    join: Literal["add", "multiply"] = "add"
    # Which way the triplet loss pulls: every step to the actions, or background to background.
    rule: Literal["aware", "positive"] = "aware"
    margin: float = 0.5
    mask_weight: float = 1.0
    mask_first: int = 0  # steps that train the mask alone, which then stays as it is; 0 = together
    bias_keys: bool = False  # steps that a "binary" mask doubts count less in group attention
    attention: Literal["full", "self", "none"] = "full"  # "self": without exchange
    # The groups: fine and coarse levels; or of every level a copy (a half of the channels), short
    # sees a window and long everything.
    groups: Literal["level", "range", "channel"] = "level"
    window: int = 19
    matching: Literal["train_only", "score", "none"] = "train_only"  # "score": detections use it
    matching_weight: float = 1.0
    drop_path: float = 0.1
    one_class: bool = False  # as in `ActionFormerConfig`
    first_count: float = 100.0

    def __post_init__(self) -> None:
        _check_choices(self)


# A head is chosen by its kind.
HeadConfig = GTADConfig | BMNConfig | ActionFormerConfig | AMNetConfig


@dataclass(frozen=True)
class Optimisation:
    """How one stage trains; one object a stage."""

    epochs: int = 15
    batch: int = 16
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_on: Literal["all", "weights"] = "all"  # "weights": of convolutions and linear layers
    schedule: Literal["step", "cosine"] = "step"
    decay_every: int = 5  # epochs, "step" only
    decay: float = 0.5  # factor, "step" only
    warmup: int = 0  # iterations of linear warm-up
    warmup_epochs: int = 0  # added to them
    ema: float = 0.0  # > 0: the stage ends with this moving average of the weights
    clip: float = 0.0  # largest gradient norm; 0 = no clipping
    # "geometric" moves and mirrors, "colour" adds other colours; "varied" (stage 1) keeps left and
    # right and colours apart, but zooms, tints, adds noise and another clip's picture [ours].
    # "multiscale": crops of several sizes and shapes, as TSM trains [spec].
    augment: Literal["none", "geometric", "colour", "varied", "multiscale"] = "geometric"
    # Classification (stage 1) alone:
    dropout: float = 0.0  # before the classifier, which then begins near zero [spec]
    bias_lr: float = 1.0  # factor on the rate of the biases of convolutions and linear layers
    classifier_lr: float = 1.0  # factor on the classifier's rate


@dataclass(frozen=True)
class Mode:
    """How the encoder's gradient is found (stage 2) and what is kept in memory for it.

    "full": one graph, as in every LoFi configuration of the paper. "exact": features without graph,
    head, then every chunk again with its graph; the same gradient at the memory of one chunk.
    "sampled": the same for a share of the snippets. "bank": only such a share is encoded, features
    of the rest are those of earlier visits. "partial": one graph above frozen stages.
    "adapters": one graph, in which small layers behind the frozen blocks of a vit encoder train.
    "frozen": head only.
    """

    name: Literal["full", "exact", "sampled", "bank", "partial", "adapters", "frozen"] = "full"
    chunk: int = 4  # snippets encoded at a time (all but "full", "partial", "adapters")
    ratio: float = 0.3  # share of the snippets of a video that get a gradient ("sampled", "bank")
    rescale: bool = True  # divide the sampled gradient by `ratio`: right on average
    stage: str = "layer2"  # last frozen stage of the encoder, inclusive ("partial")
    recompute: bool = False  # run each block again in the backward pass: fewer activations kept
    fold: bool = False  # frozen batch normalisation folded into the convolutions

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.chunk < 1 or not 0 < self.ratio <= 1:
            found = f"chunk {self.chunk}, ratio {self.ratio}"
            raise ValueError(f"{found}: expected chunk of at least 1 and ratio in (0, 1]")

    @property
    def chunked(self) -> bool:
        """True when the encoder sees `chunk` snippets at a time."""
        return self.name in ("exact", "sampled", "bank", "frozen")

    @property
    def drawn(self) -> bool:
        """True when only a share of the snippets, drawn anew at every step, gets a gradient."""
        return self.name in ("sampled", "bank")

    def __str__(self) -> str:
        chunk, stage = f", chunk {self.chunk}", f", frozen to {self.stage}"
        share = f" {self.ratio:g}{chunk}"
        details = {"exact": chunk, "sampled": share, "bank": share, "partial": stage}
        extras = ", recompute" * self.recompute + ", folded" * self.fold
        return self.name + details.get(self.name, "") + extras


@dataclass(frozen=True)
class LoFiConfig:
    """Stage 2, joint training at low fidelity (paper section 3.2), and what we add to it."""

    schedule: str = "long"  # s | t | st | short | long | low [paper: long], or full
    period_epochs: int = 1  # c_l [paper]
    period_iterations: int = 16  # c_s [paper]
    start: str = "acp"  # method whose encoder is optimised
    trial: int = 0  # of several trainings that differ in seed: <method>@<trial>, 0 = <method>
    frozen_bn: bool = True  # statistics and affine stay as ACP left them [ours]
    mode: Mode = field(default_factory=Mode)
    micro_batch: int = 0  # videos whose graph is held at once; 0 = all. Changes memory only
    amp: Literal["fp32", "bf16", "fp16"] = "fp32"  # else autocast [paper: fp32]
    verify_exact: bool = True  # check the chunked modes on the first videos against one graph
    class_loss: float = 0.0  # weight of a video-class loss against class forgetting [ours]
    encoder_lr: float = 1.0  # factor on the encoder's learning rate [paper: one rate]
    training: Optimisation = field(default_factory=Optimisation)


@dataclass(frozen=True)
class PostProcessing:
    """Everything between a head's outputs and detections that changes a number.

    The default is the LoFi paper's: G-TAD's rule with sigma 0.84, 100 proposals x 2 classes.
    `bmn()` and `thumos14()` are the released settings of the other two.
    """

    rule: Literal["gtad", "thumos", "bmn"] = "gtad"  # which cells of a map are proposals
    score: str = "cls*reg"  # product of cls, reg, start, end: released score fusion [spec]
    # Soft-NMS; of heads of points "per-class", or "joint" over all classes, then averaged.
    suppression: Literal["gaussian", "bmn", "per-class", "joint"] = "gaussian"
    sigma: float = 0.84  # of the Gaussian [paper]; alpha of the bmn form
    top_k: int = 100  # proposals a video that survive [paper]
    class_rule: Literal["anet", "hacs", "thumos", "sqrt"] = "anet"  # how class scores join
    classes_per_video: int = 2  # [spec]
    include_video_end: bool = False  # released code cannot propose up to the last snippet [spec]
    min_score: float = 0.001  # points below are no candidates, also after soft-NMS [spec]
    candidates: int = 2000  # points of a level [spec]
    shortest: float = 0.05  # steps that a segment of a point has to exceed [spec]
    voting: float = 0.7  # "joint": tIoU from which candidates move a chosen segment; 0 = off [spec]
    # Who names the class: a classifier of whole videos (and, beside it, shared and true classes),
    # one of each proposal, a score file, the head itself, or the truth.
    classes: Literal["external", "video", "segment", "own", "oracle"] = "video"
    # External score file, or the method whose features give the classes; "" = each its own.
    shared_classes: str = ""

    def __post_init__(self) -> None:
        _check_choices(self)
        for term in self.score.split("*"):
            if term.strip() not in ("cls", "reg", "start", "end"):
                unknown = f"score {self.score!r}: unknown term {term.strip()!r}"
                raise ValueError(f"{unknown}; use cls, reg, start, end")
        if not self.sigma > 0 or self.top_k < 1 or self.classes_per_video < 1:
            found = f"top_k {self.top_k}, classes_per_video {self.classes_per_video}"
            raise ValueError(f"sigma {self.sigma}, {found}; expected all > 0")

    @staticmethod
    def bmn() -> "PostProcessing":
        """BMN as released."""
        return PostProcessing("bmn", "start*end*cls*reg", "bmn", 0.4)

    @staticmethod
    def thumos14() -> "PostProcessing":
        """G-TAD on THUMOS14 as released."""
        return PostProcessing("thumos", sigma=0.46, top_k=200, class_rule="thumos")

    @property
    def protocol(self) -> str:
        """Class rule "thumos" goes with THUMOS14's (tIoU 0.3 to 0.7), else ActivityNet's."""
        return "thumos14" if self.class_rule == "thumos" else "activitynet"

    def to_json(self) -> dict[str, Any]:
        """What changes a number, for files and reports."""
        where = ("classes", "shared_classes")  # their source is said beside them
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in where}

    def __str__(self) -> str:
        end = ", video end allowed" if self.include_video_end else ""
        count = 1 if self.class_rule == "hacs" else self.classes_per_video
        nms = f"{self.suppression} soft-NMS {self.sigma:g}, top {self.top_k}"
        proposals = f"{self.rule} proposals scored {self.score}{end}"
        if self.suppression in ("per-class", "joint"):
            proposals = f"points of {self.min_score:g} or more, longer than {self.shortest:g} steps"
        if self.classes == "own":
            return f"{proposals}; {nms}; classes of the head"
        return f"{proposals}; {nms}; classes {self.class_rule} x {count}"


@dataclass(frozen=True)
class WeakConfig:
    """Two branches from video labels alone; [seed] = the paper's supplement, else [ours]."""

    features: str = "acp"  # method of CBP's features where data.features.folder names none
    # Of single frames (CLIP), for VLP; without a folder those of stage `features --method dual`.
    frames: PublishedFeatures = field(default_factory=PublishedFeatures)
    clip: str = ""  # file of CLIP's weights or of a stand-in; "" = that of the run (stage `dual`)
    steps: int = 1000  # T, longest crop in training [seed, THUMOS14; 400 on ActivityNet-1.2]
    width: int = 512
    heads: int = 8
    levels: int = 4  # of CBP's pyramid
    prompts: int = 16  # vectors before the name, and as many behind it [seed]
    layers: int = 2  # temporal layers of VLP [seed]
    prob: Literal["softmax", "softmax_bg", "sigmoid", "pair"] = "softmax"
    temperature: float = 0.07  # [seed]
    delta_high: float = 0.7
    delta_low: float = 0.3
    stretch: bool = True  # a teacher's curve to [0, 1] in each video before the thresholds
    zeros: Literal["cbp", "vlp", "none"] = "cbp"  # of the F step; none = a trap: it collapses
    foreground_in_b: bool = False
    init: Literal["continue", "scratch"] = "scratch"  # last layer of CBP in the F step
    distillation: float = 1.0
    contrast: float = 0.1
    mil: float = 1.0  # weight of the video labels in the B step
    round: int = 1  # which alternation the B and the F step belong to
    score: Literal["max", "contrast"] = "max"  # of a proposal: largest inside [seed], or oic
    thresholds: int = 1  # 1 = theta_loc alone [seed]; more = as many from 0.1 to 0.95
    theta_cls: float = 0.1
    theta_loc: float = 0.5
    ensemble: bool = False  # mean of both branches at test time
    warm_up: Optimisation = field(
        default_factory=lambda: Optimisation(10, 64, "adam", 1e-4, weight_decay=0.0, decay=1.0)
    )
    training: Optimisation = field(
        default_factory=lambda: Optimisation(20, 64, "adam", 1e-4, weight_decay=0.0, decay=1.0)
    )

    def __post_init__(self) -> None:
        _check_choices(self)
        if not 0 <= self.delta_low < self.delta_high <= 1:
            found = f"weak.delta_low {self.delta_low}, weak.delta_high {self.delta_high}"
            raise ValueError(f"{found}; expected 0 <= low < high <= 1")


@dataclass(frozen=True)
class Config:
    """One run: seed, encoder, full fidelity and the settings of every stage."""

    preset: str = "tiny"
    seed: int = 0
    encoder: str = "tsm-r18"
    full: Fidelity = field(default_factory=Fidelity)
    data: DataConfig = field(default_factory=DataConfig)
    # File of published encoder weights, "pretrained" (a package), "none" = random, or "", which is
    # random too, but stage acp refuses it on real data where the encoder has ImageNet weights.
    weights: str = ""
    # How a vit encoder takes pixels: "unit", in [0, 1], or "imagenet", less its mean and by its
    # deviation; "" = as usual for the layout of `weights`, which does not say it (random: unit).
    normalisation: Literal["", "unit", "imagenet"] = ""
    acp: Optimisation = field(default_factory=Optimisation)
    acp_plus: Optimisation = field(default_factory=Optimisation)
    acp_plus_start: str = "acp"  # method whose encoder ACP+ continues; "weights" = the file above
    acp_plus_background: bool = False  # ACP+ also learns what lies between the segments [ours]
    acp_frames: int = 8  # frames of one training clip
    # Stage 1: clips whose graph is held at once, 0 = all. Live batch norm sees only them.
    acp_micro_batch: int = 0
    icp: Optimisation = field(default_factory=Optimisation)  # toy world only; else `weights`
    icp_shift: bool = True  # ICP's image weights in the shifted network [paper]; False: unshifted
    arrow: Optimisation = field(default_factory=Optimisation)  # a clip counts once, forward + back
    speed: Optimisation = field(default_factory=Optimisation)  # a clip counts once, slow + fast
    arrow_head: Literal["tcam", "avg"] = "tcam"
    concat_norm: Literal["none", "l2", "standardise"] = "standardise"  # method acp+arrow, … [ours]
    lofi: LoFiConfig = field(default_factory=LoFiConfig)
    head: HeadConfig = field(default_factory=GTADConfig)
    head_training: Optimisation = field(default_factory=Optimisation)
    head_search: tuple[float, ...] = ()  # rates tried on a held-out tenth of the training videos
    standardise: bool = False  # per-channel input of the head, statistics of the training set
    detect: PostProcessing = field(default_factory=PostProcessing)
    weak: WeakConfig = field(default_factory=WeakConfig)
    amp: Literal["fp32", "bf16", "fp16"] = "fp32"  # stages 1 and 3, features; stage 2: lofi.amp
    channels_last: bool = False  # memory order of the encoder's weights and maps, for GPUs
    checkpoint_every: int = 100  # iterations
    keep_every: int = 0  # epochs between weights that are kept for study; 0 = none

    def __post_init__(self) -> None:
        rates = self.head_search
        if not all(0 < rate < math.inf for rate in rates) or len({*rates}) < len(rates):
            raise ValueError(f"head_search is {rates}; expected different rates above 0")

    @property
    def start_weights(self) -> str:
        """`weights`, "" where they are random."""
        return "" if self.weights == "none" else self.weights


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary of a config dataclass, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any], where: str = "config", base: Any = None) -> Any:
    """A config dataclass from a plain dictionary; the rest is taken from `base`, or the defaults.

    ValueError for an unknown key or a value of the wrong type; `where` names the place.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object with settings, got {values!r}")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown setting {unknown[0]!r}; known: {', '.join(hints)}")
    base = cls() if base is None else base
    typed = {k: _typed(hints[k], v, f"{where}.{k}", getattr(base, k)) for k, v in values.items()}
    return dataclasses.replace(base, **typed)


def _check_choices(settings: Any) -> None:
    """ValueError where a `Literal` field of a dataclass holds something else."""
    for name, hint in get_type_hints(type(settings)).items():
        value, known = getattr(settings, name), get_args(hint)
        if get_origin(hint) is Literal and value not in known:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")


def _typed(hint: Any, value: Any, where: str, base: Any) -> Any:
    """The value of one field, checked: JSON has neither tuples nor dataclasses."""
    if isinstance(hint, types.UnionType):  # one dataclass a kind
        if isinstance(value, get_args(hint)):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object with settings, got {value!r}")
        members = {member.kind: member for member in get_args(hint)}
        kind = _typed(Literal[tuple(members)], value.get("kind", base.kind), f"{where}.kind", None)
        return from_dict(members[kind], value, where, base if base.kind == kind else None)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where, base)
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in options:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(options)}")
        return value
    if get_origin(hint) is tuple:
        if options[-1] is Ellipsis:
            options = options[:1] * (len(value) if isinstance(value, (list, tuple)) else 2)
        if not isinstance(value, (list, tuple)) or len(value) != len(options):
            raise ValueError(f"{where}: expected {len(options)} values, got {value!r}")
        return tuple(_typed(kind, item, where, None) for kind, item in zip(options, value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def save(config: Config, path: str | Path) -> None:
    """Write a config as JSON."""
    write_json(path, to_dict(config))


def load(path: str | Path) -> Config:
    """Read a config file, whole or partial: it lies over the preset that it names."""
    return layered(path=path)


def layered(preset_name: str = "", path: str | Path = "") -> Config:
    """A preset ("" = the file's own, or "tiny"), and over it the settings of a file ("" = none).

    The file is JSON, whole (the config.json of a run) or partial; a ValueError when it names
    another preset, unknown settings or values of a wrong type.
    """
    values = read_json(path, "a saved configuration") if path else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object with settings, got {type(values).__name__}")
    named = values.get("preset", preset_name or "tiny")
    if preset_name and named != preset_name:
        found = f"{path} is a configuration of preset {named!r}"
        raise ValueError(f"{found}, but --preset {preset_name} was given; leave one of them out")
    return from_dict(Config, values, str(path) if path else "config", preset(named))


def override(config: Config, changes: dict[str, Any]) -> Config:
    """Change settings by dotted name, for instance {"lofi.training.lr": 0.05, "seed": 3}."""
    for name, value in changes.items():
        *parents, leaf = name.split(".")
        place: Any = config
        while parents and dataclasses.is_dataclass(getattr(place, parents[0], None)):
            place = getattr(place, parents.pop(0))
        if parents or not (leaf == "kind" or hasattr(place, leaf)):
            raise ValueError(f"unknown setting {name!r}; known here: {', '.join(vars(place))}")
        for key in reversed(name.split(".")):
            value = {key: value}
        config = from_dict(Config, value, base=config)
    return config


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for every setting that differs: `lofi.training.lr: 0.1 → 0.05`."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, dict) and isinstance(after, dict):
            inside = differences(before, after, f"{prefix}{key}.")
            kind = [line for line in inside if line.startswith(f"{prefix}{key}.kind: ")]
            lines += kind or inside  # another kind has other fields: they say nothing
            continue
        plain = [list(v) if isinstance(v, tuple) else v for v in (before, after)]  # as from JSON
        if plain[0] != plain[1]:
            lines.append(f"{prefix}{key}: {before!r} → {after!r}")
    return lines


def preset(name: str) -> Config:
    """A ready-made configuration by name (`lofi.presets`); ValueError lists the known ones."""
    from lofi.presets import PRESETS

    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
