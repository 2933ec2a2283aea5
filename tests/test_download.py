"""Where CIFAR-10 is looked for, its archive unpacked, and the download, from a server at this machine's own address."""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import unittest
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import cifar10_download
import cifar10_utils
import flags
import parsing
from cifar10_download import ARCHIVE, BATCHES, DownloadError, download, find_archive, find_batches, obtain
from cifar10_utils import BATCHES_FOLDER, DataError
from tests.helpers import NO_NETWORK, ROOT, files_under, only, run_script, temporary_directory

CONTENTS = {name: name.encode() * 1000 for name in (*BATCHES, 'batches.meta', 'readme.html')}
UNPACKED = sorted(CONTENTS)


def small_archive() -> bytes:
    """An archive with the members of CIFAR-10's, though not with their contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w:gz') as tar:
        folder = tarfile.TarInfo(BATCHES_FOLDER)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, contents in CONTENTS.items():
            member = tarfile.TarInfo(f'{BATCHES_FOLDER}/{name}')
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return stream.getvalue() + bytes(100_000)  # as zeros after its end, which are read over


class PlaceTest(unittest.TestCase):
    """A data directory, and an archive that counts as the published one."""

    def setUp(self) -> None:
        self.directory = self.enterContext(temporary_directory())
        self.data_dir = self.directory / 'cifar10'
        self.archive = small_archive()
        self.enterContext(mock.patch.object(cifar10_download, 'ARCHIVE_MD5', hashlib.md5(self.archive).hexdigest()))

    def write_batches(self, folder: Path, names: tuple[str, ...] = BATCHES) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_bytes(CONTENTS[name])
        return folder

    def write_archive(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ARCHIVE).write_bytes(self.archive)
        return folder / ARCHIVE

    def assert_unpacked(self, folder: Path) -> None:
        self.assertEqual(files_under(folder), UNPACKED)
        for name, contents in CONTENTS.items():
            self.assertEqual((folder / name).read_bytes(), contents)


def no_network(*_: object) -> None:
    raise OSError('the network was asked')


class FindingTest(PlaceTest):
    def test_the_batches_are_found_where_they_may_be(self) -> None:
        for place in (BATCHES_FOLDER, '.', f'{BATCHES_FOLDER}/{BATCHES_FOLDER}', f'deeper/{BATCHES_FOLDER}', 'deeper'):
            with self.subTest(place), temporary_directory() as data_dir:
                (data_dir / 'a').mkdir()
                (data_dir / BATCHES_FOLDER).mkdir()
                folder = self.write_batches(data_dir / place)
                self.assertEqual(obtain(data_dir, no_network), folder)

    def test_a_whole_set_comes_before_a_part_and_a_near_one_before_a_far_one(self) -> None:
        self.write_batches(self.data_dir / BATCHES_FOLDER, ('data_batch_1',))
        whole = self.write_batches(self.data_dir / 'z')
        self.assertEqual(find_batches(self.data_dir), whole)
        near = self.write_batches(self.data_dir)
        self.assertEqual(find_batches(self.data_dir), near)

    def test_other_processes_unfinished_directories_are_not_looked_at(self) -> None:
        self.write_batches(self.data_dir / '.unpacking-x')
        self.write_archive(self.data_dir / '.download-x')
        self.assertIsNone(find_batches(self.data_dir))
        self.assertIsNone(find_archive(self.data_dir))

    def test_a_directory_that_cannot_be_looked_into_is_not_an_empty_one(self) -> None:
        self.write_batches(self.data_dir, BATCHES[:1])
        for function in ('stat', 'listdir'):  # without a directory's x, and without its r
            with (
                mock.patch.object(os, function, side_effect=PermissionError(13, 'Permission denied')),
                self.assertRaisesRegex(DataError, f'cannot look into --data_dir {self.data_dir}: Permission denied'),
            ):
                obtain(self.data_dir, no_network)
        file = self.data_dir / 'data_batch_1'
        with self.assertRaisesRegex(DataError, f'cannot look into --data_dir {file}: Not a directory'):
            obtain(file, no_network)

    def test_what_is_at_hand_is_found_where_nothing_else_can_be_listed(self) -> None:
        folder = self.write_batches(self.data_dir / BATCHES_FOLDER)
        with mock.patch.object(os, 'listdir', side_effect=PermissionError(13, 'Permission denied')):
            self.assertEqual(obtain(self.data_dir, no_network), folder)

    def test_a_part_without_an_archive_is_given_so_that_reading_names_what_is_missing(self) -> None:
        folder = self.write_batches(self.data_dir / BATCHES_FOLDER / BATCHES_FOLDER, ('data_batch_1',))
        self.assertEqual(obtain(self.data_dir, no_network), folder)
        with self.assertRaisesRegex(DataError, 'data_batch_'):
            cifar10_utils.load('auto', self.data_dir)


class UnpackingTest(PlaceTest):
    def test_an_archive_is_unpacked_into_place_once_and_stays(self) -> None:
        for place in ('.', 'deeper'):
            with self.subTest(place), temporary_directory() as data_dir:
                archive = self.write_archive(data_dir / place)
                for _ in range(2):
                    self.assertEqual(obtain(data_dir, no_network), (data_dir / BATCHES_FOLDER).resolve())
                    self.assert_unpacked(data_dir / BATCHES_FOLDER)
                    self.assertEqual(archive.read_bytes(), self.archive)
                    with mock.patch.object(cifar10_download, 'unpack', side_effect=AssertionError):
                        obtain(data_dir, no_network)

    def test_the_test_set_appears_last(self) -> None:
        """Without it the files do not count as complete, whoever is killed before."""
        self.write_archive(self.data_dir)
        with mock.patch.object(os, 'replace', side_effect=os.replace) as replace:
            obtain(self.data_dir, no_network)
        self.assertEqual(replace.call_args.args[1].name, 'test_batch')

    def test_a_name_that_is_looked_up_without_end(self) -> None:
        """Which no time limit of urllib's ends."""
        over = threading.Event()
        self.addCleanup(over.set)
        with (
            mock.patch.object(urllib.request, 'urlopen', side_effect=lambda *_, **__: over.wait(30)),
            self.assertRaisesRegex(OSError, 'no answer within 0.1 s'),
        ):
            cifar10_download.check_network('http://127.0.0.1:9/x', timeout=0.1)

    def test_into_a_directory_that_is_there_already(self) -> None:
        def readme() -> None:
            (self.data_dir / BATCHES_FOLDER).mkdir(parents=True)
            (self.data_dir / BATCHES_FOLDER / 'readme.html').touch()

        def part() -> None:
            self.write_batches(self.data_dir / BATCHES_FOLDER, BATCHES[:3])

        def link() -> None:
            self.data_dir.mkdir()
            (self.directory / 'disk').mkdir()
            (self.data_dir / BATCHES_FOLDER).symlink_to(self.directory / 'disk')

        def link_to_nothing() -> None:
            self.data_dir.mkdir()
            (self.data_dir / BATCHES_FOLDER).symlink_to(self.directory / 'disk' / 'new')

        for prepare in (readme, part, link, link_to_nothing):
            with self.subTest(prepare.__name__):
                prepare()
                self.write_archive(self.data_dir)
                self.assert_unpacked(obtain(self.data_dir, no_network))
                self.assert_unpacked(self.data_dir / BATCHES_FOLDER)
            for path in self.directory.iterdir():
                shutil.rmtree(path)

    def test_another_archive_is_refused(self) -> None:
        path = self.write_archive(self.data_dir)
        path.write_bytes(self.archive[:-1])
        with self.assertRaisesRegex(DataError, f'{path} is damaged.* MD5 sum is [0-9a-f]{{32}}, the .* [0-9a-f]{{32}}'):
            obtain(self.data_dir, no_network)
        self.assertEqual(files_under(self.data_dir), [ARCHIVE])

    def test_what_cannot_be_unpacked_is_kept_and_nothing_half_written_shows(self) -> None:
        path = self.write_archive(self.data_dir)
        (self.data_dir / BATCHES_FOLDER).touch()
        with self.assertRaisesRegex(DataError, f'cannot unpack {path} into .*exists'):
            obtain(self.data_dir, no_network)
        (self.data_dir / BATCHES_FOLDER).unlink()
        full = OSError(28, 'No space left on device')
        with (
            mock.patch.object(shutil, 'copyfileobj', side_effect=full),
            self.assertRaisesRegex(DataError, 'cannot unpack .*No space left'),
        ):
            obtain(self.data_dir, no_network)
        self.assertEqual(files_under(self.data_dir), [BATCHES_FOLDER, ARCHIVE])
        self.assert_unpacked(obtain(self.data_dir, no_network))


class Server(ThreadingHTTPServer):
    """Serves an archive at /right, and at other addresses what may come in its stead; counts the bytes."""

    daemon_threads = True

    def __init__(self, archive: bytes) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.archive = archive
        self.asked: list[str] = []
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer(b'')

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        archive = self.server.archive
        with contextlib.suppress(ConnectionError):
            match self.path:
                case '/right':
                    self.answer(archive)
                case '/wrong':
                    self.answer(b'<html>this network wants you to log in</html>')
                case '/broken':
                    self.answer(archive[: len(archive) // 2])
                case '/crawls':  # a byte at a time
                    self.answer(b'')
                    while not self.server.over.wait(0.02):
                        self.wfile.write(b'x')
                case '/stalls':
                    self.answer(archive[:100])
                    self.server.over.wait()
                case '/steady':  # right, and whole in the end, though slower than the rate that is asked for
                    self.answer(b'')
                    for start in range(0, len(archive), len(archive) // 20):
                        self.wfile.write(archive[start : start + len(archive) // 20])
                        self.server.over.wait(0.05)
                case '/moved':
                    self.send_response(302)
                    self.send_header('Location', '/right')
                    self.end_headers()
                case _:
                    self.send_error(404)

    def answer(self, body: bytes) -> None:
        if self.path == '/gone':
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.server.archive)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class DownloadTest(PlaceTest):
    def setUp(self) -> None:
        super().setUp()
        self.server = Server(self.archive)
        self.enterContext(contextlib.closing(self.server.socket))
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        self.addCleanup(self.server.shutdown)
        self.addCleanup(self.server.over.set)
        self.enterContext(mock.patch.dict(os.environ, {'no_proxy': '127.0.0.1'}))
        for name, value in (('SLOW_SECONDS', 0.5), ('SLOW_RATE', 1e6), ('NETWORK_TIMEOUT', 1.0)):
            self.enterContext(mock.patch.object(cifar10_download, name, value))

    @contextlib.contextmanager
    def addresses(self, *names: str) -> Iterator[list[str]]:
        """Downloads from these addresses of the server; 'dead' is a port that nothing listens on."""
        urls = [self.url(name) for name in names]
        with (
            mock.patch.object(cifar10_download, 'URLS', urls),
            contextlib.redirect_stderr(io.StringIO()) as self.stderr,
        ):
            yield urls

    def url(self, name: str) -> str:
        return 'http://127.0.0.1:9/x' if name == 'dead' else f'http://127.0.0.1:{self.server.server_port}/{name}'

    def assert_downloaded(self, *names: str) -> None:
        with self.addresses(*names):
            self.assert_unpacked(obtain(self.data_dir))
        self.assertEqual(sorted(os.listdir(self.data_dir)), sorted([BATCHES_FOLDER, ARCHIVE]))
        self.assertEqual((self.data_dir / ARCHIVE).read_bytes(), self.archive)

    def test_right_contents_at_the_first_address(self) -> None:
        self.assert_downloaded('right', 'wrong')
        self.assertEqual(set(self.server.asked), {'/right'})

    def test_an_address_that_leads_on(self) -> None:
        self.assert_downloaded('moved')

    def test_right_contents_at_the_second_address(self) -> None:
        for first in ('dead', 'gone', 'wrong', 'broken', 'crawls', 'stalls', 'steady'):
            with self.subTest(first):
                start = time.perf_counter()
                self.assert_downloaded(first, 'right')
                self.assertLess(time.perf_counter() - start, 20)
                self.assertIn('/right', self.server.asked)
                shutil.rmtree(self.data_dir)

    def test_a_slow_address_is_left_with_a_word(self) -> None:
        self.assert_downloaded('crawls', 'right')
        self.assertIn('/crawls is slow (0 kB/s)', self.stderr.getvalue())

    def test_where_all_are_slow_the_fastest_has_all_the_time(self) -> None:
        self.assert_downloaded('crawls', 'steady', 'dead')
        self.assertEqual(self.server.asked[-1], '/steady')

    def test_no_address_has_it(self) -> None:
        with self.addresses('dead', 'wrong', 'broken') as urls, self.assertRaises(DownloadError) as caught:
            obtain(self.data_dir)
        message = str(caught.exception)
        self.assertNotIn('\n', message)
        for part in (f'no CIFAR-10 in {self.data_dir}', 'corrupted', f'put {ARCHIVE}', cifar10_download.ARCHIVE_MD5,
                     *urls, f'into {self.data_dir}', '--data_dir', '--dataset synthetic'):  # fmt: skip
            self.assertIn(part, message)
        self.assertEqual(files_under(self.directory), [])

    def test_a_download_leaves_urllib_as_it_was(self) -> None:
        self.assert_downloaded('right')
        with urllib.request.urlopen(self.url('right')) as response:
            self.assertEqual(response.read(), self.archive)

    def test_what_was_downloaded_is_not_thrown_away_when_it_cannot_be_unpacked(self) -> None:
        with self.addresses('right'):
            with (
                mock.patch.object(shutil, 'copyfileobj', side_effect=OSError(28, 'No space left on device')),
                self.assertRaisesRegex(DataError, 'cannot unpack'),
            ):
                obtain(self.data_dir)
            self.assert_unpacked(obtain(self.data_dir, no_network))

    def test_whether_it_can_be_written_is_found_out_before_the_network_is_asked(self) -> None:
        asked = mock.Mock()
        self.data_dir.mkdir()
        for place in (BATCHES_FOLDER, ARCHIVE):
            blocked = self.data_dir / place
            blocked.touch() if place == BATCHES_FOLDER else blocked.mkdir()
            with self.assertRaisesRegex(DownloadError, 'directory'):
                download(self.data_dir, asked)
            blocked.unlink() if place == BATCHES_FOLDER else blocked.rmdir()
        nearly_full = mock.Mock(free=300e6)
        with (
            mock.patch.object(shutil, 'disk_usage', return_value=nearly_full),
            self.assertRaisesRegex(DownloadError, '357 MB are needed'),
        ):
            download(self.data_dir, asked)
        with (
            mock.patch('tempfile.TemporaryFile', side_effect=PermissionError(13, 'Permission denied')),
            self.assertRaisesRegex(DownloadError, 'Permission denied'),
        ):
            download(self.data_dir, asked)
        asked.assert_not_called()
        self.assertEqual(files_under(self.directory), ['cifar10'])

    def test_a_network_that_does_not_answer(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as server:
            url = f'http://127.0.0.1:{server.getsockname()[1]}/{ARCHIVE}'
            start = time.perf_counter()
            with self.assertRaises(OSError):
                cifar10_download.check_network(url, timeout=0.5)
            with mock.patch.object(cifar10_download, 'URLS', [url] * 4), self.assertRaises(DownloadError):
                obtain(self.data_dir)  # asks all at the same time, for a second
            self.assertLess(time.perf_counter() - start, 3)


class LimitsTest(unittest.TestCase):
    def test_who_needs_no_network_does_not_import_what_it_needs(self) -> None:
        program = 'import sys, cifar10_utils; print({"urllib.request", "http.client", "torchvision"} & {*sys.modules})'
        done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.strip(), 'set()')

    def test_the_published_archive_is_what_is_asked_for(self) -> None:
        self.assertEqual(cifar10_download.ARCHIVE_MD5, 'c58f30108f718f92721af3b95e74349a')
        self.assertEqual(cifar10_download.URLS[0], 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz')
        self.assertTrue(all(url.startswith('https://') for url in cifar10_download.URLS))
        self.assertLess(cifar10_download.NETWORK_TIMEOUT, 15)


class OrderTest(unittest.TestCase):
    """A directory that somebody named is an order; the stand-in takes the place of the default's data alone."""

    def setUp(self) -> None:
        self.directory = self.enterContext(temporary_directory())
        self.environment = {name: value for name, value in NO_NETWORK.items() if name != 'CIFAR10_DIR'}
        self.train = functools.partial(
            run_script, 'train_mlp_numpy.py', '--max_steps', '1', '--output_dir', self.directory / 'out',
            cwd=self.directory,
        )  # fmt: skip

    def test_an_order_ends_in_one_line(self) -> None:
        home = {'HOME': str(self.directory)}
        for args, environment, place in (
            (('--data_dir', 'data'), {}, 'data'),
            (('--data_dir', './cifar10'), {}, 'cifar10'),
            (('--data_dir', '~/data'), home, f'{self.directory}/data'),
            ((), {'CIFAR10_DIR': './cifar10'}, 'cifar10'),
            ((), {'CIFAR10_DIR': '~/data'} | home, f'{self.directory}/data'),
            (('--dataset', 'cifar10'), {}, 'cifar10'),
        ):
            with self.subTest(args=args, environment=environment):
                done = self.train(*args, env=self.environment | environment)
                self.assertEqual((done.returncode, done.stdout, done.stderr.count('\n')), (2, '', 1))
                self.assertRegex(
                    done.stderr,
                    rf'no CIFAR-10 in {place} \(there is no such directory\), and the download failed .*refused.*'
                    '--dataset synthetic',
                )
                self.assertEqual(files_under(self.directory), [])
        done = self.train('--data_dir', '', env=self.environment)
        self.assertEqual((done.returncode, done.stderr.count('\n')), (2, 1))
        self.assertIn("must be a directory, got ''", done.stderr)

    def test_the_default_gives_the_stand_in_and_says_so(self) -> None:
        done = self.train(env=self.environment | {'CIFAR10_DIR': ''})
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count('SYNTHETIC STAND-IN'), 1)
        self.assertIn('no CIFAR-10 in cifar10', done.stderr)
        self.assertFalse((self.directory / 'cifar10').exists())
        record = only(self.directory / 'out/results', '.json')
        self.assertTrue(record.name.startswith('mlp_numpy_synthetic'))
        self.assertIn('"data_dir": "./cifar10"', record.read_text())

    def test_the_stand_in_is_said_to_be_one_every_time_and_makes_way_for_the_data(self) -> None:
        with (
            contextlib.chdir(self.directory),
            mock.patch.object(cifar10_utils, 'check_network', no_network),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
        ):
            for times in (1, 2):
                self.assertEqual(cifar10_utils.get_cifar10(dataset='auto')['train'].name, 'synthetic')
                self.assertEqual(stderr.getvalue().count('SYNTHETIC STAND-IN'), times)
            with contextlib.redirect_stderr(mock.Mock(write=mock.Mock(side_effect=OSError('full')))):
                self.assertEqual(cifar10_utils.get_cifar10(dataset='auto')['train'].name, 'synthetic')
            (self.directory / 'cifar10').mkdir()
            (self.directory / 'cifar10/data_batch_1').write_bytes(b'they have come')
            with self.assertRaisesRegex(DataError, 'data_batch_1 is no CIFAR-10 file'):
                cifar10_utils.load('auto')

    def test_the_flag(self) -> None:
        def parsed(*args: str, **environment: str) -> str:
            with mock.patch.dict(os.environ, environment):
                parser = parsing.OneLineParser()
                flags.add_data_flags(parser)
                return parser.parse_args(args).data_dir

        home = os.path.expanduser('~')
        self.assertEqual(parsed(CIFAR10_DIR=''), cifar10_utils.DEFAULT_DATA_DIR)
        self.assertEqual(parsed(CIFAR10_DIR='/data'), '/data')
        self.assertEqual(parsed(CIFAR10_DIR='~/data'), f'{home}/data')
        self.assertEqual(parsed('--data_dir', '~/data', CIFAR10_DIR='/data'), f'{home}/data')
        for spelling in ('./cifar10', 'cifar10', 'cifar10/'):
            self.assertEqual(parsed('--data_dir', spelling, CIFAR10_DIR=''), 'cifar10')
