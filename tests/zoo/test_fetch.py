"""Downloads over a loopback server: cuts, lies, redirects, offline, mirrors, full disks."""

import dataclasses
import hashlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vision.common.core.errors import VisionError
from vision.zoo import Settings, fetch, resolve, transfer
from vision.zoo.store import copy_to, sha256_of


def refuses(code, entry, settings):
    with pytest.raises(VisionError) as caught:
        fetch(entry, settings=settings)
    assert caught.value.code == code, caught.value
    return caught.value


def leftovers(settings):
    return sorted(p.name for p in settings.cache.iterdir() if not p.name.endswith('.lock'))


def test_a_download_arrives_whole_and_the_second_fetch_asks_nobody(server, settings, entry_of):
    seen = []
    entry = entry_of(server.address)
    path = fetch(entry, settings=settings, progress=lambda have, size: seen.append((have, size)))
    assert path.read_bytes() == server.payload and leftovers(settings) == [path.name]
    assert seen[-1] == (entry.size_bytes, entry.size_bytes) and sorted(seen) == seen
    assert fetch(entry, settings=settings) == path and server.requests == [None]


def test_a_cut_connection_goes_on_where_it_stopped(server, settings, entry_of):
    server.cut_after = [100_000, 250_000]
    path = fetch(entry_of(server.address), settings=settings)
    assert path.read_bytes() == server.payload
    assert server.requests == [None, 'bytes=100000-', 'bytes=350000-']


def test_what_an_ended_process_left_is_used(server, settings, entry_of):
    entry = entry_of(server.address)
    server.cut_after = [50_000, 1_000, 1_000, 1_000]  # as many cuts as there are tries
    error = refuses('VIS-NET-606', entry, settings)
    assert '53000 bytes are kept' in error.do and error.exit_code == 6
    path = fetch(entry, settings=settings)
    assert path.read_bytes() == server.payload and server.requests[-1] == 'bytes=53000-'


def test_a_server_without_ranges_sends_everything_again(server, settings, entry_of):
    server.has_ranges, server.cut_after = False, [100_000]
    assert fetch(entry_of(server.address), settings=settings).read_bytes() == server.payload


def test_a_bad_beginning_is_thrown_away_once(server, settings, entry_of):
    entry = entry_of(server.address)
    settings.cache.mkdir()
    part = settings.cache / f'{entry.sha256[:12]}-weights.bin.part'
    part.write_bytes(bytes(1000))
    assert fetch(entry, settings=settings).read_bytes() == server.payload
    assert server.requests == ['bytes=1000-', None]


@pytest.mark.fault('S36')
def test_wrong_hash_names_both_and_removes_the_file(server, settings, entry_of):
    entry = entry_of(server.address)
    server.payload = bytes(len(server.payload))
    error = refuses('VIS-CKPT-608', entry, settings)
    assert entry.sha256 in error.what and error.exit_code == 5
    assert hashlib.sha256(server.payload).hexdigest() in error.what
    assert leftovers(settings) == []


@pytest.mark.fault('S36')
def test_a_longer_answer_is_cut_off(server, settings, entry_of):
    entry = entry_of(server.address)
    server.payload = server.payload * 2
    assert 'sends more than' in refuses('VIS-NET-606', entry, settings).where
    assert leftovers(settings) == []


def test_a_shorter_file_is_never_taken(server, settings, entry_of):
    entry = entry_of(server.address)
    server.payload = server.payload[:-1]
    refuses('VIS-NET-606', entry, settings)
    assert not any(name.endswith('.bin') for name in leftovers(settings))


@pytest.mark.fault('S36')
@pytest.mark.parametrize('target, code', [
    ('http://example.org/weights.bin', 'VIS-NET-604'),
    ('ftp://example.org/weights.bin', 'VIS-NET-604'),
    ('file:///etc/passwd', 'VIS-NET-606'),  # urllib itself does not follow it
])
def test_a_redirect_away_from_https_is_refused(server, settings, entry_of, target, code):
    server.redirect_to = target
    refuses(code, entry_of(server.address), settings)
    assert leftovers(settings) == [] and server.requests == [None]


@pytest.mark.fault('S36')
@pytest.mark.parametrize('number', ['127.0.0.1', '10.0.0.8', '::1'])
def test_a_redirect_to_a_public_name_of_this_network_is_refused(server, settings, entry_of,
                                                                number, monkeypatch):
    real = socket.getaddrinfo
    monkeypatch.setattr('socket.getaddrinfo', lambda host, *rest, **options: [
        (0, 0, 0, '', (number, 0))] if host == 'example.org' else real(host, *rest, **options))
    monkeypatch.setattr('urllib.request.getproxies', dict)
    server.redirect_to = 'https://example.org/weights.bin'
    refuses('VIS-NET-353', entry_of(server.address), settings)
    assert leftovers(settings) == [] and server.requests == [None]


@pytest.mark.fault('S36')
@pytest.mark.parametrize('address', [
    'https://127.0.0.1/w.bin', 'https://localhost/w.bin', 'https://[::1]/w.bin',
    'https://169.254.169.254/w.bin', 'https://user@example.org/w.bin', 'https://example.org:22/w',
    'https://2130706433/w.bin', 'https://nas/w.bin', 'https://[broken/w.bin', 'file:///etc/passwd',
    'HTTP://example.org/w.bin', 'https:///w.bin', 'https://exa mple.org/w.bin', ''])
def test_addresses_of_this_machine_and_odd_ones_are_refused(address):
    with pytest.raises(VisionError, match='VIS-NET-604'):
        transfer.require_https(address, ())


@pytest.mark.fault('S36')
def test_without_the_explicit_parameter_loopback_http_is_refused_too(server, settings, entry_of):
    error = refuses('VIS-NET-604', entry_of(server.address),
                    dataclasses.replace(settings, http_hosts=()))
    assert server.address in error.what and server.requests == []


def test_missing_at_the_address_is_not_tried_again(server, settings, entry_of):
    server.status = 404
    error = refuses('VIS-NET-606', entry_of(server.address), settings)
    assert '404' in error.where and 'VISION_ZOO_MIRROR' in error.do and len(server.requests) == 1


def test_a_busy_server_is_tried_again_and_the_next_address_is_asked(server, settings, entry_of):
    entry = entry_of('http://127.0.0.1:9/weights.bin')  # the discard port: nobody listens
    object.__setattr__(entry, 'addresses', (*entry.addresses, server.address))
    assert fetch(entry, settings=settings).read_bytes() == server.payload
    server.status = 503
    (settings.cache / f'{entry.sha256[:12]}-weights.bin').unlink()
    error = refuses('VIS-NET-606', entry, settings)
    assert 'refused' in error.where and '503' in error.where
    assert len(server.requests) == 1 + transfer.NUM_TRIES


def test_offline_opens_no_connection(server, settings, entry_of):
    entry = entry_of(server.address)
    offline = dataclasses.replace(settings, is_offline=True)
    error = refuses('VIS-NET-607', entry, offline)
    assert entry.sha256 in error.do and server.requests == []
    fetch(entry, settings=settings)
    assert fetch(entry, settings=offline).read_bytes() == server.payload


def test_the_mirror_is_asked_before_the_network(server, settings, entry_of, tmp_path):
    entry = entry_of(server.address)
    mirror = tmp_path / 'mirror'
    mirror.mkdir()
    (mirror / 'weights.bin').write_bytes(server.payload)
    offline = dataclasses.replace(settings, mirror=mirror, is_offline=True)
    path = fetch(entry, settings=offline)
    assert path.parent == settings.cache and path.read_bytes() == server.payload
    path.unlink()
    (mirror / 'weights.bin').write_bytes(b'something else')
    error = refuses('VIS-CKPT-608', entry, offline)
    assert 'left as it is' in error.where and (mirror / 'weights.bin').exists()
    assert leftovers(settings) == [] and server.requests == []


def test_a_file_damaged_in_the_cache_is_fetched_again(server, settings, entry_of):
    entry = entry_of(server.address)
    path = fetch(entry, settings=settings)
    path.write_bytes(b'x' + server.payload[1:])
    assert sha256_of(fetch(entry, settings=settings)) == entry.sha256
    assert len(server.requests) == 2


def test_two_fetches_at_once_make_one_request(server, settings, entry_of):
    entry, paths = entry_of(server.address), []
    threads = [threading.Thread(target=lambda: paths.append(fetch(entry, settings=settings)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and len(paths) == 4 and server.requests == [None]


def test_a_file_larger_than_the_disk_is_refused_before_the_first_byte(server, settings, entry_of):
    entry = entry_of(server.address)
    object.__setattr__(entry, 'size_bytes', 2**60)
    error = refuses('VIS-ENV-603', entry, settings)
    assert str(2**60) in error.what and 'VISION_ZOO_CACHE' in error.do and server.requests == []


def test_a_disk_that_fills_up_on_the_way_is_one_clear_error(server, settings, entry_of):
    full = Path('/dev/full')  # a device whose every write says ENOSPC
    if not full.exists():
        pytest.skip('no /dev/full on this system')
    entry = entry_of(server.address)
    settings.cache.mkdir()
    part = settings.cache / f'{entry.sha256[:12]}-weights.bin.part'
    part.symlink_to(full)
    error = refuses('VIS-ENV-603', entry, settings)
    assert str(entry.size_bytes) in error.what and error.exit_code == 3
    assert leftovers(settings) == []


def test_resolve_takes_paths_and_names(tmp_path, settings):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'1')
    assert resolve(str(path)) == path
    with pytest.raises(VisionError, match='VIS-INPUT-611[^$]*near it: [^$]*a.pth'):
        resolve(tmp_path / 'b.pth')
    with pytest.raises(VisionError, match='VIS-INPUT-611[^$]*nearest in the zoo: yolox-nano_coco'):
        resolve('yolox-nano')
    with pytest.raises(VisionError, match='VIS-INPUT-602'):
        resolve('zoo:nothing-like-this', settings=settings)


def test_yolox_resolves_from_the_package_without_network(settings):
    path = resolve('zoo:yolox-nano_coco', settings=dataclasses.replace(settings, is_offline=True))
    assert path.name == 'yolox-nano_coco.onnx' and not settings.cache.exists()


def test_a_copy_out_of_the_cache_has_the_published_name(server, settings, entry_of):
    path = fetch(entry_of(server.address), settings=settings)
    assert path.name != 'weights.bin'
    assert copy_to(path, settings.cache / 'out').name == 'weights.bin'


@pytest.mark.parametrize('environ, what', [
    (dict(VISION_OFFLINE='maybe'), '605.*VISION_OFFLINE'),
    (dict(VISION_ZOO_MIRROR='/no/such/folder'), '620.*VISION_ZOO_MIRROR'),
])
def test_settings_that_mean_nothing_are_refused(environ, what):
    with pytest.raises(VisionError, match=f'VIS-CONFIG-{what}'):
        Settings.from_environment(environ)


def test_the_zoo_imports_no_torch(repository):
    code = "import sys, vision.zoo; sys.exit('torch' in sys.modules or 'mmengine' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=repository).returncode == 0


@pytest.fixture
def by_hand(entry_of, server):
    entry = entry_of(server.address)
    return dataclasses.replace(
        entry, sha256=entry.sha256[:8], size_bytes=0,
        addresses=('http://example.org/weights.bin',))


def test_eight_digits_of_a_hash_are_never_trusted_to_a_network(server, settings, by_hand):
    error = refuses('VIS-NET-618', by_hand, settings)
    assert 'http://example.org/weights.bin' in error.where
    assert f'begin with {by_hand.sha256}' in error.do and server.requests == []


def test_a_file_fetched_by_hand_is_compared_with_the_digits(server, settings, by_hand, tmp_path):
    mirror = tmp_path / 'stick'
    mirror.mkdir()
    (mirror / 'weights.bin').write_bytes(server.payload + b'x')
    settings = dataclasses.replace(settings, mirror=mirror)
    refuses('VIS-CKPT-608', by_hand, settings)
    (mirror / 'weights.bin').write_bytes(server.payload)
    path = fetch(by_hand, settings=settings)
    assert path.read_bytes() == server.payload
    assert copy_to(path, tmp_path / 'copies').name == 'weights.bin'
    (mirror / 'weights.bin').unlink()
    assert fetch(by_hand, settings=settings) == path
