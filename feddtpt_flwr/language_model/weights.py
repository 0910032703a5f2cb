"""Where local model weights come from: a hub name, a folder or a GGUF file.

A GGUF file is de-quantised once and kept as safetensors in the cache folder: reading quantised
weights takes tens of seconds, mapping the copy into memory takes a fraction of one, and several
processes on a machine then share its pages.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from feddtpt_flwr.assets import EMBEDDED, cache_folder, embedded_language_model

WEIGHTS = "model.safetensors"
CHECKSUMS = "XXH128SUMS"
"""As xxhsum writes and checks them. They are against damage, not against forgery, so what is ten
times as fast as SHA-256 is enough: every process reads the weights to check them."""


class CacheError(RuntimeError):
    """The cache folder cannot hold a model's weights."""


class DeviceError(ValueError):
    """There is no such device on this machine."""


def resolve_device(device: str) -> str:
    """Return the torch device for ``device`` (``auto``: the GPU if there is one).

    Raises
    ------
    DeviceError
        If this machine has no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device = {device!r} is not available: {error}") from None
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the torch dtype name for ``dtype``.

    ``auto`` is bfloat16 where torch says that the hardware multiplies it: on processors with AMX or
    AVX512_BF16 (AMD's from Zen 4 on), on Nvidia's GPUs from the Ampere generation on, and on AMD's.
    Elsewhere, on older GPUs and Apple's too, it is float32; ``float16``, which may be faster there,
    is never chosen unasked. With AMX bfloat16 was 3.4 times as fast, with AVX512_BF16 2.4 times; it
    gave another answer than float32 to 113 and 112 of 10,000 questions
    (``simulations/results/labels-amx.json``, ``labels.json``).
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if _multiplies_bfloat16(device) else "float32"


def _multiplies_bfloat16(device: str) -> bool:
    import torch

    match torch.device(device).type:
        case "cpu":
            # torch has no public query for these; the private ones are what its own tests use.
            queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            return any(getattr(torch.cpu, query, bool)() for query in queries)
        case "cuda":
            with torch.cuda.device(device):
                return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


@cache
def load_causal_lm(model: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Return what `read_causal_lm` reads, the same for all callers of a process."""
    return read_causal_lm(model, device, dtype)


def is_causal(model: str) -> bool:
    """Return whether a hub name, a folder or a file is a causal language model's, as it says."""
    from transformers import AutoConfig

    if Path(model).suffix == ".gguf":
        return True
    architectures = getattr(AutoConfig.from_pretrained(model), "architectures", None) or []
    # GPT-2 is older than the naming.
    return any(name.endswith("ForCausalLM") or name == "GPT2LMHeadModel" for name in architectures)


def read_causal_lm(model: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Read a causal language model and its tokenizer: a copy that may be changed.

    Parameters
    ----------
    model : str
        ``"embedded"``, the name of a model on the Hugging Face hub, a folder, or a ``.gguf`` file.
    device, dtype : str
        A torch device and dtype name (see `resolve_device`, `resolve_dtype`).

    Returns
    -------
    tuple
        The model in evaluation mode and its fast tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would fill the streamed log of every node
    folder = str(converted(model, dtype) or model)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return loaded.to(device).eval(), read_tokenizer(model, dtype)


def read_tokenizer(model: str, dtype: str) -> Any:
    """Return the model's tokenizer as transformers reads it, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(converted(model, dtype) or model))


@cache
def converted(model: str, dtype: str) -> Path | None:
    """Return the folder with a GGUF file's weights; None for what comes from elsewhere.

    File and copy are read as a whole to check them, hundreds of megabytes, so once per process.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    source = embedded_language_model() if model == EMBEDDED else Path(model)
    return _from_gguf(source, dtype) if source.suffix == ".gguf" else None


def _from_gguf(path: Path, dtype: str) -> Path:
    """De-quantise a GGUF file into the cache folder, once per machine and numeric type.

    The copy has the type in which it will be used: what has to be converted cannot be shared.
    """
    from filelock import FileLock

    if not path.is_file():
        raise FileNotFoundError(f"language model file {path} does not exist")
    folder = cache_folder() / "models" / f"{path.stem}-{_checksum(path)[:16]}-{dtype}"
    if _is_whole(folder):
        return folder
    lock = FileLock(f"{folder}.lock")
    with _keeping():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if not _is_whole(folder):
            # Nobody else is at work: what else is there a killed process has left.
            for left in (folder, *folder.parent.glob(f".{folder.name}-*")):
                shutil.rmtree(left, ignore_errors=True)
            _dequantise(path, folder, dtype)
    finally:
        lock.release()
    return folder


def _dequantise(path: Path, folder: Path, dtype: str) -> None:
    """Write the weights and tokenizer of a GGUF file to ``folder``, all or nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    config = quantised.config
    # transformers refuses to save a model that remembers having been quantised.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    with _keeping():
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    try:
        with _keeping():
            model.to(getattr(torch, dtype)).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            files = sorted(temporary.iterdir())
            for file in files:
                file.chmod(0o644)  # a cache folder may be several users'
            lines = "".join(f"{_checksum(file)}  {file.name}\n" for file in files)
            (temporary / CHECKSUMS).write_text(lines, encoding="utf-8")
            temporary.chmod(0o755)
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _keeping() -> Iterator[None]:
    """Name the cache folder if what is written there cannot be."""
    from safetensors import SafetensorError  # what its own writer raises on a full disk

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"the unpacked weights cannot be kept in {cache_folder()} ({error}); the environment "
            "variable FEDDTPT_CACHE names another folder"
        ) from None


def _is_whole(folder: Path) -> bool:
    """Return whether the copy exists and is what was written."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        # An empty list is what a power failure leaves.
        return bool(pairs) and all(_checksum(folder / name) == digest for digest, name in pairs)
    except (OSError, ValueError):
        return False


def _checksum(path: Path) -> str:
    import xxhash

    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
