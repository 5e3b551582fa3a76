"""Predicted memory against known tables, against autograd's own list and against real runs."""

import json

import lectures
import pytest
import torch
import tyro
from lectures import measured_bytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lofi import commands, heads
from lofi.budget import GIB, Mode, activation_bytes, inference_cost, plan
from lofi.budget.memory import Step
from lofi.config import ActionFormerConfig, AMNetConfig, BMNConfig, GTADConfig
from lofi.encoders import ENCODERS, build_encoder, encoder_hash, freeze_batch_norm, freeze_until
from lofi.fidelity import Fidelity, schedule

FULL = Fidelity(snippets=100, frames=8, pixels=224)
SMALL = Fidelity(snippets=4, frames=4, pixels=48)
# Measured steps of a ResNet see 112 pixels, the smallest pictures of the paper. At 48 pixels its
# last maps are 2 × 2; there oneDNN without AVX-512 multiplies matrices for the weight's gradient
# ("x64:gemm:jit") with 37.8 MB of scratch (four 512 × 512 × 3 × 3 weights, and the columns), where
# the kernel for larger maps ("jit:avx2") has one blocked copy of it, 9.4 MB, as predicted. Measured
# on AVX2, predicted / measured peak: 0.78 to 0.86 at 48 pixels, 0.9997 to 1.0003 at 96 and 112.
REAL = Fidelity(snippets=2, frames=2, pixels=112)


@pytest.mark.parametrize(
    ("encoder", "configuration", "gib"),
    [
        ("tsm-r18", "s", 4.62),
        ("tsm-r18", "t", 4.56),
        ("tsm-r18", "st", 4.62),
        ("tsm-r18", "full", 18.24),
        ("tsm-r34", "s", 6.98),
        ("tsm-r34", "t", 6.90),
        ("tsm-r34", "st", 7.01),
        ("tsm-r34", "full", 27.6),
        ("tsm-r50", "s", 20.3),
        ("tsm-r50", "t", 20.1),
        ("tsm-r50", "st", 20.5),
        ("tsm-r50", "full", 80.3),
    ],
)
def test_saved_bytes_of_a_video_in_the_papers_configurations(encoder, configuration, gib):
    fidelity = schedule(configuration, FULL).at(0, 0)
    report = activation_bytes(encoder, None, fidelity)
    assert report.saved_bytes_per_video / GIB == pytest.approx(gib, rel=0.003)
    assert report.saved_bytes_per_video < report.peak_bytes
    frames = fidelity.snippets * 8 * 3 * fidelity.pixels**2 * 4
    assert report.frames_bytes == frames


def test_what_is_kept_is_what_autograd_lists():
    encoder = build_encoder("tsm-r18", seed=0)
    frames = torch.rand(4, 4, 3, 48, 48)
    known = {t.untyped_storage().data_ptr() for t in (frames, *encoder.state_dict().values())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encoder(frames)
    listed = sum(size for size, _ in kept.values())
    predicted = activation_bytes(encoder, None, SMALL).saved_bytes
    assert features.shape == (4, 512)
    assert predicted == pytest.approx(listed, rel=0.002)


@pytest.mark.parametrize(
    ("name", "fidelity", "batch", "amp", "mode"),
    [
        ("tsm-toy", Fidelity(8, 4, 48), 2, "fp32", "full"),
        ("tsm-r18", REAL, 2, "fp32", "full"),
        ("tsm-r18", REAL, 1, "bf16", "full"),
        ("r2plus1d-18", Fidelity(2, 4, 48), 1, "fp32", "full"),
        ("tsm-r18", REAL, 1, "fp32", Mode(recompute=True)),
        ("tsm-r18", REAL, 1, "fp32", Mode(fold=True)),
        ("tsm-r18", REAL, 1, "fp32", "partial"),
        ("tsm-r18", REAL, 1, "fp32", Mode("exact", chunk=1)),
        ("tsm-toy", SMALL, 2, "fp32", Mode("sampled", chunk=2, ratio=0.5)),
        ("tsm-toy", SMALL, 2, "fp32", Mode("bank", chunk=2, ratio=0.5)),
        ("tsm-toy", SMALL, 2, "fp32", "frozen"),
    ],
)
def test_prediction_equals_measurement(name, fidelity, batch, amp, mode):
    encoder = build_encoder(name, seed=0)
    predicted = activation_bytes(encoder, None, fidelity, batch, amp, mode)
    measured = measured_bytes(encoder, None, fidelity, batch, amp, mode)
    assert predicted.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.01)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)
    assert predicted.parameters_bytes == measured.parameters_bytes


@pytest.mark.parametrize(
    ("kind", "snippets", "amp", "mode", "micro_batch"),
    [
        ("GTAD", 64, "fp32", "full", 0),  # a head that outweighs its small encoder
        ("GTAD", 12, "bf16", "full", 0),
        ("GTAD", 12, "fp32", Mode("exact", chunk=5), 0),  # chunks across videos, a rest at the end
        ("GTAD", 12, "fp32", "full", 1),
        ("BMN", 8, "fp32", "full", 0),
    ],
)
def test_prediction_with_a_head_and_its_loss_equals_measurement(
    kind, snippets, amp, mode, micro_batch
):
    encoder, head = build_encoder("tsm-toy", seed=0), getattr(heads, kind)(64)
    setting = (Fidelity(snippets, 2, 32), 3, amp, mode, micro_batch)
    predicted = activation_bytes(encoder, head, *setting)
    measured = measured_bytes(encoder, head, *setting)
    assert predicted.head == kind
    assert predicted.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.01)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)
    alone = activation_bytes(encoder, None, *setting)
    assert predicted.peak_bytes > alone.peak_bytes


class ForeignHead(torch.nn.Module):
    """Makes a tensor on the CPU without asking where its input lives."""

    def forward(self, features):
        places = torch.arange(features.shape[-1]) + 1.0
        return (features * places).square(), {"sum": features.sum()}


def test_heads_from_elsewhere_are_counted():
    encoder, setting = build_encoder("tsm-toy", seed=0), (SMALL, 2)
    predicted = activation_bytes(encoder, ForeignHead(), *setting)
    measured = measured_bytes(encoder, ForeignHead(), *setting)
    assert predicted.head == "ForeignHead"
    assert predicted.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.01)
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)


def test_tables_of_a_head_count_once_a_process_not_in_every_step():
    head = heads.GTAD(64)
    first, again = (activation_bytes("tsm-toy", head, Fidelity(37, 2, 32)) for _ in range(2))
    assert first == again  # the first call built the sampling plan of 37 snippets


def test_a_micro_batch_holds_its_own_videos_only():
    whole, two = (activation_bytes("tsm-r18", None, SMALL, batch) for batch in (6, 2))
    parts = activation_bytes("tsm-r18", None, SMALL, 6, micro_batch=2)
    assert parts.saved_bytes == two.saved_bytes
    assert parts.saved_bytes_per_video == pytest.approx(whole.saved_bytes_per_video, rel=0.001)
    assert parts.flops == pytest.approx(whole.flops, rel=1e-9)
    gradients = whole.parameters_bytes  # those of the first part, when the second one runs
    assert two.peak_bytes < parts.peak_bytes < two.peak_bytes + 1.1 * gradients


def test_two_chunks_stand_for_all():
    few, many = (
        activation_bytes("tsm-r18", None, Fidelity(snippets, 4, 48), mode=Mode("exact", chunk=2))
        for snippets in (4, 100)
    )
    assert many.flops == pytest.approx(25 * few.flops, rel=1e-9)
    assert many.peak_bytes == pytest.approx(few.peak_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("snippets", "pixels", "gib"), [(100, 112, 4.62), (25, 224, 4.56), (50, 158, 4.62),
                                    (100, 224, 18.24)]
)  # fmt: skip
def test_the_memory_command_writes_the_table(tmp_path, capsys, snippets, pixels, gib):
    out = tmp_path / "memory.json"
    words = f"--snippets {snippets} --pixels {pixels} --head none --json {out}"
    tyro.cli(commands.memory, args=words.split())
    found = json.loads(out.read_text())
    assert found["saved_bytes_per_video"] / GIB == pytest.approx(gib, rel=0.003)
    assert found["saved_bytes"] == 16 * found["saved_bytes_per_video"]
    assert found["peak_bytes"] > found["saved_bytes"] > found["parameters_bytes"] == 44_706_048
    shares = dict.fromkeys((row["kind"] for row in found["top"]), 0.0)
    for row in found["top"]:
        shares[row["kind"]] += 100 * row["bytes"] / found["saved_bytes"]
    large = [share for kind, share in sorted(shares.items()) if share > 1]
    assert large == pytest.approx([38, 41, 6.6, 15], abs=0.6)  # ReLU, norm inputs, pooling, shift
    assert f"{found['saved_bytes'] / GIB:.2f} GiB" in capsys.readouterr().out


def test_the_memory_command_knows_every_mode(tmp_path):
    out = tmp_path / "memory.json"
    words = "--encoder tsm-toy --pixels 48 --mode exact --chunk 2 --micro-batch 4 --recompute"
    tyro.cli(commands.memory, args=f"{words} --json {out}".split())
    found = json.loads(out.read_text())
    assert found["mode"] | {"name": "exact", "chunk": 2, "recompute": True} == found["mode"]
    assert found["micro_batch"] == 4 and found["batch"] == 16


def counted(network, *shape) -> float:
    """Multiply-adds of a real pass on the CPU, as torch's own counter finds them."""
    network.eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(shape))
    return counter.get_total_flops() / 2


LARGE = {"vit-l", "vit-h", "vit-g"}  # gigabytes of weights


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in LARGE])
def test_what_inference_costs_in_every_encoder(name):
    encoder = build_encoder(name)
    side = 28 if encoder.patch == 14 else 32
    found = inference_cost(encoder, None, Fidelity(3, 4, side))["encoder"]
    assert found.parameters == sum(weight.numel() for weight in encoder.parameters())
    assert found.multiply_adds == counted(encoder, 3, 4, 3, side, side) and found.seconds is None


@pytest.mark.parametrize(
    "config", [GTADConfig(), BMNConfig(), ActionFormerConfig(), AMNetConfig()], ids=lambda c: c.kind
)
def test_what_inference_costs_in_every_head(config):
    head = heads.build_head(config, 16, 3)
    found = inference_cost(None, head, Fidelity(24, 8, 224))
    assert list(found) == ["head"]
    assert found["head"].parameters == sum(weight.numel() for weight in head.parameters())
    assert found["head"].multiply_adds == counted(head, 1, 16, 24)


def test_an_r50_costs_more_at_inference_than_an_r18():  # supplement B says so in words
    small, large = (inference_cost(build_encoder(n), None, FULL)["encoder"]
                    for n in ("tsm-r18", "tsm-r50"))  # fmt: skip
    assert small.multiply_adds == pytest.approx(1.814e9 * 800, rel=1e-3)  # a frame, as published
    assert large.multiply_adds == pytest.approx(4.089e9 * 800, rel=1e-3)
    assert (small.parameters, large.parameters) == (11_176_512, 23_508_032)


def test_latency_is_the_median_of_videos_that_were_really_put_through(monkeypatch):
    ticks = iter([0, 5, 10, 11, 20, 29, *range(30, 36)])  # 5, 1, 9 s for the encoder; 1 s each
    monkeypatch.setattr("lofi.budget.inference.time.perf_counter", lambda: next(ticks))
    encoder, head, seen = build_encoder("tsm-toy"), heads.GTAD(64), []
    encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = inference_cost(encoder, head, Fidelity(18, 2, 32), repeats=3)
    assert (found["encoder"].seconds, found["head"].seconds) == (5, 1)
    videos = sum(len(frames) for frames in seen if not frames.is_meta)
    assert videos == 16 + 3 * 18  # a first pass of 16 snippets, then three videos
    with pytest.raises(ValueError, match="device 'tpu' is not on this machine"):
        inference_cost(encoder, head, SMALL, "tpu", 1)


def test_without_an_encoder_the_step_is_that_of_stage_three():
    head = heads.build_head(ActionFormerConfig(hidden=32, max_steps=64), 48, 3)
    sizes = Fidelity(64, 8, 224), 2
    predicted = activation_bytes(None, head, *sizes)
    step = Step(None, head, *sizes, "fp32", "full", 0)
    step.run(step.clips(2), lectures.Watch())  # makes the tables that stay
    step.modules.zero_grad(set_to_none=True)
    with lectures.CpuMeter() as measured:
        step.run(features := step.clips(2), measured)
    assert features.shape == (2, 48, 64) and predicted.encoder == "none"
    held = sum(tensor.nbytes for tensor in step.static) + features.nbytes
    assert predicted.saved_bytes == pytest.approx(measured.saved, rel=0.01)
    assert predicted.peak_bytes == pytest.approx(measured.peak + held, rel=0.05)
    for wrong in (
        {"head": None},
        {"head": head, "micro_batch": 1},
        {"head": head, "mode": "exact"},
    ):
        with pytest.raises(ValueError, match="features are given"):
            activation_bytes(None, fidelity=sizes[0], **wrong)


def test_the_memory_commands_take_a_preset_or_a_file(tmp_path, capsys):
    out, config = tmp_path / "found.json", tmp_path / "mine.json"
    tyro.cli(commands.memory, args=f"--preset tiny --measure 1 --json {out}".split())
    found = json.loads(out.read_text())
    assert (found["encoder"], found["head"], found["batch"]) == ("tsm-toy", "GTAD", 4)
    assert found["fidelity"] == {"snippets": 16, "frames": 4, "pixels": 40}
    assert found["inference"]["device"] == "cpu" and found["inference"]["encoder"]["seconds"] > 0
    line = f"median of 1 on cpu, {torch.get_num_threads()} thread(s), in fp32, without decoding"
    assert line in capsys.readouterr().out
    config.write_text(
        '{"preset": "tiny", "encoder": "motion-toy", "lofi": {"training": {"batch": 2}}}'
    )
    tyro.cli(commands.memory, args=f"--config {config} --pixels 32 --json {out}".split())
    found = json.loads(out.read_text())
    assert (found["encoder"], found["batch"]) == ("motion-toy", 2)
    assert found["fidelity"] == {"snippets": 16, "frames": 4, "pixels": 32}


def test_presets_of_published_features_have_a_head_and_nothing_else(tmp_path, capsys):
    out, words = tmp_path / "found.json", "--preset activitynet-tsp"
    tyro.cli(commands.memory, args=f"{words} --json {out}".split())
    found = json.loads(out.read_text())
    assert (found["encoder"], found["head"], found["batch"]) == ("none", "ActionFormer", 16)
    assert list(found["inference"]) == ["head"] and found["frames_bytes"] == 0
    line = "actionformer head alone, on published features of 512 × 192, batch 16, fp32"
    assert line in capsys.readouterr().out
    tyro.cli(commands.plan, args=f"{words} --budget-gib 16".split())
    assert "head on features" in capsys.readouterr().out
    own = tmp_path / "own.json"
    own.write_text('{"preset": "thumos14", "data": {"features": {"folder": "x"}}}')
    with pytest.raises(ValueError, match=r"data\.features\.width"):
        tyro.cli(commands.memory, args=f"--config {own}".split())


def test_consumers_of_a_resnet_18():
    report = activation_bytes("tsm-r18", None, FULL)
    assert sum(entry.bytes for entry in report.top) == report.saved_bytes
    share = dict.fromkeys((entry.kind for entry in report.top), 0.0)
    for entry in report.top:
        share[entry.kind] += 100 * entry.bytes / report.saved_bytes
    assert share["convolution output"] == pytest.approx(41, abs=0.6)  # inputs of batch norm
    assert share["batch norm or ReLU output"] == pytest.approx(38, abs=0.6)
    assert share["shifted copy"] == pytest.approx(15, abs=0.6)
    assert share["pooling indices"] == pytest.approx(6.6, abs=0.6)
    largest = report.top[0]  # 800 frames × 64 channels × 112², float32
    assert largest.name in ("conv1", "bn1") and largest.bytes >= 800 * 64 * 112 * 112 * 4
    sizes = [entry.bytes for entry in report.top]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("name", "amp", "mode", "percent"),
    [
        ("tsm-r18", "bf16", Mode(), 55),
        ("tsm-r18", "fp32", Mode(recompute=True), 15),
        ("tsm-r50", "fp32", Mode(recompute=True), 21),
        ("tsm-r18", "bf16", Mode(recompute=True), 7.6),
        ("tsm-r18", "fp32", Mode(fold=True), 60),  # no batch norm inputs: 100 - 41, and indices
    ],
)
def test_savers(name, amp, mode, percent):
    fidelity = Fidelity(25, 8, 224)
    base = activation_bytes(name, None, fidelity).saved_bytes
    found = activation_bytes(name, None, fidelity, amp=amp, mode=mode).saved_bytes
    assert 100 * found / base == pytest.approx(percent, abs=0.7)


@pytest.mark.parametrize(
    ("stage", "mib"), [("stem", 15.7), ("layer1", 8.8), ("layer2", 3.83), ("layer3", 1.3)]
)
def test_frozen_stages_keep_nothing(stage, mib):
    by_mode = activation_bytes("tsm-r18", None, FULL, mode=Mode("partial", stage=stage))
    assert by_mode.saved_bytes / 800 / 2**20 == pytest.approx(mib, abs=0.05)
    encoder = build_encoder("tsm-r18", seed=0)
    freeze_until(encoder, stage)
    assert activation_bytes(encoder, None, FULL).saved_bytes == by_mode.saved_bytes


def test_a_prediction_allocates_next_to_nothing():
    encoder = build_encoder("tsm-r50", seed=0)
    activation_bytes(encoder, None, SMALL)  # imports
    resource = pytest.importorskip("resource")  # Windows has none
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = activation_bytes(encoder, None, FULL, batch=16)
    assert report.peak_bytes > 1000 * GIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_exact_memory_does_not_depend_on_the_number_of_snippets():
    reports = [
        activation_bytes("tsm-r18", None, Fidelity(snippets, 8, 224), mode=Mode("exact", chunk=1))
        for snippets in (10, 100)
    ]
    assert reports[0].saved_bytes == reports[1].saved_bytes
    assert reports[0].peak_bytes == pytest.approx(reports[1].peak_bytes, rel=0.002)
    one_snippet = 18.24 * GIB / 100
    assert reports[1].saved_bytes == pytest.approx(one_snippet, rel=0.01)
    assert reports[1].peak_bytes - 2 * reports[1].parameters_bytes < 2 * GIB


def test_arithmetic_of_the_modes():
    flops = {
        mode: activation_bytes("tsm-r18", None, FULL, mode=mode).flops
        for mode in ("full", "exact", "sampled", "bank", "frozen")
    }
    forward = 2 * 1.814e9 * 800  # 1.814 G multiplications a frame at 224 px
    assert flops["frozen"] == pytest.approx(forward, rel=0.01)
    assert flops["full"] / forward == pytest.approx(3, rel=0.03)  # none for the input frames
    assert flops["exact"] / flops["full"] == pytest.approx(4 / 3, rel=0.01)
    assert flops["sampled"] / forward == pytest.approx(1 + 3 * 0.3, rel=0.03)
    assert flops["bank"] / forward == pytest.approx(4 * 0.3, rel=0.03)


def test_predicting_leaves_the_modules_alone():
    encoder, head = build_encoder("tsm-toy", seed=0), heads.GTAD(64)
    freeze_batch_norm(encoder)
    digest = encoder_hash(encoder)
    activation_bytes(encoder, head, SMALL, mode=Mode("partial", stage="layer1", recompute=True))
    activation_bytes(encoder, head, SMALL, mode=Mode(fold=True))
    measured_bytes(encoder, head, SMALL)
    assert encoder_hash(encoder) == digest
    assert encoder.frozen_batch_norm == "affine" and encoder.frozen_stage is None
    assert not encoder.recompute and not encoder.bn1.folded
    parameters = [*encoder.parameters(), *head.parameters()]
    assert all(type(p) is torch.nn.Parameter and p.grad is None for p in parameters)
    maps = head(encoder(torch.rand(4, 4, 3, 48, 48)).T[None])
    assert torch.isfinite(maps.confidence).all()


def test_reports_are_json():
    report = activation_bytes("tsm-toy", None, SMALL, batch=2)
    found = json.loads(json.dumps(report.as_dict()))
    assert found["saved_bytes_per_video"] * 2 == found["saved_bytes"] == report.saved_bytes
    assert found["fidelity"] == {"snippets": 4, "frames": 4, "pixels": 48}
    assert found["parameters_bytes"] == 78_160 * 4
    assert {"name", "bytes", "kind"} == set(found["top"][0])


def test_plan_for_the_papers_cards():
    modes = [Mode(), Mode("exact")]
    rows = {
        (row.configuration, str(row.mode)): row
        for row in plan(32, "tsm-r18", None, FULL, 4, modes=modes)  # 16 videos on four cards
    }
    for name, frames in (("S LoFi", 800), ("T LoFi", 200), ("ST LoFi", 400)):
        row = rows[name, "full"]
        assert row.fits and row.largest_batch == 4
        assert 18.5 * GIB < row.peak_bytes < 20.5 * GIB
        assert row.decoded_frames == frames
        assert row.relative_compute == pytest.approx(0.25, abs=0.02)
    full = rows["full fidelity", "full"]
    assert not full.fits and full.largest_batch == 1 and full.relative_compute == 1
    exact = rows["full fidelity", "exact, chunk 4"]
    assert exact.fits and exact.peak_bytes < 2 * GIB
    assert exact.relative_compute == pytest.approx(4 / 3, rel=0.01)


def test_plan_counts_the_optimiser_and_says_when_nothing_fits():
    modes = [Mode()]
    plain = plan(0.5, "tsm-toy", None, FULL, 1, modes=modes, optimiser_copies=0)
    momentum = plan(0.5, "tsm-toy", None, FULL, 1, modes=modes, optimiser_copies=2)
    extra = {b.peak_bytes - a.peak_bytes for a, b in zip(plain, momentum, strict=True)}
    assert extra == {2 * (78_160 - 672) * 4}  # frozen batch norm is not trained
    assert [(row.fits, row.largest_batch) for row in plain if row.fidelity == FULL] == [(False, 0)]


def test_the_default_plan_holds_what_the_paper_says_of_32_gib():
    rows = plan(32, "tsm-r18", heads.GTAD(512))
    assert len(rows) == 12 and all(row.batch == 16 for row in rows)
    fits = {f"{row.configuration}, {row.mode}" for row in rows if row.fits}
    assert "low budget LoFi, full" in fits and "full fidelity, exact, chunk 4" in fits
    assert "full fidelity, full" not in fits


def test_pictures_of_the_memory_wall():

    sizes = {"R18": {"T": 20 * GIB, "full": 320 * GIB}, "R50": {"T": 350 * GIB, "full": 1300 * GIB}}
    ax = lectures.memory_wall(sizes, {name: {k: v / 2 for k, v in row.items()}
                                     for name, row in sizes.items()})  # fmt: skip
    assert ax.get_yscale() == "log" and len(ax.patches) == 4
    assert [bar.get_height() for bar in ax.patches] == [20, 320, 350, 1300]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["R18", "R50", "bf16"]
    assert {"32 GiB", "80 GiB", "141 GiB", "20"} <= {text.get_text() for text in ax.texts}
    curves = {"one graph": {8: GIB, 16: 2 * GIB}, "exact": {8: GIB / 2, 16: GIB / 2}}
    ax = lectures.peak_by_snippets(curves, (32,))
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[1, 2], [0.5, 0.5]]
    assert ax.get_ylim()[1] > 32 and "GiB" in ax.get_ylabel()


def test_unknown_words_are_refused():
    for call, message in (
        (lambda: Mode("magic"), "unknown name 'magic'; choose one of full, exact"),
        (lambda: Mode("exact", chunk=0), "chunk 0"),
        (lambda: activation_bytes("tsm-r18", None, SMALL, amp="fp8"), "unknown precision 'fp8'"),
        (lambda: activation_bytes("tsm-r18", None, SMALL, batch=0), "batch is 0"),
        (lambda: activation_bytes("r18", None, SMALL), "unknown encoder 'r18'"),
        (lambda: activation_bytes("tsm-toy", None, SMALL, mode=Mode("partial", stage="x")),
         "stages: stem"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
