"""Documents, help, docstrings and messages use plain words: the senses that only this project knew do not come back.

A sentence may use the words of docs/glossary.md, the field's own terms, or plain English. Pure text: nothing runs.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from docs.scripts.commands import ROOT, pages

SOURCE = ROOT / "src" / "handful"

RETIRED = {
    r"closer": "crop; roi_margin; enlarged",
    r"anew": "again",
    r"beside": "in addition to; compared with; next to",
    r"told|tells? (\w+ )?apart": "significantly better; different; distinguish",
    r"arms?": "configuration",
    r"seen(?! case)": "encoded; labelled; known",
    r"said|say of|says of": "predicted; set",
    r"invent(s|ed|ing)?": "synthetic data; a false positive",
    r"mend(s|ed|ing)?": "fix",
    r"readers?": "a simulated annotator; an annotator",
    r"(first|second|third|one|two|three|random|each|per) draws?|draws of|draw number": "a random split",
    r"drawn": "chosen at random; sampled",
    r"asked|asking|asks? (for|of|with)": "prompted with; needs",
    r"look(s|ed|ing)? at|looks? (most|more) alike": "encode; crop; be similar",
    r"an? (line|row|figure|slice|step|box|pass|file|folder|case) an? \w+": "one row per case",
    r"h[eo]lds? for likely|thinks? likely": "probability",
    r"go(es)? on|gone on|went on": "resume; continue",
    r"in one go|of its own accord": "at once; automatically",
}
"""Patterns of retired senses, and what to write instead."""

ALLOWED = {
    r"DICOM readers?": "software that reads a file format is called so",
    r"screen readers?": "software that reads pages aloud is called so",
    r"drawn by a person": "a person draws a reference with a brush",
    r"(exactly as|not all may be) drawn": "a mask or a picture is drawn",
    r"drawn dashed|(is|are|be) drawn (as|in|on|next|side)": "a curve or an outline is drawn in a chart",
}
"""Phrases in which a retired word has its usual sense, and that sense."""

NOT_YET = ("cli/fit.py", "cohort/fit.py")
"""Paths in src/handful whose texts are still to be rewritten."""


def offences(text: str) -> list[str]:
    """Every retired sense in a text, with its surroundings and what to write instead."""
    text = " ".join(text.split())
    for phrase in (r"`[^`]*`", *ALLOWED):
        text = re.sub(phrase, " ", text)
    return [
        f"{match[0]!r} in '...{text[max(0, match.start() - 40) : match.end() + 30]}...': {instead}"
        for pattern, instead in RETIRED.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


def prose(page: str) -> str:
    """A Markdown page without code, comments and link targets."""
    return re.sub(r"```.*?```|<!--.*?-->|`[^`]*`|\]\([^)]*\)", " ", page, flags=re.DOTALL)


def public_texts(source: str) -> Iterator[str]:
    """Docstrings of the module, of its public classes, fields and functions, and help texts of options."""
    tree = ast.parse(source)
    yield ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.Module) or (isinstance(node, ast.ClassDef) and not node.name.startswith("_")):
            for field, text in pairwise(node.body):
                if isinstance(field, ast.AnnAssign | ast.Assign) and isinstance(text, ast.Expr):
                    yield " ".join(_strings(text))
        if isinstance(node, ast.keyword) and node.arg == "help":
            yield " ".join(_strings(node.value))


def all_texts(source: str) -> Iterator[str]:
    """Every docstring, message and comment of a module; single words, such as keys of a dictionary, are left out."""
    tree = ast.parse(source)
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inner = {id(part) for node in joined for part in ast.walk(node)}
    for node in joined:
        yield " ".join(_strings(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value if " " in node.value.strip() else ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def _strings(node: ast.AST) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def _modules() -> dict[str, str]:
    return {str(path.relative_to(SOURCE)): path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def test_no_retired_sense_is_in_a_document():
    wrong = [f"{page.relative_to(ROOT)}: {offence}" for page in pages() for offence in offences(prose(_text(page)))]
    assert wrong == []


def test_no_retired_sense_is_in_help_or_a_public_docstring():
    wrong = [
        f"{name}: {offence}"
        for name, source in _modules().items()
        if not name.startswith(NOT_YET)
        for text in public_texts(source)
        for offence in offences(text)
    ]
    assert wrong == []


def test_no_retired_sense_is_in_a_message_a_comment_or_a_private_docstring():
    wrong = [
        f"{name}: {offence}"
        for name, source in _modules().items()
        if not name.startswith(NOT_YET)
        for text in all_texts(source)
        for offence in offences(text)
    ]
    assert wrong == []


def test_a_retired_sense_would_be_noticed():
    for sentence in (
        "arms are drawn anew",
        "the label is told to be better",
        "asked with boxes, it is seen closer",
        "a line a case and label",
        "a message that names the mend",
        "what three draws of one case say beside each other",
        "invented voxels",
        "a reader who knows the reference",
        "it is gone on with",
    ):
        assert offences(sentence), sentence
    assert len(offences("arms are drawn anew")) == 3


def test_the_usual_senses_of_these_words_are_allowed():
    for sentence in (
        "draw a box, or click",
        "an unseen case",
        "the reference, drawn by a person",
        "files of a DICOM reader",
        "annotators' curves are drawn dashed",
        "one line per case",
        "organs that look alike",
    ):
        assert offences(sentence) == [], sentence


def test_help_messages_comments_and_docstrings_are_all_read():
    source = '"""Docstring told."""\nX = 1\n"""Constant told."""\n\n\nclass Plan:\n    shots: int = 1\n'
    source += '    """Field told."""\n\n\ndef fit(x=Option(help="help told")):\n    # comment told\n'
    source += '    raise ValueError(f"message {x} told")\n\n\ndef _private():\n    """Private told."""\n'
    counts = [sum(len(offences(text)) for text in texts(source)) for texts in (public_texts, all_texts)]
    assert counts == [4, 7]


def test_the_paths_that_are_left_out_exist():
    assert [path for path in NOT_YET if not (SOURCE / path).exists()] == []


def _text(page: Path) -> str:
    return page.read_text("utf-8")
