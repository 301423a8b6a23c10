"""Shortening of the parser's messages and the guesses at what was meant."""

from lightning_styles.messages import hints, shorten

UNION = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'a.Module'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'tests.toys.ToyStyle':
        Option 'sise' is not accepted
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'sise': 3}"""


def test_a_union_is_reduced_to_what_matters() -> None:
    assert shorten(UNION) == "model: in tests.toys.ToyStyle: Option 'sise' is not accepted"
    assert hints(UNION, []) == ["'sise': did you mean 'size'?"]


def test_the_value_is_kept_where_no_line_names_it() -> None:
    message = "Parser key \"x\":\n  Errors:\n    - Expected a <class 'bool'>\n    - Expected a <class 'int'>\n"
    assert shorten(message + "  Given value: [1") == "x: expected bool; expected int; got [1"


def test_choices_are_listed() -> None:
    message = "Parser key \"x\":\n  Expected a typing.Literal['a', 'b']. Got value: c"
    assert shorten(message) == "x: expected one of 'a', 'b', got c"


def test_a_word_like_no_argument_lists_them() -> None:
    message = "Problem with given class_path 'tests.toys.Greeter':\n  Option 'zzz' is not accepted"
    assert hints(message, []) == ["'zzz' is not among message, every."]


def test_a_bare_class_name_asks_for_the_import_path() -> None:
    hint = hints("Expected a dot import path string: SMS", [])
    assert hint == ["'SMS': write the full import path, such as lightning_styles.methods.sms.SMS."]


def test_arguments_of_parents_count_only_when_keywords_are_handed_on() -> None:
    message = "Problem with given class_path 'tests.toys.ToyPainter':\n  Option 'learning_rate' is not accepted"
    assert hints(message, []) == ["'learning_rate' is not among shift, base."]


def test_no_hint_repeats_what_was_given() -> None:
    assert hints("Problem with given class_path 'tests.toys.ToyStyle':\n  'x' has no attribute 'keys'", []) == []
    message = "Problem with given class_path 'tests.toys.ToyStyle':\n  Option 'size' is not accepted"
    assert "'size'" not in "".join(hints(message, [])).partition(":")[2]


def test_alternatives_are_said_once() -> None:
    line = "    - Not a valid subclass of Callback\n    Subclass types expect one of:\n    - a class path (str)\n"
    assert (
        shorten(f'Parser key "trainer.callbacks":\n{line}{line}')
        == "trainer.callbacks: Not a valid subclass of Callback"
    )
