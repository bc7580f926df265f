"""Files that results go to are looked at before the work."""

import pytest

from vision.common.core.errors import VisionError
from vision.common.core.files import refuse_unwritable


def test_where_nothing_can_be_written_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / 'file').write_text('x')
    refuse_unwritable(tmp_path / 'file', None, tmp_path / 'new' / 'x.json')
    assert (tmp_path / 'file').read_text() == 'x'
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['file', 'new']
    for path in (tmp_path, tmp_path / 'file' / 'x.json', '/proc/x.json'):
        with pytest.raises(VisionError, match='VIS-ENV-109') as error:
            refuse_unwritable(path)
        assert error.value.exit_code == 3 and error.value.why
