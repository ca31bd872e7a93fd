"""Fine-tune: kept weights go on from where they are, at the last learning rate.

    w = w_final

Source: Han et al. 2015, section 3; so named by Renda et al. 2020, section 2.
Everything else: biases and BatchNorm stay as the last training left them; the optimiser starts without a memory, at the
last rate of the schedule throughout.
"""

from prunus.nouns import Masks, Params
from prunus.tickets.checks import equal_at
from prunus.tickets.past import Claims, KeptAction, Past


def values(past: Past, masks: Masks, seed: int) -> Params:
    """The trained weights."""
    return {name: weight.detach().clone() for name, weight in past.final.items()}


def claims(past: Past, masks: Masks, start: Params) -> Claims:
    """Equality."""
    return {"every kept weight is as the last training left it": equal_at(masks, start, past.final)}


finetune = KeptAction(values, claims, rest="final", rate="last")
