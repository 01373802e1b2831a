"""HTML pages: whole, and safe whatever their texts hold."""

from __future__ import annotations

from pgorthanc_cli.views import html

HOSTILE = '<script>alert("x")</script>&\''


def test_texts_are_escaped_everywhere() -> None:
    table = html.table((HOSTILE,), [(HOSTILE,)])
    body = (*table, html.section(HOSTILE, "content"), html.definitions([(HOSTILE, HOSTILE)]))
    page = "".join(html.document(HOSTILE, body))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6
    assert "default-src 'none'" in page


def test_markup_is_kept() -> None:
    assert "<td><b>5</b></td>" in "".join(html.table((), [(html.Markup("<b>5</b>"),)]))


def test_numbers_are_aligned() -> None:
    row = "".join(html.table((), [(1234, 0, "x")], classes=("", "", "label")))
    assert '<td class="number">1,234</td><td class="number none">0</td>' in row
    assert '<td class="label">x</td>' in row


def test_a_table_without_rows_is_nothing() -> None:
    assert "".join(html.table(("Name",), ())) == ""


def test_a_page_is_written_in_pieces() -> None:
    pieces = html.document("t", (f"<p>{number}</p>" for number in range(3)))
    assert next(pieces).startswith("<!DOCTYPE html>")
    assert next(pieces) == "<p>0</p>\n"
