"""The G-TAD head: released numbers, the plain head, any length, determinism, checkpoints."""

import math

import numpy as np
import pytest
import torch
from reference_networks import (
    PlainGTAD,
    fill,
    read,
    reference_input,
    reference_uniform,
    reference_weight,
    rows_of,
    uniform,
)

from lofi.heads import GTAD, Targets, load_published, loss, published_state_dict, valid_mask
from lofi.heads.gtad import nearest_snippets

NETWORKS = [
    "gtad_anet_f400_L100",
    "gtad_anet_f512_L100",
    "gtad_anet_f512_L25",
    "gtad_anet_f512_L25_k3",
    "gtad_anet_f64_L25_style0",
    "gtad_anet_f64_L25_style2_samp2",
    "gtad_thumos_f64_L64_D16",
    "gtad_thumos_f2048_L256_D64",
]
CONTEXT_OF_STYLE = ("none", "neighbours", "layers")


def reference_head(model: dict) -> GTAD:
    options = model["opt"]
    thumos = model["branch"] == "master"
    head = GTAD(
        options["feat_dim"],
        options["temporal_scale"],
        options["max_duration"],
        "thumos" if thumos else "anet",
        head_kernel=None if thumos else options["kern_2d"],
        context=CONTEXT_OF_STYLE[options["goi_style"]],
        samples_per_bin=options["goi_samp"],
    )
    fill(head, model["weight_salt"])
    return head


def toy(**options) -> GTAD:
    torch.manual_seed(0)
    sizes = {"hidden": 32, "paths": 4, "map_hidden": (16, 8), "resolution": 8}
    return GTAD(16, **(sizes | {"context_resolution": 4} | options))


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_equal_the_released_network(golden, name):
    model = read(golden("gtad_models.json"))[name]
    head = reference_head(model)
    with np.load(golden(f"{name}.npz")) as z, torch.no_grad():
        maps = head(reference_input(model))
        tolerances = {"conf": 3e-6, "start": 1e-6, "end": 1e-6}
        for (key, tolerance), ours in zip(tolerances.items(), maps):
            np.testing.assert_allclose(ours.numpy(), z[key], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["gtad_anet_f512_L100", "gtad_anet_f64_L25_style2_samp2"])
def test_neighbours_equal_the_released_ones_as_sets(golden, name):
    model = read(golden("gtad_models.json"))[name]
    head = reference_head(model)
    with np.load(golden(f"{name}.npz")) as z, torch.no_grad():
        trunk = head.trunk(reference_input(model))
        graphs = [*trunk.graphs, trunk.graphs[1], trunk.graphs[1]]
        if len(z["knn_idx"]) == 5:
            graphs.append(nearest_snippets(trunk.refined, 3))
        for ours, released in zip(graphs, z["knn_idx"], strict=True):
            np.testing.assert_array_equal(ours.sort(2).values.numpy(), np.sort(released, 2))
        features = trunk.refined.transpose(1, 2).numpy()
        key, part = ("gcn_feature", features)
        if key not in z:
            key, part = "gcn_feature_b0c32", features[0, :32]
        np.testing.assert_allclose(part, z[key], rtol=0, atol=3e-6 * np.abs(z[key]).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_those_of_the_released_network_and_loss(golden, name):
    model = read(golden("gtad_models.json"))[name]
    head = reference_head(model)
    iou, start, end = _labels(golden, model["targets"][0])
    iou = iou * valid_mask(iou.shape[2], iou.shape[1])
    x = reference_input(model).requires_grad_()
    with np.load(golden(f"{name}.npz")) as z:
        draws = torch.stack([uniform(z["rand_first_u16"]), uniform(z["rand_second_u16"])], 1)
        rule = "thumos" if model["branch"] == "master" else "anet"
        targets = Targets(iou, start, end, torch.zeros_like(iou, dtype=torch.bool))
        losses = loss(head(x), targets, rule=rule, draws=draws)
        expected = model["losses_fp64"]
        expected["node"] = expected.get("node", expected.get("tem"))
        for ours, key in zip(losses, ("total", "node", "reg", "cls"), strict=True):
            assert ours.item() == pytest.approx(expected[key], rel=2e-6)
        losses.total.backward()
        tolerance = 1e-5 if x.shape[2] <= 64 else 3e-4
        for axis, key in ((1, "input_grad_norm_bt"), (2, "input_grad_norm_bc")):
            expected = z[key]
            np.testing.assert_allclose(
                x.grad.norm(dim=axis).numpy(), expected, atol=tolerance * expected.max(), rtol=0
            )
        if "input_grad" in z:
            largest = np.abs(z["input_grad"]).max()
            np.testing.assert_allclose(x.grad, z["input_grad"], atol=tolerance * largest, rtol=0)
    for key, parameter in head.named_parameters():
        assert parameter.grad.double().norm().item() == pytest.approx(
            model["param_grad_norm"][key], rel=10 * tolerance
        ), key


def _labels(golden, source: str):
    """(iou, start, end) of the rows of a label file that a model's description names."""
    file, rows = source.split()[0], rows_of(source)
    prefix = "gtad_" if file.startswith("labels") else source.split()[1].removesuffix("*")
    with np.load(golden(file)) as z:
        return [torch.from_numpy(z[prefix + key][rows]) for key in ("iou", "start", "end")]


def test_sums_of_the_specification(golden):
    """Whole head in float64 with the closed-form weights of the specification, section 10."""

    def u(n: int, i: int) -> torch.Tensor:
        j = torch.arange(n, dtype=torch.int64)
        return 2 * ((31 * j * j + 17 * j + 101 * i + 7) % 1009).double() / 1009 - 1

    head = GTAD(16, 25).double()
    published = {}
    for i, (name, value) in enumerate(published_state_dict(head).items()):
        scale = math.sqrt(6 / value[0].numel()) if value.ndim > 1 else 0.1
        published[name] = u(value.numel(), i).view_as(value) * scale
    order = list(published)
    assert order.index("regu_s.0.tconvs.0.weight") < order.index("regu_e.0.tconvs.0.weight")
    assert order.index("regu_e.1.bias") < order.index("backbone2.0.tconvs.0.weight")
    load_published(head, published)
    for snippets, sums in ((25, (594.9393801439, 716.0672319302, 22.4707695871, 28.7872247585)),):
        x = u(2 * 16 * snippets, 5).view(2, 16, snippets)
        with torch.no_grad():
            maps, trunk = head(x), head.trunk(x)
        assert trunk.base.sum().item() == pytest.approx(7567.2554699475, abs=1e-7)
        assert trunk.refined.sum().item() == pytest.approx(13701.2968985141, abs=1e-7)
        ours = [maps.confidence[:, 0], maps.confidence[:, 1], maps.start, maps.end]
        assert [m.sum().item() for m in ours] == pytest.approx(sums, abs=1e-8)
        assert maps.confidence[1, :, 24, 0].tolist() == pytest.approx([0.4197961448, 0.5699289447])


@pytest.mark.parametrize(
    "options", [{}, {"head_kernel": 3}, {"variant": "thumos", "durations": 5}, {"context": "none"}]
)
def test_float64_maps_and_gradients_equal_the_plain_head(options):
    lean = toy(**options).double()
    plain = PlainGTAD(lean).double()
    x = torch.randn(2, 16, 9, dtype=torch.float64)
    results = []
    for head in (lean, plain):
        y = x.clone().requires_grad_()
        maps = head(y)
        weights = [torch.linspace(-1, 1, m.numel()).view_as(m).double() for m in maps]
        sum((m * w).sum() for m, w in zip(maps, weights)).backward()
        results.append((maps, y.grad, head))
    (maps, grad, _), (maps_plain, grad_plain, _) = results
    for a, b in zip(maps, maps_plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    torch.testing.assert_close(grad, grad_plain, rtol=0, atol=1e-12 * grad_plain.abs().max().item())
    sampled = lean.localization[0]
    for name, expected in plain.named_parameters():
        ours = lean.get_parameter(name).grad
        if name == "localization.0.weight":
            ours = sampled.to_published(ours)
        tolerance = 1e-12 * max(expected.grad.abs().max().item(), 1e-3)
        torch.testing.assert_close(ours, expected.grad, rtol=0, atol=tolerance, msg=name)


def test_parameter_counts_are_those_of_the_paper_setting():
    count = {c: sum(p.numel() for p in GTAD(c).parameters()) for c in (400, 512, 2048)}
    assert count == {400: 5_563_268, 512: 5_584_772, 2048: 5_879_684}
    assert sum(p.numel() for p in GTAD(2048, variant="thumos").parameters()) == 5_617_540
    stale = GTAD(400, head_kernel=3, context_resolution=32)
    assert sum(p.numel() for p in stale.parameters()) == 9_495_428


def test_names_and_shapes_are_those_of_released_checkpoints(golden):
    released = read(golden("gtad_state_dicts.json"))
    for name, variant in (
        ("gtad_anet_f400_L100", "anet"),
        ("gtad_thumos_f2048_L256_D64", "thumos"),
    ):
        head = GTAD(400 if variant == "anet" else 2048, variant=variant)
        ours = {k: list(v.shape) for k, v in published_state_dict(head).items()}
        assert ours == {name: shape for name, shape, *_ in released[name]["state_dict"]}


def test_one_head_runs_at_any_length_and_keeps_no_trace_of_it():
    head = toy()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    for snippets in (1, 2, 8, 25, 50):
        maps = head(torch.randn(1, 16, snippets))
        assert maps.confidence.shape == (1, 2, snippets, snippets)
        assert maps.start.shape == maps.end.shape == (1, snippets)
        assert all(torch.isfinite(m).all() and ((m > 0) & (m < 1)).all() for m in maps)
    after = head.state_dict()
    assert list(before) == list(after) == [name for name, _ in head.named_parameters()]
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_long_windows_and_fewer_durations():
    head = toy(durations=16, variant="thumos", resolution=None, context_resolution=None)
    assert head(torch.randn(1, 16, 256)).confidence.shape == (1, 2, 16, 256)
    assert head(torch.randn(1, 16, 10)).confidence.shape == (1, 2, 10, 10)


def test_two_runs_give_the_same_bits():
    head = GTAD(64, head_kernel=3)
    x = torch.randn(2, 64, 30)
    runs = []
    for _ in range(2):
        head.zero_grad()
        y = x.clone().requires_grad_()
        maps = head(y)
        sum(m.square().sum() for m in maps).backward()
        runs.append([*maps, y.grad, *(p.grad for p in head.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_videos_of_a_batch_do_not_mix():
    head, x = toy(), torch.randn(3, 16, 40)
    together = head(x)
    for i in range(3):
        for one, all_ in zip(head(x[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_[i], rtol=0, atol=1e-6)


def test_bfloat16_autocast_stays_near_float32():
    head, x = toy(), torch.randn(2, 16, 20)
    with torch.autocast("cpu", torch.bfloat16):
        low = head(x)
        sum(m.mean() for m in low).backward()
    for a, b in zip(low, head(x), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_without_gradient_the_maps_are_the_same():
    head, x = toy(), torch.randn(3, 16, 20)
    with torch.no_grad():
        quiet = head(x)
    assert all(torch.equal(a, b) for a, b in zip(quiet, head(x), strict=True))


def test_released_checkpoint_survives_a_round_trip():
    head, other = toy(), toy(head_kernel=1)
    published = published_state_dict(head)
    assert published["localization.0.weight"].shape == (16, 32 * 12, 1, 1)
    load_published(
        other, {"epoch": 9, "state_dict": {"module." + k: v for k, v in published.items()}}
    )
    for name, value in published_state_dict(other).items():
        assert torch.equal(value, published[name]), name
    weight = reference_weight("localization.0.weight", (16, 32 * 12, 1, 1), 0)
    # Channel-major: sample r of channel c is input c * 12 + r.
    assert torch.equal(
        head.localization[0].from_published(weight)[5, 7], weight[:, 5 * 12 + 7, 0, 0]
    )


def test_checkpoints_that_do_not_fit_are_refused_by_name():
    head = toy()
    published = published_state_dict(head)
    broken = dict(published)
    del broken["regu_s.1.bias"]
    broken["extra.weight"] = torch.zeros(1)
    broken["localization.2.weight"] = torch.zeros(3, 3, 1, 1)
    with pytest.raises(ValueError) as error:
        load_published(head, broken)
    for part in ("missing regu_s.1.bias", "unexpected extra.weight", "localization.2.weight (3, 3"):
        assert part in str(error.value)
    assert all(torch.equal(v, published[k]) for k, v in published_state_dict(head).items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": 6}, "multiples of 4"),
        ({"variant": "hacs9"}, "variant is 'hacs9'"),
        ({"context": "all"}, "context is 'all'"),
        ({"head_kernel": 2}, "head_kernel is 2"),
        ({"durations": 0}, "durations is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GTAD(**({"channels": 8} | options))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"expected \(videos, 16, snippets\)"):
        toy()(torch.zeros(2, 8, 10))
    with pytest.raises(ValueError, match="expected"):
        toy()(torch.zeros(2, 16, 0))


def test_uniform_numbers_follow_the_recipe(golden):
    name = "gtad_anet_f64_L25_style0"
    model = read(golden("gtad_models.json"))[name]
    with np.load(golden(f"{name}.npz")) as z:
        shape = z["rand_first_u16"].shape
        made = reference_uniform(model["uniform_tags"][0], model["uniform_salt"], shape)
        assert torch.equal(made, uniform(z["rand_first_u16"]))


@pytest.mark.parametrize("amp", [False, True])
def test_memory_planning_may_run_the_head_on_fake_tensors(amp):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        head, x = toy(head_kernel=3), torch.randn(2, 16, 21)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            maps = head(x)
        sum(m.sum() for m in maps).backward()
    assert maps.confidence.shape == (2, 2, 21, 21)
    assert type(toy(head_kernel=3)(torch.randn(2, 16, 21)).confidence) is torch.Tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("head_kernel", [1, 3])
def test_gpu_agrees_with_cpu_and_repeats_its_gradients(head_kernel):
    head, x = toy(head_kernel=head_kernel), torch.randn(2, 16, 30)
    expected = head(x)
    head, x = head.cuda(), x.cuda()
    runs = []
    for _ in range(2):
        head.zero_grad()
        maps = head(x)
        sum(m.square().sum() for m in maps).backward()
        runs.append([*maps, head.localization[0].weight.grad, head.backbone1[0].weight.grad])
    for ours, cpu in zip(runs[0], expected):
        torch.testing.assert_close(ours.cpu(), cpu, rtol=0, atol=1e-5)
    if head_kernel == 1:  # 3x3 kernels: up to the convolution library
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
