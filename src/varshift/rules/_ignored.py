"""Findings that a comment at their line of code ignores: ``# varshift: ignore[VS106]``."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from varshift._sites import Source

from ._finding import Finding

_COMMENT = re.compile(r"#\s*varshift:\s*ignore(?:\s*\[(?P<codes>[^\]]*)\])?", re.IGNORECASE)
_LARGEST = 2**23  # bytes of a source file that is read
_SHOWN = 5

Codes = frozenset[str] | None  # None: all codes


def without_ignored(findings: Sequence[Finding]) -> tuple[tuple[Finding, ...], str]:
    """Leaves out the findings all of whose sites lie at lines with a comment that ignores their code.

    The comment may be at any line of the statement. It names codes or prefixes of codes, separated by commas;
    without a list it ignores every code. A file that cannot be read ignores nothing.

    Args:
        findings: The findings.

    Returns:
        The others in their order, and a sentence for the report, empty where nothing is ignored.
    """
    kept: list[Finding] = []
    ignored: list[Finding] = []
    for finding in findings:
        (ignored if _is_ignored(finding) else kept).append(finding)
    if not ignored:
        return tuple(kept), ""
    names = [f"{finding.code} at {finding.source}" for finding in ignored]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    count = "1 finding is" if len(names) == 1 else f"{len(names)} findings are"
    return tuple(kept), f"{count} ignored by comments in the source: {', '.join(names[:_SHOWN])}{more}."


def _is_ignored(finding: Finding) -> bool:
    return bool(finding.sites) and all(
        site.source is not None and ignores(site.source, finding.code) for site in finding.sites
    )


def ignores(source: Source, code: str) -> bool:
    """Whether the statement at a line of code has a comment that ignores a rule."""
    path = Path(source.file)
    try:
        status = path.stat()
        if status.st_size > _LARGEST:
            return False
        comments = _comments(str(path), status.st_mtime_ns)
    except (OSError, ValueError):  # no file, as for code that was typed in; a name that cannot be one
        return False
    if source.line not in comments:
        return False
    codes = comments[source.line]
    return codes is None or any(code.startswith(selector) for selector in codes)


@lru_cache(maxsize=64)
def _comments(file: str, changed: int) -> dict[int, Codes]:
    """The codes that each line ignores; a comment counts for all lines of its statement.

    Args:
        file: The file.
        changed: When it was last changed: another time is another file.
    """
    text = Path(file).read_bytes()
    found: dict[int, Codes] = {}
    first, codes = None, set[str]()
    everything = False
    try:
        for token in tokenize.tokenize(io.BytesIO(text).readline):
            if token.type == tokenize.COMMENT and (match := _COMMENT.search(token.string)):
                if match["codes"] is None:
                    everything = True
                else:
                    codes |= {word.strip().upper() for word in match["codes"].split(",") if word.strip()}
            elif token.type in (tokenize.NL, tokenize.NEWLINE):
                if token.type == tokenize.NL and first is not None:
                    continue  # within a statement
                if everything or codes:
                    for line in range(first or token.start[0], token.end[0] + 1):
                        found[line] = None if everything else frozenset(codes)
                first, codes, everything = None, set(), False
            elif first is None and token.type not in (tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING):
                first = token.start[0]
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):  # no Python, or not in the declared coding
        return found
    return found
