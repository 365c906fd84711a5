"""The pages of docs/ build as a site: every link, anchor, formula and linked function is there (docs/_hooks.py, strict mode)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from grape.algorithms import ALGORITHMS
from grape.commands.catalogue import STAGES


def test_the_site_builds_and_loads_nothing_from_elsewhere(root: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10 and (site / "grpo.html").is_file()
    for page in pages:
        loaded = re.findall(r'(?:src|<link[^>]+href)="(https?://[^"]+)"', page.read_text(encoding="utf-8"))
        assert not loaded, f"{page.name} loads {loaded}"


def test_every_algorithm_has_a_page_that_the_others_lead_to(root: Path) -> None:
    index = (root / "docs" / "index.md").read_text(encoding="utf-8")
    for name in (*ALGORITHMS, *STAGES):
        page = f"{name.replace('_', '-')}.md"
        assert (root / "docs" / page).is_file() and f"({page}" in index, page


def test_every_knob_of_an_algorithm_is_on_its_page(root: Path) -> None:
    for name, algorithm in {**ALGORITHMS, **STAGES}.items():
        text = (root / "docs" / f"{name.replace('_', '-')}.md").read_text(encoding="utf-8")
        missing = [knob for knob in algorithm.params.model_fields if f"`{knob}`" not in text]
        common = {"learning_rate", "reward", "rounds", "resample", "revise", "epochs", "mini_batches", "kl_target", "kl_horizon"}
        assert not set(missing) - common, f"{name}: {missing}"
