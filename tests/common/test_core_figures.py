import cv2
import pytest

pytest.importorskip('matplotlib')
from vision.common.core.figures import DPI, pyplot, save_figure


def test_a_picture_is_written_closed_and_named(tmp_path, capsys):
    figure, panel = pyplot().subplots(figsize=(3, 2))
    panel.plot([0, 1], [1, 0])
    path = tmp_path / 'new' / 'x.png'
    save_figure(figure, path)
    assert cv2.imread(str(path)).shape == (2 * DPI, 3 * DPI, 3)
    assert capsys.readouterr().out == f'picture: {path}\n'
    assert not pyplot().get_fignums()
