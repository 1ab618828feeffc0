# SPDX-License-Identifier: Apache-2.0
"""The faces of the default package. They were invented for it and depict nobody."""

from dataclasses import dataclass

from .ink import Colour


@dataclass(frozen=True)
class Identity:
    """How one face looks."""

    skin: Colour
    hair: Colour
    eye: Colour
    shirt: Colour
    background: Colour
    lip: Colour
    hair_style: str
    """One of `hair.STYLES`."""
    glasses: bool = False
    beard: float = 0.0
    """0 none, 1 dense."""
    brow: float = 1.0
    """Thickness of the eyebrows."""


IDENTITIES = {
    "anna": Identity(
        skin=(246, 214, 190), hair=(104, 62, 40), eye=(78, 124, 92), shirt=(58, 104, 122), background=(204, 216, 226),
        lip=(208, 108, 104), hair_style="long",
    ),
    "bruno": Identity(
        skin=(226, 180, 146), hair=(58, 42, 34), eye=(92, 66, 44), shirt=(72, 88, 128), background=(222, 212, 198),
        lip=(188, 108, 98), hair_style="short", beard=0.5, brow=1.35,
    ),
    "mei": Identity(
        skin=(248, 220, 196), hair=(38, 34, 44), eye=(66, 48, 40), shirt=(206, 120, 108), background=(196, 214, 204),
        lip=(202, 98, 98), hair_style="bob", glasses=True,
    ),
    "kofi": Identity(
        skin=(142, 94, 66), hair=(36, 28, 26), eye=(74, 50, 36), shirt=(214, 168, 84), background=(212, 206, 224),
        lip=(148, 84, 78), hair_style="crop", brow=1.2,
    ),
}  # fmt: skip
"""Name -> look; the first is the package's default."""
