"""The page of the site that shows a notebook: its texts, and its code as code blocks."""

from __future__ import annotations

import json
from pathlib import Path


def page_of(notebook: Path) -> str:
    """The notebook as Markdown, with a link to the file; outputs are left out, since every run makes its own."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
    head, *rest = [f"```python\n{text}\n```" if is_code else text for text, is_code in texts]
    return "\n\n".join([head, f"[Download the notebook]({notebook.name}).", *rest]) + "\n"
