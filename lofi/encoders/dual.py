"""Encoders of images and text in one space: CLIP from published weights, and a small stand-in.

Text goes in as embeddings, so that learned prompt vectors can stand around a class name. The end of
the text is counted in the sequence that was built, never searched for in token ids.
N images, C texts, L tokens, d width of the common space, d_t of the token embeddings.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lofi.encoders import build_encoder
from lofi.encoders.base import Encoder
from lofi.encoders.weights import read_weights
from lofi.files import load_tensors, save_tensors

FORMAT = "lofi-dual-1"  # of a saved stand-in
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the released networks, as `CLIP_STD`
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class DualEncoder(Protocol):
    """What the vision-language branch needs of a pair of encoders."""

    d: int
    context: int  # longest text in tokens, begin and end included
    ends: tuple[int, int]  # token ids of begin and end
    logit_scale: Tensor

    def encode_image(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) normalised frames to (N, d), not scaled to length 1."""

    def encode_text_embeds(self, embeds: Tensor, eot: Tensor) -> Tensor:
        """(C, L, d_t) embeddings and (C,) index of the end token to (C, d)."""

    def token_embed(self, ids: Tensor) -> Tensor:
        """(…) token ids to (…, d_t)."""

    def tokenize(self, names: Sequence[str]) -> list[list[int]]:
        """Token ids of each name, without begin and end."""


def clean_name(name: str) -> str:
    """A class name as words: "CleanAndJerk" → "clean and jerk", "long_jump" → "long jump"."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(re.split(r"[\s_-]+", name)).strip().lower()


def prompted_text(
    dual: DualEncoder, tokens: Sequence[Sequence[int]], prompts: Tensor, names: Sequence[str] = ()
) -> Tensor:
    """(C, d) features of [begin] first half of the prompts, name, second half [end].

    Args:
        tokens: ids of each name, as `tokenize` gives them.
        prompts: (P, d_t) vectors shared by all classes; P may be 0.
        names: for messages.
    Raises:
        ValueError: a text is longer than the encoder's context; names it.
    """
    lengths = [len(ids) + len(prompts) + 2 for ids in tokens]
    if max(lengths) > dual.context:
        i = lengths.index(max(lengths))
        name = names[i] if names else f"number {i}"
        limit = dual.context - 2 - len(prompts)
        found = f"class {name!r} has {len(tokens[i])} tokens, {limit} fit beside {len(prompts)}"
        raise ValueError(f"{found} prompts; shorten the name, or lower weak.prompts")
    device = prompts.device
    before, after = prompts.split([len(prompts) // 2, len(prompts) - len(prompts) // 2])
    begin, end = dual.token_embed(torch.tensor(dual.ends, device=device)).split(1)
    rows = []
    for ids in tokens:
        name = dual.token_embed(torch.tensor(ids, dtype=torch.long, device=device))
        row = torch.cat([begin, before, name, after, end])
        rows.append(F.pad(row, (0, 0, 0, max(lengths) - len(row))))
    return dual.encode_text_embeds(torch.stack(rows), torch.tensor(lengths, device=device) - 1)


class _Block(nn.Module):
    """Pre-norm attention and MLP with CLIP's approximate GELU; names as in `transformers`."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        y, attention = self.layer_norm1(x), self.self_attn
        q, k, v = (
            attention[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + attention["out_proj"](y.transpose(1, 2).flatten(2))
        y = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](y * torch.sigmoid(1.702 * y))


def _tower(width: int, heads: int, inner: int, layers: int, **embeddings: nn.Module) -> nn.Module:
    tower = nn.Module()
    tower.embeddings = nn.Module()
    for name, module in embeddings.items():
        tower.embeddings.add_module(name, module)
    tower.encoder = nn.Module()
    tower.encoder.layers = nn.ModuleList(_Block(width, heads, inner) for _ in range(layers))
    return tower


class Clip(nn.Module):
    """CLIP with a ViT image side, parameters named as in `transformers`' CLIPModel.

    Sizes follow from the tensors; `heads` (text, image) is width / 64 unless given, and the ends
    are the last two ids of the vocabulary, as released.
    """

    def __init__(self, state: Mapping[str, Tensor], heads: tuple[int, int] | None = None):
        super().__init__()
        tokens = state["text_model.embeddings.token_embedding.weight"]
        patches = state["vision_model.embeddings.patch_embedding.weight"]
        places = [
            len(state[f"{side}_model.embeddings.position_embedding.weight"])
            for side in ("text", "vision")
        ]
        (vocabulary, width), (wide, _, self.patch, _) = tokens.shape, patches.shape
        self.d, self.context = len(state["text_projection.weight"]), places[0]
        self.ends = (vocabulary - 2, vocabulary - 1)
        heads = heads or (width // 64, wide // 64)
        if not all(heads):
            raise ValueError(f"{width} and {wide} wide, expected heads of 64")
        above = [f"{side}_model.encoder.layers." for side in ("text", "vision")]
        inner = [len(state[f"{start}0.mlp.fc1.bias"]) for start in above]
        layers = [len({k.split(".")[3] for k in state if k.startswith(start)}) for start in above]
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.text_model = _tower(
            width, heads[0], inner[0], layers[0],
            token_embedding=nn.Embedding(vocabulary, width),
            position_embedding=nn.Embedding(places[0], width),
        )  # fmt: skip
        self.text_model.final_layer_norm = nn.LayerNorm(width)
        self.vision_model = _tower(
            wide, heads[1], inner[1], layers[1],
            patch_embedding=nn.Conv2d(3, wide, self.patch, self.patch, bias=False),
            position_embedding=nn.Embedding(places[1], wide),
        )  # fmt: skip
        self.vision_model.embeddings.class_embedding = nn.Parameter(torch.zeros(wide))
        self.vision_model.pre_layrnorm = nn.LayerNorm(wide)  # spelled so in the published files
        self.vision_model.post_layernorm = nn.LayerNorm(wide)
        self.visual_projection = nn.Linear(wide, self.d, bias=False)
        self.text_projection = nn.Linear(width, self.d, bias=False)
        self.load_state_dict(state)
        self.requires_grad_(False).eval()

    @staticmethod
    def load(path: str | Path) -> "Clip":
        """From a local file in the layout of `transformers` or of `open_clip` / OpenAI.

        FileNotFoundError, ValueError: no such file, or no CLIP with a ViT in it.
        """
        state = read_weights(Path(path))[0]
        if "visual.conv1.weight" in state:
            state = _from_open_clip(state)
        state = {k: v.float() for k, v in state.items() if not k.endswith("position_ids")}
        try:
            return Clip(state)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:120]
            found = f"{path}: not the weights of a CLIP with ViT ({reason})"
            raise ValueError(f"{found}; get those of clip-vit-base-patch16") from None

    def encode_image(self, frames: Tensor) -> Tensor:
        tower = self.vision_model
        x = tower.embeddings.patch_embedding(frames).flatten(2).transpose(1, 2)
        first = tower.embeddings.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + tower.embeddings.position_embedding.weight
        x = tower.pre_layrnorm(x)
        for layer in tower.encoder.layers:
            x = layer(x, causal=False)
        return self.visual_projection(tower.post_layernorm(x[:, 0]))

    def encode_text_embeds(self, embeds: Tensor, eot: Tensor) -> Tensor:
        tower = self.text_model
        x = embeds + tower.embeddings.position_embedding.weight[: embeds.shape[1]]
        for layer in tower.encoder.layers:
            x = layer(x, causal=True)
        x = tower.final_layer_norm(x[torch.arange(len(x), device=x.device), eot])
        return self.text_projection(x)

    def token_embed(self, ids: Tensor) -> Tensor:
        return self.text_model.embeddings.token_embedding(ids)

    def tokenize(self, names: Sequence[str]) -> list[list[int]]:
        """By `open_clip`'s byte pairs, which its package carries; ValueError without it."""
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError:
            raise ValueError("CLIP's words need the extra: pip install open_clip_torch") from None
        tokenizer = SimpleTokenizer()
        return [tokenizer.encode(clean_name(name)) for name in names]


def _from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of `transformers` for tensors of `open_clip`; its projections are transposed."""
    found: dict[str, Tensor] = {}
    renames = (
        (r"^visual\.transformer\.resblocks", "vision_model.encoder.layers"),
        (r"^transformer\.resblocks", "text_model.encoder.layers"),
        (r"\.ln_(\d)\.", r".layer_norm\1."), (r"\.attn\.", ".self_attn."),
        (r"\.c_fc\.", ".fc1."), (r"\.c_proj\.", ".fc2."),
        (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
        (r"^visual\.ln_post", "vision_model.post_layernorm"),
        (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
        (r"^visual\.class_embedding", "vision_model.embeddings.class_embedding"),
        (r"^visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        (r"^positional_embedding", "text_model.embeddings.position_embedding.weight"),
        (r"^token_embedding", "text_model.embeddings.token_embedding"),
        (r"^ln_final", "text_model.final_layer_norm"),
    )  # fmt: skip
    for name, tensor in state.items():
        if name in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
            continue
        if name in ("visual.proj", "text_projection"):
            own = {"visual.proj": "visual_projection", "text_projection": "text_projection"}[name]
            found[f"{own}.weight"] = tensor.T
            continue
        for old, new in renames:
            name = re.sub(old, new, name)
        if "in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3)):
                found[name.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            found[name] = tensor
    return found


class TinyDual(nn.Module):
    """A stand-in that needs no download; it is NOT a substitute for CLIP.

    Images pass a frozen encoder of the kit that was trained on still frames (ICP), then a linear
    layer; words have embeddings and one attention block. Like CLIP on motion it knows what is
    there, not what it does. Without a trunk it has a text side alone.
    """

    context = 77

    def __init__(self, trunk: Encoder | None, words: Sequence[str], seed: int, d: int = 32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(len(words) + 2, d)
            self.attention = nn.TransformerEncoderLayer(
                d, 4, 2 * d, dropout=0.0, batch_first=True, norm_first=True
            )
            self.projection = nn.Linear(trunk.channels, d) if trunk else None
        self.trunk, self.d = trunk and trunk.requires_grad_(False).eval(), d
        self.words = {word: i for i, word in enumerate(words)}
        self.ends = (len(words), len(words) + 1)
        self.register_buffer("logit_scale", torch.tensor(1 / 0.07).log())

    def save(self, path: str | Path) -> None:
        """Write trunk, projection and words as one safetensors file."""
        trunk = self.trunk.name if self.trunk else ""
        about = {"format": FORMAT, "words": " ".join(self.words), "trunk": trunk}
        save_tensors(path, self.state_dict(), about)

    @staticmethod
    def wrote(path: Path) -> bool:
        """Whether a file is a stand-in, not one of CLIP."""
        return path.suffix == ".safetensors" and load_tensors(path)[1].get("format") == FORMAT

    @staticmethod
    def load(path: str | Path) -> "TinyDual":
        """What `save` wrote, frozen; ValueError: damaged, or another kind of file."""
        tensors, about = load_tensors(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: format {about.get('format')!r}, expected {FORMAT!r}")
        trunk = build_encoder(about["trunk"], seed=0) if about["trunk"] else None
        width = tensors["embedding.weight"].shape[1]
        dual = TinyDual(trunk, about["words"].split(), 0, width)
        dual.load_state_dict(tensors)
        return dual.requires_grad_(False).eval()

    def encode_image(self, frames: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.trunk(frames[:, None])
        return self.projection(features)

    def encode_text_embeds(self, embeds: Tensor, eot: Tensor) -> Tensor:
        behind = torch.arange(embeds.shape[1], device=embeds.device) > eot[:, None]
        x = self.attention(embeds, src_key_padding_mask=behind)
        kept = (~behind)[..., None].to(x)
        return (x * kept).sum(1) / kept.sum(1)

    def token_embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)

    def tokenize(self, names: Sequence[str]) -> list[list[int]]:
        parts = [clean_name(name).split() for name in names]
        unknown = sorted({word for words in parts for word in words} - self.words.keys())
        if unknown:
            known = ", ".join(self.words)
            raise ValueError(f"the stand-in has no word {unknown[0]!r}; known: {known}")
        return [[self.words[word] for word in words] for words in parts]


class ImageSide(Encoder):
    """The image encoder of a pair on the middle frame of each snippet: (N, F, 3, S, S) to (N, d).

    So the features of frames lie on the time axis of the snippets' own."""

    stages = ()  # it never trains

    def __init__(self, dual: DualEncoder, name: str):
        super().__init__()
        self.dual, self.name, self.channels = dual, name, dual.d
        trunk = getattr(dual, "trunk", None)
        self.mean, self.std = (trunk.mean, trunk.std) if trunk else (CLIP_MEAN, CLIP_STD)

    def forward(self, frames: Tensor) -> Tensor:
        return self.dual.encode_image(frames[:, frames.shape[1] // 2])


def train_tiny_dual(
    dual: TinyDual, features: Tensor, labels: Sequence[str], seed: int, steps: int = 150
) -> dict[str, Any]:
    """Contrast frames of the trunk (N, C) with their captions (Adam 2e-3, batches of 64)."""
    names = sorted(set(labels))
    tokens, index = dual.tokenize(names), torch.tensor([names.index(label) for label in labels])
    empty = features.new_zeros(0, dual.d)
    optimizer = torch.optim.Adam([p for p in dual.parameters() if p.requires_grad], lr=2e-3)
    draws = torch.Generator().manual_seed(seed)

    def logits(x: Tensor) -> Tensor:
        text = F.normalize(prompted_text(dual, tokens, empty), dim=1)
        return F.normalize(dual.projection(x), dim=1) @ text.T * dual.logit_scale.exp()

    for _ in range(steps):
        rows = torch.randint(len(features), (64,), generator=draws)
        loss = F.cross_entropy(logits(features[rows]), index[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dual.requires_grad_(False).eval()
    right = (logits(features).argmax(1) == index).float().mean()
    return {"accuracy": round(float(right), 4), "loss": round(float(loss.detach()), 4)}
