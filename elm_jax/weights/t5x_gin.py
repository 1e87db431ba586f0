"""The gin file beside a T5X checkpoint: what it says of the network, read without T5X and run by nothing.

T5X writes `config.gin` into a run's directory, beside `checkpoint_1000` and so on. A checkpoint's names and
shapes tell most of the network; the activations of the feed-forward and the dropout are told here alone.
"""

from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.weights.fields import FieldTable

GIN_FILES = ("config.gin", "operative_config.gin")
CLASS, MODEL = "T5Config", "EncoderDecoderModel"
T5X_GIN_FIELDS = FieldTable(
    format="T5X's T5Config",
    used=frozenset(
        {
            *("vocab_size", "emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers"),
            *("head_dim", "mlp_dim", "mlp_activations", "dropout_rate", "logits_via_embedding"),
        }
    ),
    # Softmax is in float32 here whatever `float32_attention_logits` says; how layers are scanned, the
    # checkpoint's names tell.
    unused=frozenset({"dtype", "float32_attention_logits", "scan_layers", "remat_policy", "param_scan_axis"}),
    # Of the model: the network that `T5Config` describes, and no other library's.
    neutral={"module": ("Transformer",)},
    remedies={"module": "the network has to be T5X's own `network.Transformer`, not another library's"},
)
OUR_MODULE = "make_module"  # of elm_jax.t5x.checkpoints: it reads the network's shape from the checkpoint
_ACTIVATION_ALIASES = {"swish": "silu"}  # Flax has one activation under two names


def read_network_fields(checkpoint: epath.Path, *, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Returns what the gin file beside a checkpoint binds of the network, by our fields' names.

    Args:
        checkpoint: The directory of the checkpoint, or the one that holds it.
        ignore: Fields that are not looked at.

    Returns:
        The bindings of `T5Config`; none where there is no such file, or it binds none.

    Raises:
        UserError: If the file does not parse, or binds a field that is not understood.
    """
    file = _find_file(checkpoint)
    if file is None:
        return {}
    bound = _read_bindings(file)[0]
    raw = {name: value for name, value in bound.items() if name not in ignore and value != OUR_MODULE}
    T5X_GIN_FIELDS.require_known_fields(raw, where=str(file))
    found = {name: raw[name] for name in sorted(T5X_GIN_FIELDS.used & raw.keys()) if raw[name] is not None}
    if "mlp_activations" in found:
        names = found["mlp_activations"]
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"Expected 'mlp_activations' in {str(file)!r} to be names of activations, got {names!r:.80}. "
                "Fix: correct the file."
            )
        found["mlp_activations"] = tuple(_ACTIVATION_ALIASES.get(name, name) for name in names)
    return found


def read_macros(checkpoint: epath.Path) -> dict[str, Any]:
    """Returns the macros that the gin file beside a checkpoint defines; none where there is no such file."""
    file = _find_file(checkpoint)
    return {} if file is None else _read_bindings(file)[1]


def _find_file(checkpoint: epath.Path) -> epath.Path | None:
    inside = checkpoint.name in ("state", "default")  # of `checkpoint_1000`, where newer versions keep arrays
    step = checkpoint.parent if inside else checkpoint
    for directory in (step, step.parent):
        for name in GIN_FILES:
            if (directory / name).exists():
                return directory / name
    return None


def _read_bindings(file: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the bindings of the network's class and the model's `module`, and all macros, by name."""
    from gin import config_parser

    class Delegate(config_parser.ParserDelegate):
        """Leaves references unresolved, so that nothing is imported."""

        def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
            return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

        def macro(self, macro_name: str) -> Any:
            return f"%{macro_name}"

    content = storage.read_content(file, what="A gin file", most=storage.MOST_TEXT)
    try:
        statements = [*config_parser.ConfigParser(content.decode(), Delegate())]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"Expected {str(file)!r} to be a gin file, got one that does not parse "
            f"({(str(error).splitlines() or [''])[0]:.100}). Fix: copy it again, or move it away."
        ) from None
    macros: dict[str, Any] = {}
    bound: dict[str, Any] = {}
    for statement in statements:
        if not isinstance(statement, config_parser.BindingStatement):
            continue
        if not statement.arg_name:
            macros[statement.selector] = statement.value
        elif (name := statement.selector.rpartition(".")[2]) == CLASS or (
            (name, statement.arg_name) == (MODEL, "module")
        ):
            bound[statement.arg_name] = statement.value
    raw = {name: _resolve(value, macros, file) for name, value in bound.items()}
    if "module" in raw:  # @network.Transformer()
        raw["module"] = str(raw["module"]).strip("@()").rpartition(".")[2]
    return raw, macros


def _resolve(value: Any, macros: Mapping[str, Any], file: epath.Path) -> Any:
    seen: set[str] = set()
    while isinstance(value, str) and value.startswith("%"):
        if value in seen or value[1:] not in macros:
            raise UserError(
                f"Expected {str(file)!r} to define the macro {value!r}, got none. Fix: put T5X's own "
                "config.gin, which defines them all, beside the checkpoint."
            )
        seen.add(value)
        value = macros[value[1:]]
    return value
