"""The options table of README.md. `python3 -m tests.readme` writes it anew from the option table."""

from __future__ import annotations

from pathlib import Path

from stdserve.config import options_markdown

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- options: made by `python3 -m tests.readme`, checked by tests/test_readme.py -->\n"
END = "<!-- end of options -->"


def with_options(text: str) -> str:
    """The README with its options table made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "README.md has lost the marks around its options table"
    return f"{before}{begin}{options_markdown().strip()}\n{end}{after}"


if __name__ == "__main__":
    README.write_text(with_options(README.read_text(encoding="utf-8")), encoding="utf-8")
