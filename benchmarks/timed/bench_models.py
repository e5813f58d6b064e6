"""The attention tax: ResNet-50 with attention, against the same network without.

Ours, eager PyTorch, ``torch.compile`` and timm's networks, each beside the plain network of its own kind. Training is a
forward, the cross entropy and a backward, without an optimizer's step, which attention hardly changes; inference is in
evaluation mode without gradients. On a CPU the images are small. ``results/<device>/models.json`` keeps medians,
quartiles and peak memory; images per second are the batch over the median.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.counted.graphs import Graphs
from benchmarks.files import device, on_gpu
from benchmarks.timed.cases import TRAINING, NetworkCase
from benchmarks.timed.clocks import Run
from benchmarks.timed.formulas import FORMULAS
from benchmarks.timed.turns import LAYOUTS, Prepared, check, over, run_of
from triton_attn import backend
from triton_attn import resnet as networks
from triton_attn.explain import outermost_blocks
from triton_attn.reference.registry import BLOCKS as PLAIN
from triton_attn.reference.resnet import build_resnet

CLASSES = 1000
# timm's network with the attention in every block, and the same one without.
TIMM: dict[str, tuple[str, dict[str, Any], str]] = {
    "se": ("seresnet50", {}, "resnet50"),
    "eca": ("ecaresnet50d", {}, "resnet50d"),
    "cbam": ("resnet50", {"block_args": {"attn_layer": "cbam"}}, "resnet50"),
}
# What a provider's time is held against.
PLAIN_OF = {**dict.fromkeys(("ours", "eager", "formula"), "plain"), "timm": "timm-plain"}
PLAIN_OF |= dict.fromkeys(("ours-compile", "compile"), "plain-compile")


def providers(case: NetworkCase) -> Iterator[str]:
    """Those that have anything to say to a case here."""
    if case.compiled:
        yield from ("ours-compile", "plain-compile", "compile")
        return
    yield from ("ours", "plain") if on_gpu() else ("ours", "plain", "formula")
    if on_gpu() or backend.interpreting():
        yield "eager"  # on a CPU that is ours
    if case.attention in TIMM and case.where == "block" and case.network == "resnet50":
        yield from ("timm", "timm-plain")


def build(case: NetworkCase, provider: str, state: dict[str, Tensor]) -> nn.Module:
    """A provider's network, with ``state`` where it has the same parameters."""
    where, make = case.where.split("+"), getattr(networks, case.network)
    kind = provider.removesuffix("-compile")
    model: nn.Module
    if kind.startswith("timm"):
        import timm

        name, options, plain = TIMM[case.attention]
        model = timm.create_model(plain) if kind == "timm-plain" else timm.create_model(name, **options)
    else:
        with torch.device("meta"):  # its parameters are drawn once, for all
            if kind in ("eager", "compile"):
                model = build_resnet(case.network, case.attention, where=where, blocks=PLAIN)
            else:
                attention = FORMULAS[case.attention] if kind == "formula" else case.attention
                model = make() if kind == "plain" else make(attention, where=where)
        own = model.state_dict()
        model.load_state_dict({name: t.clone() for name, t in state.items() if name in own}, assign=True)
    model = model.to(device(), getattr(torch, case.dtype)).to(memory_format=LAYOUTS[case.layout])
    return model.train(case.mode == TRAINING)


def prepare(case: NetworkCase) -> Prepared:
    """The images and weights that all providers get, and what makes their runs."""
    torch.manual_seed(0)
    state = getattr(networks, case.network)(case.attention, where=case.where.split("+")).state_dict()
    images = torch.randn(case.batch, 3, case.image, case.image, device=device()).to(getattr(torch, case.dtype))
    images = images.contiguous(memory_format=LAYOUTS[case.layout])
    labels = torch.randint(CLASSES, (case.batch,), device=device())
    with torch.no_grad():
        expected = [build(case, "eager", state).eval()(images)]

    def make(provider: str) -> Run:
        model = build(case, provider, state)
        if provider in ("ours", "formula"):
            with torch.no_grad():  # fifty layers add up rounding
                check([model.eval()(images)], expected, [each.double() for each in expected], steps=64)
            model.train(case.mode == TRAINING)
        graphs, blocks = Graphs(), len(list(outermost_blocks(model)))
        called: Any = torch.compile(model, backend=graphs, dynamic=False) if provider.endswith("compile") else model

        def call() -> Tensor:
            logits = called(images)
            return F.cross_entropy(logits.float(), labels) if case.mode == TRAINING else logits

        run = run_of(call, list(model.parameters()), None, case.mode)
        if provider == "ours-compile" and (on_gpu() or backend.interpreting()):
            run()
            if (found := sum(map(len, graphs.ops))) < blocks:
                raise ValueError(f"of {blocks} blocks {found} were compiled with an op of ours, others as their twins")
        return run

    makers: dict[str, Callable[[], Run]] = {provider: partial(make, provider) for provider in providers(case)}
    return Prepared(makers, lambda _, samples: {"tax": taxes(samples)})


def taxes(samples: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """What each pays over the network without attention, minus one."""
    both = [(who, plain) for who, plain in PLAIN_OF.items() if who in samples and plain in samples]
    return {who: {at: r - 1 for at, r in over(samples[who], samples[plain]).items()} for who, plain in both}


def test_models(time_case: Any, case: NetworkCase) -> None:
    time_case(lambda: prepare(case))
