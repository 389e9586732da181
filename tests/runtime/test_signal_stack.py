"""A signal after a model was compiled must reach its handler, also where the process has a stack for its handlers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from vae_edge.bundle import Bundle


@pytest.mark.parametrize("faults", ["faulthandler.enable()", ""])
def test_ctrl_c_reaches_its_handler_whatever_was_opened_and_closed(session_bundle: Bundle, faults: str) -> None:
    program = textwrap.dedent(f"""
        import faulthandler, os, signal
        {faults}
        import numpy as np, vae_edge
        def open_one(precision):
            classify = vae_edge.load({str(session_bundle.path)!r}, "openvino", precision)
            size = classify.input.size
            classify(np.zeros((3, size, size, classify.input.channels), np.uint8))
            return classify
        signal.signal(signal.SIGINT, lambda *_: print("heard"))
        first, second = open_one("fp32"), open_one("int8")
        os.kill(os.getpid(), signal.SIGINT)
        first.close()
        second.close()
        os.kill(os.getpid(), signal.SIGINT)
        open_one("auto").close()
        os.kill(os.getpid(), signal.SIGINT)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n" * 3), done.stderr
