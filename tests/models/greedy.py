"""Greedy decoding with our models, in the three ways that must agree."""

import torch

from moesaic.models.model import LanguageModel
from moesaic.ops.sample import greedy


@torch.no_grad()
def greedy_without_cache(model: LanguageModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Run the whole text anew for every token."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(greedy(model(torch.tensor([ids]))[:, -1])))
    return ids[len(prompt) :]


@torch.no_grad()
def greedy_with_cache(model: LanguageModel, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Run prompts of different lengths as one batch padded on the right, then one token a step."""
    lengths = [len(prompt) for prompt in prompts]
    valid_BS = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids_BS = torch.zeros(valid_BS.shape, dtype=torch.int64)
    ids_BS[valid_BS] = torch.tensor([token for prompt in prompts for token in prompt])
    cache = model.new_cache(len(prompts), max(lengths) + num_tokens)

    hidden_BSD = model.decode(ids_BS, valid_BS=valid_BS, cache=cache).hidden_BSD
    last_BD = hidden_BSD[torch.arange(len(prompts)), torch.tensor(lengths) - 1]
    steps = []
    for _ in range(num_tokens):
        next_B = greedy(model.logits(last_BD))
        steps.append(next_B)
        last_BD = model.decode(next_B.unsqueeze(1), cache=cache).hidden_BSD[:, 0]
    return torch.stack(steps, dim=1).tolist()
