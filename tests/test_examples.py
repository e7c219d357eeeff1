"""The documentation's code and the demo run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.fixture(autouse=True, scope="module")
def as_a_reader():
    # The suite may have turned Triton's interpreter on; a reader's calls do not go there.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield


def code_blocks():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(1))
            name = f"{page.relative_to(ROOT)}:{line + 1}"
            yield pytest.param(page, line, match[1], id=name)


@pytest.mark.parametrize(("page", "line", "code"), list(code_blocks()))
def test_code_block_runs(page, line, code):
    if "genkern_host" in code:
        pytest.importorskip("genkern_host")
    # Blank lines in front give a failure the page's own line number.
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def run_demo(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "examples.vae_digits", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    for package in ("matplotlib", "rich", "sklearn", "tqdm"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("demo")
    result = run_demo("--quick", "--output", str(folder))
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def elbos(table):
    return dict(re.findall(r"^\W*(genkern|plain, [a-z ]+?)\s+(-\d+\.\d{4})", table, re.MULTILINE))


def test_demo_gives_equal_elbo_on_equal_noise(demo):
    found = elbos(demo[1])
    assert set(found) == {"genkern", "plain, same noise", "plain, randn"}
    assert found["genkern"] == found["plain, same noise"]


def test_demo_keeps_only_a_key(demo):
    added = re.findall(r"(\d\S* [KM]?i?B)\s*$", demo[1], re.MULTILINE)
    methods = len(elbos(demo[1]))
    assert added[::methods] == ["16 B"] * (len(added) // methods)
    assert "16 B" not in added[1::methods]


def test_demo_page_needs_no_other_file(demo):
    folder, printed = demo
    page = folder / "index.html"
    assert str(page) in printed
    html = page.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|srcset|href)="([^"]{,22})', html)) == {"data:image/png;base64,"}
    for name in ("loss", "reconstructions", "prior", "latent", "kl"):
        assert {p.name for p in folder.glob(f"{name}-*.png")} == {
            f"{name}-dark.png",
            f"{name}-light.png",
        }


def test_demo_refuses_no_epochs():
    pytest.importorskip("sklearn")
    result = run_demo("--epochs", "0")
    assert result.returncode == 2
    assert "--epochs: expected at least 1, got 0" in result.stderr
