"""The parts of a recipe by themselves: the loss, mixing, groups of parameters, the average, what is seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import triton_attn
from triton_attn.train.checkpoint import Card
from triton_attn.train.config import Config
from triton_attn.train.ema import Average
from triton_attn.train.epochs import stopped_early
from triton_attn.train.errors import UserError
from triton_attn.train.folder import share_of_classes
from triton_attn.train.foreign import fit_channels
from triton_attn.train.image import read_image
from triton_attn.train.optim import make_optimizer, make_schedule
from triton_attn.train.recipes import Recipe, balanced, make_mix, parameter_groups
from triton_attn.train.recompute import recompute_blocks
from triton_attn.train.transforms import AUGMENT, eval_transform, normalisation, train_transform

HALF = (0.5, 0.5, 0.5)


def test_the_loss_takes_weights_and_smoothing() -> None:
    torch.manual_seed(0)
    logits, labels, weight = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1.0, 2.0, 3.0])
    logs = logits.log_softmax(1)
    own = -(weight[labels] * logs[range(5), labels]).sum() / weight[labels].sum()
    torch.testing.assert_close(Recipe(weight=weight).loss(logits, labels), own)
    target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    torch.testing.assert_close(Recipe(smoothing=0.1).loss(logits, labels), -(target * logs).sum(1).mean())


def test_balanced_classes_count_the_same() -> None:
    image = Image.new("L", (1, 1))
    weights = balanced([(image, label) for label in (0, 0, 0, 1)], 2)
    assert weights.tolist() == pytest.approx([4 / 6, 2.0])
    assert 3 * weights[0] == pytest.approx(weights[1].item())


def test_batches_are_mixed() -> None:
    assert make_mix(Config(), 3) is None
    for options, kinds in (({"mixup": 0.2}, v2.MixUp), ({"cutmix": 1.0}, v2.CutMix)):
        assert isinstance(make_mix(Config(**options), 3), kinds)  # type: ignore[arg-type]
    both: Any = make_mix(Config(mixup=0.2, cutmix=1.0), 3)
    assert [type(each) for each in both.transforms] == [v2.MixUp, v2.CutMix]
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4) % 3
    mixed, shares = both(images, labels)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert ((shares > 0) & (shares < 1)).any()


def network() -> nn.Module:
    return triton_attn.resnet18("se", where="layer4", num_classes=2)


def named(model: nn.Module, group: dict[str, Any]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is each for each in group["params"])}


def test_norms_and_biases_do_not_decay() -> None:
    model = network()
    decays, rest = parameter_groups(Config(optimizer="adamw").resolved(), model)
    assert decays["weight_decay"] == 0.01
    assert rest["weight_decay"] == 0.0
    names = named(model, rest)
    assert {"bn1.weight", "bn1.bias", "fc.bias", "layer1.0.bn2.weight"} <= names
    assert {"conv1.weight", "fc.weight"} <= named(model, decays)
    assert len(decays["params"]) + len(rest["params"]) == len(list(model.parameters()))
    (all_of_them,) = parameter_groups(Config(optimizer="adamw", decay_norms=True).resolved(), model)
    assert all_of_them["weight_decay"] == 0.01
    (plain,) = parameter_groups(Config().resolved(), model)
    assert [id(p) for p in plain["params"]] == [id(p) for p in model.parameters()], "in order, as one group"


def test_attention_has_a_rate_of_its_own() -> None:
    model = network()
    config = Config(attention="se", lr=0.1, attention_lr=0.4, epochs=2, warmup_epochs=0).resolved()
    groups = parameter_groups(config, model)
    optimizer = make_optimizer(config, groups)
    schedule = make_schedule(config, optimizer, 10)
    for _ in range(5):
        slow, fast = sorted(optimizer.param_groups, key=lambda group: group["lr"])
        assert fast["lr"] == pytest.approx(4 * schedule.now)
        assert slow["lr"] == schedule.now
        schedule.step()
    assert all("attention" in name for name in named(model, fast))
    assert not any("attention" in name for name in named(model, slow))


def test_the_average_is_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = Average(model, 0.75)
    expected: dict[str, torch.Tensor] = {}
    for step in range(4):
        model(torch.randn(2, 3, 4, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
        average.update_parameters(model)
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                old = expected.get(key)
                expected[key] = value.clone() if step == 0 or old is None else 0.75 * old + 0.25 * value
    for key, value in expected.items():
        torch.testing.assert_close(average.module.state_dict()[key], value)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def rows(*accuracies: float, **more: tuple[float, ...]) -> list[dict[str, Any]]:
    return [
        {"epoch": index + 1, "val_accuracy": value} | {name: values[index] for name, values in more.items()}
        for index, value in enumerate(accuracies)
    ]


def test_a_run_stops_early_when_no_accuracy_rises() -> None:
    config = Config(early_stop=2)
    assert stopped_early(Config(), rows(0.5, 0.5, 0.5)) is None
    assert stopped_early(config, []) is None
    assert stopped_early(config, rows(0.5, 0.4)) is None
    assert stopped_early(config, rows(0.3, 0.5, 0.4)) is None
    said = stopped_early(config, rows(0.3, 0.5, 0.5, 0.4))
    assert said == "stopped early: for 2 epochs no held-out accuracy has been above that of epoch 2"
    assert stopped_early(config, rows(0.5, 0.5, 0.5, ema_accuracy=(0.1, 0.1, 0.2))) is None, "the average rises"
    # A run that goes on for longer than it was planned is given as many epochs again.
    assert stopped_early(dataclasses.replace(config, schedule_from=3), rows(0.5, 0.4, 0.4, 0.4)) is None
    assert stopped_early(dataclasses.replace(config, schedule_from=3), rows(0.5, 0.4, 0.4, 0.4, 0.4))


def test_a_share_of_every_class() -> None:
    image = Image.new("L", (1, 1))
    samples = [(image, label) for label in [0] * 20 + [1] * 10 + [2]]
    kept = [label for _, label in share_of_classes(samples, 0.3)]
    assert [kept.count(label) for label in range(3)] == [6, 3, 1]
    assert kept == sorted(kept), "in the order that they came in"
    assert share_of_classes(samples, 0.3) == share_of_classes(samples, 0.3)
    assert share_of_classes(samples, 1.0) == samples


def test_a_crop_fraction_is_the_middle() -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[8:24, 8:24] = 255
    image = Image.fromarray(pixels)
    middle = eval_transform(16, HALF, HALF, 0.5)(image)
    assert middle.shape == (3, 16, 16)
    assert middle.min() == 1.0, "the white middle alone"
    assert eval_transform(16, HALF, HALF)(image).min() == -1.0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_seen_has_the_channels_that_are_wanted(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    card = Card("resnet18", None, (), {}, 2, ("a", "b"), 8, *normalisation("folder", channels))
    image = read_image(tmp_path / "a.png", card.mode)
    seen = eval_transform(8, card.mean, card.std)(image)
    assert seen.shape == (channels, 8, 8)
    plain = seen * torch.tensor(card.std)[:, None, None] + torch.tensor(card.mean)[:, None, None]
    if channels == 1:
        grey = (pixels[..., :3] * np.array([0.299, 0.587, 0.114])).sum(-1) / 255
        torch.testing.assert_close(plain[0], torch.tensor(grey, dtype=torch.float32), atol=3e-3, rtol=0)
    else:
        torch.testing.assert_close(plain, torch.tensor(pixels / 255.0).float().permute(2, 0, 1)[:channels])
    assert card.build()(seen[None].repeat(2, 1, 4, 4)).shape == (2, 2)


def test_weights_for_rgb_fit_other_channels() -> None:
    own = torch.randn(4, 3, 3, 3)
    image = torch.rand(1, 3, 8, 8)
    opaque = torch.cat([image, torch.rand(1, 1, 8, 8)], 1)
    for channels, seen, same in ((1, image[:, :1], image[:, :1].expand(-1, 3, -1, -1)), (4, opaque, image)):
        fitted = fit_channels({"w": own, "b": own}, "w", {"w": torch.empty(4, channels, 3, 3)})
        torch.testing.assert_close(F.conv2d(seen, fitted["w"]), F.conv2d(same, own))
        assert fitted["b"] is own
    assert fit_channels({"w": own}, "w", {"w": own})["w"] is own


@pytest.mark.parametrize("name", AUGMENT)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_augmented(name: str, channels: int) -> None:
    mean, std = normalisation("folder", channels)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8))

    def drawn(auto_augment: str) -> list[torch.Tensor]:
        made = []
        for seed in range(6):
            torch.manual_seed(seed)
            made.append(train_transform("folder", 16, mean, std, auto_augment)(image))
        return made

    plain, changed, again = drawn("none"), drawn(name), drawn(name)
    assert changed[0].shape == (channels, 16, 16)
    assert not all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(changed, again, strict=True)), "by the seed alone"


def test_rectangles_are_erased() -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    torch.manual_seed(0)
    erased = train_transform("folder", 16, HALF, HALF, random_erasing=1.0)(image)
    assert 0 < (erased == 0).float().mean() < 0.5
    assert (train_transform("folder", 16, HALF, HALF)(image) == 1).all()


def test_blocks_that_are_computed_again_give_the_same_bits() -> None:
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        model = network().train()
        calls = []
        model.layer1[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model.bn1.eval()
        model.layer2[0].bn1.eval()
        if again:
            recompute_blocks(model)
        for _ in range(2):
            model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        assert len(calls) == (4 if again else 2)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append(gradients | dict(model.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name  # type: ignore[arg-type]


def test_networks_of_timm_compute_their_blocks_again_as_they_do() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet")
    recompute_blocks(model)
    assert model.grad_checkpointing
    with pytest.raises(UserError, match="--grad-checkpointing: Sequential of timm cannot compute its blocks again"):
        recompute_blocks(nn.Sequential())
