"""The encoder modes: when the chunked gradient is exact, and that everything else is refused."""

import copy
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lofi import config as configs
from lofi.config import Mode
from lofi.data.toyworld import TINY, write_world
from lofi.encoders import build_encoder, freeze_batch_norm
from lofi.encoders.extraction import encode
from lofi.heads import (
    GTAD,
    Targets,
    build_head,
    collate_targets,
    draw,
    loss,
    loss_statistics,
    targets,
)
from lofi.training.end_to_end import EndToEnd, sampled_snippets, verify_exact
from lofi.training.head import extract_features, train_head
from lofi.training.joint import train_lofi
from lofi.training.methods import JOINT, lofi_method, method_config
from lofi.training.pretraining import train_acp
from lofi.training.run_folder import read_metrics

VIDEOS, SNIPPETS = 2, 12


class Attention(nn.Module):
    """A head in which every snippet sees every other one."""

    def __init__(self, channels: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.query, self.value = nn.Linear(channels, 8), nn.Linear(channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features.transpose(1, 2)  # (B, L, C)
        q = self.query(x)
        return (q @ q.transpose(1, 2) / 8).softmax(-1) @ self.value(x)


def small_encoder(dtype=torch.float64, name="tsm-toy", frozen=True, drop=0.0):
    encoder = build_encoder(name, seed=0).to(dtype)
    gen = torch.Generator().manual_seed(2)
    for module in encoder.modules():  # statistics that matter
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(0, 0.1, generator=gen)
            module.running_var.uniform_(0.5, 1.5, generator=gen)
    if drop:
        encoder = WithDropout(encoder, drop)
    if frozen:
        freeze_batch_norm(encoder if not drop else encoder.inner)
    return encoder.train()


class WithDropout(nn.Module):
    """A frozen-statistics encoder behind dropout on its frames, as public trunks have it."""

    name, stages, recompute = "dropped", (), False

    def __init__(self, inner, share: float):
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(share)
        self.mean, self.std = inner.mean, inner.std

    def forward(self, frames):
        return self.inner(self.drop(frames))


def frames(videos=VIDEOS, snippets=SNIPPETS, pixels=24, seed=0):
    gen = torch.Generator().manual_seed(seed)
    size = (videos, snippets, 4, 3, pixels, pixels)
    return torch.randint(0, 256, size, generator=gen, dtype=torch.uint8)


def gradient(
    encoder, mode, clips=None, *, amp="fp32", micro_batch=0, sampled=None, step=EndToEnd, known=None
):
    """Flat gradient of encoder and attention head, and the loss."""
    encoder = copy.deepcopy(encoder)
    channels = 64 if hasattr(encoder, "inner") else encoder.channels
    head = Attention(channels).to(next(encoder.parameters()).dtype)
    parameters = [*encoder.parameters(), *head.parameters()]
    run = step(encoder, mode, parameters, amp=amp, micro_batch=micro_batch)
    clips = frames() if clips is None else clips
    found = run.backpropagate(
        clips, lambda x, part: {"loss": head(x).tanh().square().sum()}, sampled, known
    )
    grads = [p.grad.double().flatten() for p in parameters if p.grad is not None]
    return torch.cat(grads), float(found["loss"])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "dtype, allowed, chunk",
    [(torch.float64, 1e-13, chunk) for chunk in (1, 5, 24, 100)] + [(torch.float32, 1e-5, 4)],
)
def test_chunked_gradients_are_exact_for_any_chunk(dtype, allowed, chunk):
    encoder = small_encoder(dtype)
    wanted, loss_wanted = gradient(encoder, Mode("full"))
    found, loss_found = gradient(encoder, Mode("exact", chunk=chunk))
    assert error(found, wanted) < allowed
    assert loss_found == pytest.approx(loss_wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["tsm-r18", "r2plus1d-18"])
def test_real_encoders_are_exact_too(name):
    encoder, clips = small_encoder(name=name), frames(1, 3, 24)
    assert encoder.channels == 512
    wanted, _ = gradient(encoder, Mode("full"), clips)
    found, _ = gradient(encoder, Mode("exact", chunk=1), clips)
    assert error(found, wanted) < 1e-12


def test_bf16_in_both_passes_is_within_a_percent_of_one_bf16_graph():
    encoder = small_encoder(torch.float32)
    wanted, _ = gradient(encoder, Mode("full"), amp="bf16")
    found, _ = gradient(encoder, Mode("exact", chunk=5), amp="bf16")
    assert error(found, wanted) < 0.01
    assert error(gradient(encoder, Mode("full"))[0], wanted) > 1e-3  # it was bf16


def test_dropout_is_replayed_and_would_be_wrong_without():
    encoder = small_encoder(drop=0.3)

    def one_graph_in_chunks():  # the same masks: one graph, built chunk by chunk
        twin, head = copy.deepcopy(encoder), Attention(64).double()
        torch.manual_seed(5)
        parts = [encode(twin, c[None])[0].T for c in frames().flatten(0, 1).split(5)]
        x = torch.cat(parts).view(VIDEOS, SNIPPETS, -1).transpose(1, 2)
        head(x).tanh().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in [*twin.parameters(), *head.parameters()]
                          if p.grad is not None])  # fmt: skip

    class NoReplay(EndToEnd):
        def _features(self, snippets, rows):
            return super()._features(snippets, rows)[0], []

    wanted = one_graph_in_chunks()
    torch.manual_seed(5)
    assert error(gradient(encoder, Mode("exact", chunk=5))[0], wanted) < 1e-13
    torch.manual_seed(5)
    assert error(gradient(encoder, Mode("exact", chunk=5), step=NoReplay)[0], wanted) > 0.01


def test_live_batch_statistics_are_refused():
    live = small_encoder(frozen=False)
    for mode, micro_batch in ((Mode("exact"), 0), (Mode("sampled"), 0), (Mode("full"), 1)):
        with pytest.raises(ValueError, match="needs frozen batch norm, but .* follows"):
            EndToEnd(live, mode, micro_batch=micro_batch)
    EndToEnd(live, Mode("full"))  # one graph of everything: what the statistics are meant for


def test_a_stray_train_call_between_the_passes_changes_nothing():
    encoder = small_encoder()
    wanted, _ = gradient(encoder, Mode("full"))
    twin, head = copy.deepcopy(encoder), Attention(encoder.channels).double()

    def losses(x, part):
        twin.train()
        return {"loss": head(x).tanh().square().sum()}

    parameters = [*twin.parameters(), *head.parameters()]
    EndToEnd(twin, Mode("exact"), parameters).backpropagate(frames(), losses)
    found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert error(found, wanted) < 1e-13


def test_recomputed_blocks_give_every_tensor_its_gradient():
    encoder = small_encoder()
    wanted, _ = gradient(encoder, Mode("full"))
    found, _ = gradient(encoder, Mode("full", recompute=True))
    assert len(found) == len(wanted) and error(found, wanted) < 1e-13


def test_folded_batch_norm_keeps_the_gradient():
    encoder = small_encoder()
    wanted, _ = gradient(encoder, Mode("full"))
    freeze_batch_norm(encoder, fold=True)
    assert error(gradient(encoder, Mode("exact", fold=True))[0], wanted) < 1e-12


def test_cutting_inside_a_snippet_would_change_the_features():
    encoder, clips = small_encoder(), frames(1, 1)
    with torch.no_grad():
        whole = encode(encoder, clips)
        halves = [encode(encoder, clips[:, :, part]) for part in (slice(0, 2), slice(2, 4))]
    assert error(torch.stack(halves).mean(0), whole) > 0.01


def test_sampled_gradients_are_right_on_average_only_when_rescaled():
    encoder = small_encoder()
    wanted, _ = gradient(encoder, Mode("full"))
    size = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    wanted, gen = wanted[:size], torch.Generator().manual_seed(0)
    draws = [sampled_snippets(VIDEOS, SNIPPETS, 0.25, gen) for _ in range(40)]
    assert draws[0].shape == (VIDEOS, 3)

    def share(rescale):  # of the true gradient, along it
        mode = Mode("sampled", ratio=0.25, rescale=rescale)
        found = [gradient(encoder, mode, sampled=d)[0][:size] for d in draws]
        mean = torch.stack(found).mean(0)
        return float(mean @ wanted / wanted.square().sum())

    assert share(True) == pytest.approx(1, abs=0.2)
    assert share(False) == pytest.approx(0.25, abs=0.05)
    every = torch.arange(SNIPPETS).expand(VIDEOS, -1)
    assert error(gradient(encoder, Mode("sampled", ratio=1.0), sampled=every)[0][:size], wanted) < (
        1e-13
    )


def test_a_bank_gives_old_features_where_nothing_is_sampled_and_takes_the_new_ones():
    encoder, gen = small_encoder(), torch.Generator().manual_seed(0)
    draw = sampled_snippets(VIDEOS, SNIPPETS, 0.25, gen)
    with torch.no_grad():
        now = encode(encoder, frames())  # (B, C, L)
    known, mode = now.clone(), Mode("bank", ratio=0.25, chunk=2)
    wanted = gradient(encoder, Mode("sampled", ratio=0.25, rescale=False), sampled=draw)
    found = gradient(encoder, mode, sampled=draw, known=known)
    assert error(found[0], wanted[0]) < 1e-12 and found[1] == pytest.approx(wanted[1], rel=1e-12)
    old = torch.randn(now.shape, generator=gen, dtype=now.dtype)
    known, drawn = old.clone(), torch.zeros(VIDEOS, SNIPPETS).scatter(1, draw, 1).bool()
    for micro_batch in (0, 1):
        known.copy_(old)
        found = gradient(encoder, mode, sampled=draw, known=known, micro_batch=micro_batch)
        torch.testing.assert_close(known, torch.where(drawn[:, None], now, old))
        assert found[1] != pytest.approx(wanted[1], rel=1e-3)
    with pytest.raises(ValueError, match=r"mode bank needs .* known=\(B, C, L\)"):
        gradient(encoder, mode, sampled=draw)


def test_partial_and_frozen_modes_train_what_they_say():
    encoder = small_encoder()
    wanted, _ = gradient(encoder, Mode("full"))
    for mode, trained in ((Mode("partial", stage="layer2"), "layer3"), (Mode("frozen"), None)):
        twin = copy.deepcopy(encoder)
        head = Attention(encoder.channels).double()
        EndToEnd(twin, mode).backpropagate(
            frames(), lambda x, part, head=head: {"loss": head(x).sum()}
        )
        found = {name.split(".")[0] for name, p in twin.named_parameters() if p.grad is not None}
        assert found == ({trained} if trained else set())
        assert head.value.weight.grad is not None


def real_losses(head, labels, draws, statistics):
    def losses(features, part):
        chosen = Targets(*(t[part] for t in labels))
        terms = loss(head(features), chosen, statistics=statistics, draws=draws[part])
        return {"loss": terms.total, "node": terms.node}

    return losses


@pytest.mark.parametrize("mode", [Mode("full"), Mode("exact", chunk=3)])
def test_micro_batches_add_up_to_the_logical_batch(mode):
    segments = [[[1.0, 4.0]], [[0.0, 9.0], [2.0, 3.0]], [[5.0, 6.0]], [[7.0, 10.0]]]
    labels = collate_targets([targets(s, 10.0, 8) for s in segments])
    labels = Targets(*(t.double() if t.dtype.is_floating_point else t for t in labels))
    draws = draw(labels, torch.Generator().manual_seed(0)).double()
    clips = frames(4, 8)

    def run(micro_batch):
        encoder = small_encoder()
        torch.manual_seed(0)
        head = GTAD(encoder.channels, 8, hidden=16, paths=4, map_hidden=(16, 8)).double()
        parameters = [*encoder.parameters(), *head.parameters()]
        losses = real_losses(head, labels, draws, loss_statistics(labels, draws))
        found = EndToEnd(encoder, mode, parameters, micro_batch=micro_batch).backpropagate(
            clips, losses
        )
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), found

    wanted, total = run(0)
    for micro_batch in (1, 3):
        found, parts = run(micro_batch)
        assert error(found, wanted) < 1e-11
        assert {k: float(v) for k, v in parts.items()} == pytest.approx(
            {k: float(v) for k, v in total.items()}
        )


def out_of_memory_above(encoder, snippets: int):
    forward = encoder.forward

    def limited(x):
        if len(x) > snippets:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(x)

    encoder.forward = limited


@pytest.mark.parametrize(
    "mode, room, said",
    [
        (Mode("exact", chunk=8), 4, "chunks of 4 snippets"),
        (Mode("full"), SNIPPETS, "micro-batches of 1 videos"),
    ],
)
def test_out_of_memory_halves_once_says_so_and_keeps_the_gradient(mode, room, said, caplog):
    encoder = small_encoder()
    wanted, _ = gradient(encoder, Mode("full"))
    head = Attention(encoder.channels).double()
    out_of_memory_above(encoder, room)
    parameters = [*encoder.parameters(), *head.parameters()]
    step = EndToEnd(encoder, mode, parameters)

    def losses(x, part):
        return {"loss": head(x).tanh().square().sum()}

    with caplog.at_level(logging.WARNING, logger="lofi"):
        step.backpropagate(frames(), losses)
        once = [p.grad.clone() for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None
        step.backpropagate(frames(), losses)  # remembers the smaller size
    assert [said in record.message for record in caplog.records] == [True]
    assert error(torch.cat([g.flatten() for g in once]), wanted) < 1e-12


def test_out_of_memory_with_nothing_left_to_halve_says_what_to_do():
    encoder = small_encoder()
    out_of_memory_above(encoder, 0)
    step = EndToEnd(encoder, Mode("exact", chunk=2))
    with pytest.raises(RuntimeError, match="out of memory with 1 videos at once.*lofi plan"):
        step.backpropagate(frames(), lambda x, part: {"loss": x.sum()})


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    encoder = small_encoder()
    with pytest.raises(RuntimeError, match="size of tensor"):
        EndToEnd(encoder, Mode("full")).backpropagate(
            frames(), lambda x, part: {"loss": (x + torch.zeros(7, 7, 7)).sum()}
        )


def test_self_check_accepts_snippet_encoders_and_refuses_the_others():
    assert verify_exact(small_encoder(torch.float32), Mode("exact", chunk=2), frames()) < 1e-5

    class Neighbours(type(small_encoder())):
        def forward(self, x):
            features = super().forward(x)
            return features - features.mean(0)  # a snippet sees the others of its chunk

    leaky = small_encoder(torch.float32)
    leaky.__class__ = Neighbours
    with pytest.raises(ValueError, match="mode exact is not exact for tsm-toy: .*Snippets must"):
        verify_exact(leaky, Mode("exact", chunk=2), frames())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny world and an ACP encoder; returns (config, run folder)."""
    world, run = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("run")
    write_world(world, replace(TINY, source_clips=(16, 4), videos=(8, 2)), seed=0)
    changes = {"data.world": str(world), "acp.epochs": 1, "acp.batch": 8,
               "lofi.training.epochs": 1, "lofi.training.batch": 4}  # fmt: skip
    config = configs.override(configs.preset("tiny"), changes)
    train_acp(config, run)
    return config, run


def first_losses(trained, **changes):
    """Metrics and result of stage 2 with changed settings `lofi.…` (two underscores for a dot)."""
    config, run = trained
    named = {f"lofi.{key.replace('__', '.')}": value for key, value in changes.items()}
    config = configs.override(config, named)
    shutil.rmtree(run / lofi_method(config), ignore_errors=True)
    result = train_lofi(config, run)
    return read_metrics(run / lofi_method(config) / "encoder"), result


def test_stage_two_trains_in_every_mode_and_exact_follows_full(trained):
    full, _ = first_losses(trained, schedule="full")
    exact, _ = first_losses(trained, schedule="full", mode__name="exact", mode__chunk=5)
    for a, b in zip(full, exact):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)
    assert "gradient within" in (trained[1] / "exact" / "encoder" / "log.txt").read_text()
    sampled, _ = first_losses(trained, schedule="full", mode__name="sampled", mode__ratio=0.5)
    assert sampled[0]["loss"] == pytest.approx(full[0]["loss"], rel=1e-5)  # same features
    assert sampled[0]["grad_norm"] != pytest.approx(full[0]["grad_norm"], rel=1e-3)
    bank, _ = first_losses(trained, schedule="full", mode__name="bank", mode__ratio=0.25)
    assert bank[0]["loss"] == pytest.approx(full[0]["loss"], rel=1e-5)  # it begins as ACP saw them
    assert bank[-1]["loss"] != pytest.approx(full[-1]["loss"], rel=1e-5)
    with pytest.raises(
        ValueError, match="mode bank keeps features of one fidelity, schedule long has"
    ):
        first_losses(trained, schedule="long", mode__name="bank")
    for name in ("partial", "frozen"):
        log, result = first_losses(trained, schedule="full", mode__name=name)
        assert log[0]["loss"] == pytest.approx(full[0]["loss"], rel=1e-5)
    before = train_acp(trained[0], trained[1])["sha256"]
    assert result["sha256"] == before  # frozen: not one bit of the encoder moves


def test_a_bank_survives_an_interruption(trained, tmp_path):
    config, run = trained
    changes = {"lofi.training.epochs": 3, "checkpoint_every": 1}
    config = method_config(configs.override(config, changes), "bank")
    shutil.copytree(run / "acp", tmp_path / "acp")
    wanted = train_lofi(config, tmp_path)["sha256"]
    shutil.rmtree(tmp_path / "bank")

    def stop(step, steps, record):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lofi(config, tmp_path, on_step=stop)
    assert train_lofi(config, tmp_path)["sha256"] == wanted


def test_stage_two_moves_every_convolution_and_no_batch_norm_and_stage_three_only_the_head(trained):
    """Acceptance list of the paper's reimplementation, item 4."""
    config, run = trained
    before = load_file(run / "acp" / "encoder" / "encoder.safetensors")
    first_losses(trained)
    after = load_file(run / "c-lofi" / "encoder" / "encoder.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    norms = {key for key in before if before[key].dim() < 2}  # statistics, scale, offset, counter
    assert norms and moved == set(before) - norms
    extract_features(config, run, "c-lofi")
    one_step = configs.override(config, {"head_training.epochs": 1, "head_training.lr": 1e-9})
    train_head(one_step, run, "c-lofi")
    joint = load_file(run / "c-lofi" / "encoder" / "head.safetensors")
    fresh = build_head(config.head, 64, seed=config.seed).state_dict()
    new = load_file(run / "c-lofi" / "head" / "head.safetensors")
    for key, value in fresh.items():  # stage 3 starts anew, not from the head of stage 2
        torch.testing.assert_close(new[f"head.{key}"], value, rtol=0, atol=1e-6)
    assert any(not torch.equal(joint[f"head.{key}"], value) for key, value in fresh.items())
    kept = load_file(run / "c-lofi" / "encoder" / "encoder.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in after.items())


def test_class_loss_is_an_extra_term_that_reaches_the_encoder(trained):
    plain, without = first_losses(trained)
    log, result = first_losses(trained, class_loss=0.1)
    names = {"loss", "node", "regression", "classification", "class"}
    assert names <= set(log[0]) and "class" not in plain[0]
    assert log[0]["loss"] == pytest.approx(plain[0]["loss"] + 0.1 * log[0]["class"], rel=1e-5)
    assert log[0]["class"] == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=0.5)
    assert result["sha256"] != without["sha256"]


def test_live_batch_norm_in_exact_mode_is_refused_before_training(trained):
    with pytest.raises(ValueError, match="set lofi.frozen_bn"):
        first_losses(trained, frozen_bn=False, mode__name="exact")


def test_memory_settings_do_not_change_the_identity_of_a_run(trained):
    config, run = trained
    first_losses(trained)
    smaller = configs.override(config, {"lofi.micro_batch": 1, "lofi.mode.recompute": True})
    train_lofi(smaller, run)  # finished already: returns at once, refuses nothing
    with pytest.raises(ValueError, match=r"lofi\.class_loss: 0.0 → 0.1"):
        train_lofi(configs.override(config, {"lofi.class_loss": 0.1}), run)


def test_methods_are_named_after_schedule_and_mode():
    config = configs.preset("tiny")
    names = [
        "c-lofi",
        "s-lofi",
        "exact",
        "sampled",
        "bank",
        "full",
        "partial",
        "c-lofi-sampled",
        "t-lofi-partial",
    ]
    for method in names:
        assert lofi_method(method_config(config, method)) == method and method in JOINT
    exact = configs.override(config, {"lofi.mode.name": "exact"})
    assert lofi_method(exact) == "c-lofi"  # the same training at less memory
    assert "acp+" not in JOINT
    with pytest.raises(ValueError, match=r"known: random, acp, acp\+, s-lofi.*exact"):
        method_config(config, "exakt")
