"""The guide to samplers: its Python runs as it stands, and what it cites is there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

GUIDE = Path(__file__).parent.parent / "tutorials" / "which_sampler.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def test_code_of_the_guide_runs() -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), namespace)
    for name in ("x", "flow", "as_published", "with_noise", "end"):
        samples = namespace[name]
        assert isinstance(samples, torch.Tensor)
        assert samples.shape == (100, 2)
        assert bool(samples.isfinite().all())


def test_pages_the_guide_cites_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not (GUIDE.parent / link).exists()] == []
