"""Configuration of a remote teacher; the expert it builds needs the extra `remote`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from textgen_env.bounds import check_above, check_at_least
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.label_cache import LabelCache
from textgen_env.tasks.prompts import BARE, check_prompt
from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.tokenizers.subword import TextTokenizer

API_KEY = "TEXTGEN_API_KEY"  # not OPENAI_API_KEY, because the server may be anybody's
PLAIN_ADDRESS = re.compile(
    r"https?://"
    r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"  # a name, or an address of version 4 or 6
    r"(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9._~%+,=-]*)*",
    re.ASCII | re.IGNORECASE,
)
MAX_TIMEOUT = 86400.0  # seconds
MIN_K = 3  # of three tokens at least one is neither padding nor start


@dataclass(frozen=True)
class RemoteTeacher:
    """Configuration of a teacher behind HTTP.

    If the server requires a key, set the environment variable TEXTGEN_API_KEY; an address that may
    hold one, with a user, a query or the like, is refused. Configurations that differ only in the
    address and the handling of requests are equal, so that a run can be resumed after its server
    has moved.

    Attributes:
        url: address of an OpenAI-compatible server that returns prompt_logprobs, such as
            "http://localhost:8000/v1".
        model: name of the model on the server.
        tokenizer: folder of the model's own tokenizer.
        k: number of most probable tokens requested at each state; vLLM returns at most 20 unless it
            is started with --max-logprobs.
        prompt: template of the teacher's source, with {source}.
        batch_size: prompts per request.
        timeout: seconds without data from the server before an attempt fails; a whole answer may
            take twice as long, and a second for each 100 kB.
        retries: attempts after the first.
        cache: file of all answers; runs may share it.
    """

    url: str = field(compare=False)
    model: str
    tokenizer: Path
    k: int = 10
    prompt: str = BARE
    batch_size: int = field(default=64, compare=False)
    timeout: float = field(default=120.0, compare=False)
    retries: int = field(default=8, compare=False)
    cache: Path = field(default=Path("runs/labels.sqlite"), compare=False)

    def __post_init__(self) -> None:
        if not _is_plain_address(self.url):
            raise ValueError(
                "url must be http:// or https:// with a host, a port and a path alone, got another "
                f"address, which is not shown because it may hold a key: set {API_KEY} to the key"
            )
        check_prompt("prompt", self.prompt)
        check_at_least(self, k=MIN_K, batch_size=1, retries=0)
        if self.timeout > MAX_TIMEOUT:
            raise ValueError(f"timeout must be at most {MAX_TIMEOUT:g} seconds, got {self.timeout}")
        check_above(self, timeout=0)

    def build(self, tokenizer: TextTokenizer) -> Expert:
        """Return an expert that queries the server; building it sends no request.

        Args:
            tokenizer: the teacher's own.

        Raises:
            ExpertError: the extra `remote` is not installed.
            CacheError: the cache's file cannot be used.
            ValueError: `k` above the size of the vocabulary.
        """
        try:
            from textgen_env.experts.completions_client import CompletionsClient
            from textgen_env.experts.remote import RemoteExpert
        except ImportError as error:
            raise ExpertError(
                f"a remote teacher needs the extra remote, which is not installed ({error}): run "
                "`pip install 'textgen-env[remote]'`"
            ) from error
        server = CompletionsClient(self.url, self.model, timeout=self.timeout, retries=self.retries)
        pretrained = isinstance(tokenizer, PretrainedTokenizer)
        return RemoteExpert(
            server,
            tokenizer,
            LabelCache(self.cache),
            k=self.k,
            batch_size=self.batch_size,
            prompt_prefix=tokenizer.conventions.prefix if pretrained else (),
        )


def _is_plain_address(url: str) -> bool:
    """Return True for an address of host, port and path, which can hold no user or password."""
    return PLAIN_ADDRESS.fullmatch(url) is not None
