"""Sampling of anchors: against brute force, released operators and hand-sized numbers."""

import json
import math

import numpy as np
import pytest
import torch
from reference_networks import align_plain, bmn_weights

from lofi.heads import anchors


def dense(entries: anchors.Entries) -> np.ndarray:
    """(rows, positions, snippets)."""
    matrix = np.zeros((entries.rows, entries.positions, entries.snippets))
    np.add.at(matrix, (entries.row, entries.position, entries.snippet), entries.weight)
    return matrix


def brute_force(low, high, snippets, resolution, samples=0):
    """(resolution, snippets) weights of one region, point by point."""
    weights = np.zeros((resolution, snippets))
    width = max(high - low, 1.0) / resolution
    count = samples or math.ceil(width)
    for r in range(resolution):
        for i in range(count):
            at = low + r * width + (i + 0.5) * width / count
            if at < -1 or at > snippets:
                continue
            at = max(at, 0.0)
            left = int(at)
            if left >= snippets - 1:
                weights[r, snippets - 1] += 1 / count
            else:
                weights[r, left] += (1 - (at - left)) / count
                weights[r, left + 1] += (at - left) / count
    return weights


HAND = [  # low, high, samples, values of the ramp 1..10, resolution 4
    (-0.5, 0.5, 0, [1, 1, 1.125, 1.375]),
    (4.5, 5.5, 0, [5.625, 5.875, 6.125, 6.375]),
    (-1.5, 4.5, 0, [0.5, 1.75, 3.25, 4.75]),
    (7, 12, 0, [8.625, 9.78125, 5, 0]),
    (0, 0, 0, [1.125, 1.375, 1.625, 1.875]),
    (-3, 12, 0, [0.5703125, 3.625, 7.375, 4.9296875]),
    (-3, 12, 1, [0, 3.625, 7.375, 0]),
]


@pytest.mark.parametrize("low, high, samples, expected", HAND)
def test_aligner_on_a_ramp(low, high, samples, expected):
    weights = dense(anchors.align_samples(np.array([[low, high]]), 10, 4, samples))[0]
    np.testing.assert_allclose(weights @ np.arange(1.0, 11.0), expected, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    ["T10_P10_r0", "T25_P32_r0", "T25_P4_r0", "T25_P32_r2", "T100_P32_r0", "T100_P16_r1"]
    + ["T7_P8_r3_f64", "T1_P4_r0"],
)
def test_aligner_equals_the_released_operator_on_hostile_regions(golden, case):
    options = json.loads(golden("align1d.json").read_text())[case]
    with np.load(golden("align1d.npz")) as z:
        data = {k.split("/")[1]: z[k] for k in z.files if k.startswith(case + "/")}
    regions = data["rois"].astype(np.float64)
    entries = anchors.align_samples(
        regions[:, 1:], options["T"], options["pooled"], options["sampling_ratio"]
    )
    weights = dense(entries)
    sampled = np.einsum("krn,kcn->kcr", weights, data["input"][regions[:, 0].astype(int)])
    # The operator computes positions in float32, we in float64: allow 2e-6 of the largest value.
    largest = np.abs(data["output"]).max()
    np.testing.assert_allclose(sampled, data["output"], atol=2e-6 * largest)
    grad_out = (data["grad_out_u16"] + 0.5) / 65536 - 0.5
    grad = np.zeros(data["input"].shape)
    per_region = np.einsum("krn,kcr->kcn", weights, grad_out)
    np.add.at(grad, regions[:, 0].astype(int), per_region)
    largest = np.abs(data["grad_input"]).max()
    np.testing.assert_allclose(grad, data["grad_input"], atol=2e-6 * largest)


@pytest.mark.parametrize(
    "snippets, durations, name", [(5, 5, "anet_t5_d5"), (6, 4, "master_t6_d4")]
)
def test_regions_are_those_of_the_released_anchor_table(golden, snippets, durations, name):
    with np.load(golden("align1d.npz")) as z:
        table = z[f"anchors_{name}_bs2"][: snippets * durations, 1:]
    table = table.reshape(snippets, durations, 2).transpose(1, 0, 2)  # start-major as released
    regions = anchors.gtad_regions(snippets, durations)
    valid = anchors.valid_cells(snippets, durations)
    np.testing.assert_array_equal(regions[:-1], table[valid])
    np.testing.assert_array_equal(table[~valid], np.broadcast_to(regions[-1], table[~valid].shape))


@pytest.mark.parametrize("snippets, durations, inner, context", [(7, 7, 8, 4), (9, 4, 16, 16)])
def test_anchor_weights_equal_brute_force(snippets, durations, inner, context):
    entries = anchors.gtad_entries(snippets, durations, inner, context, 0)
    weights, regions = dense(entries), anchors.gtad_regions(snippets, durations)
    for row, region in zip(weights, regions, strict=True):
        expected = brute_force(*region, snippets, inner)
        if context != inner:  # equal resolutions share their places
            expected = np.concatenate([expected, brute_force(*region, snippets, context)])
        np.testing.assert_allclose(row, expected, atol=1e-14)


def test_plain_aligner_equals_brute_force_and_passes_gradcheck():
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    out = align_plain(x, 6, 4)
    for d in range(6):
        for s in range(6):
            half = 0.5 * (d + 1)
            region = (s - half, s + d + half) if s + d < 6 else (0.0, 0.0)
            expected = x @ torch.from_numpy(brute_force(*region, 6, 4)).T
            torch.testing.assert_close(out[:, :, :, d, s], expected)
    assert torch.autograd.gradcheck(lambda x: align_plain(x, 4, 3), x)


def test_bmn_weights_equal_the_numbers_of_the_released_matrix():
    matrix = dense(anchors.bmn_entries(20, 32, 3, 0.5, "master"))
    cells = np.argwhere(anchors.bmn_cells(20, "master")).tolist()
    assert matrix.sum() == pytest.approx(5839.917553, abs=2e-5)  # released: rounded to float32
    first = matrix[cells.index([0, 0])]
    assert first[0, 0] == pytest.approx(0.666667, abs=1e-6)
    assert first[31, 1:3] == pytest.approx([0.031579, 0.968421], abs=1e-6)
    assert matrix[cells.index([3, 7])].sum() == pytest.approx(32)
    assert matrix[cells.index([0, 19])].sum() == pytest.approx(15.670176, abs=1e-6)
    assert matrix[cells.index([19, 19])].sum() == pytest.approx(16)
    assert matrix[-1].sum() == 0
    older = anchors.bmn_entries(20, 32, 3, 0.5, "2019")
    assert older.weight.sum() == pytest.approx(6064.563167, abs=1e-5)


def test_bmn_weights_equal_the_plain_matrix():
    expected = bmn_weights(9, 5, 3, 0.25).permute(1, 2, 0, 3).numpy()  # start, end, sample, snippet
    lean = dense(anchors.bmn_entries(9, 5, 3, 0.25, "master"))
    np.testing.assert_allclose(lean[:-1], expected[anchors.bmn_cells(9, "master")], atol=1e-14)


def layers_of(resolution, context, kernels=(1,), snippets=5, durations=5, channels=3):
    """A float64 sampled layer with convolutions behind it, features, sampler and map."""
    torch.manual_seed(0)
    released = (4, channels * (resolution + context), 1, 1)
    layers = [anchors.SampledLinear(channels, resolution, context, 4, released)]
    layers += [torch.nn.Conv2d(4, 4, k, padding=k // 2) for k in kernels]
    layers = torch.nn.ModuleList(layers).double()
    x = [torch.randn(2, snippets, channels).double().requires_grad_() for _ in range(2)]
    sampler = anchors.gtad_entries, snippets, durations, resolution, context, 0
    return layers, (x if context else [x[0], None]), sampler, (
        anchors.valid_cells, snippets, durations,
    )  # fmt: skip


def scores_of_the_dense_map(layers, x, regions, resolution, context):
    """Sampling first, then convolutions of the whole map, logits."""
    samples = []
    for source, count in zip(x, (resolution, context)):
        if count:
            matrix = np.stack([brute_force(*r, source.shape[1], count) for r in regions])
            samples.append(torch.einsum("krl,blc->bckr", torch.from_numpy(matrix), source))
    samples = torch.cat(samples, 3)  # (B, C, cells, R)
    y = torch.einsum("bckr,crh->bhk", samples, layers[0].weight) + layers[0].bias[:, None]
    y = y.unflatten(2, (-1, x[0].shape[1]))
    for layer in layers[1:]:
        y = layer(y.relu())
    return y.sigmoid()


LAYERS = [
    (4, 2, (1, 1)), (3, 3, (1, 1, 1)), (4, 0, (1, 3)), (4, 2, (1, 3, 3, 1)), (3, 3, (1, 3, 1))
]  # fmt: skip


@pytest.mark.parametrize("resolution, context, kernels", LAYERS)
def test_scores_equal_sampling_first_and_convolving_the_whole_map(resolution, context, kernels):
    layers, x, sampler, cells = layers_of(resolution, context, kernels)
    regions = np.zeros((25, 2))
    regions[anchors.valid_cells(5, 5).ravel()] = anchors.gtad_regions(5, 5)[:-1]
    expected = scores_of_the_dense_map(layers, x, regions, resolution, context)
    out = anchors.anchor_scores(*x, layers, sampler, cells)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    direction = torch.randn_like(out)
    sources = [*(part for part in x if part is not None), *layers.parameters()]
    found, wanted = (torch.autograd.grad(o, sources, direction) for o in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resolution, context, kernels", LAYERS[:4])
def test_scores_pass_gradcheck_and_leave_what_they_saved_as_it_was(resolution, context, kernels):
    layers, x, sampler, cells = layers_of(resolution, context, kernels, 4, 3)
    given = [part for part in x if part is not None]

    def scores(*features):
        both = features if context else (*features, None)
        return anchors.anchor_scores(*both, layers, sampler, cells)

    assert torch.autograd.gradcheck(scores, given)
    out = scores(*given).square().sum()
    first, second = (torch.autograd.grad(out, given[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_every_cell_takes_its_row_and_invalid_cells_share_the_last_one():
    cells = anchors.make_cells(anchors.valid_cells(4, 3), "cpu")
    assert cells.row_of_cell.view(3, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 9], [7, 8, 9, 9]]
    rows = torch.arange(10.0).view(1, 10, 1)
    assert torch.equal(cells.fill(rows)[0, :, :, 0], cells.row_of_cell.view(3, 4).float())
    assert cells.collect(torch.ones(1, 3, 4, 1)).flatten().tolist() == [1] * 9 + [3]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_plan_works_in_lower_precision_and_transposes(dtype, tolerance):
    plan = anchors.make_plan(anchors.gtad_entries(6, 6, 4, 2, 0), "cpu", dtype)
    matrix = torch.from_numpy(
        dense(anchors.gtad_entries(6, 6, 4, 2, 0))
    )  # rows, positions, snippets
    matrix = matrix.transpose(1, 2).flatten(1)
    table = torch.randn(36, 8).to(dtype)
    rows = plan.forward.of(table)
    assert rows.dtype == dtype
    assert (rows.double() - matrix @ table.double()).abs().max() < tolerance
    back = plan.transposed.of(rows)
    assert (back.double() - matrix.T @ rows.double()).abs().max() < 4 * tolerance


def test_plans_are_cached_per_dtype_and_never_hold_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    sampler = anchors.gtad_entries, 6, 6, 4, 2, 0
    with FakeTensorMode():
        fake = anchors.plan_for(sampler, torch.empty(1))
    real = anchors.plan_for(sampler, torch.empty(1))
    assert type(real.forward.weight) is torch.Tensor
    assert type(fake.forward.weight) is not torch.Tensor
    assert anchors.plan_for(sampler, torch.empty(2)) is real
    assert anchors.plan_for(sampler, torch.empty(1).double()).forward.weight.dtype == torch.float64


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="snippets is 0"):
        anchors.num_durations(0, None)
    with pytest.raises(ValueError, match="durations is 0"):
        anchors.num_durations(5, 0)
    assert anchors.num_durations(5, 64) == 5
