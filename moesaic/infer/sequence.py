"""One prompt on its way to a completion."""

import torch
from torch import Tensor

from moesaic.errors import MoesaicError, UnsupportedError
from moesaic.infer.request import Completion, Delta, FinishReason, SamplingParams, Usage
from moesaic.infer.stop import StopScanner
from moesaic.ops.sample import draw, filter_logits, greedy
from moesaic.tokenizer.tokenizer import Tokenizer

# Logits over a temperature below this leave the range of float32; the draw would be the best token anyway.
_GREEDY_BELOW = 1e-5

# Tokens of the prompt that are enough to read the first new one in its place, blank and all.
_NUM_CONTEXT = 8


class Sequence:
    """A prompt, the tokens generated so far, and when they end.

    Attributes:
        max_tokens: most tokens to generate, already limited by the model's context.
        end_ids: tokens after which the answer ends.
        finish_reason: None while it runs.
        failure: why it could not go on.
    """

    def __init__(
        self,
        index: int,
        prompt_ids: list[int],
        params: SamplingParams,
        max_tokens: int,
        end_ids: set[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.params = params
        self.max_tokens = max_tokens
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.failure: MoesaicError | None = None
        self.end_ids = end_ids
        self._decoder = None if tokenizer is None else tokenizer.stream_decoder(prompt_ids[-_NUM_CONTEXT:])
        self._scanner = StopScanner(params.stop)
        self._text: list[str] = []
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def choose(self, logits_V: Tensor) -> int:
        """Choose the next token from the logits.

        Raises:
            UnsupportedError: a logit is infinite or no number, so that no token is the best.
        """
        if not bool(logits_V.isfinite().all()):
            position = len(self.prompt_ids) + len(self.token_ids)
            raise UnsupportedError(
                f"prompt {self.index}: the logits of token {position} are not finite "
                f"in {str(logits_V.dtype).removeprefix('torch.')}",
                "load the model in another dtype, such as float32; if it stays so, its weights are damaged",
            )
        params = self.params
        if params.temperature < _GREEDY_BELOW:
            return int(greedy(logits_V.unsqueeze(0)))
        filtered_V = filter_logits(logits_V, params.temperature, params.top_k, params.top_p, params.min_p)
        return int(draw(filtered_V.unsqueeze(0), [self._generator]))

    def accept(self, token_id: int) -> Delta:
        """Append a token; return the text that it makes final, and the completion if it is the last."""
        self.token_ids.append(token_id)
        text = ""
        if token_id in self.end_ids:
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

    def fail(self, failure: MoesaicError) -> None:
        """End without the next token; what there is of an answer stays."""
        self.finish_reason, self.failure = "error", failure

    def end(self) -> Delta:
        """Return the last piece of a sequence that has failed."""
        return Delta(self.index, "", self._completion())

    def _completion(self) -> Completion | None:
        if self.finish_reason is None:
            return None
        usage = Usage(len(self.prompt_ids), len(self.token_ids))
        error = None if self.failure is None else self.failure.text
        return Completion("".join(self._text), self.token_ids, self.finish_reason, usage, error)
