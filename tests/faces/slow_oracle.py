"""The judge of ``OracleSelector``: all logits at once, their logarithms summed."""

import torch

from vision.faces.nn.select.selectors import CandidateSelector


class SlowOracle(CandidateSelector):
    """Takes the options of ``Selector``."""

    def _best(self, features, local, own, num, step):
        queries = self.queries(features)
        logits = self.logits(queries, torch.arange(self.num_local))
        own_logits = self.own_logits(features, local)
        here = (local >= 0).nonzero().squeeze(1)
        for centre in range(self.num_centres):
            logits[here, local[here] + centre] = -torch.inf if centre else own_logits[here]
        mass = self.log_mass(logits, logits[:, :0])
        mass[torch.from_numpy(own)] = -torch.inf
        return mass.topk(min(num, self.num_local - len(own))).indices.numpy()
