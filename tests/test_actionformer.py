"""ActionFormer: released numbers, padding, empty and one-step videos, targets, decoding."""

import numpy as np
import pytest
import torch
from reference_networks import generator, read

from lofi.config import PostProcessing
from lofi.data import Segment, Video
from lofi.data.snippets import Grid
from lofi.detection import suppress
from lofi.detection.nms_points import soft_nms_classes
from lofi.heads import ActionFormer, load_published, part_of, published_state_dict
from lofi.heads.actionformer import _ByChannel, _ThreeTaps, window_attention
from lofi.heads.points import point_targets

CASES = ["thumos_e32", "thumos_e32_relpe", "anet_e32", "short_global"]


def reference_tensor(name: str, shape: tuple[int, ...], salt: int) -> torch.Tensor:
    """Weights by the rules of spec/actionformer.md, section 8."""
    z = generator(name, salt).standard_normal(shape)
    last = name.rsplit(".", 1)[1]
    if last == "scale":
        z = 1 + 0.1 * z if not shape else 0.5 + 0.1 * z
    elif last == "weight" and len(shape) == 3 and shape[0] == shape[2] == 1:
        z = 1 + 0.1 * z
    elif last in ("bias", "rel_pe"):
        z = (0.05 if last == "bias" else 0.1) * z
    else:
        output = name.startswith("cls_head.cls_head") or "offset_head" in name
        z = z * np.sqrt((0.5 if output else 1) / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(z, np.float32))


class Case:
    """One released network: head, inputs and what came out."""

    def __init__(self, golden, name: str):
        (self.model,) = (m for m in read(golden("actionformer_models.json")) if m["name"] == name)
        self.arrays = np.load(golden(f"actionformer_{name}.npz"))
        config = self.model["config"]
        network, train, test = config["model"], config["train"], config["test"]
        embedding, stem, branch = network["backbone_arch"]
        window = config["win"]
        self.classes, self.levels = config["num_classes"], branch + 1
        self.head = ActionFormer(
            config["input_dim"],
            self.classes,
            hidden=network["embd_dim"],
            heads=network["n_head"],
            window=window,
            levels=self.levels,
            embedding=embedding,
            stem=stem,
            max_steps=config["max_seq_len"],
            positions=network.get("use_abs_pe", False),
            relative=network.get("use_rel_pe", False),
            neck=network["fpn_type"],
            first_count=train["init_loss_norm"],
            regression_weight=train.get("loss_weight", 1.0),
            smoothing=train.get("label_smoothing", 0.0),
        )
        shapes = {k: tuple(v.shape) for k, v in published_state_dict(self.head).items()}
        salt = self.model["salt"]
        weights = {f"module.{k}": reference_tensor(k, s, salt) for k, s in shapes.items()}
        load_published(self.head, {"epoch": 35, "state_dict": {}, "state_dict_ema": weights})
        self.inputs = []
        for i, length in enumerate(self.model["lengths"]):
            source = generator(f"input:{name}:{i}", self.model["input_salt"])
            z = source.standard_normal((config["input_dim"], length))
            self.inputs.append(torch.from_numpy(z.astype(np.float32)))
        self.post = PostProcessing(
            suppression="per-class" if test["multiclass_nms"] else "joint",
            sigma=test.get("nms_sigma", 0.5),
            top_k=test["max_seg_num"],
            min_score=test["min_score"],
            candidates=test["pre_nms_topk"],
            shortest=test.get("duration_thresh", 0.05),
            voting=test["voting_thresh"],
        )

    def grid(self, i: int) -> Grid:
        """Rows of video i in time; fractional strides are those of resized videos."""
        model, steps = self.model, self.model["lengths"][i]
        stride, window, fps = (float(model[k]) for k in ("feat_stride", "feat_num_frames", "fps"))
        if not stride.is_integer():
            return Grid.whole(steps, steps * stride / fps)
        frames = round(steps * stride + window - stride)
        return Grid.strided(steps, int(stride), fps, frames, (window - stride) / 2 / fps)

    def video(self, i: int) -> Video:
        """Video i, seconds from the beginning of its grid."""
        step_s = self.grid(i).step_s
        times = (np.array(self.model["segments"][i]).reshape(-1, 2) + 0.5) * step_s
        rows = zip(times.tolist(), self.model["labels"][i])
        return Video(str(i), None, None, None, None, tuple(Segment(*t, str(c)) for t, c in rows))

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, max_steps) padded features and their mask."""
        steps = self.model["config"]["max_seq_len"]
        mask = torch.arange(steps) < torch.tensor(self.model["lengths"])[:, None]
        x = [torch.nn.functional.pad(x, (0, steps - x.shape[1])) for x in self.inputs]
        return torch.stack(x), mask


@pytest.fixture(params=CASES)
def case(golden, request) -> Case:
    return Case(golden, request.param)


def test_names_and_shapes_are_those_of_released_checkpoints(golden, case):
    released = read(golden("actionformer_state_dicts.json"))[case.model["name"]]["state_dict"]
    ours = {k: list(v.shape) for k, v in published_state_dict(case.head).items()}
    assert ours == {name: shape for name, shape, *_ in released}


def test_points_equal_the_released_network(case):
    with torch.no_grad():
        points = case.head(*case.batch())
    for level in range(case.levels):
        mask = points.masks[level]
        bits = np.unpackbits(case.arrays[f"mask_{level}"], axis=1)[:, : mask.shape[1]]
        assert np.array_equal(mask.numpy(), bits.astype(bool))
        for key, found in (("cls", points.logits), ("off", points.offsets)):
            expected = torch.from_numpy(case.arrays[f"{key}_{level}"])
            assert found[level].shape == expected.shape
            torch.testing.assert_close(found[level], expected, rtol=0, atol=5e-6)


def test_targets_equal_the_released_ones_exactly(case):
    steps, arrays = case.model["config"]["max_seq_len"], case.arrays
    classes, offsets, where = [], [], []
    for i in range(len(case.inputs)):
        rows = np.array(case.model["segments"][i], np.float32).reshape(-1, 2)
        labels = np.array(case.model["labels"][i], int)
        made = point_targets(rows, labels, steps, case.levels, case.classes)
        shown, distances = torch.cat(made.classes), torch.cat(made.offsets)
        (places,) = torch.nonzero(shown.sum(1), as_tuple=True)
        classes.append(shown[places].numpy())
        offsets.append(distances[places].numpy())
        where += [(i, place) for place in places.tolist()]
    assert np.array_equal(np.array(where), arrays["target_pos"])
    assert np.array_equal(np.concatenate(classes), arrays["target_cls"])
    assert np.array_equal(np.concatenate(offsets), arrays["target_off"])


def test_losses_and_gradients_equal_the_released_ones(case):
    head, model = case.head.double(), case.model  # float32 is 1e-5 from it in small norms
    targets = [head.targets(case.video(i), case.grid(i)) for i in range(len(case.inputs))]
    targets = head.collate(targets)
    x, mask = case.batch()
    longest = max(model["lengths"])
    draws = torch.zeros(len(x), 0)
    statistics = head.statistics(targets, draws)
    assert statistics.count.item() == pytest.approx(model["loss_normalizer_after"], abs=1e-9)
    assert head.count == statistics.count, "one training step moves the running count once"
    outputs = head(x[:, :, :longest].double(), mask[:, :longest])
    found = head.losses(outputs, targets, statistics, draws)
    loss = model["loss"]
    for ours, theirs in (("classes", "cls"), ("regression", "reg"), ("loss", "final")):
        assert found[ours].item() == pytest.approx(loss[f"{theirs}_loss"], rel=1e-5), ours
    found["loss"].backward()
    largest = max(model["grad_norm"].values())
    for name, expected in model["grad_norm"].items():
        ours = head.get_parameter(name).grad.norm().item()
        # the bias in front of a softmax has gradient 0: what they found is rounding
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-8 * largest), name


def test_candidates_and_detections_equal_the_released_ones(case):
    for i, x in enumerate(case.inputs):
        grid = case.grid(i)
        with torch.no_grad():
            table = case.head.eval().decode(case.head(x[None]), grid, case.post)
        before = np.column_stack([grid.position(table.segments_s), table.scores, table.labels])
        compare(before, case.arrays[f"pre_{i}"], 1e-5)
        kept = suppress([table], case.post)
        duration = case.model["durations"][i]
        after = np.column_stack([kept.segments_s.clip(0, duration), kept.scores, kept.labels])
        compare(after, case.arrays[f"post_{i}"], 1e-4)


def compare(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    """Rows (start, end, score, class) in order, free where scores are within 1e-6.

    Times are as exact as the row's larger one: an offset counts in strides of up to 32 steps.
    """
    assert abs(len(ours) - len(theirs)) <= (np.abs(theirs[:, 2] - 0.001) < 1e-6).sum()
    free = np.arange(len(ours))
    for place, row in enumerate(theirs):
        near = ours[free[:50]]
        limit = tolerance * np.maximum(1, np.abs(row[[0, 1]]).max()), tolerance
        close = np.abs(near - row) <= np.array([limit[0], limit[0], limit[1], 0])
        close = close.all(1)
        assert close.any() or abs(row[2] - 0.001) < 1e-6, f"row {place}: {row} not in {near[:3]}"
        if close.any():
            free = np.delete(free, close.argmax())


SMALL = {"hidden": 16, "heads": 2, "window": (5, 5, 0), "levels": 3, "max_steps": 32}


def small(classes=3, **options) -> ActionFormer:
    torch.manual_seed(0)
    head = ActionFormer(8, classes, **(SMALL | options)).eval()
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if "drop_path" in name:
                weight.fill_(0.5)  # 1e-4 at first would hide the blocks
            elif name.endswith("bias"):
                weight.normal_(0, 0.3)  # 0 at first would hide what lies behind the end
    return head


def video(*segments: tuple[float, float, str]) -> Video:
    return Video("v", None, None, None, None, tuple(Segment(*row) for row in segments))


@pytest.mark.parametrize("options", [{}, {"neck": "fpn"}, {"relative": True, "positions": True}])
@pytest.mark.parametrize("steps", [1, 2, 13, 20, 32])
def test_padding_does_not_change_the_points_of_a_video(options, steps):
    head, x = small(**options), torch.randn(1, 8, steps)
    alone = head(x)
    assert [len(m[0]) for m in alone.masks] == [-(-steps // 2**level) for level in range(3)]
    for padded in {min(steps + 1, 32), 29, 32} - set(range(steps)):
        wide = torch.nn.functional.pad(x, (0, padded - steps))
        other = torch.randn(1, 8, padded)
        mask = torch.arange(padded) < torch.tensor([[steps], [padded]])
        together = head(torch.cat([wide, other]), mask)
        for ours, theirs in zip((*alone.logits, *alone.offsets), (*together[0], *together[1])):
            torch.testing.assert_close(theirs[:1, : ours.shape[1]], ours, rtol=0, atol=2e-6)
        for part in together.offsets:
            assert (part >= 0).all()


def test_a_video_without_steps_gives_finite_gradients_and_no_candidate():
    head, mask = small(), torch.tensor([[True] * 20, [False] * 20])
    outputs = head(torch.randn(2, 8, 20), mask)
    grid = Grid.whole(20, 20.0)
    y = head.collate([head.targets(video((3.0, 9.0, "1")), grid), head.targets(video(), grid)])
    losses = head.losses(outputs, y, head.statistics(y, torch.zeros(2, 0)), torch.zeros(2, 0))
    losses["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    post = PostProcessing(suppression="per-class", sigma=0.5)
    with torch.no_grad():
        nothing = head.decode(part_of(outputs, slice(1, 2)), grid, post)
    assert len(suppress([nothing], post).scores) == 0
    assert len(suppress([nothing], PostProcessing()).scores) == 0


def test_whole_videos_longer_than_in_training_stretch_their_positions():
    head, x = small(positions=True), torch.randn(1, 8, 70)
    assert head(x).logits[0].shape == (1, 70, 3)  # padded to a multiple of 8
    table = torch.nn.functional.interpolate(head.table.T[None], size=72, mode="linear")[0].T
    plain = small(positions=True)
    plain.max_steps, plain.table = 72, table
    torch.testing.assert_close(head(x).logits[0], plain(x).logits[0], rtol=0, atol=2e-6)


def test_window_attention_is_attention_with_a_band():
    q, k, v = torch.randn(3, 2, 4, 37, 8, dtype=torch.float64)
    mask, bias = torch.rand(2, 37) > 0.3, torch.randn(4, 7, dtype=torch.float64)
    apart = torch.arange(37) - torch.arange(37)[:, None]
    seen = (apart.abs() <= 3) & mask[:, None, None]
    scores = torch.where(seen, bias[:, (apart + 3).clamp(0, 6)], -torch.inf)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scores)
    found = window_attention(q, k, v, mask, 3, bias)
    rows = seen.any(3).expand(2, 4, 37)
    torch.testing.assert_close(found[rows], expected[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_three_taps_are_a_convolution_with_its_gradients(steps):
    x = torch.randn(2, steps, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, steps, 1) > 0.3
    plain = torch.nn.functional.conv1d(x.transpose(1, 2), weight, padding=1).transpose(1, 2) * mask
    torch.testing.assert_close(_ThreeTaps.apply(x, weight, mask), plain, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *a: _ThreeTaps.apply(*a, mask), (x, weight))


@pytest.mark.parametrize(("steps", "stride"), [(1, 1), (1, 2), (7, 1), (7, 2), (8, 2)])
def test_depthwise_rows_are_a_convolution_with_its_gradients(steps, stride):
    x = torch.randn(2, steps, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, 3, dtype=torch.float64, requires_grad=True)
    plain = torch.nn.functional.conv1d(x.mT, weight, None, stride, 1, 1, 4).mT
    torch.testing.assert_close(_ByChannel.apply(x, weight, stride), plain, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *a: _ByChannel.apply(*a, stride), (x, weight))


def test_three_taps_round_no_worse_than_a_plain_convolution():
    x, weight = torch.randn(1, 600, 256), torch.randn(64, 256, 3)
    exact = torch.nn.functional.conv1d(x.double().mT, weight.double(), padding=1).mT
    plain = torch.nn.functional.conv1d(x.mT, weight, padding=1).mT
    found = _ThreeTaps.apply(x, weight, torch.ones(1, 600, 1, dtype=torch.bool))
    assert (found - exact).std() < 2 * (plain - exact).std()
    x[0, 300:] = torch.nan  # nothing behind the window of a step is seen
    assert torch.isfinite(_ThreeTaps.apply(x, weight, torch.ones(1, 600, 1))[0, :296]).all()


def test_equal_segments_give_all_their_classes_and_repeated_ones_count_once():
    head, grid = small(("a", "b", "c")), Grid.whole(20, 20.0)
    one = head.targets(video((5.0, 8.0, "a"), (5.0, 8.0, "c")), grid)
    point = one.classes[0][6]
    assert point.tolist() == [1, 0, 1]
    assert one.offsets[0][6].tolist() == [1.5, 1.5], "the middle of step 6 is at 6.5 s"
    again = head.targets(video((5.0, 8.0, "a"), (5.0, 8.0005, "a"), (5.0, 8.0, "c")), grid)
    assert all(torch.equal(a, b) for a, b in zip(one.classes, again.classes))
    short = head.targets(video((6.49, 6.4905, "b")), grid)
    assert sum(level.sum() for level in short.classes) == 0, "shorter than a millisecond"
    with pytest.raises(ValueError, match="video v: label 'd' is no class of this head"):
        head.targets(video((1.0, 4.0, "d")), grid)


def test_without_positive_points_the_regression_is_zero_and_the_count_shrinks():
    head = small().train()
    outputs, y = (
        head(torch.randn(1, 8, 20)),
        head.collate([head.targets(video(), Grid.whole(20, 20.0))]),
    )
    statistics = head.statistics(y, torch.zeros(1, 0))
    assert statistics.count.item() == pytest.approx(0.9 * 100 + 0.1)
    losses = head.losses(outputs, y, statistics, torch.zeros(1, 0))
    losses["loss"].backward()
    assert losses["regression"] == 0 and losses["classes"] > 0
    assert torch.isfinite(head.reg_head.offset_head.conv.weight.grad).all()
    head.eval()
    head.statistics(y, torch.zeros(1, 0))
    assert head.count.item() == statistics.count.item(), "only training moves it on"


def test_one_class_stands_for_every_label():
    head = small(1)
    found = head.targets(video((5.0, 8.0, "a"), (12.0, 16.0, "z")), Grid.whole(20, 20.0))
    assert found.classes[0].shape == (20, 1) and found.classes[0][[6, 14]].sum() == 2


def plain_soft_nms(segments, scores, sigma, top_k, min_score):
    """One class, a candidate at a time, every number float32."""
    f = np.float32
    rows, kept, live = list(range(len(scores))), [], [f(s) for s in scores]
    rows = [r for r in rows if live[r] >= min_score]
    while rows and len(kept) < top_k:
        best = max(rows, key=lambda r: (live[r], -r))
        kept.append((best, live[best]))
        rows.remove(best)
        for r in rows:
            overlap = f(min(segments[r, 1], segments[best, 1])) - max(
                segments[r, 0], segments[best, 0]
            )
            if overlap > 0:
                size = [f(segments[i, 1] - segments[i, 0]) + f(1e-6) for i in (best, r)]
                tiou = overlap / (size[0] + size[1] - overlap)
                live[r] *= f(np.exp(np.float64(-(tiou * tiou) / f(sigma))))
        rows = [r for r in rows if live[r] >= min_score]
    return kept


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("sigma, least", [(0.5, 0.01), (0.001, 0.0)])  # factors of 0, too
def test_soft_nms_of_classes_equals_the_plain_loop_to_the_last_bit(classes, sigma, least):
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 60, 150)
    segments = np.stack([start, start + rng.uniform(1, 20, 150)], 1).astype(np.float32)
    segments[40:43], segments[50] = segments[43], (7, 7)
    scores, labels = rng.uniform(0, 0.2, 150).astype(np.float32), rng.integers(0, classes, 150)
    scores[60:90] = scores[40]
    rows, kept = soft_nms_classes(segments, scores, labels, sigma, 120, least)
    expected = []
    for label in range(classes):
        mine = np.flatnonzero(labels == label)
        found = plain_soft_nms(segments[mine], scores[mine], sigma, 120, least)
        expected += [(mine[row], score) for row, score in found]
    assert rows.tolist() == [row for row, _ in expected]
    assert kept.tobytes() == np.array([score for _, score in expected], np.float32).tobytes()


def test_streams_of_features_are_projected_and_joined():
    head = ActionFormer((5, 3), 2, **SMALL)
    assert head.channels == 8 and head.backbone.proj[0].conv.weight.shape == (8, 5, 1)
    assert head(torch.randn(1, 8, 20)).logits[0].shape == (1, 20, 2)


def test_bad_options_and_input_are_refused():
    for options, message in (
        ({"window": 4}, "odd"),
        ({"hidden": 15}, "heads"),
        ({"neck": "x"}, "fpn"),
    ):
        with pytest.raises(ValueError, match=message):
            ActionFormer(8, 3, **(SMALL | options))
    with pytest.raises(ValueError, match=r"expected \(videos, 8, steps\)"):
        small()(torch.zeros(1, 7, 20))
    with pytest.raises(ValueError, match="at least one class"):
        ActionFormer(8, 0)


def test_bfloat16_autocast_stays_near_float32():
    head, x = small(), torch.randn(2, 8, 20)
    with torch.autocast("cpu", torch.bfloat16):
        low = head(x)
        sum(level.float().mean() for level in low.logits).backward()
    for a, b in zip(low.logits, head(x).logits, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=0.1)
