"""Train as ``triton-attn train`` does, and leave the sum of this process's weights beside the run: for torchrun."""

import hashlib
import os
import sys
from pathlib import Path

import torch

from triton_attn.cli import parse
from triton_attn.train.options import resolve
from triton_attn.train.run import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    config, dataset = resolve(parse(sys.argv[1:]))
    model = train(config, dataset)
    assert model is not None
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    Path(f"{config.output}.{os.environ['RANK']}.sum").write_text(digest.hexdigest())
