"""The shipped recipe trains through tools/train.py on a folder, and goes on after a stop."""


import cv2
import numpy as np
import pytest

from vision.common.nn.checkpoint import load_checkpoint
from vision.faces.nn.store.class_store import class_rows

NUM_PEOPLE = 10


@pytest.mark.slow
def test_folder_recipe_trains_and_resumes(tmp_path, repository, monkeypatch):
    generator = np.random.default_rng(0)
    for person in range(NUM_PEOPLE):
        folder = tmp_path / 'faces' / f'p{person}'
        folder.mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(str(folder / f'{number}.png'),
                        generator.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    command = [
        'configs/faces/mobilefacenet_ivf_folder.py',
        '--work-dir', str(tmp_path / 'run'), '--cfg-options',
        f'train_dataloader.dataset.data_root={tmp_path / "faces"}',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        f'model.head.num_classes={NUM_PEOPLE}', 'model.head.selector.num_active=6',
        'model.head.selector.num_lists=2', 'default_hooks.checkpoint.interval=2']
    monkeypatch.chdir(repository)
    from vision.cli.train import main
    for extra in (['train_cfg.max_iters=2'], ['train_cfg.max_iters=4', '--resume']):
        assert main([*command, *extra]) == 0
    first, last = (load_checkpoint(tmp_path / 'run' / f'iter_{i}.pth') for i in (2, 4))
    assert last['meta']['iter'] == 4
    rows = [class_rows(content['active_class']['stores']) for content in (first, last)]
    assert rows[1].shape == (NUM_PEOPLE, 128) and (rows[0] != rows[1]).any(1).sum() >= 4
