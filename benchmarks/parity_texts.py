"""Texts that tokenizers are compared on; small tokenizers and encoders as their libraries leave them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from elm_jax.tasks import rendering, specs
from elm_jax.tokenizers import sentencepiece
from elm_jax.tokenizers.sentencepiece import Tokenizer

TEXTS = [
    "the dog ran to the gate because it had heard the car of its owner",
    "Ein großer Hund läuft über die Straße, nicht wahr?",
    "def f(x: int) -> int:\n    return x ** 2  # square",
    "日本語の文章です。犬が走った。 中文也可以。",
    "¿Qué? — “quoted” … 3.14 × 10⁵",
]
UNUSUAL = [
    *("", " ", "\n\t ", "  two  spaces  ", "\u00a0nbsp\u3000wide\u2009thin\u200bzero", "tab\tnew\r\nline"),
    *("<extra_id_0>", "a <extra_id_1> b", "a<extra_id_2>b", "<extra_id_999>", "<extra_id_0> <extra_id_1>"),
    *("<sep>", "a<sep>b", " <sep> ", "a newtok b", "anewtokb", "<img>x", "<pad>", "x </s> y", "<unk>"),
    *("🐕🐈‍⬛👩🏽‍🚀", "e\u0301 é ﬁ ①", "ﷺ", "שלום עולם", "ไทย ภาษา", "\ufffd\x00\x7f", "▁ ▁▁the", "ÅÅ"),
    *("A" * 300, "http://a.b/c?d=e&f=g#h", "if (a<b && c>d) { return a[i]; }", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢"),
]
FORMS = (
    *("pieces alone", "pieces", "few sentinels", "mT5", "added_tokens.json"),
    *("named special tokens, clean-up", "saved by transformers 5", "saved by transformers 5, tokens added"),
    *("ByT5", "ByT5, tokens added"),
)
ENCODERS = ("BERT", "BERT, default prompt", "T5, projection")
_ADDED = ["<sep>", "newtok"]


def corpus(count: int) -> list[str]:
    """Returns prompts of the embedded suite, code, CJK, emoji, added tokens, white space, and mixtures."""
    found = (rendering.examples(spec).examples[:40] for spec in specs.task_specs("mini-unseen"))
    suite = [row.input for rows in found for row in rows]
    rng = np.random.default_rng(0)
    parts = [*TEXTS, *UNUSUAL, *(word for text in TEXTS for word in text.split(" "))]
    spaces = ["", " ", "  ", "\n", "\t", "\u3000", "\u200b"]
    letters = ["".join(map(chr, rng.integers(32, 0x2FFF, rng.integers(1, 40)))) for _ in range(count // 5)]
    fixed = [*UNUSUAL, *TEXTS, *suite[: count // 5], *letters][:count]
    mixed = (
        "".join(f"{rng.choice(parts)}{rng.choice(spaces)}" for _ in range(rng.integers(1, 9)))
        for _ in range(count - len(fixed))
    )
    return [*fixed, *mixed]


def is_equal(text: str, ours: Tokenizer, theirs: Any) -> bool:
    """Says whether a text has the ids of a tokenizer of transformers', which come back as its text."""
    ids = ours.encode(text)
    cut = ids[: ids.index(ours.eos)] if ours.eos in ids else ids
    same_text = ours.decode(ids) == theirs.decode(cut, skip_special_tokens=True)
    return [*ids, ours.eos] == theirs(text).input_ids and same_text


def write(place: Path, form: str) -> Path:
    """Writes the directory of a tokenizer in one of `FORMS`, and returns it."""
    import transformers

    place.mkdir(parents=True)
    put(place / "config.json", {"model_type": "mt5" if form == "mT5" else "t5"})
    if form == "ByT5":
        put(place / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
        return place
    if form.startswith("ByT5"):
        _with_added(transformers.ByT5Tokenizer()).save_pretrained(place)
        return place
    size = sentencepiece.train(TEXTS * 4, place / "spiece.model", 200, extra_ids=0).size
    if form == "pieces alone":
        return place
    told: dict[str, Any] = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0 if form == "mT5" else 100}
    if form == "few sentinels":
        told["extra_ids"] = 16
    if form == "added_tokens.json":
        special = [*(f"<extra_id_{number}>" for number in range(100)), "<img>"]
        told |= {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        told["additional_special_tokens"] = special
        put(place / "special_tokens_map.json", {"additional_special_tokens": special})
        added = {token: size + 100 + number for number, token in enumerate([*_ADDED, "<img>"])}
        put(place / "added_tokens.json", added)
    if form.startswith("named"):
        special = [*(f"<extra_id_{number}>" for number in range(100)), "<img>"]
        told |= {"sep_token": "<sep>", "additional_special_tokens": special}
        told["clean_up_tokenization_spaces"] = True
    put(place / "tokenizer_config.json", told)
    if form.startswith("saved"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        for name in ("spiece.model", "tokenizer_config.json"):
            (place / name).unlink()
        (_with_added(tokenizer) if form.endswith("added") else tokenizer).save_pretrained(place)
    return place


def write_encoder(place: Path, what: str) -> Path:
    """Writes a small sentence encoder with sentence-transformers, and returns its directory."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(TEXTS * 4, trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    network = place.with_name(f"{place.name} network")
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=100,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(network)
    torch.manual_seed(0)
    count = pieces.get_vocab_size()
    if what.startswith("T5"):
        model: Any = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=count, d_model=32, num_heads=4, d_kv=8, d_ff=48, num_layers=2)
        )
        steps = [Pooling(32, "mean"), Dense(32, 24, bias=False, activation_function=torch.nn.Identity())]
    else:
        sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 48, "max_position_embeddings": 110}
        model = transformers.BertModel(transformers.BertConfig(vocab_size=count, **sizes))
        steps = [Pooling(32, "cls")]
    for value in model.parameters():
        value.data.add_(0.05 * torch.randn(value.shape))
    model.save_pretrained(network)
    prompts: dict[str, Any] = {}
    if "prompt" in what:
        prompts = {"prompts": {"query": "the car: "}, "default_prompt_name": "query"}
    modules: list[Any] = [Transformer(str(network)), *steps, Normalize()]
    SentenceTransformer(modules=modules, device="cpu", **prompts).save(str(place), create_model_card=False)
    return place


def put(file: Path, told: Any) -> None:
    file.write_text(json.dumps(told))


def _with_added(tokenizer: Any) -> Any:
    tokenizer.add_tokens(_ADDED)
    tokenizer.add_tokens(["<img>"], special_tokens=True)
    return tokenizer
