"""The loss: released numbers and failures, guards, exact micro-batches."""

import math

import numpy as np
import pytest
import torch
from reference_networks import read, reference_uniform, rows_of, uniform

from lofi.heads import (
    BMN,
    GTAD,
    Maps,
    Targets,
    collate_targets,
    draw,
    loss,
    loss_statistics,
    part_of,
    targets,
    valid_mask,
)
from lofi.heads.bmn import duration_start

FULL = ["anet_L25", "bmn_L25", "master_L64_D16_s5"]
BIG = ["anet_L100", "bmn_L100"]
EDGES = [
    "anet_edge_fewer_low_than_high",
    "anet_edge_no_iou_above_0.9",
    "anet_edge_no_iou_above_0.7",
    "anet_edge_empty",
    "anet_edge_no_start_positive",
    "anet_edge_saturated_predictions",
    "anet_edge_values_on_the_thresholds",
    "anet_edge_no_middle_iou",
    "master_edge_no_iou_above_0.9",
    "master_edge_empty",
    "bmn_edge_no_iou_above_0.9",
    "bmn_edge_empty",
]
COLLAPSE = ("anet_edge_fewer_low_than_high", "anet_edge_no_middle_iou")


def reference_case(golden, name: str):
    """(description, maps, targets, draws, rule) of a case, maps and targets in our layout."""
    case = read(golden("losses.json"))[name]
    with np.load(golden("losses.npz")) as z:
        data = {k.split("/")[1]: z[k] for k in z.files if k.startswith(name + "/")}
    if "gt_iou" not in data:
        file, rows = case["targets"].split()[0], rows_of(case["targets"])
        prefix = "bmn" if name.startswith("bmn") else "gtad"
        with np.load(golden(file)) as z:
            data |= {f"gt_{key}": z[f"{prefix}_{key}"][rows] for key in ("iou", "start", "end")}
        videos, durations, snippets = case["shape"]
        shapes = {"pred_conf": (videos, 2, durations, snippets)}
        for key in ("pred_conf", "pred_start", "pred_end"):
            shape = shapes.get(key, (videos, snippets))
            data[key] = reference_uniform(case["u16_tags"][key], case["u16_salt"], shape).numpy()
    tensors = {k: torch.from_numpy(v) for k, v in data.items() if v.dtype == np.float32}
    draws = torch.stack([uniform(data["rand_first_u16"]), uniform(data["rand_second_u16"])], 1)
    confidence, iou = tensors["pred_conf"], tensors["gt_iou"]
    if name.startswith("bmn"):
        confidence, iou, draws = (duration_start(t) for t in (confidence, iou, draws))
    iou = iou * valid_mask(iou.shape[2], iou.shape[1])
    maps = Maps(confidence, tensors["pred_start"], tensors["pred_end"])
    maps = Maps(*(m.detach().clone().requires_grad_() for m in maps))
    none = torch.zeros_like(iou, dtype=torch.bool)
    truth = Targets(iou, tensors["gt_start"], tensors["gt_end"], none)
    rule = "thumos" if name.startswith("master") else "anet"
    return case, tensors, maps, truth, draws, rule


@pytest.mark.parametrize("name", FULL + BIG + EDGES)
def test_terms_equal_the_released_loss_failures_included(golden, name):
    case, _, maps, truth, draws, rule = reference_case(golden, name)
    losses = loss(maps, truth, rule=rule, safe=False, draws=draws)
    for ours, key in zip(losses, ("total", "tem", "reg", "cls"), strict=True):
        expected = float(case["losses"][key])
        assert ours.item() == pytest.approx(expected, rel=2e-6, nan_ok=True), key


@pytest.mark.parametrize("name", FULL)
def test_gradients_equal_the_released_loss(golden, name):
    case, tensors, maps, truth, draws, rule = reference_case(golden, name)
    loss(maps, truth, rule=rule, draws=draws).total.backward()
    for key, prediction in zip(("conf", "start", "end"), maps, strict=True):
        expected = tensors[f"grad_{key}"]
        if key == "conf" and name.startswith("bmn"):
            expected = duration_start(expected)
        tolerance = 2e-6 * expected.abs().max().item()
        torch.testing.assert_close(prediction.grad, expected, rtol=0, atol=tolerance)
    norms = case["grad_norms"]
    assert maps.confidence.grad[:, 1].norm().item() == pytest.approx(norms["conf_ch1"], rel=2e-6)


@pytest.mark.parametrize("name", FULL + EDGES)
def test_guards_change_nothing_unless_the_released_loss_breaks(golden, name):
    case, _, maps, truth, draws, rule = reference_case(golden, name)
    losses = loss(maps, truth, rule=rule, draws=draws)
    losses.total.backward()
    assert all(torch.isfinite(m.grad).all() for m in maps)
    for ours, key in zip(losses, ("total", "tem", "reg", "cls"), strict=True):
        assert math.isfinite(ours.item())
        expected = float(case["losses"][key])
        broken = math.isnan(expected) or (name in COLLAPSE and key in ("reg", "total"))
        if not broken:
            assert ours.item() == pytest.approx(expected, rel=2e-6), key


def made_up(videos=4, snippets=12, seed=0, **options):
    """Maps and targets of a few random videos, float64."""
    rng = np.random.default_rng(seed)
    batch = []
    for i in range(videos):
        segments = np.sort(rng.uniform(0, 20, (i + 1, 2)), 1)
        batch.append(targets(segments, 20, snippets, **options))
    truth = collate_targets(batch)
    generator = torch.Generator().manual_seed(seed)
    shape = truth.iou.shape
    sizes = [(shape[0], 2, *shape[1:]), (shape[0], shape[2]), (shape[0], shape[2])]
    maps = [torch.rand(s, generator=generator, dtype=torch.float64) for s in sizes]
    return Maps(*(m.requires_grad_() for m in maps)), truth


@pytest.mark.parametrize("rule", ["anet", "thumos"])
@pytest.mark.parametrize("best_anchor", [False, True])
def test_micro_batches_add_up_to_the_whole_batch(rule, best_anchor):
    maps, truth = made_up()
    draws = draw(truth, torch.Generator().manual_seed(1))
    options = {"rule": rule, "best_anchor": best_anchor}
    whole = loss(maps, truth, draws=draws, **options)
    whole_grad = torch.autograd.grad(whole.total, maps)
    statistics = loss_statistics(truth, draws, best_anchor=best_anchor)
    totals = [0.0] * 4
    grads = [torch.zeros_like(m) for m in maps]
    for part in (slice(0, 1), slice(1, 4)):
        some = Maps(*(m[part] for m in maps))
        labels = Targets(*(t[part] for t in truth))
        losses = loss(some, labels, statistics=statistics, draws=draws[part], **options)
        for grad, more in zip(grads, torch.autograd.grad(losses.total, maps), strict=True):
            grad += more
        totals = [t + l.item() for t, l in zip(totals, losses, strict=True)]
    assert totals == pytest.approx([l.item() for l in whole], rel=1e-12)
    for ours, expected in zip(grads, whole_grad, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("head", [BMN(4, best_anchor=True), GTAD(4, variant="thumos")])
def test_heads_give_the_same_losses_by_name(head):
    maps, truth = made_up()
    draws = head.draws(4, truth, torch.Generator().manual_seed(1))
    assert torch.equal(draws, draw(truth, torch.Generator().manual_seed(1)))
    options = {"rule": head.loss_rule, "best_anchor": head.best_anchor}
    whole = loss(maps, truth, draws=draws, **options)
    statistics = head.statistics(truth, draws)
    parts = [
        head.losses(part_of(maps, part), part_of(truth, part), statistics, draws[part])
        for part in (slice(0, 3), slice(3, 4))
    ]
    assert list(parts[0]) == ["loss", "node", "regression", "classification"]
    sums = [sum(part[name].item() for part in parts) for name in parts[0]]
    assert sums == pytest.approx([term.item() for term in whole], rel=1e-12)


def test_workers_that_add_their_counts_get_the_statistics_of_all():
    _, truth = made_up()
    draws = draw(truth, torch.Generator().manual_seed(1))
    expected = loss_statistics(truth, draws)
    halves = [slice(0, 2), slice(2, 4)]
    labels = [Targets(*(t[half] for t in truth)) for half in halves]
    seen = {0: [], 1: []}  # what each of the two workers hands to `reduce`, in order

    def run(worker, answers):
        def reduce(counts):
            seen[worker].append(counts)
            return answers.pop(0) if answers else counts

        return loss_statistics(labels[worker], draws[halves[worker]], reduce=reduce)

    run(0, []), run(1, [])
    total = seen[0][0] + seen[1][0]
    kept = []
    for worker in (0, 1):
        seen[worker].clear()
        run(worker, [total])
        kept.append(seen[worker][1])
    final = run(0, [total, kept[0] + kept[1]])
    assert all(torch.equal(a, b) for a, b in zip(final, expected, strict=True))


@pytest.mark.parametrize("rule", ["anet", "thumos"])
def test_batch_of_one_without_ground_truth_is_finite_and_has_no_gradient_trap(rule):
    truth = collate_targets([targets([], 10, 8)])
    maps = Maps(*(torch.full(s, 0.5, requires_grad=True) for s in [(1, 2, 8, 8), (1, 8), (1, 8)]))
    losses = loss(maps, truth, rule=rule, generator=torch.Generator().manual_seed(0))
    losses.total.backward()
    assert all(math.isfinite(term.item()) for term in losses)
    assert all(torch.isfinite(m.grad).all() for m in maps)
    assert losses.node.item() == 0 and losses.regression.item() == 0


def test_best_anchor_makes_a_short_action_count():
    truth = collate_targets([targets([(5.3, 5.6)], 10, 8)])
    assert truth.iou.max() < 0.9
    maps = Maps(*(torch.full(s, 0.5, requires_grad=True) for s in [(1, 2, 8, 8), (1, 8), (1, 8)]))
    draws = draw(truth, torch.Generator().manual_seed(0))
    assert loss(maps, truth, draws=draws).classification.item() == 0
    losses = loss(maps, truth, draws=draws, best_anchor=True)
    # One positive among 36 cells weighs as much as the 35 negatives: ln 2 in all.
    assert losses.classification.item() == pytest.approx(math.log(2), rel=1e-5)
    losses.total.backward()
    grad = maps.confidence.grad[0, 1]
    assert grad[0, 4] < 0 and (grad < 0).sum() == 1


def test_draws_come_from_the_generator_and_keep_about_as_many_cells_as_are_high():
    truth = collate_targets([targets([(12, 47.5), (50, 51.2), (80, 119)], 120, 25)])
    first, again = (draw(truth, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (1, 2, 25, 25)
    kept = [
        loss_statistics(truth, draw(truth, torch.Generator().manual_seed(s))).kept.item()
        for s in range(200)
    ]
    assert np.mean(kept) == pytest.approx(3 * 24, rel=0.03)


def test_losses_of_the_specification():
    """Closed-form predictions of the specification, section 5, one video at 25 snippets."""

    def u(n, i):
        j = torch.arange(n, dtype=torch.int64)
        return (2 * ((31 * j * j + 17 * j + 101 * i + 7) % 1009).double() / 1009 - 1).float()

    truth = collate_targets([targets([(12, 47.5), (50, 51.2), (80, 119)], 120, 25)])
    maps = Maps(
        (0.5 + 0.4 * u(1250, 3)).view(1, 2, 25, 25),
        (0.5 + 0.4 * u(25, 4)).view(1, 25),
        (0.5 + 0.4 * u(25, 6)).view(1, 25),
    )
    only_high = torch.zeros(1, 2, 25, 25)
    losses = loss(maps, truth, draws=only_high)
    assert losses.node.item() == pytest.approx(1.5779698, rel=1e-6)
    assert losses.classification.item() == pytest.approx(0.7067918, rel=1e-6)
    assert losses.regression.item() == pytest.approx(0.0796816, rel=1e-5)
    thumos = loss(maps, truth, rule="thumos", draws=only_high)
    assert thumos.classification.item() == pytest.approx(0.4859951, rel=1e-6)
    assert thumos.total.item() == pytest.approx(1.5779698 + 0.0796816 + 4.859951, rel=1e-6)


def test_low_precision_predictions_are_judged_in_float32():
    maps, truth = made_up()
    low = Maps(*(m.detach().bfloat16() for m in maps))
    losses = loss(low, truth, draws=draw(truth, torch.Generator().manual_seed(0)))
    assert losses.total.dtype == torch.float32 and torch.isfinite(losses.total)


def test_mismatches_are_refused():
    maps, truth = made_up()
    with pytest.raises(ValueError, match="same snippets and durations"):
        loss(maps, made_up(snippets=10)[1])
    with pytest.raises(ValueError, match="rule is 'bmn'"):
        loss(maps, truth, rule="bmn")
    with pytest.raises(ValueError, match="without draws"):
        loss(maps, truth, statistics=loss_statistics(truth, draw(truth)))
