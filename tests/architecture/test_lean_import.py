"""What is quick stays quick: the package, its settings and its families load no torch.

How long they take is measured by the benchmarks; here only what is loaded is looked at.
"""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "safetensors", "huggingface_hub", "matplotlib")


@pytest.mark.parametrize(
    "statement",
    [
        "import moesaic",
        "from moesaic import MoesaicError",
        "from moesaic.config.load import load_recipe",
        "from moesaic.models.table import expand_model, FAMILIES",
        "from moesaic.models.config_json import read_config",
        "from moesaic.memory.replay import replay",
    ],
)
def test_nothing_heavy_is_loaded_when_running(statement: str) -> None:
    look = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{statement}; {look}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_heavy_is_loaded_when_a_recipe_is_wrong() -> None:
    program = (
        "import sys\n"
        "from moesaic.config.load import load_recipe\n"
        "from moesaic.errors import ConfigError\n"
        "try:\n    load_recipe('absent.toml')\n"
        "except ConfigError as error:\n    print(error.text, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "no recipe at 'absent.toml' False"


def test_attribute_is_refused_when_the_package_has_none_of_that_name() -> None:
    import moesaic

    with pytest.raises(AttributeError, match="module 'moesaic' has no attribute 'LMM'"):
        _ = moesaic.LMM


def test_load_model_is_found_when_asked_of_the_package() -> None:
    import moesaic
    from moesaic.checkpoint.load import load_model

    assert moesaic.load_model is load_model
