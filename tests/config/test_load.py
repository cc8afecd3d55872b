"""Recipes read, overridden, checked and written: every mistake names its key and what is accepted."""

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from moesaic.config.load import check_section, load_recipe, save_recipe
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError
from moesaic.models.table import expand_model
from tests.config.recipe import recipe_tree, write_recipe


def _refusal(**changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_section(RunConfig, recipe_tree(**changes), "recipe.toml")
    return caught.value


def test_recipe_is_loaded_when_nothing_is_wrong(tmp_path: Path) -> None:
    config = load_recipe(write_recipe(tmp_path))
    assert config.model.num_experts == 4
    assert config.train.steps == 100
    assert config.optim.kind == "adamw"


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"optim": {"learning_rat": 1}}, "optim.learning_rat", "did you mean 'learning_rate'?"),
        ({"model": {"num_expert": 2}}, "model.num_expert", "did you mean 'num_experts'?"),
        ({"modle": {"vocab_size": 1}}, "modle", "did you mean 'model'?"),
        ({"checkpoint": {"xyz": 1}}, "checkpoint.xyz", "accepted: asynchronous, every, keep_best, keep_last"),
        (
            {"model": {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "facto": 1}}},
            "model.rope_scaling.facto",
            "did you mean 'factor'?",
        ),
        (
            {"data": {"source": "", "mixture": [{"source": "a", "wieght": 1}]}},
            "data.mixture.0.wieght",
            "did you mean 'weight'?",
        ),
    ],
)
def test_key_is_refused_with_the_nearest_name_when_misspelt(changes: dict[str, Any], key: str, hint: str) -> None:
    error = _refusal(**changes)
    assert error.text == f"recipe.toml: unknown key '{key}'"
    assert error.hint == hint


def test_unknown_key_is_told_first_when_it_explains_a_missing_one() -> None:
    tree = recipe_tree()
    tree["train"]["step"] = tree["train"].pop("steps")
    with pytest.raises(ConfigError, match=r"unknown key 'train\.step'") as caught:
        check_section(RunConfig, tree, "recipe.toml")
    assert caught.value.hint == "did you mean 'steps'? (1 more after this one)"


def test_key_is_named_when_missing() -> None:
    tree = recipe_tree()
    del tree["train"]["steps"]
    with pytest.raises(ConfigError, match=r"recipe.toml: 'train\.steps' is missing") as caught:
        check_section(RunConfig, tree, "recipe.toml")
    assert caught.value.hint == "set it in the recipe, or with --set train.steps=..."


@pytest.mark.parametrize(
    ("changes", "text", "hint"),
    [
        ({"train": {"steps": "many"}}, "'train.steps' is 'many'", "input should be a valid integer"),
        ({"train": {"steps": 0}}, "'train.steps' is 0", "input should be greater than 0"),
        ({"train": {"precision": "float8"}}, "'train.precision' is 'float8'", "input should be 'bfloat16' or"),
        ({"optim": {"learning_rate": float("inf")}}, "'optim.learning_rate' is inf", "input should be a finite"),
        ({"data": {"held_out": 1.0}}, "'data.held_out' is 1.0", "input should be less than 1"),
        ({"model": {"eos_token_id": "end"}}, "'model.eos_token_id' is 'end'", "input should be a valid integer"),
        ({"train": {"out": ["x" * 90]}}, "'train.out' is ['" + "x" * 55 + "...", "input should be a valid string"),
    ],
)
def test_value_is_refused_when_it_is_of_wrong_type_or_range(changes: dict[str, Any], text: str, hint: str) -> None:
    error = _refusal(**changes)
    assert error.text == f"recipe.toml: {text}"
    assert error.hint.startswith(hint)


def test_section_is_refused_when_it_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("model = 3\n")
    with pytest.raises(ConfigError, match="'model' is 3"):
        load_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.steps=7", "train", "steps", 7),
        ("optim.betas=[0.5, 0.75]", "optim", "betas", (0.5, 0.75)),
        ("train.out=runs/x=y", "train", "out", "runs/x=y"),
        (' train.out = "spaced" ', "train", "out", "spaced"),
        ("checkpoint.keep_best=false", "checkpoint", "keep_best", False),
        ("model.rope_scaling={rope_type='linear', factor=2.0}", "model", "rope_theta", 10_000.0),
    ],
)
def test_override_wins_over_the_recipe_when_given(
    override: str, section: str, key: str, value: object, tmp_path: Path
) -> None:
    config = load_recipe(write_recipe(tmp_path), [override])
    assert getattr(getattr(config, section), key) == value


def test_last_override_wins_when_a_key_is_set_twice(tmp_path: Path) -> None:
    assert load_recipe(write_recipe(tmp_path), ["train.steps=7", "train.steps=9"]).train.steps == 9


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.=3", ".steps=3", ""])
def test_override_is_refused_when_it_has_no_key_and_value(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read override") as caught:
        load_recipe(write_recipe(tmp_path), [override])
    assert caught.value.hint == "write --set section.key=value"


def test_override_is_refused_when_it_goes_into_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"override 'train\.steps\.x=1': 'steps' is a value, not a section"):
        load_recipe(write_recipe(tmp_path), ["train.steps.x=1"])


def test_preset_is_expanded_when_an_override_names_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\nsource = "a"\n[train]\nout = "o"\nsteps = 4\nbatch_size = 2\n')

    def expand(tree: dict[str, Any]) -> dict[str, Any]:
        return {**tree, "model": expand_model(tree["model"])}

    config = load_recipe(path, ["model.preset=tiny", "model.num_experts=8"], expand)
    assert (config.model.num_experts, config.model.qk_norm) == (8, "head")


def test_recipe_is_refused_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe at '.*absent\.toml'") as caught:
        load_recipe(tmp_path / "absent.toml")
    assert caught.value.hint == "recipes/tiny.toml is one to start from"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["a folder", "no text"])
def test_recipe_is_refused_when_it_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read recipe") as caught:
        load_recipe(path)
    assert caught.value.hint == "give a TOML text file"


def test_recipe_is_refused_with_its_line_when_it_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = \n")
    with pytest.raises(ConfigError, match=r"is no valid TOML: .*line 2"):
        load_recipe(tmp_path / "recipe.toml")


@given(
    learning_rate=st.floats(1e-9, 10),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    clip_norm=st.none() | st.floats(0.1, 10),
    eos=st.none() | st.integers(0, 299) | st.lists(st.integers(0, 299), min_size=1),
    windows=st.none() | st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=2, max_size=2),
    out=st.text(st.characters(codec="utf-8"), min_size=1),
    keep_best=st.booleans(),
)
def test_config_comes_back_the_same_when_saved_and_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    learning_rate: float,
    betas: tuple[float, float],
    clip_norm: float | None,
    eos: int | list[int] | None,
    windows: list[str] | None,
    out: str,
    keep_best: bool,
) -> None:
    tree = recipe_tree(
        optim={"learning_rate": learning_rate, "betas": betas, "clip_norm": clip_norm},
        model={"eos_token_id": eos, "layer_types": windows, "sliding_window": 5},
        train={"out": out},
        checkpoint={"keep_best": keep_best},
    )
    config = check_section(RunConfig, tree, "tree")
    path = tmp_path_factory.mktemp("recipe") / "config.toml"
    save_recipe(config, path)
    assert load_recipe(path) == config
    assert config.changes_from(load_recipe(path)) == {}


def _optional_fields(kind: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += _optional_fields(annotation, f"{prefix}{name}.")
        elif type(None) in get_args(annotation):
            found.append(f"{prefix}{name}")
    return found


@pytest.mark.parametrize("key", [key for key in _optional_fields(RunConfig) if key != "data.source"])
def test_field_stays_none_when_saved_and_loaded(key: str, tmp_path: Path) -> None:
    section, field = key.split(".")
    config = check_section(RunConfig, recipe_tree(**{section: {field: None}}), "tree")
    save_recipe(config, tmp_path / "config.toml")
    assert getattr(getattr(load_recipe(tmp_path / "config.toml"), section), field) is None


def test_recipe_is_read_when_an_editor_began_it_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_recipe(path).train.steps == 100


def test_recipe_before_stays_whole_when_the_next_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = load_recipe(write_recipe(tmp_path)), tmp_path / "config.toml"
    save_recipe(config, path)
    before = path.read_bytes()

    def write_half(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text.encode()[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        save_recipe(config, path)
    assert path.read_bytes() == before


def test_key_is_refused_with_its_section_when_written_without(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'batch_size'") as raised:
        load_recipe(write_recipe(tmp_path), ["batch_size=4"])
    assert raised.value.hint == "did you mean 'train.batch_size'?"
