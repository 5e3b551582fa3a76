"""Encoder weights in and out of files: our own, and the layouts in which others publish theirs.

Key facts: loading and saving code of torchvision, mit-han-lab/temporal-shift-module,
open-mmlab/mmaction2 and HumamAlwassel/TSP. Nothing but tensors is ever unpickled.
"""

import functools
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from lofi.encoders.base import Encoder
from lofi.encoders.frames import SHA256, EfficientNetLite
from lofi.files import existing, load_tensors, save_tensors, sha256

log = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "lofi-encoder", "1"

# Source and licence of public files, by the first digits of their SHA-256 (torchvision names its
# files so). Whatever else is loaded has an unknown licence.
_IMAGENET, _BSD = ", torchvision (ImageNet-1k)", "BSD-3-Clause"
PUBLIC = {
    SHA256[:8]: (EfficientNetLite.source, EfficientNetLite.licence),
    **{d: (f"resnet18-{d}.pth{_IMAGENET}", _BSD) for d in ("f37072fd", "5c106cde")},
    **{d: (f"resnet34-{d}.pth{_IMAGENET}", _BSD) for d in ("b627a593", "333f7ec4")},
    **{d: (f"resnet50-{d}.pth{_IMAGENET}", _BSD) for d in ("0676ba61", "19c8e357")},
    "91a641e6": ("r2plus1d_18-91a641e6.pth, torchvision (Kinetics-400)", _BSD),
}


class LoadReport(NamedTuple):
    """What `load_weights` did; every entry is a tuple of tensor names as the encoder spells them.

    `classifier` holds the names of the classification layer (and a decoder), of no use here.
    `origin` is the metadata of our own files, else empty.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    layout: str
    classifier: tuple[str, ...] = ()
    origin: Mapping[str, str] = {}


def save_encoder(encoder: Encoder, path: str | Path, extra: Mapping[str, str] = {}) -> str:
    """Write the weights (safetensors, atomically) and return their `encoder_hash`.

    `extra` is further metadata, such as where the weights come from; a ValueError when it has a
    name of the format itself ("format", "format_version", "encoder", "sha256", "convention").
    """
    digest = encoder_hash(encoder)
    own = {"format": FORMAT, "format_version": FORMAT_VERSION}
    own |= {"encoder": encoder.name, "sha256": digest}
    if encoder.convention:
        own["convention"] = encoder.convention
    if clash := sorted(own.keys() & extra.keys()):
        raise ValueError(f"metadata {', '.join(clash)} belongs to the format; use another name")
    save_tensors(path, encoder.state_dict(), {**extra, **own})
    return digest


def encoder_hash(encoder: Encoder) -> str:
    """Hex SHA-256 of what the encoder computes: its name, convention, weights, statistics.

    The same on every device and in every memory format. Counters of seen batches do not enter.
    """
    digest = hashlib.sha256(encoder.name.encode() + encoder.convention.encode())
    for key, value in sorted(encoder.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(f"\0{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(memoryview(content.numpy()))
    return digest.hexdigest()


def load_weights(
    encoder: Encoder, path: str | Path, strict: bool = True, normalisation: str = ""
) -> LoadReport:
    """Copy the weights of a file into the encoder, whatever the layout.

    Layouts: "lofi" (`save_encoder`), "torchvision", "tsm" (TSM's own Kinetics files), "mmaction2",
    "tsp", "efficientnet", "dinov2" (`transformers`), "regnety" (timm), and of VideoMAE "videomae"
    and "transformers", which also set `convention`. A classification layer is left out. Nothing is
    copied when an error is raised. `source` and `licence` of the encoder become those of the file;
    of files that are not ours they are printed (logged as a warning), once.

    `strict` refuses a file that lacks tensors of the encoder or has others; False copies what fits
    in name and shape and reports the rest. `normalisation`, see `Encoder.follow`, says how a file
    of others wants its pixels. FileNotFoundError, or ValueError: not a weight file, damaged, not
    finite, with non-local blocks, (strict) of another encoder, or ours with other pixels.
    """
    path = Path(path)
    found, origin = read_weights(path)
    layout, found, classifier = _translate(found, path, bool(origin))
    found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if strict and origin and origin.get("encoder") != encoder.name:
        _raise_other(encoder, path, origin.get("encoder", "an unnamed encoder"), found)
    convention = layout if layout in _VIDEOMAE else origin.get("convention", "")
    if origin and any(".adapter." in name for name in found):
        encoder.add_adapters()
    wanted = encoder.state_dict()
    common = [name for name in wanted if name in found]
    matched = tuple(name for name in common if found[name].shape == wanted[name].shape)
    # Files from before torch 0.4.1 have no batch counters; nothing here reads them.
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    missing = tuple(name for name in needed if name not in matched)
    unexpected = tuple(name for name in found if name not in matched)
    if (missing or unexpected) and (strict or not matched):
        _raise_other(encoder, path, _recognise(found), found)
    for name in matched:
        if not torch.isfinite(found[name]).all():
            raise ValueError(f"{path}: {name} is not finite; take an earlier checkpoint")
    if origin and normalisation and not convention.endswith(normalisation):
        what = f"{path}: trained with pixels {convention or 'as they are'!r}, not {normalisation!r}"
        raise ValueError(f"{what}; leave normalisation out, or train it anew")
    if convention or normalisation:
        encoder.follow(convention, normalisation)
    with torch.no_grad():
        for name in matched:
            wanted[name].copy_(found[name])
    log.info("%s: %d tensors into %s (%s layout)", path, len(matched), encoder.name, layout)
    encoder.source = origin.get("weights_source", "")
    encoder.licence = origin.get("weights_licence", "")
    if not origin:
        unknown = path.name, "unknown: see where the file came from"
        if family := _FAMILIES.get(layout):
            terms = f"{type(encoder).licence}, unless the publisher says more"
            unknown = f"{path.name} ({family})", terms
        encoder.source, encoder.licence = PUBLIC.get(sha256(path)[:8], unknown)
        pixels = f"; pixels: {encoder.convention}" if encoder.convention else ""
        if layout == "videomae" and not normalisation:
            pixels += " as VideoMAEv2's features; else give --normalisation imagenet"
        _say_once(f"weights: {encoder.source}; licence: {encoder.licence}{pixels}")
    return LoadReport(matched, missing, unexpected, layout, classifier, origin)


@functools.cache
def _say_once(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes the first
        log.warning(line)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and the metadata of our own format (else empty).

    Errors as in `load_weights`.
    """
    with open(existing(path, "encoder weights"), "rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError(f"{path}: the file is empty (expected encoder weights); get it again")
    if start[8:9] == b"{":  # safetensors: length of a JSON header, then the header
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != FORMAT:
            return tensors, {}
        if (version := metadata.get("format_version")) != FORMAT_VERSION:
            found = f"format version {version}, this lofi reads {FORMAT_VERSION}"
            raise ValueError(f"{path}: {found}; update lofi")
        return tensors, metadata
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the error below says more
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything in the unpickler
        raise ValueError(f"{path}: {_reason(error)}") from None
    for field in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(field), Mapping):
            content = content[field]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        found = f"{path}: holds no named tensors but a {type(content).__name__}"
        raise ValueError(f"{found} (expected a state dict); export the model's state_dict()")
    return dict(content), {}


def _reason(error: Exception) -> str:
    if found := re.search(r"(?i)unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error)):
        cure = "save its state_dict alone with the program that wrote it"
        return f"holds Python objects ({found[1]}), and only tensors are loaded; {cure}"
    lines = str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines() or [""]
    cause = f"{type(error).__name__}: {lines[0][:100]}"
    return f"cannot be read as weights ({cause}); damaged or of another kind: get it again"


_CLASSIFIER = re.compile(
    r"(fc|new_fc|fc1|fc2|cls_head\.fc_cls|head|head\.fc|classifier)\.(weight|bias)"
)
# Layouts of others: a sign in some name, and what becomes torchvision's name by which changes.
_MMACTION = (
    (r"^backbone\.", ""),
    (r"\bdownsample\.conv\.", "downsample.0."),
    (r"\bdownsample\.bn\.", "downsample.1."),
    (r"\bconv(\d)\.conv\.(net\.)?", r"conv\1."),
    (r"\bconv(\d)\.bn\.", r"bn\1."),
)
_VIDEOMAE = {
    # Files from pre-training alone: the encoder below "encoder.", and a decoder that is left out.
    # Files on the hub have all below "model.".
    "videomae": ((r"^(model\.)?(encoder\.)?", ""), (r"^norm\.", "fc_norm.")),
    "transformers": (
        (r"^videomae\.", ""),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.", "blocks."),
        (r"\.attention\.attention\.", ".attn."),
        (r"\.attn\.(q|v)(uery|alue)\.bias$", r".attn.\1_bias"),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"^layernorm\.", "fc_norm."),
    ),
}
_FAMILIES = {"dinov2": "DINOv2", "regnety": "RegNetY"} | dict.fromkeys(_VIDEOMAE, "VideoMAE")
_DECODER = re.compile(r"(decoder|encoder_to_decoder)\.|mask_token$|(position|pos)_embed")
_DINOV2 = (
    (r"^dinov2\.", ""),
    (r"^embeddings\.(patch_embeddings\.)?", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(attention\.)?", "."),
    (r"\.output\.dense\.", ".proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".scale\1"),
    (r"\.mlp\.", "."),
    (r"^layernorm\.", "norm."),
)
_LAYOUTS = (
    ("regnety", r"\.se\.fc1\.", ()),
    ("dinov2", r"\.layer_scale\d\.lambda1$", _DINOV2),
    ("videomae", r"\bpatch_embed\.proj\.", _VIDEOMAE["videomae"]),
    ("transformers", r"\bpatch_embeddings\.projection\.", _VIDEOMAE["transformers"]),
    ("tsm", r"^base_model\.", ((r"^base_model\.", ""), (r"\.conv1\.net\.", ".conv1."))),
    ("mmaction2", r"conv1\.conv\.", _MMACTION),
    ("tsp", r"^features\.", ((r"^features\.", ""),)),
    ("efficientnet", r"^_conv_stem\.", ((r"(^|\.)_", r"\1"),)),
)


def _translate(
    found: dict[str, Tensor], path: Path, own: bool
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Name of the layout, tensors under torchvision's names, names of the classification layer."""
    names = {name: name.removeprefix("module.") for name in found}
    if local := next((name for name in names if ".nl." in name), None):
        what = f"non-local blocks ({local}), which no encoder here has"
        raise ValueError(f"{path}: {what}; take the checkpoint without _nl")
    layout = "lofi" if own else "torchvision"
    for foreign, sign, changes in () if own else _LAYOUTS:
        if any(re.search(sign, name) for name in names.values()):
            layout = foreign
            for pattern, new in changes:
                names = {old: re.sub(pattern, new, name) for old, name in names.items()}
            break
    left_out = [name for name in names.values() if _CLASSIFIER.fullmatch(name)]
    left_out += ["mask_token"] * (layout == "dinov2")
    if layout in _VIDEOMAE:
        left_out += [name for name in names.values() if _DECODER.match(name)]
    classifier = tuple(left_out)
    kept = {new: found[old] for old, new in names.items() if new not in classifier}
    for name in [name for name in kept if name.endswith(".attn.query.weight")]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        bias = kept.get(parts[1].replace("weight", "bias"))
        if bias is not None and not bias.any():  # written by some versions, never trained
            del kept[parts[1].replace("weight", "bias")]
        if all(part in kept for part in parts):
            joined = torch.cat([kept.pop(part) for part in parts])
            kept[name.replace("query", "qkv")] = joined
    return layout, kept, classifier


def _recognise(found: Mapping[str, Tensor]) -> str:
    """Which known encoders have exactly these names and shapes."""
    from lofi.encoders import ENCODERS, build_encoder

    def shapes(state: Mapping[str, Tensor]) -> dict:  # old files have no counters of batches
        return {k: v.shape for k, v in state.items() if not k.endswith("num_batches_tracked")}

    with torch.device("meta"):
        known = {name: shapes(build_encoder(name).state_dict()) for name in ENCODERS}
    same = [name for name in ENCODERS if known[name] == shapes(found)]
    return "/".join(same) if same else "an unknown architecture"


def _raise_other(encoder: Encoder, path: Path, other: str, found: Mapping[str, Tensor]) -> NoReturn:
    """One line that names both architectures and the first place where they differ."""
    wanted = encoder.state_dict()
    where = "same names and shapes, but not the same network"
    extra = sorted(found.keys() - wanted.keys(), key=lambda name: (found[name].dim() < 2, name))
    for name in [*wanted, *extra]:
        ours = tuple(wanted[name].shape) if name in wanted else "none"
        theirs = tuple(found[name].shape) if name in found else "none"
        if ours != theirs and not (theirs == "none" and name.endswith("num_batches_tracked")):
            where = f"first difference {name}: {theirs} in the file, {ours} in the encoder"
            break
    cure = "build the encoder of the file, or pass strict=False for what fits"
    raise ValueError(f"{path}: weights of {other}, wanted {encoder.name} ({where}); {cure}")
