"""The learning rate over time, and the optimizers."""

from __future__ import annotations

import pytest
import torch

from triton_attn.train.config import Config
from triton_attn.train.optim import load_optimizer, make_optimizer, make_schedule, optimizer_tensors


def rates(steps: int = 10, **options: float | int) -> list[float]:
    config = Config(lr=0.1, **options).resolved()  # type: ignore[arg-type]
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(config, optimizer, steps)
    used = []
    for _ in range(config.epochs * steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*used, optimizer.param_groups[0]["lr"]]


def test_the_rate_rises_then_falls_to_zero() -> None:
    lr = rates(epochs=5, warmup_epochs=1)
    assert max(lr) == lr[10] == pytest.approx(0.1)
    assert lr[:11] == sorted(lr[:11])
    assert lr[10:] == sorted(lr[10:], reverse=True)
    assert 0 < lr[0] < 0.02
    assert lr[30] == pytest.approx(0.05)
    assert lr[-1] == pytest.approx(0, abs=1e-9)


def test_without_warm_up_it_only_falls() -> None:
    lr = rates(epochs=2, warmup_epochs=0)
    assert lr[0] == 0.1
    assert lr == sorted(lr, reverse=True)


def test_one_step_in_all_is_enough() -> None:
    assert rates(steps=1, epochs=1)[0] > 0


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    config = Config(optimizer=name, weight_decay=0.3).resolved()
    optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_a_state_with_the_keys_of_earlier_versions() -> None:
    model = torch.nn.Sequential()
    model.add_module("layer1", torch.nn.Sequential())
    model.layer1.add_module("attention", torch.nn.Linear(2, 2))
    used, fresh = (make_optimizer(Config(optimizer="sgd").resolved(), model.parameters()) for _ in range(2))
    model.layer1.attention(torch.ones(1, 2)).sum().backward()
    used.step()
    kept = optimizer_tensors(used, model)
    load_optimizer(fresh, model, {key.replace("layer1.attention", "attention.layer1"): v for key, v in kept.items()})
    found = optimizer_tensors(fresh, model)
    assert list(found) == ["momentum_buffer/layer1.attention.weight", "momentum_buffer/layer1.attention.bias"]
    assert all(torch.equal(found[key], value) for key, value in kept.items())
