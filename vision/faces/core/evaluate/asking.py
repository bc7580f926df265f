"""The public protocols of face verification and identification, asked of an embedder.

``Protocol`` says what is asked and from where; ``answer`` gives the row of the report. Whatever
the lists cannot tell, and pictures of another size, are refused before a picture is embedded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vision.common.core.errors import VisionError
from vision.faces.core.data import image_lists, pairs
from vision.faces.core.data.embeddings import (
    read_embeddings,
    refuse_other_length,
    write_embeddings,
)
from vision.faces.core.data.image_lists import read_pictures
from vision.faces.core.data.insightface_bin import read_bin
from vision.faces.core.evaluate import questions
from vision.faces.core.evaluate.protocols import read_cfp
from vision.faces.core.evaluate.verification import unit_rows
from vision.zoo import find_model

PAIRS = {'pairs', 'bin', 'images', 'far', 'folds', 'threshold'}
# Options that say something in a protocol; any other is refused rather than ignored.
OPTIONS = {**dict.fromkeys(('lfw', 'agedb', 'calfw', 'cplfw', 'pairs'), PAIRS),
           'cfp': PAIRS - {'pairs', 'folds'} | {'lists', 'kind'},
           **dict.fromkeys(('ijbb', 'ijbc'), {'lists', 'images', 'far', 'fpir', 'ranks',
                                              'detection_scores'}),
           'megaface': {'list', 'images', 'distractors', 'sizes'},
           'allpairs': {'list', 'images', 'far'}}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is asked; an option that says nothing in its protocol is refused.

    Args:
        protocol: a key of ``OPTIONS``.
        config, checkpoint: of the embedder; or a model of the zoo alone; or neither, with
            ``embeddings``.
        pairs, bin, lists, list, images: where the lists and pictures are.
        kind: CFP's 'FP' or 'FF'.
        distractors, sizes: MegaFace's others, and how many of them.
        far, fpir, ranks: which rates; None: the usual ones.
        threshold: cosine that was chosen elsewhere, measured on the pairs too.
        folds: of a list of pairs that has none of its own.
        detection_scores: IJB: a picture counts by the score of its detection.
        flip_fusion: None: as the config says.
        image_size: px of the aligned faces.

    Raises:
        VisionError: VIS-CONFIG-1085, options that do not go together.
    """

    protocol: str = 'pairs'
    config: str | None = None
    checkpoint: str | None = None
    pairs: Path | None = None
    bin: Path | None = None
    lists: Path | None = None
    list: Path | None = None
    images: Path | None = None
    kind: str | None = None
    distractors: Path | None = None
    sizes: Iterable[int] | None = None
    far: Iterable[float] | None = None
    fpir: Iterable[float] | None = None
    ranks: Iterable[int] | None = None
    folds: int | None = None
    threshold: float | None = None
    detection_scores: bool | None = None
    embeddings: Path | None = None
    save_embeddings: Path | None = None
    flip_fusion: bool | None = None
    image_size: int = 112
    batch_size: int = 64
    device: str = 'cpu'

    def __post_init__(self) -> None:
        check_options(self)

    def answer(self, embed: Callable) -> dict:
        """The row of the report.

        Args:
            embed: (protocol, question, others) -> (rows of the question's pictures, rows of
                ``others``, whether flip fusion was used); not called with ``embeddings``.
        """
        others = [distractors(self)] if self.protocol == 'megaface' else []
        question = ask(self, others)
        if self.embeddings:
            rows, with_flip = read_embeddings(self.embeddings, question.paths), None
            for other in others:
                refuse_other_length(self.distractors, other.shape[1], rows.shape[1])
        else:
            rows, others, with_flip = embed(self, question, others)
        if self.save_embeddings:
            write_embeddings(self.save_embeddings, question.paths, rows)
        return question.answer(rows, *others) | dict(
            protocol=self.protocol, flip_fusion=with_flip, num_images=len(question.paths),
            **{name: str(getattr(self, name)) for name in (
                'pairs', 'bin', 'lists', 'list', 'distractors') if getattr(self, name)})


def check_options(asked: Protocol) -> None:
    """Refuse options that the protocol does not look at, and sources that are missing or doubled.

    Raises:
        VisionError: there is such an option.
    """
    allowed = OPTIONS[asked.protocol]
    for name in sorted(set().union(*OPTIONS.values()) - allowed):
        if getattr(asked, name) is not None:
            raise VisionError('VIS-CONFIG-1085', f'--{name.replace("_", "-")} says nothing in '
                              f'--protocol {asked.protocol}', why='it takes '
                              f'{", ".join("--" + name for name in sorted(allowed))}',
                              do='leave it out, or name another --protocol')
    for option, value in (('--batch-size', asked.batch_size), ('--image-size', asked.image_size),
                          *(('--sizes', size) for size in asked.sizes or ()),
                          *(('--ranks', rank) for rank in asked.ranks or ()),
                          *([('--folds', asked.folds - 1)] if asked.folds is not None else [])):
        if value < 1:
            raise VisionError('VIS-CONFIG-1126', f'{option} {value}', where=option,
                              why='it must be above 0', do=f'give another {option}; see --help')
    if 'bin' in allowed:
        source = '--lists DIR' if asked.protocol == 'cfp' else '--pairs FILE'
        has_list = (asked.lists or asked.pairs) is not None
        if has_list == (asked.bin is not None) or asked.bin and (asked.images or asked.kind):
            raise _which(f'either {source} with --images DIR, or --bin FILE alone')
    elif asked.protocol in ('ijbb', 'ijbc') and not asked.lists:
        raise _which('--lists DIR has the lists of IJB')
    elif 'list' in allowed and not (asked.list or asked.images):
        raise _which('--list FILE, or --images DIR with a folder for each identity')
    if asked.protocol == 'megaface' and not asked.distractors:
        raise _which('--distractors has embeddings or pictures of others')
    is_named = asked.config is not None and find_model(asked.config) is not None
    has_model = asked.checkpoint is not None or is_named
    if has_model == (asked.embeddings is not None) or asked.config and not has_model:
        raise _which('either CONFIG and CHECKPOINT, or the name of a model, or --embeddings FILE')
    if has_model and not (asked.bin or asked.images):
        raise _which('--images DIR has the pictures')
    if asked.embeddings and (asked.images and 'list' not in allowed
                             or asked.flip_fusion is not None):
        raise _which('--embeddings takes the place of pictures: without --images, --flip-fusion')


def ask(asked: Protocol, others: list):
    """The question of the protocol, with everything refused that its lists cannot tell."""
    if asked.protocol in ('ijbb', 'ijbc'):
        question = questions.TemplateQuestion(
            asked.lists, asked.protocol, fars=asked.far, fpirs=asked.fpir,
            ranks=asked.ranks, with_scores=bool(asked.detection_scores))
        if question.missing_1n:
            note(f'no identification: {", ".join(question.missing_1n)} are not there')
        note_left_out(asked, questions.LARGE_FARS, question)
        return question
    if 'list' in OPTIONS[asked.protocol]:
        found = (image_lists.read_label_list(asked.list, asked.images or Path()) if asked.list else
                 image_lists.read_identity_folders(asked.images))
        if asked.protocol == 'megaface':
            num = len(getattr(others[0], 'paths', others[0]))
            return questions.DistractorQuestion(found, num, asked.sizes)
        question = questions.AllPairsQuestion(found, asked.far)
        note_left_out(asked, questions.LARGE_FARS, question)
        return question
    question = questions.PairQuestion(read_pairs(asked), asked.far, asked.threshold)
    note_left_out(asked, questions.PAIR_FARS, question)
    return question


def read_pairs(asked: Protocol):
    """The pairs of the protocol: of a .bin file, of CFP's lists, or of a pair list."""
    if asked.bin:
        return read_bin(asked.bin).pairs()
    if asked.protocol == 'cfp':
        return read_cfp(asked.lists, asked.kind or 'FP')
    return pairs.read_pairs(asked.pairs, num_folds=asked.folds or pairs.NUM_FOLDS)


def distractors(asked: Protocol):
    """Their rows, or the list of their pictures."""
    if asked.distractors.is_dir():
        if asked.embeddings:
            raise _which('with --embeddings, --distractors is a file of embeddings too')
        return read_pictures(asked.distractors)
    rows = read_embeddings(asked.distractors)
    for top in range(0, len(rows), 1 << 14):  # one without direction is found before the work
        unit_rows(rows[top:top + (1 << 14)], first_row=top)
    return rows


def note(text: str) -> None:
    """A line on stderr, beside the result on stdout."""
    print(text, file=sys.stderr)


def note_left_out(asked: Protocol, usual: tuple[float, ...], question) -> None:
    """Usual rates that so many impostor pairs cannot tell; given ones were refused instead."""
    left = [f'{far:g}' for far in usual if far not in question.fars]
    if left and asked.far is None:
        note(f'no TAR at FAR {", ".join(left)}: there are {question.num_impostors} impostor pairs')


def _which(why: str) -> VisionError:
    return VisionError('VIS-CONFIG-1131', 'which pairs or pictures?', why=why, do='see --help')
