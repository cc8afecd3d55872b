"""The commands and snippets of the README and then of the guides, run in one folder, as a new user would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDES = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
RUN = re.compile(r"<!-- run -->\n```(sh|python)\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")


@pytest.mark.slow
def test_walkthrough_runs_when_followed_in_order(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MOESAIC_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    blocks = [block for page in (README, *GUIDES) for block in RUN.findall(page)]
    assert len(blocks) >= 6
    for language, text in blocks:
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs/tiny/report.html").is_file()


def test_readme_shell_blocks_are_run_or_are_make_targets_when_listed() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = {text for language, text in RUN.findall(README) if language == "sh"}
    for block in SHELL.findall(README):
        if block not in run:
            for line in block.splitlines():
                assert re.fullmatch(r"make ([a-z]+)( +#.*)?", line), line
                assert line.split()[1] in targets


@pytest.mark.parametrize(
    "page",
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))],
)
def test_links_lead_to_files_when_relative(page: str) -> None:
    path = ROOT / page
    for link in LINK.findall(path.read_text()):
        assert link.startswith("http") or (path.parent / link).exists(), link
