"""The pages for people say what the code says."""

from __future__ import annotations

from pathlib import Path

from shmpool.protocol import transitions
from shmpool.protocol.codes import Code
from shmpool.protocol.meanings import MEANINGS
from shmpool.protocol.messages import FROM_CLIENT, SCHEMA

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
