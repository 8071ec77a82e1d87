"""The scripts and manifests of the page on clusters: shells and parsers accept them, and handful their commands."""

import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from docs.scripts.commands import ROOT, blocks
from docs.scripts.reference import every_command
from handful.cli import app

PAGE = ROOT / "docs" / "how-to" / "cluster.md"
SCRIPTS = list(blocks(PAGE, "sh"))
MANIFESTS = [manifest for block in blocks(PAGE, "yaml") for manifest in yaml.safe_load_all(block)]


def require_understood(line: str) -> None:
    """Fails unless `handful` has the command and its options."""
    words = shlex.split(line)
    words = words[words.index("handful") + 1 :]
    known = {called[1:]: command for called, command in every_command(typer.main.get_command(app))}
    called = next(tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in known)
    known[called].make_context(" ".join(called), words[len(called) :])


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_parses_each_script_and_handful_each_command(script: str, tmp_path: Path):
    (tmp_path / "script.sh").write_text(script)
    subprocess.run(["bash", "-n", str(tmp_path / "script.sh")], check=True)
    for line in script.replace("\\\n", " ").splitlines():
        if "handful " in line and not line.startswith(("#", "pip ")):
            require_understood(line)


def test_each_manifest_is_complete_and_runs_a_command_that_handful_has():
    assert {manifest["kind"] for manifest in MANIFESTS} == {"Job", "Service", "Deployment"}
    for manifest in MANIFESTS:
        assert manifest["apiVersion"]
        assert manifest["metadata"]["name"]
        if manifest["kind"] == "Service":
            continue
        pod = manifest["spec"]["template"]["spec"]
        mounted = {mount["name"] for one in pod["containers"] for mount in one.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}
        for container in pod["containers"]:
            command = [*container["command"], *container.get("args", ())]
            if command[0] == "bash":
                (line,) = [line for line in command[-1].splitlines() if "handful " in line]
                require_understood(line)
            elif command[0] == "handful":
                require_understood(shlex.join(command))


def test_selectors_match_the_labels_of_their_pods():
    deployments = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "Deployment"]
    for spec in deployments:
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    (service,) = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "Service"]
    assert service["selector"] in [spec["selector"]["matchLabels"] for spec in deployments]
