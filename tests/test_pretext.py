"""Pretext tasks without labels: what they show the encoder, and that nothing else gives them away.

The worlds here are moving dots: falling dots speed up, so their direction in time is visible.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lofi import config as configs
from lofi.data import TrimmedClip, VideoError, write_video
from lofi.data.toyworld import TINY, write_world
from lofi.encoders import build_encoder, normalise
from lofi.training import pretext
from lofi.training.augmentation import Square, hide_origin, inside_borders, is_steady
from lofi.training.methods import Concatenated, components, load_encoder, unshifted
from lofi.training.pretext import (
    ArrowHead,
    AverageHead,
    SpeedHead,
    keep_frames,
    normal_and_fast,
    train_arrow,
    train_speed,
)
from lofi.training.pretraining import ClipSource, train_acp
from lofi.training.run_folder import RunFolder

SIZE = 40


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dropping_frames_is_unbiased_and_drops_none_at_factor_one():
    draws = seeded()
    assert keep_frames(8, 1.0, draws).tolist() == list(range(8))
    for factor in (1.2, 2.2):
        spans = [int(keep_frames(8, factor, draws)[-1]) for _ in range(4000)]
        mean = sum(spans) / len(spans)  # seven geometric steps, variance 7 f (f - 1)
        error = (7 * factor * (factor - 1) / 4000) ** 0.5
        assert abs(mean - 7 * factor) < 4 * error


def test_both_speeds_start_together_and_no_frame_is_shown_twice():
    draws, ends = seeded(), []
    for _ in range(300):
        picked = normal_and_fast(24, 8, draws)
        assert picked.shape == (2, 8)
        assert (picked.diff(dim=1) >= 1).all(), "a repeated frame would give the class away"
        assert picked[0, 0] == picked[1, 0] and int(picked.min()) >= 0
        ends.append(int(picked.max()))
    assert max(ends) == 23, "a clip is used up to its end, never beyond"
    with pytest.raises(VideoError, match="7 frames in the clip, 2 speeds need at least 8"):
        normal_and_fast(7, 4, draws)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    write_world(world, replace(TINY, source_clips=(24, 8), videos=(4, 2)), seed=0)
    small = {"epochs": 1, "batch": 8}
    changes = {f"{s}.{k}": v for s in ("acp", "arrow", "speed") for k, v in small.items()}
    return configs.override(configs.preset("tiny"), {**changes, "data.world": str(world)})


def reader(config, folder, pairs):
    source = ClipSource(config, RunFolder(folder, {}))
    return partial(pretext._read_pairs, pairs, config.full.frames, source)


def clips_of(config) -> list[TrimmedClip]:
    from lofi.data.clips import read_clip_list

    return read_clip_list(f"{config.data.world}/source.csv")[:6]


def test_the_copies_of_a_clip_differ_in_the_order_of_their_frames_alone(tiny, tmp_path):
    read = reader(tiny, tmp_path, pretext._arrow_pairs)
    x, labels = read(clips_of(tiny), (0, "arrow", 0), "colour")
    assert labels.tolist() == [0, 1] * 6
    for forward, back in zip(x[labels == 0], x[labels == 1]):
        assert torch.equal(forward, back.flip(0)) and not torch.equal(forward, back)


def test_speeds_of_a_batch_have_one_size_and_one_look(tiny, tmp_path):
    read = reader(tiny, tmp_path, pretext._speed_pairs)
    sizes = set()
    for step in range(12):
        x, labels = read(clips_of(tiny), (0, "speed", step), "colour")
        sizes.add(x.shape[-1])
        assert x.shape == (12, 4, 3, x.shape[-1], x.shape[-1])
        firsts = x[:, 0]  # both start with the same frame, and all changes are common
        assert torch.equal(firsts[labels == 0], firsts[labels == 1])
    assert len(sizes) > 2 and all(size % 8 == 0 and 20 <= size <= 60 for size in sizes)


def test_an_item_looks_the_same_whatever_the_number_of_processes(tiny, tmp_path, monkeypatch):
    read = reader(tiny, tmp_path, pretext._arrow_pairs)
    clips = clips_of(tiny)
    whole, _ = read(clips, (0, "arrow", 3), "colour")
    shares = []
    for rank in range(2):
        monkeypatch.setattr(pretext, "share", lambda n, rank=rank: list(range(rank, n, 2)))
        shares.append(read(clips, (0, "arrow", 3), "colour")[0].unflatten(0, (-1, 2)))
    joined = torch.stack(shares, 1).flatten(0, 2)
    assert torch.equal(joined, whole)


def falling_dots(count: int, draws: torch.Generator, frames: int = 4) -> torch.Tensor:
    """A bright dot that speeds up in one direction: (count, frames, 3, 40, 40) uint8."""
    clips = torch.full((count, frames, 3, SIZE, SIZE), 60, dtype=torch.uint8)
    for clip in clips:
        y, x = torch.randint(4, 8, (2,), generator=draws).tolist()
        for t in range(frames):
            top = y + round(2.4 * t * t)
            clip[t, :, top : top + 8, x * 3 : x * 3 + 8] = 230
    return clips


def both_ways(clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.stack([clips, clips.flip(1)], 1).flatten(0, 1)
    return pairs, torch.tensor([0.0, 1.0]).repeat(len(clips))


def train(head, encoder, x, labels, steps: int) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=0.004)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = head(encoder.frame_maps(normalise(x, encoder)))
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(head, encoder, x, labels) -> float:
    encoder.eval(), head.eval()
    return float(((head(encoder.frame_maps(normalise(x, encoder))) > 0) == labels).float().mean())


@pytest.mark.parametrize("kind", [ArrowHead, AverageHead])
def test_visible_direction_is_learned_within_seconds_and_shuffling_destroys_it(kind):
    draws = seeded()
    torch.manual_seed(0)
    encoder, head = build_encoder("tsm-toy", seed=0), kind(64)
    train(head, encoder, *both_ways(falling_dots(12, draws)), steps=25)
    x, labels = both_ways(falling_dots(32, draws))
    assert accuracy(head, encoder, x, labels) > 0.9
    order = torch.stack([torch.randperm(4, generator=draws) for _ in x])
    shuffled = x[torch.arange(len(x))[:, None], order]
    assert 0.3 < accuracy(head, encoder, shuffled, labels) < 0.7


def test_without_shift_averaged_frames_cannot_tell_direction_but_two_halves_can():
    x, _ = both_ways(falling_dots(4, seeded()))
    torch.manual_seed(0)
    still, shifted = build_encoder("resnet-toy", seed=0).eval(), build_encoder("tsm-toy", 0).eval()
    average, halves = AverageHead(64).eval(), ArrowHead(64).eval()
    maps = {e.name: e.frame_maps(normalise(x, e)) for e in (still, shifted)}

    def gap(head, maps):
        logits = head(maps)
        return float((logits[::2] - logits[1::2]).abs().max().detach())

    assert gap(average, maps["resnet-toy"]) < 1e-5
    assert gap(average, maps["tsm-toy"]) > 1e-3, "the shift treats past and future differently"
    assert gap(halves, maps["resnet-toy"]) > 1e-3


def test_heads_take_any_size_and_the_heat_map_averages_to_the_logit():
    maps = torch.rand(2, 4, 8, 5, 3)
    arrow = ArrowHead(8).eval()
    assert torch.allclose(arrow.heat(maps).mean((1, 2)), arrow(maps))
    speed = SpeedHead(8).eval()
    weight, bias = (p.detach() for p in (speed.classifier[1].weight[0], speed.classifier[1].bias))
    by_hand = [sum(float(maps[n, t, c].max() * weight[c]) for t in range(4) for c in range(8)) / 4
               for n in range(2)]  # fmt: skip
    assert torch.allclose(speed(maps), torch.tensor(by_hand) + bias, atol=1e-6)
    with pytest.raises(ValueError, match="1 frame has no direction"):
        arrow(maps[:, :1])


def test_borders_are_cut_and_still_or_cut_windows_are_left_out():
    clip = torch.randint(40, 200, (3, 3, SIZE, SIZE), generator=seeded(), dtype=torch.uint8)
    assert inside_borders(clip) == Square(0, 0, 40)
    wide = clip.clone()
    wide[:, :, :6] = wide[:, :, -4:] = 0  # 30 rows are left, 6 to 35
    square = inside_borders(wide)
    assert square == Square(6, 5, 30)
    assert square.cut(wide, 40).shape == clip.shape and int(square.cut(wide, 30).min()) >= 40
    assert inside_borders(torch.zeros_like(clip)) == Square(0, 0, 40)
    drift = torch.stack([clip[0].roll(t, 2) for t in range(3)])
    assert is_steady((drift.float() * 0.3).to(torch.uint8))
    assert not is_steady(clip[:1].expand(3, -1, -1, -1))
    flash = torch.stack([torch.full_like(clip[0], v) for v in (20, 20, 200)])
    assert not is_steady(flash)
    moved = hide_origin(torch.full_like(clip, 100), seeded())
    assert set(moved.unique().tolist()) <= {99, 100, 101}


def test_pretext_encoders_train_beside_acp_and_join_it(tiny, tmp_path):
    train_acp(tiny, tmp_path)
    found = train_arrow(tiny, tmp_path), train_speed(tiny, tmp_path)
    assert all(0 <= result["accuracy"] <= 1 and result["held_out"] == 8 for result in found)
    acp, _ = load_encoder(tiny, tmp_path, "acp")
    arrow, _ = load_encoder(tiny, tmp_path, "arrow")
    both, digest = load_encoder(tiny, tmp_path, "acp+arrow")
    assert both.channels == 128 and digest != load_encoder(tiny, tmp_path, "acp+speed")[1]
    x = torch.rand(2, 4, 3, SIZE, SIZE)
    acp.eval(), arrow.eval(), both.eval()
    assert torch.equal(both(x), torch.cat([acp(x), arrow(x)], 1))
    l2 = configs.override(tiny, {"concat_norm": "l2"})
    scaled, other = load_encoder(l2, tmp_path, "acp+arrow")
    assert other != digest
    halves = scaled.eval()(x).view(2, 2, 64).norm(dim=2)
    assert torch.allclose(halves, torch.ones(2, 2))
    with pytest.raises(FileNotFoundError, match=r"no acp\+ encoder in this run"):
        load_encoder(tiny, tmp_path, "acp+")  # training on is another method


def test_names_of_combinations_and_of_image_networks():
    assert components("acp+") == ("acp+",) and components("acp") == ("acp",)
    assert components("acp+arrow") == ("acp", "arrow")
    assert components("acp++arrow") == ("acp+", "arrow")
    assert unshifted("tsm-r50") == "resnet-50" and unshifted("tsm-toy") == "resnet-toy"
    with pytest.raises(ValueError, match="r2plus1d-18 has no image form"):
        unshifted("r2plus1d-18")
    with pytest.raises(ValueError, match="do not take the same frames"):
        Concatenated(build_encoder("tsm-toy"), build_encoder("r2plus1d-18"))


def test_arrow_on_an_encoder_without_frame_maps_says_so(tiny, tmp_path):
    other = replace(tiny, encoder="r2plus1d-18")
    with pytest.raises(ValueError, match="stage arrow needs maps of every frame"):
        train_arrow(other, tmp_path)


def test_broken_and_short_clips_are_skipped_with_a_reason(tiny, tmp_path):
    good = clips_of(tiny)[0]
    short = tmp_path / "short.mp4"
    frames = torch.randint(0, 255, (5, SIZE, SIZE, 3), generator=seeded(), dtype=torch.uint8)
    write_video(short, frames.numpy(), 8)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    clips = [TrimmedClip(short, "x"), good, TrimmedClip(broken, "x")]
    source = ClipSource(tiny, RunFolder(tmp_path / "run", {}))
    x, labels = pretext._read_pairs(pretext._speed_pairs, 4, source, clips, (0, 1), "none")
    assert len(x) == 2 and labels.tolist() == [0, 1]
    assert [row["item"] for row in source.run.skipped()] == sorted([str(short), str(broken)])
