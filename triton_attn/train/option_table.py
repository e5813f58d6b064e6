"""The options of ``triton-attn train``, as one table: what fine-tuning is made of is all off by default."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from .config import MODES, OPTIONS, Config
from .values import KeyValues, parse_attention

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class Row:
    """An option: the field of :class:`Config` that it sets, its help, where ``{}`` is the default, and what it takes.

    That is a number of a ``kind``, which the field's own rule checks, one of ``choices``, or what ``more`` says to
    argparse; without any of these, nothing: the option is a switch.
    """

    name: str
    help: str
    metavar: str | None = None
    kind: type | None = None
    choices: tuple[Any, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)

    def add_to(self, group: argparse._ArgumentGroup, default: Config) -> None:
        """Add it to a parser's group."""
        value = getattr(default, self.name, None)
        shown = " ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
        options = {"help": self.help.replace("{}", str(shown)), **self.more}
        if self.metavar:
            options["metavar"] = self.metavar
        if self.kind:
            options["type"] = OPTIONS[self.name].words(self.kind)
        elif self.choices:
            options |= {"choices": self.choices, "type": type(self.choices[0])}
        elif not self.metavar and not self.more:
            options["action"] = "store_true"
        group.add_argument("--" + self.name.replace("_", "-"), **options)


NETWORK = [
    Row("model", f"{', '.join(MODELS)}, or timm/NAME (default: {{}})", "NAME"),
    Row(
        "attention",
        "a block at the sites of --where, or one per site (layer3=nonlocal,block=se), or none (default: none)",
        "NAME | SITE=NAME,...",
        more={"type": parse_attention},
    ),
    Row(
        "where",
        "stem, layer1 … layer4, block: where the block goes (default: {}); in a network of timm paths of modules, such "
        "as 'layer[34].*.bn2'",
        "SITE",
        more={"nargs": "+"},
    ),
    Row(
        "attention_kwargs",
        "arguments of the blocks, such as reduction=8",
        "KEY=VALUE",
        more={"nargs": "+", "action": KeyValues},
    ),
    Row("weights", "start from a .safetensors or .pth file, or torchvision's by name", "FILE | NAME"),
]

DATA = [
    Row(
        "data",
        "scikit-learn's bundled digits, or a folder: train/ and val/ with a folder of images per class in each, or a "
        "folder per class (default: digits)",
        "digits | DIR",
    ),
    Row("val_fraction", "the share that is held out where there is no val/ (default: {})", "F", float),
    Row("image_size", "default: 48 for digits, 224 for a folder", "PIXELS", int),
    Row("workers", "processes that load images (default: 0 for digits, else 4)", "N", int),
    Row(
        "check_images",
        "decode every image of a folder before training, to find broken ones (default: yes)",
        more={"action": argparse.BooleanOptionalAction},
    ),
    Row(
        "in_channels",
        "grey, RGB, or RGB and opacity (default: {}); --weights for RGB fit all three",
        choices=tuple(MODES),
    ),
    Row(
        "eval_image_size",
        "of held-out images, and of eval, show, predict and export (default: --image-size)",
        "PIXELS",
        int,
    ),
    Row(
        "crop_fraction",
        "the share of their shorter side that is seen, in the middle: 0.875 is 224 of 256 (default: {})",
        "F",
        float,
    ),
    Row("train_fraction", "the share of the training images to use, of every class (default: {})", "F", float),
]

TRAINING = [
    Row("epochs", "default: {}; with --resume, more than before go on with the run", "N", int),
    Row("batch_size", "per process (default: {})", "N", int),
    Row("optimizer", "default: {}", choices=("adam", "adamw", "sgd")),
    Row("lr", "the peak learning rate (default: {})", "RATE", float),
    Row("weight_decay", "default: 0.01 for adamw, 0 for adam and sgd", "F", float),
    Row(
        "warmup_epochs",
        "linear warm-up before the cosine (default: 1, or a fifth of --epochs if that is less)",
        "N",
        float,
    ),
    Row("amp", "mixed precision (default: {})", choices=("bf16", "fp16", "no")),
    Row("channels_last", "keep feature maps in the channels-last layout"),
    Row("compile", "compile the network with torch.compile"),
    Row("seed", "default: {}", "N", int),
]

SOFTER = [
    Row(
        "auto_augment",
        "torchvision's, with its defaults (default: {})",
        choices=("autoaugment", "randaugment", "trivialaugment", "augmix", "none"),
    ),
    Row(
        "random_erasing",
        "how probable it is that a rectangle of an image is erased (default: 0; 0.25 in many recipes)",
        "P",
        float,
    ),
    Row(
        "mixup",
        "mix pairs of images and their labels, by shares of Beta(ALPHA, ALPHA) (default: 0, none; 0.2 in many "
        "recipes). With --cutmix, every batch has one of the two",
        "ALPHA",
        float,
    ),
    Row(
        "cutmix",
        "put rectangles of images into others, and mix the labels by area (default: 0, none; 1.0 in many recipes)",
        "ALPHA",
        float,
    ),
    Row(
        "label_smoothing",
        "the share of every label that is spread over all classes (default: 0; 0.1 in many recipes)",
        "F",
        float,
    ),
    Row(
        "class_weights",
        "balanced: rare classes count as much as frequent ones in the training loss, by scikit-learn's rule "
        "(default: {})",
        choices=("balanced", "none"),
    ),
]

LEARNS = [
    Row(
        "freeze",
        "backbone: attention and the last layer learn, all else stays as in --weights, batch norm's statistics "
        "included (default: {})",
        choices=("backbone", "none"),
    ),
    Row("attention_lr", "the peak learning rate of attention (default: --lr)", "RATE", float),
    Row("decay_norms", "weight decay on norms and biases too, which have none otherwise"),
    Row(
        "clip_grad",
        "scale gradients down to this norm of all together, where it is more (default: no limit)",
        "NORM",
        float,
    ),
    Row("accumulate", "batches to a step of the optimizer (default: {})", "N", int),
    Row(
        "ema",
        "keep a moving average of the weights, evaluate it every epoch, and save it in best-ema.safetensors and "
        "last-ema.safetensors (without a number: 0.999; default: none)",
        "DECAY",
        float,
        more={"nargs": "?", "const": 0.999},
    ),
    Row(
        "early_stop",
        "end the run when the held-out accuracy has not risen for so many epochs (default: never)",
        "EPOCHS",
        int,
    ),
    Row(
        "grad_checkpointing",
        "keep the inputs of residual blocks alone, and compute the rest again in the backward: less memory, more "
        "time, the same numbers",
    ),
]

RUN = [
    Row("output", "the folder of the run (default: {})", "DIR"),
    Row("resume", "go on with the run in --output, with the configuration stored there"),
]

TABLE = {
    "network": NETWORK,
    "data": DATA,
    "training": TRAINING,
    "augmentation and loss": SOFTER,
    "what learns, and how fast": LEARNS,
    "run": RUN,
}
