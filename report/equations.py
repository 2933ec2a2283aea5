"""Where each equation of REPORT.md stands: in the code that computes it, and in the test that holds it.

The code cites an equation behind the formula that computes it, `(Eq. 17)`, `(Eq. 15 with a = 0)` or `(Eqs. 19 and 20)`,
in a docstring or a comment. A place is named by the definition around it, not by its line, which any edit moves.
"""

import ast
import re
from pathlib import Path

TAG = re.compile(r'\\tag\{(\d+)\}')
# An opening bracket before it makes a mention a citation.
MENTION = re.compile(r'(\(?)\bEq(?:\. (\d+)|s\. (\d+(?:(?:,| and|, and| to) \d+)*))')


def numbered(root: Path) -> list[int]:
    """The numbers of the equations of REPORT.md, in their order there."""
    return [int(number) for number in TAG.findall((root / 'REPORT.md').read_text(encoding='utf-8'))]


def computed(root: Path) -> dict[int, list[str]]:
    """For each equation that the code cites behind a formula, links to the definitions that do."""
    found: dict[int, list[str]] = {}
    for path in code_files(root):
        text = path.read_text(encoding='utf-8')
        tree = ast.parse(text)
        for match in MENTION.finditer(text):
            if match[1]:
                line = text.count('\n', 0, match.start()) + 1
                link = f'[`{enclosing(tree, line) or path.name}`]({path.name})'
                for number in numbers_in(match):
                    places = found.setdefault(number, [])
                    places += [link] if link not in places else []
    return found


def mentioned(root: Path) -> set[int]:
    """The equations that the code names, behind a formula or in passing."""
    return {
        number
        for path in code_files(root)
        for match in MENTION.finditer(path.read_text(encoding='utf-8'))
        for number in numbers_in(match)
    }


def tests(root: Path) -> dict[int, list[str]]:
    """For each equation that has a test, `test_equation_17_…`, links to its tests."""
    found: dict[int, list[str]] = {}
    for name, path in test_methods(root):
        if match := re.match(r'test_equation_(\d+)_', name):
            found.setdefault(int(match[1]), []).append(f'[`{name}`]({path})')
    return found


def test_methods(root: Path) -> list[tuple[str, str]]:
    """The name of each test method of `unittests.py` and `tests/`, and its file's path from `root`."""
    return [
        (method.name, path.relative_to(root).as_posix())
        for path in (root / 'unittests.py', *sorted(root.glob('tests/test_*.py')))
        for case in ast.parse(path.read_text(encoding='utf-8')).body
        if isinstance(case, ast.ClassDef)
        for method in case.body
        if isinstance(method, ast.FunctionDef) and method.name.startswith('test_')
    ]


def code_files(root: Path) -> list[Path]:
    """The scripts and modules of the assignment, without the tests."""
    return sorted(set(root.glob('*.py')) - {root / 'unittests.py'})


def enclosing(tree: ast.Module, line: int) -> str:
    """The qualified name of the innermost class or function around a line, such as `Module.backward`; '' if none."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    ]
    return '.'.join(node.name for node in sorted(around, key=lambda node: node.lineno))


def numbers_in(mention: re.Match) -> list[int]:
    """The numbers of 'Eq. 3', of 'Eqs. 3, 5 and 8' or of 'Eqs. 3 to 8'."""
    numbers: list[int] = []
    for link, number in re.findall(r'(to )?(\d+)', mention[2] or mention[3]):
        numbers += range(numbers[-1] + 1, int(number) + 1) if link else [int(number)]
    return numbers
