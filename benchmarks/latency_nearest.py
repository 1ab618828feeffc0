# SPDX-License-Identifier: Apache-2.0
"""After a run that was not live: which setting would be, of the same face at the same size, by a short calibration."""

from typing import Any

from ..runtime import AvatarSession, EdgereelsError
from .command_plan import face_of, make_plan
from .live_plan import WORDS, nearest_live

BUDGET_S = 12.0
"""For running windows, seconds; engines may have to compile for other windows besides."""


def nearest_setting(
    session: AvatarSession, *, device: str, avatar: Any, window: int, steps: int, say: Any = lambda _text: None
) -> str | None:
    """Return in words what would be live here, or that nothing would; None where it can't be told.

    Args:
        session: open, and idle.
        device: as it was asked for.
        avatar: as it was asked for.
        window: frames, of the setting that was not live.
        steps: denoising steps, of that setting.
        say: shows progress.
    """
    own = session.package.manifest.settings.steps
    try:
        made = make_plan(
            session,
            device=device,
            avatar=avatar,
            sizes=[face_of(session.package, avatar).size],
            windows=[window, *sorted(WORDS.keys() - {window})],
            steps=[steps, *sorted({own, 2 * own, max(1, own // 2)} - {steps})],
            budget_s=BUDGET_S,
            progress=say,
        )
    except EdgereelsError:
        return None
    others = [one for one in made.predictions if (one.setting.window, one.setting.steps) != (window, steps)]
    found = nearest_live(made.wanted.setting, others)
    if found is not None:
        return f"{found.setting}, with {found.spare_share:.0%} to spare by edgereels plan".replace("%", " %")
    fastest = min(others, key=lambda one: one.real_time_factor, default=made.wanted)
    return f"none of this size; the fastest, {fastest.setting}, needs {fastest.real_time_factor:.2f}× by edgereels plan"
