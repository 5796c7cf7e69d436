"""The one place that makes a name safe to show: without control and bidirectional characters.

Names of modules, targets and files come from checkpoints and from other people's code. In a terminal a
control character moves the cursor or changes the title, in XML it is an error, and a bidirectional character
makes one name look like another. In a log of continuous integration a line that begins with two colons,
however far it is indented, or that has a bracket after two hash signs is a command to the service.
"""

from __future__ import annotations

import re
import unicodedata

# Commands of GitHub Actions and of Azure Pipelines, which wrapping may put at the start of a line.
_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#(?:vso)?\[)", re.IGNORECASE)
# Control, format (the bidirectional characters are among these), surrogate, line and paragraph separator.
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: str) -> str:
    r"""The text in one line, without characters that act instead of being seen.

    Line breaks and tabs become blanks, other control characters, bidirectional and invisible ones, lone
    surrogates and what Unicode calls noncharacters are left out. A blank breaks up what a log would take for
    a command.

    Example:
        >>> printable("norm\n::error::\x1b[31mred")
        'norm : :error::[31mred'
    """
    shown = text if text.isprintable() else "".join(map(_shown, text))
    return _COMMAND.sub(r"\g<0> ", shown) if "::" in shown or "##" in shown else shown


def _shown(character: str) -> str:
    if character in "\t\n\v\f\r\x85\u2028\u2029":
        return " "
    unsafe = unicodedata.category(character) in _UNSAFE or ord(character) & 0xFFFE == 0xFFFE
    return "" if unsafe or 0xFDD0 <= ord(character) <= 0xFDEF else character
