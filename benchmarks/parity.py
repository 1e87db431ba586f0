"""How near everything that is read and written is to the library that it comes from, in one table.

Run     python -m benchmarks.parity [--json FILE] [--texts 2000]
        ADAPTERS_PYTHON=PYTHON names a Python that has the adapters library, which wants older transformers
Takes   three minutes on two cores; wants the extra parity
Expect  differences near those of rounding alone, and all ids of all texts equal

Models are small, of random weights that every logit depends on. `logits` and `scores` (nats, of answer
choices) are the largest difference between their computation on their files and ours on the same files; `out`
is the largest difference of their logits on the files that we write. `their own` is how far their float32 is
from their float64: what rounding alone does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from benchmarks import parity_texts
from elm_jax import score_choices
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.expert_kinds import KINDS
from elm_jax.models.t5 import T5
from elm_jax.weights import adapters, fold, huggingface, load, peft
from elm_jax.weights.base_model import Base

SHAPE = {"vocab_size": 400, "d_model": 64, "d_kv": 12, "d_ff": 96, "num_heads": 4, "num_layers": 3}
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "T5 1.0": ("T5", {}),
    "T5 1.1, LM-adapted, T0, Flan-T5": ("T5", {"feed_forward_proj": "gated-gelu"}),
    "mT5": ("MT5", {}),
    "ByT5": ("T5", {"feed_forward_proj": "gated-gelu", "num_layers": 6, "num_decoder_layers": 2}),
    "UL2, Flan-UL2": ("T5", {"feed_forward_proj": "gated-silu"}),
    "umT5": ("UMT5", {}),
    "Pile-T5": ("UMT5", {"eos_token_id": 2, "vocab_size": 320}),
}
TIED = ("T5 1.0",)
LORAS: Mapping[str, dict[str, Any]] = {
    "LoRA": {"target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"], "lora_alpha": 16},
    "LoRA, rslora, patterns": {
        "target_modules": ["q", "v", "wo"],
        "use_rslora": True,
        "rank_pattern": {"wo": 5},
        "alpha_pattern": {"q": 3},
    },
    "LoRA, two layers": {"target_modules": ["q", "v"], "layers_to_transform": [0, 2]},
    **{
        f"LoRA, {start} start": {"target_modules": ["q", "v"], "init_lora_weights": start}
        for start in ("gaussian", "orthogonal")
    },
}
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(3, 320, (8, 14)).astype(np.int32)
PROMPTS[::2, 9:] = 0
CHOICES = RNG.integers(3, 320, (8, 4, 6)).astype(np.int32)
CHOICES[:, 1, 4:] = 0
ADAPTERS = """
import sys
import adapters, numpy as np, torch, transformers
home, out = sys.argv[1:]
model = transformers.T5ForConditionalGeneration.from_pretrained(f"{home}/base")
adapters.init(model)
model.set_active_adapters(model.load_adapter(home, use_safetensors=True))
given = np.load(f"{out}/given.npz")
prompts = torch.tensor(given["prompts"])
told = {"input_ids": prompts, "attention_mask": (prompts > 0).long()}
with torch.no_grad():
    rows = [
        model.eval()(**told, labels=torch.tensor(choice)).logits.numpy()
        for choice in np.moveaxis(given["choices"], 1, 0).astype(np.int64)
    ]
np.save(f"{out}/logits.npy", np.stack(rows, 1))
"""


@dataclass(frozen=True)
class Row:
    """What was compared, with which library, and the largest differences."""

    what: str
    library: str
    largest: float | None = None  # of the logits themselves
    logits: float | None = None
    scores: float | None = None
    out: float | None = None
    rounding: float | None = None  # of their own logits, float32 beside float64
    equal: str | None = None  # of texts


def theirs(model: Any) -> np.ndarray:
    """Returns a model's logits of every choice, [B, C, T, V]."""
    import torch

    prompts = torch.tensor(PROMPTS)
    found = []
    for choice in range(CHOICES.shape[1]):
        labels = torch.tensor(CHOICES[:, choice].astype(np.int64))
        with torch.no_grad():
            out = model.eval()(input_ids=prompts, attention_mask=prompts > 0, labels=labels)
        found.append(out.logits.numpy())
    return np.stack(found, axis=1)


def scores_of(logits: np.ndarray) -> np.ndarray:
    """Returns the summed log-probabilities of the choices' tokens."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return (np.take_along_axis(wide, CHOICES[..., None], -1)[..., 0] * (CHOICES != 0)).sum(-1)


def ours(base: Base, expert: Any = None) -> np.ndarray:
    network = jax.jit(lambda params, tree: T5(base.config).apply({"params": params}, PROMPTS, CHOICES, tree))
    return np.asarray(network(base.params, expert))


def compared(what: str, library: str, model: Any, base: Base, expert: Any, back: Any) -> Row:
    """Returns the row of a model, or of an expert beside its base; `back` is their reading of our files."""
    real = (CHOICES != 0)[..., None]
    wanted, again = theirs(model), theirs(back)
    found = score_choices(base, PROMPTS, CHOICES, expert)
    return Row(
        what,
        library,
        largest=float(np.abs(wanted * real).max()),
        logits=float(np.abs((ours(base, expert) - wanted) * real).max()),
        scores=float(np.abs(found - scores_of(wanted)).max()),
        out=float(np.abs((again - wanted) * real).max()),
        rounding=float(np.abs((theirs(model.double()) - wanted) * real).max()),
    )


def random_model(family: str) -> Any:
    """Returns a model of transformers' with random weights, its head apart where its family's is."""
    import torch
    import transformers

    kind, changes = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, "decoder_start_token_id": 0, **changes})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As the library draws them; norms and positions, which start alike, apart.
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
        if family not in TIED:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) * 0.2)
    return model.eval()


def families(place: Path) -> Iterator[Row]:
    """Every family of transformers."""
    import transformers

    for number, family in enumerate(FAMILIES):
        model, home = random_model(family), place / f"family{number}"
        model.save_pretrained(home / "theirs")
        base = load.load_base(home / "theirs")
        huggingface.save(home / "ours", base, like=json.loads((home / "theirs" / "config.json").read_text()))
        back = transformers.AutoModelForSeq2SeqLM.from_pretrained(home / "ours")
        yield compared(family, "transformers", model, base, None, back)


def adapters_of_peft(place: Path) -> Iterator[Row]:
    """Every kind of adapter of PEFT's, there and back."""
    import peft as library
    import torch
    import transformers

    random_model("T5 1.1, LM-adapted, T0, Flan-T5").save_pretrained(place / "base")
    base = load.load_base(place / "base")

    def fresh() -> Any:
        return transformers.AutoModelForSeq2SeqLM.from_pretrained(place / "base")

    kinds: dict[str, Any] = {what: library.LoraConfig(r=4, **how) for what, how in LORAS.items()}
    kinds["DoRA, rslora"] = library.LoraConfig(
        r=4, use_dora=True, use_rslora=True, target_modules=["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
    )
    kinds["VeRA"] = library.VeraConfig(r=16, target_modules=["q", "v", "wo"])
    kinds["prompt tuning"] = library.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20)
    kinds["(IA)³"] = library.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    for number, (what, how) in enumerate(kinds.items()):
        torch.manual_seed(number)
        trained = library.get_peft_model(fresh(), how)
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if any(part in name for part in ("lora_", "ia3_", "vera_lambda", "prompt_encoder")):
                    parameter.add_(torch.randn(parameter.shape) * 0.03)
        home = place / f"adapter{number}"
        trained.save_pretrained(str(home / "theirs"))
        kind, tree = peft.load(home / "theirs", base.config)
        peft.save(home / "ours", kind, tree)
        back = library.PeftModel.from_pretrained(fresh(), home / "ours")
        yield compared(what, "peft", trained, base, tree, back)


def experts_out(place: Path) -> Iterator[Row]:
    """Experts folded into whole models, and a bottleneck in the layout of the adapters library."""
    import transformers

    base = load.load_base(place / "base")
    for kind in KINDS:
        tree = ex.init_expert(kind, jax.random.key(0), base.params)
        moved = jax.tree.map(lambda leaf: leaf + 0.05 * RNG.normal(size=leaf.shape), dict(tree))
        tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), moved)
        home = place / f"out {kind}"
        if kind == "bottleneck":
            yield _by_adapters(place, home, base, tree)
            continue
        if kind == "prompt":  # what no model without an adapter computes
            continue
        whole = fold.fold_expert(base, kind, tree)
        huggingface.save(home, whole)
        found = theirs(transformers.AutoModelForSeq2SeqLM.from_pretrained(home))
        params, beside = ex.split_base_and_expert(kind, base.params, tree)
        wanted = ours(Base(base.config, params, ""), beside)
        yield Row(f"{kind} expert, folded in", "transformers", out=float(np.abs(found - wanted).max()))


def _by_adapters(place: Path, home: Path, base: Base, tree: Any) -> Row:
    python = os.environ.get("ADAPTERS_PYTHON") or (sys.executable if find_spec("adapters") else None)
    what = "bottleneck expert"
    if python is None:
        return Row(f"{what} (not installed)", "adapters")
    normed = fold.fold_expert(base, "bottleneck", paths.unflatten(adapters.select_norms(tree)))
    huggingface.save(home / "base", normed)
    adapters.save(home, tree)
    np.savez(place / "given.npz", prompts=PROMPTS, choices=CHOICES)
    command = [python, "-c", ADAPTERS, str(home), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    return Row(what, "adapters", out=float(np.abs(np.load(place / "logits.npy") - ours(base, tree)).max()))


def tokenizers(place: Path, count: int) -> Iterator[Row]:
    """Every form of tokenizer: texts whose ids, and whose texts again, are those of transformers."""
    import transformers

    from elm_jax.tokenizers import huggingface as hf_tokenizer

    texts = parity_texts.corpus(count)
    for form in parity_texts.FORMS:
        home = parity_texts.write(place / f"tokenizer {form}", form)
        told, found = transformers.AutoTokenizer.from_pretrained(home), hf_tokenizer.load(home)
        equal = sum(parity_texts.is_equal(text, found, told) for text in texts)
        yield Row(f"tokenizer: {form}", "transformers", equal=f"{equal:,} of {len(texts):,}")


def encoders(place: Path) -> Iterator[Row]:
    """Sentence encoders: the largest difference of any number of a vector."""
    from sentence_transformers import SentenceTransformer

    from elm_jax import load_embedder

    texts = [text for text in parity_texts.corpus(200) if text.strip()]
    for what in parity_texts.ENCODERS:
        home = parity_texts.write_encoder(place / f"encoder {what}", what)
        wanted = SentenceTransformer(str(home), device="cpu").encode(texts, show_progress_bar=False)
        apart = float(np.abs(load_embedder(home)(texts) - wanted).max())
        yield Row(f"sentence encoder: {what}", "sentence-transformers", logits=apart)


def table(rows: list[Row]) -> str:
    """Returns the rows as Markdown."""
    heads = (
        "what",
        "library",
        "largest logit",
        "logits or vectors",
        "scores, nats",
        "out",
        "their own",
        "texts equal",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        largest = "" if row.largest is None else f"{row.largest:.1f}"
        numbers = [
            "" if value is None else f"{value:.1e}"
            for value in (row.logits, row.scores, row.out, row.rounding)
        ]
        lines.append(f"| {' | '.join([row.what, row.library, largest, *numbers, row.equal or ''])} |")
    return "\n".join(lines)


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--texts", type=int, default=2000, help="that every tokenizer reads")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        parts: list[Callable[[], Iterator[Row]]] = [
            lambda: families(place),
            lambda: adapters_of_peft(place),
            lambda: experts_out(place),
            lambda: tokenizers(place, options.texts),
            lambda: encoders(place),
        ]
        for part in parts:
            rows += part()
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
