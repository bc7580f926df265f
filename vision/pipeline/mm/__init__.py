"""What MMEngine's registries see of this room."""

from vision.pipeline.mm.model import PipelinedModel
from vision.pipeline.mm.strategy import ZeroPPStrategy

__all__ = ['PipelinedModel', 'ZeroPPStrategy']
