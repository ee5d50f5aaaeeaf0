"""Every command and snippet of the README is run, in order, in one empty directory."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from epochal.pipelines import cli, get_recipe, override

README = Path(__file__).resolve().parents[1] / "README.md"


def test_readme_runs_as_it_stands(tmp_path):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) >= 6
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, code in blocks:
        command = (
            ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        )
        result = subprocess.run(
            [*command, code], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PATH": path, "COLUMNS": "100"},
        )  # fmt: skip
        assert result.returncode == 0, f"{code}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        if "list recipes" in code:
            assert "resnet20-digits" in result.stdout
            assert "accuracy" in result.stdout
        if "predict runs/flats" in code:
            assert result.stdout.count("prediction") == 2
        if "mine.keras" in code and "load_model" in code:
            assert result.stdout.split() == ["0.01", "0.1"]


def test_console_commands_are_targets_of_the_makefile():
    makefile = (README.parent / "Makefile").read_text()
    (block,) = re.findall(r"^```console\n(.*?)^```", README.read_text(), re.M | re.S)
    for target in re.findall(r"^make (\S+)", block, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_commands_that_need_files_of_ones_own_name_what_there_is():
    block = "".join(re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.M | re.S))
    trained = 0
    for line in block.replace("\\\n", " ").splitlines():
        _, verb, name, *rest = shlex.split(line, comments=True)
        assert verb in cli.VERBS
        if verb == "train":
            pairs = dict(zip(rest[::2], rest[1::2], strict=True))
            pairs.pop("--run-dir", None)
            override(get_recipe(name), {key.removeprefix("--"): pairs[key] for key in pairs})
            trained += 1
    assert trained == 7
