# SPDX-License-Identifier: Apache-2.0
"""Text of unknown origin on its way to a terminal, which obeys what it is sent: titles, colours, the cursor."""


def printable(line: str) -> str:
    r"""Return a line with escapes for what is not shown as it is.

    Control characters, line breaks, marks that turn the direction of writing: `\x1b` for the byte 27.
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)
