"""Encoders against numbers of the original public code and against sizes done by hand."""

import json
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from lofi.encoders import (
    build_encoder,
    encoder_hash,
    freeze_batch_norm,
    freeze_until,
    load_weights,
    normalise,
    temporal_shift,
)
from lofi.encoders.base import BatchNorm
from lofi.encoders.extraction import autocast, clip_features, encode

REFERENCES = {
    "tsm_resnet18": "tsm-r18",
    "tsm_resnet18_T4_odd": "tsm-r18",
    "tsm_resnet34": "tsm-r34",
    "tsm_resnet50": "tsm-r50",
    "r2plus1d_18": "r2plus1d-18",
    "r2plus1d_18_T5_odd": "r2plus1d-18",
}


def reference_numbers(name: str, salt: int, shape: list[int]) -> np.ndarray:
    """The named random numbers of the reference recipe, float64."""
    seed = zlib.crc32(name.encode()) + salt
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def reference_tensor(name: str, salt: int, shape: list[int]) -> torch.Tensor:
    """One entry of a reference state dict by the recipe's rules."""
    last = name.split(".")[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    z = reference_numbers(name, salt, shape)
    if last == "running_var":
        z = 1 + 0.25 * abs(z)
    elif last == "running_mean":
        z = 0.1 * z
    elif last == "weight" and len(shape) == 1:
        z = 1 + 0.1 * z
    elif last == "bias":
        z = 0.05 * z
    else:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


@pytest.fixture(scope="module", params=REFERENCES)
def reference(request, golden, tmp_path_factory):
    """(name, encoder with the reference weights, loaded as published; facts; arrays; fc)."""
    name = request.param
    facts = json.loads(golden("encoders.json").read_text())[name]
    listing = json.loads(golden("encoder_state_dicts.json").read_text())[name]["state_dict"]
    arrays = np.load(golden(f"enc_{name}.npz"))
    state = {key: reference_tensor(key, facts["weight_salt"], shape) for key, shape, *_ in listing}
    path = tmp_path_factory.mktemp("weights") / "published.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    encoder = build_encoder(REFERENCES[name]).eval()
    report = load_weights(encoder, path)
    path.unlink()
    assert report.layout == ("tsm" if name.startswith("tsm") else "torchvision")
    assert len(report.classifier) == 2 and not report.missing and not report.unexpected
    head = "new_fc" if name.startswith("tsm") else "fc"
    return name, encoder, facts, arrays, (state[f"{head}.weight"], state[f"{head}.bias"])


def reference_input(facts: dict) -> torch.Tensor:
    shape = [facts["snippets"], facts["frames"], 3, *facts["size_hw"]]
    z = reference_numbers(facts["input_tag"], facts["input_salt"], shape).astype(np.float32)
    assert z.ravel()[:8].tolist() == facts["input_check"]["first8"]
    return torch.from_numpy(z)


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    expected = torch.from_numpy(np.asarray(expected)).double()
    return float((found.double() - expected).abs().max() / expected.abs().max())


def test_features_stages_and_gradients_equal_the_public_code(reference):
    """In float64, features also in float32.

    In float32 a gradient depends on the kernel: sums in another order may turn the sign of an
    activation near 0, and with it a ReLU. Measured with AVX2 kernels: one activation of 12,550,144
    (tsm_resnet50) and one of 20,196,704 (r2plus1d_18) change their sign, which moves the norms of
    gradients by up to 1.6e-3 and 8e-5; no other network has such an activation. The reference
    inputs were chosen so that the public code's own float32 gradients are those of float64: in
    float64 all numbers here are within 6e-7 of it.
    """
    name, encoder, facts, arrays, (weight, bias) = reference
    frames = reference_input(facts)
    with torch.no_grad():
        features = encoder(frames)
    assert relative(features, arrays["feature"]) < 1e-6
    assert relative(features @ weight.T + bias, arrays["logits"]) < 1e-6
    stages = {}
    handles = [
        getattr(encoder, stage)[-1].register_forward_hook(
            lambda _module, _inputs, out, stage=stage: stages.__setitem__(stage, out.detach())
        )
        for stage in encoder.stages[1:]
    ]
    encoder.double()
    frames = frames.double().requires_grad_()
    features = encoder(frames)
    for handle in handles:
        handle.remove()
    assert relative(features.detach(), arrays["feature"]) < 1e-6
    logits = features.detach() @ weight.double().T + bias.double()
    assert relative(logits, arrays["logits"]) < 1e-6
    for stage, out in stages.items():
        if f"{stage}_channel_mean" in arrays:
            assert relative(out.flatten(2).mean(2), arrays[f"{stage}_channel_mean"]) < 1e-6
    probe = reference_numbers(facts["probe_tag"], facts["probe_salt"], list(features.shape))
    (features * torch.from_numpy(probe.astype(np.float32))).sum().backward()
    norms = frames.grad.flatten(2).norm(dim=2)
    assert relative(norms, arrays["input_grad_norm"]) < 1e-6
    found = {key: float(p.grad.norm()) for key, p in encoder.named_parameters()}
    expected = {
        key.removeprefix("base_model.").replace(".net.", "."): norm
        for key, norm in facts["param_grad_norm"].items()
        if "fc" not in key
    }
    assert found == pytest.approx(expected, rel=1e-6)
    encoder.zero_grad(set_to_none=True)
    if "frame_feature" in arrays:
        with torch.no_grad():
            frame_features = encoder.frame_features(frames)
        assert relative(frame_features, arrays["frame_feature"]) < 1e-6
    encoder.float()


def test_batch_statistics_equal_the_public_code(reference):
    _, encoder, facts, arrays, (weight, bias) = reference
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.train()
    with torch.no_grad():
        logits = encoder(reference_input(facts)) @ weight.T + bias
    assert relative(logits, arrays["train_mode_logits"]) < 1e-4
    after = encoder.state_dict()
    for key, expected in facts["running_stats_after_one_training_pass"].items():
        found = after[key.removeprefix("base_model.")].double()
        assert float(found.sum()) == pytest.approx(expected["sum"], rel=1e-4, abs=1e-4)
        assert float((found**2).sum()) == pytest.approx(expected["sq_sum"], rel=1e-4)
    encoder.eval().load_state_dict(before)


def fill(n: int, i: int) -> torch.Tensor:
    """The specification's pseudo-random numbers in [-1, 1), float64."""
    j = torch.arange(n, dtype=torch.int64)
    return 2 * ((31 * j * j + 17 * j + 101 * i + 7) % 1009).double() / 1009 - 1


@pytest.mark.parametrize(
    ("name", "pixels", "total", "first_features"),
    [
        ("tsm-r18", 64, 61.44915, [0.0043237546, 0.03726941, 0.0010338786, 0.0015064714]),
        ("resnet-18", 64, 62.55758, [0.0072139194, 0.036307907, 0.00089084333, 0.0023292301]),
        ("tsm-r18", 112, 72.023768, [0.004221627, 0.037646825, 0.0040965855, 0.0026264869]),
        ("tsm-r34", 64, 1549.0722, [0.230357, 0.56725743, 0.43620923, 0.12476222]),
        ("tsm-r50", 64, 60.725089, [0.0030308606, 0.0025805563, 0.0048712624, 0.0039197783]),
        ("r2plus1d-18", 32, 8.5117053, [0.028052041, 0.028900848, 0.030730736, 0.012888743]),
    ],
)
def test_features_of_the_specification_table(name, pixels, total, first_features):
    encoder = build_encoder(name, seed=0).double().eval()
    weights = [parameter for parameter in encoder.parameters() if parameter.dim() > 1]
    with torch.no_grad():
        for i, weight in enumerate(weights):
            scale = 0.5 * (6 / weight[0].numel()) ** 0.5
            weight.copy_((fill(weight.numel(), i) * scale).view_as(weight))
        numbers = fill(8 * 3 * pixels * pixels, 5)
        if name.startswith("r2plus1d"):
            frames = numbers.view(3, 8, pixels, pixels).transpose(0, 1)[None]
            features = found = encoder(frames)
        else:
            frames = numbers.view(1, 8, 3, pixels, pixels)
            found, features = encoder.frame_features(frames), encoder(frames)
    assert float(found.sum()) == pytest.approx(total, rel=1e-7)
    assert features[0, :4].tolist() == pytest.approx(first_features, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "parameters", "channels", "norms", "affine", "entries"),
    [
        ("tsm-r18", 11_176_512, 512, 20, 9_600, 122),
        ("tsm-r34", 21_284_672, 512, 36, 17_024, 218),
        ("tsm-r50", 23_508_032, 2048, 53, 53_120, 320),
        ("resnet-18", 11_176_512, 512, 20, 9_600, 122),
        ("r2plus1d-18", 31_300_125, 512, 37, 25_350, 224),
        ("tsm-toy", 78_160, 64, 9, 672, 56),
        ("tsm-toy14", 175_376, 64, 15, 1_120, 92),
        ("tsm-toy20", 272_592, 64, 21, 1_568, 128),
        ("r2plus1d-toy", 198_351, 64, 16, 1_526, 98),
    ],
)
def test_sizes(name, parameters, channels, norms, affine, entries):
    with torch.device("meta"):
        encoder = build_encoder(name)
    layers = [module for module in encoder.modules() if isinstance(module, BatchNorm)]
    assert (encoder.name, encoder.channels) == (name, channels)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert len(layers) == norms
    assert sum(p.numel() for layer in layers for p in layer.parameters()) == affine
    assert len(encoder.state_dict()) == entries - 2  # the specification counts the classifier


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shift_of_the_specification(memory_format):
    x = torch.arange(64.0).view(8, 8, 1, 1)  # two clips of four frames, eight channels
    x = x.expand(8, 8, 2, 3).contiguous(memory_format=memory_format)
    out = temporal_shift(x, num_frames=4, fold=8)
    assert out.is_contiguous(memory_format=memory_format)
    assert torch.equal(out, out[..., :1, :1].expand_as(out))
    first_channels = [[8, 0], [16, 1], [24, 9], [0, 17], [40, 0], [48, 33], [56, 41], [0, 49]]
    assert out[:, :2, 0, 0].tolist() == first_channels
    assert torch.equal(out[:, 2:], x[:, 2:])


def test_shift_gradient_is_the_transpose():
    x = torch.randn(6, 9, 2, 2, dtype=torch.float64, requires_grad=True)  # fold 9 // 4 = 2
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 3, 4), x)
    assert torch.autograd.gradgradcheck(lambda x: temporal_shift(x, 3, 4), x)


def test_shift_never_leaves_a_snippet():
    encoder = build_encoder("tsm-toy", seed=1).eval()
    frames = torch.randn(3, 4, 3, 24, 24)
    changed = frames.clone()
    changed[1] = 0
    with torch.no_grad():
        same = (encoder(frames) == encoder(changed)).all(1)
        one_by_one = torch.cat([encoder(snippet[None]) for snippet in frames])
        assert torch.allclose(encoder(frames), one_by_one, atol=1e-6)
    assert same.tolist() == [True, False, True]


def test_a_frame_reaches_later_and_earlier_frames_only_with_the_shift():
    frames = torch.randn(1, 4, 3, 24, 24)
    changed = frames.clone()
    changed[:, 1] += 1
    for name, reach in (("tsm-toy", [True] * 4), ("resnet-toy", [False, True, False, False])):
        encoder = build_encoder(name, seed=0).eval()
        with torch.no_grad():
            moved = encoder.frame_features(frames) != encoder.frame_features(changed)
        assert moved.any(2)[0].tolist() == reach


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.named_buffers()}


@pytest.mark.parametrize("name", ["tsm-toy", "r2plus1d-18"])
def test_frozen_statistics_survive_every_train_and_eval(name):
    encoder = build_encoder(name, seed=0)
    freeze_batch_norm(encoder)
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(encoder.channels, 1)})
    before, digest = statistics(encoder), encoder_hash(encoder)
    frames = torch.randn(1, 2, 3, 16, 16)
    outputs = []
    for call in (model.train, encoder.train, model.eval, lambda: model.eval().train()):
        call()
        outputs.append(encoder(frames).detach())
    for module in encoder.modules():
        module.training = True  # not even this
    outputs.append(encoder(frames).detach())
    assert all(torch.equal(outputs[0], output) for output in outputs)
    assert all(torch.equal(before[key], value) for key, value in statistics(encoder).items())
    assert encoder_hash(encoder) == digest
    frozen = {key for key, p in encoder.named_parameters() if not p.requires_grad}
    layers = {key for key, m in encoder.named_modules() if isinstance(m, BatchNorm)}
    assert frozen == {f"{key}.{part}" for key in layers for part in ("weight", "bias")}


@pytest.mark.parametrize("norm_first", [True, False])
def test_partial_freezing_is_reversible_in_any_order(norm_first):
    encoder = build_encoder("tsm-toy", seed=0)
    if norm_first:
        freeze_batch_norm(encoder)
    freeze_until(encoder, "layer2")
    if not norm_first:
        freeze_batch_norm(encoder)
    trained = {key for key, parameter in encoder.named_parameters() if parameter.requires_grad}
    block = "layer3.0"
    assert trained == {
        f"{block}.conv1.weight",
        f"{block}.conv2.weight",
        f"{block}.downsample.0.weight",
    }
    freeze_until(encoder, None)
    norms = [m for m in encoder.modules() if isinstance(m, BatchNorm)]
    assert all(m.frozen for m in norms)
    held = {id(p) for m in norms for p in m.parameters()}
    assert all(p.requires_grad != (id(p) in held) for p in encoder.parameters())


def test_frozen_stages_keep_no_graph_and_no_statistics():
    encoder = build_encoder("tsm-toy", seed=0)
    freeze_until(encoder, "layer1")
    before = statistics(encoder)
    graphs = []
    encoder.layer1[0].register_forward_hook(lambda _m, _i, out: graphs.append(out.requires_grad))
    encoder.train()(torch.randn(1, 2, 3, 16, 16)).sum().backward()
    assert graphs == [False]
    assert encoder.conv1.weight.grad is None and encoder.layer2[0].conv1.weight.grad is not None
    changed = {key for key, v in statistics(encoder).items() if not torch.equal(before[key], v)}
    assert {key.split(".")[0] for key in changed} == {"layer2", "layer3"}


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown encoder 'r18'; known: tsm-r18, .*tsm-toy"):
        build_encoder("r18")
    with pytest.raises(ValueError, match="stages: stem, layer1, layer2, layer3$"):
        freeze_until(build_encoder("tsm-toy"), "layer4")
    with pytest.raises(ValueError, match="Linear"):
        freeze_batch_norm(nn.Linear(1, 1))


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = build_encoder("tsm-toy", seed=7), build_encoder("tsm-toy", seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert encoder_hash(first) == encoder_hash(second)
    assert encoder_hash(build_encoder("tsm-toy", seed=8)) != encoder_hash(first)
    spread = first.layer3[0].conv2.weight.detach().std()  # fan out 64·9
    assert float(spread) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["tsm-toy", "tsm-r18"])
def test_two_runs_are_equal_to_the_last_bit(name):
    runs = []
    for _ in range(2):
        encoder = build_encoder(name, seed=0)
        freeze_batch_norm(encoder)
        generator = torch.Generator().manual_seed(1)
        encoder(torch.randn(2, 4, 3, 32, 32, generator=generator)).square().sum().backward()
        runs.append([p.grad for p in encoder.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def gradients(encoder: nn.Module, frames: torch.Tensor) -> list[torch.Tensor]:
    """The features and the gradient of every convolution for one fixed loss."""
    encoder.zero_grad(set_to_none=True)
    features = encoder.train()(frames)
    features.square().sum().backward()
    return [features.detach(), *(p.grad for p in encoder.parameters() if p.dim() > 1)]


@pytest.mark.parametrize(("name", "pixels"), [("tsm-toy", 24), ("tsm-r50", 16), ("r2plus1d-18", 8)])
def test_recomputing_and_folding_change_no_gradient(name, pixels):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(1, 4, 3, pixels, pixels, generator=generator)
    encoder = build_encoder(name, seed=0)
    for module in encoder.modules():
        if isinstance(module, BatchNorm):
            for tensor in (*module.parameters(), module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    freeze_batch_norm(encoder)
    plain = gradients(encoder, frames)
    encoder.recompute = True
    recomputed = gradients(encoder, frames)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    before = statistics(encoder)
    freeze_batch_norm(encoder, fold=True)
    encoder.double()
    folded = gradients(encoder, frames.double())
    freeze_batch_norm(encoder)
    plain = gradients(encoder, frames.double())
    assert max(relative(a, b) for a, b in zip(folded, plain, strict=True)) < 1e-12
    assert all(torch.equal(before[key], value.float()) for key, value in encoder.named_buffers())


def test_channels_last_and_bfloat16_give_the_same_features():
    encoder = build_encoder("tsm-r18", seed=0).eval()
    clip = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        plain = encoder(normalise(clip, encoder))
        encoder.to(memory_format=torch.channels_last)
        frames = normalise(clip, encoder)
        assert frames.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert relative(encoder(frames), plain) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(frames)
    assert rounded.dtype == torch.float32  # averaged over frames in full precision
    assert 1e-5 < relative(rounded, plain) < 0.05


@pytest.mark.parametrize("name", ["tsm-toy", "r2plus1d-18", "efficientnet-lite0"])
@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_features_of_folded_norms_are_those_of_norms_apart(name, amp):
    encoder = build_encoder(name, seed=0)
    draws = torch.Generator().manual_seed(1)
    norms = [part for part in encoder.modules() if isinstance(part, BatchNorm)]
    for norm in norms:  # those of a new network change nothing
        for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            values.add_(0.3 * torch.rand(values.shape, generator=draws))
    freeze_until(encoder.eval(), encoder.stages[0])  # some are frozen, some only in eval mode
    clip = torch.randint(0, 256, (3, 4, 3, 48, 48), dtype=torch.uint8, generator=draws)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.no_grad():
        exact = encode(encoder, clip[None])[0]
        with autocast(amp, "cpu"):
            apart = encode(encoder, clip[None])[0].float()
    found = clip_features(encoder, clip, amp=amp)
    assert 0 < relative(found, exact) < max(1e-5, 1.5 * relative(apart, exact))
    alone = clip_features(encoder, clip, chunk=1, amp=amp)
    if name != "r2plus1d-18":  # of 3-D convolutions torch takes another kernel for one snippet
        assert torch.equal(alone, found)
    assert relative(alone, found) < (1e-5 if amp == "fp32" else 0.02)
    assert not any(norm.folded or norm.made is not None for norm in norms)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    freeze_until(encoder.train(), None)  # statistics of the batch cannot be folded
    with torch.no_grad():
        live = encode(encoder, clip[None])[0]
    encoder.load_state_dict(before)
    assert torch.equal(clip_features(encoder.train(), clip, chunk=3), live)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 7, 3, 4, 5)])
def test_normalise_scales_each_colour(shape):
    encoder = build_encoder("tsm-toy")
    clip = torch.randint(0, 256, shape, dtype=torch.uint8)
    kept, out = clip.clone(), normalise(clip, encoder)
    assert torch.equal(clip, kept) and out.shape == clip.shape and out.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(encoder.mean, encoder.std, strict=True)):
        expected = (clip[..., channel, :, :] / 255 - mean) / std
        assert torch.allclose(out[..., channel, :, :], expected, atol=1e-6)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\)"):
        build_encoder("tsm-toy")(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="uint8"):
        normalise(torch.zeros(2, 3, 16, 16), build_encoder("tsm-toy"))
    with pytest.raises(ValueError, match="7 frames"):
        temporal_shift(torch.zeros(7, 8, 1, 1), 2, 8)


def test_hash_depends_on_weights_and_name_only():
    encoder = build_encoder("tsm-toy", seed=0)
    digest = encoder_hash(encoder)
    assert encoder_hash(encoder.to(memory_format=torch.channels_last)) == digest
    same_weights = build_encoder("resnet-toy", seed=0)  # without shift: another function
    assert torch.equal(same_weights.conv1.weight, encoder.conv1.weight)
    assert encoder_hash(same_weights) != digest
    encoder.layer1[0].bn1.running_var[3] += 1e-6
    assert encoder_hash(encoder) != digest
