"""Models whose folders, names, versions, links and configs are written in every way there is."""

# ruff: noqa: E501 -- a model is easier to read in one line

from collections.abc import Iterator

from tests.conformance.generated.model import ECHO, PYTHON, VERSION, Model


def versions() -> Iterator[Model]:
    """Return models with version folders and policies; each version answers with its number."""
    code = {f"{number}/model.py": VERSION for number in (1, 3, 10)}
    for name, policy, light in (
        ("latest_one", "latest { num_versions: 1 }", True),
        ("latest_two", "latest { num_versions: 2 }", False),
        ("all_of_them", "all { }", True),
        ("specific", "specific { versions: [1, 3] }", True),
        ("specific_lowest", "specific { versions: [1] }", False),
        ("latest_many", "latest { num_versions: 9 }", False),
    ):
        yield Model(
            name, f"{PYTHON} version_policy {{ {policy} }}", code, versions=(1, 3, 10), light=light
        )
    yield Model("no_policy", PYTHON, code, light=True)
    yield Model(
        "specific_absent", f"{PYTHON} version_policy {{ specific {{ versions: [7] }} }}", code
    )
    yield Model("second_only", PYTHON, {"2/model.py": VERSION}, versions=(1, 2))
    yield Model("large_number", PYTHON, {"20240131/model.py": VERSION}, versions=(20240131,))
    yield Model("leading_zero", PYTHON, {"01/model.py": VERSION})
    yield Model("version_zero", PYTHON, {"0/model.py": VERSION})
    yield Model(
        "other_folders",
        PYTHON,
        {"1/model.py": VERSION, "docs/a.md": "", "v2/model.py": VERSION},
        light=True,
    )
    yield Model("file_for_a_version", PYTHON, {"1/model.py": VERSION, "2": ""})
    yield Model(
        "broken_newest",
        f"{PYTHON} version_policy {{ all {{ }} }}",
        {"1/model.py": VERSION, "2/model.py": "raise ValueError"},
        versions=(1, 2),
    )


def folders() -> Iterator[Model]:
    """Return models with unusual names, and with other things beside their files."""
    for name, light in (
        *(("with-dash", True), ("with.dot", True), ("UPPER", False), ("1st", False)),
        *(("a" * 100, False), ("under_score", False), ("many.dots.in.it", False)),
        *(("a-", False), ("x", False), ("trailing.", False), ("_lead", True), ("a..b", True)),
        *(("+", True), ("plus+plus", False), ("at@home", True), ("@", False), ("n" * 250, True)),
        *(("many,commas", True), ("a=b", False), ("a~b", False), ("a#b", False)),
    ):
        yield Model(name, PYTHON, {"1/model.py": ECHO}, light=light)
    beside: dict[str, bytes | str] = {
        "1/model.py": ECHO,
        "1/weights/part.bin": b"\0" * 1000,
        "1/.hidden": "",
        "README.md": "# Model",
        ".gitignore": "*.bin",
        "assets/deep/er/file.txt": "x",
        "configs/other.pbtxt": "max_batch_size: 4",
        "config.pbtxt.bak": "nonsense {",
        ".ipynb_checkpoints/model.py": "",
    }
    yield Model("beside", PYTHON, beside, light=True)
    imports = "import pathlib, sys\nsys.path.append(str(pathlib.Path(__file__).parent))\nfrom helper import *\n"
    yield Model("imports", PYTHON, {"1/model.py": imports, "1/helper.py": ECHO}, light=True)


def configs() -> Iterator[Model]:
    """Return models whose configs are written in different ways."""
    for name, config, light in (
        ("crlf", PYTHON.replace("] ", "]\r\n"), True),
        ("commented", f"# ünïcode\n{PYTHON} # end", False),
        ("named", f'name: "named" {PYTHON}', False),
        (
            "commas",
            PYTHON.replace("TYPE_FP32 ", "TYPE_FP32, ").replace("] output", "], output"),
            False,
        ),
        ("single_quotes", PYTHON.replace('"', "'"), False),
        ("angle_brackets", PYTHON.replace("[{", "[<").replace("}]", ">]"), False),
        (
            "repeated_fields",
            PYTHON.replace("input [{", "input {")
            .replace("[1] }] output [{", "[1] } output {")
            .replace("[1] }]", "[1] }"),
            False,
        ),
        ("numbers_for_enums", PYTHON.replace("TYPE_FP32", "11"), False),
        ("spread_out", PYTHON.replace(" ", "\n\t"), False),
        ("bom", "\ufeff" + PYTHON, False),
        ("latin_comment", f"# caf\xe9\n{PYTHON}".encode("latin-1"), True),
        ("gbk_comment", f"# 模型\n{PYTHON}".encode("gbk"), False),
    ):
        yield Model(name, config, {"1/model.py": ECHO}, light=light)
    text = f'{PYTHON} metric_tags {{ key: "caf\xe9" value: "a" }}'.encode("latin-1")
    yield Model("latin_text", text, {"1/model.py": ECHO}, light=True, hangs=True)


def links() -> Iterator[Model]:
    """Return models whose files are links, into the repository and out of it."""
    code = {"1/model.py": ECHO}
    yield Model(
        "linked_file", PYTHON, {}, links={"1/model.py": "../../with-dash/1/model.py"}, light=True
    )
    yield Model("linked_version", PYTHON, {}, links={"1": "../with-dash/1"})
    yield Model("linked_config", None, code, links={"config.pbtxt": "../with-dash/config.pbtxt"})
    yield Model(
        "linked_out", PYTHON, {}, links={"1/model.py": "../../../outside/model.py"}, light=True
    )
    yield Model("linked_folder_out", PYTHON, {}, links={"1": "../../outside"})
    yield Model("linked_to_nothing", PYTHON, code, links={"1/weights.bin": "nowhere"}, light=True)
    yield Model("linked_label", PYTHON, code, links={"labels.txt": "../linked_file/config.pbtxt"})
