"""Tensors of other kinds: the plain twin serves them, since only their own library knows what lies in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import triton_attn
from triton_attn import backend, functional

pytestmark = pytest.mark.interpreter
BLOCKS = triton_attn.list_attention()


class Wrapped(Tensor):
    """A tensor that holds another, as quantised and sharded ones do: it has no memory of its own."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), dtype=held.dtype, device=held.device)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda t: t.held if isinstance(t, Wrapped) else t, (args, kwargs or {}))
        return tree_map(lambda t: Wrapped(t) if isinstance(t, Tensor) else t, op(*args, **kwargs))


class Marked(Tensor):
    """A subclass with nothing to it, as torchvision's images are."""


KINDS: dict[str, Callable[[Tensor], Tensor]] = {"Wrapped": Wrapped, "Marked": lambda t: t.as_subclass(Marked)}


def block_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return triton_attn.create_attention(name, 16)


def draw(seed: int = 0) -> Tensor:
    return torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(seed))


def served_by(call: Callable[[], object]) -> set[tuple[str, str]]:
    with torch.no_grad(), backend.listen() as heard:
        call()
    return {(choice.backend, choice.reason.partition(" ")[0]) for choice in heard}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_map(name: str, kind: str) -> None:
    block, x = block_of(name), draw()
    with torch.no_grad():
        y = block(KINDS[kind](x))
        assert type(y).__name__ == kind
        with triton_attn.use_backend("reference"):
            assert torch.equal(y.held if kind == "Wrapped" else y.as_subclass(Tensor), block(x))
    (entry,) = triton_attn.explain(block, KINDS[kind](x))
    assert entry.backend == "reference"
    assert f"{kind} is a subclass of torch.Tensor" in entry.reason
    with triton_attn.use_backend("triton"), pytest.raises(triton_attn.BackendError, match=f"{kind} is a subclass"):
        block(KINDS[kind](x))


@pytest.mark.parametrize("name", BLOCKS)
def test_any_parameter_and_any_other_input(name: str) -> None:
    """Each by itself, the others plain."""
    x = draw()
    assert {each for each, _ in served_by(lambda: block_of(name)(x, shortcut=draw(1)))} == {"triton"}
    for path, parameter in block_of(name).named_parameters():
        block = block_of(name)
        owner, _, key = path.rpartition(".")
        setattr(block.get_submodule(owner), key, nn.Parameter(Wrapped(parameter.detach())))
        assert served_by(lambda block=block: block(x)) == {("reference", "Wrapped")}, path
    for argument in ("shortcut", "gating") if name == "gate" else ("shortcut",):
        other = Wrapped(draw(1))
        assert served_by(lambda argument=argument, other=other: block_of(name)(x, **{argument: other})) == {
            ("reference", "Wrapped")
        }


# Behind the first argument; maps have a shortcut at last.
SHAPES = {
    "channel_gate": [(4, 16), (4,), (16, 4), (16,)],
    "squeeze_excite": [(4, 16), (4,), (16, 4), (16,)],
    "coordinate_attention": [(4, 16), (4,), (16, 4), (16,)],
    "eca": [(3,)],
    "cbam": [(4, 16), (4,), (16, 4), (16,), (1, 2, 7, 7), (1,)],
    "dual": [(4, 16), (4,), (16, 4), (16,)] * 2 + [(1, 2, 7, 7), (1,)],
    "pixel_attention": [(4, 16, 1, 1), (4,), (16, 4, 1, 1), (16,)],
    "attention_gate": [(4, 16, 1, 1), (4,), (4, 16, 1, 1), (4,), (1, 4, 1, 1), (1,), (2, 16, 3, 5)],
    "nonlocal_attention": [(2, 5, 4), (2, 5, 4)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_any_argument_of_a_function(name: str) -> None:
    first = torch.randn(2, 5, 4) if name == "nonlocal_attention" else draw()
    tensors = [first, *(torch.randn(shape) for shape in SHAPES[name])]
    if name != "nonlocal_attention":
        tensors.append(draw(1))  # the shortcut
    function = getattr(functional, name)
    assert {each for each, _ in served_by(lambda: function(*tensors))} == {"triton"}
    for i in range(len(tensors)):
        given = [Wrapped(t) if i == j else t for j, t in enumerate(tensors)]
        assert served_by(lambda given=given: function(*given)) == {("reference", "Wrapped")}, i


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


# What other blocks need, PyTorch's distributed tensors do not have in all versions.
@pytest.mark.parametrize("name", ["se", "coordinate", "pixel", "gate", "nonlocal"])
def test_a_step_with_distributed_tensors(name: str, mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

    block, x, shortcut = block_of(name), draw(), draw(1)
    with triton_attn.use_backend("reference"):
        right = block(x, shortcut=shortcut)
        right_grads = torch.autograd.grad(right.square().sum(), block.parameters())
    sharded = distribute_module(copy.deepcopy(block), mesh)
    inputs = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, shortcut)]
    y = sharded(inputs[0], shortcut=inputs[1])
    assert isinstance(y, DTensor)
    torch.testing.assert_close(y.full_tensor(), right)
    y.square().sum().backward()
    for parameter, grad in zip(sharded.parameters(), right_grads, strict=True):
        torch.testing.assert_close(parameter.grad.redistribute(placements=[Replicate()]).to_local(), grad)
    assert {entry.reason.partition(" ")[0] for entry in triton_attn.explain(sharded, inputs[0])} == {"DTensor"}


def test_what_pytorch_traces_with_is_served() -> None:
    """Fake and functional tensors stand for plain ones."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

    block, x = block_of("se"), draw()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake, triton_attn.use_backend("triton"):
        assert block(fake.from_tensor(x)).shape == x.shape
    with torch.no_grad(), FunctionalTensorMode(), triton_attn.use_backend("triton"):
        found = block(FunctionalTensor.to_functional(x))
        assert isinstance(found, FunctionalTensor)
        torch._sync(found)
    with torch.no_grad():
        assert torch.equal(torch._from_functional_tensor(found.elem), block(x))
