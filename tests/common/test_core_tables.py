from vision.common.core.tables import cells_of, print_table, write_markdown


def test_cells_of_a_row():
    row = dict(name='a', ms=1.23456, count=7, none=None)
    assert cells_of(row, ('name', 'ms', 'count', 'none', 'absent')) == ['a', '1.23', '7', '-', '-']
    assert cells_of(row, ('ms',), digits=3) == ['1.235']


def test_a_table_is_whole_on_a_narrow_screen(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '20')
    print_table(('method', 'ms'), [('flow [red]', '1.5'), ('a name of some length', '12.25')],
                title='times')
    said = capsys.readouterr().out
    assert 'flow [red]' in said and 'a name of some length' in said and 'times' in said
    line, = (line for line in said.splitlines() if '12.25' in line)
    other, = (line for line in said.splitlines() if '1.5' in line)
    assert line.index('12.25') + 5 == other.index('1.5') + 3  # numbers to the right


def test_the_same_rows_as_markdown(tmp_path):
    write_markdown(tmp_path / 'a.md', ('method', 'ms'), [('flow', '1.5')])
    assert (tmp_path / 'a.md').read_text() == '| method | ms |\n| --- | --- |\n| flow | 1.5 |\n'
