"""What every integration keeps to."""

from __future__ import annotations

import subprocess
import sys

PEERS = ("diffusers", "denoising_diffusion_pytorch", "pythae")


def test_importing_the_package_imports_no_peer():
    code = (
        "import sys, genkern, genkern.integrations;"
        f"print([name for name in {PEERS} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr
