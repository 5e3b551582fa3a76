"""The encoder's gradient: one graph, exact at the memory of one chunk, sampled, partial, or none.

Features f_i = encoder(x_i) of the snippets are independent of each other, so the gradient of a loss
is the sum over snippets of the gradient through f_i, given dL/df_i. "exact" therefore finds the
features without a graph, back-propagates the head once for dL/df, and then encodes every chunk
again with its graph (GradCache, Gao et al. 2021; ETAD, Liu et al. 2023, is "sampled"; TALLFormer,
Cheng and Bertasius 2022, whose other features are old ones, is "bank"). It is exact
only while a snippet's feature depends on that snippet alone and both passes are the same function:
live batch statistics are refused, random layers are replayed.
B videos, L snippets a video, F frames a snippet, S pixels a side, C channels.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lofi.config import Mode
from lofi.encoders import Encoder, freeze_trunk, freeze_until, normalise
from lofi.encoders.extraction import autocast, grad_scaler

log = logging.getLogger(__name__)
TOLERANCE = 1e-3  # of verify_exact; float32 rounding is about 1e-6, a broken set-up above 0.1
SMALL = 64  # pixels of the video that verify_exact looks at

# Features (b, C, L) of the videos `part` of this process's share → named losses. "loss" is
# back-propagated; the parts' losses add up to those of the logical batch.
LossesOf = Callable[[Tensor, slice], dict[str, Tensor]]


class Watch:
    """What a step tells its observer (`lofi.budget`); does nothing by itself."""

    def begin(self) -> None:
        """The forward pass of a graph starts; what exists already is not saved by it."""

    def end(self) -> None:
        """The forward pass of a graph is over."""

    def chunks(self, parts: list) -> Iterable:
        """The equal passes that are about to be made, in order."""
        return parts


class EndToEnd:
    """Forward and backward of encoder and head over one process's share of a logical batch.

    Args:
        mode: see `lofi.config.Mode`; "partial", "adapters", "frozen" freeze the encoder here
            (adapters are there already, as `parameters`). ValueError where live batch statistics
            would make it inexact.
        parameters: everything that is trained; their gradients are accumulated.
        amp: "fp32", or "bf16", "fp16" for autocast (both passes of the chunked modes alike).
        micro_batch: videos whose graph is held at once; 0 = the whole share.
    """

    def __init__(
        self, encoder: Encoder, mode: Mode, parameters: Sequence[nn.Parameter] = (), *,
        amp: str = "fp32", micro_batch: int = 0, watch: Watch | None = None,
    ):  # fmt: skip
        if amp not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"unknown precision {amp!r}; known: fp32, bf16, fp16")
        self.encoder, self.mode, self.amp = encoder, mode, amp
        self.chunk, self.micro_batch = mode.chunk, micro_batch
        self.parameters = list(parameters)
        self.watch = watch or Watch()
        self.scaler = grad_scaler(amp, next(encoder.parameters()).device)
        encoder.recompute = mode.recompute
        if mode.name in ("partial", "frozen"):
            freeze_until(encoder, mode.stage if mode.name == "partial" else encoder.stages[-1])
        if mode.name == "adapters":
            freeze_trunk(encoder)
        self.refuse_live_statistics()

    def refuse_live_statistics(self) -> None:
        """ValueError when batch statistics would make a chunked or micro-batched step inexact."""
        if (self.mode.chunked or self.micro_batch) and (live := _live_norms(self.encoder)):
            what = f"mode {self.mode.name}" if self.mode.chunked else "a micro-batch"
            raise ValueError(
                f"{what} needs frozen batch norm, but {live[0]} of {self.encoder.name} follows the "
                "statistics of each chunk, which is another function; set lofi.frozen_bn or use "
                "mode full without micro-batches"
            )

    def one_backward(self) -> bool:
        """Whether a step is one backward pass, so that gradients can be sent while it goes on."""
        return not (self.mode.chunked or self.micro_batch)

    def backpropagate(
        self, clips: Tensor, losses_of: LossesOf, sampled: Tensor | None = None,
        known: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Add the gradients of a share to the parameters; returns its losses, detached.

        When memory runs out the chunk (or the micro-batch) is halved, for this and all later
        steps, and the step is done again: the mathematics stays the same.

        Args:
            clips: (B, L, F, 3, S, S) uint8, on any device; sent in parts.
            sampled: (B, k) snippets of each video that get a gradient, modes "sampled" and "bank".
            known: (B, C, L) features of earlier visits, mode "bank"; those of `sampled` become the
                new ones.
        """
        if (sampled is None and self.mode.drawn) or (known is None and self.mode.name == "bank"):
            needs = f"mode {self.mode.name} needs the snippets to sample; pass sampled=(B, k)"
            more = " and the features of earlier visits, known=(B, C, L)"
            raise ValueError(needs + more * (self.mode.name == "bank"))
        self.refuse_live_statistics()
        run = self._in_chunks if self.mode.chunked else self._one_graph
        while True:
            size = self.micro_batch or len(clips)
            total: dict[str, Tensor] = {}
            try:
                for start in range(0, len(clips), size):
                    part = slice(start, min(start + size, len(clips)))
                    more = (given if given is None else given[part] for given in (sampled, known))
                    for name, value in run(clips[part], losses_of, part, *more).items():
                        total[name] = total.get(name, 0) + value.detach()
                return total
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(clips), error)
            for parameter in self.parameters:  # gradients of the unfinished step
                parameter.grad = None

    def _one_graph(self, clips, losses_of, part, *_) -> dict[str, Tensor]:
        frames = self._frames(clips.flatten(0, 1))
        self.watch.begin()
        with self._autocast():
            features = _at_least_float32(self.encoder(frames))
            losses = losses_of(_by_video(features, len(clips)), part)
        self.watch.end()
        self.scaler.scale(losses["loss"]).backward()
        return losses

    def _in_chunks(self, clips, losses_of, part, sampled, known) -> dict[str, Tensor]:
        snippets, length = clips.flatten(0, 1), clips.shape[1]
        rows = every = torch.arange(len(snippets))
        if self.mode.drawn:
            rows = (sampled + torch.arange(len(clips))[:, None] * length).flatten()
        features, states = self._features(snippets, every if known is None else rows)
        if known is not None:
            together = known.to(features, copy=True).transpose(1, 2).flatten(0, 1)
            together[rows.to(features.device)] = features
            known.copy_(_by_video(together, len(clips)))
            features = together
        features.requires_grad_(self.mode.name != "frozen")
        self.watch.begin()
        with self._autocast():
            losses = losses_of(_by_video(features, len(clips)), part)
        self.watch.end()
        if losses["loss"].requires_grad:
            self.scaler.scale(losses["loss"]).backward()
        if self.mode.name == "frozen":
            return losses
        gradient = features.grad
        if self.mode.name == "sampled" and self.mode.rescale:
            # right on average: E[sum over sample] = k / L of the full sum
            gradient = gradient * (length / sampled.shape[1])
        for i, chosen in self.watch.chunks(list(enumerate(rows.split(self.chunk)))):
            frames = self._frames(snippets[chosen])
            self.watch.begin()
            replay = _random_state(*states[i]) if states else contextlib.nullcontext()
            with replay, self._autocast():
                again = _at_least_float32(self.encoder(frames))
            self.watch.end()
            again.backward(gradient[chosen.to(gradient.device)])
            del frames, again
        return losses

    def _features(self, snippets: Tensor, rows: Tensor) -> tuple[Tensor, list]:
        """(N, C) float32 features of `rows` without a graph; the random state before each chunk."""
        found, states = None, []
        dropouts = [m for m in self.encoder.modules() if isinstance(m, _DropoutNd) and m.training]
        replay = self.mode.name == "exact" and any(m.p > 0 for m in dropouts)
        device = next(self.encoder.parameters()).device
        places = torch.arange(len(rows)).split(self.chunk)
        for _, place in self.watch.chunks(list(enumerate(places))):
            if replay:
                cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
                states.append((torch.get_rng_state(), cuda))
            with torch.no_grad(), self._autocast():
                part = _at_least_float32(self.encoder(self._frames(snippets[rows[place]])))
            if found is None:
                found = part.new_zeros(len(rows), part.shape[1])
            found[place.to(device)] = part
        return found, states

    def _frames(self, snippets: Tensor) -> Tensor:
        """(n, F, 3, S, S) normalised frames on the encoder's device."""
        device = next(self.encoder.parameters()).device
        return normalise(snippets.to(device, non_blocking=True), self.encoder)

    def _autocast(self):
        return autocast(self.amp, next(self.encoder.parameters()).device)

    def _halve(self, videos: int, error: RuntimeError) -> None:
        first_line = str(error).splitlines()[0]
        size = self.micro_batch or videos
        if self.mode.chunked and self.chunk > 1:
            self.chunk = (self.chunk + 1) // 2
            smaller = f"chunks of {self.chunk} snippets"
        elif size > 1 and not _live_norms(self.encoder):
            self.micro_batch = (size + 1) // 2
            smaller = f"micro-batches of {self.micro_batch} videos"
        else:
            raise RuntimeError(
                f"out of memory with {size} videos at once in mode {self.mode}: {first_line}. "
                "Use mode exact (lofi.mode.name), a lower fidelity, or bf16 (lofi.amp); "
                "lofi plan shows what fits"
            ) from error
        log.warning("out of memory (%s); going on with %s, same gradients", first_line, smaller)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def sampled_snippets(videos: int, snippets: int, ratio: float, generator) -> Tensor:
    """(videos, k) sorted random snippets of each video without repetition, k = round(ratio · L)."""
    count = max(1, round(ratio * snippets))
    order = torch.rand(videos, snippets, generator=generator).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def verify_exact(encoder: Encoder, mode: Mode, clips: Tensor) -> float:
    """Relative error of the chunked gradient against one graph; ValueError where it is above 1e-3.

    Of `clips` (B, L, F, 3, S, S) uint8 a few snippets of the first video at 64 pixels are used.
    """
    step = max(1, clips.shape[-1] // SMALL)
    clips = clips[:1, : 2 * mode.chunk + 1, ..., ::step, ::step]
    side = clips.shape[-1] // encoder.patch * encoder.patch
    clips = clips[..., :side, :side]

    def coupled(features: Tensor, _: slice) -> dict[str, Tensor]:
        unit = features / features.norm()
        return {"loss": (unit @ unit.transpose(1, 2)).square().sum()}  # mixes all snippets

    gradients = []
    for tried in (Mode("full"), replace(mode, name="exact")):
        twin = copy.deepcopy(encoder)
        twin.zero_grad(set_to_none=True)
        EndToEnd(twin, tried).backpropagate(clips, coupled)
        found = [p.grad.flatten() for p in twin.parameters() if p.grad is not None]
        if not found:
            raise ValueError(f"{encoder.name}: no parameter gets a gradient in mode {tried}")
        gradients.append(torch.cat(found))
    whole, chunked = gradients
    if whole.shape != chunked.shape:
        raise ValueError(f"{encoder.name}: mode {mode.name} leaves parameters without a gradient")
    error = float((chunked - whole).norm() / whole.norm().clamp_min(1e-30))
    if not error <= TOLERANCE:
        raise ValueError(
            f"mode {mode.name} is not exact for {encoder.name}: its gradient differs by "
            f"{error:.1e} (allowed {TOLERANCE:g}) from that of one graph. Snippets must not "
            "see each other, and both passes must be the same function (batch norm, random layers)"
        )
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors with which torch reports that CUDA, MPS or the CPU has no memory left."""
    text = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in text for phrase in phrases)


def _at_least_float32(features: Tensor) -> Tensor:
    """The gradient of the features is kept in float32, also under autocast."""
    return features if features.dtype == torch.float64 else features.float()


def _by_video(features: Tensor, videos: int) -> Tensor:
    """(B · L, C) → (B, C, L)."""
    return features.view(videos, -1, features.shape[1]).transpose(1, 2)


def _live_norms(encoder: nn.Module) -> list[str]:
    """Names of the batch norms that follow the statistics of what passes."""
    norms = (m for m in encoder.named_modules() if isinstance(m[1], _BatchNorm))
    return [name for name, module in norms if module.training]


@contextlib.contextmanager
def _random_state(cpu: Tensor, cuda: Tensor | None):
    """Repeat the random numbers that were drawn from a state on; leaves the generators alone."""
    with torch.random.fork_rng():
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        yield
