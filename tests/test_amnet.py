"""AMNet as reconstructed: shapes, padding, odd videos, losses against loops, its switches."""

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.amnet import Oracle, report, stored
from test_actionformer_stages import config  # noqa: F401
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lofi import config as configs
from lofi.budget import activation_bytes
from lofi.config import AMNetConfig, PostProcessing
from lofi.data import Segment, Video
from lofi.data.snippets import Grid
from lofi.data.toyworld import LONG, plan_videos
from lofi.detection import suppress
from lofi.detection.detector import detect_stage
from lofi.evaluation.paired import verdict
from lofi.experiment import compare_seeds, evaluate_method
from lofi.fidelity import Fidelity
from lofi.figures import amnet_table
from lofi.heads import AMNet, build_head
from lofi.heads.amnet import GroupLayer
from lofi.training.head import train_head

SMALL = AMNetConfig(hidden=16, heads=2, layers=2, levels=4, max_steps=32, window=5, drop_path=0.3)
NAMES = ("jump", "run")
POST = PostProcessing(suppression="per-class", sigma=0.5, classes="own")
SWITCHES = [
    {},
    {"mask": "binary", "join": "multiply", "bias_keys": True},
    {"mask": "none", "attention": "none", "matching": "none"},
    {"groups": "range", "rule": "positive"},
    {"groups": "channel", "join": "multiply", "matching": "score"},
    {"attention": "self", "mask_first": 1},
]


def built(classes=NAMES, **switches) -> AMNet:
    return build_head(replace(SMALL, **switches), 6, classes).eval()


def video(*segments: tuple) -> Video:
    return Video("v", None, 10.0, None, None, tuple(Segment(*s) for s in segments))


def decoded(head: AMNet, outputs, *more):
    return head.decode(tree_map(torch.detach, outputs), *more)


def losses(head: AMNet, features, videos, mask=None, grids=None):
    grids = grids or [Grid.whole(features.shape[2], 10.0)] * len(videos)
    targets = head.collate([head.targets(v, g) for v, g in zip(videos, grids)])
    draws = head.draws(len(videos), targets, torch.Generator().manual_seed(0))
    statistics = head.statistics(targets, draws)
    return head.losses(head(features, mask, draws), targets, statistics, draws)


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("steps", [1, 2, 7, 32, 45])
def test_every_length_has_its_levels(switches, steps):
    found = built(**switches)(torch.randn(2, 6, steps))
    sizes = [-(-steps // 2**level) for level in range(4)]
    assert [tuple(x.shape) for x in found.logits] == [(2, n, 2) for n in sizes]
    assert [tuple(x.shape) for x in found.offsets] == [(2, n, 2) for n in sizes]
    assert [tuple(x.shape) for x in found.masks] == [(2, n) for n in sizes]
    for part in (*found.logits, *found.offsets, *found.matching, *found.action, *found.embedded):
        assert torch.isfinite(part).all()
    assert all((x >= 0).all() for x in found.offsets)


@pytest.mark.parametrize("switches", SWITCHES)
def test_detections_do_not_depend_on_padding_or_neighbours(switches):
    head, features = built(**switches), torch.randn(1, 6, 21)
    for p in head.parameters():  # norms and positions away from their trivial beginning
        p.data += 0.2 * torch.randn_like(p)
    grid, alone = Grid.whole(21, 10.0), head(features)
    kept = suppress([decoded(head, alone, grid, POST)], POST)
    assert len(kept.scores)
    for more in (1, 11, 40):
        padded = F.pad(features, (0, more), value=3.0)
        both = torch.cat([padded, torch.randn_like(padded)])
        mask = torch.ones(2, 21 + more, dtype=torch.bool)
        mask[0, 21:] = False
        outputs = type(alone)(*(tuple(x[:1] for x in part) for part in head(both, mask)))
        again = suppress([decoded(head, outputs, grid, POST)], POST)
        np.testing.assert_allclose(again.segments_s, kept.segments_s, atol=1e-4)
        np.testing.assert_allclose(again.scores, kept.scores, atol=1e-5)


@pytest.mark.parametrize("switches", SWITCHES)
def test_odd_videos_train_without_nan(switches):
    everything, twice = video((0, 10, "run")), video((2, 5, "run"), (2, 5, "jump"), (2, 5, "run"))
    cases = [[video(), video()], [everything, everything], [twice, video()]]
    for videos, steps in product(cases, (1, 12)):
        head = built(**switches).train()
        for mask in (None, torch.tensor([[True] * steps, [False] * steps])):
            head.zero_grad()
            found = losses(head, torch.randn(2, 6, steps), videos, mask)
            assert all(torch.isfinite(value) for value in found.values())
            found["loss"].backward()
            given = [p.grad for p in head.parameters() if p.grad is not None]
            assert given and all(torch.isfinite(g).all() for g in given)


def test_equal_segments_of_two_classes_mark_both_and_an_empty_video_gives_nothing():
    head, grid = built(), Grid.whole(20, 10.0)
    targets = head.targets(video((2, 5, "run"), (2, 5, "jump")), grid)
    marked = torch.cat(targets.classes)
    assert set(map(tuple, marked.tolist())) == {(0.0, 0.0), (1.0, 1.0)}
    outputs = head(torch.randn(1, 6, 20), torch.zeros(1, 20, dtype=torch.bool))
    assert not len(decoded(head, outputs, grid, POST).scores)
    one = built(classes=1)
    assert one(torch.randn(1, 6, 9)).logits[0].shape == (1, 9, 1)
    assert torch.cat(one.targets(video((2, 5, "swim")), grid).classes).sum() > 0


def test_steps_of_an_action_are_those_whose_middle_lies_in_it():
    found = built().targets(video((2, 3.6, "run"), (7.26, 7.3, "jump")), Grid.whole(20, 10.0))
    middles = np.arange(20) / 2 + 0.25
    wanted = np.where((middles >= 2) & (middles <= 3.6) | (np.arange(20) == 14), 1, -1)
    assert found.action.tolist() == wanted.tolist(), "7.28 s is nearest to the middle of step 14"


def test_the_triplet_loss_is_that_of_loops():
    """Keys left out of the attention, against an attention over nothing but the others."""
    for rule in ("aware", "positive"):
        head = built(rule=rule).double()
        features, truth = torch.randn(2, 6, 12).double(), [video((2, 5, "run")), video()]
        found, outputs = losses(head, features, truth)["mask"], head(features)
        e = head.ame["norm"](outputs.embedded[0])[:1]
        action = (head.targets(truth[0], Grid.whole(12, 10.0)).action > 0).numpy()
        keys = {kind: torch.ones(1, int(n), dtype=bool) for kind, n in zip(
            "pn", (action.sum(), (~action).sum()))}  # fmt: skip
        positive, negative = (
            head.ame["attend"](e, e[:, rows], keys[kind])[0].detach().numpy()
            for kind, rows in (("p", action), ("n", ~action))
        )
        mask, total = outputs.action[0][0].detach().numpy(), 0.0
        for i in range(12):
            near, far = (np.sqrt(np.mean((mask[i] - x[i]) ** 2)) for x in (positive, negative))
            if rule == "aware" and not action[i]:
                near, far = far, near
            total += max(0.0, near - far + 0.5)
        assert found.item() == pytest.approx(total / 12, rel=1e-5), "the empty video is left out"


def test_the_binary_loss_weighs_both_kinds_of_step_the_same():
    head, features = built(mask="binary").double(), torch.randn(1, 6, 12).double()
    truth = video((2, 5, "run"))
    p = head(features).action[0][0, :, 0].sigmoid().detach().numpy()
    action = (head.targets(truth, Grid.whole(12, 10.0)).action > 0).numpy()
    wanted = -(np.log(p[action]).mean() + np.log(1 - p[~action]).mean()) / 2
    assert losses(head, features, [truth])["mask"].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("switches", [{}, {"mask": "binary", "join": "multiply"}])
def test_the_mask_is_differentiable(switches):
    """Both losses reach the masking encoder; its slope is that of finite differences."""
    head, truth = built(**switches).double(), [video((2, 5, "run"))]
    features = torch.randn(1, 6, 12).double()
    for name in ("mask", "classes"):
        weight = next(p for p in head.ame.parameters() if p.ndim > 1)
        direction = torch.randn_like(weight)
        (slope,) = torch.autograd.grad(losses(head, features, truth)[name], weight)
        values, keep = [], weight.data.clone()
        for sign in (1, -1):
            weight.data = keep + sign * 1e-6 * direction
            values.append(losses(head, features, truth)[name].item())
        weight.data = keep
        wanted = (values[0] - values[1]) / 2e-6
        assert (slope * direction).sum().item() == pytest.approx(wanted, rel=1e-4, abs=1e-9)
        assert abs(wanted) > 0


def test_joins_are_a_sum_or_a_product_beside_the_features():
    features = torch.randn(1, 6, 9)
    for mask, join in product(("triplet", "binary"), ("add", "multiply")):
        found = built(mask=mask, join=join)(features)
        before, after = found.embedded
        shown = found.action[0].sigmoid() if mask == "binary" else found.action[0]
        wanted = before + shown if join == "add" else before * shown + before  # alpha begins at 1
        torch.testing.assert_close(after, wanted)


def test_groups_exchange_only_when_switched_on():
    torch.manual_seed(0)
    short, long, other = torch.randn(1, 9, 8), torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    seen = [torch.ones(1, n, dtype=torch.bool) for n in (9, 4)]
    for exchange in (True, False):
        layer = GroupLayer(8, 2, exchange)
        first, second = (layer([short, x], seen, [None, None], None, 0)[0] for x in (long, other))
        assert torch.equal(first, second) != exchange
    layer = GroupLayer(8, 2, True)
    with torch.no_grad():
        plain = layer([short, long], seen, [None, None], None, 0)
        turned = layer([short, long.flip(1)], seen, [None, None], None, 0)
        torch.testing.assert_close(turned[0], plain[0])  # a key goes with its value, wherever
        for attention in layer.other:
            attention.key.register_forward_hook(lambda module, given, keys: keys.flip(1))
        for a, b in zip(plain, layer([short, long], seen, [None, None], None, 0)):
            assert not torch.allclose(a, b), "each group asks which of the other's steps to take"
    layer = GroupLayer(8, 2, False)
    far = short.clone()
    far[:, 8] = torch.randn(8)
    near, moved = (layer([x, long], seen, [None, None], None, 2)[0] for x in (short, far))
    torch.testing.assert_close(near[:, :6], moved[:, :6])
    assert not torch.allclose(near[:, 6], moved[:, 6]), "a reach of 2"


def test_a_mask_that_learns_first_learns_alone_and_then_stays():
    head, truth = built(mask_first=2).train(), [video((2, 5, "run"))]
    features = torch.randn(1, 6, 12)
    for step in range(4):
        head.zero_grad()
        found = losses(head, features, truth)
        found["loss"].backward()
        learned = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
        ame = {n for n in learned if n.startswith("ame.")}
        if step < 2:
            assert ame and all(n.startswith(("ame.", "embedding")) for n in learned)
            torch.testing.assert_close(found["loss"], found["mask"])
        else:
            assert not ame and any(n.startswith("classes.") for n in learned)
            assert "mask" not in found
    assert load_again(head).seen == 4, "belongs to the state: an interrupted run goes on"


def load_again(head: AMNet) -> AMNet:
    again = built(mask_first=2)
    again.load_state_dict(head.state_dict())
    return again


def test_matching_counts_in_the_score_only_when_switched_on():
    plain, scored = built(), built(matching="score")
    scored.load_state_dict(plain.state_dict())
    grid, outputs = Grid.whole(16, 10.0), plain(torch.randn(1, 6, 16))
    a, b = (decoded(head, outputs, grid, replace(POST, min_score=0.0)) for head in (plain, scored))
    matching = torch.cat(outputs.matching, 1).sigmoid()
    classes = torch.cat(outputs.logits, 1).sigmoid()
    wanted = (classes * matching).sqrt().flatten().sort().values.detach().numpy()
    np.testing.assert_allclose(np.sort(b.scores), wanted, rtol=1e-4)
    np.testing.assert_allclose(np.sort(a.scores), classes.flatten().sort().values.detach())


def test_a_true_mask_localizes(tmp_path):
    """Not an upper bound of what masks can give: the true one is the answer."""
    torch.manual_seed(0)
    options = asdict(replace(SMALL, hidden=32, layers=1, attention="none", matching="none"))
    del options["kind"], options["one_class"]
    head, grid = Oracle(6, ("run",), **options), Grid.whole(32, 10.0)
    rng, videos = np.random.default_rng(0), []
    for _ in range(40):
        start = rng.uniform(0, 5)
        videos.append(video((start, start + rng.uniform(1.5, 4.5), "run")))
    targets = [head.targets(v, grid) for v in videos]
    features = 1 + 0.1 * torch.randn(40, 6, 32)  # alike everywhere: the mask alone tells
    features[:, -1] = torch.stack([t.action for t in targets]).clamp(min=0)
    optimizer = torch.optim.AdamW(head.parameters(), 0.003)
    for step in range(120):
        rows = [(8 * step + i) % 32 for i in range(8)]
        optimizer.zero_grad()
        losses(head, features[rows], [videos[i] for i in rows])["loss"].backward()
        optimizer.step()
    head.eval()
    hits = 0
    for i in range(32, 40):
        best = decoded(head, head(features[i : i + 1]), grid, POST)
        start, end = best.segments_s[best.scores.argmax()]
        (s,) = videos[i].segments
        overlap = min(end, s.end_s) - max(start, s.start_s)
        hits += overlap / (max(end, s.end_s) - min(start, s.start_s)) > 0.5
    assert hits >= 6


def test_variants_train_compare_and_are_put_beside_the_paper(config, tmp_path):  # noqa: F811
    small = asdict(replace(SMALL, max_steps=48))
    config = configs.override(config, {"head": small, "head_training.epochs": 20})
    train_head(config, tmp_path / "one")
    detect_stage(config, tmp_path / "one")
    (row,) = evaluate_method(config, tmp_path / "one", "published")
    assert row["average_map"] > 0.4, "of three classes that one channel tells apart"
    quick = configs.override(config, {"head_training.epochs": 1, "head_training.warmup_epochs": 0})
    other = "kind=actionformer,hidden=16,heads=2,max_steps=48"
    names = ("", "layers=1", "mask=none,attention=none", other)
    results = compare_seeds(quick, tmp_path / "all", (0, 1), ("published",), variants=names)
    assert [r["method"] for r in results["rows"][:4]] == [f"published {n}".strip() for n in names]
    table = {row[0]: row[1:] for row in amnet_table(results).rows}
    assert table["table 2: layers=1"][:3] == ("65.7", "40.6", "62.0")
    assert "±" in table["table 2: layers=1"][5] and "±" in table["table 1: as published"][5]
    assert table["table 1: hidden=1024"] == ("–",) * 6
    assert table["mask=none,attention=none"][:3] == table[other][:3] == ("–",) * 3


def test_memory_is_predicted_and_grows_with_the_head():
    small, large = (
        activation_bytes("tsm-toy", build_head(c, 64), Fidelity(16, 4, 40), 2)
        for c in (SMALL, replace(SMALL, hidden=64))
    )
    assert small.head == "AMNet" and small.peak_bytes < large.peak_bytes


def test_every_instance_of_the_long_world_has_a_point():
    """Starts that positive points name, against those of the plan."""
    preset = configs.preset("long")
    head = build_head(preset.head, 4, LONG.classes)
    for plan in plan_videos(LONG, 2001)[:160]:
        spans = [(p.start / 8, p.end / 8) for p in plan.phases if p.kind == "action"]
        seconds = LONG.video_frames / 8
        truth = Video("v", None, seconds, None, None, tuple(Segment(*s, plan.label) for s in spans))
        found = set()
        targets = head.targets(truth, Grid.whole(64, seconds))
        for level, (classes, offsets) in enumerate(zip(*targets[:2])):
            rows = classes.sum(-1).nonzero()[:, 0]
            starts = (rows - offsets[rows, 0]) * 2**level
            found |= {round(float(s + 0.5) * seconds / 64, 2) for s in starts}
        assert found == {round(start, 2) for start, _ in spans}
    assert LONG.fps == 8


def test_verdicts_on_gates_follow_the_standard_error():
    for differences, least, every, word in (
        ([4, 5, 4, 5, 4], 3.0, True, "reproduced"),
        ([4, 5, 4, 5, -1], 0.0, True, "not established"),
        ([9, -8, 7, -9, 3], 0.0, False, "not established"),
        ([1, 1.1, 0.9, 1, 1], 2.0, False, "contradicted"),
        ([-4, -5, -4, -5, -4], 0.0, False, "contradicted"),
        ([4, 5, 4], 3.0, True, "no verdict"),
    ):
        assert word in verdict(list(map(float, differences)), 2.0, least, every)


def test_the_readme_holds_what_the_benchmark_says():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert report(stored()) in readme


def test_wrong_settings_are_refused():
    for switches in (
        {"hidden": 15},
        {"levels": 1},
        {"window": 4},
        {"groups": "channel", "heads": 16},
    ):
        with pytest.raises(ValueError, match="expected groups of a multiple"):
            built(**switches)
    with pytest.raises(ValueError, match="unknown mask"):
        replace(SMALL, mask="oracle")
    with pytest.raises(ValueError, match=r"expected \(videos, 6, steps\)"):
        built()(torch.randn(1, 5, 9))
