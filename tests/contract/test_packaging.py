"""What is installed is what stands in the checkout, under the names that users import."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import ddn_cvx

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders_with_code() -> set[str]:
    """Every folder of the package, the catalogue under the name by which it is imported."""
    own = {path.parent.relative_to(ROOT) for path in (ROOT / "ddn_cvx").rglob("__init__.py")}
    catalogue = {
        Path("ddn_cvx", path.parent.relative_to(ROOT))
        for path in (ROOT / "problems").rglob("__init__.py")
    }
    return {".".join(folder.parts) for folder in own | catalogue}


def test_every_folder_is_packaged(metadata: dict[str, Any]) -> None:
    packages = metadata["tool"]["setuptools"]["packages"]
    assert packages == sorted(folders_with_code())


def test_no_module_stands_in_a_folder_that_is_not_a_package() -> None:
    for top in ("ddn_cvx", "problems"):
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_the_catalogue_is_linked_into_the_package(metadata: dict[str, Any]) -> None:
    link = ROOT / "ddn_cvx" / "problems"
    assert link.is_symlink()
    assert link.readlink() == Path("../problems")
    assert metadata["tool"]["setuptools"]["package-dir"] == {"ddn_cvx.problems": "problems"}


def test_the_catalogue_refuses_any_other_name() -> None:
    """A user's own `problems` package never is ours by accident."""
    spec = spec_from_file_location("problems", ROOT / "problems" / "__init__.py")
    assert isinstance(spec, ModuleSpec)
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"imported as `ddn_cvx\.problems`, not as `problems`"):
        spec.loader.exec_module(module_from_spec(spec))


def test_the_version_is_the_latest_of_the_changelog(metadata: dict[str, Any]) -> None:
    assert metadata["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ddn_cvx.__version__"}
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == ddn_cvx.__version__


def test_the_types_are_advertised(metadata: dict[str, Any]) -> None:
    assert (ROOT / "ddn_cvx" / "py.typed").exists()
    assert "py.typed" in metadata["tool"]["setuptools"]["package-data"]["ddn_cvx"]


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist_holds_every_module_and_imports(tmp_path: Path) -> None:
    """Without the checkout: its catalogue comes from the wheel, not through the symlink."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    expected = {
        Path(*package.split("."), path.name)
        for package in folders_with_code()
        for path in ROOT.joinpath(*package.split(".")).glob("*.py")
    }
    found = {path.relative_to(installed) for path in installed.rglob("*.py")}
    assert found == expected
    assert (installed / "ddn_cvx" / "py.typed").exists()
    code = (
        "import ddn_cvx, ddn_cvx.problems as catalogue; "
        "print(ddn_cvx.__version__, catalogue.lasso().name, catalogue.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": ""},
        timeout=120,
    )
    version, name, file = run.stdout.split()
    assert (version, name) == (ddn_cvx.__version__, "lasso")
    assert Path(file).is_relative_to(installed)
