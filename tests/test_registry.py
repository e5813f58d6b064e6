"""The names of the blocks: one list for the fast blocks, the plain ones and the sites' arguments."""

from __future__ import annotations

import pytest
from torch import nn

import triton_attn
from triton_attn import registry
from triton_attn.reference import registry as plain


def test_fast_and_plain_names_agree():
    assert registry.BLOCKS.keys() == plain.BLOCKS.keys()
    assert triton_attn.list_attention() == sorted(plain.BLOCKS)
    assert triton_attn.list_attention("published") == sorted(plain.PUBLISHED)
    assert triton_attn.list_attention("all") == list(registry.ALL) == list(plain.ALL)
    assert registry.ALL.keys() == registry.BLOCKS.keys() | registry.PUBLISHED.keys()
    assert all(name.startswith("published.") for name in registry.PUBLISHED)
    for name, fast in registry.ALL.items():
        assert issubclass(fast, plain.ALL[name])
        assert fast is not plain.ALL[name]
        assert fast.__name__ == plain.ALL[name].__name__
        assert fast.__mro__[1] is plain.ALL[name] or name == "published.eca"
    with pytest.raises(ValueError, match=r"family must be one of 'tutorial', 'published', 'all', got 'mine'"):
        triton_attn.list_attention("mine")


@pytest.mark.parametrize(
    ("name", "near"), [("stam", "stem"), ("layer", "layer"), ("blocks", "block"), ("Layer3", "layer3"), ("quux", None)]
)
def test_look_up_names_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"^unknown site '{name}'.*\(known: stem, layer1, .*, block\)$") as error:
        plain.look_up("site", name, plain.SITES)
    assert (f"did you mean '{near}" in str(error.value)) == (near is not None)
    plain.look_up("site", "layer3", plain.SITES)


def test_sites_become_factories():
    found = plain.sites_of({"stem": "se", "block": nn.BatchNorm2d}, (), {"reduction": 4}, registry.BLOCKS)
    assert list(found) == ["stem", "block"]
    made = found["stem"](64)
    assert type(made) is triton_attn.SEBlock
    assert made.fc1.out_features == 16
    assert found["block"](8).num_features == 8
    assert plain.sites_of(None, ("stem",), None, registry.BLOCKS) == {}
