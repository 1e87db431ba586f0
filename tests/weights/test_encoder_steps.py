"""Steps of a sentence encoder: what `modules.json` lists, old and new, and what it may not."""

import json

import pytest
from etils import epath

from elm_jax.errors import UserError
from elm_jax.weights import encoder_steps


@pytest.fixture
def place(write_encoder, tmp_path):
    write_encoder(tmp_path)
    return epath.Path(tmp_path)


def put(file, value):
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def listed(place, *kinds):
    found = [(kind, f"{at}_{kind}" if at else "") for at, kind in enumerate(kinds)]
    put(
        place / "modules.json",
        [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in found],
    )
    put(place / "1_Pooling" / "config.json", {"pooling_mode": "mean"})


def test_the_steps_are_those_listed(place):
    assert encoder_steps.read_steps(place, None) == encoder_steps.EncoderSteps(place, "mean", (), True)
    listed(place, "Transformer", "Pooling", "Dense", "Dense")
    projections = (place / "2_Dense", place / "3_Dense")
    assert encoder_steps.read_steps(place, None) == encoder_steps.EncoderSteps(
        place, "mean", projections, False
    )


@pytest.mark.parametrize(
    ("told", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_pooling_is_read_as_every_version_wrote_it(place, told, pooling):
    put(place / "1_Pooling" / "config.json", told)
    assert encoder_steps.read_steps(place, None).pooling == pooling


@pytest.mark.parametrize(
    "told",
    [
        {"pooling_mode": "lasttoken"},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode": 3},
        {},
    ],
)
def test_pooling_that_is_not_ours_is_refused(place, told):
    put(place / "1_Pooling" / "config.json", told)
    with pytest.raises(UserError, match="one pooling of mean, cls, max"):
        encoder_steps.read_steps(place, None)


@pytest.mark.parametrize(
    "kinds",
    [
        ("Pooling", "Transformer"),
        ("Transformer",),
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer", "Pooling", "LSTM"),
        (),
    ],
)
def test_steps_that_are_unknown_or_out_of_order_are_refused(place, kinds):
    listed(place, *kinds)
    with pytest.raises(UserError, match="one Transformer, one Pooling"):
        encoder_steps.read_steps(place, None)


@pytest.mark.parametrize("told", [{}, [1], [{"type": "Transformer"}]])
def test_a_list_of_something_else_is_refused(place, told):
    put(place / "modules.json", told)
    with pytest.raises(UserError, match="steps with type and path"):
        encoder_steps.read_steps(place, None)


def test_a_plain_checkpoint_pools_as_it_is_told(tmp_path):
    place = epath.Path(tmp_path)
    assert encoder_steps.read_steps(place, "pooler") == encoder_steps.EncoderSteps(place, "pooler", (), False)
    with pytest.raises(UserError, match=r"modules\.json .*mean, cls, max"):
        encoder_steps.read_steps(place, None)
    with pytest.raises(UserError, match="No pooling named 'meen'"):
        encoder_steps.read_steps(place, "meen")


def test_pooling_is_told_once(place):
    with pytest.raises(UserError, match="got 'cls'"):
        encoder_steps.read_steps(place, "cls")


def test_what_follows_a_projection_is_known_or_refused(place):
    put(place / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
    assert encoder_steps.read_activation(place / "2_Dense") == "identity"
    for told, named in (
        ({"activation_function": "evil.module.Tanh"}, "got 'evil.module.Tanh'"),
        ({"activation_function": "torch.nn.modules.activation.SiLU"}, "activation.SiLU'"),
        ({"use_residual": True}, "'use_residual' .* to be False"),
        ({"module_input_name": "token_embeddings"}, "'module_input_name' .* to be 'sentence_embedding'"),
    ):
        put(place / "2_Dense" / "config.json", told)
        with pytest.raises(UserError, match=named):
            encoder_steps.read_activation(place / "2_Dense")


def test_a_file_that_is_absent_or_broken_is_named(place):
    (place / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"Expected JSON in .*1_Pooling.config.json'"):
        encoder_steps.read_steps(place, None)
    (place / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"Expected 'config.json' .*1_Pooling', got none"):
        encoder_steps.read_steps(place, None)
    put(place / "1_Pooling" / "config.json", [])
    with pytest.raises(UserError, match="got a list"):
        encoder_steps.read_steps(place, None)


def test_the_default_prompt_stands_before_texts_and_the_others_do_not(place):
    prompts = {"query": "find: ", "document": "keep: "}
    put(place / encoder_steps.MODEL_FILE, {"prompts": prompts, "default_prompt_name": None})
    assert encoder_steps.read_steps(place, None).prompt == ""
    put(place / encoder_steps.MODEL_FILE, {"prompts": prompts, "default_prompt_name": "query"})
    assert encoder_steps.read_steps(place, None).prompt == "find: "
    for wrong in ({"prompts": prompts, "default_prompt_name": "passage"}, {"default_prompt_name": "query"}):
        put(place / encoder_steps.MODEL_FILE, wrong)
        with pytest.raises(UserError, match="to have a text for its default_prompt_name"):
            encoder_steps.read_steps(place, None)


def test_a_prompt_that_is_not_pooled_is_refused(place):
    put(place / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    assert encoder_steps.read_steps(place, None).pooling == "mean"
    put(place / encoder_steps.MODEL_FILE, {"prompts": {"query": "find: "}, "default_prompt_name": "query"})
    with pytest.raises(UserError, match="include_prompt false"):
        encoder_steps.read_steps(place, None)


@pytest.mark.parametrize(
    ("file", "told", "named"),
    [
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "'model_type'"),
        ("config_sentence_transformers.json", {"rotation": 3}, "'rotation'"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "sharpness": 2.0}, "'sharpness'"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "'module_input_name'"),
    ],
)
def test_what_a_step_s_file_says_more_is_refused_by_name(place, file, told, named):
    put(place / file, told)
    with pytest.raises(UserError, match=named):
        encoder_steps.read_steps(place, None)


def test_a_step_of_a_repository_s_own_code_is_refused(place):
    put(place / "modules.json", [{"type": "custom.Transformer", "path": ""}])
    with pytest.raises(UserError, match=r"to be classes of sentence_transformers, got 'custom\.Transformer'"):
        encoder_steps.read_steps(place, None)
