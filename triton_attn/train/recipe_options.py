"""The options of ``triton-attn train`` that fine-tuning is made of; all of them are off by default."""

from __future__ import annotations

import argparse

from .config import MODES, OPTIONS, Config


def add_image_options(data: argparse._ArgumentGroup) -> None:
    """Add what the network sees of an image."""
    default = Config()
    data.add_argument(
        "--in-channels",
        type=int,
        choices=list(MODES),
        help=f"grey, RGB, or RGB and opacity (default: {default.in_channels}); --weights for RGB fit all three",
    )
    data.add_argument(
        "--eval-image-size",
        type=OPTIONS["eval_image_size"].words(int),
        metavar="PIXELS",
        help="of held-out images, and of eval, show, predict and export (default: --image-size)",
    )
    data.add_argument(
        "--crop-fraction",
        type=OPTIONS["crop_fraction"].words(float),
        metavar="F",
        help="the share of their shorter side that is seen, in the middle: 0.875 is 224 of 256 "
        f"(default: {default.crop_fraction:g})",
    )
    data.add_argument(
        "--train-fraction",
        type=OPTIONS["train_fraction"].words(float),
        metavar="F",
        help=f"the share of the training images to use, of every class (default: {default.train_fraction:g})",
    )


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add augmentation, the loss, and what learns how fast."""
    default = Config()
    softer = parser.add_argument_group("augmentation and loss")
    softer.add_argument(
        "--auto-augment",
        choices=("autoaugment", "randaugment", "trivialaugment", "augmix", "none"),
        help=f"torchvision's, with its defaults (default: {default.auto_augment})",
    )
    softer.add_argument(
        "--random-erasing",
        type=OPTIONS["random_erasing"].words(float),
        metavar="P",
        help="how probable it is that a rectangle of an image is erased (default: 0; 0.25 in many recipes)",
    )
    softer.add_argument(
        "--mixup",
        type=OPTIONS["mixup"].words(float),
        metavar="ALPHA",
        help="mix pairs of images and their labels, by shares of Beta(ALPHA, ALPHA) (default: 0, none; 0.2 in many "
        "recipes). With --cutmix, every batch has one of the two",
    )
    softer.add_argument(
        "--cutmix",
        type=OPTIONS["cutmix"].words(float),
        metavar="ALPHA",
        help="put rectangles of images into others, and mix the labels by area (default: 0, none; 1.0 in many recipes)",
    )
    softer.add_argument(
        "--label-smoothing",
        type=OPTIONS["label_smoothing"].words(float),
        metavar="F",
        help="the share of every label that is spread over all classes (default: 0; 0.1 in many recipes)",
    )
    softer.add_argument(
        "--class-weights",
        choices=("balanced", "none"),
        help="balanced: rare classes count as much as frequent ones in the training loss, by scikit-learn's rule "
        f"(default: {default.class_weights})",
    )

    learns = parser.add_argument_group("what learns, and how fast")
    learns.add_argument(
        "--freeze",
        choices=("backbone", "none"),
        help="backbone: attention and the last layer learn, all else stays as in --weights, batch norm's statistics "
        f"included (default: {default.freeze})",
    )
    learns.add_argument(
        "--attention-lr",
        type=OPTIONS["attention_lr"].words(float),
        metavar="RATE",
        help="the peak learning rate of attention (default: --lr)",
    )
    learns.add_argument(
        "--decay-norms",
        action="store_true",
        help="weight decay on norms and biases too, which have none otherwise",
    )
    learns.add_argument(
        "--clip-grad",
        type=OPTIONS["clip_grad"].words(float),
        metavar="NORM",
        help="scale gradients down to this norm of all together, where it is more (default: no limit)",
    )
    learns.add_argument(
        "--accumulate",
        type=OPTIONS["accumulate"].words(int),
        metavar="N",
        help=f"batches to a step of the optimizer (default: {default.accumulate})",
    )
    learns.add_argument(
        "--ema",
        type=OPTIONS["ema"].words(float),
        nargs="?",
        const=0.999,
        metavar="DECAY",
        help="keep a moving average of the weights, evaluate it every epoch, and save it in best-ema.safetensors and "
        "last-ema.safetensors (without a number: 0.999; default: none)",
    )
    learns.add_argument(
        "--early-stop",
        type=OPTIONS["early_stop"].words(int),
        metavar="EPOCHS",
        help="end the run when the held-out accuracy has not risen for so many epochs (default: never)",
    )
    learns.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="keep the inputs of residual blocks alone, and compute the rest again in the backward: less memory, more "
        "time, the same numbers",
    )
