"""Runs of several ranks under FlexibleRunner: resumed, spread anew, damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vision.common.core.errors import VisionError
from vision.common.mm.checkpoints import newest_valid
from vision.common.nn import checkpoint_folder
from vision.common.nn.checkpoint import damage, load_checkpoint, remove_checkpoint, save_checkpoint

pytestmark = pytest.mark.distributed


def case(repository, folder, *arguments):
    """Play a case of ``rank_cases`` in a process without threads, which forks its ranks."""
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('rank_cases.py')), arguments[0],
         str(folder), *arguments[1:]], capture_output=True, text=True, cwd=repository, timeout=600)
    assert result.returncode == 0, result.stderr[-8000:]


@pytest.mark.slow
@pytest.mark.fault('R8')
def test_runs_resumed_by_ddp_and_fsdp2_end_bit_identical(repository, tmp_path):
    """Two of the 24 points by each strategy of docs/results/resume_points_ranks.json."""
    case(repository, tmp_path, 'rows', '34', '16')
    rows = json.loads((tmp_path / 'rows.json').read_text())
    assert {(row['strategy'], row['kind']) for row in rows} == {
        (strategy, kind) for strategy in ('DDPStrategy', 'FSDP2Strategy')
        for kind in ('all', 'ema')}
    assert [row['differs'] for row in rows] == [[]] * 4


@pytest.mark.slow
@pytest.mark.fault('R28')
def test_a_run_whose_rank_was_killed_goes_on_bit_identical_after_the_restart(repository,
                                                                             tmp_path):
    case(repository, tmp_path, 'restart')
    found = json.loads((tmp_path / 'restart.json').read_text())
    assert found['codes'] == [7, -9] and 'rank 1 of 2 is gone' in found['text']
    assert found['differs'] == [[], []]


@pytest.fixture(scope='module')
def spread(repository, tmp_path_factory):
    """What runs by several numbers and kinds of ranks ended with."""
    folder = tmp_path_factory.mktemp('spread')
    case(repository, folder, 'other_ranks')
    return folder


@pytest.mark.fault('R9')
@pytest.mark.parametrize('name', ['mixed', 'kinds'])
def test_a_run_goes_on_with_1_2_4_ranks_and_between_ddp_and_fsdp2(spread, name):
    expected = torch.load(spread / 'four-6.pt', weights_only=True)
    found = torch.load(spread / f'{name}-6.pt', weights_only=True)
    names = [key for key in expected if key != '/losses']  # of the samples of rank 0 alone
    assert found.keys() == expected.keys() and any('/ema/' in key for key in names)
    for key in names:  # sums over ranks are rounded in another order
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.fixture
def folder(spread, tmp_path):
    """Checkpoint of four ranks, to be changed."""
    return Path(shutil.copytree(spread / 'mixed' / 'iter_6.pth', tmp_path / 'iter_6.pth'))


def test_a_folder_is_read_whole_by_one_process(folder, spread):
    content = load_checkpoint(folder)
    expected = torch.load(spread / 'mixed-6.pt', weights_only=True)
    for name, tensor in content['ema_state_dict'].items():  # MMEngine exchanges both
        if name.startswith('module.'):
            assert torch.equal(tensor, expected[f'/weights/{name[7:]}']), name
    assert torch.equal(content['optimizer']['state'][0]['exp_avg'],
                       expected['/optimizer/state/0/exp_avg'])
    assert content['meta']['iter'] == 6


def test_every_cut_or_flipped_or_missing_file_of_a_folder_is_found(folder):
    assert damage(folder) == ''
    files = sorted(path for path in folder.iterdir())
    assert len(files) == 6  # of four ranks, of the run, and the manifest
    for path in files:
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 20)):
            path.write_bytes(content[:place])
            assert damage(folder), (path, place)
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            assert damage(folder), (path, place)
        path.unlink()
        assert damage(folder), path
        path.write_bytes(content)
    assert damage(folder) == ''
    (folder / 'more.pt').write_bytes(b'')
    assert damage(folder) == 'more.pt is not in its manifest'


def test_a_damaged_folder_is_refused_and_the_one_before_is_taken(folder, spread):
    before = shutil.copytree(spread / 'mixed' / 'iter_4.pth', folder.parent / 'iter_4.pth')
    assert newest_valid(folder.parent, print) == folder
    next(folder.glob('shard*')).unlink()
    said = []
    assert newest_valid(folder.parent, said.append) == before
    assert 'iter_6.pth is passed over: shard' in said[0] and 'is missing' in said[0]
    with pytest.raises(VisionError, match='VIS-CKPT-303'):
        load_checkpoint(folder)


@pytest.mark.parametrize('name', ['../x', '/etc/x', '..'])
def test_a_manifest_that_names_files_elsewhere_is_refused(folder, name):
    manifest = json.loads((folder / 'manifest.json').read_text())
    del manifest['seal']
    manifest['files'][name] = dict(size_bytes=1, sha256='0' * 64)
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    assert 'cannot be read' in damage(folder)


@pytest.mark.parametrize('name', ['x.pt', 'rng.pt', 'rng-0.pt', 'rng-x-of-4.pt',
                                  f'rng-{"9" * 5000}-of-4.pt'], ids=lambda name: name[:20])
def test_a_manifest_that_names_no_part_of_a_rank_is_refused(tmp_path, name):
    write_folder(tmp_path / 'x', files={name: dict(size_bytes=1, sha256='0' * 64)})
    with pytest.raises(VisionError, match='VIS-CKPT-303'):
        checkpoint_folder.load_folder(tmp_path / 'x')


@pytest.mark.parametrize('ranks', [0, '1', 1.5, 2, 10**30, None])
def test_a_manifest_of_another_number_of_ranks_is_refused(tmp_path, ranks):
    write_folder(tmp_path / 'x', ranks=1)
    assert checkpoint_folder.load_folder(tmp_path / 'x')['rng'] == dict(states=[1])
    write_folder(tmp_path / 'y', ranks=ranks)
    with pytest.raises(VisionError, match='VIS-CKPT-303'):
        checkpoint_folder.load_folder(tmp_path / 'y')


def write_folder(path, files=(), **changes):
    """A checkpoint of one rank whose manifest is changed, without its seal."""
    checkpoint_folder.save_folder(dict(meta=dict(iter=1)), path, parts=dict(
        rng=dict(states=[1])), iter=1)
    manifest = json.loads((path / 'manifest.json').read_text()) | changes
    del manifest['seal']
    manifest['files'].update(files)
    (path / 'manifest.json').write_text(json.dumps(manifest))


def test_what_a_killed_writer_left_is_cleared_and_what_it_replaced_comes_back(folder):
    work_dir = folder.parent
    aside = work_dir / f'{checkpoint_folder.REPLACED}{folder.name}'
    unfinished = work_dir / '.writing-iter_6.pth-abc'
    unfinished.mkdir()
    folder.rename(aside)  # killed before the new one took the name
    checkpoint_folder.recover_folders(work_dir)
    assert damage(folder) == '' and not aside.exists() and not unfinished.exists()
    shutil.copytree(folder, aside)  # killed after it
    checkpoint_folder.recover_folders(work_dir)
    assert damage(folder) == '' and not aside.exists()


def test_a_file_takes_the_place_of_a_folder_and_a_folder_that_of_a_file(folder):
    content = load_checkpoint(folder)
    save_checkpoint(content, folder, iter=6)
    assert folder.is_file() and damage(folder) == ''
    checkpoint_folder.save_folder(content, folder, iter=6)
    assert folder.is_dir() and damage(folder) == ''
    remove_checkpoint(folder)
    assert not list(folder.parent.iterdir())
