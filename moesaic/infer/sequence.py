"""One prompt on its way to a completion."""

import torch
from torch import Tensor

from moesaic.infer.request import Completion, Delta, FinishReason, SamplingParams, Usage
from moesaic.infer.stop import StopScanner
from moesaic.ops.sample import draw, filter_logits, greedy
from moesaic.tokenizer.tokenizer import Tokenizer

# Logits over a temperature below this leave the range of float32; the draw would be the best token anyway.
_GREEDY_BELOW = 1e-5


class Sequence:
    """A prompt, the tokens generated so far, and when they end.

    Attributes:
        max_tokens: most tokens to generate, already limited by the model's context.
        finish_reason: None while it runs.
    """

    def __init__(
        self,
        index: int,
        prompt_ids: list[int],
        params: SamplingParams,
        max_tokens: int,
        eos_ids: list[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.params = params
        self.max_tokens = max_tokens
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._eos_ids = set() if params.ignore_eos else set(eos_ids)
        self._decoder = None if tokenizer is None else tokenizer.stream_decoder()
        self._scanner = StopScanner(params.stop)
        self._text: list[str] = []
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def choose(self, logits_V: Tensor) -> int:
        """Choose the next token from the logits."""
        params = self.params
        if params.temperature < _GREEDY_BELOW:
            return int(greedy(logits_V.unsqueeze(0)))
        filtered_V = filter_logits(logits_V, params.temperature, params.top_k, params.top_p, params.min_p)
        return int(draw(filtered_V.unsqueeze(0), [self._generator]))

    def accept(self, token_id: int) -> Delta:
        """Append a token; return the text that it makes final, and the completion if it is the last."""
        self.token_ids.append(token_id)
        text = ""
        if token_id in self._eos_ids:
            self.finish_reason = "stop"
        elif self._decoder is not None:
            text = self._scanner.push(self._decoder.push(token_id))
        if self._scanner.stopped:
            self.finish_reason = "stop"
        elif self.finish_reason is None and len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and not self._scanner.stopped:
            rest = "" if self._decoder is None else self._decoder.flush()
            text += self._scanner.push(rest) + self._scanner.flush()
        self._text.append(text)
        return Delta(self.index, text, self._completion())

    def _completion(self) -> Completion | None:
        if self.finish_reason is None:
            return None
        usage = Usage(len(self.prompt_ids), len(self.token_ids))
        return Completion("".join(self._text), self.token_ids, self.finish_reason, usage)
