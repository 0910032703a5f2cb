"""A masked language model behind HTTP: a node then needs neither torch nor transformers."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from json import JSONDecodeError
from math import log
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.keys import read_key
from feddtpt_flwr.language_model.base import FatalModelError, ModelUnavailableError
from feddtpt_flwr.language_model.limits import retry_after
from feddtpt_flwr.loopback import is_loopback, spare
from feddtpt_flwr.masked_lm.base import Fillings, Gap
from feddtpt_flwr.memory import Key, Memory, Value
from feddtpt_flwr.tokenizer_file import load_tokenizer, mask_token
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import FillMaskOutputElement

ATTEMPTS = 6
LONGEST_WAIT = 30.0  # seconds
OVERSAMPLING = 4  # about every second token of a vocabulary is a whole word
SMALLEST = 1e-12  # a probability that the service rounded to zero

_Masked = tuple[Tokens, int, Tokens]
"""A token, and those to its left and right."""

_BUSY = frozenset({408, 409, 425, 429})


class RemoteMaskedLM:
    """A masked language model that answers the fill-mask task of Hugging Face's inference API.

    Parameters
    ----------
    endpoint : str
        URL to which the questions go.
    tokenizer : str
        The model's tokenizer: a name on the Hugging Face hub, a folder with a ``tokenizer.json``,
        or that file.
    key_env : str
        The environment variable that holds the service's key; empty if it needs none.
    excluded_words : tuple[str, ...]
        Words never proposed.
    beyond_ascii : bool
        Whether words with other letters than A to Z are proposed.
    num_candidates : int
        How many tokens are proposed for a gap.
    timeout : float
        Seconds to wait for one answer, however slowly it trickles.
    concurrency : int
        Most questions that are open at the same time.
    attempts : int
        How often a question is asked of a service that is down or busy.

    Raises
    ------
    ValueError
        If there is no such tokenizer, it has no mask, or the environment variable is not set.
    """

    def __init__(
        self,
        endpoint: str,
        tokenizer: str,
        *,
        key_env: str = "",
        excluded_words: tuple[str, ...] = (),
        beyond_ascii: bool = False,
        num_candidates: int = 24,
        timeout: float = 60.0,
        concurrency: int = 8,
        attempts: int = ATTEMPTS,
    ) -> None:
        if is_loopback(endpoint):  # before the library makes its first connection
            spare(os.environ)
        plain = load_tokenizer(tokenizer)
        self._endpoint = endpoint
        self._source = tokenizer
        self._key_env = key_env
        self._key = _key(key_env)
        self._vocabulary = Vocabulary(plain, beyond_ascii=beyond_ascii)
        self._mask = mask_token(plain, tokenizer)
        self._allowed = self._vocabulary.proposable(excluded_words)
        self._num_candidates = num_candidates
        self._timeout = timeout
        self._concurrency = concurrency
        self._attempts = attempts
        self._fillings: Memory[Gap, Fillings] = Memory(self._each(self._fill))
        self._log_probs: Memory[_Masked, float] = Memory(self._each(self._log_prob), 65536)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that this model reads and proposes."""
        return self._vocabulary

    @property
    def token_embeddings(self) -> None:
        """None: the service does not tell where tokens lie in meaning."""
        return

    def fill(self, gaps: Sequence[Gap]) -> list[Fillings]:
        """Propose one token for every gap, several questions at a time.

        Raises
        ------
        FatalModelError, ModelUnavailableError
            If the service runs another model, refuses the key or does not answer.
        """
        return self._fillings.get(gaps)

    def log_likelihood(self, prompts: Sequence[Tokens]) -> NDArray[np.float64]:
        """Return pseudo-log-likelihoods: each token predicted from all others, in nats.

        Costs one question per token; those that were asked before are remembered. A word of
        several pieces is judged only roughly: with one of them masked, the service splits the
        others in another way.

        Raises
        ------
        FatalModelError, ModelUnavailableError
            See `fill`.
        """
        masked = [[(p[:i], token, p[i + 1 :]) for i, token in enumerate(p)] for p in prompts]
        log_probs = iter(self._log_probs.get([one for each in masked for one in each]))
        return np.array([sum(next(log_probs) for _ in each) for each in masked])

    def _each(self, ask: Callable[[Key], Value]) -> Callable[[list[Key]], list[Value]]:
        """Return what asks many questions, several at a time.

        What was answered before one failed is not asked again.
        """
        arrived: dict[Key, Value] = {}

        def one(key: Key) -> Value:
            if (value := arrived.get(key)) is None:
                value = arrived[key] = ask(key)
            return value

        def ask_all(keys: list[Key]) -> list[Value]:
            with ThreadPoolExecutor(self._concurrency) as pool:
                values = list(pool.map(one, keys))
            for key in keys:  # whoever asks remembers them
                arrived.pop(key, None)
            return values

        return ask_all

    def _fill(self, gap: Gap) -> Fillings:
        text = self._masked_text(*gap)
        wanted, size = self._num_candidates * OVERSAMPLING, len(self._vocabulary)
        while True:
            answers = self._ask(text, top_k=min(wanted, size))
            found = [a for a in answers if self._is_proposable(a)][: self._num_candidates]
            if len(found) == self._num_candidates or len(answers) < wanted:
                break
            wanted *= 8  # pieces of words and answer words came first; look further down
        if not found:
            raise FatalModelError(f"{self._endpoint}: none of its tokens for a gap is a whole word")
        for answer in found:
            self._check_same_token(answer)
        scores = np.array([log(max(a.score, SMALLEST)) for a in found])
        tokens = np.array([a.token for a in found], dtype=np.int64)
        return Fillings(tokens, scores - np.logaddexp.reduce(scores))

    def _log_prob(self, masked: "_Masked") -> float:
        left, token, right = masked
        piece = self._vocabulary.piece(token)
        answers = self._ask(self._masked_text(left, right), targets=[piece], top_k=1)
        if [a.token for a in answers] != [token]:
            raise FatalModelError(
                f"{self._endpoint}: asked for the probability of token {token} ({piece!r}), it "
                f"answered about {[a.token for a in answers][:3]}; it must understand 'targets' "
                f"and run the model of the tokenizer masked-lm = {self._source!r}"
            )
        return log(max(answers[0].score, SMALLEST))

    def _masked_text(self, left: Tokens, right: Tokens) -> str:
        # The service splits this text into the same tokens again, where words are whole.
        return self._vocabulary.text((*left, self._mask, *right))

    def _is_proposable(self, answer: "FillMaskOutputElement") -> bool:
        return 0 <= answer.token < len(self._allowed) and bool(self._allowed[answer.token])

    def _check_same_token(self, answer: "FillMaskOutputElement") -> None:
        """Refuse a service whose vocabulary is another one: its ids would be other words."""
        ours, theirs = self._vocabulary.decode([answer.token]), str(answer.token_str).strip()
        if ours != theirs:
            raise FatalModelError(
                f"{self._endpoint}: token {answer.token} is {theirs!r} there and {ours!r} in "
                f"masked-lm = {self._source!r}, which must name the tokenizer of the model that "
                "the service runs"
            )

    def _ask(self, text: str, **parameters: Any) -> "Sequence[FillMaskOutputElement]":
        """Ask about the mask in ``text``; wait and ask again while the service is busy."""
        from tenacity import (
            RetryCallState,
            Retrying,
            retry_if_exception,
            stop_after_attempt,
            wait_random_exponential,
        )

        backoff = wait_random_exponential(multiplier=1, max=LONGEST_WAIT, min=0.1)
        used_up = stop_after_attempt(self._attempts)

        def asked_to_wait(state: RetryCallState) -> float:
            return _retry_after(state.outcome.exception() if state.outcome else None)

        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            # A service that asks for more time than this is not there for this round.
            stop=lambda state: used_up(state) or asked_to_wait(state) > LONGEST_WAIT,
            wait=lambda state: max(backoff(state), asked_to_wait(state)),
            reraise=True,
        )
        try:
            return retrying(self._post_in_time, text, **parameters)
        except _errors() as error:
            tries = int(retrying.statistics.get("attempt_number", 1))
            raise self._explained(error, tries) from None

    def _post_in_time(self, text: str, **parameters: Any) -> "Sequence[FillMaskOutputElement]":
        """Post in a thread of its own: the client's limit is one for each piece that arrives."""
        answers: Future[Sequence[FillMaskOutputElement]] = Future()

        def post() -> None:
            try:
                answers.set_result(self._post(text, **parameters))
            except BaseException as error:
                answers.set_exception(error)

        Thread(target=post, daemon=True).start()
        return answers.result(self._timeout)

    def _post(self, text: str, **parameters: Any) -> "Sequence[FillMaskOutputElement]":
        from huggingface_hub import InferenceClient, get_session

        # The session is all clients', and may be a new one each time.
        hooks = get_session().event_hooks
        if _stay not in hooks["response"]:
            get_session().event_hooks = {**hooks, "response": [*hooks["response"], _stay]}
        # Without a key of its own the client would send the user's saved Hugging Face token to
        # whatever the endpoint is; a header that is None is not sent.
        headers: Any = {} if self._key else {"authorization": None}
        # Each call its own client: one keeps all its responses open until it is closed.
        with InferenceClient(
            model=self._endpoint, token=self._key, timeout=self._timeout, headers=headers
        ) as client:
            answers: Sequence[FillMaskOutputElement] = client.fill_mask(text, **parameters)
        if not all(_is_filling(answer) for answer in answers):
            raise ValueError("the answer is not one of the fill-mask task")
        return answers

    def _explained(self, error: Exception, tries: int) -> RuntimeError:
        # Written here and not passed on: a client's own message may hold headers or the question.
        where = f"masked-lm-endpoint = {self._endpoint!r}"
        status = _status(error)
        if status in (401, 403):
            how = f"the key in {self._key_env}" if self._key_env else "questions without a key"
            return FatalModelError(f"{where}: refuses {how} (HTTP {status})")
        if status == 402:
            return FatalModelError(f"{where}: the account is used up (HTTP {status})")
        if status is not None and 300 <= status < 400:
            return FatalModelError(
                f"{where}: sends to another address (HTTP {status}); set masked-lm-endpoint to that"
            )
        if status is not None and not _is_busy(status):
            return FatalModelError(
                f"{where}: does not answer the fill-mask task (HTTP {status}); it must be the URL "
                "of a masked language model behind Hugging Face's inference API"
            )
        if isinstance(error, ConnectionError):
            return FatalModelError(f"{where}: HF_HUB_OFFLINE=1 forbids every request; unset it")
        if isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):
            return FatalModelError(f"{where}: its answer is not one of the fill-mask task")
        what = f"HTTP {status}" if status else type(error).__name__
        return ModelUnavailableError(f"{where}: no answer after {tries} tries ({what})")


def _key(key_env: str) -> str | None:
    if (key := read_key(key_env)) or not key_env:
        return key or None
    # What is not written as variables are may be the key itself, and errors travel to the server.
    shown = f" = {key_env!r}" if key_env.isupper() else ""
    raise ValueError(f"masked-lm-key-env{shown}: this environment variable is not set")


def _errors() -> tuple[type[Exception], ...]:
    """Return what an HTTP request and reading its answer may raise."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    return (httpx.HTTPError, httpx.InvalidURL, OfflineModeIsEnabled, TimeoutError, ValueError)


def _stay(response: "httpx.Response") -> None:
    """Follow no redirect of a question: it would go to an address that nobody has set."""
    import httpx

    request = response.request
    if request.method == "POST" and response.is_redirect:
        raise httpx.HTTPStatusError("a redirect", request=request, response=response)


def _status(error: BaseException | None) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _is_busy(status: int) -> bool:
    return status in _BUSY or status >= 500


def _may_pass(error: BaseException) -> bool:
    import httpx

    if (status := _status(error)) is not None:
        return _is_busy(status)
    # JSON that ends too early is a connection that broke.
    return isinstance(error, (httpx.TransportError, TimeoutError, JSONDecodeError))


def _retry_after(error: BaseException | None) -> float:
    response = getattr(error, "response", None)
    return retry_after(response.headers) if response is not None else 0.0


def _is_filling(answer: Any) -> bool:
    score, token = getattr(answer, "score", None), getattr(answer, "token", None)
    return isinstance(score, (int, float)) and 0 <= score <= 1 and isinstance(token, int)
