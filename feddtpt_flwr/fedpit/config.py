"""The configuration of a FedPIT run: typed, frozen, and checked once."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.checked_settings import CheckedSettings, ConfigError
from feddtpt_flwr.config import Dtype
from feddtpt_flwr.data import Partition
from strategies.adapters import WireDtype

DEFAULT_TASK = "drug_reviews"


class FedPITConfig(CheckedSettings):
    """All settings of a FedPIT run, as ``apps/fedpit.toml`` lists them (with hyphens).

    Parameters
    ----------
    num_server_rounds : int
        Federated rounds, at least 1.
    seed : int
        Seed of all randomness, at least 0, but for who trains with ``fraction_train`` below 1.
    task : str
        Instruction data: ``"drug_reviews"``, a classification task of the main app, a ``.jsonl``
        file, or the name of a data set on the Hugging Face hub.
    test_file : str
        Held-out instructions (``.jsonl``); empty takes the task's own, or a fifth of its rows.
    clients : {"simulated", "own-data"}
        Whether clients train on parts of the task's data, or in a deployment on the file that
        every node names in its node config.
    examples_per_client : int
        Private instructions of each client; with data of its own at most so many, and fewer if its
        file has fewer.
    test_size : int
        Held-out instructions for the server's evaluation; 0 takes all.
    partition : {"iid", "dirichlet"}
        How topics spread over the simulated clients.
    dirichlet_alpha : float
        Concentration of the Dirichlet partition, above 0; small is uneven.
    language_model : str
        The model that is tuned: ``"embedded"``, a hub name, a folder or a ``.gguf`` file.
    device, dtype : str
        Where and in which numeric type the model runs; adapters are trained in float32.
    start_adapter : str
        Folder of the adapter to begin with, such as ``adapter`` of an earlier run's folder, on the
        server; empty begins anew.
    lora_rank : int
        Rank of the adapters, which are scaled by 2 (``lora_alpha`` is twice the rank).
    learning_rate : float
        AdamW's, above 0.
    batch_size : int
        Examples in a training step.
    local_epochs : int
        Passes over a client's examples in a round.
    max_instruction_tokens, max_response_tokens : int
        Longer instructions and responses are cut; generated ones end there.
    beta : float
        Share of the local adapter in what is uploaded, in [0, 1]: 0 is the paper's first version,
        1 plain federated tuning (FedIT), which needs no synthetic data and makes none.
    training : {"isolated", "mixed"}
        Whether private and synthetic data train two adapters, or one together (FedMIT), which is
        then uploaded whatever ``beta`` is.
    proximal_mu : float
        Weight of FedProx's proximal term, at least 0; 0 is FedAvg.
    num_demonstrations : int
        Private examples shown in context when synthetic data are made.
    num_candidates : int
        Synthetic examples that a client makes in a round.
    num_selected : int
        Of these, the examples to train on: those of the lowest instruction-following score.
    leakage_size : int
        Most private prompts of each client by which memorisation is measured.
    upload_dtype : {"bfloat16", "float32"}
        How adapters travel; learning rates below 3e-4 need ``"float32"``.
    fraction_train : float
        Share of the clients that train in a round, in (0, 1]. Which ones no seed decides: Flower
        numbers its nodes anew in every simulation and draws from these numbers.
    min_available_clients : int
        Clients to wait for.
    run_folder : str
        Where run folders are made.
    """

    num_server_rounds: int = Field(3, ge=1)
    seed: int = Field(0, ge=0)
    task: str = DEFAULT_TASK
    test_file: str = ""
    clients: Literal["simulated", "own-data"] = "simulated"
    examples_per_client: int = Field(16, ge=1)
    test_size: int = Field(100, ge=0)
    partition: Partition = "iid"
    dirichlet_alpha: float = Field(1.0, gt=0, allow_inf_nan=False)
    language_model: str = EMBEDDED
    device: str = "auto"
    dtype: Dtype = "auto"
    start_adapter: str = ""
    lora_rank: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    batch_size: int = Field(8, ge=1)
    local_epochs: int = Field(1, ge=1)
    max_instruction_tokens: int = Field(128, ge=8)
    max_response_tokens: int = Field(48, ge=1)
    beta: float = Field(0.5, ge=0, le=1)
    training: Literal["isolated", "mixed"] = "isolated"
    proximal_mu: float = Field(0.0, ge=0, allow_inf_nan=False)
    num_demonstrations: int = Field(8, ge=1)
    num_candidates: int = Field(32, ge=1)
    num_selected: int = Field(16, ge=1)
    leakage_size: int = Field(100, ge=1)
    upload_dtype: WireDtype = "bfloat16"
    fraction_train: float = Field(1.0, gt=0, le=1)
    min_available_clients: int = Field(2, ge=1)
    run_folder: str = "runs"

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> "FedPITConfig":
        """Read and check Flower's ``context.run_config``.

        Raises
        ------
        ConfigError
            One line for every key that is unknown or whose value is not allowed.
        """
        config = cls.checked(run_config)
        if config.num_selected > config.num_candidates:
            raise ConfigError(
                f"num-selected = {config.num_selected}: at most num-candidates = "
                f"{config.num_candidates} is allowed"
            )
        if config.training == "mixed" and config.beta == 1:
            raise ConfigError(
                "beta = 1.0: without synthetic data there is nothing to mix; set training = "
                "'isolated', or another beta"
            )
        return config

    @property
    def synthetic(self) -> bool:
        """Whether clients make synthetic data."""
        return self.beta < 1
