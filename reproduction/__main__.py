"""The papers' claims, judged: docs/evidence/claims.md and the tables in other documents, from raw results.

    python -m reproduction                                  # rewrites the documents from reproduction/results
    python -m reproduction --check                          # names documents and pictures that differ from them
    python -m reproduction --data FOLDER [--part acdc ...]  # measures first; what exists is not measured again
    python -m reproduction --curves                         # and draws pictures in docs/evidence that differ

FOLDER holds one subfolder per data set; parts that time phantoms need none, only their names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reproduction.check import differing
from reproduction.parts import PARTS, RESULTS, ROOT, measure, usual_parts


def main() -> int:
    arguments = _arguments()
    if arguments.check:
        names = differing()
        print("\n".join(f"{name} differs from the results; run make claims" for name in names))
        return 1 if names else 0
    data = arguments.data.resolve() if arguments.data else None
    measure(arguments.part or (usual_parts() if data else []), data)
    _write(arguments.curves)
    return 0


def _write(curves: bool) -> None:
    from reproduction.document import documents  # these load torch, which a check seldom needs
    from reproduction.evidence import read_evidence
    from reproduction.pictures import draw

    evidence = read_evidence(RESULTS)
    for path, text in documents(evidence).items():
        path.write_text(text, encoding="utf-8")
        print("wrote", path.relative_to(ROOT))
    if curves:
        for path in draw(evidence, ROOT):
            print("drew", path.relative_to(ROOT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where one differs")
    parser.add_argument("--data", type=Path, help="folder of data sets: measure what is missing first")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--curves", action="store_true", help="draw pictures in docs/evidence that differ")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
