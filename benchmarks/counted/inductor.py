"""What ``torch.compile`` moves for a module: the kernels that Inductor plans for a GPU, which need not be there.

Its own scheduler fuses the graphs of forward and backward for the GPU, and says what each kernel that comes of it reads
and writes; no code is made of it, and nothing runs. A kernel that reads a tensor in two loops
is counted once: that is to Inductor's favour.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

GPU = torch.device("cuda", 0)
H200 = {
    "major": 9,
    "multi_processor_count": 132,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
}


def moved(make: Callable[[], tuple[nn.Module, Sequence[Tensor]]], training: bool = True) -> list[tuple[int, int]]:
    """Bytes and kernels of the graphs, forward and (in ``training``) backward, of a module on inputs.

    ``make`` makes both, of tensors that have no data.
    """
    from torch._inductor import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: list[tuple[int, int]] = []

    def inner(graph: torch.fx.GraphModule, given: Sequence[Any], **options: Any) -> Callable[..., Any]:
        found.append(_planned(graph, given, options.get("is_backward", False)))
        return _boxed(graph.forward)

    def compiler(graph: torch.fx.GraphModule, given: list[Any]) -> Callable[..., Any]:
        compiled: Any = compile_fx.compile_fx(graph, given, inner_compile=cast("Any", inner))
        return compiled

    torch._dynamo.reset()
    with _assumed_gpu(), FakeTensorMode(), torch.set_grad_enabled(training):
        module, inputs = make()
        y = torch.compile(module, backend=compiler, fullgraph=True)(*inputs)
        if training:
            y.backward(torch.ones_like(y))
    return found


def _planned(given: torch.fx.GraphModule, inputs: Sequence[Any], is_backward: bool) -> tuple[int, int]:
    """Bytes and kernels that Inductor's scheduler comes to for a graph whose tensors are on the GPU."""
    from torch._inductor.compile_fx import record_original_output_strides
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    mode = FakeTensorMode()  # the graph's tensors are on the CPU
    own = copy.deepcopy(given)
    for node in own.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": GPU}
    with mode:
        there = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=GPU) if isinstance(t, Tensor) else t
            for t in inputs
        ]
    FakeTensorProp(own, mode).propagate(*there)
    record_original_output_strides(own)
    graph = GraphLowering(own, is_backward=is_backward)
    handlers = V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext())
    with contextlib.ExitStack() as stack:
        for each in (unset_fake_temporarily(), *handlers):
            stack.enter_context(each)
        graph.run(*there)
        graph._update_scheduler()
        nodes = [each for each in graph.scheduler.nodes if not isinstance(each, NopKernelSchedulerNode)]
        return sum(each.get_read_write_buffers_sizes() for each in nodes), len(nodes)


@contextlib.contextmanager
def _assumed_gpu() -> Iterator[None]:
    """Within this, Inductor takes there to be an H200."""
    from torch._inductor import scheduler
    from torch._inductor.runtime.hints import DeviceProperties

    properties = DeviceProperties(type="cuda", index=0, cc=90, **H200)
    with (
        mock.patch.object(DeviceProperties, "create", return_value=properties),
        mock.patch.object(scheduler, "has_triton", return_value=True),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=SimpleNamespace(**H200, minor=0)),
    ):
        yield


def _boxed(run: Callable[..., Any]) -> Callable[..., Any]:
    from torch._functorch.aot_autograd import make_boxed_func

    boxed: Callable[..., Any] = make_boxed_func(run)
    return boxed
