"""Fills the tables of both documents, or checks all that is committed; see the package."""

import sys
from pathlib import Path

from files import atomic_file
from parsing import OneLineParser
from report.checks import CHECKS, failures
from report.figure import plot_recipes
from report.tables import DOCUMENTS, ReportError, fill

ROOT = Path(__file__).resolve().parent.parent


def main(root: Path = ROOT, args: list[str] | None = None) -> int:
    """Fills or checks what lies under `root`, as `args` say (the command line's if None); returns the exit status."""
    parser = OneLineParser(
        prog='python -m report',
        description='Fills the tables of REPORT.md and README.md, and draws figures/recipes.png.',
    )
    parser.add_argument('--check', action='store_true', help='write nothing; print each check that fails')
    flags = parser.parse_args(args)
    if flags.check:
        found = failures(root)
        for name, wrong in found.items():
            print(f'{name}: {wrong}')
        if not found:
            print(f'all {len(CHECKS)} checks passed')
        return 1 if found else 0
    try:
        for path in (root / document for document in DOCUMENTS):
            text, names = fill(root, path.read_text(encoding='utf-8'))
            if names:
                with atomic_file(path) as file:
                    file.write(text.encode())
                print(f'{path.name}: filled {", ".join(names)}')
        plot_recipes(root, root / 'figures/recipes.png')
    except (OSError, ReportError) as error:
        parser.error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
