"""What holds of every op, under the interpreter: inputs of every kind, against the plain twin in float64."""

from __future__ import annotations

import copy

import pytest
import torch

import triton_attn
from tests.ops.subjects import SUBJECTS, Subject, mixed
from tests.parity import LAYOUTS, assert_within, lay_out, run

pytestmark = [
    pytest.mark.interpreter,
    # NumPy's, where infinities meet in the interpreter, as they are meant to.
    pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|All-NaN slice) encountered:RuntimeWarning"),
]

every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
both_layouts = pytest.mark.parametrize(("subject", "layout"), mixed(SUBJECTS, LAYOUTS[:2]), ids=str)

# Gradients that differ by where they are not finite, in x or in y's gradient. PyTorch multiplies a convolution's
# padding too, on some processors in float64 alone; gradients of the attention's biases do not go by its weights; and
# where a gate gates itself, two convolutions of an infinite x may cancel to NaN in the twin, and are one here.
OPEN = {
    ("eca", "grad"): {"conv.weight"},
    ("gate", "grad"): {"x"},
    ("nonlocal, tiled", "x"): {"key_conv.bias", "value_conv.bias"},
    ("nonlocal, whole", "x"): {"key_conv.bias", "value_conv.bias"},
    ("published cbam", "x"): {"conv.weight"},
    ("published cbam, normed", "x"): {"block.conv.weight"},
    ("published cbam, normed", "grad"): {"block.conv.weight"},
}


@pytest.mark.parametrize(
    ("subject", "layout", "value"), mixed(SUBJECTS, LAYOUTS[:2], [float("nan"), float("inf"), -float("inf")]), ids=str
)
def test_values_that_are_not_finite(subject: Subject, value: float, layout: str) -> None:
    """In the map, in the shortcut, in the signal, and in the gradient, each by itself."""
    twins, atol = subject.twins(), 1e-5 if subject.by_norms else 1e-6
    for place in ("x", *subject.keywords, "grad"):
        inputs, grad = subject.draw(layout=layout)
        dict(zip(("x", *subject.keywords, "grad"), (*inputs, grad), strict=True))[place][0, 1, 1, 2] = value
        if not (subject.name == "gate" and place == "x"):
            but = OPEN.get((subject.name, place), ())
            subject.compare(twins, inputs, grad, but, atol=atol, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("subject", [each for each in SUBJECTS if each.dimmed], ids=str)
def test_float16_sums_do_not_overflow(subject: Subject) -> None:
    """Over 8 channels' positions Σ x is 1.2 million, over 64 channels 190,000; float16 holds 65,504."""
    fast, exact = subject.twins(torch.float16, channels=subject.heavy[0])
    with torch.no_grad():
        for block in (fast, exact):
            for key, weight in block.named_parameters():
                if key.endswith(subject.dimmed):
                    weight.mul_(2**-11)
    (x, *_), _ = subject.draw(1, *subject.heavy, exact=exact)
    x, grad = x.half() + 3000, (1 + torch.randn(x.shape) / (8 if subject.by_norms else 1)).half()
    y, grads = run(fast, [x], grad)
    exact_y, exact_grads = run(exact, [x.double()], grad.double())
    assert x.sum(1 if subject.by_norms else (2, 3)).isinf().all()
    for ours, right in zip([y, *grads], [exact_y, *exact_grads], strict=True):
        # What is beyond float16 in the end is infinite, and nothing else is.
        assert torch.equal(ours.isinf(), right.abs() > 65520)
        finite = ours.isfinite()
        if finite.any():
            # Of gates by position, gradients cancel.
            scale = 1.0 if subject.name in ("se", "eca", "coordinate") else 2 * right[finite].abs().max().item()
            torch.testing.assert_close(ours[finite].double(), right[finite], atol=1e-3 * scale, rtol=3e-3)


@every_subject
def test_zero_map_passes_the_gradient_as_relu_does(subject: Subject) -> None:
    twins = subject.twins()
    inputs, grad = subject.draw()
    subject.compare(twins, [torch.zeros_like(t) for t in inputs], torch.ones_like(grad), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("subject", "layout"), mixed(SUBJECTS, LAYOUTS), ids=str)
def test_layout_is_kept(subject: Subject, layout: str) -> None:
    block = subject.build()(triton_attn)
    (x, *others), grad = subject.draw(layout=layout)
    for inputs, keywords in subject.calls([x, *others]):
        y, (dx, *_) = run(block, inputs, grad.contiguous(), keywords)
        if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
            assert y.stride() == dx.stride() == x.stride()
        elif layout == "batch slice":
            assert y.is_contiguous(memory_format=torch.channels_last)
        else:
            assert y.is_contiguous()


@both_layouts
def test_shortcut_of_another_layout_and_an_expanded_gradient(subject: Subject, layout: str) -> None:
    twins = subject.twins()
    (x, shortcut, *signal), grad = subject.draw(layout=layout)
    shortcut = lay_out(shortcut, LAYOUTS[1 - LAYOUTS.index(layout)])
    subject.compare(twins, [x, shortcut, *signal], torch.ones(()).expand(grad.shape), atol=1e-5, rtol=1e-5)


@every_subject
def test_empty_maps(subject: Subject) -> None:
    block = subject.build()(triton_attn)
    for shape in ((0, subject.channels, 5, 3), (2, subject.channels, 0, 3))[: 1 + subject.takes_no_positions]:
        drawn, grad = subject.draw(*shape)
        for inputs, keywords in subject.calls(drawn):
            y, (dx, *grads) = run(block, inputs, grad, keywords)
            assert y.shape == dx.shape == shape
            if shape[0] == 0:
                assert all(not grad.any() for grad in grads)


@both_layouts
def test_the_same_bits_whatever_the_batch_and_no_input_is_overwritten(subject: Subject, layout: str) -> None:
    """Twice the same call, an image by itself, and a copy of the block: on maps of several programs."""
    torch.manual_seed(0)
    block = subject.build(subject.large[0])(triton_attn).half()
    inputs, grad = subject.draw(2, *subject.large, dtype=torch.float16, layout=layout)
    before = [t.clone() for t in (*inputs, grad)]
    y, grads = run(block, inputs, grad, subject.keywords)
    again, grads_again = run(copy.deepcopy(block), inputs, grad, subject.keywords)
    assert all(torch.equal(a, b) for a, b in zip([y, *grads], [again, *grads_again], strict=True))
    assert all(torch.equal(a, b) for a, b in zip((*inputs, grad), before, strict=True))
    alone, grads_alone = run(block, [t[1:] for t in inputs], grad[1:], subject.keywords)
    of_images = zip([y, *grads[:2]], [alone, *grads_alone[:2]], strict=True)
    assert all(torch.equal(a[1:], b) for a, b in list(of_images)[: subject.alone])


@every_subject
def test_inference_keeps_nothing_for_a_backward(subject: Subject) -> None:
    from tests.ops.calls import Calls

    block = subject.build()(triton_attn)
    (x, shortcut, *signal), _ = subject.draw()
    with torch.no_grad(), Calls() as calls:
        y = block(x, **dict(zip(subject.keywords, (shortcut, *signal), strict=True)))
    assert y.grad_fn is None
    if subject.is_op:
        ((op, arguments, results),) = calls.seen
        assert arguments[-1] is False
        assert sum(t.numel() for t in results[1:]) == 0, op


# The map's dtype, and autocast's; of both 16-bit ones PyTorch's own functions take a mixture by exception.
DTYPES = [
    (x, inside) for x in (torch.float32, torch.bfloat16, torch.float16) for inside in (torch.bfloat16, torch.float16)
]
MIXTURES = ("pixel", "wide pixel", "gate", "gate by a signal")


@pytest.mark.parametrize(
    ("subject", "layout", "dtypes"),
    [
        (subject, layout, dtypes)
        for subject, layout, dtypes in mixed(SUBJECTS, LAYOUTS[:2], DTYPES)
        if dtypes[0] in (torch.float32, dtypes[1]) or subject.name in MIXTURES
    ],
    ids=str,
)
def test_autocast(subject: Subject, layout: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """How far a gradient of plain PyTorch's is off, where a single draw is luck, is the largest of three draws."""
    errors, shape = [], (2, max(subject.channels, 16), 5, 6)
    for seed in (2, 1, 0) if subject.by_norms else (0,):
        fast, exact = subject.twins(channels=shape[1], seed=seed)
        inputs, grad = subject.draw(*shape, dtype=dtypes[0], layout=layout, exact=exact, signal_size=(2, 3))
        with torch.autocast("cpu", dtypes[1]), triton_attn.use_backend("reference"):
            plain_y, plain_grads = run(fast, inputs, grad, subject.keywords)
        right_y, right_grads = run(exact, [t.double() for t in inputs], grad.double(), subject.keywords)
        errors.append([(plain - right).norm() for plain, right in zip(plain_grads, right_grads, strict=True)])
    with torch.autocast("cpu", dtypes[1]):
        y, grads = run(fast, inputs, grad, subject.keywords)
    assert [t.dtype for t in (y, *grads)] == [t.dtype for t in (plain_y, *plain_grads)]
    if not subject.is_op:  # what a library's layers make of a rounding is theirs
        torch.testing.assert_close(y, plain_y, atol=3e-2, rtol=3e-2)
        return
    assert_within(y, plain_y, right_y, "y")
    for i, (ours, plain, right) in enumerate(zip(grads, plain_grads, right_grads, strict=True)):
        if subject.by_norms:
            bound = 2 * max(each[i] for each in errors) + 4 * torch.finfo(ours.dtype).eps * right.norm()
            assert (ours - right).norm() <= bound
        else:
            assert_within(ours, plain, right)


@every_subject
def test_a_shortcut_of_a_wider_dtype_is_added_as_pytorch_adds_it(subject: Subject) -> None:
    torch.manual_seed(0)
    block = subject.build()(triton_attn).bfloat16()
    (x, shortcut, *signal), _ = subject.draw()
    x, signal = x.bfloat16(), [t.bfloat16() for t in signal]
    given = dict(zip(subject.keywords, (shortcut, *signal), strict=True))
    y = block(x, **given)
    with triton_attn.use_backend("reference"):
        plain = block(x, **given)
    assert y.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(y, plain, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("subject", "apart"), mixed(SUBJECTS, ["images", "channels"]), ids=str)
def test_offsets_beyond_two_to_the_31_elements(subject: Subject, apart: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last image, or channel of one, lies more than 2³¹ elements behind the first: no memory between is touched."""
    monkeypatch.undo()  # to poison memory is to touch it
    fast, exact = subject.twins(torch.float16)
    shape = 2, subject.channels, 4, 4
    (values, *others), grad = subject.draw(*shape, dtype=torch.float16, exact=exact)
    of_channels = 16, 2**31 // (subject.channels - 1) + 32, 4, 1
    strides = of_channels if apart == "channels" else (2**31 + 16, 16, 4, 1)
    x = torch.empty_strided(shape, strides, dtype=torch.float16)
    x.copy_(values)
    y, (dx, *_) = run(fast, [x, *others], grad, subject.keywords)
    exact_y, (exact_dx, *_) = run(exact, [t.double() for t in (values, *others)], grad.double(), subject.keywords)
    torch.testing.assert_close(y.double(), exact_y, atol=4e-3, rtol=2e-3)
    torch.testing.assert_close(dx.double(), exact_dx, atol=4e-3, rtol=2e-3)
