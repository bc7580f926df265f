import math

import pytest

from vision.common.core.amounts import Amount, format_bytes, parse_budget
from vision.common.core.errors import VisionError


@pytest.mark.parametrize(('value', 'amount'), [
    ('12GB', Amount(bytes=12 * 10**9)),
    ('12 GiB', Amount(bytes=12 * 2**30)),
    ('800mb', Amount(bytes=800 * 10**6)),
    (' 0.5GB ', Amount(bytes=500 * 10**6)),
    ('4096 B', Amount(bytes=4096)),
    ('60%', Amount(ratio=0.6)),
    ('100 %', Amount(ratio=1.0)),
    (0.4, Amount(ratio=0.4)),
    (1, Amount(ratio=1.0)),
    (2, Amount(bytes=2)),
    (12 * 10**9, Amount(bytes=12 * 10**9)),
])
def test_forms_of_a_budget(value, amount):
    assert parse_budget(value) == amount


@pytest.mark.parametrize('text', ['12 GBB', '', '12', 'GB', '1e3GB', '12,5GB', '1 2GB', 'all'])
def test_a_text_that_is_no_amount(text):
    with pytest.raises(VisionError) as caught:
        parse_budget(text)
    assert caught.value.code == 'VIS-CONFIG-1401'
    assert repr(text) in caught.value.what and "'12GB'" in caught.value.why


@pytest.mark.parametrize('value', [0, -1, 0.0, -0.4, 1.5, 2.0, True, False, math.nan, math.inf,
                                   None, [1], '0GB', '-3GB', '0.1B', '0%', '101%',
                                   '9' * 300 + 'TB'])
def test_an_amount_that_is_not_possible(value):
    with pytest.raises(VisionError) as caught:
        parse_budget(value)
    assert caught.value.code == 'VIS-CONFIG-1402' and repr(value) in caught.value.what


@pytest.mark.parametrize(('num_bytes', 'text'), [
    (0, '0 B'), (999, '999 B'), (1000, '1.0 KB'), (1_234_567_890, '1.2 GB'),
    (999_949_999, '999.9 MB'), (999_950_000, '1.0 GB'), (5 * 10**15, '5000.0 TB'),
    (-2500, '-2.5 KB')])
def test_bytes_as_text(num_bytes, text):
    assert format_bytes(num_bytes) == text
