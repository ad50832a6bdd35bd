"""What is added to the search of `transformers`: batches that need not wait for their last sentence, and an attention
cache for beams that is not copied at every token and has what all prompts begin with only once. The translations stay
the same."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROOM = 32  # positions by which a cache grows


class StopAtStragglers:
    """Ends a search when so few sentences of a batch are not done yet that they are better left for another batch.

    `transformers` computes a batch until its last sentence is done; one that never ends has all others wait for
    --max-new-tokens. What is done by then is what it would be later. Greedy search and sampling have a way in for
    this, the stopping criteria; of beam search the method is replaced that says whether to go on.
    """

    def __init__(self, model, ends, max_new_tokens):
        self.ends, self.max_new_tokens = torch.tensor(ends, device=model.device), max_new_tokens
        self.beams = model.generation_config.num_beams > 1
        self.criteria(0)
        if self.beams:
            self.goes_on = model._beam_search_has_unfinished_sequences
            model._beam_search_has_unfinished_sequences = self._beam_search_goes_on

    def criteria(self, leave):
        """The stopping criteria for the next batch, of which `leave` sentences may stay undone."""
        self.leave, self.steps, self.undone = leave, 0, None
        return None if self.beams else [self._sampling_stops]

    def stragglers(self):
        """The rows that the search ended without."""
        if self.steps >= self.max_new_tokens:
            return []
        return self.undone.nonzero().flatten().tolist()

    def _beam_search_goes_on(self, improvable, *others):
        self.steps, self.undone = self.steps + 1, improvable.flatten()
        return self.goes_on(improvable, *others) & (self.undone.sum() > self.leave)

    def _sampling_stops(self, ids_bs, scores, **others):
        ended = (ids_bs[:, -1:] == self.ends).any(dim=1)
        self.steps, self.undone = self.steps + 1, ~ended if self.undone is None else self.undone & ~ended
        return (self.undone.sum() <= self.leave).expand(len(ids_bs))


class RoomyLayer(DynamicLayer):
    """Keys and values (rows, heads, positions, channels) as the first positions of larger tensors: a token is written
    in place, where DynamicLayer copies all there is. Beams of a sentence have the same prompt, so that reordering them
    moves only what follows it. The first `shared` positions, the same in all rows, are kept apart, once."""

    def __init__(self, prompts, num_beams, shared):
        """prompts: a DynamicLayer with a row a sentence."""
        super().__init__()
        self.lazy_initialization(prompts.keys, prompts.values)
        self.first = [x[0, :, :shared].contiguous() for x in (prompts.keys, prompts.values)] if shared else None
        self.shared, self.prompt = shared, prompts.keys.shape[2] - shared
        self._move(prompts.keys[:, :, shared:], prompts.values[:, :, shared:], num_beams)

    def _move(self, keys, values, repeats):
        self.larger = []
        for old in (keys, values):
            rows, heads, positions, channels = old.shape
            new = old.new_empty(rows, repeats, heads, positions + ROOM, channels)
            new[..., :positions, :] = old[:, None]
            self.larger.append(new.flatten(0, 1))
        self._show(keys.shape[2])

    def _show(self, positions):
        self.keys, self.values = (whole[:, :, :positions] for whole in self.larger)
        self.keys.first = self.first  # for attend()

    def get_seq_length(self):
        return self.shared + self.keys.shape[2]

    def update(self, key_states, value_states, *args, **kwargs):
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self.larger[0].shape[2]:
            self._move(self.keys, self.values, 1)
        for whole, new in zip(self.larger, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx):
        for tensor in (self.keys, self.values):
            tensor[:, :, self.prompt :] = tensor[beam_idx, :, self.prompt :]


def attend(module, query, key, value, attention_mask, scaling=None, **others):
    """Attention of (rows, heads, new positions, channels) to a RoomyLayer: to what all rows share by one matrix product
    for all of them. To other keys it is torch's own, which would read what is shared once a row."""
    first = getattr(key, "first", None)
    if first is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    rows, heads, new, channels = query.shape
    grouped = (query * scaling).reshape(rows, key.shape[1], -1, channels)  # queries of a group share a key
    scores = torch.cat([torch.einsum("rhqc,hpc->rhqp", grouped, first[0]), grouped @ key.transpose(2, 3)], -1)
    if attention_mask is not None:
        scores.view(rows, -1, new, scores.shape[-1]).masked_fill_(~attention_mask, -torch.inf)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    shared = first[0].shape[1]
    found = torch.einsum("rhqp,hpc->rhqc", weights[..., :shared], first[1]) + weights[..., shared:] @ value
    return found.reshape(rows, heads, new, channels).transpose(1, 2), None


AttentionInterface.register("shared_prompt", attend)
AttentionMaskInterface.register("shared_prompt", sdpa_mask)


def is_plain(cache):
    """Whether all layers keep all positions, as those of Llama do and those with a sliding window do not."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def for_beams(cache, num_beams, shared):
    """The cache of prompts that were read, a row a sentence, as one with a row a beam: of RoomyLayers, where the layers
    are of the plain kind. The first `shared` positions are the same in all rows, for attend()."""
    if is_plain(cache):
        return Cache(layers=[RoomyLayer(layer, num_beams, shared) for layer in cache.layers])
    cache.batch_repeat_interleave(num_beams)
    return cache
