"""The seam of heads: the example that CONTRIBUTING shows, and what a configuration builds."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lofi.config import ActionFormerConfig, AMNetConfig, BMNConfig, GTADConfig, PostProcessing
from lofi.data import Segment, Video
from lofi.data.snippets import Grid
from lofi.heads import BMN, GTAD, Head, PointHead, Proposals, build_head, part_of, to_device

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def example() -> type[Head]:
    """The class `ClipMeans` as the code block of CONTRIBUTING.md defines it."""
    section = GUIDE.read_text().split("## Add a head")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert max(map(len, code.splitlines())) <= 100
    found = {}
    exec(compile(code, str(GUIDE), "exec"), found)
    return found["ClipMeans"]


def video(*segments: tuple[float, float]) -> Video:
    parts = tuple(Segment(start, end, "jump") for start, end in segments)
    return Video("v", None, 10.0, None, None, parts)


@pytest.fixture
def head() -> Head:
    torch.manual_seed(0)
    return example()(4)


def test_outputs_behind_the_end_of_a_video_are_outside(head):
    features = torch.randn(2, 4, 6)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    whole, masked = head(features), head(features, mask)
    assert isinstance(head, Head) and whole.logits.shape == (2, 6)
    torch.testing.assert_close(masked.logits[mask], whole.logits[mask])
    assert (masked.logits[~mask] < -20).all()


def test_targets_are_shares_of_steps(head):
    found = head.targets(video((0.5, 3.0), (9.0, 11.0), (5.0, 5.0)), Grid.whole(5, 10.0))
    assert found.inside.tolist() == [0.75, 0.5, 0.0, 0.0, 0.5]
    window = Grid.strided(20, stride=5, fps=5.0, num_frames=100).window(4, 5)
    assert head.targets(video((-1.0, 1.5)), window).inside.tolist() == [1.0, 0.5, 0, 0, 0]


def test_losses_of_parts_add_up_to_those_of_the_batch(head):
    targets = [head.targets(video((1, 4)), Grid.whole(5, 10.0))] * 2
    targets.append(head.targets(video(), Grid.whole(5, 10.0)))
    batch, outputs = head.collate(targets), head(torch.randn(3, 4, 5))
    draws = head.draws(3, batch, torch.Generator())
    assert batch.inside.shape == (3, 5) and len(draws) == 3
    statistics = head.statistics(batch, draws, lambda counts: counts)
    assert statistics.steps == 15
    whole = head.losses(outputs, to_device(batch, "cpu"), statistics, draws)["loss"]
    parts = [slice(0, 1), slice(1, 3)]
    losses = [
        head.losses(part_of(outputs, p), part_of(batch, p), statistics, draws[p])["loss"]
        for p in parts
    ]
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-6)
    whole.backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def test_proposals_are_runs_of_steps_in_seconds_of_the_video(head):
    outputs = type(head(torch.zeros(1, 4, 5)))(torch.tensor([[3.0, 1.0, -2.0, -2.0, 2.0]]))
    found = head.decode(outputs, Grid.whole(5, 10.0), PostProcessing())
    assert isinstance(found, Proposals)
    assert found.segments_s.tolist() == [[0, 4], [8, 10]]
    np.testing.assert_allclose(found.scores, [(0.952574 + 0.731059) / 2, 0.880797], atol=1e-6)
    window = Grid.strided(40, stride=10, fps=5.0, num_frames=400).window(3, 5)
    assert head.decode(outputs, window, PostProcessing()).segments_s.tolist() == [[6, 10], [14, 16]]
    nothing = head.decode(type(outputs)(torch.full((1, 5), -9.0)), window, PostProcessing())
    assert nothing.segments_s.shape == (0, 2) and nothing.scores.shape == (0,)


def test_a_few_steps_of_training_find_the_action(head):
    torch.manual_seed(0)
    grid, truth = Grid.whole(10, 10.0), video((2.0, 5.0))
    features = torch.randn(1, 4, 10) / 10
    features[0, 0, 2:5] += 3
    targets = head.collate([head.targets(truth, grid)])
    draws = head.draws(1, targets, torch.Generator())
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    for _ in range(60):
        statistics = head.statistics(targets, draws)
        optimizer.zero_grad()
        head.losses(head(features), targets, statistics, draws)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = head.decode(head(features), grid, PostProcessing())
    assert found.segments_s.tolist() == [[2, 5]] and found.scores[0] > 0.8


SMALL = GTADConfig(hidden=16, paths=2, map_hidden=(8, 8), resolution=4, durations=6)


@pytest.mark.parametrize(
    "config, kind, rules",
    [
        (SMALL, GTAD, ("anet", "anet")),
        (replace(SMALL, variant="thumos", best_anchor=True), GTAD, ("thumos", "thumos")),
        (BMNConfig(durations=6), BMN, ("bmn", "anet")),
    ],
)
def test_a_configuration_builds_a_head_of_its_kind_from_the_seed(config, kind, rules):
    first, again, other = (build_head(config, 8, seed=seed) for seed in (0, 0, 1))
    assert type(first) is kind and isinstance(first, Head) and first.channels == 8
    assert (first.label_rule, first.loss_rule) == rules
    assert first.best_anchor == config.best_anchor
    weights = [torch.cat([p.flatten() for p in h.parameters()]) for h in (first, again, other)]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
    features = torch.randn(1, 8, 10)
    maps = first(features, torch.ones(1, 10, dtype=torch.bool))  # as released: no use of a mask
    assert maps.confidence.shape == (1, 2, 6, 10)
    assert all(torch.equal(a, b) for a, b in zip(maps, first(features)))


@pytest.mark.parametrize(
    "config, classes",
    [
        (SMALL, ("jump", "run")),
        (BMNConfig(durations=6), ("jump", "run")),
        (ActionFormerConfig(hidden=16, heads=2, max_steps=64, drop_path=0.5), ("jump", "run")),
        (ActionFormerConfig(hidden=16, heads=2, max_steps=64, one_class=True), ("jump", "run")),
        (AMNetConfig(hidden=16, heads=2, max_steps=64, drop_path=0.5), ("jump", "run")),
        (AMNetConfig(hidden=16, heads=2, mask="binary", one_class=True), ("jump", "run")),
    ],
)
def test_every_head_trains_on_parts_and_decodes(config, classes):
    """The whole contract of `lofi/heads/base.py`, whatever the head."""
    head, grid = build_head(config, 8, classes), Grid.whole(10, 10.0)
    targets = [head.targets(video((1, 4)), grid), head.targets(video(), grid)]
    targets.append(head.targets(video((2, 9), (0, 3)), grid))
    batch, features = head.collate(targets), torch.randn(3, 8, 10)
    draws = head.draws(3, batch, torch.Generator().manual_seed(0))
    statistics = head.statistics(batch, draws, lambda counts: counts)
    given = [(features, None, draws)] if head.draws_in_forward else [(features,)]
    whole = head.losses(head(*given[0]), to_device(batch, "cpu"), statistics, draws)
    total = {name: 0.0 for name in whole}
    for part in (slice(0, 1), slice(1, 3)):
        more = (None, draws[part]) if head.draws_in_forward else ()
        outputs = head(features[part], *more)
        for name, value in head.losses(
            outputs, part_of(batch, part), statistics, draws[part]
        ).items():
            total[name] += value
    for name, value in whole.items():
        assert total[name].item() == pytest.approx(value.item(), rel=1e-5), name
    whole["loss"].backward()
    assert sum(p.grad.abs().sum() for p in head.parameters() if p.grad is not None) > 0
    with torch.no_grad():
        found = head.decode(head(features[:1]), grid, PostProcessing())
    assert found.segments_s.shape == (len(found.scores), 2) and len(found.scores)
    if isinstance(head, PointHead):
        assert found.labels.max() < (len(head.names) or 1)
