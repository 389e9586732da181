"""docs/jetson.md and docs/Containerfile.jetson hold: tables, commands, paths, and what the doctor sends users to."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jetson_trees import FOLDER, TREES, read_tree

from vae_edge.cli.parser import build_parser
from vae_edge.jetson import CHIPS, JETPACKS, MODULES, findings
from vae_edge.jetson_files import power_modes
from vae_edge.spec import PRECISIONS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/jetson.md").read_text(encoding="utf-8")
CONTAINERFILE = ROOT / "docs/Containerfile.jetson"
INSTRUCTIONS = {"ARG", "FROM", "ENV", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
PROGRAMS = {"python3", "echo", "rm", "vae-edge"}  # of the base image, and what pip installs
NETWORK = ("http", "curl", "wget", "apt", "git ", "--index-url", "pip download")


def test_the_table_of_jetpacks_is_that_of_the_module() -> None:
    rows = [
        f"| {j.version} | {', '.join(j.l4t)} | {j.cuda} | {j.tensorrt} | {j.cudnn} | {j.python}, {j.ubuntu} "
        f"| {', '.join(CHIPS[chip].family for chip in j.chips)} | {'yes' if j.dla else 'no'} |"
        for j in JETPACKS
    ]
    shown = [line for line in PAGE.splitlines() if re.match(r"\| [67]\.\d", line)]
    assert shown == rows


def test_the_table_of_dla_cores_is_that_of_the_modules() -> None:
    section = PAGE.split("\n## DLA\n")[1].split("\n## ")[0]
    told = {name.strip(): int(cores) for name, cores in re.findall(r"^\| ([^|]+) \| (\d) \|", section, re.MULTILINE)}
    for module in MODULES.values():
        name = module.name.removeprefix("Jetson ")
        keys = [key for key in told if name.startswith(key) or any(name.startswith(word) for word in key.split(", "))]
        keys += ["T4000, T5000 (Thor)"] if name.startswith(("T4000", "T5000")) and not keys else []
        assert [told[key] for key in keys] == [module.dla_cores], name


@pytest.mark.parametrize(
    ("board", "tree"),
    [
        ("Orin Nano Super", "orin-nano-super-jetpack-6.2"),
        ("AGX Orin 64 GB", "agx-orin-jetpack-7.2"),
        ("AGX Thor", "thor-jetpack-7.1"),
    ],
)
def test_the_table_of_power_modes_is_that_of_the_trees(board: str, tree: str) -> None:
    modes = power_modes((FOLDER / tree / "etc/nvpmodel.conf").read_text())
    assert f"| {board} developer kit | {', '.join(f'{mode.number}: {mode.name}' for mode in modes)} |" in PAGE


def test_each_command_in_the_text_is_understood() -> None:
    """Those in backticks as well; a bare name of a command is none."""
    inline = [" ".join(each.split()) for each in re.findall(r"`(vae-edge [^`]+)`", PAGE)]
    assert len(inline) >= 3
    for line in inline:
        words = shlex.split(line)[1:]
        if len(words) == 1 and words[0] not in ("doctor", "devices"):
            words.append("bundle")
        assert callable(build_parser().parse_args(words).run), line
    for option in re.findall(r'BuildConfig\("(\w+)"', PAGE):
        assert option in PRECISIONS


def test_every_remedy_that_is_a_command_for_the_jetson_is_explained() -> None:
    """What the doctor tells a user to run is in the page; what it sends a user to is a heading there."""
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    source = (ROOT / "vae_edge/jetson.py").read_text(encoding="utf-8")
    sent = re.findall(r"docs/jetson\.md, ([A-Z][\w ]+)\"", source)
    assert len(sent) >= 3 and set(sent) <= set(headings)
    remedies = {finding.remedy for name in TREES for finding in findings(read_tree(name)) if not finding.works}
    assert len(remedies) >= 6
    known = " ".join(PAGE.replace("\\\n", " ").split())
    for remedy in remedies:
        for words in (
            "nvpmodel -m",
            "jetson_clocks",
            "python3-libnvinfer",
            "--system-site-packages",
            "-igpu",
            "isolate",
        ):
            if words in remedy:
                assert words in known, remedy
        for option in re.findall(r"-v \S+", remedy):
            assert option in known, option


def test_the_run_options_of_the_page_are_those_of_the_finding() -> None:
    from vae_edge.jetson import _MOUNTS

    known = " ".join(PAGE.replace("\\\n", " ").split())
    for options in _MOUNTS.values():
        assert options in known


# ---- the Containerfile --------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments), with continued lines joined, without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def problems(text: str) -> list[str]:
    """What is wrong with a Containerfile that must need no network and nothing but `wheels` from its context."""
    found, there, arguments = [], {"/usr/local/bin/vae-edge"}, dict[str, str]()
    for name, rest in instructions(text):
        if name not in INSTRUCTIONS:
            found.append(f"{name} is no instruction that is known here")
        elif name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value
            if not re.fullmatch(r"nvcr\.io/nvidia/[\w./-]+:[\w.-]+", value):
                found.append(f"{value} is not one of NVIDIA's images with a tag")
        elif name == "FROM" and rest != "${BASE}":
            found.append(f"FROM {rest}")
        elif name == "COPY":
            source, target = rest.split()
            if source != "wheels" or not target.startswith("/"):
                found.append(f"COPY {rest}: the context has the folder wheels alone")
            there.add(target)
        elif name == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True, check=False)
            found += [f"the shell does not read it: {done.stderr}"] if done.returncode else []
            found += [f"it uses the network: {word}" for word in NETWORK if word in rest]
            if "pip" in rest and "--no-index" not in rest:
                found.append("pip asks an index")
            paths = re.findall(r"(?<![\w.)])/[\w./*-]+", rest)
            found += [f"{path} is not there" for path in paths if not any(path.startswith(each) for each in there)]
            programs = re.findall(r"(?:^|&& |\$\()\s*([\w./-]+)", rest)
            found += [f"{program} may be missing" for program in programs if program not in PROGRAMS]
    return found if "BASE" in arguments else [*found, "there is no ARG BASE"]


def test_the_containerfile_needs_its_image_and_the_folder_of_wheels_alone() -> None:
    text = CONTAINERFILE.read_text(encoding="utf-8")
    assert problems(text) == []
    names = [name for name, _ in instructions(text)]
    assert names == ["ARG", "FROM", "ENV", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("COPY wheels", "COPY dist", "COPY dist"),
        ("--no-index ", "", "pip asks an index"),
        ("RUN python3", "RUN apt-get update && python3", "uses the network"),
        ("--find-links /opt/vae-edge/wheels", "--find-links /opt/other", "/opt/other is not there"),
        ("rm -r /opt/vae-edge/wheels", "rm -r '/opt/vae-edge/wheels", "the shell does not read it"),
        ("FROM ${BASE}", "FROM ubuntu", "FROM ubuntu"),
        ("l4t-jetpack:r36.4.0", "l4t-jetpack", "with a tag"),
        ("WORKDIR", "WORKDR", "WORKDR is no instruction"),
        ("&& vae-edge --version", "&& uv --version", "uv may be missing"),
    ],
)
def test_a_fault_in_a_containerfile_is_found(old: str, new: str, complaint: str) -> None:
    text = CONTAINERFILE.read_text(encoding="utf-8")
    assert old in text
    assert any(complaint in problem for problem in problems(text.replace(old, new)))


def test_its_commands_start_the_doctor_and_its_images_are_those_of_the_page() -> None:
    parts = dict(instructions(CONTAINERFILE.read_text(encoding="utf-8")))
    words = [word for part in ("ENTRYPOINT", "CMD") for word in re.findall(r'"([^"]+)"', parts[part])]
    assert words == ["vae-edge", "doctor"] and callable(build_parser().parse_args(words[1:]).run)
    text = CONTAINERFILE.read_text(encoding="utf-8")
    base = re.search(r"--build-arg BASE=(\S+)", PAGE)
    assert base is not None and f"BASE={base[1]}," in text
    assert f'-v "$PWD:{parts["WORKDIR"]}"' in PAGE
    extra = re.search(r'"vae-edge\[(\w+)\]"', parts["RUN"])
    assert extra is not None and f'"./dist/vae_edge-0.1.0-py3-none-any.whl[{extra[1]}]"' in PAGE


def test_pip_runs_from_its_wheel_as_the_containerfile_calls_it(tmp_path: Path) -> None:
    """The RUN line's own words, with this machine's pip packed as a wheel and a package of one file."""
    pytest.importorskip("pip")
    import pip

    wheels = tmp_path / "opt/vae-edge/wheels"
    wheels.mkdir(parents=True)
    folder = Path(pip.__file__).parent
    with zipfile.ZipFile(wheels / "pip-0-py3-none-any.whl", "w") as wheel:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(folder.parent).as_posix())
    about = "vae_edge-9.dist-info"
    with zipfile.ZipFile(wheels / "vae_edge-9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fake_vae_edge.py", "def main():\n    print('vae-edge 9')\n")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: vae-edge\nVersion: 9\nProvides-Extra: onnxruntime\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\nvae-edge = fake_vae_edge:main\n")
        wheel.writestr(f"{about}/RECORD", "")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    run = dict(instructions(CONTAINERFILE.read_text(encoding="utf-8")))["RUN"].replace("/opt/", f"{tmp_path}/opt/")
    bins = (venv / "bin", Path(shutil.which("rm") or "/bin/rm").parent)
    environment = {"PATH": ":".join(map(str, bins)), "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", run], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("vae-edge 9\n") and not wheels.exists()
