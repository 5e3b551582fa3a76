"""The vigour dial: only vigour changes, and the variance shares are what a hand finds."""

import numpy as np
import pytest
import torch
from lectures import dial_vigour, mean_error, read_vigour_off, study, variance_shares

from lofi.data.toyworld import TINY, plan_clips, render_clip


def test_a_clip_at_its_own_vigour_is_the_source_clip_itself():
    plan = next(p for p in plan_clips(TINY, 5) if p.subset == "validation")
    clips, labels = dial_vigour(TINY, 5, [0.0, plan.vigour], count=1)
    assert clips.shape == (2, 1, TINY.clip_frames, 3, 40, 40) and labels == [plan.label]
    own = np.moveaxis(render_clip(TINY, 5, plan), -1, 1)
    assert np.array_equal(clips[1, 0].numpy(), own)
    assert not torch.equal(clips[0], clips[1])


def test_scenery_far_from_the_actor_does_not_depend_on_vigour():
    clips, _ = dial_vigour(TINY, 5, [0.0, 1.0], count=8)
    moved = (clips[0].int() - clips[1].int()).abs().amax((1, 2))  # (N, S, S)
    assert (moved == 0).flatten(1).any(1).all()  # background and noise stay
    assert (moved > 30).flatten(1).any(1).all()  # the actor moves


@pytest.mark.parametrize("part", [0, 1, 2])
def test_features_that_follow_one_thing_have_all_their_variance_there(part):
    labels = ["a", "a", "b", "b"]
    by_class = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 4)
    by_scene = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(3, 4)
    by_vigour = torch.tensor([0.0, 1.0, 2.0])[:, None].expand(3, 4)
    x = (by_class, by_scene, by_vigour)[part]
    wanted = [float(i == part) for i in range(3)]
    assert list(variance_shares(x[..., None], labels)) == pytest.approx(wanted)


def test_equal_parts_share_equally_and_dead_channels_do_not_count():
    x = torch.zeros(2, 2, 2)
    x[:, 1, 0] += 1  # classes: variance 0.25
    x[1, :, 0] += 1  # vigour: variance 0.25
    shares = variance_shares(x, ["a", "b"])
    assert tuple(shares) == pytest.approx((0.5, 0.0, 0.5)) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(("strength", "low", "high"), [(1.0, 0.95, 1.0), (0.0, -0.2, 0.05)])
def test_the_read_out_finds_vigour_where_it_is_and_nowhere_else(strength, low, high):
    levels = (0.0, 0.25, 0.5, 0.75, 1.0)
    noise = torch.randn(5, 400, 6, generator=torch.Generator().manual_seed(0))
    features = 0.05 * noise + strength * torch.tensor(levels)[:, None, None]
    read, r2 = read_vigour_off(features, levels)
    assert read.shape == (5, 200) and low < r2 <= high
    assert bool((read.mean(1).diff() > 0.2).all()) == (strength > 0)


def test_the_published_study_has_every_encoder_on_the_same_seeds():
    found = study("tiny")
    assert set(found) == {"random", "acp", "acp+", "c-lofi", "vigour"}
    seeds = {tuple(mine["seed"]) for mine in found.values()}
    assert len(seeds) == 1 and len(seeds.pop()) >= 5
    for mine in found.values():
        for parts in zip(mine["label"], mine["scene"], mine["vigour"]):
            assert sum(parts) == pytest.approx(1, abs=2e-4)


def test_a_mean_comes_with_its_standard_error():
    assert mean_error([1.0, 2.0, 3.0]) == "2.00 ± 0.58"  # deviation 1 over the root of 3
