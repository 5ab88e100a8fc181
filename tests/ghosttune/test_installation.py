"""What is built, what it needs, and the files that say so: the wheel, extras, completion, Dockerfile, citation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ghosttune.run.versions import DEVELOPERS, EXTRAS, packages
from ghosttune.version import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    program = "import sys, hatchling.build as build; build.build_wheel(sys.argv[1]); build.build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, folder], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def sources() -> set[str]:
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / "src").as_posix() for path in files if ".egg-info" not in str(path)}


def test_the_wheel_holds_every_file_of_the_sources_and_no_other(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"ghosttune-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        same = all(opened.read(name) == (ROOT / "src" / name).read_bytes() for name in names)
    assert names == sources() and same
    shipped = "presets/tools.yaml", "profiles/quickstart@2.yaml", "inference/page.html", "reports/style.css"
    assert {f"ghosttune/{name}" for name in (*shipped, "data/builtin/rows.jsonl")} <= names


def test_the_sdist_holds_what_a_wheel_is_built_of(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        names = {member.name.partition("/")[2] for member in opened.getmembers()}
    beside = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "pyproject.toml"}
    assert names == {f"src/{name}" for name in sources()} | beside | {"PKG-INFO", ".gitignore"}


def test_every_extra_is_described_where_it_is_named():
    extras = PROJECT["optional-dependencies"]
    assert {*EXTRAS, *DEVELOPERS} == extras.keys()
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert {extra: use for extra, use, _ in rows} == EXTRAS
    for extra, _, said in rows:
        assert said.split(", ") == [Requirement(text).name for text in extras[extra]]


def test_what_messages_tell_to_install_is_an_extra():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"pip install 'ghosttune\[(\w+)\]'", source + pages))
    assert {"serve", "export", "suite"} <= named <= EXTRAS.keys()


def test_packages_of_an_extra_are_found_by_either_spelling():
    for written in ("comet_ml", "comet-ml"):
        needed = ["torch>=2", f"comet-ml>=3; extra == '{written}'", "pytest>=9; extra == 'dev'"]
        assert packages("comet_ml", needed).keys() == {"comet-ml"}
    assert packages(needed=["torch>=2", "gguf; extra == 'export'"]).keys() == {"torch"}


def test_every_package_has_its_version_in_the_constraints():
    of_tests = {*EXTRAS, *DEVELOPERS} - {"trackio"}  # trackio asks for another Pillow
    asked = [
        *PROJECT["dependencies"],
        *(text for extra in of_tests for text in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, asked):
        if (name := canonicalize_name(requirement.name)) not in ("ghosttune", "pyright"):
            assert requirement.specifier.contains(PINNED[name], prereleases=True), name


def test_the_dockerfile_names_files_and_versions_that_exist():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"src", "constraints.txt"} <= set(copied) and all((ROOT / name).exists() for name in copied)
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {name[1:] for name in kept if name.startswith("!")} == set(copied)
    pinned = re.findall(r"([\w-]+)==([\w.]+)", "\n".join(line for line in lines if not line.startswith("#")))
    assert pinned and all(PINNED[name] == version for name, version in pinned)
    extras = {extra for line in lines for names in re.findall(r'"\.\[(.+?)\]"', line) for extra in names.split(",")}
    assert extras and extras <= EXTRAS.keys()
    stages = "\n".join(lines).split("\nFROM ")
    assert [stage.split("\n")[0].split(" AS ")[1] for stage in stages[1:]] == ["source", "cpu", "cuda"]
    assert all("USER tuner" in stage and 'ENTRYPOINT ["ghosttune"]' in stage for stage in stages[2:])


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert str(cited["version"]) == __version__ and cited["license"] == PROJECT["license"]
    assert "".join(cited["abstract"].split()) == "".join(PROJECT["description"].split())


def test_forms_for_issues_ask_for_what_doctor_prints():
    forms = {
        path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    }
    assert forms.pop("config") == {"blank_issues_enabled": False}
    for form in forms.values():
        assert form.keys() == {"name", "description", "labels", "body"}
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields) > 0
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in fields)
    for name in ("bug", "wrong_number"):
        assert any("ghosttune doctor" in field["attributes"].get("label", "") for field in forms[name]["body"])


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The program under its own name, as an installation has it."""
    path = tmp_path_factory.mktemp("bin") / "ghosttune"
    path.write_text(f"#!{sys.executable}\nfrom ghosttune.cli.main import main\nmain()\n")
    path.chmod(0o755)
    return path


def shell(name: str, program: Path, script: str) -> str:
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([name, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


SCRIPT = "_GHOSTTUNE_COMPLETE=source_{} ghosttune"


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_one(program, name):
    script = shell("sh", program, SCRIPT.format(name))
    assert "_GHOSTTUNE_COMPLETE=complete_" in script
    if shutil.which(name):
        assert subprocess.run([name, "-n"], input=script, text=True, timeout=60).returncode == 0


COMPLETED = {
    "ghosttune do": ["doctor"],
    "ghosttune train --pre": ["--preset"],
    "ghosttune train --preset samsum_a": ["samsum_attention", "samsum_attn-mlp-both"],
    "ghosttune init --profile qui": ["quick", "quickstart"],
    "ghosttune train ./run.y": [],  # bash completes names of files itself
}


def test_bash_completes(program):
    script = [f'eval "$({SCRIPT.format("bash")})"']
    for words in COMPLETED:
        script.append(
            f"COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _ghosttune_completion ghosttune"
        )
        script.append('echo "${COMPREPLY[@]}"')
    said = shell("bash", program, "\n".join(script)).splitlines()
    assert [line.split() for line in said] == list(COMPLETED.values())
