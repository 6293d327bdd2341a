"""What README and examples say works, as written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import python_api
from tileir.errors import TileirError
from tileir.frontends.torch_export.smollm2 import prepare_smollm2
from tileir.tools.opt import main

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("*.py") if "# %%" in p.read_text())


def run(command: list[str], folder: Path) -> str:
    """What a command prints; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository; what commands write stays in it."""
    try:
        prepare_smollm2(ROOT / ".cache")
    except TileirError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".git"):
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def test_readme_as_written(checkout: Path) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert [kind for kind, _ in blocks] == ["python", "sh", "python"]
    (_, python), (_, shell), (_, more) = blocks
    *printed, last = run([sys.executable, "-c", python + more], checkout).splitlines()
    assert [len(tokens) for tokens in json.loads(last)] == [2, 2]
    tokens = [int(line) for line in printed if line.isdigit()]
    assert len(tokens) == 4
    (checkout / "smollm2.tileir").unlink()
    if not (ROOT / ".venv/bin/activate").is_file():
        shell = shell.replace("source .venv/bin/activate\n", "")
    printed_by_shell = run(["bash", "-euo", "pipefail", "-c", shell], checkout)
    assert "rows of" in printed_by_shell
    assert 'payload = "bf16x2"' in printed_by_shell
    assert " Paris" in printed_by_shell


def test_the_first_commands(checkout: Path) -> None:
    """`make demo`, with the environment that runs this test; `make test` is what CI runs, and so this test."""
    commands = re.findall(r"^    (make .*?) *#", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["make demo", "make test"]
    assert (ROOT / ".ci/run").read_text().rstrip().endswith(f"\n{commands[1]}")
    here = ["-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}"]
    printed = run([*commands[0].split(), *here], checkout)
    assert "Once upon a time, there was a little girl" in printed
    assert "tokens/s" in printed


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, tmp_path: Path) -> None:
    """As written; they check their results themselves and end with an error if those are wrong."""
    path = ROOT / f"examples/{name}.py"
    assert "\nassert " in path.read_text()
    assert run([sys.executable, str(path)], tmp_path)


def test_python_api_is_what_the_docstrings_say() -> None:
    """If not: make docs."""
    assert python_api.PAGE.read_text() == python_api.document()


@pytest.mark.parametrize("document", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_anchors_of_a_page_are_its_headings(document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors


@pytest.mark.parametrize("folder", ["examples", "docs"])
def test_readme_lists_everything(folder: str) -> None:
    named = set(LINK.findall((ROOT / "README.md").read_text()))
    found = [p for p in (ROOT / folder).iterdir() if p.suffix in (".md", ".py")]
    listed = [p for p in found if p.suffix == ".md" or folder == "examples"]
    assert listed
    assert [p.name for p in listed if f"{folder}/{p.name}" not in named] == []


def test_each_stop_leads_to_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of examples/look_at_ir.py, run as printed, write the files it wrote."""
    out = run([sys.executable, str(ROOT / "examples/look_at_ir.py"), "ir"], tmp_path)
    files = sorted((tmp_path / "ir").iterdir())
    commands = re.findall(r"tileir-opt (\S+) --pass-pipeline='(.*)'", out)
    assert len(files) == len(commands) + 1
    for (path, pipeline), wanted in zip(commands, files[1:], strict=True):
        assert main([str(tmp_path / path), f"--pass-pipeline={pipeline}"]) == 0
        assert capsys.readouterr().out.strip() == wanted.read_text().strip()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target
