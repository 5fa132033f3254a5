"""The pages for people say what the code says."""

from __future__ import annotations

from pathlib import Path

from shmpool.protocol import metrics, transitions
from shmpool.protocol.codes import Code
from shmpool.protocol.meanings import MEANINGS
from shmpool.protocol.messages import FROM_CLIENT, SCHEMA
from shmpoold.core.reports import rules

ROOT = Path(__file__).parents[2]


def test_protocol_page_lists_every_message_with_its_fields():
    page = (ROOT / "docs/protocol.md").read_text()
    for kind, (cls, _) in SCHEMA.items():
        side = "client" if kind in FROM_CLIENT else "broker"
        fields = ", ".join(cls._fields)
        row = f"| {kind} | {side} | {cls.__name__} | {fields} |".replace("|  |", "| |")
        assert row in page, row


def test_protocol_page_lists_every_code():
    page = (ROOT / "docs/protocol.md").read_text()
    for code in Code:
        meaning = MEANINGS[code]
        retry = "yes" if meaning.retry else "no"
        assert f"| {code.value} | {code.name} | {meaning.blame.name.lower()} | {retry} | {meaning.text} |" in page


def test_readme_picture_is_made_from_the_transition_table():
    assert transitions.diagram() in (ROOT / "README.md").read_text()


def test_tables_have_a_line_for_each_thing():
    for figures in (metrics.ALERTS,):
        lines = metrics.table(figures).splitlines()
        assert len(lines) == len(figures) + 2
        assert all(f"`{figure.name}`" in line for figure, line in zip(figures, lines[2:], strict=True))
    lines = rules.table().splitlines()
    assert len(lines) == len(rules.RULES) + 2
    assert all(f"`{rule.name}`" in line for rule, line in zip(rules.RULES, lines[2:], strict=True))


def test_the_tables_that_are_printed_are_those_of_the_page():
    page = (ROOT / "docs/stats.md").read_text()
    tables = [table for table in metrics.texts().split("\n\n") if table]
    assert len(tables) == 7
    assert all(table.strip() in page for table in tables)
