"""The published formulas, written a second time without any of torch.nn, in loops and einsums.

Each takes the map, the block's state, and what batch norms go by: the batch's own statistics in training, else those
that the state holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def relu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, torch.zeros_like(z))


def hardswish(z: Tensor) -> Tensor:
    return z * torch.clip(z + 3, 0, 6) / 6


def softmax(scores: Tensor) -> Tensor:
    """Over the last dimension."""
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return weights / weights.sum(-1, keepdim=True)


def at(values: Tensor) -> Tensor:
    """One value a channel, to be broadcast over a map."""
    return values[None, :, None, None]


def conv1x1(x: Tensor, state: State, name: str) -> Tensor:
    y = torch.einsum("oc,nchw->nohw", state[f"{name}.weight"].flatten(1), x)
    return y + at(state[f"{name}.bias"]) if f"{name}.bias" in state else y


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Zero-padded, of the map's size, by its sum."""
    batch, _, height, width = x.shape
    out = torch.zeros(batch, weight.shape[0], height, width, dtype=x.dtype)
    reach = weight.shape[-1] // 2
    for row, column, dy, dx in itertools.product(
        range(height), range(width), range(-reach, reach + 1), range(-reach, reach + 1)
    ):
        if 0 <= row + dy < height and 0 <= column + dx < width:
            out[:, :, row, column] += torch.einsum(
                "oc,nc->no", weight[:, :, dy + reach, dx + reach], x[:, :, row + dy, column + dx]
            )
    return out


def batch_norm(x: Tensor, state: State, name: str, training: bool) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean = torch.einsum("nchw->c", x) / (x.numel() / x.shape[1])
        variance = torch.einsum("nchw,nchw->c", x - at(mean), x - at(mean)) / (x.numel() / x.shape[1])
    normal = (x - at(mean)) / torch.sqrt(at(variance) + 1e-5)
    return normal * at(state[f"{name}.weight"]) + at(state[f"{name}.bias"])


def bilinear(t: Tensor, height: int, width: int) -> Tensor:
    """By the weights of the four neighbours of every position's centre."""
    if t.shape[2:] == (height, width):
        return t
    columns = []
    for size, old in ((height, t.shape[2]), (width, t.shape[3])):
        weights = torch.zeros(size, old, dtype=t.dtype)
        for i in range(size):
            place = max((i + 0.5) * old / size - 0.5, 0.0)
            low = min(int(place), old - 1)
            high, share = min(low + 1, old - 1), place - low
            weights[i, low] += 1 - share
            weights[i, high] += share
        columns.append(weights)
    return torch.einsum("ih,jw,nchw->ncij", *columns, t)


def mlp(vector: Tensor, state: State) -> Tensor:
    """``fc2(relu(fc1(vector)))``, biases where there are any."""
    zero = torch.zeros((), dtype=vector.dtype)
    hidden = relu(torch.einsum("mc,nc->nm", state["fc1.weight"], vector) + state.get("fc1.bias", zero))
    return torch.einsum("cm,nm->nc", state["fc2.weight"], hidden) + state.get("fc2.bias", zero)


def mean(x: Tensor) -> Tensor:
    return torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3])


def cbam(x: Tensor, state: State, training: bool) -> Tensor:
    top = x.flatten(2).sort(-1).values[..., -1]
    u = x * sigmoid(mlp(mean(x), state) + mlp(top, state))[:, :, None, None]
    pooled = torch.stack([u.sort(1).values[:, -1], u.sum(1) / u.shape[1]], 1)
    return u * sigmoid(batch_norm(convolution(pooled, state["conv.weight"]), state, "norm", training))


def channel(x: Tensor, state: State, _: bool) -> Tensor:
    rows = x.flatten(2)
    scores = torch.einsum("ncp,ndp->ncd", rows, rows)
    attention = softmax(scores.max(-1, keepdim=True).values - scores)
    return x + state["gamma"] * torch.einsum("ncd,ndp->ncp", attention, rows).reshape(x.shape)


def position(x: Tensor, state: State, _: bool) -> Tensor:
    q, k, v = (conv1x1(x, state, f"{name}_conv").flatten(2) for name in ("query", "key", "value"))
    attention = softmax(torch.einsum("ndi,ndj->nij", q, k))
    return x + state["gamma"] * torch.einsum("ncj,nij->nci", v, attention).reshape(x.shape)


def coordinate(x: Tensor, state: State, training: bool) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = torch.einsum("nchw->nch", x) / width, torch.einsum("nchw->ncw", x) / height
    both = torch.cat([rows, columns], 2)[..., None]
    z = hardswish(batch_norm(conv1x1(both, state, "conv1"), state, "bn1", training))
    gate_h = sigmoid(conv1x1(z[:, :, :height], state, "conv_h"))[:, :, :, 0]
    gate_w = sigmoid(conv1x1(z[:, :, height:], state, "conv_w"))[:, :, :, 0]
    return torch.einsum("nchw,nch,ncw->nchw", x, gate_h, gate_w)


def danet(x: Tensor, state: State, training: bool) -> Tensor:
    def layer(t: Tensor, name: str) -> Tensor:
        return relu(batch_norm(convolution(t, state[f"{name}.0.weight"]), state, f"{name}.1", training))

    def part(name: str) -> State:
        return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}

    of_positions = layer(position(layer(x, "position_in"), part("position"), training), "position_out")
    of_channels = layer(channel(layer(x, "channel_in"), part("channel"), training), "channel_out")
    return conv1x1(of_positions + of_channels, state, "conv_out")


def eca(x: Tensor, state: State, _: bool) -> Tensor:
    taps = state["conv.weight"].flatten()
    logits, means = torch.zeros_like(mean(x)), mean(x)
    for c, tap in itertools.product(range(x.shape[1]), range(len(taps))):
        if 0 <= c + tap - len(taps) // 2 < x.shape[1]:
            logits[:, c] += taps[tap] * means[:, c + tap - len(taps) // 2]
    return x * sigmoid(logits)[:, :, None, None]


def gate(x: Tensor, state: State, training: bool, gating: Tensor | None = None) -> Tensor:
    signal = batch_norm(conv1x1(x if gating is None else gating, state, "g_conv"), state, "g_norm", training)
    own = batch_norm(conv1x1(x, state, "x_conv"), state, "x_norm", training)
    hidden = relu(own + bilinear(signal, *x.shape[2:]))
    return x * sigmoid(batch_norm(conv1x1(hidden, state, "psi"), state, "psi_norm", training))


def grid_gate(x: Tensor, state: State, training: bool, gating: Tensor | None = None) -> Tensor:
    weight = state["theta.weight"]
    stride = weight.shape[-1]
    height, width = x.shape[2] // stride, x.shape[3] // stride
    tiles = x[:, :, : height * stride, : width * stride].reshape(*x.shape[:2], height, stride, width, stride)
    theta = torch.einsum("ocab,nchawb->nohw", weight, tiles)
    phi = bilinear(conv1x1(x if gating is None else gating, state, "phi"), height, width)
    attention = bilinear(sigmoid(conv1x1(relu(theta + phi), state, "psi")), *x.shape[2:])
    return batch_norm(conv1x1(attention * x, state, "W"), state, "norm", training)


def nonlocal_(x: Tensor, state: State, training: bool, mode: str = "embedded_gaussian", scale: float = 1.0) -> Tensor:
    """With subsampled keys and a batch norm."""

    def pooled(t: Tensor) -> Tensor:
        height, width = t.shape[2] // 2, t.shape[3] // 2
        tiles = t[:, :, : 2 * height, : 2 * width].reshape(*t.shape[:2], height, 2, width, 2)
        return tiles.amax((3, 5)).flatten(2)

    theta = x if mode == "gaussian" else conv1x1(x, state, "theta")
    phi = pooled(x if mode == "gaussian" else conv1x1(x, state, "phi"))
    scores = scale * torch.einsum("ndi,ndj->nij", theta.flatten(2), phi)
    attention = scores / phi.shape[2] if mode == "dot_product" else softmax(scores)
    y = torch.einsum("nij,ncj->nci", attention, pooled(conv1x1(x, state, "g")))
    return x + batch_norm(conv1x1(y.unflatten(2, x.shape[2:]), state, "out"), state, "norm", training)


def pixel(x: Tensor, state: State, _: bool) -> Tensor:
    return x * sigmoid(conv1x1(x, state, "conv"))


def scse(x: Tensor, state: State, _: bool) -> Tensor:
    return x * sigmoid(mlp(mean(x), state))[:, :, None, None] + x * sigmoid(conv1x1(x, state, "conv"))


def se(x: Tensor, state: State, _: bool) -> Tensor:
    return x * sigmoid(mlp(mean(x), state))[:, :, None, None]


def simam(x: Tensor, _: State, __: bool) -> Tensor:
    d = (x - mean(x)[:, :, None, None]) ** 2
    variance = torch.einsum("nchw->nc", d)[:, :, None, None] / (x.shape[2] * x.shape[3] - 1)
    return x * sigmoid(d / (4 * (variance + 1e-4)) + 0.5)


def global_context(x: Tensor, state: State, _: bool) -> Tensor:
    weights = softmax(conv1x1(x, state, "conv").flatten(1))
    context = torch.einsum("np,ncp->nc", weights, x.flatten(2))
    hidden = torch.einsum("mc,nc->nm", state["fc1.weight"], context) + state["fc1.bias"]
    middle = hidden - hidden.sum(1, keepdim=True) / hidden.shape[1]
    hidden = middle / torch.sqrt((middle**2).sum(1, keepdim=True) / hidden.shape[1] + 1e-6)
    hidden = relu(hidden * state["norm.weight"] + state["norm.bias"])
    logits = torch.einsum("cm,nm->nc", state["fc2.weight"], hidden) + state["fc2.bias"]
    return x * sigmoid(logits)[:, :, None, None]


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "published.cbam": cbam,
    "published.channel": channel,
    "published.coordinate": coordinate,
    "published.danet": danet,
    "published.eca": eca,
    "published.gate": gate,
    "published.global_context": global_context,
    "published.grid_gate": grid_gate,
    "published.nonlocal": nonlocal_,
    "published.pixel": pixel,
    "published.position": position,
    "published.scse": scse,
    "published.se": se,
    "published.simam": simam,
}
