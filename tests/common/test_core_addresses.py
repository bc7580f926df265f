"""Addresses of strangers: public hosts pass, 60 others do not, whatever they resolve to."""

import pytest

from vision.common.core.addresses import names_public_host, require_public_address
from vision.common.core.errors import VisionError

PUBLIC = ('https://example.org/a.mp4', 'https://a-b.example.co.uk:8443/x?y=1#z',
          'rtsps://cam.example.org/1', 'https://sub.xn--bcher-kva.org/x', 'https://example.org./x')
HOSTILE = (
    # other schemes, and ways to write them
    'file:///etc/passwd', 'file:/etc/passwd', 'FILE:///etc/passwd', '/etc/passwd', '../x', '',
    'concat:a.mp4|b.mp4', 'concatf:x', 'subfile,,start,0,end,9,,:/etc/passwd', 'data:text/plain,x',
    'crypto:file:/etc/passwd', 'pipe:0', 'fd:3', 'tcp://example.org:22', 'udp://239.0.0.1:1234',
    'rtp://example.org', 'ftp://example.org/x', 'gopher://example.org/x', 'smb://example.org/x',
    'unix:/run/x.sock', 'ffrtmphttp://example.org', 'hls+https://example.org/x', 'http://example.org',
    'javascript:alert(1)', 'https:example.org', 'https:/example.org', 'https:///x', 'https://',
    ' https://example.org', 'https://exa mple.org', 'https://example.org\r\nHost: localhost',
    'https://example.org\\@localhost', 'https://example.org\x00.localhost',
    # this machine and this network
    'https://localhost/x', 'https://localhost./x', 'https://LOCALHOST/x', 'https://a.localhost/x',
    'https://127.0.0.1/x', 'https://127.1/x', 'https://2130706433/x', 'https://0x7f000001/x',
    'https://0177.0.0.1/x', 'https://0/x', 'https://0.0.0.0/x', 'https://[::1]/x', 'https://[::]/x',
    'https://[::ffff:127.0.0.1]/x', 'https://[fe80::1%25eth0]/x', 'https://10.0.0.1/x',
    'https://192.168.1.1/x', 'https://172.16.0.1/x', 'https://169.254.169.254/latest/meta-data',
    'https://metadata.google.internal/x', 'https://printer.local/x', 'https://nas/x',
    'https://router.lan/x', 'https://8.8.8.8/x', 'https://1.1.1.1.in-addr.arpa/x',
    # names that hide another
    'https://user@localhost/x', 'https://example.org:x@localhost/x', 'https://example.org%2elocal/x',
    'https://example.org:22/x', 'https://example.org:99999/x', 'https://ｅxample.org/x',
    'https://127。0。0。1/x', 'https://-example.org/x', 'https://ex_ample.org/x', 'https://a..org/x',
    'https://' + 'a' * 64 + '.org/x', 'https://' + 'a.' * 130 + 'org/x', 'https://example.1/x',
    'https://example.org/' + 'x' * 3000, 'https://[example.org/x')
NUMBERS = ('127.0.0.1', '10.1.2.3', '192.168.0.9', '172.31.0.1', '169.254.169.254', '0.0.0.0',
           '100.64.0.1', '224.0.0.1', '255.255.255.255', '::1', '::', 'fe80::1', 'fc00::1',
           '::ffff:10.0.0.1', '2002:7f00:1::', '64:ff9b::7f00:1', '2001:0:7f00:1::', 'ff02::1',
           'fe80::1%eth0', 'nonsense', '')


@pytest.mark.fault('S37')
@pytest.mark.parametrize('address', HOSTILE, ids=lambda text: ascii(text[:40]))
def test_hostile_addresses_are_refused_before_a_name_is_looked_up(address):
    assert len(HOSTILE) >= 60
    with pytest.raises(VisionError, match='VIS-NET-353'):
        require_public_address(address, ('https', 'rtsps'), lambda host: pytest.fail(host))


@pytest.mark.parametrize('address', PUBLIC)
def test_public_ones_pass_and_give_their_numbers(address):
    assert names_public_host(address)
    numbers = ['93.184.216.34', '2606:2800:220:1::1']
    assert require_public_address(address, ('https', 'rtsps'), lambda host: numbers) == numbers


@pytest.mark.fault('S37')
@pytest.mark.parametrize('number', NUMBERS)
def test_a_public_name_of_a_private_machine_is_refused(number):
    for found in ([number], ['93.184.216.34', number]):
        with pytest.raises(VisionError, match='VIS-NET-353'):
            require_public_address('https://example.org/x', ('https',),
                                   lambda host, found=found: found)


@pytest.mark.fault('S37')
def test_a_name_that_nobody_knows_is_refused():
    def fail(host):
        raise OSError('no such host')

    for resolve in (fail, lambda host: []):
        with pytest.raises(VisionError, match='VIS-NET-353'):
            require_public_address('https://example.org/x', ('https',), resolve)
