"""CLIP's two towers against reference numbers, prompts, the end of the text, class names."""

import json
import math

import numpy as np
import pytest
import torch
from reference_networks import generator

from lofi.encoders import build_encoder, save_encoder
from lofi.encoders.dual import Clip, ImageSide, TinyDual, clean_name, prompted_text, train_tiny_dual


def weight(name: str, shape: list[int], salt: int) -> torch.Tensor:
    """The rule that the reference networks' weights were made by."""
    z = generator(name, salt).standard_normal(shape)
    if not shape:
        value = np.asarray(math.log(1 / 0.07))
    elif name.endswith("bias"):
        value = 0.05 * z
    elif len(shape) == 1 and name.endswith("weight"):
        value = 1 + 0.1 * z
    elif len(shape) == 1 or ("embedding" in name and "patch" not in name):
        value = 0.2 * z
    else:
        value = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


@pytest.fixture(scope="module")
def reference(golden):
    facts = json.loads(golden("vit_clip.json").read_text())["clip"]
    state = {n: weight(n, s, facts["weight_salt"]) for n, s in facts["state_dict"]}
    return facts, state, np.load(golden("vit_clip.npz")), Clip(state, heads=(4, 4))


def test_text_image_and_prompted_text_equal_the_reference(reference):
    facts, _, numbers, clip = reference
    text = prompted_text(clip, facts["names"], torch.zeros(0, 32))
    np.testing.assert_allclose(text, numbers["clip.text"], atol=1e-5)
    prompts = torch.from_numpy(numbers["clip.prompts"])
    prompted = prompted_text(clip, facts["names"], prompts)
    np.testing.assert_allclose(prompted, numbers["clip.prompted_text"], atol=1e-5)
    z = generator("input:clip", facts["input_salt"]).standard_normal((4, 3, 32, 32))
    image = clip.encode_image(torch.from_numpy(z.astype(np.float32)))
    np.testing.assert_allclose(image, numbers["clip.image"], atol=1e-5)


def test_padding_behind_the_end_and_other_texts_change_nothing(reference):
    facts, _, numbers, clip = reference
    alone = torch.cat([prompted_text(clip, [ids], torch.zeros(0, 32)) for ids in facts["names"]])
    np.testing.assert_allclose(alone, numbers["clip.text"], atol=1e-5)


def test_the_other_published_layout_gives_the_same_network(reference, tmp_path):
    _, state, _, clip = reference
    names = {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "text_model.final_layer_norm": "ln_final",
    }
    names |= {"vision_model.post_layernorm": "visual.ln_post"}
    names |= {"text_model.embeddings.token_embedding": "token_embedding"}
    names |= {"vision_model.embeddings.patch_embedding": "visual.conv1"}
    names |= {"vision_model.embeddings.class_embedding": "visual.class_embedding"}
    other = {"logit_scale": state["logit_scale"]}
    for side, there in (("text_model", ""), ("vision_model", "visual.")):
        places = state[f"{side}.embeddings.position_embedding.weight"]
        other[f"{there}positional_embedding"] = places
        for i in range(2):
            old, new = f"{side}.encoder.layers.{i}.", f"{there}transformer.resblocks.{i}."
            for kind in ("weight", "bias"):
                rows = [state[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                other[f"{new}attn.in_proj_{kind}"] = torch.cat(rows)
                for a, b in (
                    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                ):  # fmt: skip
                    other[f"{new}{b}.{kind}"] = state[f"{old}{a}.{kind}"]
    for name, tensor in state.items():
        for old, new in names.items():
            if name.startswith(old):
                other[name.replace(old, new)] = tensor
    other["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    other["text_projection"] = state["text_projection.weight"].T.contiguous()
    torch.save(other, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="not the weights of a CLIP"):  # 32 wide: no whole head
        Clip.load(tmp_path / "clip.pt")
    from lofi.encoders.dual import _from_open_clip

    translated = _from_open_clip(other)
    assert translated.keys() == state.keys()
    assert all(torch.equal(translated[name], state[name]) for name in state)


def test_a_name_that_does_not_fit_is_named(reference):
    clip = reference[3]
    with pytest.raises(ValueError, match="class 'Long' has 45 tokens, 40 fit beside 6 prompts"):
        prompted_text(clip, [[5], [6] * 45], torch.zeros(6, 32), ["Short", "Long"])


@pytest.mark.parametrize(
    "name, words",
    [("CleanAndJerk", "clean and jerk"), ("ring left-right", "ring left right"),
     ("Long_jump", "long jump"), ("HTMLPage2Go", "html page2 go"), ("golf", "golf")],
)  # fmt: skip
def test_class_names_become_words(name, words):
    assert clean_name(name) == words


def test_the_stand_in_learns_captions_refuses_unknown_words_and_is_saved(tmp_path):
    trunk = build_encoder("resnet-toy", seed=0)
    dual = TinyDual(trunk, ["ring", "cross", "up"], seed=0)
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(64, trunk.channels, generator=draws)
    features[32:] += 1
    found = train_tiny_dual(dual, features, ["ring up"] * 32 + ["cross up"] * 32, seed=0)
    assert found["accuracy"] == 1
    assert dual.encode_image(torch.zeros(2, 3, 16, 16)).shape == (2, dual.d)
    with pytest.raises(ValueError, match="no word 'left'"):
        dual.tokenize(["ring left"])
    dual.save(tmp_path / "dual.safetensors")
    again, frames = TinyDual.load(tmp_path / "dual.safetensors"), torch.rand(2, 4, 3, 16, 16)
    tokens = dual.tokenize(["cross up"])
    torch.testing.assert_close(again.encode_image(frames[:, 2]), ImageSide(dual, "a")(frames))
    empty = torch.zeros(0, dual.d)
    texts = [prompted_text(one, tokens, empty) for one in (again, dual)]
    torch.testing.assert_close(*texts)
    assert not any(p.requires_grad for p in again.parameters())
    save_encoder(trunk, tmp_path / "other.safetensors", {})
    with pytest.raises(ValueError, match="other.safetensors: format .*, expected 'lofi-dual-1'"):
        TinyDual.load(tmp_path / "other.safetensors")


def test_without_prompts_the_text_path_equals_the_library_s_own():
    open_clip = pytest.importorskip("open_clip", reason="extra clip (open_clip_torch) is not here")
    from lofi.encoders.dual import _from_open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval()
    ours = Clip(_from_open_clip(theirs.state_dict()))
    names = ["clean and jerk", "golf swing", "frisbee catch"]
    with torch.no_grad():
        wanted = theirs.encode_text(open_clip.tokenize(names))
        found = prompted_text(ours, ours.tokenize(names), torch.zeros(0, 512))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
