"""Each error code has one section in docs/errors/, and each section a code that is raised."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def raised_codes() -> set[str]:
    folders = ('vision', 'tools', 'benchmarks', 'datasets')
    texts = [path.read_text() for folder in folders for path in (ROOT / folder).rglob('*.py')]
    # Docstrings may name codes too; only quoted ones (with what follows on the line) are raised.
    return {code for text in texts for code in re.findall(r"['\"](?:ERROR )?(VIS-[A-Z]+-\d{3,4})",
                                                          text)}


def described_codes() -> list[str]:
    pages = (ROOT / 'docs' / 'errors').glob('*.md')
    return [code for page in pages
            for code in re.findall(r'^## (VIS-[A-Z]+-\d{3,4})', page.read_text(), re.M)]


def test_every_raised_code_has_exactly_one_section():
    described = described_codes()
    assert len(described) == len(set(described)), 'a code is described twice'
    assert raised_codes() == set(described)


def test_an_unknown_kind_is_our_own_mistake():
    import pytest

    from vision.common.core.errors import VisionError
    with pytest.raises(AssertionError):
        VisionError('VIS-NONSENSE-001', 'x')
