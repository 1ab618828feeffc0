# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

from edgereels.runtime.opencv import is_behind_av
from edgereels.runtime.video_window import NoDisplayError, VideoWindow

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there do the two collide")


def order(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that two modules were imported in this order."""
    others = {name: module for name, module in sys.modules.items() if name not in ("av", "cv2")}
    monkeypatch.setattr(sys, "modules", {**others, first: object(), second: object()})


@LINUX
def test_the_order_in_which_they_were_loaded_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    order("cv2", "av", monkeypatch)
    assert not is_behind_av()
    order("av", "cv2", monkeypatch)
    assert is_behind_av()


@LINUX
def test_a_window_behind_pyav_is_refused_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgereels.runtime.video_window.check_display", lambda: None)
    order("av", "cv2", monkeypatch)
    with pytest.raises(NoDisplayError, match="import cv2"):
        VideoWindow("late")


@LINUX
@pytest.mark.parametrize(("display", "loaded"), [(":7", True), ("", False)], ids=["screen", "no-screen"])
def test_where_there_is_a_screen_a_film_loads_opencv_first(display: str, loaded: bool) -> None:
    pytest.importorskip("av")
    pytest.importorskip("cv2")
    program = (
        "import sys; from edgereels.runtime.sinks import import_av; from edgereels.runtime.opencv import is_behind_av;"
        "import_av(); print('cv2' in sys.modules, is_behind_av())"
    )
    environment = {**os.environ, "DISPLAY": display}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(loaded), str(not loaded)]
