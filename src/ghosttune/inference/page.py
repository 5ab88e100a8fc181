"""The page to talk in, and what a browser may do with it: run and apply its own text, and ask this server."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _digests(tag: str) -> str:
    """What a browser may run or apply of the page: the text between each pair of these tags, and nothing else."""
    inside = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in inside)


PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_digests('script')}; style-src {_digests('style')}; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
