"""``varshift rules``."""

from __future__ import annotations


def rules() -> int:
    """List the rules: code, name, and when each fires."""
    from rich.table import Table

    from varshift.cli._console import wide_console
    from varshift.rules import FAMILIES, all_rules

    console = wide_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    family = ""
    for rule in all_rules():
        if rule.code[:3] != family:
            family = rule.code[:3]
            table.add_row(f"[dim]{family}xx[/dim]", f"[dim]{FAMILIES[family]}[/dim]", "")
        table.add_row(rule.code, rule.name, rule.summary.replace("[", r"\["))
    console.print(table, highlight=False)
    console.print("\n`varshift explain CODE` shows the page of a rule.", highlight=False, style="dim")
    return 0
