"""ActionFormer: released numbers, padding, empty and one-step videos, targets, decoding."""

import numpy as np
import pytest
import torch
from reference_networks import generator, read

from lofi.config import PostProcessing
from lofi.data import Segment, Video
from lofi.data.snippets import Grid
from lofi.detection import suppress
from lofi.heads import ActionFormer, load_published, published_state_dict
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

    Near 200 steps neighbouring float32 numbers are 1.5e-5 apart: the tolerance is relative too.
    """
    assert abs(len(ours) - len(theirs)) <= (np.abs(theirs[:, 2] - 0.001) < 1e-6).sum()
    free = np.arange(len(ours))
    for place, row in enumerate(theirs):
        near = ours[free[:50]]
        close = np.isclose(near, row, tolerance, tolerance).all(1)
        assert close.any() or abs(row[2] - 0.001) < 1e-6, f"row {place}: {row} not in {near[:3]}"
        if close.any():
            free = np.delete(free, close.argmax())
