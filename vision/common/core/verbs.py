"""What an object of ``vision.load`` does, and what it says to a verb of another task."""

from __future__ import annotations

from typing import ClassVar

from vision.common.core.errors import VisionError

# Verb -> what it is for. Only these get an answer; any other name is a plain AttributeError.
VERBS = dict(video='lattice_yolox-nano', image='lattice_yolox-nano', embed='mobilefacenet',
             compare='mobilefacenet', detect='mobilefacenet', gallery='mobilefacenet')


class NoSuchVerb(VisionError, AttributeError):
    """An AttributeError too, so that ``hasattr`` says no."""


class Verbs:
    """Base of the objects that ``vision.load`` gives.

    Attributes:
        example: how it is used, in one expression; the answer to a verb that it does not have.
    """

    example: ClassVar[str] = ''

    def __getattr__(self, name: str):
        kind = type(self).__name__
        if name not in VERBS:
            raise AttributeError(f'{kind!r} object has no attribute {name!r}', name=name, obj=self)
        raise NoSuchVerb('VIS-INPUT-1712', f'a {kind} has no {name}()',
                         why=f'what it does: {self.example}',
                         do=f'vision.load({VERBS[name]!r}).{name}(...)')

    def __call__(self, *_args, **_options):
        raise NoSuchVerb('VIS-INPUT-1714', f'a {type(self).__name__} is no function',
                         why='a classifier is called with a picture',
                         do=self.example)
