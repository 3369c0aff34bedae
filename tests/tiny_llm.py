"""A tiny random LLM for tests: the real architecture and file layout, no download, milliseconds to write.

Weights are random, so nothing it says means anything; shapes, masks, files and tokens behave as in the
real base model: byte-level BPE, single digits, the same special tokens, no BOS, tied embeddings.
"""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 300
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer():
    """Byte-level BPE with 300 tokens: any text encodes, without unknown tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    merges = []
    for pair in ("Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "e r", "Ġt he", "o u", "s e", "Ġ s", "Ġ c", "e a", "in g"):
        left, right = pair.split()
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    for i in range(len(vocabulary), VOCABULARY):
        vocabulary[f"<|spare_{i}|>"] = i
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write_tiny_llm(
    folder: Path, *, layers: int = 3, hidden: int = 32, heads: int = 2, seed: int = 0, architecture: str = "llama"
) -> Path:
    """Write a random causal LM as a Hugging Face folder that ``load_base`` reads.

    ``llama`` as the default base model; ``gpt2`` for all that may differ: learned positions, other names of layers,
    norms and settings, biases, transposed weights; ``gpt_neox`` for rotary positions under yet other names; ``bloom``
    normalises whatever is fed to it once more, so that it cannot be cut.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {
        "llama": {
            "intermediate_size": 2 * hidden,
            "num_key_value_heads": 1,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
        },
        "gpt2": {"max_position_embeddings": 2048},
        "gpt_neox": {"intermediate_size": 2 * hidden, "max_position_embeddings": 2048},
        "bloom": {},
    }[architecture]
    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=True,
        # large enough that attention is far from uniform: a wrong mask must show in a test
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **special,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(config).eval()
        if architecture == "gpt2":
            with torch.no_grad():  # random positions as large as tokens would drown them
                model.transformer.wpe.weight *= 0.2
    finally:
        torch.random.set_rng_state(state)
    model.save_pretrained(folder, safe_serialization=True)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, tokenizer=None) -> None:
    """Save a tokenizer, `tiny_tokenizer` by default, as a model folder has it."""
    from transformers import PreTrainedTokenizerFast

    end = "<|im_end|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or tiny_tokenizer(), eos_token=end, pad_token=end, model_max_length=2048
    ).save_pretrained(folder)
