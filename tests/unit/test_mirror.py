"""tests/unit mirrors diffpipe: a module x/y.py has its tests in x/test_y.py, with few and named exceptions."""

from __future__ import annotations

from pathlib import Path

import diffpipe

HOME = Path(diffpipe.__file__).parent
UNIT = HOME.parent / "tests" / "unit"

# Modules without a test file of their own, and the reason. A folder stands for the modules in it.
WITHOUT_TESTS = {
    "cli": "each command runs in tests/integration; those with words of their own have tests in tests/unit/cli",
    "train/callbacks.py": "methods that do nothing until they are overridden; tests/unit/test_api.py does",
    "train/config.py": "fields with bounds that pydantic checks; tests/unit/config reads them all",
}

# Test files of one property over many modules, or of something that is no module.
OF_THE_WHOLE = {
    "cli/test_json.py",
    "cli/test_start.py",
    "config/test_readme.py",
    "data/decode/test_bad_images.py",
    "data/index/test_malformed_tars.py",
    "data/loader/test_bad_samples.py",
    "data/loader/test_stream_properties.py",
    "data/remote/test_remote_shards.py",
    "diffusion/test_exact_likelihood.py",
    "diffusion/test_exact_sampling.py",
    "diffusion/test_exact_training.py",
    "nn/test_declared_blocks.py",
    "nn/test_nonsquare.py",
    "test_all_stages.py",
    "test_import_rules.py",
    "test_mirror.py",
}

MODULES = {path.relative_to(HOME) for path in HOME.rglob("*.py") if path.name != "__init__.py"}
TESTS = {path.relative_to(UNIT) for path in UNIT.rglob("test_*.py")}


def mirror_of(module: Path) -> Path:
    return module.with_name(f"test_{module.name}")


def exempt(module: Path) -> bool:
    places = {place.as_posix() for place in (module, *module.parents)}
    return not places.isdisjoint(WITHOUT_TESTS)


def test_every_module_has_a_test_file() -> None:
    missing = [f"tests/unit/{mirror_of(m)}" for m in MODULES if not exempt(m) and mirror_of(m) not in TESTS]
    assert sorted(missing) == []


def test_every_test_file_has_its_module() -> None:
    mirrored = {mirror_of(module) for module in MODULES}
    assert {path.as_posix() for path in TESTS - mirrored} == OF_THE_WHOLE


def test_every_exception_exists_and_needs_to_be_one() -> None:
    for name in WITHOUT_TESTS:
        assert (HOME / name).exists(), name
        assert mirror_of(Path(name)) not in TESTS, name
