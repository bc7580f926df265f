"""The pictures of a protocol's question, looked at and embedded."""

from __future__ import annotations

import numpy as np

from vision.common.core.config_files import find_config
from vision.faces.core.data.embeddings import refuse_other_length
from vision.faces.core.data.image_lists import LabelledPaths, without_labels
from vision.faces.core.evaluate.asking import Protocol
from vision.faces.core.gallery.alignment import refuse_other_size
from vision.faces.mm.datasets import FaceBin, FaceFiles, TemplateFaces
from vision.faces.mm.loading import load_embedder
from vision.faces.nn.backbones.embedder import embed_images
from vision.zoo import find_model


def embed(asked: Protocol, question, others: list):
    """(embeddings, the distractors' rows, flip fusion); pictures are looked at before."""
    sets = [pictures(asked, question), *(FaceFiles(part) for part in others
                                        if isinstance(part, LabelledPaths))]
    for dataset in sets:
        for position in range(len(dataset)):
            refuse_other_size(position, *dataset.size_of(position), asked.image_size)
    embedder = open_module(asked)
    if others and len(sets) == 1:
        side = asked.image_size
        length = embed_images(embedder, [np.zeros((side, side, 3), np.uint8)], size=side).shape[1]
        refuse_other_length(asked.distractors, others[0].shape[1], length)
    rows = [embed_images(embedder, with_progress(dataset), size=asked.image_size,
                         batch_size=asked.batch_size) for dataset in sets]
    return rows[0], rows[1:] or others, embedder.with_flip


def open_module(asked: Protocol):
    """The network of a config and its weights, or of a model of the zoo."""
    entry = find_model(asked.config)
    config = find_config(entry.config if entry else asked.config) or asked.config
    return load_embedder(config, asked.checkpoint or f'zoo:{entry.weights}',
                         with_flip=asked.flip_fusion, device=asked.device)


def pictures(asked: Protocol, question):
    """The data set of a question's pictures: of a .bin file, IJB's cut by their landmarks, or as
    listed."""
    if asked.bin:
        return FaceBin(str(asked.bin))
    found = without_labels(asked.images, question.paths)
    if asked.protocol in ('ijbb', 'ijbc'):
        return TemplateFaces(found, question.templates.landmarks, asked.image_size)
    return FaceFiles(found, must_exist=True)


def with_progress(dataset):
    """The pictures of a data set one by one, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import track
    return (dataset.read(position) for position in track(
        range(len(dataset)), description='embedding', console=Console(stderr=True)))
