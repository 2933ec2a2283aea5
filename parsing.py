"""The words of a command line: files of flags, mistakes answered in one line, and how a process then ends.

    parser = OneLineParser(description='Trains a network.')
    parser.add_argument('--max_steps', type=int)
    with one_line_errors(parser):
        train(parser.parse_args())  # `@FILE` among the words stands for the flags in that file

What a user can mend is raised as a FlagError or a DataError, and said in one line, with exit status 2.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from cifar10_files import DataError, one_line


class FlagError(ValueError):
    """A flag that cannot be followed; the message is one line that says what to do."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line rather than with its whole usage."""

    def __init__(self, **kwargs: object) -> None:
        # A script built on another's flags may define one of them anew.
        kwargs = {'allow_abbrev': False, 'conflict_handler': 'resolve'} | kwargs
        kwargs = {
            'epilog': '@FILE stands for the flags in a file; of two values of a flag the later one counts'
        } | kwargs
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)
        # What follows from some flags for others, wherever on the command line these stand: each is called with the
        # flags and the names of those that were given, and sets others.
        self.consequences: list[Callable[[argparse.Namespace, set[str]], None]] = []

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, with the flags of a file in place of each `@FILE`."""
        words = sys.argv[1:] if args is None else args
        try:
            words = [flag for word in words for flag in flags_of(word)]
        except FlagError as error:
            self.error(str(error))
        flags, unknown = super().parse_known_args(words, namespace)
        if self.consequences:
            nothing = object()
            again, _ = super().parse_known_args(words, argparse.Namespace(**dict.fromkeys(vars(flags), nothing)))
            given = {flag for flag, value in vars(again).items() if value is not nothing}
            for follow in self.consequences:
                follow(flags, given)
        return flags, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the process with this line on stderr and exit status 2."""
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())} (--help lists the flags)\n')

    def fail(self, message: str) -> NoReturn:
        """Ends the process with this line on stderr and exit status 1."""
        self.exit(1, f'{self.prog}: {message}\n')

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the process; under torchrun each rank says its own reason, the others a moment after rank 0.

        Where all ranks have the same mistake, rank 0's end makes torchrun end the others before they say it again.
        """
        if message and not is_main_process():
            time.sleep(5)
        super().exit(status, message)


def flags_of(word: str, inside: tuple[str, ...] = ()) -> list[str]:
    """The flags in the file that a word `@FILE` of a command line names, several to a line; else the word itself.

    What follows a # at the beginning of a word is a comment, quotes hold words together, and a file may name another.

    Args:
        word: of the command line, or of the file that was named last.
        inside: the files whose flags these are among.

    Raises:
        FlagError: the file cannot be read, is no text, lacks a closing quote, or names itself.
    """
    if not word.startswith('@'):
        return [word]
    path = file_path(word[1:])
    if path in inside:
        raise FlagError(f'{path} names itself: take out its @{path}')
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
        # A comment, or what stands in quotes and may hold a # of its own.
        text = re.sub(r'(?m)(?<!\S)#.*|("[^"]*"|\'[^\']*\')', lambda found: found[1] or '', text)
        lexer = shlex.shlex(text, posix=True)
        lexer.whitespace_split, lexer.commenters, lexer.escape = True, '', ''  # a backslash is part of a Windows path
        return [flag for word in lexer for flag in flags_of(word, (*inside, path))]
    except OSError as error:
        raise FlagError(f'cannot read {word}: {error.strerror or error}') from error
    except UnicodeDecodeError as error:
        raise FlagError(f'{word} is no file of flags: it is no text in UTF-8') from error
    except ValueError as error:
        raise FlagError(f'{word} is no file of flags: {error}') from error


def file_path(text: str) -> str:
    """The type of a flag that names a file or a directory: `~` at its start is the user's home."""
    return os.path.expanduser(text)


@contextlib.contextmanager
def one_line_errors(parser: OneLineParser) -> Iterator[None]:
    """Says in one line on stderr what the block raises, and ends the process.

    Exit status 2 for what a user can mend, 1 for what the machine refused: a disk, its memory, a device, another rank.
    What is a mistake in the code itself keeps its traceback.
    """
    try:
        yield
    except (DataError, FlagError) as error:
        parser.error(str(error))
    except MemoryError as error:
        parser.fail(f'out of memory: {one_line(error)}')
    except (OSError, RuntimeError) as error:
        parser.fail(one_line(error))


def launched() -> bool:
    """Whether torchrun started this process."""
    return 'TORCHELASTIC_RUN_ID' in os.environ


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: under torchrun rank 0, else any."""
    return not launched() or os.environ['RANK'] == '0'


def check_not_launched() -> None:
    """Raises a FlagError under torchrun: for a script whose processes would not share its work, but each do it all."""
    if launched():
        raise FlagError('not under torchrun, whose processes would each do all of this: use python')
