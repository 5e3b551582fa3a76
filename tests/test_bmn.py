"""The BMN head: released numbers, the plain head, layouts, determinism, checkpoints."""

import numpy as np
import pytest
import torch
from reference_networks import PlainBMN, fill, read, reference_input, rows_of, uniform

from lofi.heads import BMN, Targets, anchors, load_published, loss, published_state_dict
from lofi.heads.bmn import duration_start, start_end

NETWORKS = ["bmn_f400_L100", "bmn_f512_L25", "bmn_f64_L20_s8p2"]


def reference_head(model: dict) -> BMN:
    options = model["opt"]
    head = BMN(
        options["feat_dim"],
        samples=options["num_sample"],
        samples_per_bin=options["num_sample_perbin"],
        boundary_ratio=options["prop_boundary_ratio"],
    )
    fill(head, model["weight_salt"])
    return head


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_equal_the_released_network(golden, name):
    model = read(golden("bmn_models.json"))[name]
    head = reference_head(model)
    with np.load(golden(f"{name}.npz")) as z, torch.no_grad():
        maps = head(reference_input(model))
        ours = (start_end(maps.confidence), maps.start, maps.end)
        for key, value in zip(("conf", "start", "end"), ours, strict=True):
            np.testing.assert_allclose(value.numpy(), z[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_those_of_the_released_network_and_loss(golden, name):
    model = read(golden("bmn_models.json"))[name]
    head, x = reference_head(model), reference_input(model).requires_grad_()
    with np.load(golden(f"{name}.npz")) as z:
        if "target_iou" in z:
            labels = [torch.from_numpy(z[f"target_{key}"]) for key in ("iou", "start", "end")]
        else:
            rows = rows_of(model["targets"])
            with np.load(golden(model["targets"].split()[0])) as file:
                labels = [
                    torch.from_numpy(file[f"bmn_{key}"][rows]) for key in ("iou", "start", "end")
                ]
        iou = duration_start(labels[0])
        targets = Targets(iou, *labels[1:], torch.zeros_like(iou, dtype=torch.bool))
        draws = [duration_start(uniform(z[f"rand_{key}_u16"])) for key in ("first", "second")]
        losses = loss(head(x), targets, draws=torch.stack(draws, 1))
        for ours, key in zip(losses, ("total", "tem", "reg", "cls"), strict=True):
            assert ours.item() == pytest.approx(model["losses_fp64"][key], rel=2e-6)
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
        norm = parameter.grad.double().norm().item()
        assert norm == pytest.approx(model["param_grad_norm"][key], rel=10 * tolerance), key


def test_sampling_matrix_equals_the_released_one(golden):
    for name, arguments in (
        ("bmn_f512_L25", (25, 32, 3, 0.5)),
        ("bmn_f64_L20_s8p2", (20, 8, 2, 0.25)),
    ):
        snippets, samples = arguments[:2]
        entries = anchors.bmn_entries(*arguments, "master")
        cells = np.argwhere(anchors.bmn_cells(snippets, "master"))[entries.row]
        matrix = np.zeros((snippets, snippets, snippets, samples))
        matrix[cells[:, 0], cells[:, 1], entries.snippet, entries.position] = entries.weight
        with np.load(golden(f"{name}.npz")) as z:
            chosen = z["mask_cells"]
            ours = matrix[chosen[:, 0], chosen[:, 1]]
            np.testing.assert_allclose(ours, z["mask_at_cells"], atol=1e-6)
            np.testing.assert_allclose(matrix.sum((2, 3)), z["mask_weight_sum"], atol=1e-5)


def test_float64_maps_and_gradients_equal_the_plain_head():
    torch.manual_seed(0)
    lean = BMN(8, samples=6, samples_per_bin=2).double()
    plain = PlainBMN(lean, 7).double()
    x, results = torch.randn(2, 8, 7, dtype=torch.float64), []
    for head in (lean, plain):
        y = x.clone().requires_grad_()
        maps = head(y)
        weights = [torch.linspace(-1, 1, m.numel()).view_as(m).double() for m in maps]
        sum((m * w).sum() for m, w in zip(maps, weights)).backward()
        results.append((maps, y.grad))
    (maps, grad), (maps_plain, grad_plain) = results
    for a, b in zip(maps, maps_plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    torch.testing.assert_close(grad, grad_plain, rtol=0, atol=1e-12 * grad_plain.abs().max().item())
    for name, expected in plain.named_parameters():
        ours = lean.get_parameter(name).grad
        if name == "x_3d_p.0.weight":
            ours = lean.x_3d_p[0].to_published(ours)
        tolerance = 1e-12 * max(expected.grad.abs().max().item(), 1e-3)
        torch.testing.assert_close(ours, expected.grad, rtol=0, atol=tolerance, msg=name)


def test_layouts_are_one_to_one():
    scores = torch.arange(16.0).view(4, 4)  # (start, end)
    by_duration = duration_start(scores)
    assert by_duration[0].tolist() == [0, 5, 10, 15]  # one snippet: start equals end
    assert by_duration[2, :2].tolist() == [2, 7]  # three snippets from 0 and from 1
    assert torch.equal(start_end(by_duration), scores)
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(duration_start, x)
    with pytest.raises(ValueError, match="all durations"):
        start_end(torch.zeros(2, 3, 4))


def test_older_variant_and_fewer_durations():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 10)
    assert BMN(8, durations=4)(x).confidence.shape == (1, 2, 4, 10)
    older = BMN(8, variant="2019")(x)
    assert older.confidence.shape == (1, 2, 10, 10) and older.start.shape == (1, 10)
    full, part = BMN(8), BMN(8, durations=4)
    part.load_state_dict(full.state_dict())
    assert torch.equal(part(x).confidence, full(x).confidence[:, :, :4])


def test_parameter_counts_and_any_length():
    counts = {c: sum(p.numel() for p in BMN(c).parameters()) for c in (400, 512, 2048)}
    assert counts == {400: 4_978_564, 512: 5_000_068, 2048: 5_294_980}
    head = BMN(16, samples=4)
    for snippets in (1, 2, 25, 50):
        maps = head(torch.randn(1, 16, snippets))
        assert maps.confidence.shape == (1, 2, snippets, snippets)
        assert all(torch.isfinite(m).all() for m in maps)
    assert list(head.state_dict()) == [name for name, _ in head.named_parameters()]


def test_two_runs_give_the_same_bits():
    torch.manual_seed(0)
    head, x = BMN(16, samples=8), torch.randn(2, 16, 20)
    runs = []
    for _ in range(2):
        head.zero_grad()
        maps = head(x)
        sum(m.square().sum() for m in maps).backward()
        runs.append([*maps, *(p.grad for p in head.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_released_checkpoint_loads_without_its_sampling_matrix(golden):
    released = read(golden("bmn_state_dicts.json"))["bmn_f64_L20_s8p2"]["state_dict"]
    head = BMN(64, samples=8, samples_per_bin=2, boundary_ratio=0.25)
    state = {"module." + name: torch.randn(shape) for name, shape, *_ in released}
    assert "module.sample_mask" in state
    load_published(head, state)
    for name, value in published_state_dict(head).items():
        assert torch.equal(value, state["module." + name]), name


def test_bad_options_are_refused():
    for options, message in (
        ({"channels": 6}, "multiple of 4"),
        ({"variant": "2018"}, "variant is '2018'"),
        ({"samples": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            BMN(**({"channels": 8} | options))
