"""Names alone say which text belongs to which image, splits, classes and repeats."""

import pytest

from ldm.formats.layout import classes, divided, has_repeats, left_out, paired, repeats


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("a.png", "a.txt"),
        ("IMG_0.JPG", "IMG_0.TXT"),
        ("IMG_0.JPG", "img_0.Txt"),
        ("a.png", "a.caption"),
        ("a.png", "a.png.txt"),
        ("sub/a.b.PNG", "sub/A.B.png.CAPTION"),
        ("caf\u00e9.png", "cafe\u0301.txt"),
    ],
)
def test_a_caption_file_is_found_whatever_its_case_and_form(image, text):
    assert paired([image, text, "other/a.txt", "ab.txt"], [image]) == {image: [text]}


def test_an_exact_name_comes_before_one_of_another_case():
    assert paired(["a.txt", "A.txt"], ["a.png", "A.png"]) == {"a.png": ["a.txt"], "A.png": ["A.txt"]}
    assert paired(["a.txt"], ["a.png", "A.png"]) == {"a.png": ["a.txt"]}
    assert paired(["a.txt"], ["a.png", "a.jpg"]) == {"a.png": ["a.txt"], "a.jpg": ["a.txt"]}


def test_several_caption_files_have_an_order():
    files = ["a.caption", "a.json", "a.png.txt", "a.txt"]
    assert paired(files, ["a.png"]) == {"a.png": ["a.png.txt", "a.txt", "a.caption", "a.json"]}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/1.png", "val/2.png"], ["train", "validation"]),
        (["images/train/1.png", "images/val/2.png"], ["train", "validation"]),
        (["data/train/cats/1.png", "data/val/cats/2.png", "data/test/cats/3.png"], ["train", "validation", "test"]),
        (["cats/train/1.png", "dogs/Training/2.png", "dogs/dev/3.png"], ["train", "train", "validation"]),
        (["train/test/1.png", "train/2.png"], ["train", "train"]),  # the outer one counts
        (["train-000.tar/1.png", "val-000.tar/2.png"], ["train", "validation"]),
        (["train/1.png", "boat/2.png"], [None, None]),
        (["val/1.png", "test/2.png"], [None, None]),
        (["1.png", "train/2.png"], [None, None]),
    ],
)
def test_a_division_is_found_at_any_depth(names, splits):
    assert divided(names)[0] == splits


def test_a_division_that_is_not_kept_is_said():
    assert divided(["train/1.png", "train/2.png", "boat/3.png"])[1] == []
    [note] = divided(["train/1.png", "val/2.png", "boat/3.png", "4.png"])[1]
    assert "into train, validation is not kept, as 2 images lie in none" in note and "boat/3.png, 4.png" in note


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["red apple/1.png", "flag/2.png"], ["red apple", "flag"]),
        (["train/red_apple/1.png", "val/flag/2.png"], ["red apple", "flag"]),
        (["pets/cats/1.png", "pets/dogs/2.png"], ["cats", "dogs"]),
        (["10_fruit/1.png", "5_face mark/2.png"], ["fruit", "face mark"]),
        (["10_fruit/1.png"], ["fruit"]),
        (["001.Black_footed/1.png", "002.Laysan/2.png"], ["Black footed", "Laysan"]),
        (["images/1.png", "images/2.png"], ["", ""]),
        (["1.png", "cats/2.png"], ["", "cats"]),
        (["2024/1.png", "2025/2.png"], ["2024", "2025"]),
        (["0.tar/cats/1.png", "1.tar/2.png"], ["cats", ""]),
    ],
)
def test_classes_are_the_names_of_folders(names, expected):
    assert classes(names, divided(names)[0]) == expected


def test_repeats_are_the_number_of_the_nearest_folder():
    names = ["10_fruit/1.png", "x/3_a/2.png", "4_b/5_c/3.png", "a/4.png", "20240101_walk/5.png", "7_x.png"]
    assert [repeats(name) for name in names] == [10, 3, 5, 1, 1, 1]


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (["10_fruit", "5_face"], True),
        (["1_face", "1_fruit"], True),
        (["10_fruit"], True),
        (["10_fruit", "other"], False),
        (["0_cat", "1_dog"], False),  # classes that are counted
        (["1_cat", "2_dog", "3_cow"], False),
        (["20240101_walk", "20240102_walk"], False),
    ],
)
def test_folders_of_counted_classes_are_no_repeats(folders, found):
    assert has_repeats([f"{folder}/1.png" for folder in folders]) == found


def test_what_is_left_out_is_counted_by_kind_and_captions_are_named():
    [note] = left_out(["a.psd", "b.PSD", "c.dng", "notes.txt", "captions.json", "LICENSE"])
    for words in (".psd (2)", ".dng (1)", ".txt (1: notes.txt)", ".json (1: captions.json)", "no ending (1)"):
        assert words in note
    assert left_out([]) == []
