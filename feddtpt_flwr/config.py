"""The configuration of a run: typed, frozen, and checked once, before any query is paid for."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.checked_settings import CheckedSettings
from feddtpt_flwr.checked_settings import ConfigError as ConfigError
from feddtpt_flwr.config_rules import find_mistakes
from feddtpt_flwr.data import DEFAULT_TASK
from feddtpt_flwr.language_model.constraints import Constrain
from strategies.aggregation import Method
from strategies.by_model import ChooseFor

SearchName = Literal["feddtpt", "sequential", "bdpl", "evolution"]
ProposerName = Literal["masked-lm", "random", "prompt-generator"]
Privacy = Literal["none", "public-tokens", "synthetic", "exponential"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class RunConfig(CheckedSettings):
    """All settings of a run, as ``[tool.flwr.app.config]`` in ``pyproject.toml`` lists them.

    In the configuration the names are written with hyphens (``k-shot``), as Flower's apps do.

    Parameters
    ----------
    num_server_rounds : int
        Federated rounds, at least 1.
    seed : int
        Seed of all randomness: data, search and aggregation; at least 0. Where not all clients take
        part, it says which do only if they connect in the same order, as in one process.
    task : str
        A built-in task or the path of a task's ``.toml`` file.
    data_source : {"default", "embedded", "hub", "files"}
        Where the examples come from; ``"default"`` is the task's first source.
    clients : {"simulated", "own-data"}
        Whose examples the clients search on: parts of the run's data, or in a deployment the file
        that every node names in its node config. With ``"own-data"`` the run's data gives the
        public set and the held-out examples.
    train_file, test_file : str
        Files for ``data-source = "files"``; without a test file, a fifth of the training file is
        held out.
    k_shot : int
        Private training examples per class and client, and as many others for validation.
    public_per_class : int
        Examples per class of the public set that every client holds; 0 for none.
    test_size : int
        Held-out examples for the server's evaluation; 0 takes all.
    partition : {"iid", "dirichlet"}
        How labels spread over the simulated clients.
    dirichlet_alpha : float
        Concentration of the Dirichlet partition, above 0; small is uneven.
    language_model : str
        The black box: ``"embedded"``, a hub name, a folder or a ``.gguf`` file; with an endpoint,
        the model's name there.
    chat : bool
        Whether queries go through the model's chat template; with an endpoint, whether they are
        chat completions.
    endpoint : str
        Base URL of an OpenAI-compatible API that has the language model; empty for a local one.
    api_key_env : str
        Environment variable that holds the key for it; servers that need none ignore it.
    system_message : str
        With an endpoint and chat: the message before the query; empty for none.
    max_answer_tokens : int
        With an endpoint: longest answer, in tokens; models that think first need many.
    temperature : float
        With an endpoint: sampling temperature, 0 to 2; above 0 no answers are kept for other
        runs.
    constrain : {"auto", "json-schema", "grammar", "choice", "none"}
        How the endpoint is to confine answers to the answer words; ``"auto"`` finds out.
    extra_body : str
        With an endpoint: a JSON object of further fields for every request, such as
        ``'{"reasoning_effort": "low"}'``; empty for none.
    concurrency : int
        Most requests of one process at a time.
    requests_per_minute, tokens_per_minute : int
        Most of one process to the endpoint; 0 for no limit.
    timeout : float
        Seconds for one request, above 0.
    price_per_million_input, price_per_million_output : float
        Prices of a million tokens, in any currency, for the report of costs.
    cache_size_mib : int
        Size of the file, shared by all processes of a machine, that keeps an endpoint's answers;
        0 for none, and then no client's trials are kept on disk either.
    masked_lm : str
        The proposer: ``"embedded"`` (the embedded language model as an infiller), or a masked
        language model by hub name or folder. A causal one, also as a ``.gguf`` file, fills gaps
        as the embedded one does: what continues the left side, by how well the right side follows.
    masked_lm_endpoint : str
        URL of a service that runs the proposer (Hugging Face's inference API, task fill-mask);
        empty runs it in this process. With one, ``masked_lm`` names the tokenizer: a hub name, a
        folder or a ``tokenizer.json``.
    masked_lm_key_env : str
        Environment variable that holds this service's key; empty if it needs none.
    device, dtype : str
        Where local models run, and in which numeric type causal ones do. The server's own
        encoder of tokens runs on the processor.
    seed_prompt : str
        The first global prompt; empty takes the task's.
    max_prompt_tokens : int
        Longest prompt, in tokens of the proposer's vocabulary, 2 to 256.
    max_fluency_loss : float
        How much less likely than the seed prompt a prompt may be as language, in nats per token, at
        least 0; what reads worse is not tried, except by ``search = "bdpl"``.
    search : {"feddtpt", "sequential", "bdpl", "evolution"}
        How a client searches: several changes racing; one change at a time, each on all examples;
        or one of the field's baselines, a policy gradient or an evolution.
    proposer : {"masked-lm", "random", "prompt-generator"}
        What proposes changes: the masked language model, chance (the paper's ablation), or a
        language model that is shown the task, the prompt and what was tried, and writes others.
    generator_endpoint : str
        Base URL of an OpenAI-compatible API with chat completions, for the model that writes
        prompts; empty lets the black box write.
    generator_model : str
        With a ``generator_endpoint``: the model's name there.
    generator_key_env : str
        Environment variable that holds the key for it; empty if it needs none.
    generator_price_per_million_input, generator_price_per_million_output : float
        With a ``generator_endpoint``: its prices, in the currency of the black box's.
    queries_per_round : int
        Most LLM queries of one client's search in one round. It judges prompts by a quarter as many
        of its examples, by at least eight, and by all where there are no more.
    tokens_per_round, cost_per_round, seconds_per_round : int, float, float
        Most tokens (read and written), money (in the currency of the prices) and time of one
        client's search in one round; 0 for no limit.
    queries_per_run, tokens_per_run, cost_per_run, seconds_per_run : int, int, float, float
        Most of one client in the whole run, scorings included; 0 for no limit.
    feedback : bool
        Whether trials steer later proposals; off is the paper's ablation. Those of
        ``search = "evolution"``, ``proposer = "random"`` and ``privacy = "exponential"`` never do.
    reword : bool
        Whether the masked language model also proposes the whole prompt in other words, besides
        changes of a part of it.
    exclude_answer_words : bool
        Whether the answer words are never proposed.
    aggregation : str
        The server's step: ``"feddtpt"``; ``"literal"``, the paper's words alone; or one of the
        paper's ablations and the field's baselines.
    min_samples : int
        DBSCAN's smallest neighbourhood of a cluster's core; 0 lets it grow with the number of
        clients, from 2.
    guard : bool
        Whether clients compare the aggregated prompt with the best local prompts, with shared or
        merged edits and with the prompt so far before the global one changes; off is the paper's
        behaviour.
    race_candidates : int
        Most prompts in that comparison, the incumbent not counted.
    race_examples : int
        On how many private examples each of them is tried, all clients together; each client takes
        its share of them, others in each round. 0 for all that there are, as
        ``privacy = "exponential"`` always takes.
    fraction_fit : float
        Share of the clients that search in a round, in (0, 1].
    fraction_evaluate : float
        Share of the clients that score the candidates in a round, in (0, 1]. Without a guard there
        is nothing to choose from, and none do.
    min_available_clients : int
        Clients to wait for.
    run_folder : str
        Where run folders are made.
    resume : str
        Folder of an earlier run that is to go on after its last completed round; empty begins a new
        run. All settings that decide what is found must be those of that run.
    round_timeout : float
        Seconds that a round waits for its searches, and then again for its scorings; whoever has
        not answered by then is left out. 0 waits until a node's SuperNode is known to be gone.
    choose_for : {"mean", "worst"}
        What the guard decides by: all answers of all clients, or those of the black box that a
        prompt serves worst, where nodes have different ones.
    trackers : str
        Where else the history goes, with commas between them: ``tensorboard`` (event files in the
        run folder), ``mlflow`` (the server that ``MLFLOW_TRACKING_URI`` names); empty for nowhere.
    privacy : {"none", "public-tokens", "synthetic", "exponential"}
        What keeps private text out of uploads (``docs/privacy.md``): nothing more than the method
        itself; tokens that are public anyway; a search on examples that the black box wrote; or
        differential privacy.
    epsilon : float
        With ``privacy = "exponential"``: how much one private example may matter in a round, above
        0; half for the choice of the prompt, half for the guard's counts.
    """

    num_server_rounds: int = Field(3, ge=1)
    seed: int = Field(0, ge=0)
    task: str = DEFAULT_TASK
    data_source: Literal["default", "embedded", "hub", "files"] = "default"
    clients: Literal["simulated", "own-data"] = "simulated"
    train_file: str = ""
    test_file: str = ""
    k_shot: int = Field(16, ge=1)
    public_per_class: int = Field(8, ge=0)
    test_size: int = Field(400, ge=0)
    partition: Literal["iid", "dirichlet"] = "iid"
    dirichlet_alpha: float = Field(0.1, gt=0, allow_inf_nan=False)
    language_model: str = EMBEDDED
    chat: bool = False
    endpoint: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    system_message: str = ""
    max_answer_tokens: int = Field(16, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    constrain: Constrain = "auto"
    extra_body: str = ""
    concurrency: int = Field(8, ge=1, le=1000)
    requests_per_minute: int = Field(0, ge=0)
    tokens_per_minute: int = Field(0, ge=0)
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    price_per_million_input: float = Field(0.0, ge=0, allow_inf_nan=False)
    price_per_million_output: float = Field(0.0, ge=0, allow_inf_nan=False)
    cache_size_mib: int = Field(256, ge=0)
    masked_lm: str = EMBEDDED
    masked_lm_endpoint: str = ""
    masked_lm_key_env: str = ""
    device: str = "auto"
    dtype: Dtype = "auto"
    seed_prompt: str = ""
    max_prompt_tokens: int = Field(24, ge=2, le=256)
    max_fluency_loss: float = Field(2.0, ge=0)
    search: SearchName = "feddtpt"
    proposer: ProposerName = "masked-lm"
    generator_endpoint: str = ""
    generator_model: str = ""
    generator_key_env: str = ""
    generator_price_per_million_input: float = Field(0.0, ge=0, allow_inf_nan=False)
    generator_price_per_million_output: float = Field(0.0, ge=0, allow_inf_nan=False)
    queries_per_round: int = Field(250, ge=1)
    tokens_per_round: int = Field(0, ge=0)
    cost_per_round: float = Field(0.0, ge=0, allow_inf_nan=False)
    seconds_per_round: float = Field(0.0, ge=0, allow_inf_nan=False)
    queries_per_run: int = Field(0, ge=0)
    tokens_per_run: int = Field(0, ge=0)
    cost_per_run: float = Field(0.0, ge=0, allow_inf_nan=False)
    seconds_per_run: float = Field(0.0, ge=0, allow_inf_nan=False)
    feedback: bool = True
    reword: bool = True
    exclude_answer_words: bool = True
    aggregation: Method = "feddtpt"
    min_samples: int = Field(0, ge=0)
    guard: bool = True
    race_candidates: int = Field(4, ge=1)
    race_examples: int = Field(256, ge=0)
    fraction_fit: float = Field(1.0, gt=0, le=1)
    fraction_evaluate: float = Field(1.0, gt=0, le=1)
    min_available_clients: int = Field(2, ge=1)
    run_folder: str = "runs"
    resume: str = ""
    round_timeout: float = Field(0.0, ge=0, allow_inf_nan=False)
    choose_for: ChooseFor = "mean"
    trackers: str = ""
    privacy: Privacy = "none"
    epsilon: float = Field(1.0, gt=0, allow_inf_nan=False)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        """Read and check Flower's ``context.run_config``.

        Raises
        ------
        ConfigError
            One line for every key that is unknown or whose value is not allowed, with the key, the
            value and what is allowed.
        """
        config = cls.checked(run_config)
        if mistakes := find_mistakes(config):
            raise ConfigError("\n".join(mistakes))
        return config
