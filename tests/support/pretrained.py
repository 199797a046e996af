"""Small randomly initialized models of six families, saved as `transformers` saves them."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ["a", *(f"w{index}" for index in range(24))]
TEXTS = ["a w1 w2 w3 w4 w5 w6", "w7", "w8 w9 w10 w11", "a w12", "w13 w14 w15 w16 w17"]
MAX_POSITIONS = 48


@dataclass(frozen=True)
class Family:
    """Layout of a family's tokenizer, and its model.

    Attributes:
        pieces: all pieces in the order of their ids.
        special: special pieces by role.
        template: the tokenizer's template of a text.
        model: function from the number of pieces to a model.
        characters: whether pieces are characters instead of words.
    """

    pieces: list[str]
    special: dict[str, str]
    template: str
    model: object
    characters: bool = False

    def tokenizer(self):
        vocabulary = {piece: index for index, piece in enumerate(self.pieces)}
        if self.characters:
            backend = Backend(models.BPE(vocabulary, []))
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
        else:
            backend = Backend(models.WordLevel(vocabulary, unk_token=self.special["unk_token"]))
            backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        named = [(piece, vocabulary[piece]) for piece in set(self.special.values())]
        backend.post_processor = processors.TemplateProcessing(
            single=self.template, special_tokens=named
        )
        return PreTrainedTokenizerFast(tokenizer_object=backend, **self.special)


def balanced(model):
    """Return `model` with a bias against the few pieces that random weights always prefer."""
    tokens = torch.randint(5, 25, (2, 16, 6))
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens[0], decoder_input_ids=tokens[1]).logits
        model.final_logits_bias -= logits.mean((0, 1))
    return model


def marian(size):
    config = MarianConfig(
        vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=MAX_POSITIONS, pad_token_id=size - 1,
        eos_token_id=0, decoder_start_token_id=size - 1, forced_eos_token_id=None,
        init_std=0.2, dropout=0.0,
    )  # fmt: skip
    return balanced(MarianMTModel(config))


def t5(size):
    config = T5Config(
        vocab_size=size + 5, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, initializer_factor=2.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def bart(size):
    config = BartConfig(
        vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=MAX_POSITIONS, bos_token_id=0,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_bos_token_id=0,
        forced_eos_token_id=None, init_std=0.4, dropout=0.0,
    )  # fmt: skip
    model = balanced(BartForConditionalGeneration(config))
    model.generation_config.forced_bos_token_id = 0
    return model


def m2m(size):
    config = M2M100Config(
        vocab_size=size, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=MAX_POSITIONS, bos_token_id=0,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, init_std=0.4, dropout=0.0,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0,
    )  # fmt: skip
    return M2M100ForConditionalGeneration(config)


def llama(size, width=32, layers=2):
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=MAX_POSITIONS,
        bos_token_id=1, eos_token_id=2, pad_token_id=None, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def mistral(size):
    config = MistralConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=MAX_POSITIONS,
        bos_token_id=1, eos_token_id=2, initializer_range=0.4, sliding_window=4,
    )  # fmt: skip
    return MistralForCausalLM(config)


def gpt2(size):
    config = GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=MAX_POSITIONS,
        bos_token_id=size - 1, eos_token_id=size - 1, initializer_range=0.4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def qwen2(size):
    config = Qwen2Config(
        vocab_size=size + 7, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=MAX_POSITIONS,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.4,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


SPARSE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": MAX_POSITIONS, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None, "initializer_range": 0.4, "num_experts_per_tok": 2,
}  # fmt: skip


def mixtral(size):
    return MixtralForCausalLM(MixtralConfig(vocab_size=size, num_local_experts=4, **SPARSE))


def olmoe(size):
    return OlmoeForCausalLM(OlmoeConfig(vocab_size=size, num_experts=4, **SPARSE))


def qwen3_moe(size):
    """Return a model whose first layer has no experts."""
    config = Qwen3MoeConfig(
        vocab_size=size, num_experts=5, moe_intermediate_size=24, head_dim=16, mlp_only_layers=[0],
        norm_topk_prob=True, **SPARSE,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def qwen2_moe(size):
    """Return a model with a shared expert, the weights of whose used experts do not sum to 1."""
    config = Qwen2MoeConfig(
        vocab_size=size, num_experts=4, moe_intermediate_size=24,
        shared_expert_intermediate_size=24, norm_topk_prob=False, **SPARSE,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config)


END = {"eos_token": "</s>", "unk_token": "<unk>"}
END_AND_PAD = {**END, "pad_token": "<pad>"}
QWEN = {"eos_token": "</s>", "pad_token": "<pad>"}
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
LLAMA = (
    ["<unk>", "<s>", "</s>", *WORDS],
    {**END, "bos_token": "<s>", "pad_token": "<unk>"},
    "<s> $A",
)
FAMILIES = {
    "marian": Family(["</s>", "<unk>", *WORDS, "<pad>"], END_AND_PAD, "$A </s>", marian),
    "t5": Family(["<pad>", "</s>", "<unk>", *WORDS], END_AND_PAD, "$A </s>", t5),
    "bart": Family(FAIRSEQ, {**END_AND_PAD, "bos_token": "<s>"}, "<s> $A </s>", bart),
    "llama": Family(*LLAMA, llama),
    "gpt2": Family(
        [*WORDS, "<|end|>"],
        dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|end|>"),
        "$A",
        gpt2,
    ),
    "qwen2": Family(["<pad>", "</s>", *"Ġaw0123456789bcdefghijklm"], QWEN, "$A", qwen2, True),
}
SLIDING = Family(*LLAMA, mistral)
WITH_EXPERTS = {
    "mixtral": Family(*LLAMA, mixtral),
    "olmoe": Family(*LLAMA, olmoe),
    "qwen3_moe": Family(*LLAMA, qwen3_moe),
    "qwen2_moe": Family(*LLAMA, qwen2_moe),
}
SHARED_POSITIONS = Family(FAIRSEQ, {**END_AND_PAD, "bos_token": "<s>"}, "<s> $A </s>", m2m)


def save_family(family, folder, seed=0, **size):
    """Write a random model of `family` and its tokenizer to `folder`, and return the folder."""
    torch.manual_seed(seed)
    model = family.model(len(family.pieces), **size).eval()
    model.save_pretrained(folder)
    family.tokenizer().save_pretrained(folder)
    return folder
