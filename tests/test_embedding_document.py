# SPDX-License-Identifier: Apache-2.0
"""docs/embedding.md: every code that a stream can tell is in its table, and no other."""

import re

from edgereels.runtime.live_state import State
from edgereels.runtime.playout_types import LatePolicy

from .conftest import CHECKOUT

TEXT = (CHECKOUT / "docs" / "embedding.md").read_text(encoding="utf-8")
CODE = r"(?:S|AUDIO|MICROPHONE|M|WINDOW|NO)_[A-Z_]+"


def codes_told() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in (CHECKOUT / "runtime").glob("*.py")]
    return {code for source in sources for code in re.findall(f'"({CODE})"', source)}


def test_every_code_is_explained_and_no_other() -> None:
    table = TEXT[TEXT.index("## Events") :]
    explained = set(re.findall(f"`({CODE})`", "\n".join(line.split(" | ")[0] for line in table.splitlines())))
    assert explained == codes_told()


def test_every_state_and_policy_is_explained() -> None:
    for name in (*(f"`{state}`" for state in State), *(f"`LatePolicy.{policy.name}`" for policy in LatePolicy)):
        assert f"| {name}" in TEXT, name


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links and all((CHECKOUT / "docs" / link).exists() for link in links)
