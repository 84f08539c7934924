from vit_ratio_opt.utils.text import csv_text, short


def test_csv_has_a_header_and_quotes_cells() -> None:
    assert csv_text([{"a": 1, "b": "x,y"}, {"a": None, "b": 2}]) == 'a,b\n1,"x,y"\n,2\n'
    assert csv_text([]) == ""


def test_a_long_text_is_cut_to_one_line() -> None:
    assert short("a\n  b") == "a b"
    assert short("x" * 80) == "x" * 80
    assert short("x" * 81) == "x" * 79 + "…"
