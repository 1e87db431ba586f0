"""Old recipes: what they bind under names of before reaches the new configuration, with a warning."""

import gin
import pytest

import elm_jax
from elm_jax.launch import old_recipes, recipes
from elm_jax.moved import OLD_PARAMETERS, TRAIN_CONFIG_SECTIONS
from elm_jax.training import config as configs
from elm_jax.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:elm_jax.runs:FutureWarning")  # of what the recipe imports

HEAD = "from __gin__ import dynamic_registration\n"
WHOLE = """
from elm_jax.runs import train

STEPS = 7

train.Budget:
  steps = %STEPS  # of each
  rate = 0.5
  options = {
    'width': 4,
  }

train.train:
  run = 'somewhere'
  tasks = ('dream',)
  budget = @train.Budget()
  as_ = 'dataset'
  mesh = {'expert': 2}
  seed = 3
"""


@pytest.fixture(autouse=True)
def _no_trace_of_gin():
    yield
    gin.clear_config()


@pytest.fixture
def config_of(tmp_path):
    """Returns the configuration that a recipe's text gives `train`."""

    def config_of(text, *bindings):
        file = tmp_path / "old.gin"
        file.write_text(HEAD + text)
        recipes.load([str(file)], bindings)
        return gin.get_bindings(train)["config"]

    return config_of


def test_a_whole_recipe_of_before_trains_as_it_did(config_of):
    with pytest.warns(
        FutureWarning, match=r"train\.Budget\.rate is now elm_jax\.ScheduleConfig\.learning_rate"
    ):
        found = configs.settings_of(config_of(WHOLE))
    wanted = {"steps": 7, "rate": 0.5, "options": {"width": 4}, "train_as": "dataset", "seed": 3}
    assert found == configs.settings_of(configs.TrainConfig()) | wanted | {"mesh": {"expert": 2}}
    assert gin.get_bindings(train)["run"] == "somewhere"


@pytest.mark.parametrize(
    ("importing", "name"), [("import elm_jax", "elm_jax"), ("from elm_jax.runs import courses", "courses")]
)
def test_a_recipe_that_includes_ours_and_changes_the_budget_does_so(config_of, importing, name):
    text = f"{importing}\ninclude 'gin/runs/train.gin'\nMIXTURE_OR_TASK_NAME = 'dream'\n"
    with pytest.warns(FutureWarning, match=r"LossConfig\.z_loss"):
        found = config_of(f"{text}{name}.Budget.z_loss = 0.25\n")
    assert (found.loss.z_loss, found.seed) == (0.25, 42)


def test_an_old_binding_of_the_command_line_is_read(config_of):
    text = "import elm_jax\ninclude 'gin/runs/train.gin'\nMIXTURE_OR_TASK_NAME = 'dream'\n"
    with pytest.warns(FutureWarning, match="the command line"):
        assert config_of(text, "elm_jax.Budget.kind = 'lora'").expert.kind == "lora"


def test_an_old_recipe_that_another_includes_is_read(config_of, tmp_path):
    inner = tmp_path / "inner.gin"
    inner.write_text(HEAD + WHOLE)
    with pytest.warns(FutureWarning, match="inner"):
        assert config_of(f"include '{inner}'\n").schedule.learning_rate == 0.5


def test_a_recipe_without_old_names_stays_as_it_is():
    text = HEAD + "import elm_jax\nelm_jax.train.tasks = 'x'\nmine.Budget.rate = 1\n"
    assert old_recipes.translate(text, "new.gin") == text


def test_every_old_name_has_a_new_one():
    for name, section in TRAIN_CONFIG_SECTIONS.items():
        assert section == f"elm_jax.{configs.SECTIONS[name].__name__}"
    fields = {path.rpartition(".")[::2] for path in configs.field_paths().values()}
    new = {OLD_PARAMETERS[old] for old in OLD_PARAMETERS if old.startswith("Budget.")}
    known = {
        f"{TRAIN_CONFIG_SECTIONS.get(section, 'elm_jax.TrainConfig')}.{name}" for section, name in fields
    }
    assert new <= known
    assert len(new) == 20


def test_the_old_name_of_the_configuration_takes_its_flat_fields():
    with pytest.warns(FutureWarning, match=r"elm_jax\.Budget is now elm_jax\.TrainConfig"):
        found = elm_jax.Budget(steps=3, rate=0.5, kind="lora")
    assert (found.schedule.steps, found.schedule.learning_rate, found.expert.kind) == (3, 0.5, "lora")
